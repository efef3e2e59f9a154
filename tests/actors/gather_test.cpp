#include "actors/gather.hpp"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <bit>
#include <map>
#include <set>

using namespace coppice;
using namespace coppice::actors;
using namespace std::chrono_literals;

namespace {

constexpr Duration kDeadline = 50ms;

Instant at(Duration since_start) { return Instant{} + since_start; }

CodedResponse response(std::uint64_t request, std::uint32_t worker, std::size_t floats = 1, std::uint64_t epoch = 1) {
  return {RequestId{request}, Epoch{epoch}, worker, 0, Floats(floats, static_cast<float>(request * 100 + worker))};
}

// Four workers of one float each, any three of which are enough.
struct Table : GatherTable {
  Table() : GatherTable({4, 3}, {1, 1, 1, 1}) {}
  void ask(std::uint64_t request, coding::ArrivalSet asked = 0b1111, Duration now = 0ms, std::uint64_t epoch = 1) {
    open(RequestId{request}, Epoch{epoch}, asked, {{"client", "way back"}, request + 7, true}, at(now),
         at(now + kDeadline));
  }
};

TEST(Gather, AnswersAtTheKthResponseWithWhatHasArrived) {
  Table table;
  table.ask(5);
  EXPECT_EQ(table.on_response(response(5, 2), at(1ms)).receipt, Receipt::taken);
  EXPECT_EQ(table.on_response(response(5, 0), at(2ms)).receipt, Receipt::taken);
  const auto third = table.on_response(response(5, 3), at(4ms));
  ASSERT_EQ(third.receipt, Receipt::completes);
  ASSERT_TRUE(third.completion);
  EXPECT_EQ(third.latency, Duration{4ms});
  EXPECT_FALSE(third.completion->degraded);
  EXPECT_EQ(third.completion->arrivals.set(), 0b1101U);
  EXPECT_EQ(third.completion->arrivals.responses[2], Floats{502});
  EXPECT_EQ(third.completion->reply_to.tag, 12U);
  EXPECT_EQ(third.completion->reply_to.client, (Peer{"client", "way back"}));
  ASSERT_EQ(third.completion->order.size(), 3U);
  EXPECT_EQ(third.completion->order[1].worker, 0U);
  EXPECT_EQ(third.completion->order[1].at_us, 2'000U);
  EXPECT_EQ(third.completion->closed, at(4ms));
  EXPECT_EQ(table.in_flight(), 0U);
}

TEST(Gather, CountsTheResponseAfterTheKthAsLateAndStillTimesIt) {
  Table table;
  table.ask(5);
  for (std::uint32_t worker : {0U, 1U, 2U}) table.on_response(response(5, worker), at(1ms));
  const auto late = table.on_response(response(5, 3), at(30ms));
  EXPECT_EQ(late.receipt, Receipt::late);
  EXPECT_FALSE(late.completion);
  EXPECT_EQ(late.latency, Duration{30ms});
  EXPECT_EQ(table.on_response(response(5, 3), at(31ms)).receipt, Receipt::duplicate);
  EXPECT_EQ(table.on_response(response(5, 0), at(31ms)).receipt, Receipt::duplicate);
  EXPECT_EQ(table.counts().late, 1U);
  EXPECT_EQ(table.counts().duplicate, 2U);
}

TEST(Gather, AnswersDegradedWhenEveryoneAskedHasAnsweredButTheyAreTooFew) {
  Table table;
  table.ask(1, 0b0011);
  EXPECT_EQ(table.on_response(response(1, 1), at(1ms)).receipt, Receipt::taken);
  const auto last = table.on_response(response(1, 0), at(2ms));
  ASSERT_TRUE(last.completion);
  EXPECT_TRUE(last.completion->degraded);
  EXPECT_EQ(table.counts().degraded, 1U);
}

TEST(Gather, AnswersAsSoonAsEveryoneStillAliveHasAnswered) {
  Table table;
  table.ask(1);
  table.on_response(response(1, 0), at(1ms));
  table.on_response(response(1, 1), at(2ms));
  EXPECT_TRUE(table.on_worker_lost(3, at(3ms)).empty());
  const auto completed = table.on_worker_lost(2, at(4ms));
  ASSERT_EQ(completed.size(), 1U);
  EXPECT_TRUE(completed[0].degraded);
  EXPECT_EQ(completed[0].closed, at(4ms));
  EXPECT_EQ(completed[0].arrivals.set(), 0b0011U);
}

TEST(Gather, KeepsWhatALostWorkerSaid) {
  Table table;
  table.ask(1);
  table.on_response(response(1, 0), at(1ms));
  EXPECT_TRUE(table.on_worker_lost(0, at(2ms)).empty());
  table.on_response(response(1, 1), at(3ms));
  const auto third = table.on_response(response(1, 2), at(4ms));
  ASSERT_TRUE(third.completion);
  EXPECT_FALSE(third.completion->degraded);
  EXPECT_EQ(third.completion->arrivals.set(), 0b0111U);
}

TEST(Gather, WaitsForTheOthersOnlyOnceALostWorkerHasSpoken) {
  Table table;
  table.ask(1, 0b0011);
  table.on_response(response(1, 0), at(1ms));
  EXPECT_TRUE(table.on_worker_lost(0, at(2ms)).empty());
  const auto last = table.on_response(response(1, 1), at(3ms));
  ASSERT_TRUE(last.completion) << "everyone has answered";
  EXPECT_TRUE(last.completion->degraded);
}

TEST(Gather, AnswersWithNothingWhenAllThatWereAskedAreLost) {
  Table table;
  table.ask(1, 0b0001);
  const auto completed = table.on_worker_lost(0, at(1ms));
  ASSERT_EQ(completed.size(), 1U);
  EXPECT_TRUE(completed[0].degraded);
  EXPECT_EQ(completed[0].arrivals.set(), 0U);
}

TEST(Gather, AnswersAtTheDeadlineAndNotBefore) {
  Table table;
  table.ask(1, 0b1111, 0ms);
  table.ask(2, 0b1111, 10ms);
  table.on_response(response(2, 2), at(20ms));
  EXPECT_EQ(table.next_deadline(), at(50ms));
  EXPECT_TRUE(table.on_time(at(50ms) - 1ns).empty());
  const auto first = table.on_time(at(50ms));
  ASSERT_EQ(first.size(), 1U);
  EXPECT_EQ(first[0].request, RequestId{1});
  EXPECT_TRUE(first[0].degraded);
  EXPECT_EQ(table.next_deadline(), at(60ms));
  EXPECT_EQ(table.on_time(at(90ms)).size(), 1U);
  EXPECT_EQ(table.next_deadline(), std::nullopt);
}

TEST(Gather, NextDeadlineSkipsRequestsThatAreAnsweredAlready) {
  Table table;
  for (std::uint64_t request : {1U, 2U, 3U}) table.ask(request, 0b1111, std::chrono::milliseconds(request));
  for (std::uint32_t worker : {0U, 1U, 2U}) table.on_response(response(2, worker), at(5ms));
  EXPECT_EQ(table.next_deadline(), at(51ms));
  for (std::uint32_t worker : {0U, 1U, 2U}) table.on_response(response(1, worker), at(5ms));
  EXPECT_EQ(table.next_deadline(), at(53ms));
}

TEST(Gather, KeepsDeadlinesInOrderWhenALaterRequestHasTheEarlierOne) {
  Table table;
  table.open(RequestId{1}, Epoch{1}, 0b1111, {}, at(0ms), at(80ms));
  table.open(RequestId{2}, Epoch{1}, 0b1111, {}, at(1ms), at(20ms));
  EXPECT_EQ(table.next_deadline(), at(20ms));
  const auto due = table.on_time(at(30ms));
  ASSERT_EQ(due.size(), 1U);
  EXPECT_EQ(due[0].request, RequestId{2});
}

TEST(Gather, DropsTheResponseOfAnotherEpochOrOfAWorkerThatWasNotAsked) {
  Table table;
  table.ask(1, 0b0111, 0ms, 4);
  EXPECT_EQ(table.on_response(response(1, 0, 1, 3), at(1ms)).receipt, Receipt::stale_epoch);
  EXPECT_EQ(table.on_response(response(1, 3, 1, 4), at(1ms)).receipt, Receipt::stale_epoch);
  table.on_worker_lost(0, at(1ms));
  EXPECT_EQ(table.on_response(response(1, 0, 1, 4), at(2ms)).receipt, Receipt::stale_epoch);
  table.on_time(at(50ms));
  EXPECT_EQ(table.on_response(response(1, 1, 1, 3), at(51ms)).receipt, Receipt::stale_epoch);
  EXPECT_EQ(table.counts().stale_epoch, 4U);
}

TEST(Gather, DropsTheResponseToARequestItNeverOpened) {
  Table table;
  EXPECT_EQ(table.on_response(response(9, 0), at(1ms)).receipt, Receipt::unknown_request);
  EXPECT_EQ(table.counts().unknown_request, 1U);
}

TEST(Gather, DropsResponsesOfAWrongSizeOrFromNoWorker) {
  Table table;
  table.ask(1);
  EXPECT_EQ(table.on_response(response(1, 0, 2), at(1ms)).receipt, Receipt::bad_shape);
  EXPECT_EQ(table.on_response(response(1, 0, 0), at(1ms)).receipt, Receipt::bad_shape);
  EXPECT_EQ(table.on_response(response(1, 4), at(1ms)).receipt, Receipt::bad_shape);
  EXPECT_EQ(table.on_response(response(1, UINT32_MAX), at(1ms)).receipt, Receipt::bad_shape);
  EXPECT_EQ(table.on_response(response(1, 0), at(1ms)).receipt, Receipt::taken);
  EXPECT_EQ(table.counts().bad_shape, 4U);
}

TEST(Gather, ForgetsRequestsClosedLongAgoSoThatMemoryIsBounded) {
  Table table;
  constexpr std::uint64_t kMany = 20'000;
  for (std::uint64_t request = 1; request <= kMany; ++request) {
    table.ask(request, 0b0001);
    table.on_response(response(request, 0), at(1ms));
  }
  EXPECT_EQ(table.on_response(response(1, 1), at(2ms)).receipt, Receipt::unknown_request);
  EXPECT_EQ(table.on_response(response(kMany, 1), at(2ms)).receipt, Receipt::late);
}

// ---- against a model that keeps everything and looks at everything -------------------------------------------------

struct ModelRequest {
  std::uint64_t id = 0, epoch = 0;
  std::set<std::uint32_t> waited_for;  // not yet heard, not lost
  std::vector<std::uint32_t> order;    // heard while open
  std::set<std::uint32_t> heard;       // ever
  Duration opened{}, deadline{};
  bool closed = false;
};

struct Model {
  int needed = 0;
  std::vector<ModelRequest> requests;

  ModelRequest* find(std::uint64_t id) {
    for (auto& request : requests)
      if (request.id == id) return &request;
    return nullptr;
  }
  bool enough(const ModelRequest& request) const { return static_cast<int>(request.order.size()) >= needed; }
  // The requests that must be answered now, with whether each is degraded.
  std::map<std::uint64_t, bool> due(Duration now, bool time_is_looked_at) {
    std::map<std::uint64_t, bool> answers;
    for (auto& request : requests) {
      if (request.closed) continue;
      const bool over = time_is_looked_at && now >= request.deadline;
      if (!enough(request) && !request.waited_for.empty() && !over) continue;
      request.closed = true;
      answers[request.id] = !enough(request);
    }
    return answers;
  }
  std::size_t open() const {
    return static_cast<std::size_t>(std::count_if(requests.begin(), requests.end(), [](const auto& r) { return !r.closed; }));
  }
  std::optional<Instant> next_deadline() const {
    std::optional<Instant> next;
    for (const auto& request : requests)
      if (!request.closed && (!next || at(request.deadline) < *next)) next = at(request.deadline);
    return next;
  }
  Receipt receipt(std::uint64_t id, std::uint64_t epoch, std::uint32_t worker) {  // of a well-shaped response
    auto* request = find(id);
    if (!request) return Receipt::unknown_request;
    if (request->epoch != epoch) return Receipt::stale_epoch;
    if (request->closed) return request->heard.insert(worker).second ? Receipt::late : Receipt::duplicate;
    if (request->heard.contains(worker)) return Receipt::duplicate;
    if (!request->waited_for.erase(worker)) return Receipt::stale_epoch;
    request->heard.insert(worker);
    request->order.push_back(worker);
    return Receipt::taken;
  }
};

TEST(Gather, AnswersEveryRequestExactlyOnceAndAsTheRulesSayUnderAnyInterleaving) {
  EXPECT_TRUE(rc::check([] {
    const int workers = *rc::gen::inRange(1, 7);
    Model model;
    model.needed = *rc::gen::inRange(1, workers + 1);
    const auto floats = *rc::gen::container<std::vector<int>>(static_cast<std::size_t>(workers), rc::gen::inRange(1, 4));
    GatherTable table({workers, model.needed}, floats);
    std::map<std::uint64_t, int> answers;
    std::map<Receipt, std::uint64_t> receipts;
    Duration now{};

    const auto compare = [&](std::vector<Completion> completions, const std::map<std::uint64_t, bool>& due) {
      RC_ASSERT(completions.size() == due.size());
      for (const auto& completion : completions) {
        const auto id = static_cast<std::uint64_t>(completion.request);
        const auto& request = *model.find(id);
        RC_ASSERT(due.contains(id));
        RC_ASSERT(completion.degraded == due.at(id));
        RC_ASSERT(completion.reply_to.tag == id + 1000);
        RC_ASSERT(completion.opened == at(request.opened));
        RC_ASSERT(completion.closed == at(now));
        RC_ASSERT(completion.order.size() == request.order.size());
        coding::ArrivalSet arrived = 0;
        for (std::size_t i = 0; i < request.order.size(); ++i) {
          RC_ASSERT(completion.order[i].worker == request.order[i]);
          RC_ASSERT(completion.arrivals.responses[request.order[i]] == completion.order[i].values);
          arrived |= 1U << request.order[i];
        }
        RC_ASSERT(completion.arrivals.set() == arrived);
        RC_ASSERT(++answers[id] == 1);
      }
    };

    const auto steps = *rc::gen::inRange(0, 120);
    for (int step = 0; step < steps; ++step) {
      now += std::chrono::milliseconds(*rc::gen::inRange(0, 12));
      switch (*rc::gen::weightedElement<int>({{3, 0}, {12, 1}, {2, 2}, {2, 3}})) {
        case 0: {
          const auto asked = *rc::gen::inRange<coding::ArrivalSet>(1, coding::ArrivalSet{1} << workers);
          const std::uint64_t id = model.requests.size() + 1, epoch = *rc::gen::inRange<std::uint64_t>(1, 4);
          ModelRequest request{id, epoch, {}, {}, {}, now, now + kDeadline};
          for (std::uint32_t worker = 0; worker < static_cast<std::uint32_t>(workers); ++worker)
            if (asked >> worker & 1U) request.waited_for.insert(worker);
          model.requests.push_back(request);
          table.open(RequestId{id}, Epoch{epoch}, asked, {{}, id + 1000, false}, at(now), at(now + kDeadline));
          break;
        }
        case 1: {
          const std::uint64_t last = model.requests.size();
          const auto id = *rc::gen::inRange<std::uint64_t>(last > 6 ? last - 6 : 0, last + 2);
          const auto worker = *rc::gen::inRange<std::uint32_t>(0, static_cast<std::uint32_t>(workers) + 1);
          const auto* request = model.find(id);
          const auto epoch = request && *rc::gen::weightedElement<bool>({{8, true}, {1, false}}) ? request->epoch : 9;
          const bool exists = worker < static_cast<std::uint32_t>(workers);
          const auto wanted = exists ? static_cast<std::size_t>(floats[worker]) : 1;
          const auto size = *rc::gen::weightedElement<std::size_t>({{8, wanted}, {1, wanted + 1}});
          auto expected = exists && size == wanted ? model.receipt(id, epoch, worker) : Receipt::bad_shape;
          const auto due = model.due(now, false);
          if (!due.empty()) expected = Receipt::completes;
          auto taken = table.on_response(response(id, worker, size, epoch), at(now));
          RC_ASSERT(taken.receipt == expected);
          ++receipts[taken.receipt];
          RC_ASSERT(taken.completion.has_value() == !due.empty());
          const bool timed = expected == Receipt::taken || expected == Receipt::completes || expected == Receipt::late;
          RC_ASSERT(taken.latency.has_value() == timed);
          if (timed) RC_ASSERT(*taken.latency == now - model.find(id)->opened);
          if (taken.completion) compare({*taken.completion}, due);
          break;
        }
        case 2: {
          const auto worker = *rc::gen::inRange(0, workers);
          for (auto& request : model.requests)
            if (!request.closed) request.waited_for.erase(static_cast<std::uint32_t>(worker));
          const auto due = model.due(now, false);
          compare(table.on_worker_lost(worker, at(now)), due);
          break;
        }
        default: {
          const auto due = model.due(now, true);
          compare(table.on_time(at(now)), due);
        }
      }
      RC_ASSERT(table.in_flight() == model.open());
      RC_ASSERT(table.next_deadline() == model.next_deadline());
    }
    now += kDeadline;
    const auto due = model.due(now, true);
    compare(table.on_time(at(now)), due);
    RC_ASSERT(answers.size() == model.requests.size());
    RC_ASSERT(table.in_flight() == 0U);
    const auto& counts = table.counts();
    RC_ASSERT(counts.opened == model.requests.size());
    RC_ASSERT(counts.completed == model.requests.size());
    RC_ASSERT(counts.late == receipts[Receipt::late]);
    RC_ASSERT(counts.duplicate == receipts[Receipt::duplicate]);
    RC_ASSERT(counts.stale_epoch == receipts[Receipt::stale_epoch]);
    RC_ASSERT(counts.unknown_request == receipts[Receipt::unknown_request]);
    RC_ASSERT(counts.bad_shape == receipts[Receipt::bad_shape]);
  }));
}

}  // namespace
