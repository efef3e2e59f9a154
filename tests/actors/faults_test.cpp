#include "actors/faults.hpp"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <cmath>

using namespace coppice::actors;

namespace {

FaultSpec parsed(std::string_view text) {
  const auto spec = parse_faults(text);
  EXPECT_TRUE(spec) << spec.error();
  return spec.value_or(FaultSpec{});
}

TEST(FaultSpec, ReadsEveryWord) {
  const auto spec = parsed("worker=h1,worker=h2,hold=pareto:2:10ms,p=0.05,kill@3,stop@50%,lie@0.5,seed=18446744073709551615");
  EXPECT_EQ(spec.names, (std::vector<std::string>{"h1", "h2"}));
  EXPECT_TRUE(spec.hold);
  EXPECT_EQ(spec.law, (DelayLaw{DelayLaw::Kind::pareto, 2, 10}));
  EXPECT_EQ(spec.p, 0.05);
  EXPECT_EQ(spec.kill, (FaultTime{3, false}));
  EXPECT_EQ(spec.stop, (FaultTime{50, true}));
  EXPECT_EQ(spec.lie, (FaultTime{0.5, false}));
  EXPECT_EQ(spec.seed, UINT64_MAX);
  EXPECT_EQ(parsed("worker=any:3,delay=exp:20ms").any, 3);
  EXPECT_EQ(parsed("worker=any:3,delay=exp:20ms").law, (DelayLaw{DelayLaw::Kind::exponential, 0, 20}));
}

TEST(FaultSpec, TakesDelaysInSecondsMillisecondsAndMicroseconds) {
  EXPECT_EQ(parsed("worker=a,delay=1.5s").law->scale_ms, 1500);
  EXPECT_EQ(parsed("worker=a,delay=50ms").law->scale_ms, 50);
  EXPECT_EQ(parsed("worker=a,delay=250us").law->scale_ms, 0.25);
}

TEST(FaultSpec, EmptyEndsAllFaults) {
  EXPECT_EQ(parsed(""), FaultSpec{});
  EXPECT_EQ(to_string(FaultSpec{}), "");
  EXPECT_EQ(strike(FaultSpec{}, RequestId{1}, 0, 4, "a").delay_ms, 0);
}

TEST(FaultSpec, NamesTheWordAtFault) {
  for (const std::string word :
       {"worker=", "worker=any:", "worker=any:0", "worker=any:33", "worker=any:1.5", "worker=any:x", "worker=any:-1",
        "delay=", "delay=50", "delay=ms", "delay=-1ms", "delay=601s", "delay=nanms", "delay=infms", "delay=5 ms",
        "delay=exp:", "delay=exp:-1ms", "delay=pareto:", "delay=pareto:2", "delay=pareto:0:5ms", "delay=pareto:-1:5ms",
        "delay=pareto:2:", "hold=gauss:5ms", "p=", "p=-0.1", "p=1.1", "p=nan", "p=0.5x", "seed=", "seed=-1", "seed=1.5",
        "seed=18446744073709551616", "kill@", "kill@-1", "kill@101%", "stop@x", "lie@%", "kill", "nonsense", " p=1", "P=1"}) {
    const auto spec = parse_faults("worker=h1,delay=5us," + word);
    // A second law is at fault as such, so words with a law are tried where they are the only one.
    const auto alone = parse_faults("worker=h1," + word);
    ASSERT_FALSE(spec) << word;
    ASSERT_FALSE(alone) << word;
    EXPECT_NE(alone.error().find("'" + word + "'"), std::string::npos) << alone.error();
    EXPECT_NE(spec.error().find("'" + word + "'"), std::string::npos) << spec.error();
  }
}

TEST(FaultSpec, RefusesWordsThatDoNotGoTogether) {
  for (const std::string text : {"delay=5ms", "p=0.5", "worker=h1", "worker=h1,p=0.5", "worker=h1,worker=any:2,delay=5ms",
                                 "worker=h1,delay=5ms,hold=5ms", "worker=h1,,delay=5ms", "worker=h1,delay=5ms,", ","})
    EXPECT_FALSE(parse_faults(text)) << text;
  EXPECT_FALSE(parse_faults("worker=h1,delay=5ms,worker=" + std::string(5'000, 'x')));
}

double drawn(double least, double most) {
  return least + (most - least) * static_cast<double>(*rc::gen::arbitrary<std::uint32_t>()) / 4'294'967'296.0;
}

FaultSpec any_spec() {
  FaultSpec spec;
  if (*rc::gen::arbitrary<bool>()) {
    spec.any = *rc::gen::inRange(1, 33);
  } else {
    // Few and short: a spec has at most 4096 characters.
    const auto letter = rc::gen::element('a', 'n', 'y', ':', '0', '-', '.', '=');
    spec.names.resize(*rc::gen::inRange<std::size_t>(1, 6));
    for (auto& name : spec.names) {
      name = *rc::gen::container<std::string>(*rc::gen::inRange<std::size_t>(1, 20), letter);
      if (name.starts_with("any:")) name = "x";
    }
  }
  const auto faults = *rc::gen::inRange(1, 16);
  const auto time = [] {
    const bool percent = *rc::gen::arbitrary<bool>();
    return FaultTime{drawn(0, percent ? 100 : 1e4), percent};
  };
  if (faults & 1) {
    const auto kind = *rc::gen::element(DelayLaw::Kind::fixed, DelayLaw::Kind::exponential, DelayLaw::Kind::pareto);
    spec.law = DelayLaw{kind, kind == DelayLaw::Kind::pareto ? drawn(0.5, 5) : 0, drawn(0, 5'000)};
    spec.hold = *rc::gen::arbitrary<bool>();
  }
  if (faults & 2) spec.kill = time();
  if (faults & 4) spec.stop = time();
  if (faults & 8) spec.lie = time();
  if (*rc::gen::arbitrary<bool>()) spec.p = drawn(0, 1);
  spec.seed = *rc::gen::arbitrary<std::uint64_t>();
  return spec;
}

TEST(FaultSpec, ComesBackTheSameFromItsText) {
  EXPECT_TRUE(rc::check([] {
    const auto spec = any_spec();
    const auto text = to_string(spec);
    RC_LOG() << text << '\n';
    const auto again = parse_faults(text);
    RC_ASSERT(again.has_value());
    RC_ASSERT(*again == spec);
  }));
}

TEST(FaultSpec, SurvivesAnyText) {
  EXPECT_TRUE(rc::check([](const std::string& text) {
    const auto spec = parse_faults(text);
    if (spec && !text.empty()) RC_ASSERT(parse_faults(to_string(*spec)).has_value());
  }));
}

// ---- what a spec does ----------------------------------------------------------------------------------------------

constexpr std::uint32_t kWorkers = 6;

std::string name_of(std::uint32_t index) { return "h" + std::to_string(index); }

std::vector<std::uint32_t> struck(const FaultSpec& spec, std::uint64_t request) {
  std::vector<std::uint32_t> out;
  for (std::uint32_t i = 0; i < kWorkers; ++i)
    if (strike(spec, RequestId{request}, i, kWorkers, name_of(i)).delay_ms > 0) out.push_back(i);
  return out;
}

TEST(Strike, FallsOnTheNamedWorkersOnly) {
  const auto spec = parsed("worker=h1,worker=h4,delay=5ms");
  for (std::uint64_t request = 1; request < 200; ++request)
    EXPECT_EQ(struck(spec, request), (std::vector<std::uint32_t>{1, 4}));
}

TEST(Strike, HoldsTheWorkerOrDelaysTheResponseNeverBoth) {
  const auto delay = strike(parsed("worker=h1,delay=5ms"), RequestId{1}, 1, kWorkers, "h1");
  EXPECT_EQ(delay.delay_ms, 5);
  EXPECT_EQ(delay.hold_ms, 0);
  const auto hold = strike(parsed("worker=h1,hold=5ms"), RequestId{1}, 1, kWorkers, "h1");
  EXPECT_EQ(hold.delay_ms, 0);
  EXPECT_EQ(hold.hold_ms, 5);
}

TEST(Strike, AnyCountFallsOnExactlySoManyWorkersOfEveryStruckRequestAndOnAllAlike) {
  for (int count = 1; count <= static_cast<int>(kWorkers) + 1; ++count) {
    const auto spec = parsed("worker=any:" + std::to_string(count) + ",delay=5ms,p=0.5,seed=9");
    const auto expected = std::min<std::size_t>(static_cast<std::size_t>(count), kWorkers);
    std::vector<int> times(kWorkers);
    int requests = 0;
    for (std::uint64_t request = 1; request <= 12'000; ++request) {
      const auto workers = struck(spec, request);
      if (workers.empty()) continue;
      ++requests;
      ASSERT_EQ(workers.size(), expected) << "request " << request;
      for (std::uint32_t worker : workers) ++times[worker];
    }
    const double share = static_cast<double>(expected) / kWorkers;
    const double spread = 5 * std::sqrt(requests * share * (1 - share));
    for (int t : times) EXPECT_NEAR(t, requests * share, spread + 1e-9);
  }
}

TEST(Strike, AnyCountIsDrawnAnewForEachRequest) {
  const auto spec = parsed("worker=any:1,delay=5ms");
  std::vector<int> times(kWorkers);
  for (std::uint64_t request = 1; request <= 600; ++request) ++times[struck(spec, request).at(0)];
  EXPECT_GT(*std::min_element(times.begin(), times.end()), 50);
}

TEST(Strike, FallsOnTheShareOfRequestsThatPSays) {
  constexpr int kRequests = 40'000;
  for (double p : {0.0, 0.05, 0.5, 1.0}) {
    auto spec = parsed("worker=h2,delay=5ms,seed=4");
    spec.p = p;
    int hit = 0;
    for (std::uint64_t request = 1; request <= kRequests; ++request) hit += struck(spec, request).empty() ? 0 : 1;
    EXPECT_NEAR(hit, kRequests * p, 5 * std::sqrt(kRequests * p * (1 - p)) + 1e-9) << p;
  }
}

TEST(Strike, WhetherARequestIsStruckIsTheSameForAllWorkers) {
  const auto spec = parsed("worker=h0,worker=h5,delay=5ms,p=0.3");
  for (std::uint64_t request = 1; request <= 2'000; ++request) {
    const auto workers = struck(spec, request);
    EXPECT_TRUE(workers.empty() || workers == (std::vector<std::uint32_t>{0, 5}));
  }
}

TEST(Strike, DependsOnTheSeedAndNothingElse) {
  const auto spec = parsed("worker=any:2,delay=exp:5ms,p=0.5,seed=1"), other = parsed("worker=any:2,delay=exp:5ms,p=0.5,seed=2");
  int differing = 0;
  for (std::uint64_t request = 1; request <= 500; ++request) {
    EXPECT_EQ(struck(spec, request), struck(spec, request));
    differing += struck(spec, request) != struck(other, request);
  }
  EXPECT_GT(differing, 200);
}

// The share of 20,000 draws, over requests and workers, that is at most `bound`.
double share_below(const FaultSpec& spec, double bound) {
  int below = 0, all = 0;
  for (std::uint64_t request = 1; request <= 20'000; ++request) {
    const auto worker = static_cast<std::uint32_t>(request % kWorkers);
    below += strike(spec, RequestId{request}, worker, kWorkers, name_of(worker)).delay_ms <= bound;
    ++all;
  }
  return static_cast<double>(below) / all;
}

TEST(Strike, DrawsItsDelaysFromTheLawThatTheSpecNames) {
  const auto spread = [](double share) { return 5 * std::sqrt(share * (1 - share) / 20'000); };
  const auto exponential = parsed("worker=any:6,delay=exp:20ms,seed=3");
  const auto pareto = parsed("worker=any:6,delay=pareto:2:10ms,seed=3");
  for (double share : {0.1, 0.5, 0.9, 0.99}) {
    EXPECT_NEAR(share_below(exponential, -20 * std::log(1 - share)), share, spread(share));
    EXPECT_NEAR(share_below(pareto, 10 / std::sqrt(1 - share)), share, spread(share));
  }
  EXPECT_EQ(share_below(pareto, 9.999), 0) << "10 ms is the least";
  const auto fixed = parsed("worker=any:6,delay=7ms,seed=3");
  EXPECT_EQ(share_below(fixed, 7), 1);
  EXPECT_EQ(share_below(fixed, 6.999), 0);
}

TEST(Strike, DrawsAreBoundedHoweverHeavyTheTail) {
  EXPECT_TRUE(rc::check([] {
    const DelayLaw law{*rc::gen::element(DelayLaw::Kind::fixed, DelayLaw::Kind::exponential, DelayLaw::Kind::pareto),
                       *rc::gen::element(1e-6, 0.01, 1.0, 50.0), *rc::gen::element(0.0, 1e-9, 1.0, 600'000.0)};
    for (double u : {0.0, 1e-300, drawn(0, 1), 1 - 0x1.0p-53}) {
      const double ms = law.draw_ms(u);
      RC_ASSERT(ms >= 0);
      RC_ASSERT(ms <= 600'000);
    }
  }));
}

TEST(Strike, AKillIsMeantForTheNamedOrForExactlyCountWorkers) {
  const auto named = parsed("worker=h3,kill@1");
  const auto any = parsed("worker=any:2,kill@1,seed=8");
  int aimed = 0;
  for (std::uint32_t i = 0; i < kWorkers; ++i) {
    EXPECT_EQ(aims_at(named, i, kWorkers, name_of(i)), i == 3);
    aimed += aims_at(any, i, kWorkers, name_of(i));
  }
  EXPECT_EQ(aimed, 2);
}

}  // namespace
