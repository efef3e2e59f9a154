// Counts what the calling thread takes from the heap, whoever asks: the program, oneDNN, the standard library.
#pragma once

#include <cstdint>

namespace coppice::gpu {

// False under a sanitizer, which has a heap of its own: then nothing is counted.
bool heap_is_counted();
std::int64_t heap_allocations();  // by this thread since it began

}  // namespace coppice::gpu
