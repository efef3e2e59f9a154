// apps/plan_deploy.hpp: which relay actors a plan puts on which hosts of a cluster.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "collectives/plan.hpp"
#include "runtime/cluster.hpp"

namespace coppice::apps {

// One relay actor: it takes chunks from its parent's relay and passes them to those of which it is the parent.
struct Relay {
  std::string name;  // of the actor: "tree0.h1"
  std::string host;
  std::string address;
  std::uint16_t port;
  int parent;  // index in the chain, -1 for the root's
  std::vector<int> children;  // so too
  // The ends of the link by which it hears from its parent; empty: any address of the two hosts.
  std::string from_address, to_address;
};

// The chain of one tree in the order in which it is spawned: a parent before its children.
struct RelayChain {
  std::size_t tree;
  std::string way;  // "broadcast" or "reduce": an allreduce tree of one way for both has one chain, "both"
  collectives::Rational rate;
  collectives::Rational share;  // of the whole buffer
  std::vector<Relay> relays;
};

// Trees are numbered from `first` on. Errors: bad_input where the topology has a host that the cluster has not.
runtime::Expected<std::vector<RelayChain>> deploy(const collectives::Plan& plan, const collectives::Topology& topology,
                                                  const runtime::Cluster& cluster, std::size_t first = 0);

nlohmann::json to_json(const std::vector<RelayChain>& chains);
std::string to_text(const std::vector<RelayChain>& chains);

}  // namespace coppice::apps
