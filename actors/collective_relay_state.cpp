#include "actors/collective_relay_state.hpp"

#include <algorithm>

namespace coppice::actors {
namespace {

using collectives::RankEdge;
using collectives::reversed;

bool same_link(const RankEdge& a, const RankEdge& b) {
  return a.from == b.from && a.to == b.to && a.from_address == b.from_address && a.to_address == b.to_address;
}

}  // namespace

std::int64_t window_of(const collectives::Program& program, const RankEdge& edge) {
  const auto that = [&](const RankEdge& other) { return same_link(edge, other); };
  // A tree counts as what it carries is to what the largest one does: those of a few bytes hardly share the link.
  std::int64_t together = 0, largest = 1;
  for (const auto& tree : program.trees) {
    std::int64_t bytes = 0;
    for (const auto& stretch : tree.share) bytes += stretch.bytes;
    const auto times = std::ranges::count_if(tree.up, that) + std::ranges::count_if(tree.down, that);
    together += times * bytes;
    if (times > 0) largest = std::max(largest, bytes);
  }
  const std::int64_t sharing = (together + largest / 2) / largest;
  return std::clamp(kWindowsTogether / std::max<std::int64_t>(sharing, 1), kWindowMin, kWindowMax);
}

CollectiveRelayState::CollectiveRelayState(const collectives::Program& program, std::size_t tree, int rank,
                                           CollectiveBuffer buffer, std::int64_t window)
    : tree_(program.trees[tree]),
      element_(program.element),
      reduction_(program.reduction),
      ranks_(static_cast<int>(collectives::members_of(program).size())),
      rank_(rank),
      buffer_(std::move(buffer)),
      chunks_(collectives::chunk_count(tree_)) {
  const auto of = [&](const RankEdge& edge) { return window > 0 ? window : window_of(program, edge); };
  for (const RankEdge& edge : tree_.up) {
    if (edge.to == rank) up_from_.push_back({reversed(edge), of(edge), 0, {}});
    if (edge.from == rank) up_to_ = Neighbour{edge, of(edge)};
  }
  for (const RankEdge& edge : tree_.down) {
    if (edge.to == rank) down_from_ = Source{reversed(edge), of(edge), 0, {}};
    if (edge.from == rank) down_to_.push_back({edge, of(edge)});
  }
}

// A rank whose caller has its result already has no buffer any more, and only passes on.
bool CollectiveRelayState::keeps() const {
  return (tree_.keeper < 0 || tree_.keeper == rank_) && buffer_.output != nullptr;
}

bool CollectiveRelayState::is_source() const { return tree_.up.empty() && rank_ == tree_.root; }

CollectiveRelayState::Step CollectiveRelayState::begin() {
  if (is_source()) {
    if (keeps() && !tree_.known_at_root) {
      for (const auto& at : tree_.share)
        if (buffer_.out(at).data() != buffer_.in(at).data())
          std::memcpy(buffer_.out(at).data(), buffer_.in(at).data(), static_cast<std::size_t>(at.bytes));
    }
    known_ = chunks_;
  }
  Step step;
  advance(step);
  return step;
}

void CollectiveRelayState::advance(Step& step) {
  combine_ready(step);
  send_up(step);
  send_down(step);
}

void CollectiveRelayState::combine_ready(Step& step) {
  if (up_from_.empty()) return;
  const auto arrived = [](const Source& child) { return !child.waiting.empty(); };
  // What is combined and not sent is bounded, as everything is, by the window.
  while (combined_ < chunks_ && std::ranges::all_of(up_from_, arrived) &&
         (!up_to_ || static_cast<std::int64_t>(ready_.size()) < up_to_->window)) {
    SharedBytes sum = std::move(up_from_.front().waiting.front());
    const auto at = collectives::chunk_at(tree_, combined_);
    collectives::combine(element_, reduction_, sum.writable(), buffer_.in(at));
    for (std::size_t child = 1; child < up_from_.size(); ++child)
      collectives::combine(element_, reduction_, sum.writable(), up_from_[child].waiting.front().view());
    for (Source& child : up_from_) {
      child.waiting.pop_front();
      step.push_back({child.back, Way::up, combined_ + 1, {}, child.received});
    }
    if (rank_ == tree_.root) {
      collectives::finish(element_, reduction_, ranks_, sum.writable());
      make_known(combined_, sum);
    } else {
      ready_.push_back(std::move(sum));
    }
    ++combined_;
  }
}

// REQUIRES: index is the first that was not known.
void CollectiveRelayState::make_known(std::int64_t index, const SharedBytes& bytes) {
  if (keeps()) {
    const auto at = buffer_.out(collectives::chunk_at(tree_, index));
    std::memcpy(at.data(), bytes.data, bytes.size);
  } else {
    held_.push_back(bytes);
  }
  ++known_;
}

void CollectiveRelayState::send_up(Step& step) {
  if (!up_to_) return;
  const bool leaf = up_from_.empty();
  while (up_to_->sent < chunks_ && up_to_->sent < up_to_->acknowledged + up_to_->window && (leaf || !ready_.empty())) {
    SharedBytes bytes;
    if (leaf) {
      const auto own = buffer_.in(collectives::chunk_at(tree_, up_to_->sent));
      bytes = {buffer_.lease, own.data(), own.size()};
    } else {
      bytes = std::move(ready_.front());
      ready_.pop_front();
    }
    step.push_back({up_to_->edge, Way::up, up_to_->sent, std::move(bytes)});
    ++up_to_->sent;
  }
  // Room was made: more may be combined now.
  if (!leaf && ready_.empty() && combined_ < chunks_) {
    const auto before = combined_;
    combine_ready(step);
    if (combined_ != before) send_up(step);
  }
}

void CollectiveRelayState::send_down(Step& step) {
  const bool from_input = is_source() && !tree_.known_at_root;
  std::int64_t least = chunks_;
  for (const Neighbour& child : down_to_) least = std::min(least, child.acknowledged);
  for (Neighbour& child : down_to_) {
    // A tree is as fast as its slowest edge. Whoever runs ahead of that takes bandwidth from it where they share a link,
    // and with shorter round trips TCP would let it.
    while (child.sent < known_ && child.sent < std::min(child.acknowledged + child.window, least + kLeadMax * child.window)) {
      const auto at = collectives::chunk_at(tree_, child.sent);
      SharedBytes bytes;
      if (from_input) {
        const auto own = buffer_.in(at);
        bytes = {buffer_.lease, own.data(), own.size()};
      } else if (keeps() || is_source()) {
        const auto own = buffer_.out(at);
        bytes = {buffer_.lease, own.data(), own.size()};
      } else {
        bytes = held_[static_cast<std::size_t>(child.sent - held_from_)];
      }
      step.push_back({child.edge, Way::down, child.sent, std::move(bytes)});
      ++child.sent;
    }
  }
  if (keeps() || !down_from_) return;
  // Nothing is let go, or acknowledged, before every child has it: whoever sent it would be told that it is over when
  // nobody has it.
  std::int64_t passed = known_;
  for (const Neighbour& child : down_to_) passed = std::min(passed, child.acknowledged);
  if (passed == held_from_) return;
  held_.erase(held_.begin(), held_.begin() + (passed - held_from_));
  held_from_ = passed;
  step.push_back({down_from_->back, Way::down, passed, {}, known_});
}

CollectiveRelayState::Step CollectiveRelayState::on_chunk(int from, Way way, std::int64_t index, SharedBytes bytes) {
  Step step;
  if (index < 0 || index >= chunks_ ||
      bytes.size != static_cast<std::size_t>(collectives::chunk_at(tree_, index).bytes))
    return step;
  if (way == Way::up) {
    const auto child = std::ranges::find(up_from_, from, [](const Source& s) { return s.back.to; });
    if (child == up_from_.end() || child->received != index || index >= combined_ + child->window) return step;
    ++child->received;
    child->waiting.push_back(std::move(bytes));
    const auto before = combined_;
    advance(step);
    if (combined_ == before) step.push_back({child->back, Way::up, combined_, {}, child->received});
    return step;
  }
  if (!down_from_ || down_from_->back.to != from || index != known_) return step;
  if (!keeps() && static_cast<std::int64_t>(held_.size()) >= down_from_->window) return step;
  make_known(index, bytes);
  const std::int64_t consumed = keeps() ? known_ : held_from_;
  step.push_back({down_from_->back, Way::down, consumed, {}, known_});
  advance(step);
  return step;
}

CollectiveRelayState::Step CollectiveRelayState::on_ack(int from, Way way, std::int64_t consumed, std::int64_t arrived) {
  Step step;
  const auto take = [&](Neighbour& to) {
    if (to.edge.to != from || arrived > to.sent || consumed > arrived) return;
    ++to.acknowledgements;
    if (arrived > to.arrived && arrived == to.sent) ++to.emptied;
    to.arrived = std::max(to.arrived, arrived);
    if (consumed <= to.acknowledged) return;
    to.acknowledged = consumed;
    advance(step);
  };
  if (way == Way::up && up_to_) take(*up_to_);
  if (way == Way::down)
    for (Neighbour& child : down_to_) take(child);
  return step;
}

CollectiveRelayState::Step CollectiveRelayState::reminders() const {
  Step step;
  for (const Source& child : up_from_) step.push_back({child.back, Way::up, combined_, {}, child.received});
  if (down_from_) step.push_back({down_from_->back, Way::down, keeps() ? known_ : held_from_, {}, known_});
  return step;
}

void CollectiveRelayState::look_at_traffic(std::vector<Traffic>& into) const {
  into.resize(up_from_.size() + down_to_.size() + (up_to_ ? 1 : 0) + (down_from_ ? 1 : 0));
  auto next = into.begin();
  const auto entry = [&](const collectives::RankEdge& edge) -> Traffic& {
    if (next->edge.to != edge.to) next->edge = edge;
    return *next++;
  };
  const auto sends = [&](const Neighbour& to, Way way) {
    auto& at = entry(to.edge);
    at.sends = true;
    at.way = way;
    at.sent = to.sent;
    at.acknowledged = to.acknowledged;
    at.awaited = to.acknowledged < to.sent;
    at.sent_bytes = to.sent * tree_.chunk_bytes;
    at.arrived_bytes = to.arrived * tree_.chunk_bytes;
    at.acknowledgements = to.acknowledgements;
    at.emptied = to.emptied;
  };
  const auto receives = [&](const Source& from, std::int64_t received, bool awaited) {
    auto& at = entry(from.back);
    at.awaited = awaited;
    at.received_bytes = received * tree_.chunk_bytes;
  };
  if (up_to_) sends(*up_to_, Way::up);
  for (const Neighbour& child : down_to_) sends(child, Way::down);
  for (const Source& child : up_from_) receives(child, child.received, child.received < chunks_ && child.waiting.empty());
  if (down_from_) receives(*down_from_, known_, known_ < chunks_);
}

std::int64_t CollectiveRelayState::steps() const {
  std::int64_t steps = known_ + combined_;
  const auto sent = [&](const Neighbour& to) { steps += to.sent + to.arrived + to.acknowledged; };
  for (const Source& child : up_from_) steps += child.received;
  if (up_to_) sent(*up_to_);
  for (const Neighbour& child : down_to_) sent(child);
  return steps;
}

bool CollectiveRelayState::done() const {
  if (up_to_ && !sent_all(*up_to_)) return false;
  if ((down_from_ || rank_ == tree_.root) && known_ < chunks_) return false;
  return std::ranges::all_of(down_to_, [&](const Neighbour& child) { return sent_all(child); });
}

std::optional<int> CollectiveRelayState::waits_for() const {
  if (done()) return std::nullopt;
  for (const Source& child : up_from_)
    if (child.received < chunks_ && child.waiting.empty()) return child.back.to;
  if (up_to_ && up_to_->sent > up_to_->acknowledged) return up_to_->edge.to;
  if (down_from_ && known_ < chunks_) return down_from_->back.to;
  // Others may be held back by the one that is behind.
  for (const Neighbour& child : down_to_)
    if (child.sent > child.acknowledged) return child.edge.to;
  for (const Neighbour& child : down_to_)
    if (!sent_all(child)) return child.edge.to;
  return std::nullopt;
}

}  // namespace coppice::actors
