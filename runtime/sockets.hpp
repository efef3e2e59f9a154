// runtime/sockets.hpp: how every ZeroMQ socket of the project is set up: the defaults are unbounded in all four ways that
// matter (message size, heartbeat, linger, handshake).
#pragma once

#include <cerrno>
#include <string>
#include <vector>
#include <zmq.hpp>

#include "actors/messages.hpp"
#include "runtime/error.hpp"
#include "runtime/keys.hpp"
#include "runtime/wire.hpp"

namespace coppice::runtime {

struct SocketLimits {
  int heartbeat_ms = 500;
  int frames_max = 4'096;
};

// Limits for both ends; then one of the two roles.
void set_limits(zmq::socket_t& socket, const SocketLimits& limits);
void be_curve_server(zmq::socket_t& socket, const Identity& identity);
void be_curve_client(zmq::socket_t& socket, const Identity& identity, const std::string& server_public_key);

std::string tcp_endpoint(const std::string& address, std::uint16_t port);

// ZeroMQ's calls say EINTR when a signal comes, even those that do not wait; nothing has happened then.
template <class Call>
auto retried(const Call& call) {
  for (;;) {
    try {
      return call();
    } catch (const zmq::error_t& fault) {
      if (fault.num() != EINTR) throw;
    }
  }
}

// The parts of one ZeroMQ message. Of a longer one so many are kept, more than any reader takes for right.
inline constexpr std::size_t kPartsMax = 8;
struct Parts {
  std::vector<zmq::message_t> parts;
};
bool receive_parts(zmq::socket_t& socket, Parts& into);  // false: nothing is there. Never blocks.

// The parts of a frame, the last ones of a message. Bytes that are shared go as they lie; whoever holds them is let go when
// ZeroMQ has no more use for them. False: the socket's queue is full, or there is nobody at its end. Never blocks.
bool send_frame(zmq::socket_t& socket, Frame& frame);

// The data message whose head is part `at`, with its bulk after it where there is one, which is taken. Errors: bad_input.
Expected<actors::DataMessage> decode_parts(Parts& in, std::size_t at);

// Of one address of this host to one of a peer: "tcp://10.0.0.1:0;10.0.0.2:7000".
std::string tcp_endpoint(const std::string& from_address, const std::string& address, std::uint16_t port);

}  // namespace coppice::runtime
