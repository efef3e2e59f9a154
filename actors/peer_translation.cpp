#include "actors/peer_translation.hpp"

#include <algorithm>
#include <map>
#include <numeric>
#include <utility>

#include "actors/call_layout.hpp"
#include "actors/collective_relay_state.hpp"

namespace coppice::actors {
namespace {

using collectives::RankEdge;
using collectives::Stretch;
using collectives::TreeProgram;
using gpu::PeerMemory;
using gpu::PeerPlace;
using gpu::PeerStep;
using Kind = PeerStep::Kind;

constexpr std::int64_t kSlotGranule = 256, kPackBytes = 16;  // CUDA's alignment of what it allocates; a thread's load
constexpr int kNone = -1;

std::size_t index(std::int64_t at) { return static_cast<std::size_t>(at); }

// The program so far. Steps come in any order, with the time that each would have in the pipeline.
class Draft {
 public:
  Draft(const collectives::Program& program, std::int64_t window)
      : program_(program), window_(window), layout_(layout_of(program.operation)) {
    const auto ranks = index(program.ranks);
    out_.element = on_gpu(program.element);
    out_.reduction = on_gpu(program.reduction);
    out_.ranks = static_cast<int>(collectives::members_of(program).size());
    out_.input.resize(ranks);
    out_.output.resize(ranks);
    out_.landing.resize(ranks);
  }

  const collectives::Program& program() const { return program_; }
  std::int64_t window(const RankEdge& edge) const { return window_ > 0 ? window_ : window_of(program_, edge); }

  PeerPlace input(int rank, const Stretch& at) const {
    return {rank, PeerMemory::input, at.offset - begin(rank, layout_.in_is_part)};
  }
  PeerPlace output(int rank, const Stretch& at) const {
    return {rank, PeerMemory::output, at.offset - begin(rank, layout_.out_is_part)};
  }

  // Room for so many chunks on a rank; where it begins.
  std::int64_t reserve(int rank, std::int64_t chunks, std::int64_t stride) {
    return std::exchange(out_.landing[index(rank)], out_.landing[index(rank)] + chunks * stride);
  }

  // Copies over one link in one direction share a stream, whatever their tree and way; and so do a rank's kernels: GPUs
  // tell few streams apart (eight, unless CUDA_DEVICE_MAX_CONNECTIONS says more), and memory is their bound in any
  // case.
  int link_stream(int from, int to) { return stream({from, to}, from); }
  int own_stream(int rank) { return stream({rank, rank}, rank); }

  int add(std::int64_t time, PeerStep step) {
    std::erase(step.after, kNone);
    extend(step.to, step.bytes);
    if (step.kind != Kind::average) extend(step.from, step.bytes);
    if (step.kind == Kind::combine) extend(step.other, step.bytes);
    out_.steps.push_back(std::move(step));
    times_.push_back(time);
    return static_cast<int>(times_.size()) - 1;
  }

  // In the order of time; of one time, as they were added.
  gpu::PeerProgram sorted() && {
    std::vector<int> order(times_.size()), place(times_.size());
    std::iota(order.begin(), order.end(), 0);
    std::ranges::stable_sort(order, {}, [&](int step) { return times_[index(step)]; });
    std::vector<PeerStep> steps;
    steps.reserve(order.size());
    for (const int old : order) {
      place[index(old)] = static_cast<int>(steps.size());
      steps.push_back(std::move(out_.steps[index(old)]));
    }
    for (PeerStep& step : steps)
      for (int& other : step.after) other = place[index(other)];
    out_.steps = std::move(steps);
    return std::move(out_);
  }

 private:
  std::int64_t begin(int rank, bool is_part) const { return is_part ? collectives::part_of(program_, rank).offset : 0; }

  void extend(const PeerPlace& place, std::int64_t bytes) {
    if (place.memory == PeerMemory::landing) return;
    auto& size = (place.memory == PeerMemory::input ? out_.input : out_.output)[index(place.device)];
    size = std::max(size, place.offset + bytes);
  }

  int stream(const std::pair<int, int>& key, int device) {
    const auto [at, fresh] = streams_.emplace(key, static_cast<int>(out_.streams.size()));
    if (fresh) out_.streams.push_back(device);
    return at->second;
  }

