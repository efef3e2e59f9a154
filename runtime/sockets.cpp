#include "runtime/sockets.hpp"

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
    if (!retried([&] { return socket.recv(part, zmq::recv_flags::dontwait); })) return false;
    more = part.more();
    if (into.parts.size() < kPartsMax) into.parts.push_back(std::move(part));
  }
  return true;
}

namespace {

zmq::message_t bulk_message(Frame& frame) {
  if (!frame.shared) return {frame.bulk.data(), frame.bulk.size()};
  auto* held = new actors::SharedBytes(std::move(frame.shared));
  return {held->data, held->size, [](void*, void* hint) { delete static_cast<actors::SharedBytes*>(hint); }, held};
}

std::span<std::byte> bytes_of(zmq::message_t& part) { return {static_cast<std::byte*>(part.data()), part.size()}; }

}  // namespace

bool send_frame(zmq::socket_t& socket, Frame& frame) {
  constexpr auto kFlags = zmq::send_flags::dontwait;
  if (const auto joined = joined_bytes(frame)) {
    zmq::message_t whole(*joined);
    join(frame, bytes_of(whole));
    return retried([&] { return socket.send(whole, kFlags); }).has_value();
  }
  const bool bulk = frame.bulk_bytes() > 0;
  const zmq::const_buffer head(frame.head.data(), frame.head.size());
  if (!retried([&] { return socket.send(head, bulk ? kFlags | zmq::send_flags::sndmore : kFlags); })) return false;
  if (!bulk) return true;
  auto message = bulk_message(frame);
  (void)retried([&] { return socket.send(message, kFlags); });
  return true;
}

Expected<actors::DataMessage> decode_parts(Parts& in, std::size_t at) {
  if (in.parts.size() != at + 1 && in.parts.size() != at + 2) return bad_input("frame: not one or two parts");
  const auto head = bytes_of(in.parts[at]);
  if (in.parts.size() == at + 2) {  // the frame itself is kept by whoever wants its bytes
    auto part = std::make_shared<zmq::message_t>(std::move(in.parts[at + 1]));
    return decode(head, actors::SharedBytes{part, static_cast<std::byte*>(part->data()), part->size()});
  }
  if (!is_joined(head)) return decode(head, actors::SharedBytes{});
  auto part = std::make_shared<zmq::message_t>(std::move(in.parts[at]));
  const auto both = split(bytes_of(*part));
  if (!both) return tl::unexpected(both.error());
  const auto bulk = bytes_of(*part).subspan(both->bulk_at);
  return decode(both->head, actors::SharedBytes{part, bulk.data(), bulk.size()});
}

}  // namespace coppice::runtime
