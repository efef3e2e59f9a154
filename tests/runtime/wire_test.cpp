#include "runtime/wire.hpp"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>

#include "runtime/msgpack.hpp"

namespace coppice::runtime {
namespace {

using namespace actors;

// Bits, not values: NaN and -0 must come through as they are.
std::vector<std::uint32_t> bits(const Floats& floats) {
  std::vector<std::uint32_t> out;
  for (const float f : floats) out.push_back(std::bit_cast<std::uint32_t>(f));
  return out;
}

Floats any_floats(std::size_t most = 40) {
  const auto words = *rc::gen::resize(static_cast<int>(most), rc::gen::arbitrary<std::vector<std::uint32_t>>());
  Floats out;
  for (const auto word : words) out.push_back(std::bit_cast<float>(word));
  return out;
}

template <class Message>
Message through_the_wire(const Message& message) {
  const auto frame = encode(message);
  const auto back = decode(frame.head, frame.bulk);
  RC_ASSERT(back.has_value());
  RC_ASSERT(std::holds_alternative<Message>(*back));
  return std::get<Message>(*back);
}

RC_GTEST_PROP(Wire, WorkItemsKeepEveryBit, ()) {
  const WorkItem sent{RequestId{*rc::gen::arbitrary<std::uint64_t>()}, Epoch{*rc::gen::arbitrary<std::uint64_t>()},
                      *rc::gen::arbitrary<std::uint32_t>(), std::make_shared<const Floats>(any_floats())};
  const auto got = through_the_wire(sent);
  RC_ASSERT(got.request == sent.request);
  RC_ASSERT(got.epoch == sent.epoch);
  RC_ASSERT(got.worker == sent.worker);
  RC_ASSERT(bits(*got.item) == bits(*sent.item));
}

RC_GTEST_PROP(Wire, CodedResponsesKeepEveryBit, ()) {
  const CodedResponse sent{RequestId{*rc::gen::arbitrary<std::uint64_t>()}, Epoch{*rc::gen::arbitrary<std::uint64_t>()},
                           *rc::gen::arbitrary<std::uint32_t>(), *rc::gen::arbitrary<std::uint32_t>(), any_floats()};
  const auto got = through_the_wire(sent);
  RC_ASSERT(got.request == sent.request);
  RC_ASSERT(got.epoch == sent.epoch);
  RC_ASSERT(got.worker == sent.worker);
  RC_ASSERT(got.service_us == sent.service_us);
  RC_ASSERT(bits(got.values) == bits(sent.values));
}

RC_GTEST_PROP(Wire, BlockItemsAndScoresComeThroughWhole, ()) {
  BlockItem item;
  item.request = RequestId{*rc::gen::arbitrary<std::uint64_t>()};
  item.epoch = Epoch{*rc::gen::arbitrary<std::uint64_t>()};
  item.block = *rc::gen::arbitrary<std::uint32_t>();
  item.asked = *rc::gen::arbitrary<std::uint64_t>();
  item.patience_us = *rc::gen::arbitrary<std::uint32_t>();
  item.record = *rc::gen::arbitrary<bool>();
  item.item = std::make_shared<const Floats>(any_floats());
  const auto asked = through_the_wire(item);
  RC_ASSERT(asked.request == item.request && asked.epoch == item.epoch && asked.block == item.block);
  RC_ASSERT(asked.asked == item.asked && asked.patience_us == item.patience_us && asked.record == item.record);
  RC_ASSERT(bits(*asked.item) == bits(*item.item));

  BlockScore score;
  score.request = item.request;
  score.epoch = item.epoch;
  score.block = item.block;
  score.status = static_cast<ReplyStatus>(*rc::gen::inRange(0, 7));
  score.label = *rc::gen::arbitrary<std::int32_t>();
  for (auto* value : {&score.score, &score.runner_up, &score.log_sum_exp})
    *value = std::bit_cast<float>(*rc::gen::arbitrary<std::uint32_t>());
  score.head_us = item.patience_us;
  for (int i = *rc::gen::inRange(0, 5); i > 0; --i)
    score.arrivals.push_back({*rc::gen::arbitrary<std::uint32_t>(), *rc::gen::arbitrary<std::uint32_t>(), any_floats(12)});
  const auto got = through_the_wire(score);
  RC_ASSERT(got.request == score.request && got.epoch == score.epoch && got.block == score.block);
  RC_ASSERT(got.status == score.status && got.label == score.label && got.head_us == score.head_us);
  RC_ASSERT(bits({got.score, got.runner_up, got.log_sum_exp}) == bits({score.score, score.runner_up, score.log_sum_exp}));
  RC_ASSERT(got.arrivals.size() == score.arrivals.size());
  for (std::size_t i = 0; i < got.arrivals.size(); ++i) {
    RC_ASSERT(got.arrivals[i].worker == score.arrivals[i].worker && got.arrivals[i].at_us == score.arrivals[i].at_us);
    RC_ASSERT(bits(got.arrivals[i].values) == bits(score.arrivals[i].values));
  }
}

RC_GTEST_PROP(Wire, RepliesKeepTheirArrivalsInOrder, ()) {
  InferReply sent;
  sent.tag = *rc::gen::arbitrary<std::uint64_t>();
  sent.request = *rc::gen::arbitrary<std::uint64_t>();
  sent.epoch = *rc::gen::arbitrary<std::uint64_t>();
  sent.status = static_cast<ReplyStatus>(*rc::gen::inRange(0, 7));
  sent.label = *rc::gen::arbitrary<std::int32_t>();
  sent.margin = std::bit_cast<float>(*rc::gen::arbitrary<std::uint32_t>());
  sent.gateway_us = *rc::gen::arbitrary<std::uint32_t>();
  sent.scores = any_floats();
  sent.error = *rc::gen::arbitrary<std::string>();
  for (int i = *rc::gen::inRange(0, 5); i > 0; --i)
    sent.arrivals.push_back({*rc::gen::arbitrary<std::uint32_t>(), *rc::gen::arbitrary<std::uint32_t>(), any_floats(12)});
  const auto got = through_the_wire(sent);
  RC_ASSERT(got.tag == sent.tag);
  RC_ASSERT(got.request == sent.request);
  RC_ASSERT(got.epoch == sent.epoch);
  RC_ASSERT(got.status == sent.status);
  RC_ASSERT(got.label == sent.label);
  RC_ASSERT(std::bit_cast<std::uint32_t>(got.margin) == std::bit_cast<std::uint32_t>(sent.margin));
  RC_ASSERT(got.error == sent.error);
  RC_ASSERT(bits(got.scores) == bits(sent.scores));
  RC_ASSERT(got.arrivals.size() == sent.arrivals.size());
  for (std::size_t i = 0; i < got.arrivals.size(); ++i) {
    RC_ASSERT(got.arrivals[i].worker == sent.arrivals[i].worker);
    RC_ASSERT(got.arrivals[i].at_us == sent.arrivals[i].at_us);
    RC_ASSERT(bits(got.arrivals[i].values) == bits(sent.arrivals[i].values));
  }
}

RC_GTEST_PROP(Wire, TransfersComeThroughWhole, ()) {
  TransferOpen sent;
  sent.transfer = TransferId{*rc::gen::arbitrary<std::uint64_t>()};
  sent.bytes = *rc::gen::arbitrary<std::uint64_t>();
  sent.chunk_bytes = *rc::gen::arbitrary<std::uint32_t>();
  sent.sha256 = *rc::gen::arbitrary<std::string>();
  for (int i = *rc::gen::inRange(0, 6); i > 0; --i)
    sent.tree.push_back({*rc::gen::arbitrary<std::string>(), *rc::gen::arbitrary<std::int32_t>()});
  const auto got = through_the_wire(sent);
  RC_ASSERT(got.transfer == sent.transfer);
  RC_ASSERT(got.bytes == sent.bytes);
  RC_ASSERT(got.chunk_bytes == sent.chunk_bytes);
  RC_ASSERT(got.sha256 == sent.sha256);
  RC_ASSERT(got.tree.size() == sent.tree.size());
  for (std::size_t i = 0; i < got.tree.size(); ++i) {
    RC_ASSERT(got.tree[i].name == sent.tree[i].name);
    RC_ASSERT(got.tree[i].parent == sent.tree[i].parent);
  }
}

TEST(Wire, AProgramIsReadBackWholeAndABadOneIsNot) {
  collectives::Program program;
  program.element = collectives::Element::bytes;
  program.ranks = 2;
  program.bytes = 100;
  program.trees.push_back({.root = 0,
                           .up = {},
                           .down = {{0, 1, "10.0.0.1", "10.0.0.2", true}},
                           .share = {{0, 60}, {80, 20}},
                           .chunk_bytes = 10,
                           .bytes_per_s = 5'000,
                           .wait_us = 200'000});
  const GroupNote note{1, 7, 2, -1, true, ProgramOffer{{3, 4}, true, program}};
  const auto frame = encode(note);
  const auto back = decode(frame.head, frame.bulk);
  ASSERT_TRUE(back);
  EXPECT_EQ(std::get<ProgramOffer>(std::get<GroupNote>(*back).note).program, program);
  program.trees[0].wait_us = -1;
  const auto bad = encode(GroupNote{1, 7, 2, -1, true, ProgramOffer{{3, 4}, true, program}});
  EXPECT_FALSE(decode(bad.head, bad.bulk));
}

std::vector<Frame> samples() {
  InferReply reply;
  reply.scores = {1.0F, std::numeric_limits<float>::quiet_NaN()};
  reply.arrivals = {{3, 250, {0.5F}}};
  reply.error = "why";
  TransferOpen open;
  open.bytes = 100;
  open.tree = {{"gateway", -1}, {"w0", 0}};
  BlockScore score;
  score.arrivals = {{3, 250, {0.5F}}};
  const auto bytes = std::make_shared<const std::vector<std::byte>>(16, std::byte{7});
  const auto floats = std::make_shared<const Floats>(Floats{1.0F, -0.0F});
  collectives::Program program;
  program.operation = collectives::Operation::allreduce;
  program.ranks = 2;
  program.bytes = 16;
  program.members = {0, 1};
  program.trees.push_back({0, {{1, 0, "10.0.0.2", "10.0.0.1"}}, {{0, 1, "10.0.0.1", "10.0.0.2"}}, {{0, 16}}, 8});
  const auto note = [](NoteBody body) { return encode(GroupNote{1, 99, 7, -1, true, std::move(body)}); };
  return {encode(InferRequest{1, true, floats}), encode(WorkItem{RequestId{1}, Epoch{2}, 3, floats}),
          encode(CodedResponse{RequestId{1}, Epoch{2}, 3, 4, *floats}), encode(reply), encode(open),
          encode(WeightChunk{TransferId{1}, 2, bytes}), encode(ChunkAck{TransferId{1}, 2}), encode(StatusRequest{5}),
          encode(FaultRequest{5, "worker=w0,kill@0"}), encode(TextReply{5, "{}", "no"}),
          encode(CollectiveChunk{{1, 2}, 3, 4, 5, Way::up, 6, SharedBytes::copy_of(*bytes)}),
          encode(CollectiveAck{{1, 2}, 3, 4, 5, Way::down, 6, 7}),
          note(ProgramOffer{{1, 2}, true, program}),
          note(CallRefused{1, true, "why", {2, 5}}),
          note(TroubleReport{{1, 2}, {0, 1, "10.0.0.1", ""}, 5, "slow"}),
          note(PauseCall{{1, 2}}),
          note(PausedAt{{1, 2}, true, 3, {4, 5}}),
          note(PartDone{{1, 2}}),
          note(CallOver{1}),
          note(LinkPing{{0, 1, "", ""}}),
          note(LinkPong{{0, 1, "", ""}}),
          note(OfferWanted{1}),
          note(RankPing{}),
          note(RankPong{}),
          note(AckWanted{{1, 2}, 3, 4, Way::up, 5, {0, 1, "", ""}}),
          note(ViewProposed{5, {0, 2}}),
          note(ViewReady{5, 3, {{1, -1, true}, {2, 64, false}}}),
          note(ViewBegun{5, {0, 2}, {1, 2}}),
          note(RankLost{3}),
          encode(BlockItem{RequestId{1}, Epoch{2}, 3, 5, 900, true, floats}), encode(score), encode(WorkerGone{3})};
}

TEST(Wire, EveryTypeIsReadBack) {
  const auto frames = samples();
  const std::size_t notes = std::variant_size_v<NoteBody>;
  ASSERT_EQ(frames.size(), 12 + notes + 3) << "probes have a test of their own";
  for (std::size_t i = 0; i < frames.size(); ++i) {
    const auto back = decode(frames[i].head, frames[i].shared ? frames[i].shared : SharedBytes{nullptr, const_cast<std::byte*>(frames[i].bulk.data()), frames[i].bulk.size()});
    ASSERT_TRUE(back) << i;
    if (const auto* note = std::get_if<GroupNote>(&*back)) {
      EXPECT_EQ(note->note.index(), i - 12);
    } else {
      EXPECT_EQ(back->index(), i < 12 ? i : i - notes + 2);  // all notes are of one type, and then come probes
    }
    EXPECT_EQ(encode(*back).head, frames[i].head) << i;
  }
}

std::vector<ProbeNote> probe_notes() {
  return {{1, ProbeHello{}},
          {2, ProbeHere{}},
          {3, MeasureOrder{collectives::Measure::Kind::share, "h1", "10.0.0.1", "10.0.0.2"}},
          {4, MeasureDone{1'000'000, 81'000, 93'000, true, "why"}},
          {5, ProbePing{7}},
          {6, ProbePong{7}},
          {7, ProbeBytes{SharedBytes::copy_of(std::vector<std::byte>(100, std::byte{3}))}},
          {8, ProbeArrived{1ULL << 40, 2'000'000}},
          {9, SurveyOver{"{}", "why not"}}};
}

TEST(Wire, EveryWordOfAProbeIsReadBack) {
  const auto notes = probe_notes();
  for (std::size_t kind = 0; kind < notes.size(); ++kind) {
    const auto frame = encode(notes[kind]);
    const auto back = decode(frame.head, frame.shared);
    ASSERT_TRUE(back) << kind;
    const auto& note = std::get<ProbeNote>(*back);
    EXPECT_EQ(note.measure, kind + 1);
    EXPECT_EQ(note.note.index(), kind);
    EXPECT_EQ(encode(note).head, frame.head);
    for (std::size_t size = 0; size < frame.head.size(); ++size) EXPECT_FALSE(decode(std::span(frame.head).first(size), frame.shared));
    const std::vector<std::byte> bulk(4);
    EXPECT_EQ(decode(frame.head, bulk).has_value(), std::holds_alternative<ProbeBytes>(note.note));
  }
  const auto frame = encode(notes[6]);
  EXPECT_EQ(std::get<ProbeBytes>(std::get<ProbeNote>(*decode(frame.head, frame.shared)).note).bytes.size, 100U);
}

TEST(Wire, EveryTruncationIsRefused) {
  for (const auto& frame : samples())
    for (std::size_t size = 0; size < frame.head.size(); ++size)
      EXPECT_FALSE(decode(std::span(frame.head).first(size), frame.bulk));
}

TEST(Wire, MutatedFramesNeverCrash) {
  std::mt19937 random(4);
  const auto frames = samples();
  int refused = 0;
  for (int i = 0; i < 20'000; ++i) {
    auto frame = frames[random() % frames.size()];
    for (int flips = 1 + static_cast<int>(random() % 3); flips > 0; --flips)
      frame.head[random() % frame.head.size()] = static_cast<std::byte>(random());
    if (random() % 4 == 0) frame.bulk.resize(random() % 64);
    refused += decode(frame.head, frame.bulk) ? 0 : 1;
  }
  EXPECT_GT(refused, 1'000);
}

std::vector<std::byte> joined(const Frame& frame) {
  std::vector<std::byte> part(joined_bytes(frame).value_or(0));
  if (!part.empty()) join(frame, part);
  return part;
}

TEST(Wire, FewBytesAreJoinedToTheirHeadAndComeApartAgain) {
  for (const std::size_t floats : {std::size_t{1}, std::size_t{7}, kJoinedBulkMax / sizeof(float)}) {
    const auto frame = encode(CodedResponse{RequestId{1}, Epoch{2}, 3, 4, Floats(floats, 0.5F)});
    const auto part = joined(frame);
    ASSERT_TRUE(is_joined(part));
    const auto both = split(part);
    ASSERT_TRUE(both);
    EXPECT_TRUE(std::ranges::equal(both->head, frame.head));
    EXPECT_EQ(both->bulk_at % 8, 0U);
    EXPECT_TRUE(std::ranges::equal(std::span(part).subspan(both->bulk_at), frame.bulk));
  }
}

TEST(Wire, NothingIsJoinedToAHeadAloneNorToManyBytes) {
  const auto alone = encode(StatusRequest{5});
  EXPECT_FALSE(joined_bytes(alone));
  EXPECT_FALSE(is_joined(alone.head));
  EXPECT_FALSE(joined_bytes(encode(CodedResponse{RequestId{1}, Epoch{2}, 3, 4, Floats(kJoinedBulkMax / sizeof(float) + 1)})));
}

TEST(Wire, AJoinedPartThatIsCutOffOrLiesAboutItsHeadIsRefused) {
  auto part = joined(encode(CodedResponse{RequestId{1}, Epoch{2}, 3, 4, {1.0F, 2.0F}}));
  for (std::size_t size = 1; size < 8; ++size) EXPECT_FALSE(split(std::span(part).first(size))) << size;
  for (const std::uint32_t head : {static_cast<std::uint32_t>(part.size()), 0x7fffffffU, 0xffffffffU}) {
    for (std::size_t i = 0; i < 4; ++i) part[4 + i] = static_cast<std::byte>(head >> 8 * i & 0xff);
    EXPECT_FALSE(split(part)) << head;
  }
}

TEST(Wire, AnotherVersionIsRefusedByName) {
  auto frame = encode(StatusRequest{5});
  frame.head[1] = std::byte{kVersion + 1};
  const auto back = decode(frame.head, frame.bulk);
  ASSERT_FALSE(back);
  EXPECT_NE(back.error().what.find("version"), std::string::npos);
}

TEST(Wire, BulkWhereNoneBelongsIsRefused) {
  const auto frame = encode(StatusRequest{5});
  const std::vector<std::byte> bulk(4);
  EXPECT_FALSE(decode(frame.head, bulk));
}

TEST(Wire, BulkThatIsNoWholeNumberOfFloatsIsRefused) {
  const auto frame = encode(CodedResponse{RequestId{1}, Epoch{1}, 0, 0, {1.0F}});
  EXPECT_FALSE(decode(frame.head, std::span(frame.bulk).first(3)));
}

}  // namespace
}  // namespace coppice::runtime
