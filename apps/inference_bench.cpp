#include "apps/inference_bench.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <thread>
#include <unordered_map>

#include "apps/session.hpp"
#include "runtime/wire.hpp"

namespace coppice::apps {
namespace {

using Clock = std::chrono::steady_clock;
using actors::InferReply;
using actors::ReplyStatus;

struct Sent {
  std::int64_t item = 0;
  Clock::time_point due;  // when it should have left: a late start counts as waiting
};

bool blocks_agree(const InferReply& reply, const runtime::Manifest& manifest) {
  const auto n = static_cast<std::size_t>(manifest.shape.workers);
  std::vector<coding::Arrivals> arrivals(manifest.blocks.size());
  for (auto& block : arrivals) block.responses.resize(n);
  for (const auto& arrival : reply.arrivals) {
    if (arrival.worker >= manifest.workers.size()) return false;
    arrivals[arrival.worker / n].responses[arrival.worker % n] = arrival.values;
  }
  std::vector<coding::BlockBest> said;
  for (std::size_t block = 0; block < arrivals.size(); ++block)
    if (const auto best = coding::decode(manifest.blocks[block], arrivals[block])) said.push_back(*best);
  if (said.empty()) return false;
  const auto all = coding::combine(said);
  return all.label == reply.label && all.probability == reply.probability && all.margin == reply.margin;
}

// Whether the reply is what its own arrivals decode to.
bool agrees(const InferReply& reply, const runtime::Manifest& manifest) {
  if (!manifest.blocks.empty()) return blocks_agree(reply, manifest);
  coding::Arrivals arrivals;
  arrivals.responses.resize(manifest.generator.workers.size());
  for (const auto& arrival : reply.arrivals) {
    if (arrival.worker >= arrivals.responses.size()) return false;
    arrivals.responses[arrival.worker] = arrival.values;
  }
  const auto scores = coding::decode(manifest.decoder, manifest.generator, arrivals);
  return scores && scores->label == reply.label && scores->scores == reply.scores;
}

void write_record(std::ofstream& out, const InferReply& reply, std::int64_t item) {
  nlohmann::json arrivals = nlohmann::json::array();
  for (const auto& arrival : reply.arrivals)
    arrivals.push_back({{"worker", arrival.worker}, {"at_ms", arrival.at_us / 1e3}, {"values", arrival.values}});
  out << nlohmann::json({{"id", reply.request},
                         {"item", item},
                         {"epoch", reply.epoch},
                         {"arrivals", std::move(arrivals)},
                         {"answer", reply.label},
                         {"degraded", reply.status == ReplyStatus::degraded}})
             .dump()
      << '\n';
}

class Run {
 public:
  Run(runtime::Client& client, const Yardstick& yardstick, const InferenceLoad& load)
      : client_(client), yardstick_(yardstick), load_(load),
        item_(static_cast<std::size_t>(gpu::elements(yardstick.data.item))) {
    tally_.workers.resize(yardstick.manifest.workers.size());
  }

  InferenceTally closed_loop() {
    for (std::int64_t i = 0; i < load_.requests && !interrupted; ++i) {
      if (load_.before) load_.before(i);
      send(i, Clock::now());
      const auto until = Clock::now() + load_.patience;
      while (!flying_.empty() && Clock::now() < until) take(std::chrono::duration_cast<std::chrono::microseconds>(until - Clock::now()));
      lose_overdue(Clock::now());
      if (load_.progress) load_.progress(i + 1);
    }
    return std::move(tally_);
  }

  InferenceTally open_loop() {
    std::mt19937_64 random(load_.seed);
    std::exponential_distribution<double> gap(load_.rate);
    auto due = Clock::now();
    for (std::int64_t i = 0; i < load_.requests && !interrupted; ++i) {
      if (load_.before) load_.before(i);
      due += std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(gap(random)));
      for (auto now = Clock::now(); now < due; now = Clock::now())
        take(std::chrono::duration_cast<std::chrono::microseconds>(due - now));
      while (take(std::chrono::microseconds{0})) {
      }
      send(i, due);
      if (load_.progress) load_.progress(i + 1);
    }
    const auto until = Clock::now() + load_.patience;
    while (!flying_.empty() && Clock::now() < until && !interrupted) take(std::chrono::milliseconds{10});
    lose_overdue(Clock::time_point::max());
    return std::move(tally_);
  }

