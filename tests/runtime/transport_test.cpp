#include "runtime/transport.hpp"

#include <gtest/gtest.h>

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "runtime/keys.hpp"

namespace coppice::runtime {
namespace {

using namespace actors;

// Deliveries of one node, waited for with a bound.
class Inbox {
 public:
  Transport::OnDelivery sink() {
    return [this](Delivery delivery) {
      const std::lock_guard lock(mutex_);
      got_.push_back(std::move(delivery));
      more_.notify_all();
    };
  }
  std::vector<Delivery> wait_for(std::size_t count) {
    std::unique_lock lock(mutex_);
    more_.wait_for(lock, std::chrono::seconds{20}, [&] { return got_.size() >= count; });
    return got_;
  }
  std::size_t count() {
    const std::lock_guard lock(mutex_);
    return got_.size();
  }

 private:
  std::mutex mutex_;
  std::condition_variable more_;
  std::vector<Delivery> got_;
};

class TransportTest : public ::testing::Test {
 protected:
  static constexpr const char* kLink = "127.0.0.2";  // the end of a link, at each of them

  void SetUp() override {
    directory_ = std::filesystem::temp_directory_path() / ("coppice-transport-" + std::to_string(::getpid()));
    std::filesystem::remove_all(directory_);
    ASSERT_TRUE(make_keys(directory_, {"a", "b"}, true));
    // Ports of this process's own, below those of outgoing connections.
    const auto base = static_cast<std::uint16_t>(9'000 + ::getpid() % 2'500);
    for (int i = 0; i < 2; ++i) {
      Host host;
      host.name = i == 0 ? "a" : "b";
      host.address = "127.0.0.1";
      host.port = static_cast<std::uint16_t>(base + i);
      hosts_.push_back(host);
    }
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  TransportOptions options_of(std::size_t host, bool local) const {
    TransportOptions options;
    options.local = local;
    options.frames_max = local ? 0 : TransportOptions{}.frames_max;  // as for collectives
    options.identity = *load_identity(directory_, hosts_[host].name);
    options.allow = *load_allow_list(directory_);
    options.bind_address = "127.0.0.1";
    options.link_addresses = {kLink};
    options.port = hosts_[host].port;
    options.hosts = hosts_;
    return options;
  }
  Expected<std::shared_ptr<Transport>> open(std::size_t host, Inbox& inbox, bool local = false) {
    return Transport::open(options_of(host, local), inbox.sink());
  }

  std::filesystem::path directory_;
  std::vector<Host> hosts_;
};

TEST_F(TransportTest, DeliversInOrderUnderTheNameOfTheKey) {
  Inbox at_a, at_b;
  const auto a = open(0, at_a);
  const auto b = open(1, at_b);
  ASSERT_TRUE(a) << a.error().what;
  ASSERT_TRUE(b) << b.error().what;
  for (std::uint32_t i = 0; i < 500; ++i) (*a)->send({"b", ""}, ChunkAck{TransferId{7}, i});
  const auto got = at_b.wait_for(500);
  ASSERT_EQ(got.size(), 500U);
  for (std::uint32_t i = 0; i < 500; ++i) {
    EXPECT_EQ(got[i].from.name, "a");
    EXPECT_EQ(std::get<ChunkAck>(got[i].message).received, i);
  }
  // And back by the way it came.
  (*b)->send(got[0].from, StatusRequest{9});
  const auto answer = at_a.wait_for(1);
  ASSERT_EQ(answer.size(), 1U);
  EXPECT_EQ(answer[0].from.name, "b");
}

TEST_F(TransportTest, CarriesBulkOfManySizes) {
  Inbox at_a, at_b;
  const auto a = open(0, at_a);
  const auto b = open(1, at_b);
  ASSERT_TRUE(a && b);
  const std::vector<std::size_t> sizes{0, 1, 1'000, 65'536, 1'000'000};
  for (std::size_t i = 0; i < sizes.size(); ++i)
    (*a)->send({"b", ""}, WeightChunk{TransferId{1}, static_cast<std::uint32_t>(i),
                                      std::make_shared<const std::vector<std::byte>>(sizes[i], std::byte{42})});
  const auto got = at_b.wait_for(sizes.size());
  ASSERT_EQ(got.size(), sizes.size());
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    const auto& bytes = *std::get<WeightChunk>(got[i].message).bytes;
    EXPECT_EQ(bytes.size(), sizes[i]);
    EXPECT_TRUE(std::all_of(bytes.begin(), bytes.end(), [](std::byte b_) { return b_ == std::byte{42}; }));
  }
}

WeightChunk chunk(std::uint32_t index) {
  const std::size_t size = index % 7 == 0 ? 300'000 : index % 3 == 0 ? 4'096 : 0;
  return {TransferId{1}, index, std::make_shared<const std::vector<std::byte>>(size, static_cast<std::byte>(index))};
}

// Both change over to Unix sockets while they send.
TEST_F(TransportTest, ProcessesOfOneMachineChangeOverInOrder) {
  Inbox at_a, at_b;
  const auto a = open(0, at_a, true), b = open(1, at_b, true);
  ASSERT_TRUE(a && b);
  constexpr std::uint32_t kChunks = 2'000;
  for (std::uint32_t i = 0; i < kChunks; ++i) {
    (*a)->send({"b", ""}, chunk(i));
    (*b)->send({"a", ""}, chunk(i));
    if (i == 10) at_a.wait_for(1), at_b.wait_for(1);
  }
  for (auto* inbox : {&at_a, &at_b}) {
    const auto got = inbox->wait_for(kChunks);
    ASSERT_EQ(got.size(), kChunks);
    for (std::uint32_t i = 0; i < kChunks; ++i) {
      ASSERT_EQ(got[i].from.name, inbox == &at_a ? "b" : "a");
      ASSERT_EQ(std::get<WeightChunk>(got[i].message).index, i);
      ASSERT_EQ(*std::get<WeightChunk>(got[i].message).bytes, *chunk(i).bytes);
    }
  }
  EXPECT_GT((*a)->counts().sent_locally, kChunks / 2);
  EXPECT_GT((*b)->counts().sent_locally, kChunks / 2);
}

TEST_F(TransportTest, AHostThatWasStartedAgainIsReachedAgain) {
  Inbox at_a, at_b, at_new_b;
  const auto a = open(0, at_a, true);
  auto b = open(1, at_b, true);
  ASSERT_TRUE(a && b);
  (*b)->send({"a", ""}, StatusRequest{1});
  at_a.wait_for(1);
  for (std::uint32_t i = 0; i < 10; ++i) (*a)->send({"b", ""}, chunk(i));
  ASSERT_EQ(at_b.wait_for(10).size(), 10U);
  EXPECT_GT((*a)->counts().sent_locally, 0U);
  (*b)->close();
  b = open(1, at_new_b, true);
  ASSERT_TRUE(b) << b.error().what;
  for (std::uint32_t i = 0; i < 500 && at_new_b.count() == 0; ++i) {
    (*a)->send({"b", ""}, StatusRequest{i});
    std::this_thread::sleep_for(std::chrono::milliseconds{20});
  }
  EXPECT_GT(at_new_b.count(), 0U);
  const auto before = (*a)->counts().sent_locally.load();
  (*b)->send({"a", ""}, StatusRequest{2});  // and is offered anew
  ASSERT_EQ(at_a.wait_for(2).size(), 2U);
  (*a)->send({"b", ""}, StatusRequest{3});
  EXPECT_GT((*a)->counts().sent_locally, before);
  // The other way round as well: it has had an offer of its own.
  for (std::uint64_t i = 0; i < 500 && (*b)->counts().sent_locally == 0; ++i) {
    (*b)->send({"a", ""}, StatusRequest{4});
    std::this_thread::sleep_for(std::chrono::milliseconds{10});
  }
  EXPECT_GT((*b)->counts().sent_locally, 0U);
}

TEST_F(TransportTest, WithLinkAddressesTheLinkIsTaken) {
  Inbox at_a, at_b;
  const auto a = open(0, at_a, true), b = open(1, at_b, true);
  ASSERT_TRUE(a && b);
  (*b)->send({"a", ""}, StatusRequest{1});
  at_a.wait_for(1);
  (*a)->send({"b", "", kLink, kLink}, StatusRequest{1});
  EXPECT_EQ(at_b.wait_for(1).size(), 1U);
  EXPECT_EQ((*a)->counts().sent_locally, 0U);
  // A topology that was measured names the hosts' own, and there is no link from an address to itself.
  (*a)->send({"b", "", "127.0.0.1", "127.0.0.1"}, StatusRequest{2});
  EXPECT_EQ(at_b.wait_for(2).size(), 2U);
  EXPECT_EQ((*a)->counts().sent_locally, 1U);
}

TEST_F(TransportTest, WhoWaitsMayServe) {
  Inbox at_a, at_b;
  const auto a = open(0, at_a, true), b = open(1, at_b, true);
  ASSERT_TRUE(a && b);
  for (std::size_t i = 0; i < 300; ++i) {
    (*a)->send({"b", ""}, StatusRequest{i});
    EXPECT_TRUE((*b)->serve_until([&] { return at_b.count() > i; }));
    if (i % 100 == 50) std::this_thread::sleep_for(std::chrono::milliseconds{5});  // the thread takes over
  }
  // Whom nobody serves is delivered to all the same.
  (*a)->send({"b", ""}, StatusRequest{300});
  EXPECT_EQ(at_b.wait_for(301).size(), 301U);
  std::atomic<bool> over = false;
  std::thread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds{20});
    over = true;
    (*b)->interrupt();
  });
  EXPECT_TRUE((*b)->serve_until([&] { return over.load(); }));
  other.join();
}

