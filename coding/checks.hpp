// coding/checks.hpp: what decode, fit and json hold their inputs to. Private to coding/.
#pragma once

#include <cstddef>
#include <optional>
#include <source_location>
#include <string>

#include "coding/decoder.hpp"

namespace coppice::coding {

// A broken promise of our own code: says where and stops. The world's faults are returned, never checked with this.
void check(bool kept, const char* promise, std::source_location where = std::source_location::current());

// "{0, 2, 5}"
std::string text_of(ArrivalSet set);

// Every worker's rows have the shape they claim and all sizes are within the limits of generator.hpp.
std::optional<DecodeError> generator_fault(const Generator& generator);

// At least one response, each with its worker's number of floats, all finite. The first fault in order of worker.
std::optional<DecodeError> arrivals_fault(const Generator& generator, const Arrivals& arrivals);

constexpr std::size_t size_of(int count) { return static_cast<std::size_t>(count); }

}  // namespace coppice::coding
