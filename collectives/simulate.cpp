#include "collectives/simulate.hpp"

#include <algorithm>
#include <bit>
#include <functional>
#include <map>
#include <queue>
#include <set>

#include "collectives/program.hpp"
#include "collectives/schedule.hpp"

namespace coppice::collectives {
namespace {

using Pair = std::pair<int, int>;

std::size_t index(int at) { return static_cast<std::size_t>(at); }

std::map<Pair, double> capacities(const Topology& topology) {
  std::map<Pair, double> capacity;
  for (const Link& link : topology.links) {
    capacity[{link.from, link.to}] += link.capacity.get_d();
    if (link.duplex) capacity[{link.to, link.from}] += link.capacity.get_d();
  }
  return capacity;
}

// The last arrivals of every host's data so far: what its next message waits for.
class Messages {
 public:
  Messages(const Topology& topology, std::vector<int> hosts) : hosts_(std::move(hosts)), last_(hosts_.size()) {
    for (const auto& [pair, capacity] : capacities(topology)) leaving_[pair.first].emplace_back(pair.second, capacity);
    for (std::size_t node = 0; node < topology.nodes.size(); ++node) {
      is_switch_.push_back(topology.nodes[node].is_switch);
    }
  }

  int count() const { return static_cast<int>(hosts_.size()); }

  // All of one round: each waits for what its sender had before the round.
  struct Message {
    int from;
    int to;
    double bytes;
  };

  void round(const std::vector<Message>& messages) {
    std::vector<std::vector<int>> next = last_;
    for (const Message& message : messages) {
      if (message.bytes <= 0) continue;
      const int sent = static_cast<int>(transfers_.size());
      transfers_.push_back(
          {path(hosts_[index(message.from)], hosts_[index(message.to)]), message.bytes, last_[index(message.from)]});
      next[index(message.to)].push_back(sent);
    }
    // A host goes on when its own message is on its way and the others' have arrived: only the arrivals count.
    for (std::size_t host = 0; host < next.size(); ++host) {
      if (next[host].size() > last_[host].size()) {
        next[host].erase(next[host].begin(), next[host].begin() + static_cast<std::ptrdiff_t>(last_[host].size()));
      }
    }
    last_ = std::move(next);
  }

  std::vector<Transfer> take() { return std::move(transfers_); }

 private:
  // Fewest hops, then widest; through other hosts where there is no other way.
  std::vector<int> path(int from, int to) {
    auto& known = paths_[{from, to}];
    if (!known.empty()) return known;
    std::map<int, std::pair<int, double>> best;  // hops, -width
    std::map<int, int> before;
    std::vector<int> level = {from};
    best[from] = {0, -1e300};
    for (int hops = 1; !level.empty() && !best.contains(to); ++hops) {
      std::vector<int> next;
      for (const int node : level) {
        for (const auto& [neighbour, capacity] : leaving_[node]) {
          const double width = std::min(-best[node].second, capacity);
          const auto found = best.find(neighbour);
          if (found != best.end() && (found->second.first < hops || -found->second.second >= width)) continue;
          if (found == best.end()) next.push_back(neighbour);
          best[neighbour] = {hops, -width};
          before[neighbour] = node;
        }
      }
      level = std::move(next);
    }
    std::vector<int> way = {to};
    while (way.back() != from) way.push_back(before.at(way.back()));
    std::ranges::reverse(way);
    known = way;
    return way;
  }

