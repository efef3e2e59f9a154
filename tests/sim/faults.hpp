// tests/sim/faults.hpp: the one source of chance, and what can go wrong, as values.
#pragma once

#include <chrono>
#include <cstdint>
#include <random>
#include <string>
#include <variant>
#include <vector>

#include "actors/messages.hpp"

namespace sim {

using namespace coppice::actors;

double ms(Duration d);

class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}
  std::uint64_t bits() { return engine_(); }
  std::size_t below(std::size_t bound) { return static_cast<std::size_t>(engine_() % bound); }
  double uniform() { return static_cast<double>(engine_() >> 11) * 0x1.0p-53; }  // [0, 1)
  bool chance(double share) { return uniform() < share; }
  Duration between(Duration least, Duration most) { return least + scaled(most - least, uniform()); }
  Duration exponential(Duration mean);
  Duration pareto(double shape, Duration least, Duration most);

 private:
  static Duration scaled(Duration d, double by) {
    return Duration{static_cast<Duration::rep>(static_cast<double>(d.count()) * by)};
  }
  std::mt19937_64 engine_;
};

// ---- what can go wrong ---------------------------------------------------------------------------------------------

// The process dies with all that it knew; its loss is noticed after `noticed` and another is started after `back`.
struct LoseWorker { int worker = 0; Duration noticed{}, back{}; };
// The worker lives on, but nothing reaches it or leaves it until `back`, when it joins again.
struct CutOffWorker { int worker = 0; Duration noticed{}, back{}; };
// A share of the frames to and from the worker takes a pareto-distributed time.
struct DelayLinks { int worker = 0; double share = 0, shape = 2; Duration least{}, lasting{}; };
struct LoseFrames { int worker = 0; double share = 0; Duration lasting{}; };
struct RepeatFrames { int worker = 0; double share = 0; Duration lasting{}; };
// A straggler SPEC (actors/faults.hpp), asked for by a client.
struct Straggle { std::string spec; };

using Fault = std::variant<LoseWorker, CutOffWorker, DelayLinks, LoseFrames, RepeatFrames, Straggle>;
struct TimedFault { Duration at{}; Fault fault; };

std::string to_string(const TimedFault& fault);
std::vector<TimedFault> draw_faults(Random& random, int workers, Duration until, std::size_t count);

}  // namespace sim
