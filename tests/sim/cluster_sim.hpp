// tests/sim/cluster_sim.hpp: a gateway and its workers, the real actors, in one thread and in virtual time.
//
// Everything that is left to chance in a real cluster is drawn here from one seed: which actor runs next, how long a
// frame takes, which one is lost. Frames are events in a queue; between two events time stands still. The network is
// what ZeroMQ promises over TCP: in order on each link, and now and then gone. Faults are values: a list drives a run.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "coding/decoder.hpp"
#include "tests/sim/faults.hpp"

namespace sim {

namespace coding = coppice::coding;

// ---- the cluster ---------------------------------------------------------------------------------------------------

// Bugs that the harness can plant, to see that the invariants would find them.
enum class Planted { none, answers_twice, never_answers, hides_degraded, answers_late, wrong_label };

struct ClusterOptions {
  std::uint64_t seed = 1;
  coding::CodeShape shape{6, 4};  // of one block, where there are blocks
  int blocks = 0;         // 0: one code over all workers; else each block has a class for each of its k workers
  bool gateway_heads = false;  // the gateway heads all blocks: the flat gather of the same workers
  bool grouped = false;  // k workers with a group of classes each and n - k with all; else each has one harmonic row
  Duration deadline = std::chrono::milliseconds{50};
  Duration settle = std::chrono::milliseconds{100}, patience = std::chrono::seconds{1};
  std::size_t in_flight_max = 1'024;
  std::size_t bundle_bytes = 3'000;
  std::uint32_t chunk_bytes = 256;
  int failing_plans = 0;  // so many broadcasts find no tree at first
  Planted planted = Planted::none;
};

// One request, as the client and the wire saw it. The client's own link loses nothing.
struct Asked {
  std::uint64_t tag = 0;
  Floats item;
  bool well_formed = true;
  Instant sent;
  struct Answer { Instant left, arrived; InferReply reply; };
  std::vector<Answer> answers;
};

class Cluster {
 public:
  explicit Cluster(const ClusterOptions& options);
  ~Cluster();
  Cluster(const Cluster&) = delete;
  Cluster& operator=(const Cluster&) = delete;

  void start();                                 // every worker, at about the same time
  void start(int worker);
  int workers() const;
  void strike(const Fault& fault);              // now
  void schedule(const std::vector<TimedFault>& faults);
  void heal();                                  // ends all faults; every worker comes back
  void ask(bool well_formed = true);            // one request, now
  void ask_until(Instant end, Duration gap);    // an open loop: gaps are exponential around `gap`
  void run_until(Instant end);
  void run_for(Duration time);
  Instant now() const;

  std::string status();                         // the JSON that a client is given
  // Everything that was promised and not kept, in words. REQUIRES: nothing is in flight any more.
  std::vector<std::string> broken_promises();
  // Serving frames that left the gateway and that reached it so far.
  struct Traffic { std::uint64_t out = 0, in = 0; };
  Traffic gateway_traffic() const;
  std::uint64_t trace() const;                  // a hash of every event so far with its time
  Random& random();

  const std::vector<Asked>& asked() const;
  std::map<ReplyStatus, int> statuses() const;
  const std::set<std::string>& refusals() const;  // why workers refused their weights

 private:
  struct Inside;
  std::unique_ptr<Inside> in_;
};

}  // namespace sim
