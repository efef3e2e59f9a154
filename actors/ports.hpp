// actors/ports.hpp: what the actors need from the outside, as small interfaces. runtime/ implements them over ZeroMQ and
// oneDNN; the simulator over a seeded queue of events.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "actors/messages.hpp"

namespace coppice::actors {

// Sends frames. Never blocks and never fails loudly: a frame to a peer that is gone is lost, as on any network.
class FramePort {
 public:
  virtual ~FramePort() = default;
  virtual void send(const Peer& to, DataMessage message) = 0;
  // The same to several.
  virtual void send_to_all(const std::vector<Peer>& to, const DataMessage& message) {
    for (const Peer& peer : to) send(peer, message);
  }
};

// A net that is ready to run one item. One caller at a time.
class NetPort {
 public:
  virtual ~NetPort() = default;
  // item: the net's input. Returns the scores, or a reason why there are none.
  virtual std::optional<std::string> run(std::span<const float> item, Floats& scores) = 0;
  virtual std::size_t input_elements() const = 0;
};

}  // namespace coppice::actors
