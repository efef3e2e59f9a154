#include "actors/liveness.hpp"

#include <gtest/gtest.h>

#include "actors/note_filter.hpp"

using namespace coppice::actors;
using namespace std::chrono_literals;

namespace {

constexpr Instant kStart{1h};

TEST(Liveness, OneThatNeverCameIsWaitedFor) {
  Liveness liveness;
  for (int i = 0; i < 100; ++i) EXPECT_FALSE(liveness.await(1, kStart + i * 100ms).gone);
}

TEST(Liveness, OneThatCameAndWasNeverHeardMayBeGone) {
  Liveness liveness;
  liveness.came(1);
  int looks = 0;
  while (!liveness.await(1, kStart + looks * 100ms).gone && looks < 100) ++looks;
  EXPECT_EQ(looks, 20);
}

TEST(Liveness, OneThatAnswersIsNotGoneAndOneThatDoesNotIs) {
  Liveness liveness;
  liveness.heard(1, kStart - 1min);
  liveness.heard(2, kStart - 1min);
  int asked = 0, gone_at = 0;
  for (int i = 0; i < 50; ++i) {
    const auto first = liveness.await(1, kStart + i * 100ms), second = liveness.await(2, kStart + i * 100ms);
    if (first.ask) liveness.heard(1, kStart + i * 100ms + 1ms);
    EXPECT_FALSE(first.gone);
    asked += second.ask ? 1 : 0;
    if (second.gone && gone_at == 0) gone_at = i;
  }
  EXPECT_EQ(gone_at, 20);
  EXPECT_EQ(asked, 4);
}

// One that gets no processor: its host takes connections for it. That of one that was killed refuses them.
TEST(Liveness, WhatTheDoorSaysDecidesHowLongOneIsWaitedFor) {
  const auto looks_until_gone = [](Door door) {
    Liveness liveness;
    liveness.heard(1, kStart - 1min);
    int looks = 0;
    while (!liveness.await(1, kStart + looks * 100ms, door).gone && looks < 1'000) ++looks;
    return looks;
  };
  EXPECT_EQ(looks_until_gone(Door::refused), 10);
  EXPECT_EQ(looks_until_gone(Door::silent), 20);
  EXPECT_EQ(looks_until_gone(Door::open), 200);
}

TEST(Liveness, NoDoorIsKnockedAtBeforeThereIsSilence) {
  Liveness liveness;
  EXPECT_FALSE(liveness.is_silent(1, kStart)) << "it never came";
  liveness.heard(1, kStart);
  for (int i = 0; i < 20; ++i) {
    liveness.await(1, kStart + i * 100ms);
    EXPECT_EQ(liveness.is_silent(1, kStart + i * 100ms), i >= 5);
  }
}

// This process was stopped for a while: whoever it waits for was not silent for its sake.
TEST(Liveness, APauseOfOnesOwnIsHeldAgainstNobody) {
  Liveness liveness;
  liveness.heard(1, kStart);
  for (int i = 0; i < 10; ++i) EXPECT_FALSE(liveness.await(1, kStart + i * 100ms).gone);
  EXPECT_FALSE(liveness.await(1, kStart + 1h).gone);
  EXPECT_FALSE(liveness.await(1, kStart + 1h + 100ms).gone);
}

TEST(NoteFilter, EveryNoteIsNewOnce) {
  NoteFilter filter;
  for (std::uint64_t number = 0; number < 20'000; number += 2) EXPECT_TRUE(filter.is_new(number));
  EXPECT_TRUE(filter.is_new(19'999));
  EXPECT_FALSE(filter.is_new(19'998));
  // So old that nobody remembers: were it new, it would be passed round for ever.
  EXPECT_FALSE(filter.is_new(0));
  EXPECT_FALSE(filter.is_new(1));
}

}  // namespace
