// runtime/client.hpp: asks a running cluster. Embed this, or use `coppice infer`.
//
//   auto client = Client::connect(cluster, {});
//   auto reply = client->infer(item, 1s);
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "actors/messages.hpp"
#include "runtime/cluster.hpp"
#include "runtime/error.hpp"

namespace coppice::runtime {

struct ClientOptions {
  std::string identity = "client";  // the member of the key directory that it speaks as
};

// One connection to the gateway. One thread at a time.
class Client {
 public:
  static Expected<std::unique_ptr<Client>> connect(const Cluster& cluster, const ClientOptions& options);
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  // One item, answered or failed within `patience`. item: float32, the net's input, normalised. A degraded reply is a
  // reply; its status says so. Errors: the gateway did not answer in time.
  Expected<actors::InferReply> infer(std::span<const float> item, std::chrono::milliseconds patience,
                                     bool record = false);

  // The same in two halves, for many items in flight. send returns the tag that the reply will bear.
  std::uint64_t send(std::span<const float> item, bool record);
  std::optional<actors::InferReply> receive(std::chrono::microseconds patience);

  // The cluster's status as JSON text.
  Expected<std::string> status(std::chrono::milliseconds patience);
  // Strikes the workers with faults ("" ends them). Error: the gateway's reason.
  Expected<void> faults(const std::string& spec, std::chrono::milliseconds patience);

  // Waits until every worker is ready. Error: names those that are not, with their reasons.
  Expected<void> wait_ready(std::chrono::milliseconds patience);

 private:
  struct Socket;
  explicit Client(std::unique_ptr<Socket> socket);
  Expected<actors::TextReply> ask(actors::DataMessage question, std::uint64_t tag, std::chrono::milliseconds patience,
                                  const std::string& what);
  std::unique_ptr<Socket> socket_;
};

}  // namespace coppice::runtime
