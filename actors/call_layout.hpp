// actors/call_layout.hpp: which of a rank's two buffers is the whole one, and which is its own part of it. Pure.
#pragma once

#include "collectives/operation.hpp"

namespace coppice::actors {

struct CallLayout {
  bool rooted = false;
  bool in_is_part = false, out_is_part = false;  // otherwise they are of the whole buffer
  bool in_at_root_only = false, out_at_root_only = false;
};

constexpr CallLayout layout_of(collectives::Operation operation) {
  using collectives::Operation;
  CallLayout out;
  switch (operation) {
    case Operation::broadcast:
      out.rooted = true;
      break;  // one buffer, in and out
    case Operation::reduce:
      out.rooted = out.out_at_root_only = true;
      break;
    case Operation::allreduce:
      break;
    case Operation::allgather:
      out.in_is_part = true;
      break;
    case Operation::reduce_scatter:
      out.out_is_part = true;
      break;
    case Operation::gather:
      out.rooted = out.in_is_part = out.out_at_root_only = true;
      break;
    case Operation::scatter:
      out.rooted = out.out_is_part = out.in_at_root_only = true;
      break;
  }
  return out;
}

}  // namespace coppice::actors
