// tests/sim/group_sim.hpp: the ranks of a group that calls collective operations: the real communicators and relays, in
// one thread and in virtual time.
//
// One seed draws which actor runs next and how long a frame takes. A connection is what ZeroMQ's is: in order; what waits
// in it when the other end is gone or the link is cut waits on, and is read only when it leaves. A caller overwrites its
// buffers the moment that it has its result: who reads them later reads rubbish, and contents are checked.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "actors/communicator.hpp"
#include "collectives/topology.hpp"
#include "tests/sim/faults.hpp"

namespace sim {

namespace collectives = coppice::collectives;

struct GroupOptions {
  std::uint64_t seed = 1;
  std::string topology = "complete-4";  // a built-in one: capacities are taken for MB/s
  Duration latency_min = std::chrono::microseconds{50}, latency_max = std::chrono::microseconds{500};
  Duration patience = std::chrono::seconds{60};
  OnLoss on_loss = OnLoss::fail;
};

// What one rank's caller was told.
struct Outcome {
  std::optional<CallResult> result;
  Instant made, told;
  std::int64_t wrong = 0;  // elements that are not as the contributions of `ranks` make them
};

class Group {
 public:
  explicit Group(const GroupOptions& options);
  ~Group();
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  int size() const;
  std::string name(int rank) const;
  // The rank makes its next call, of so many int64 elements in all.
  void call(int rank, collectives::Operation operation, std::int64_t elements, int root = 0,
            collectives::Reduction reduction = collectives::Reduction::sum);
  // All living ranks do, each at some moment within `spread`.
  void call_all(collectives::Operation operation, std::int64_t elements, int root = 0, Duration spread = {},
                collectives::Reduction reduction = collectives::Reduction::sum);

  void at(Duration from_now, std::function<void()> happens);
  void kill(int rank);             // the process is gone, and what it had not sent
  void restart(int rank);          // another process has its name
  void cut(int a, int b);          // nothing passes between the two any more
  void heal(int a, int b);
  void reset(int from, int to);    // what is on its way is lost; the connections are new ones
  void end_a_relay(int rank);
  // Hands a frame to a rank as if `from` had sent it.
  void forge(int from, int to, DataMessage message);

  void run_for(Duration time);
  // Until every call of the living is over, at most so long; whether they are.
  bool finish(Duration at_most);
  bool alive(int rank) const;
  Instant now() const;
  Random& random();
  // Of the rank's calls, in order.
  std::vector<Outcome> outcomes(int rank) const;
  std::vector<std::pair<int, int>> links() const;  // pairs of ranks with a link of their own

 private:
  struct Inside;
  std::unique_ptr<Inside> in_;
};

}  // namespace sim
