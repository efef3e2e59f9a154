#include "tests/sim/faults.hpp"

#include <algorithm>
#include <cmath>
#include <sstream>

namespace sim {

using namespace std::chrono_literals;

double ms(Duration d) { return std::chrono::duration<double, std::milli>(d).count(); }

Duration Random::exponential(Duration mean) { return scaled(mean, -std::log1p(-uniform())); }
Duration Random::pareto(double shape, Duration least, Duration most) {
  return std::min(most, scaled(least, std::min(std::pow(1 - uniform(), -1 / shape), 1e6)));
}

namespace {

struct Told {  // of each fault, what a person would want to read
  std::ostream& out;
  void absence(const char* name, int worker, Duration noticed, Duration back) const {
    out << name << "{w" << worker << ", noticed after " << ms(noticed) << " ms, back after " << ms(back) << " ms}";
  }
  void spell(const char* name, int worker, double share, Duration lasting) const {
    out << name << "{w" << worker << ", share " << share << ", for " << ms(lasting) << " ms}";
  }
  void operator()(const LoseWorker& f) const { absence("LoseWorker", f.worker, f.noticed, f.back); }
  void operator()(const CutOffWorker& f) const { absence("CutOffWorker", f.worker, f.noticed, f.back); }
  void operator()(const LoseFrames& f) const { spell("LoseFrames", f.worker, f.share, f.lasting); }
  void operator()(const RepeatFrames& f) const { spell("RepeatFrames", f.worker, f.share, f.lasting); }
  void operator()(const DelayLinks& f) const {
    spell("DelayLinks", f.worker, f.share, f.lasting);
    out << " by pareto:" << f.shape << ":" << ms(f.least) << "ms";
  }
  void operator()(const Straggle& f) const { out << "Straggle{" << f.spec << "}"; }
};

}  // namespace

std::string to_string(const TimedFault& timed) {
  std::ostringstream out;
  out << ms(timed.at) << " ms: ";
  std::visit(Told{out}, timed.fault);
  return out.str();
}

std::vector<TimedFault> draw_faults(Random& random, int workers, Duration until, std::size_t count) {
  std::vector<TimedFault> faults;
  for (std::size_t i = 0; i < count; ++i) {
    const int worker = static_cast<int>(random.below(static_cast<std::size_t>(workers)));
    const auto lasting = random.between(50ms, 800ms);
    Fault fault;
    switch (random.below(7)) {
      case 0: case 1: fault = LoseWorker{worker, random.between(1ms, 300ms), random.between(5ms, 1'000ms)}; break;
      case 2: fault = CutOffWorker{worker, random.between(1ms, 300ms), random.between(5ms, 600ms)}; break;
      case 3:
        fault = DelayLinks{worker, random.uniform() * 0.5, 0.8 + random.uniform() * 2, random.between(1ms, 30ms), lasting};
        break;
      case 4: fault = LoseFrames{worker, random.chance(0.3) ? 1 : random.uniform() * 0.3, lasting}; break;
      case 5: fault = RepeatFrames{worker, random.uniform() * 0.5, lasting}; break;
      default: {
        const auto struck = std::to_string(1 + random.below(static_cast<std::size_t>(workers)));
        const std::string law = random.chance(0.5) ? "exp:30ms" : "pareto:1.2:8ms";
        const auto seed = std::to_string(random.below(1'000));
        fault = Straggle{"worker=any:" + struck + ",delay=" + law + ",p=0.5,seed=" + seed};
      }
    }
    faults.push_back({random.between(Duration{}, until), std::move(fault)});
  }
  if (random.chance(0.15)) {  // the power goes in the whole hall
    const auto when = random.between(until / 2, until);
    for (int worker = 0; worker < workers; ++worker)
      faults.push_back({when, LoseWorker{worker, random.between(1ms, 50ms), random.between(60ms, 900ms)}});
  }
  std::sort(faults.begin(), faults.end(), [](const auto& a, const auto& b) { return a.at < b.at; });
  return faults;
}

}  // namespace sim
