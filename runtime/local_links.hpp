// runtime/local_links.hpp: frames between processes of one machine, over a Unix socket instead of TCP.
//
// To a process of the same machine a TCP connection costs two stacks, an encryption and the wake-ups of ZeroMQ's threads,
// for what one copy into the kernel and one out of it do. So a transport also listens at an abstract Unix address, which
// is seen in its own network namespace alone, and tells each host that it dials, over the encrypted connection: come to
// this address with this token (LocalOffer). Whoever can, connects, shows the token, says over the encrypted
// connection that all that it sends from now on comes here (LocalSwitch), and sends on. Nothing is read before that word
// has come, behind all that was sent before it: frames of one peer stay in order.
//
// Tokens are random and one a peer, so that whoever shows one has been told it under that peer's key. Both ends must be
// processes of one user besides: an address that its owner has left could be taken by somebody else.
#pragma once

#include <poll.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "actors/shared_bytes.hpp"
#include "runtime/error.hpp"
#include "runtime/wire.hpp"

namespace coppice::runtime {

struct LocalOffer {
  std::array<std::byte, 16> address{};  // random: the listener's name
  std::array<std::byte, 32> token{};
  bool operator==(const LocalOffer&) const = default;
};
// number: of the connection; later ones of a peer have greater ones.
struct LocalSwitch {
  std::uint64_t number = 0;
  bool operator==(const LocalSwitch&) const = default;
};
using LocalWord = std::variant<LocalOffer, LocalSwitch>;

// As one part of a ZeroMQ message; no frame begins like it (runtime/wire.hpp).
std::vector<std::byte> encode(const LocalWord& word);
std::optional<LocalWord> decode_local(std::span<const std::byte> part);  // nothing: it is something else

// A descriptor that is closed when its owner goes.
class Descriptor {
 public:
  explicit Descriptor(int number = -1) : number_(number) {}
  Descriptor(Descriptor&& other) noexcept;
  Descriptor& operator=(Descriptor&& other) noexcept;
  ~Descriptor();
  int get() const { return number_; }
  explicit operator bool() const { return number_ >= 0; }

 private:
  int number_;
};

// What one process sends to another. One thread at a time. Never blocks but in drain.
class LocalOutbox {
 public:
  // Nothing: nobody listens there, which is how another machine or namespace shows, or another user does; busy: whoever
  // does has no room for another connection now.
  static std::unique_ptr<LocalOutbox> connect(const LocalOffer& offer, bool* busy = nullptr);

  std::uint64_t number() const { return number_; }
  int descriptor() const { return socket_.get(); }
  // What the socket does not take now waits, without bound. False: the peer is gone.
  bool send(Frame& frame);
  bool waits() const { return !queue_.empty(); }
  std::size_t frames_waiting() const { return queue_.size(); }
  // Sends what waits, as far as the socket takes it. sent: frames that are through, to be let go of where it may be. False:
  // the peer is gone.
  bool flush(std::vector<Frame>& sent);
  void drain(std::chrono::steady_clock::time_point until);  // before it is closed: what waits

 private:
  struct Waiting {
    std::vector<std::byte> front;  // all before the bulk
    Frame frame;
    std::size_t sent = 0;  // bytes of both
  };
  LocalOutbox(Descriptor socket, std::uint64_t number) : socket_(std::move(socket)), number_(number) {}
  std::optional<std::size_t> write(std::span<const std::byte> front, std::span<const std::byte> bulk);  // nothing: gone

  Descriptor socket_;
  std::uint64_t number_;
  std::deque<Waiting> queue_;
};

struct LocalFrame {
  std::string from;  // whose token was shown
  actors::SharedBytes bytes;
  std::size_t head_bytes = 0;
  std::size_t bulk_at = 0;
  std::span<const std::byte> head() const { return bytes.view().first(head_bytes); }
  actors::SharedBytes bulk() const { return {bytes.owner, bytes.data + bulk_at, bytes.size - bulk_at}; }
};

// What others send to this process. One thread, but for offer_to.
class LocalInbox {
 public:
  // names: who may come. Errors: no socket, no random numbers.
  static Expected<std::unique_ptr<LocalInbox>> open(const std::vector<std::string>& names);

  std::optional<LocalOffer> offer_to(const std::string& name) const;
  void watch(std::vector<pollfd>& into) const;
  // ready: as watch added them, with what happened. True: others are to be watched from now on.
  bool receive(std::span<const pollfd> ready, std::vector<LocalFrame>& into);
  bool switched(const std::string& name, std::uint64_t number);  // result: as above
  std::uint64_t refused() const { return refused_; }             // strangers, and who sent what is no frame

 private:
  struct Connection {
    Descriptor socket;
    std::string name = {};  // empty: has not shown its token
    std::uint64_t number = 0;
    bool open = false;  // its switch has come
    std::vector<std::byte> staged = {};
    std::size_t have = 0;  // in staged
    LocalFrame large = {};  // one of which large_have bytes have come; without bytes: none
    std::size_t large_have = 0;
  };
  enum class Outcome : std::uint8_t { more, over, broken };

  LocalInbox() = default;
  bool accept_some();
  bool admit(Connection& connection);
  Outcome read(Connection& connection, std::vector<LocalFrame>& into);
  Outcome take_staged(Connection& connection, std::vector<LocalFrame>& into);
  static bool is_watched(const Connection& connection) { return connection.open || connection.name.empty(); }

  Descriptor listener_;
  bool listens_ = true;  // not while there is no descriptor for another connection
  std::array<std::byte, 16> address_{};
  std::map<std::string, std::array<std::byte, 32>> tokens_;  // by name
  std::map<std::string, std::uint64_t> switched_;            // by name: the last connection that may be read
  std::vector<std::unique_ptr<Connection>> connections_;
  std::uint64_t refused_ = 0;
};

}  // namespace coppice::runtime
