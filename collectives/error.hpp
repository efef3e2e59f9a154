// collectives/error.hpp: what can be wrong with a topology, or with what is asked of it.
#pragma once

#include <cstdint>
#include <string>
#include <tl/expected.hpp>

namespace coppice::collectives {

enum class ErrorCode : std::uint8_t {
  malformed = 1,   // not the JSON that a topology is, not a number, or beyond a bound
  unknown_node,    // a link's end or a participant that is no such node (or, a participant, no host)
  duplicate_node,  // two nodes of one name
  bad_capacity,    // not a rational above zero of at most kDigitsMax digits above and below the line
  unreadable,      // a file that is not there, is too large or cannot be read
  disconnected,    // a participant that nothing sent by the root can reach
  bad_root,        // a root that is no node, is a switch or takes no part
  wrong_plan,      // a plan that does not keep what it promises
  not_planned,     // no plan of the kind that was asked for: no ring over the hosts, a grain that leaves nothing
};

struct Error {
  ErrorCode code;
  std::string what;  // one line naming the element at fault
};

template <class T>
using Expected = tl::expected<T, Error>;

}  // namespace coppice::collectives
