#include "actors/relay_state.hpp"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <map>
#include <random>
#include <set>

using namespace coppice::actors;

namespace {

std::vector<std::byte> some_bytes(std::size_t size) {
  std::vector<std::byte> bytes(size);
  for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>((i * 131 + i / 7) & 0xff);
  return bytes;
}

std::shared_ptr<const std::vector<std::byte>> shared(std::vector<std::byte> bytes) {
  return std::make_shared<const std::vector<std::byte>>(std::move(bytes));
}

// root - a - {b, c}, ten bytes in chunks of four.
TransferOpen small_transfer() {
  return {TransferId{3}, Epoch{1}, 10, 4, std::string(64, 'f'), {{"root", -1}, {"a", 0}, {"b", 1}, {"c", 1}}};
}

WeightChunk chunk(std::uint32_t index, std::size_t size) { return {TransferId{3}, index, shared(some_bytes(size))}; }

bool empty(const RelayState::Step& step) {
  return step.forwards.empty() && !step.acknowledge && !step.whole && !step.done;
}

TEST(RelayState, KnowsItsPlaceInTheTree) {
  const auto relay = RelayState::inner(small_transfer(), "a", {});
  EXPECT_EQ(relay.parent(), "root");
  EXPECT_EQ(relay.children(), (std::vector<std::string>{"b", "c"}));
  EXPECT_EQ(RelayState::root(small_transfer(), some_bytes(10), {}).parent(), "");
}

TEST(RelayState, ForwardsEachChunkToEveryChildAndIsDoneWhenAllOfThemHaveEverything) {
  auto relay = RelayState::inner(small_transfer(), "a", {});
  for (std::uint32_t index : {0U, 1U}) {
    const auto step = relay.on_chunk(chunk(index, 4));
    EXPECT_EQ(step.forwards.size(), 2U);
    EXPECT_TRUE(step.acknowledge);
    EXPECT_FALSE(step.whole);
  }
  const auto last = relay.on_chunk(chunk(2, 2));
  EXPECT_TRUE(last.whole);
  EXPECT_FALSE(last.done) << "its children have acknowledged nothing";
  EXPECT_FALSE(relay.on_ack("b", 3).done);
  EXPECT_FALSE(relay.on_ack("c", 2).done);
  EXPECT_TRUE(relay.on_ack("c", 3).done);
}

TEST(RelayState, SendsNoMoreThanTheWindowAndGoesOnWithTheCredit) {
  RelayOptions narrow;
  narrow.window = 1;
  auto root = RelayState::root(small_transfer(), some_bytes(10), narrow);
  EXPECT_EQ(root.begin().forwards.size(), 1U);
  const auto next = root.on_ack("a", 1);
  ASSERT_EQ(next.forwards.size(), 1U);
  EXPECT_EQ(next.forwards[0].chunk.index, 1U);
  EXPECT_EQ(root.on_ack("a", 2).forwards.at(0).chunk.bytes->size(), 2U);
  EXPECT_TRUE(root.on_ack("a", 3).done);
}

TEST(RelayState, IgnoresChunksThatAreRepeatedOutOfOrderOrOfAWrongSize) {
  auto relay = RelayState::inner(small_transfer(), "a", {});
  EXPECT_TRUE(empty(relay.on_chunk(chunk(1, 4)))) << "out of order";
  EXPECT_TRUE(empty(relay.on_chunk(chunk(0, 5)))) << "too large";
  EXPECT_TRUE(empty(relay.on_chunk(chunk(0, 3)))) << "too small";
  EXPECT_TRUE(empty(relay.on_chunk({TransferId{3}, 0, nullptr}))) << "no bytes";
  relay.on_chunk(chunk(0, 4));
  EXPECT_TRUE(empty(relay.on_chunk(chunk(0, 4)))) << "repeated";
  relay.on_chunk(chunk(1, 4));
  EXPECT_TRUE(empty(relay.on_chunk(chunk(2, 4)))) << "the last one is shorter";
  EXPECT_TRUE(relay.on_chunk(chunk(2, 2)).whole);
  EXPECT_TRUE(empty(relay.on_chunk(chunk(3, 0)))) << "beyond the last";
  EXPECT_EQ(relay.bytes().size(), 10U);
}

TEST(RelayState, IgnoresAcknowledgementsThatGoBackRunAheadOrComeFromElsewhere) {
  RelayOptions narrow;
  narrow.window = 2;
  auto root = RelayState::root(small_transfer(), some_bytes(10), narrow);
  root.begin();
  EXPECT_TRUE(empty(root.on_ack("a", 3))) << "more than was sent";
  EXPECT_TRUE(empty(root.on_ack("b", 1))) << "not a child";
  EXPECT_TRUE(empty(root.on_ack("a", 0)));
  EXPECT_EQ(root.on_ack("a", 1).forwards.size(), 1U);
  EXPECT_TRUE(empty(root.on_ack("a", 1))) << "repeated";
}

TEST(RelayState, WaitsForALostChildNoLonger) {
  auto relay = RelayState::inner(small_transfer(), "a", {});
  relay.on_chunk(chunk(0, 4));
  relay.on_chunk(chunk(1, 4));
  relay.on_chunk(chunk(2, 2));
  relay.on_ack("b", 3);
  EXPECT_FALSE(relay.on_child_lost("nobody").done);
  EXPECT_TRUE(relay.on_child_lost("c").done);
}

TEST(RelayState, IsDoneAtOnceWhenItIsTheWholeTree) {
  auto open = small_transfer();
  open.tree = {{"root", -1}};
  EXPECT_TRUE(RelayState::root(open, some_bytes(10), {}).begin().done);
}

// ---- check: what a peer may open -----------------------------------------------------------------------------------

TEST(RelayCheck, TakesAWellFormedTransferFromTheParentThatTheTreeNames) {
  EXPECT_TRUE(check(small_transfer(), "a", "root", {}));
  EXPECT_TRUE(check(small_transfer(), "c", "a", {}));
}

TEST(RelayCheck, TakesTheRootsOwnTransferFromNobodyElse) {
  EXPECT_TRUE(check(small_transfer(), "root", "", {}));
  EXPECT_FALSE(check(small_transfer(), "root", "a", {})) << "a peer cannot make this node the root of a tree of its own";
}

TEST(RelayCheck, RefusesEveryMalformedTransferAndSaysWhy) {
  const RelayOptions limits{8, 1'000, 100, 5};
  const struct {
    const char* why;  // words that the reason holds
    std::function<void(TransferOpen&)> spoil;
  } cases[] = {
      {"0 bytes", [](TransferOpen& o) { o.bytes = 0; }},
      {"1001 bytes", [](TransferOpen& o) { o.bytes = 1'001; }},
      {"chunks of 0", [](TransferOpen& o) { o.chunk_bytes = 0; }},
      {"chunks of 101", [](TransferOpen& o) { o.chunk_bytes = 101; }},
      {"digest", [](TransferOpen& o) { o.sha256.pop_back(); }},
      {"digest", [](TransferOpen& o) { o.sha256.clear(); }},
      {"no root", [](TransferOpen& o) { o.tree.clear(); }},
      {"no root", [](TransferOpen& o) { o.tree[0].parent = 0; }},
      {"too many nodes", [](TransferOpen& o) { o.tree.insert(o.tree.end(), {{"d", 0}, {"e", 0}}); }},
      {"b comes before its parent", [](TransferOpen& o) { o.tree[2].parent = 3; }},
      {"b comes before its parent", [](TransferOpen& o) { o.tree[2].parent = 2; }},
      {"b comes before its parent", [](TransferOpen& o) { o.tree[2].parent = -1; }},
      {"b comes before its parent", [](TransferOpen& o) { o.tree[2].parent = INT32_MAX; }},
      {"b comes before its parent", [](TransferOpen& o) { o.tree[2].parent = INT32_MIN; }},
      {"a is in the tree twice", [](TransferOpen& o) { o.tree[3].name = "a"; }},
      {"a is not in its tree", [](TransferOpen& o) { o.tree[1].name = "x"; }},
      {"the tree says b", [](TransferOpen& o) { o.tree = {{"root", -1}, {"b", 0}, {"a", 1}}; }},
  };
  ASSERT_TRUE(check(small_transfer(), "a", "root", limits));
  for (const auto& [why, spoil] : cases) {
    auto open = small_transfer();
    spoil(open);
    const auto verdict = check(open, "a", "root", limits);
    ASSERT_FALSE(verdict) << why;
    EXPECT_NE(verdict.error().find(why), std::string::npos) << verdict.error();
  }
}

// ---- whole trees ---------------------------------------------------------------------------------------------------

// A tree of relays and the ordered links between them; what is delivered next is the caller's choice.
struct Wood {
  struct Link {
    std::deque<WeightChunk> down;
    std::deque<std::uint32_t> up;
    std::uint32_t sent = 0, credited = 0;  // chunks, and the parent's knowledge of them
  };
  TransferOpen open;
  RelayOptions options;
  std::map<std::string, RelayState> relays;
  std::map<std::string, Link> links;  // by the child's name
  std::set<std::string> whole, done;

  Wood(TransferOpen given, RelayOptions limits, const std::vector<std::byte>& bytes)
      : open(std::move(given)), options(limits) {
    for (const auto& node : open.tree)
      relays.emplace(node.name, node.parent < 0 ? RelayState::root(open, bytes, options)
                                                : RelayState::inner(open, node.name, options));
    carry_out(open.tree[0].name, relays.at(open.tree[0].name).begin());
  }

  std::uint32_t chunks() const { return static_cast<std::uint32_t>((open.bytes + open.chunk_bytes - 1) / open.chunk_bytes); }

  void carry_out(const std::string& name, const RelayState::Step& step) {
    for (const auto& forward : step.forwards) {
      auto& link = links[forward.child];
      RC_ASSERT(relays.at(forward.child).parent() == name);
      RC_ASSERT(forward.chunk.index == link.sent);
      ++link.sent;
      RC_ASSERT(link.sent - link.credited <= options.window);
      link.down.push_back(forward.chunk);
    }
    if (step.acknowledge) links[name].up.push_back(relays.at(name).received());
    if (step.whole) RC_ASSERT(whole.insert(name).second);
    if (step.done) {
      RC_ASSERT(done.insert(name).second);
      for (const auto& child : relays.at(name).children()) RC_ASSERT(links[child].credited == chunks());
    }
  }

  std::vector<std::pair<std::string, bool>> deliverable() const {  // (child, whether downward)
    std::vector<std::pair<std::string, bool>> out;
    for (const auto& [child, link] : links) {
      if (!link.down.empty()) out.emplace_back(child, true);
      if (!link.up.empty()) out.emplace_back(child, false);
    }
    return out;
  }

  void deliver(const std::string& child, bool downward) {
    auto& link = links[child];
    if (downward) {
      const auto next = link.down.front();
      link.down.pop_front();
      carry_out(child, relays.at(child).on_chunk(next));
    } else {
      const auto received = link.up.front();
      link.up.pop_front();
      const auto& parent = relays.at(child).parent();
      link.credited = std::max(link.credited, received);  // before the step: it may send on this credit
      carry_out(parent, relays.at(parent).on_ack(child, received));
    }
  }
};

TEST(RelayState, BringsTheSameBytesToEveryNodeOfAnyTreeUnderAnyInterleaving) {
  EXPECT_TRUE(rc::check([] {
    const int nodes = *rc::gen::inRange(1, 12);
    const auto bytes = some_bytes(*rc::gen::inRange<std::size_t>(1, 400));
    TransferOpen open{TransferId{1}, Epoch{1}, bytes.size(), *rc::gen::inRange<std::uint32_t>(1, 60),
                      std::string(64, '0'), {}};
    for (int i = 0; i < nodes; ++i)
      open.tree.push_back({"n" + std::to_string(i), i == 0 ? -1 : *rc::gen::inRange(0, i)});
    RelayOptions options;
    options.window = *rc::gen::inRange<std::uint32_t>(1, 9);
    const auto noisy = *rc::gen::arbitrary<bool>();
    for (const auto& node : open.tree)
      RC_ASSERT(check(open, node.name, node.parent < 0 ? "" : open.tree[static_cast<std::size_t>(node.parent)].name,
                      options));

    Wood wood(open, options, bytes);
    std::mt19937_64 random(*rc::gen::arbitrary<std::uint64_t>());
    for (auto ways = wood.deliverable(); !ways.empty(); ways = wood.deliverable()) {
      const auto& [child, downward] = ways[random() % ways.size()];
      if (noisy && downward) {  // nothing of this may change anything
        auto& relay = wood.relays.at(child);
        auto next = wood.links[child].down.front();
        RC_ASSERT(next.index == relay.received());
        auto oversized = *next.bytes;
        oversized.push_back(std::byte{1});
        RC_ASSERT(empty(relay.on_chunk({next.transfer, next.index, shared(std::move(oversized))})));
        RC_ASSERT(empty(relay.on_chunk({next.transfer, next.index + 1, next.bytes})));
        if (next.index > 0) RC_ASSERT(empty(relay.on_chunk({next.transfer, next.index - 1, next.bytes})));
      }
      wood.deliver(child, downward);
    }
    RC_ASSERT(wood.done.size() == open.tree.size());
    RC_ASSERT(wood.whole.size() == open.tree.size() - 1);
    for (const auto& [name, relay] : wood.relays) RC_ASSERT(relay.bytes() == bytes);
  }));
}

}  // namespace