// Hosts of this machine are heard beside one that has much to say over TCP.
TEST_F(TransportTest, AFloodDoesNotDrownOthers) {
  Inbox at_a;
  std::atomic<std::uint64_t> pings = 0, flood = 0;
  TransportOptions options = options_of(1, true);
  options.note_addresses = true;
  const auto b = Transport::open(std::move(options), [&](Delivery delivery) {
    const bool ping = std::holds_alternative<StatusRequest>(delivery.message);
    ++(ping ? pings : flood);
    if (!ping) std::this_thread::sleep_for(std::chrono::microseconds{20});
  });
  const auto a = open(0, at_a, true);
  ASSERT_TRUE(a && b);
  (*b)->send({"a", ""}, StatusRequest{0});
  at_a.wait_for(1);
  (*a)->send({"b", ""}, StatusRequest{0});
  for (int i = 0; i < 500 && pings < 1; ++i) std::this_thread::sleep_for(std::chrono::milliseconds{10});
  for (std::uint32_t i = 0; i < 30'000; ++i) (*a)->send({"b", "", kLink, kLink}, ChunkAck{TransferId{7}, i});
  const auto before = flood.load();
  for (int i = 0; i < 20; ++i) (*a)->send({"b", ""}, StatusRequest{1});
  for (int i = 0; i < 2'000 && pings < 21; ++i) std::this_thread::sleep_for(std::chrono::milliseconds{5});
  EXPECT_EQ(pings, 21U);
  EXPECT_LT(flood, 30'000U) << "it was over before, which proves nothing; at first " << before;
  EXPECT_GT((*a)->counts().sent_locally, 20U);
}

void on_signal(int) {}

TEST_F(TransportTest, SignalsDoNotEndServing) {
  Inbox at_a, at_b;
  const auto a = open(0, at_a), b = open(1, at_b);
  ASSERT_TRUE(a && b);
  struct sigaction action {}, old {};
  action.sa_handler = on_signal;
  ::sigaction(SIGUSR1, &action, &old);
  const auto serving = ::pthread_self();
  std::atomic<bool> over = false;
  std::thread other([&] {
    for (std::size_t i = 0; !over; ++i) {
      ::pthread_kill(serving, SIGUSR1);
      std::this_thread::sleep_for(std::chrono::microseconds{50});
    }
  });
  for (std::size_t i = 0; i < 3'000; ++i) {
    (*a)->send({"b", ""}, StatusRequest{i});
    (*b)->send({"a", ""}, StatusRequest{i});
    ASSERT_TRUE((*b)->serve_until([&] { return at_b.count() > i; }));
  }
  over = true;
  other.join();
  ::sigaction(SIGUSR1, &old, nullptr);
  EXPECT_EQ(at_a.wait_for(3'000).size(), 3'000U);
}

TEST_F(TransportTest, HangingUpOnAHostOfThisMachineMakesANewConnection) {
  Inbox at_a, at_b;
  const auto a = open(0, at_a, true), b = open(1, at_b, true);
  ASSERT_TRUE(a && b);
  (*b)->send({"a", ""}, StatusRequest{0});
  at_a.wait_for(1);
  for (std::size_t i = 0; i < 20; ++i) {
    const auto before = (*a)->counts().sent_locally.load();
    (*a)->send({"b", ""}, StatusRequest{i});
    EXPECT_EQ((*a)->counts().sent_locally, before + 1);
    EXPECT_EQ(at_b.wait_for(i + 1).size(), i + 1);
    i % 2 == 0 ? (*a)->hang_up({"b", ""}) : (*a)->hang_up();
  }
}

TEST_F(TransportTest, WhoDoesNotReadHasABoundedQueueHereToo) {
  std::atomic<bool> go_on = false;
  Inbox at_a;
  auto options = options_of(1, true);
  const auto b = Transport::open(std::move(options), [&](Delivery) {
    while (!go_on) std::this_thread::sleep_for(std::chrono::milliseconds{1});
  });
  options = options_of(0, true);
  options.frames_max = 10;
  const auto a = Transport::open(std::move(options), at_a.sink());
  ASSERT_TRUE(a && b);
  (*b)->send({"a", ""}, StatusRequest{0});
  at_a.wait_for(1);
  for (std::uint32_t i = 0; i < 100; ++i) (*a)->send({"b", ""}, chunk(7));
  EXPECT_GT((*a)->counts().dropped, 50U);
  go_on = true;
}

TEST_F(TransportTest, ClosingEndsServing) {
  Inbox at_a;
  const auto a = open(0, at_a, true);
  ASSERT_TRUE(a);
  std::thread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds{20});
    (*a)->close();
  });
  EXPECT_TRUE((*a)->serve_until([] { return false; }));
  other.join();
  EXPECT_FALSE((*a)->serve_until([] { return false; }));
}

TEST_F(TransportTest, UnknownPeersAreDroppedAndCounted) {
  Inbox at_a;
  const auto a = open(0, at_a);
  ASSERT_TRUE(a);
  (*a)->send({"nobody", ""}, StatusRequest{1});
  (*a)->send({"client", "no-such-route"}, StatusRequest{1});
  for (int i = 0; i < 200 && (*a)->counts().dropped == 0; ++i) std::this_thread::sleep_for(std::chrono::milliseconds{10});
  EXPECT_GE((*a)->counts().dropped.load(), 1U);
}

TEST_F(TransportTest, APortInUseIsAnErrorThatNamesIt) {
  Inbox first, second;
  const auto a = open(0, first);
  ASSERT_TRUE(a);
  const auto again = open(0, second);
  ASSERT_FALSE(again);
  EXPECT_NE(again.error().what.find(std::to_string(hosts_[0].port)), std::string::npos) << again.error().what;
}

}  // namespace
}  // namespace coppice::runtime