  std::vector<int> hosts_;
  std::vector<bool> is_switch_;
  std::map<int, std::vector<std::pair<int, double>>> leaving_;
  std::map<Pair, std::vector<int>> paths_;
  std::vector<std::vector<int>> last_;  // [hosts]
  std::vector<Transfer> transfers_;
};

void ring(Messages& messages, double bytes) {
  const int count = messages.count();
  for (int round = 0; round < 2 * (count - 1); ++round) {
    std::vector<Messages::Message> all;
    for (int host = 0; host < count; ++host) all.push_back({host, (host + 1) % count, bytes / count});
    messages.round(all);
  }
}

void halve_and_double(Messages& messages, double bytes, bool whole_buffers) {
  const int power = static_cast<int>(std::bit_floor(static_cast<unsigned>(messages.count())));
  std::vector<Messages::Message> before;
  std::vector<Messages::Message> after;
  for (int host = power; host < messages.count(); ++host) {
    before.push_back({host, host - power, bytes});
    after.push_back({host - power, host, bytes});
  }
  messages.round(before);
  const auto exchange = [&](int distance, double amount) {
    std::vector<Messages::Message> all;
    for (int host = 0; host < power; ++host) all.push_back({host, host ^ distance, amount});
    messages.round(all);
  };
  if (whole_buffers) {
    for (int distance = 1; distance < power; distance *= 2) exchange(distance, bytes);
  } else {
    double amount = bytes / 2;
    for (int distance = power / 2; distance >= 1; distance /= 2, amount /= 2) exchange(distance, amount);
    for (int distance = 1; distance < power; distance *= 2) {
      amount *= 2;
      exchange(distance, amount);
    }
  }
  messages.round(after);
}

// The transfers of one chunk along one tree.
class ChunkWay {
 public:
  ChunkWay(const Plan& plan, const Tree& tree, double bytes, std::vector<Transfer>& transfers)
      : bytes_(bytes), transfers_(transfers) {
    const bool inward = plan.operation == Operation::reduce || plan.operation == Operation::reduce_scatter;
    if (plan.operation == Operation::gather) {
      for (auto edge = tree.edges.rbegin(); edge != tree.edges.rend(); ++edge) send(*edge, true);
    } else if (inward || plan.operation == Operation::allreduce) {
      if (tree.reduce_edges.empty()) {
        for (auto edge = tree.edges.rbegin(); edge != tree.edges.rend(); ++edge) send(*edge, true);
      } else {
        for (const TreeEdge& edge : tree.reduce_edges) send(edge, false);
      }
    }
    if (inward || plan.operation == Operation::gather) return;
    for (const TreeEdge& edge : tree.edges) send(edge, false);
  }

 private:
  void send(const TreeEdge& edge, bool backwards) {
    Transfer transfer{
        .path = edge.path.empty() ? std::vector{edge.from, edge.to} : edge.path, .bytes = bytes_, .after = {}};
    if (backwards) std::ranges::reverse(transfer.path);
    transfer.after = arrived_[transfer.path.front()];
    arrived_[transfer.path.back()].push_back(static_cast<int>(transfers_.size()));
    transfers_.push_back(std::move(transfer));
  }

