#include "actors/link_watch.hpp"

#include <gtest/gtest.h>

using namespace coppice::actors;
using namespace std::chrono_literals;

namespace {

// One link of 1 MB/s, looked at ten times a second.
class Watched {
 public:
  LinkVerdicts look(std::int64_t sent, std::int64_t arrived) {
    now_ += 100ms;
    const LinkSample sample{{0, 1, "10.0.0.1", "10.0.0.2", switched}, sent, arrived, planned, 10'000, answered_, acknowledgements, awaited, received, 0, busy_since, others, heard, peer_silent};
    return watch_.look(now_, std::span(&sample, 1));
  }
  void answer() { answered_ = now_; }
  bool switched = false, awaited = false, peer_silent = false;
  std::int64_t planned = 1'000'000, acknowledgements = 0, received = 0;
  Instant busy_since{}, heard{};
  Duration others{};
  Instant now() const { return now_; }

 private:
  LinkWatch watch_;
  Instant now_{1h}, answered_{};
};

TEST(LinkWatch, ALinkThatIsAsFastAsPlannedIsLeftAlone) {
  Watched link;
  for (int i = 1; i < 100; ++i) EXPECT_TRUE(link.look(i * 100'000 + 50'000, i * 95'000).findings.empty()) << i;
}

TEST(LinkWatch, OneThatIsAlwaysBusyAndTooSlowIsToldOnceWithItsRate) {
  Watched link;
  std::vector<LinkFinding> found;
  for (int i = 1; i < 60; ++i)
    for (const auto& finding : link.look(i * 10'000 + 60'000, i * 10'000).findings) found.push_back(finding);
  ASSERT_EQ(found.size(), 1U);
  EXPECT_NEAR(static_cast<double>(found[0].bytes_per_s), 100'000, 1'000);
  EXPECT_EQ(found[0].link.to, 1);
}

TEST(LinkWatch, OneThatTakesItsTimeToFindItsPaceIsNotBlamed) {
  Watched link;
  std::int64_t arrived = 0;
  for (int i = 1; i < 60; ++i) {
    arrived += i < 12 ? 40'000 : 100'000;
    EXPECT_TRUE(link.look(arrived + 60'000, arrived).findings.empty()) << i;
  }
}

// What an earlier attempt has left in its queues comes first.
TEST(LinkWatch, OneWhoseFirstArrivalIsLateIsNotBlamed) {
  Watched link;
  for (int i = 1; i < 12; ++i) EXPECT_TRUE(link.look(60'000, 0).findings.empty()) << i;
  for (int i = 1; i < 40; ++i) EXPECT_TRUE(link.look(60'000 + i * 95'000, i * 95'000).findings.empty()) << i;
}

// A chunk takes longer than a stretch is meant to last, and arrives between looks.
TEST(LinkWatch, OneThatDeliversRarelyIsToldWithItsRate) {
  Watched link;
  std::vector<LinkFinding> found;
  for (int i = 1; i < 80; ++i)
    for (const auto& finding : link.look(i / 7 * 50'000 + 200'000, i / 7 * 50'000).findings) found.push_back(finding);
  ASSERT_EQ(found.size(), 1U);
  EXPECT_NEAR(static_cast<double>(found[0].bytes_per_s), 50'000 / 0.7, 1'000);
}

TEST(LinkWatch, BehindSwitchesItTakesLongerAndMustBeWorse) {
  for (const std::int64_t rate : {50'000, 10'000}) {  // a half and a tenth of what was planned, a look
    Watched link;
    link.switched = true;
    int found_at = 0;
    for (int i = 1; i < 100 && found_at == 0; ++i)
      if (!link.look(i * rate + 60'000, i * rate).findings.empty()) found_at = i;
    EXPECT_EQ(found_at > 0, rate == 10'000);
    EXPECT_TRUE(found_at == 0 || found_at >= 40);
  }
}

TEST(LinkWatch, OneThatWasSlowAndThenDiesIsToldOfAgain) {
  Watched link;
  for (int i = 1; i < 60; ++i) link.look(i * 10'000 + 60'000, i * 10'000);
  std::vector<LinkFinding> found;
  for (int i = 0; i < 30; ++i)
    for (const auto& finding : link.look(660'000, 590'000).findings) found.push_back(finding);
  ASSERT_EQ(found.size(), 1U);
  EXPECT_EQ(found[0].fault, LinkFault::dead);
}

TEST(LinkWatch, OneThatWaitsForDataIsNotBlamed) {
  Watched link;
  for (int i = 1; i < 100; ++i) {
    const bool idle = i % 5 == 0;  // now and then everything has arrived
    EXPECT_TRUE(link.look(i * 10'000, i * 10'000 - (idle ? 0 : 5'000)).findings.empty()) << i;
  }
}

TEST(LinkWatch, OneThatIsEmptyBetweenLooksIsNotBlamed) {
  Watched link;  // something is on its way at every look, but never for long
  for (int i = 1; i < 100; ++i) {
    link.busy_since = link.now() + 90ms;
    EXPECT_TRUE(link.look(i * 10'000 + 60'000, i * 10'000).findings.empty()) << i;
  }
}

TEST(LinkWatch, OneThatIsSilentIsAskedAndThenDead) {
  Watched link;
  int asked = 0, looks = 0;
  for (; looks < 100; ++looks) {
    const auto verdicts = link.look(60'000, 0);
    asked += verdicts.ask.empty() ? 0 : 1;
    if (verdicts.findings.empty()) continue;
    EXPECT_EQ(verdicts.findings[0].fault, LinkFault::dead);
    break;
  }
  EXPECT_GT(asked, 5);
  EXPECT_NEAR(looks, 15, 2);
}

// A rank that gets no processor is silent on all its links, and then on none.
// An answer waits behind the chunks of a larger call that come by the same link.
TEST(LinkWatch, OneThatIsBusyWithAnotherCallsDataIsNotDead) {
  Watched link;
  for (int i = 1; i < 100; ++i) {
    if (i % 14 == 0) link.heard = link.now();
    EXPECT_TRUE(link.look(5'000, 0).findings.empty()) << i;
  }
  Watched awaits;
  awaits.others = 3s;
  int looks = 0;
  while (awaits.look(5'000, 0).findings.empty() && looks < 100) ++looks;
  EXPECT_GE(looks, 60);
  EXPECT_LT(looks, 70);
}

TEST(LinkWatch, WhereTheRankItselfIsSilentTheLinkIsNotBlamed) {
  Watched link;
  link.peer_silent = true;
  for (int i = 0; i < 100; ++i) {
    const auto verdicts = link.look(60'000, 0);
    ASSERT_TRUE(verdicts.findings.empty());
    EXPECT_EQ(verdicts.ask.empty(), i < 4) << i;
  }
  link.peer_silent = false;  // it speaks again, by other ways: now the link is to blame
  int looks = 0;
  while (link.look(60'000, 0).findings.empty() && looks < 100) ++looks;
  EXPECT_EQ(looks, 2);
}

TEST(LinkWatch, OneWhoseOtherEndAnswersIsWaitedForHoweverLong) {
  Watched link;
  for (int i = 0; i < 1'000; ++i) {
    const auto verdicts = link.look(60'000, 0);
    EXPECT_TRUE(verdicts.findings.empty());
    if (!verdicts.ask.empty()) link.answer();
  }
}

TEST(LinkWatch, ALinkThatBreaksAfterLongServiceIsNoticedAsFastAsAnyOther) {
  Watched link;
  for (int i = 1; i <= 100; ++i) link.look(i * 100'000 + 60'000, i * 100'000);
  int looks = 0;
  while (link.look(10'060'000, 10'000'000).findings.empty() && looks < 100) ++looks;
  EXPECT_LT(looks, 25);
}

// Two calls share a link: each has half of it, and knows. While their number changes nothing is judged.
TEST(LinkWatch, ALinkThatCallsShareIsNotSlow) {
  Watched link;
  std::int64_t arrived = 0;
  for (int i = 0; i < 100; ++i) {
    const bool shared = i / 7 % 2 == 0;
    link.planned = shared ? 500'000 : 1'000'000;
    arrived += shared ? 50'000 : 100'000;
    EXPECT_TRUE(link.look(arrived + 60'000, arrived).findings.empty()) << i;
  }
}

TEST(LinkWatch, OneThatDataIsAwaitedFromIsAskedAndThenDead) {
  Watched link;
  link.awaited = true;
  for (int i = 1; i < 50; ++i) {  // it comes, slowly
    link.received = i / 5 * 1'000;
    ASSERT_TRUE(link.look(0, 0).findings.empty());
  }
  int looks = 0, asked = 0;
  for (; looks < 100; ++looks) {
    const auto verdicts = link.look(0, 0);
    asked += verdicts.ask.empty() ? 0 : 1;
    if (!verdicts.findings.empty()) break;
  }
  EXPECT_GT(asked, 5);
  EXPECT_NEAR(looks, 15, 5);
}

TEST(LinkWatch, WhatWasLostWithAConnectionIsNotWaitedFor) {
  Watched link;
  for (int i = 0; i < 30; ++i) {  // it answers, but the other end has not made the call: nothing is acknowledged
    ASSERT_TRUE(link.look(60'000, 20'000).findings.empty());
    link.answer();
  }
  std::vector<LinkFinding> found;
  for (int i = 0; i < 30 && found.empty(); ++i) {  // now it has, and says the same over and over
    link.acknowledgements = 1 + i / 5;
    found = link.look(60'000, 20'000).findings;
    link.answer();
  }
  ASSERT_EQ(found.size(), 1U);
  EXPECT_EQ(found[0].fault, LinkFault::lost);
}

}  // namespace
