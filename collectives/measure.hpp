// collectives/measure.hpp: one thing that is measured between two hosts, and what came of it.
#pragma once

#include <cstdint>
#include <string>

namespace coppice::collectives {

struct Measure {
  enum class Kind : std::uint8_t {
    latency,  // round trips, one after another
    rate,     // until it is steady
    long_rate,  // the same over twice the time
    share,    // of a total: lasts as long as the others of its round, steady or not
  };
  Kind kind = Kind::rate;
  int from = -1, to = -1;                  // hosts, in the order that the survey was given
  std::string from_address, to_address;    // the ends of the link; empty: the hosts' own addresses
  bool operator==(const Measure&) const = default;
};

struct Measured {
  double bytes_per_s = 0;             // of payload, in the one direction
  double least_us = 0, median_us = 0;  // round trips
  bool settled = true;                // steady when it ended
  std::string fault;                  // why there is no figure; empty when there is one
};

}  // namespace coppice::collectives
