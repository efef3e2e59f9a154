#include "runtime/local_links.hpp"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <chrono>
#include <numeric>

namespace coppice::runtime {
namespace {

Frame frame_of(std::size_t head, std::size_t bulk, std::uint8_t first) {
  Frame frame;
  frame.head.resize(head);
  frame.bulk.resize(bulk);
  for (auto* bytes : {&frame.head, &frame.bulk})
    for (std::size_t i = 0; i < bytes->size(); ++i) (*bytes)[i] = static_cast<std::byte>(first + i * 7);
  return frame;
}

class LocalLinks : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(inbox_) << inbox_.error().what; }

  LocalOffer offer() const { return *(*inbox_)->offer_to("a"); }

  // Takes what comes until it is `count` frames, or nothing has come for a while.
  void receive(std::size_t count, int patience_ms = 5'000) {
    while (got_.size() < count) {
      std::vector<pollfd> waiting;
      (*inbox_)->watch(waiting);
      if (::poll(waiting.data(), waiting.size(), patience_ms) <= 0) return;
      (*inbox_)->receive(waiting, got_);
    }
  }
  // The connection is accepted and its token looked at.
  void settle() { receive(SIZE_MAX, 20); }

  Expected<std::unique_ptr<LocalInbox>> inbox_ = LocalInbox::open({"a", "b"});
  std::vector<LocalFrame> got_;
};

TEST(LocalWords, ReadAsTheyWereWritten) {
  LocalOffer offer;
  for (std::size_t i = 0; i < offer.address.size(); ++i) offer.address[i] = static_cast<std::byte>(i);
  for (std::size_t i = 0; i < offer.token.size(); ++i) offer.token[i] = static_cast<std::byte>(200 - i);
  EXPECT_EQ(decode_local(encode(offer)), LocalWord(offer));
  EXPECT_EQ(decode_local(encode(LocalSwitch{0x0123456789abcdefULL})), LocalWord(LocalSwitch{0x0123456789abcdefULL}));
  auto cut = encode(offer);
  cut.pop_back();
  EXPECT_FALSE(decode_local(cut));
  EXPECT_FALSE(decode_local({}));
  EXPECT_FALSE(decode_local(encode(actors::DataMessage(actors::StatusRequest{1})).head));
}

TEST_F(LocalLinks, CarryFramesOfAllSizesInOrder) {
  const auto out = LocalOutbox::connect(offer());
  ASSERT_TRUE(out);
  (*inbox_)->switched("a", out->number());
  // Below, at and above what is read at once, what a socket holds, and what a frame's front has room for.
  const std::vector<std::pair<std::size_t, std::size_t>> sizes{{1, 0}, {20, 4'096}, {17, 65'519}, {40, 65'536}, {16, 1}, {600, 3}, {30, 5'000'000}, {9, 100}};
  std::vector<Frame> through;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    auto frame = frame_of(sizes[i].first, sizes[i].second, static_cast<std::uint8_t>(i));
    ASSERT_TRUE(out->send(frame));
  }
  EXPECT_TRUE(out->waits());  // for room
  for (int i = 0; i < 10'000 && (out->waits() || got_.size() < sizes.size()); ++i) {
    ASSERT_TRUE(out->flush(through));
    receive(got_.size() + 1, 5);
  }
  EXPECT_FALSE(out->waits());
  ASSERT_EQ(got_.size(), sizes.size());
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    const auto wanted = frame_of(sizes[i].first, sizes[i].second, static_cast<std::uint8_t>(i));
    EXPECT_EQ(got_[i].from, "a");
    EXPECT_TRUE(std::ranges::equal(got_[i].head(), wanted.head)) << i;
    EXPECT_TRUE(std::ranges::equal(got_[i].bulk().view(), wanted.bulk)) << i;
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(got_[i].bulk().data) % 16, 0U) << i;
  }
}

TEST_F(LocalLinks, NothingIsReadBeforeItsSwitchHasCome) {
  const auto out = LocalOutbox::connect(offer());
  ASSERT_TRUE(out);
  auto frame = frame_of(8, 100, 1);
  ASSERT_TRUE(out->send(frame));
  settle();
  EXPECT_TRUE(got_.empty());
  (*inbox_)->switched("a", out->number() - 1);  // of a connection before it
  settle();
  EXPECT_TRUE(got_.empty());
  EXPECT_TRUE((*inbox_)->switched("a", out->number()));
  receive(1);
  EXPECT_EQ(got_.size(), 1U);
}

TEST_F(LocalLinks, TheSwitchMayComeFirst) {
  const auto out = LocalOutbox::connect(offer());
  ASSERT_TRUE(out);
  EXPECT_FALSE((*inbox_)->switched("a", out->number()));
  auto frame = frame_of(8, 100, 1);
  ASSERT_TRUE(out->send(frame));
  receive(1);
  EXPECT_EQ(got_.size(), 1U);
}

TEST_F(LocalLinks, WhatWasSentIsReadAfterItsSenderIsGone) {
  auto out = LocalOutbox::connect(offer());
  ASSERT_TRUE(out);
  auto frame = frame_of(8, 50'000, 1);
  ASSERT_TRUE(out->send(frame));
  const auto number = out->number();
  out.reset();
  settle();
  (*inbox_)->switched("a", number);
  receive(1);
  EXPECT_EQ(got_.size(), 1U);
}

TEST_F(LocalLinks, StrangersAreRefused) {
  auto wrong = offer();
  wrong.token[3] ^= std::byte{1};
  const auto out = LocalOutbox::connect(wrong);
  ASSERT_TRUE(out);
  (*inbox_)->switched("a", out->number());
  auto frame = frame_of(8, 100, 1);
  (void)out->send(frame);
  settle();
  EXPECT_TRUE(got_.empty());
  EXPECT_EQ((*inbox_)->refused(), 1U);
  EXPECT_FALSE(out->send(frame));  // it was hung up on
}

TEST_F(LocalLinks, WhatIsNoFrameIsHungUpOn) {
  const auto out = LocalOutbox::connect(offer());
  ASSERT_TRUE(out);
  (*inbox_)->switched("a", out->number());
  const std::array<std::uint32_t, 2> sizes{8, kBulkBytesMax + 1};
  ASSERT_EQ(::send(out->descriptor(), sizes.data(), sizeof sizes, 0), static_cast<ssize_t>(sizeof sizes));
  settle();
  EXPECT_EQ((*inbox_)->refused(), 1U);
  auto frame = frame_of(8, 100, 1);
  EXPECT_FALSE(out->send(frame));
}

TEST_F(LocalLinks, NobodyAtTheAddressIsNoFault) {
  auto elsewhere = offer();
  elsewhere.address[0] ^= std::byte{1};
  EXPECT_FALSE(LocalOutbox::connect(elsewhere));
}

TEST_F(LocalLinks, APeerHasBoundedConnections) {
  std::vector<std::unique_ptr<LocalOutbox>> out;
  for (int i = 0; i < 20; ++i) {
    out.push_back(LocalOutbox::connect(offer()));
    ASSERT_TRUE(out.back());
    (*inbox_)->switched("a", out.back()->number());
    settle();
  }
  EXPECT_EQ((*inbox_)->refused(), 12U);
}

}  // namespace
}  // namespace coppice::runtime
