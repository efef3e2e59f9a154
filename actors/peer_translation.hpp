// actors/peer_translation.hpp: a collective's program as copies and kernels on the GPUs of one process. Pure.
//
// What relays do between hosts (actors/collective_relay_state.hpp), written down beforehand: every chunk is combined
// when all children's have come, in the children's order, and sent down as soon as it is known at the root. The same
// plan gives the same bits, and the same as relays give: the sum is made where the first child's chunk has landed, and
// contributions stay as they were.
//
// Steps are in the order in which a pipeline of equal hops would take them, so that chunks of all trees, ways up and
// down, take turns on a link. On each edge at most a window of chunks has landed and is not passed on.
// Source: Blink (MLSys 2020), section 4.
#pragma once

#include <cstdint>

#include "collectives/program.hpp"
#include "gpu/peer_program.hpp"

namespace coppice::actors {

gpu::Element on_gpu(collectives::Element element);
gpu::Reduction on_gpu(collectives::Reduction reduction);

// Rank r is device r. A device's input and output begin where CallLayout says: at the whole buffer, or at the rank's
// own part of it. Trees that wait to switch to their links (wait_us) begin at once: here nothing is switched. window:
// chunks an edge, two or more; 0: as window_of has it. REQUIRES: check(program).
gpu::PeerProgram peer_program(const collectives::Program& program, std::int64_t window = 0);

}  // namespace coppice::actors
