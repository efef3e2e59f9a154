#include "actors/block_table.hpp"

#include <algorithm>
#include <cassert>
#include <cmath>

#include "coding/block.hpp"

namespace coppice::actors {

std::optional<Duration> BlockTiming::patience(Instant opened, Instant now) const {
  // A tenth is left for the way there and back.
  const auto left = opened + deadline * 9 / 10 - now;
  if (left <= Duration::zero()) return std::nullopt;
  return std::min<Duration>(left, head_patience());
}

InferReply answer_of(BlockCompletion completion) {
  InferReply reply;
  reply.tag = completion.reply_to.tag;
  reply.request = static_cast<std::uint64_t>(completion.request);
  reply.epoch = static_cast<std::uint64_t>(completion.epoch);
  reply.gateway_us = micros(completion.closed - completion.opened);
  std::vector<coding::BlockBest> said;
  for (auto& score : completion.scores) {
    if (score.label >= 0) said.push_back({score.label, score.score, score.runner_up, score.log_sum_exp});
    std::move(score.arrivals.begin(), score.arrivals.end(), std::back_inserter(reply.arrivals));
  }
  if (said.empty()) {
    reply.status = ReplyStatus::no_response;
    reply.error = "no block gave an estimate by the deadline";
    return reply;
  }
  // In order of class, so that equals are told apart alike whoever was first.
  std::ranges::sort(said, {}, &coding::BlockBest::label);
  const auto all = coding::combine(said);
  reply.status = completion.degraded ? ReplyStatus::degraded : ReplyStatus::ok;
  reply.label = all.label;
  reply.margin = all.margin;
  reply.probability = all.probability;
  return reply;
}

BlockTable::BlockTable(int blocks, std::vector<int> block_of, BlockTiming timing)
    : blocks_(blocks), block_of_(std::move(block_of)), timing_(timing) {}

void BlockTable::open(RequestId request, Epoch epoch, const std::vector<std::optional<int>>& heads, ReplyTo reply_to,
                      SharedFloats item, Instant now) {
  assert(static_cast<int>(heads.size()) == blocks_);
  const auto id = static_cast<std::uint64_t>(request);
  Entry entry{epoch, {}, std::move(reply_to), std::move(item), {}, now};
  for (const auto& head : heads) entry.parts.push_back({head.has_value(), false, head.value_or(0)});
  assert(!finished(entry));
  entry.scores.reserve(static_cast<std::size_t>(blocks_));
  [[maybe_unused]] const bool fresh = open_.emplace(id, std::move(entry)).second;
  assert(fresh);
  deadlines_.push(now + timing_.deadline, id);
  silences_.push(now + timing_.silence(), id);
  ++counts_.opened;
}

bool BlockTable::well_formed(const BlockScore& score) const {
  if (score.block >= static_cast<std::uint32_t>(blocks_)) return false;
  if (score.status == ReplyStatus::no_response) return score.label == -1;
  return (score.status == ReplyStatus::ok || score.status == ReplyStatus::degraded) && score.label >= 0 &&
         static_cast<std::size_t>(score.label) < block_of_.size() &&
         block_of_[static_cast<std::size_t>(score.label)] == static_cast<int>(score.block) &&
         std::isfinite(score.score) && std::isfinite(score.runner_up) && std::isfinite(score.log_sum_exp);
}

BlockTable::Taken BlockTable::on_score(BlockScore score, Instant now) {
  const auto refuse = [](Receipt receipt, std::uint64_t& count) -> Taken {
    ++count;
    return {receipt, std::nullopt, std::nullopt};
  };
  if (!well_formed(score)) return refuse(Receipt::bad_shape, counts_.bad_shape);
  const auto found = open_.find(static_cast<std::uint64_t>(score.request));
  if (found == open_.end()) {
    const auto* old = closed_.find(static_cast<std::uint64_t>(score.request));
    if (!old) return refuse(Receipt::unknown_request, counts_.unknown_request);
    if (old->epoch != score.epoch) return refuse(Receipt::stale_epoch, counts_.stale_epoch);
    ++counts_.late;
    return {Receipt::late, std::nullopt, now - old->opened};
  }
  Entry& entry = found->second;
  if (entry.epoch != score.epoch) return refuse(Receipt::stale_epoch, counts_.stale_epoch);
  if (!entry.parts[score.block].waiting) return refuse(Receipt::duplicate, counts_.duplicate);
  entry.parts[score.block].waiting = false;
  entry.scores.push_back(std::move(score));
  const Duration latency = now - entry.opened;
  if (!finished(entry)) return {Receipt::taken, std::nullopt, latency};
  return {Receipt::completes, close(found, now), latency};
}

std::vector<BlockCompletion> BlockTable::on_block_lost(int block, Instant now) {
  std::vector<BlockCompletion> completions;
  for (auto it = open_.begin(); it != open_.end();) {
    const auto here = it++;
    Entry& entry = here->second;
    auto& part = entry.parts[static_cast<std::size_t>(block)];
    if (!part.waiting) continue;  // what it said still counts
    part.waiting = false;
    if (finished(entry)) completions.push_back(close(here, now));
  }
  return completions;
}

std::vector<BlockCompletion> BlockTable::on_time(Instant now) {
  std::vector<BlockCompletion> completions;
  while (const auto id = deadlines_.pop_due(now))
    if (const auto found = open_.find(*id); found != open_.end()) completions.push_back(close(found, now));
  return completions;
}

std::vector<BlockTable::Wanted> BlockTable::on_silence(Instant now) {
  std::vector<Wanted> all;
  while (const auto id = silences_.pop_due(now)) {
    const auto found = open_.find(*id);
    if (found == open_.end()) continue;
    for (int block = 0; block < blocks_; ++block) {
      const auto& part = found->second.parts[static_cast<std::size_t>(block)];
      if (part.waiting && !part.anew) all.push_back(wanted_of(*found, block));
    }
  }
  return all;
}

std::vector<BlockTable::Wanted> BlockTable::wanted(int block, int head) const {
  std::vector<Wanted> all;
  for (const auto& entry : open_) {
    const auto& part = entry.second.parts[static_cast<std::size_t>(block)];
    if (part.waiting && part.head == head) all.push_back(wanted_of(entry, block));
  }
  std::ranges::sort(all, {}, &Wanted::request);  // as they were asked
  return all;
}

std::optional<Instant> BlockTable::next_wake() {
  const auto is_open = [this](std::uint64_t id) { return open_.contains(id); };
  const auto deadline = deadlines_.next(is_open), silence = silences_.next(is_open);
  if (!deadline || !silence) return deadline ? deadline : silence;
  return std::min(*deadline, *silence);
}

bool BlockTable::finished(const Entry& entry) {
  return std::ranges::none_of(entry.parts, &Entry::Part::waiting);
}

BlockTable::Wanted BlockTable::wanted_of(const Open::value_type& entry, int block) const {
  const Entry& e = entry.second;
  return {RequestId{entry.first}, e.epoch, block, e.parts[static_cast<std::size_t>(block)].head, e.reply_to.record,
          e.item, e.opened};
}

void BlockTable::asked_anew(const Wanted& wanted, int head) {
  const auto found = open_.find(static_cast<std::uint64_t>(wanted.request));
  if (found == open_.end()) return;
  auto& part = found->second.parts[static_cast<std::size_t>(wanted.block)];
  part.head = head;
  part.anew = true;
}

BlockCompletion BlockTable::close(Open::iterator it, Instant now) {
  const auto id = it->first;
  Entry entry = std::move(it->second);
  open_.erase(it);
  next_wake();  // lets go of what is over
  closed_.add(id, Closed{entry.epoch, entry.opened});
  const bool degraded = static_cast<int>(entry.scores.size()) < blocks_ ||
                        std::ranges::any_of(entry.scores, [](const auto& s) { return s.status != ReplyStatus::ok; });
  ++counts_.completed;
  if (degraded) ++counts_.degraded;
  return {RequestId{id},  entry.epoch, std::move(entry.reply_to), std::move(entry.scores), degraded, entry.opened, now};
}

}  // namespace coppice::actors
