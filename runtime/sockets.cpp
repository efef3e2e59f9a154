#include "runtime/sockets.hpp"

#include "runtime/wire.hpp"

namespace coppice::runtime {

void set_limits(zmq::socket_t& socket, const SocketLimits& limits) {
  socket.set(zmq::sockopt::linger, 0);
  socket.set(zmq::sockopt::maxmsgsize, static_cast<std::int64_t>(kBulkBytesMax));
  socket.set(zmq::sockopt::heartbeat_ivl, limits.heartbeat_ms);
  socket.set(zmq::sockopt::heartbeat_timeout, 3 * limits.heartbeat_ms);
  socket.set(zmq::sockopt::heartbeat_ttl, 3 * limits.heartbeat_ms);
  socket.set(zmq::sockopt::handshake_ivl, 5'000);
  socket.set(zmq::sockopt::sndhwm, limits.frames_max);
  socket.set(zmq::sockopt::rcvhwm, limits.frames_max);
  socket.set(zmq::sockopt::reconnect_ivl, 50);
  socket.set(zmq::sockopt::reconnect_ivl_max, 1'000);
  socket.set(zmq::sockopt::ipv6, 1);
}

void be_curve_server(zmq::socket_t& socket, const Identity& identity) {
  socket.set(zmq::sockopt::curve_server, 1);
  socket.set(zmq::sockopt::curve_secretkey, identity.secret_key);
  socket.set(zmq::sockopt::zap_domain, "coppice");
}

void be_curve_client(zmq::socket_t& socket, const Identity& identity, const std::string& server_public_key) {
  socket.set(zmq::sockopt::curve_serverkey, server_public_key);
  socket.set(zmq::sockopt::curve_publickey, identity.public_key);
  socket.set(zmq::sockopt::curve_secretkey, identity.secret_key);
}

std::string tcp_endpoint(const std::string& address, std::uint16_t port) { return tcp_endpoint("", address, port); }

std::string tcp_endpoint(const std::string& from_address, const std::string& address, std::uint16_t port) {
  const auto bracketed = [](const std::string& text) {
    return text.find(':') != std::string::npos ? "[" + text + "]" : text;
  };
  return "tcp://" + (from_address.empty() ? "" : bracketed(from_address) + ":0;") + bracketed(address) + ":" +
         std::to_string(port);
}

bool receive_parts(zmq::socket_t& socket, Parts& into) {
  into.parts.clear();
  for (bool more = true; more;) {
    zmq::message_t part;
    if (!socket.recv(part, zmq::recv_flags::dontwait)) return false;
    more = part.more();
    if (into.parts.size() < kPartsMax) into.parts.push_back(std::move(part));
  }
  return true;
}

Expected<actors::DataMessage> decode_parts(Parts& in, std::size_t at) {
  if (in.parts.size() != at + 1 && in.parts.size() != at + 2) return bad_input("frame: not one or two parts");
  const std::span head(static_cast<const std::byte*>(in.parts[at].data()), in.parts[at].size());
  actors::SharedBytes bulk;
  if (in.parts.size() == at + 2) {  // the frame itself is kept by whoever wants its bytes
    auto part = std::make_shared<zmq::message_t>(std::move(in.parts[at + 1]));
    bulk = {part, static_cast<std::byte*>(part->data()), part->size()};
  }
  return decode(head, bulk);
}

}  // namespace coppice::runtime