 private:
  void send(std::int64_t i, Clock::time_point due) {
    const std::int64_t item = (load_.first_item + i) % yardstick_.data.count();
    gpu::item(yardstick_.data, item, yardstick_.manifest.normalisation, item_);
    ++tally_.requests;
    flying_.emplace(client_.send(item_, true), Sent{item, due});
  }

  bool take(std::chrono::microseconds patience) {
    auto reply = client_.receive(patience);
    if (!reply) return false;
    const auto found = flying_.find(reply->tag);
    if (found == flying_.end()) return true;  // lost before: it was counted then
    judge(*reply, found->second);
    flying_.erase(found);
    return true;
  }

  void judge(const InferReply& reply, const Sent& sent) {
    tally_.latency_ms.push_back(std::chrono::duration<double, std::milli>(Clock::now() - sent.due).count());
    if (reply.status != ReplyStatus::ok && reply.status != ReplyStatus::degraded) {
      ++tally_.failed;
      if (tally_.first_fault.empty()) tally_.first_fault = reply.error;
      return;
    }
    ++tally_.answered;
    tally_.degraded += reply.status == ReplyStatus::degraded ? 1 : 0;
    tally_.wrong += agrees(reply, yardstick_.manifest) ? 0 : 1;
    tally_.changed += reply.label == yardstick_.labels_all_present[static_cast<std::size_t>(sent.item)] ? 0 : 1;
    tally_.right += reply.label == yardstick_.data.labels[static_cast<std::size_t>(sent.item)] ? 1 : 0;
    coding::ArrivalSet set = 0;
    for (const auto& arrival : reply.arrivals) {
      if (arrival.worker >= tally_.workers.size()) continue;
      if (yardstick_.manifest.blocks.empty()) set |= coding::ArrivalSet{1} << arrival.worker;
      auto& worker = tally_.workers[arrival.worker];
      ++worker.arrivals;
      worker.at_us.push_back(static_cast<float>(arrival.at_us));
    }
    if (yardstick_.manifest.blocks.empty()) ++tally_.sets[set];
    if (load_.record) write_record(*load_.record, reply, sent.item);
  }

  void lose_overdue(Clock::time_point now) {
    for (auto it = flying_.begin(); it != flying_.end();) {
      if (now - it->second.due < load_.patience) {
        ++it;
        continue;
      }
      ++tally_.lost;
      if (tally_.first_fault.empty()) tally_.first_fault = "no reply within the client's patience";
      it = flying_.erase(it);
    }
  }

  runtime::Client& client_;
  const Yardstick& yardstick_;
  const InferenceLoad& load_;
  std::vector<float> item_;
  std::unordered_map<std::uint64_t, Sent> flying_;
  InferenceTally tally_;
};

}  // namespace

runtime::Expected<Yardstick> make_yardstick(const runtime::Manifest& manifest, const gpu::Dataset& data,
                                            const runtime::OfflineResponses& responses) {
  auto labels = runtime::labels_of_all(manifest, responses);
  if (!labels) return tl::unexpected(labels.error());
  return Yardstick{manifest, data, std::move(*labels)};
}

void InferenceTally::add(const InferenceTally& other) {
  requests += other.requests;
  answered += other.answered;
  degraded += other.degraded;
  changed += other.changed;
  wrong += other.wrong;
  right += other.right;
  failed += other.failed;
  lost += other.lost;
  latency_ms.insert(latency_ms.end(), other.latency_ms.begin(), other.latency_ms.end());
  for (const auto& [set, count] : other.sets) sets[set] += count;
  workers.resize(std::max(workers.size(), other.workers.size()));
  for (std::size_t w = 0; w < other.workers.size(); ++w) {
    workers[w].arrivals += other.workers[w].arrivals;
    workers[w].at_us.insert(workers[w].at_us.end(), other.workers[w].at_us.begin(), other.workers[w].at_us.end());
  }
  if (first_fault.empty()) first_fault = other.first_fault;
}

