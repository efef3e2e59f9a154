#include "actors/probe_agent.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>

namespace coppice::actors {
namespace {

using namespace std::chrono_literals;
using Kind = collectives::Measure::Kind;

// Two hosts and one link of so many bytes a second and so long, in virtual time. The way back is as long and never full.
class TwoHosts {
 public:
  TwoHosts(double bytes_per_s, Duration delay) : rate_(bytes_per_s), delay_(delay) {}

  MeasureDone run(const MeasureOrder& order, Duration longest = 20s) {
    give(a_.handle(now_, {"leader"}, ProbeNote{7, order}), "a");
    const auto end = now_ + longest;
    while (!done_ && now_ < end) step();
    EXPECT_TRUE(done_.has_value());
    return done_.value_or(MeasureDone{});
  }
  bool dead = false;
  std::uint64_t on_its_way_max = 0;
  std::vector<Peer> given_up;
  Instant now() const { return now_; }

 private:
  struct Flying {
    Instant lands;
    std::string to;
    Peer from;
    ProbeNote note;
  };
  void give(std::vector<Outgoing> out, const std::string& from) {
    for (auto& each : out) {
      auto note = std::get<ProbeNote>(std::move(each.message));
      if (each.to.name == "leader") {
        done_ = std::get<MeasureDone>(note.note);
        continue;
      }
      auto lands = now_ + delay_;
      if (const auto* bytes = std::get_if<ProbeBytes>(&note.note)) {
        free_ = std::max(free_, now_) + std::chrono::duration_cast<Duration>(std::chrono::duration<double>(static_cast<double>(bytes->bytes.size) / rate_));
        lands = free_ + delay_;
        on_its_way_ += bytes->bytes.size;
        on_its_way_max = std::max(on_its_way_max, on_its_way_);
      }
      const auto at = std::ranges::upper_bound(flying_, lands, {}, &Flying::lands);
      flying_.insert(at, {lands, each.to.name, {from, "way back"}, std::move(note)});
    }
  }
  void step() {
    if (flying_.empty() || flying_.front().lands > now_ + 10ms) {
      now_ += 10ms;
      give(a_.tick(now_), "a");
      for (auto& peer : a_.given_up()) given_up.push_back(peer);
      return;
    }
    auto next = std::move(flying_.front());
    flying_.pop_front();
    now_ = std::max(now_, next.lands);
    if (const auto* bytes = std::get_if<ProbeBytes>(&next.note.note)) on_its_way_ -= bytes->bytes.size;
    if (next.to == "b" && dead) return;
    if (next.to == "b")
      give(b_.handle(now_, next.from, next.note), "b");
    else
      give(a_.handle(now_, next.from, next.note), "a");
  }
  static SharedBytes frame() { return SharedBytes::copy_of(std::vector<std::byte>(256 << 10)); }

  double rate_;
  Duration delay_;
  Instant now_{1h}, free_{};
  ProbeAgent a_{{}, frame()}, b_{{}, frame()};
  std::deque<Flying> flying_;
  std::uint64_t on_its_way_ = 0;
  std::optional<MeasureDone> done_;
};

TEST(ProbeAgent, RatesFromATrickleToATorrentAreMeasuredWithinAPercent) {
  for (const double rate : {100e3, 780e3, 3e6, 25e6, 125e6, 1e9}) {
    for (const Duration delay : {Duration(50us), Duration(5ms), Duration(100ms)}) {
      if (rate * std::chrono::duration<double>(delay).count() > 10e6) continue;  // more than is ever on its way
      TwoHosts link(rate, delay);
      const auto done = link.run({Kind::rate, "b", "", ""}, 60s);
      EXPECT_EQ(done.fault, "");
      EXPECT_NEAR(static_cast<double>(done.bytes_per_s), rate, 0.01 * rate) << rate << ' ' << delay.count();
      EXPECT_LE(link.on_its_way_max, 32U << 20);
    }
  }
}

TEST(ProbeAgent, ASlowLinkIsEmptySoonAfterwards) {
  TwoHosts link(780e3, 50us);
  const auto begun = link.now();
  const auto done = link.run({Kind::rate, "b", "", ""});
  EXPECT_TRUE(done.settled);
  EXPECT_LT(link.now() - begun, 2s);
}

TEST(ProbeAgent, LatencyIsTheRoundTrip) {
  TwoHosts link(1e6, 3ms);
  const auto done = link.run({Kind::latency, "b", "10.0.0.1", "10.0.0.2"});
  EXPECT_EQ(done.least_ns, 6'000'000U);
  EXPECT_EQ(done.median_ns, 6'000'000U);
}

TEST(ProbeAgent, WhoeverDoesNotAnswerIsNamedWithTheAddress) {
  for (const auto kind : {Kind::latency, Kind::rate, Kind::share}) {
    TwoHosts link(1e6, 3ms);
    link.dead = true;
    const auto done = link.run({kind, "b", "10.0.0.1", "10.0.0.2"});
    EXPECT_EQ(done.fault, "b does not answer over 10.0.0.2");
    ASSERT_EQ(link.given_up.size(), 1U);
    EXPECT_EQ(link.given_up[0].to_address, "10.0.0.2");
  }
}

TEST(ProbeAgent, ForeignAndLateWordsDoNoHarm) {
  ProbeAgent agent({}, SharedBytes::copy_of(std::vector<std::byte>(1'024)));
  const Instant now{1h};
  EXPECT_TRUE(agent.handle(now, {"b"}, ProbeNote{3, ProbePong{1}}).empty());
  EXPECT_TRUE(agent.handle(now, {"b"}, ProbeNote{3, ProbeArrived{5, 5}}).empty());
  EXPECT_FALSE(agent.handle(now, {"leader"}, ProbeNote{4, MeasureOrder{Kind::rate, "b", "", ""}}).empty());
  // More than was ever sent.
  EXPECT_TRUE(agent.handle(now, {"b"}, ProbeNote{4, ProbeArrived{1ULL << 60, 5}}).empty());
  // The same order again, under way and when it has failed.
  EXPECT_TRUE(agent.handle(now, {"leader"}, ProbeNote{4, MeasureOrder{Kind::rate, "b", "", ""}}).empty());
  ASSERT_EQ(agent.tick(now + 1min).size(), 1U);
  const auto told = agent.handle(now, {"leader", "new way"}, ProbeNote{4, MeasureOrder{Kind::rate, "b", "", ""}});
  ASSERT_EQ(told.size(), 1U);
  EXPECT_EQ(told[0].to.route, "new way");
  EXPECT_EQ(std::get<MeasureDone>(std::get<ProbeNote>(told[0].message).note).fault, "b does not answer");
  for (std::uint64_t i = 0; i < 10'000; ++i)
    (void)agent.handle(now, {"b", "way"}, ProbeNote{i, ProbeBytes{SharedBytes::copy_of(std::vector<std::byte>(1))}});
}

}  // namespace
}  // namespace coppice::actors
