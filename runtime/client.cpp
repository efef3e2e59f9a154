#include "runtime/client.hpp"

#include <deque>
#include <nlohmann/json.hpp>
#include <thread>

#include "runtime/sockets.hpp"
#include "runtime/wire.hpp"

namespace coppice::runtime {
namespace {

using Clock = std::chrono::steady_clock;
using namespace actors;

}  // namespace

struct Client::Socket {
  zmq::context_t context{1};
  zmq::socket_t socket{context, zmq::socket_type::dealer};
  std::string gateway;  // "gw at 127.0.0.1:7000"
  std::uint64_t tags = 0;
  std::deque<InferReply> early;  // replies that came while something else was waited for

  void send(const DataMessage& message) {
    auto frame = encode(message);
    (void)send_frame(socket, frame);  // the queue to a gateway that is away is full: the reply's deadline will tell
  }

  // The next message before `until`; frames that are malformed are passed over.
  std::optional<DataMessage> receive(Clock::time_point until) {
    for (;;) {
      Parts in;
      while (receive_parts(socket, in)) {
        if (auto message = decode_parts(in, 0)) return std::move(*message);
      }
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now());
      if (left.count() <= 0) return std::nullopt;
      zmq::pollitem_t item{socket.handle(), 0, ZMQ_POLLIN, 0};
      try {
        zmq::poll(&item, 1, left);
      } catch (const zmq::error_t& fault) {
        if (fault.num() != EINTR) throw;
      }
    }
  }
};

Client::Client(std::unique_ptr<Socket> socket) : socket_(std::move(socket)) {}
Client::~Client() = default;

Expected<std::unique_ptr<Client>> Client::connect(const Cluster& cluster, const ClientOptions& options) {
  auto identity = load_identity(cluster.keys, options.identity);
  if (!identity) return tl::unexpected(identity.error());
  auto allow = load_allow_list(cluster.keys);
  if (!allow) return tl::unexpected(allow.error());
  const auto& host = cluster.gateway();
  auto key = public_key_of(*allow, host.name);
  if (!key) return tl::unexpected(key.error());
  auto socket = std::make_unique<Socket>();
  socket->gateway = host.name + " at " + host.address + ":" + std::to_string(host.port);
  try {
    set_limits(socket->socket, {});
    be_curve_client(socket->socket, *identity, *key);
    socket->socket.connect(tcp_endpoint(host.address, host.port));
  } catch (const zmq::error_t& fault) {
    return failed("cannot reach " + socket->gateway + ": " + fault.what());
  }
  return std::unique_ptr<Client>(new Client(std::move(socket)));
}

std::uint64_t Client::send(std::span<const float> item, bool record) {
  const std::uint64_t tag = ++socket_->tags;
  socket_->send(InferRequest{tag, record, std::make_shared<const Floats>(item.begin(), item.end())});
  return tag;
}

std::optional<InferReply> Client::receive(std::chrono::microseconds patience) {
  if (!socket_->early.empty()) {
    auto reply = std::move(socket_->early.front());
    socket_->early.pop_front();
    return reply;
  }
  const auto until = Clock::now() + patience;
  while (auto message = socket_->receive(until))
    if (auto* reply = std::get_if<InferReply>(&*message)) return std::move(*reply);
  return std::nullopt;
}

Expected<InferReply> Client::infer(std::span<const float> item, std::chrono::milliseconds patience, bool record) {
  const auto tag = send(item, record);
  const auto until = Clock::now() + patience;
  while (auto message = socket_->receive(until)) {
    auto* reply = std::get_if<InferReply>(&*message);
    if (reply && reply->tag == tag) return std::move(*reply);  // others belong to requests given up earlier
  }
  return failed(socket_->gateway + " did not answer within " + std::to_string(patience.count()) +
                " ms; see `coppice status`");
}

Expected<TextReply> Client::ask(DataMessage question, std::uint64_t tag, std::chrono::milliseconds patience,
                                const std::string& what) {
  socket_->send(question);
  const auto until = Clock::now() + patience;
  while (auto message = socket_->receive(until)) {
    if (auto* text = std::get_if<TextReply>(&*message); text && text->tag == tag) return std::move(*text);
    if (auto* reply = std::get_if<InferReply>(&*message)) socket_->early.push_back(std::move(*reply));
  }
  return failed(socket_->gateway + " did not answer to " + what + " within " + std::to_string(patience.count()) +
                " ms: is it running, and is this key of its cluster?");
}

Expected<std::string> Client::status(std::chrono::milliseconds patience) {
  const auto tag = ++socket_->tags;
  auto reply = ask(StatusRequest{tag}, tag, patience, "a status request");
  if (!reply) return tl::unexpected(reply.error());
  return std::move(reply->text);
}

Expected<void> Client::faults(const std::string& spec, std::chrono::milliseconds patience) {
  const auto tag = ++socket_->tags;
  const auto reply = ask(FaultRequest{tag, spec}, tag, patience, "a fault request");
  if (!reply) return tl::unexpected(reply.error());
  if (!reply->error.empty()) return bad_input(reply->error);
  return {};
}

Expected<void> Client::wait_ready(std::chrono::milliseconds patience) {
  const auto until = Clock::now() + patience;
  std::string missing = socket_->gateway + " does not answer";
  while (Clock::now() < until) {
    const auto text = status(std::chrono::milliseconds{300});
    if (text) {
      const auto json = nlohmann::json::parse(*text, nullptr, false);
      if (json.is_object() && json.value("ready", false)) return {};
      missing.clear();
      if (json.is_object())
        for (const auto& worker : json.value("workers", nlohmann::json::array()))
          if (worker.value("state", "") != "ready")
            missing += (missing.empty() ? "" : ", ") + worker.value("name", "?") + " is " + worker.value("state", "?") +
                       (worker.value("reason", "").empty() ? "" : " (" + worker.value("reason", "") + ")");
      std::this_thread::sleep_for(std::chrono::milliseconds{20});
    }
  }
  return failed(missing);
}

}  // namespace coppice::runtime