  const collectives::Program& program_;
  std::int64_t window_;
  CallLayout layout_;
  gpu::PeerProgram out_;
  std::vector<std::int64_t> times_;
  std::map<std::pair<int, int>, int> streams_;
};

// One tree. Its times are of half hops: a chunk leaves a rank at an even one, and is combined at the odd one before.
class TreeDraft {
 public:
  TreeDraft(Draft& draft, const TreeProgram& tree) : draft_(draft), tree_(tree), at_(index(draft.program().ranks)) {
    for (auto edge = tree_.up.rbegin(); edge != tree_.up.rend(); ++edge) {
      at_[index(edge->from)].depth_up = at_[index(edge->to)].depth_up + 1;
      height_ = std::max(height_, at_[index(edge->from)].depth_up);
    }
    for (const RankEdge& edge : tree_.up) at_[index(edge.to)].children.push_back(lane(edge));
    for (const RankEdge& edge : tree_.down) {
      at_[index(edge.to)].depth_down = at_[index(edge.from)].depth_down + 1;
      if (!keeps(edge.to)) at_[index(edge.to)].passing = lane(edge);
    }
  }

  void run() {
    for (chunk_ = 0; chunk_ < collectives::chunk_count(tree_); ++chunk_) {
      stretch_ = collectives::chunk_at(tree_, chunk_);
      for (Rank& rank : at_) rank.known = {};
      for (const RankEdge& edge : tree_.up) go_up(edge);
      begin_at_root();
      for (const RankEdge& edge : tree_.down) go_down(edge);
    }
  }

 private:
  struct Lane {  // where an edge's chunks land
    std::int64_t begin = 0, stride = 0, window = 0;
    std::vector<std::vector<int>> freed;  // of each slot: the steps after which it may be written again
  };
  struct Ready {
    PeerPlace place;
    int step = kNone;  // after which it is there
  };
  struct Rank {
    int depth_up = 0, depth_down = 0;
    std::vector<int> children;  // lanes, in the tree's order
    int passing = kNone;        // lane of what is only passed on
    std::vector<int> arrived;   // of this chunk: the children's copies
    Ready known;                // of this chunk: the final bytes
  };

  bool keeps(int rank) const { return tree_.keeper < 0 || tree_.keeper == rank; }

  int lane(const RankEdge& edge) {
    Lane made;
    made.window = draft_.window(edge);
    // Room for a chunk that lies as the caller's does, so that both are read 16 bytes at a time.
    made.stride = (tree_.chunk_bytes + kPackBytes + kSlotGranule - 1) / kSlotGranule * kSlotGranule;
    made.begin = draft_.reserve(edge.to, made.window, made.stride);
    made.freed.resize(index(made.window));
    lanes_.push_back(std::move(made));
    return static_cast<int>(lanes_.size()) - 1;
  }
  PeerPlace slot(int rank, int lane) const {
    const Lane& at = lanes_[index(lane)];
    const auto past = draft_.input(rank, stretch_).offset % kPackBytes;
    return {rank, PeerMemory::landing, at.begin + chunk_ % at.window * at.stride + (past + kPackBytes) % kPackBytes};
  }
  std::vector<int>& freed(int lane) { return lanes_[index(lane)].freed[index(chunk_ % lanes_[index(lane)].window)]; }

  // The step that puts the chunk into a lane's slot, once that is free.
  int land(std::int64_t time, int from, const PeerPlace& to, const Ready& what, int lane) {
    auto after = std::exchange(freed(lane), {});
    after.push_back(what.step);
    return copy(time, draft_.link_stream(from, to.device), to, what.place, std::move(after));
  }
  int copy(std::int64_t time, int stream, const PeerPlace& to, const PeerPlace& from, std::vector<int> after) {
    return draft_.add(time, {Kind::copy, stream, to, from, {}, stretch_.bytes, std::move(after)});
  }

  std::int64_t leaves_up(int rank) const { return 2 * (chunk_ + height_ - at_[index(rank)].depth_up); }

  // The rank's own data and all that has come to it, at `to`, or where the first child's has landed. REQUIRES:
  // children.
  Ready combine(int rank, const PeerPlace* to) {
    Rank& own = at_[index(rank)];
    const PeerPlace sum = slot(rank, own.children[0]);
    int done = own.arrived[0];
    for (std::size_t child = 0; child < own.children.size(); ++child) {
      const bool last = child + 1 == own.children.size();
      const PeerPlace other = child == 0 ? draft_.input(rank, stretch_) : slot(rank, own.children[child]);
      done = draft_.add(leaves_up(rank) - 1, {Kind::combine,
                                              draft_.own_stream(rank),
                                              last && to ? *to : sum,
                                              sum,
                                              other,
                                              stretch_.bytes,
                                              {done, child == 0 ? kNone : own.arrived[child]}});
      if (child > 0) freed(own.children[child]) = {done};
    }
    if (to) freed(own.children[0]) = {done};
    own.arrived.clear();
    return {to ? *to : sum, done};
  }