runtime::Expected<InferenceTally> run_load(runtime::Client& client, const Yardstick& yardstick,
                                           const InferenceLoad& load) {
  if (yardstick.data.count() == 0) return runtime::bad_input("the data holds no items");
  Run run(client, yardstick, load);
  auto tally = load.rate > 0 ? run.open_loop() : run.closed_loop();
  if (interrupted) return runtime::failed("interrupted");
  return tally;
}

double quantile(std::vector<double> values, double q) {
  if (values.empty()) return std::numeric_limits<double>::quiet_NaN();
  const auto rank = static_cast<std::size_t>(
      std::clamp(std::ceil(q * static_cast<double>(values.size())) - 1, 0.0, static_cast<double>(values.size() - 1)));
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(rank), values.end());
  return values[rank];
}

FrameBytes frame_bytes(const runtime::Manifest& manifest) {
  const auto size = [](const actors::DataMessage& message) {
    const auto frame = runtime::encode(message);
    return static_cast<double>(runtime::joined_bytes(frame).value_or(frame.head.size() + frame.bulk.size()));
  };
  actors::WorkItem item;
  item.request = actors::RequestId{10'000};
  item.item = std::make_shared<const actors::Floats>(static_cast<std::size_t>(gpu::elements(manifest.input)));
  FrameBytes bytes{size(item), 0};
  for (std::size_t w = 0; w < manifest.workers.size(); ++w) {
    actors::CodedResponse response;
    response.request = item.request;
    response.service_us = 300;
    response.values.resize(static_cast<std::size_t>(place_of(manifest, w).rows.floats));
    bytes.down += size(response) / static_cast<double>(manifest.workers.size());
  }
  return bytes;
}

nlohmann::json to_json(const InferenceTally& tally, const runtime::Manifest& manifest) {
  const auto bytes = frame_bytes(manifest);
  const auto& sample = tally.latency_ms;
  nlohmann::json workers = nlohmann::json::array();
  for (std::size_t w = 0; w < tally.workers.size(); ++w) {
    const auto& worker = tally.workers[w];
    const std::vector<double> at(worker.at_us.begin(), worker.at_us.end());
    workers.push_back({{"index", w},
                       {"arrivals", worker.arrivals},
                       {"floats", place_of(manifest, w).rows.floats},
                       {"p50_ms", at.empty() ? nlohmann::json() : nlohmann::json(quantile(at, 0.5) / 1e3)},
                       {"p99_ms", at.empty() ? nlohmann::json() : nlohmann::json(quantile(at, 0.99) / 1e3)}});
  }
  nlohmann::json code = {{"scheme", coding::name(manifest.scheme)}, {"n", manifest.shape.workers}, {"k", manifest.shape.needed}};
  if (!manifest.blocks.empty()) code["blocks"] = manifest.blocks.size();
  const auto ms = [&](double q) { return sample.empty() ? nlohmann::json() : nlohmann::json(quantile(sample, q)); };
  return {{"requests", tally.requests},
          {"answered", tally.answered},
          {"degraded", tally.degraded},
          {"changed", tally.changed},
          {"wrong", tally.wrong},
          {"failed", tally.failed},
          {"lost", tally.lost},
          {"p50_ms", ms(0.5)},
          {"p99_ms", ms(0.99)},
          {"p999_ms", sample.size() >= 10'000 ? ms(0.999) : nlohmann::json()},
          {"max_ms", ms(1.0)},
          {"accuracy", tally.answered ? nlohmann::json(100.0 * static_cast<double>(tally.right) / static_cast<double>(tally.answered))
                                      : nlohmann::json()},
          {"bytes_up_per_worker", bytes.up},
          {"bytes_down_per_worker", bytes.down},
          {"code", std::move(code)},
          {"workers", workers}};
}

}  // namespace coppice::apps
