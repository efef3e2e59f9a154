// runtime/prober.hpp: measures the links between the hosts of a cluster, over the transport that will use them.
//
// Every host runs a Prober over its transport. The first host of the cluster file leads: it asks a Survey what to measure
// next, tells the senders, and in the end tells everyone the topology.
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "actors/probe_agent.hpp"
#include "collectives/survey.hpp"
#include "runtime/cluster.hpp"
#include "runtime/error.hpp"
#include "runtime/transport.hpp"

namespace coppice::runtime {

struct ProberOptions {
  Cluster cluster;
  std::string name;                              // of the host that this process is
  std::optional<collectives::Topology> declared;  // its links are measured; otherwise every pair
  bool alone = false;                            // as SurveyOptions::alone
  std::chrono::milliseconds start_patience{20'000};  // for all hosts to be there
  std::chrono::milliseconds patience{15'000};        // for one measure, and for the leader's next word
  actors::ProbeAgentOptions agent;
  std::function<void(const std::string&)> progress;  // at the leader: a line before each round; may be empty
};

struct ProbeOutcome {
  collectives::Topology topology;
  std::optional<collectives::SurveyReport> report;  // at the leader
};

class Prober {
 public:
  explicit Prober(ProberOptions options);
  // For each ProbeNote that the transport delivers, from its first moment on.
  void deliver(actors::Delivery delivery);
  // Blocks until all is measured. Errors: at the leader, no second host is there; at others, the leader is gone, or why it
  // has no topology. What else could not be measured is among the report's faults.
  Expected<ProbeOutcome> run(std::shared_ptr<Transport> transport);

 private:
  using Lock = std::unique_lock<std::mutex>;
  Expected<ProbeOutcome> lead(Lock& lock);
  Expected<ProbeOutcome> follow(Lock& lock);
  std::vector<collectives::Measured> measure(Lock& lock, const collectives::SurveyRound& round);
  void look_for(Lock& lock, const std::set<std::string>& hosts, std::chrono::milliseconds patience);
  bool wait(Lock& lock, std::chrono::milliseconds patience, const std::function<bool()>& over);
  void take(actors::Delivery delivery);
  void send(std::vector<actors::Outgoing> out);
  void tell_all(const decltype(actors::ProbeNote::note)& note);
  void say(const std::string& line) const;

  ProberOptions options_;
  std::string leader_;
  std::mutex mutex_;  // guards all below
  std::condition_variable changed_;
  actors::ProbeAgent agent_;
  std::shared_ptr<Transport> transport_;
  std::vector<actors::Delivery> early_;  // what came before there was a transport
  std::optional<actors::SurveyOver> over_;
  actors::Instant leader_heard_{};
  // at the leader
  std::set<std::string> here_;  // who has answered the last Hello
  std::set<std::string> gone_;
  std::uint64_t next_measure_ = 1;
  std::map<std::uint64_t, actors::MeasureDone> done_;
};

struct ProbeOptions {
  Cluster cluster;
  std::string name;
  bool alone = false;
  std::chrono::milliseconds measure{1'200};  // as actors::probe_timing
  std::chrono::milliseconds start_patience{20'000};
  std::function<void(const std::string&)> progress;
};

// One host's part, over a transport of its own: the links of the cluster's topology file where it names one, otherwise every
// pair of its hosts. Errors: those of Prober::run, a wrong topology file, missing keys, a port that is taken.
Expected<ProbeOutcome> probe(ProbeOptions options);

}  // namespace coppice::runtime