  void go_up(const RankEdge& edge) {
    const Rank& from = at_[index(edge.from)];
    const bool leaf = from.children.empty();
    const Ready what = leaf ? Ready{draft_.input(edge.from, stretch_)} : combine(edge.from, nullptr);
    Rank& to = at_[index(edge.to)];
    const int lane = to.children[to.arrived.size()];
    const int step = land(leaves_up(edge.from), edge.from, slot(edge.to, lane), what, lane);
    if (!leaf) freed(from.children[0]) = {step};
    to.arrived.push_back(step);
  }

  void begin_at_root() {
    const int root = tree_.root;
    Rank& own = at_[index(root)];
    const PeerPlace out = draft_.output(root, stretch_);
    if (!own.children.empty()) {
      own.known = combine(root, keeps(root) ? &out : nullptr);
      if (!keeps(root)) freed(own.children[0]) = {own.known.step};
      if (draft_.program().reduction == collectives::Reduction::avg)
        own.known.step = draft_.add(
            leaves_up(root) - 1,
            {Kind::average, draft_.own_stream(root), own.known.place, {}, {}, stretch_.bytes, {own.known.step}});
    } else if (tree_.known_at_root) {
      own.known = {out};
    } else {
      own.known = {draft_.input(root, stretch_)};
      if (keeps(root)) copy(leaves_up(root) - 1, draft_.own_stream(root), out, own.known.place, {});
    }
  }

  void go_down(const RankEdge& edge) {
    Rank &from = at_[index(edge.from)], &to = at_[index(edge.to)];
    const std::int64_t time = 2 * (chunk_ + height_ + from.depth_down);
    if (keeps(edge.to)) {
      to.known.place = draft_.output(edge.to, stretch_);
      to.known.step =
          copy(time, draft_.link_stream(edge.from, edge.to), to.known.place, from.known.place, {from.known.step});
    } else {
      to.known.place = slot(edge.to, to.passing);
      to.known.step = land(time, edge.from, to.known.place, from.known, to.passing);
    }
    // Whatever else it holds, a slot that was sent from is free when all have it.
    if (from.known.place.memory != PeerMemory::landing) return;
    freed(edge.from == tree_.root ? from.children[0] : from.passing).push_back(to.known.step);
  }

  Draft& draft_;
  const TreeProgram& tree_;
  int height_ = 0;
  std::vector<Rank> at_;
  std::vector<Lane> lanes_;
  std::int64_t chunk_ = 0;
  Stretch stretch_;
};

}  // namespace

gpu::Element on_gpu(collectives::Element element) {
  switch (element) {
    case collectives::Element::float32:
      return gpu::Element::float32;
    case collectives::Element::float16:
      return gpu::Element::float16;
    case collectives::Element::bfloat16:
      return gpu::Element::bfloat16;
    case collectives::Element::int32:
      return gpu::Element::int32;
    case collectives::Element::int64:
      return gpu::Element::int64;
    case collectives::Element::bytes:
      return gpu::Element::bytes;
  }
  return gpu::Element::bytes;
}

gpu::Reduction on_gpu(collectives::Reduction reduction) {
  switch (reduction) {
    case collectives::Reduction::sum:
      return gpu::Reduction::sum;
    case collectives::Reduction::min:
      return gpu::Reduction::min;
    case collectives::Reduction::max:
      return gpu::Reduction::max;
    case collectives::Reduction::avg:
      return gpu::Reduction::avg;
  }
  return gpu::Reduction::sum;
}

gpu::PeerProgram peer_program(const collectives::Program& program, std::int64_t window) {
  Draft draft(program, window);
  for (const TreeProgram& tree : program.trees) TreeDraft(draft, tree).run();
  // No tree carries the root's own part.
  const bool gathers = program.operation == collectives::Operation::gather;
  if (gathers || program.operation == collectives::Operation::scatter) {
    const Stretch own = collectives::part_of(program, program.root);
    const auto in = draft.input(program.root, own), out = draft.output(program.root, own);
    if (own.bytes > 0) draft.add(0, {Kind::copy, draft.own_stream(program.root), out, in, {}, own.bytes});
  }
  return std::move(draft).sorted();
}

}  // namespace coppice::actors
