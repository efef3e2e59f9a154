// tests/coding/allocations.hpp: what the program asked operator new for, of all threads, since reset().
#pragma once

#include <cstddef>

namespace allocations {

void reset();
std::size_t count();
std::size_t largest();  // bytes

}  // namespace allocations
