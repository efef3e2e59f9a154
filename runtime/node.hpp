// runtime/node.hpp: one process of a cluster: a gateway or a worker, as the cluster file says.
#pragma once

#include <memory>
#include <string>

#include "runtime/cluster.hpp"
#include "runtime/control.hpp"
#include "runtime/error.hpp"

namespace coppice::runtime {

struct NodeOptions {
  Cluster cluster;
  std::string name;  // of the host that this process is
  ControlOptions control;
};

// A running node. The destructor stops its actors, then its sockets.
class Node {
 public:
  // Errors: unknown host, missing keys, a port in use, a model that does not fit the cluster's code.
  static Expected<std::unique_ptr<Node>> start(NodeOptions options);
  ~Node();
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;

 private:
  struct Parts;
  explicit Node(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

// Starts a node, says so on standard error, and returns after SIGINT or SIGTERM has stopped it.
// REQUIRES: called on the main thread before any other thread was started.
Expected<void> run_node(NodeOptions options);

}  // namespace coppice::runtime
