#include "actors/collective_router.hpp"

#include <gtest/gtest.h>

#include "actors/type_ids.hpp"

using namespace coppice::actors;

namespace {

Delivery chunk(const std::string& from, RunId run, std::size_t bytes, std::uint64_t session = 1) {
  return {Peer{from}, CollectiveChunk{run, 0, session, 0, Way::down, 0, SharedBytes::copy_of(std::vector<std::byte>(bytes))}};
}

TEST(CollectiveRouter, WhatComesEarlyIsKeptWithinItsBoundsUntilItsRunHasBegun) {
  CollectiveRouter router(10'000);
  router.deliver(chunk("a", {5, 0}, 4'000));
  EXPECT_GE(router.waiting_bytes(), 4'000U);
  router.deliver(chunk("a", {6, 0}, 9'000));
  EXPECT_LT(router.waiting_bytes(), 9'000U) << "that is beyond the bound";
  router.began({5, 1});
  EXPECT_EQ(router.waiting_bytes(), 0U) << "of an attempt that was given up";
  router.deliver(chunk("a", {5, 0}, 100));
  router.deliver(chunk("a", {5, 1}, 100));  // its relay is done
  EXPECT_EQ(router.waiting_bytes(), 0U);
  router.deliver(chunk("a", {5, 2}, 100));  // of an attempt to come
  EXPECT_GT(router.waiting_bytes(), 0U);
}

TEST(CollectiveRouter, OldCallsAreForgottenAndNewAttemptsAtThemAreNot) {
  CollectiveRouter router;
  router.deliver(chunk("a", {5, 0}, 100));
  router.forget_below(6);
  EXPECT_EQ(router.waiting_bytes(), 0U);
  router.deliver(chunk("a", {5, 1}, 100));
  EXPECT_GT(router.waiting_bytes(), 0U);
  router.forget_below(200);
  EXPECT_EQ(router.waiting_bytes(), 0U);
}

TEST(CollectiveRouter, AnotherProcessOfTheSameNameIsAnotherRank) {
  using Sender = CollectiveRouter::Sender;
  CollectiveRouter router;
  EXPECT_EQ(router.admit("a", 10), Sender::known);
  EXPECT_EQ(router.admit("a", 10), Sender::known);
  EXPECT_EQ(router.admit("a", 9), Sender::stale);
  EXPECT_EQ(router.admit("a", 11), Sender::anew) << "nothing came of the one before";
  router.forget_below(1);
  EXPECT_EQ(router.admit("a", 12), Sender::replaced);
  router.deliver(chunk("a", {7, 0}, 100, 9));
  EXPECT_EQ(router.waiting_bytes(), 0U) << "of the one before";
}

}  // namespace