  double bytes_;
  std::vector<Transfer>& transfers_;
  std::map<int, std::vector<int>> arrived_;  // by node
};

// Chunk by chunk in turn, so that among equals no tree waits for the whole of another.
std::vector<Transfer> in_turn(const Plan& plan, const Schedule& shares, const std::vector<Chunking>& chunkings) {
  std::int64_t most = 0;
  for (const Chunking& each : chunkings) most = std::max(most, each.count);
  std::vector<Transfer> transfers;
  for (std::int64_t chunk = 0; chunk < most; ++chunk) {
    for (std::size_t tree = 0; tree < plan.trees.size(); ++tree) {
      if (chunk >= chunkings[tree].count) continue;
      const ChunkRange range = chunk_range(chunkings[tree], shares.trees[tree].bytes, chunk);
      ChunkWay(plan, plan.trees[tree], static_cast<double>(range.bytes), transfers);
    }
  }
  return transfers;
}

}  // namespace

double simulate(const Topology& topology, const std::vector<Transfer>& transfers, const LinkModel& model) {
  const auto capacity = capacities(topology);
  std::map<Pair, double> free_at;
  std::vector<std::vector<int>> then(transfers.size());
  std::vector<int> waits(transfers.size(), 0);
  std::vector<double> ready(transfers.size(), 0);
  std::vector<double> through(transfers.size(), 0);  // when the last byte is through the links that it has begun on
  struct Event {
    double time;
    int transfer;
    std::size_t hop;  // index into the path of the link's far end
    auto operator<=>(const Event&) const = default;
  };
  std::priority_queue<Event, std::vector<Event>, std::greater<>> open;
  // What waits for a link to be free, the next one first. That one alone asks again: all of them would, at every chunk.
  using Waiter = std::pair<int, std::size_t>;  // transfer and hop
  std::map<Pair, std::set<Waiter>> queues;
  std::vector<double> asks_at(transfers.size(), -1);
  const auto ask_next = [&](const Pair& link, double now) {
    const auto& queue = queues[link];
    if (queue.empty()) return;
    const auto [transfer, hop] = *queue.begin();
    const double when = std::max(free_at[link], now);
    if (std::exchange(asks_at[index(transfer)], when) != when) open.push({when, transfer, hop});
  };
  std::vector<std::size_t> next_hop(transfers.size(), 1);
  for (std::size_t at = 0; at < transfers.size(); ++at) {
    waits[at] = static_cast<int>(transfers[at].after.size());
    for (const int before : transfers[at].after) then[index(before)].push_back(static_cast<int>(at));
    if (waits[at] == 0) open.push({0.0, static_cast<int>(at), 1});
  }
  double last = 0;
  while (!open.empty()) {
    const Event event = open.top();
    open.pop();
    if (event.hop != next_hop[index(event.transfer)]) continue;  // it was asked twice, and has begun
    const Transfer& transfer = transfers[index(event.transfer)];
    const Pair link{transfer.path[event.hop - 1], transfer.path[event.hop]};
    const auto takes_on = [&](const Pair& each) {
      return (transfer.bytes + model.overhead_bytes) / (capacity.at(each) * model.unit_bytes_per_s);
    };
    double begin = std::max(event.time, free_at[link]);
    if (event.hop == 1) {
      for (std::size_t hop = 2; hop < transfer.path.size(); ++hop) {
        const Pair later{transfer.path[hop - 1], transfer.path[hop]};
        begin = std::max(begin, free_at[later] - model.queue_bytes / (capacity.at(later) * model.unit_bytes_per_s));
      }
    }
    auto& queue = queues[link];
    const Waiter self{event.transfer, event.hop};
    if (begin > event.time) {
      if (begin > free_at[link]) {  // a later link is full: others may begin before, and it asks again by itself
        open.push({begin, event.transfer, event.hop});
        if (queue.erase(self) > 0) ask_next(link, event.time);
      } else if (queue.insert(self); self == *queue.begin()) {
        ask_next(link, event.time);
      }
      continue;
    }
    queue.erase(self);
    ++next_hop[index(event.transfer)];
    const double takes = takes_on(link);
    free_at[link] = event.time + takes;
    ask_next(link, event.time);
    double& done = through[index(event.transfer)];
    done = std::max(done, event.time + takes);
    if (event.hop + 1 < transfer.path.size()) {
      open.push({event.time, event.transfer, event.hop + 1});
      continue;
    }
    const double arrived = done + model.latency_s;
    last = std::max(last, arrived);
    for (const int next : then[index(event.transfer)]) {
      ready[index(next)] = std::max(ready[index(next)], arrived);
      if (--waits[index(next)] == 0) open.push({ready[index(next)], next, 1});
    }
  }
  return last;
}

std::vector<Transfer> transfers_of(const Plan& plan, std::int64_t bytes, const LinkModel& model, int chunks_max) {
  const Schedule times =
      schedule(plan, {.bytes = bytes, .latency_s = model.latency_s, .unit_bytes_per_s = model.unit_bytes_per_s});
  std::vector<Chunking> chunkings;
  for (const TreeSchedule& tree : times.trees) {
    const std::int64_t count = std::min<std::int64_t>(tree.chunking.count, chunks_max);
    chunkings.push_back(count == 0 ? Chunking{} : chunking(tree.bytes, (tree.bytes + count - 1) / count));
  }
  return in_turn(plan, times, chunkings);
}

std::vector<Transfer> transfers_in_chunks(const Plan& plan, std::int64_t bytes, std::int64_t chunks) {
  const Schedule shares = schedule(plan, {.bytes = bytes, .latency_s = 0, .unit_bytes_per_s = 1});
  std::vector<Chunking> chunkings;
  for (const TreeSchedule& tree : shares.trees) {
    const std::int64_t wanted = (tree.bytes + chunks - 1) / std::max<std::int64_t>(chunks, 1);
    chunkings.push_back(tree.bytes == 0 ? Chunking{} : chunking(tree.bytes, std::clamp<std::int64_t>(wanted, 1, kChunkBytesMax)));
  }
  return in_turn(plan, shares, chunkings);
}

std::vector<Transfer> classic_allreduce(Classic classic, const Topology& topology, std::int64_t bytes) {
  Messages messages(topology, hosts(topology));
  const auto amount = static_cast<double>(bytes);
  if (classic == Classic::ring) {
    ring(messages, amount);
  } else {
    halve_and_double(messages, amount, classic == Classic::recursive_doubling);
  }
  return messages.take();
}

}  // namespace coppice::collectives
