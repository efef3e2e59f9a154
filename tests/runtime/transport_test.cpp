#include "runtime/transport.hpp"

#include <gtest/gtest.h>

#include <unistd.h>

#include <algorithm>
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

 private:
  std::mutex mutex_;
  std::condition_variable more_;
  std::vector<Delivery> got_;
};

class TransportTest : public ::testing::Test {
 protected:
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

  Expected<std::shared_ptr<Transport>> open(std::size_t host, Inbox& inbox) {
    TransportOptions options;
    options.identity = *load_identity(directory_, hosts_[host].name);
    options.allow = *load_allow_list(directory_);
    options.bind_address = "127.0.0.1";
    options.port = hosts_[host].port;
    options.hosts = hosts_;
    return Transport::open(std::move(options), inbox.sink());
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
