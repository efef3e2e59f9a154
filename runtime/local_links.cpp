#include "runtime/local_links.hpp"

#include <sys/random.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <utility>

namespace coppice::runtime {
namespace {

constexpr std::size_t kStagedBytes = 64U << 10;
constexpr std::size_t kStrangersMax = 64;  // connections that have not shown a token yet
constexpr std::size_t kConnectionsMax = 8;  // of one peer: hung up on and made again

// ---- what is told over the encrypted connection ----------------------------------------------------------------------

constexpr std::array<std::byte, 4> kMark{std::byte{0xc1}, std::byte{'l'}, std::byte{'o'}, std::byte{'c'}};
constexpr std::size_t kOfferBytes = kMark.size() + 16 + 32, kSwitchBytes = kMark.size() + 8;

template <class Bytes>
std::byte* put(std::byte* at, const Bytes& bytes) {
  std::memcpy(at, &bytes, sizeof bytes);
  return at + sizeof bytes;
}

// ---- addresses -------------------------------------------------------------------------------------------------------

constexpr std::string_view kPrefix = "coppice-";

struct Address {
  sockaddr_un of{};
  socklen_t size = 0;
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&of); }
};

Address abstract(const std::array<std::byte, 16>& name) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  Address address;
  address.of.sun_family = AF_UNIX;
  char* at = std::ranges::copy(kPrefix, address.of.sun_path + 1).out;  // a zero comes first
  for (const std::byte byte : name) {
    *at++ = kDigits[std::to_integer<std::size_t>(byte >> 4)];
    *at++ = kDigits[std::to_integer<std::size_t>(byte & std::byte{15})];
  }
  address.size = static_cast<socklen_t>(at - reinterpret_cast<char*>(&address.of));
  return address;
}

Descriptor new_socket() { return Descriptor(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)); }

bool of_this_user(int socket) {
  ucred peer{};
  socklen_t size = sizeof peer;
  return ::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == ::geteuid();
}

template <std::size_t Size>
bool fill_at_random(std::array<std::byte, Size>& bytes) {
  return ::getrandom(bytes.data(), Size, 0) == static_cast<ssize_t>(Size);
}

// ---- frames on the stream --------------------------------------------------------------------------------------------

// Sizes of head and bulk, the head, zeros up to a multiple of sixteen bytes, the bulk.
struct Sizes {
  std::uint32_t head = 0, bulk = 0;
  std::size_t bulk_at() const { return (std::size_t{head} + 15) / 16 * 16; }  // behind these sizes
  std::size_t total() const { return bulk_at() + bulk; }
};
static_assert(sizeof(Sizes) == 8);

std::span<const std::byte> bulk_of(const Frame& frame) {
  return frame.shared ? frame.shared.view() : std::span<const std::byte>(frame.bulk);
}

Sizes sizes_of(const Frame& frame) {
  return {static_cast<std::uint32_t>(frame.head.size()), static_cast<std::uint32_t>(frame.bulk_bytes())};
}

// Of most frames it fits; the others take theirs from the heap.
constexpr std::size_t kFrontBytes = 512;
std::size_t front_bytes(const Frame& frame) { return sizeof(Sizes) + sizes_of(frame).bulk_at(); }

// REQUIRES: `into` has front_bytes(frame).
void write_front(const Frame& frame, std::span<std::byte> into) {
  std::byte* const at = put(into.data(), sizes_of(frame));
  std::memcpy(at, frame.head.data(), frame.head.size());
  std::ranges::fill(into.subspan(sizeof(Sizes) + frame.head.size()), std::byte{0});
}

constexpr std::size_t kHelloBytes = 32 + 8;  // token, number

}  // namespace

std::vector<std::byte> encode(const LocalWord& word) {
  if (const auto* offer = std::get_if<LocalOffer>(&word)) {
    std::vector<std::byte> out(kOfferBytes);
    put(put(put(out.data(), kMark), offer->address), offer->token);
    return out;
  }
  std::vector<std::byte> out(kSwitchBytes);
  put(put(out.data(), kMark), std::get<LocalSwitch>(word).number);
  return out;
}

std::optional<LocalWord> decode_local(std::span<const std::byte> part) {
  if (part.size() < kMark.size() || !std::ranges::equal(part.first(kMark.size()), kMark)) return std::nullopt;
  const std::byte* const at = part.data() + kMark.size();
  if (part.size() == kOfferBytes) {
    LocalOffer offer;
    std::memcpy(offer.address.data(), at, offer.address.size());
    std::memcpy(offer.token.data(), at + offer.address.size(), offer.token.size());
    return offer;
  }
  if (part.size() != kSwitchBytes) return std::nullopt;
  LocalSwitch over;
  std::memcpy(&over.number, at, sizeof over.number);
  return over;
}

Descriptor::Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  std::swap(number_, other.number_);
  return *this;
}
Descriptor::~Descriptor() {
  if (number_ >= 0) ::close(number_);
}

// ---- sending ---------------------------------------------------------------------------------------------------------

std::unique_ptr<LocalOutbox> LocalOutbox::connect(const LocalOffer& offer, bool* busy) {
  auto socket = new_socket();
  const auto address = abstract(offer.address);
  if (!socket || ::connect(socket.get(), address.get(), address.size) != 0) {
    if (busy) *busy = errno != ECONNREFUSED;
    return nullptr;
  }
  if (!of_this_user(socket.get())) return nullptr;
  const auto number = static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
  std::array<std::byte, kHelloBytes> hello{};
  put(put(hello.data(), offer.token), number);
  if (::send(socket.get(), hello.data(), hello.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(hello.size())) return nullptr;
  return std::unique_ptr<LocalOutbox>(new LocalOutbox(std::move(socket), number));
}

std::optional<std::size_t> LocalOutbox::write(std::span<const std::byte> front, std::span<const std::byte> bulk) {
  const auto part = [](std::span<const std::byte> bytes) { return iovec{const_cast<std::byte*>(bytes.data()), bytes.size()}; };
  std::array<iovec, 2> parts{part(front), part(bulk)};
  msghdr message{};
  message.msg_iov = parts.data();
  message.msg_iovlen = parts.size();
  for (;;) {
    const auto sent = ::sendmsg(socket_.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent >= 0) return static_cast<std::size_t>(sent);
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS || errno == ENOMEM) return 0;
    if (errno != EINTR) return std::nullopt;
  }
}

bool LocalOutbox::send(Frame& frame) {
  std::array<std::byte, kFrontBytes> here;
  std::vector<std::byte> on_heap;
  const std::size_t front_size = front_bytes(frame);
  if (front_size > here.size() || waits()) on_heap.resize(front_size);
  const auto front = on_heap.empty() ? std::span<std::byte>(here).first(front_size) : std::span<std::byte>(on_heap);
  write_front(frame, front);
  std::size_t sent = 0;
  if (!waits()) {
    const auto bulk = bulk_of(frame);
    const auto written = write(front, bulk);
    if (!written) return false;
    sent = *written;
    if (sent == front.size() + bulk.size()) return true;
  }
  queue_.push_back({{front.begin(), front.end()}, std::move(frame), sent});
  return true;
}

bool LocalOutbox::flush(std::vector<Frame>& through) {
  while (waits()) {
    auto& first = queue_.front();
    const auto bulk = bulk_of(first.frame);
    const auto front_sent = std::min(first.sent, first.front.size());
    const auto written = write(std::span<const std::byte>(first.front).subspan(front_sent), bulk.subspan(first.sent - front_sent));
    if (!written) return false;
    first.sent += *written;
    if (first.sent < first.front.size() + bulk.size()) return true;
    through.push_back(std::move(first.frame));
    queue_.pop_front();
  }
  return true;
}

void LocalOutbox::drain(std::chrono::steady_clock::time_point until) {
  std::vector<Frame> through;
  while (waits() && flush(through) && waits()) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - std::chrono::steady_clock::now()).count();
    pollfd room{socket_.get(), POLLOUT, 0};
    if (left <= 0 || ::poll(&room, 1, static_cast<int>(left)) == 0) return;
  }
}

// ---- receiving -------------------------------------------------------------------------------------------------------

Expected<std::unique_ptr<LocalInbox>> LocalInbox::open(const std::vector<std::string>& names) {
  std::unique_ptr<LocalInbox> inbox(new LocalInbox());
  bool random = fill_at_random(inbox->address_);
  for (const auto& name : names) random = random && fill_at_random(inbox->tokens_[name]);
  if (!random) return failed("no random numbers for this machine's processes: " + std::string(std::strerror(errno)));
  inbox->listener_ = new_socket();
  const auto address = abstract(inbox->address_);
  if (!inbox->listener_ || ::bind(inbox->listener_.get(), address.get(), address.size) != 0 || ::listen(inbox->listener_.get(), SOMAXCONN) != 0)
    return failed("no Unix socket for this machine's processes: " + std::string(std::strerror(errno)));
  return inbox;
}

std::optional<LocalOffer> LocalInbox::offer_to(const std::string& name) const {
  const auto token = tokens_.find(name);
  if (token == tokens_.end()) return std::nullopt;
  return LocalOffer{address_, token->second};
}

void LocalInbox::watch(std::vector<pollfd>& into) const {
  into.push_back({listens_ ? listener_.get() : -1, POLLIN, 0});
  for (const auto& connection : connections_)
    if (is_watched(*connection)) into.push_back({connection->socket.get(), POLLIN, 0});
}

bool LocalInbox::receive(std::span<const pollfd> ready, std::vector<LocalFrame>& into) {
  bool changed = false;
  std::size_t at = 1;
  for (auto& connection : connections_) {
    if (!connection || !is_watched(*connection) || !ready[at++].revents) continue;
    if (connection->name.empty()) {
      changed = true;
      if (!admit(*connection)) {
        ++refused_;
        connection.reset();
      }
    } else if (const auto outcome = read(*connection, into); outcome != Outcome::more) {
      changed = true;
      if (outcome == Outcome::broken) ++refused_;
      connection.reset();
    }
  }
  if (std::erase(connections_, nullptr) > 0) listens_ = true;  // there is room again
  if (ready[0].revents) changed = accept_some() || changed;
  return changed;
}

bool LocalInbox::switched(const std::string& name, std::uint64_t number) {
  auto& last = switched_[name];
  last = std::max(last, number);
  bool changed = false;
  for (auto& connection : connections_)
    if (connection->name == name && !connection->open && connection->number <= last) changed = connection->open = true;
  return changed;
}

// A bounded number at a time: anybody on this machine may knock.
bool LocalInbox::accept_some() {
  constexpr int kAtOnce = 16;
  bool changed = false;
  for (int i = 0; i < kAtOnce; ++i) {
    Descriptor socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket && (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)) {
      listens_ = false;
      return true;
    }
    if (!socket) return changed;
    const auto strangers = std::ranges::count_if(connections_, [](const auto& each) { return each->name.empty(); });
    if (!of_this_user(socket.get()) || static_cast<std::size_t>(strangers) >= kStrangersMax) {
      ++refused_;
      continue;
    }
    connections_.push_back(std::make_unique<Connection>(Connection{std::move(socket)}));
    changed = true;
  }
  return changed;
}

// It came in one piece, or it is none of ours.
bool LocalInbox::admit(Connection& connection) {
  std::array<std::byte, kHelloBytes> hello{};
  if (::recv(connection.socket.get(), hello.data(), hello.size(), MSG_DONTWAIT) != static_cast<ssize_t>(hello.size())) return false;
  const auto of = std::ranges::find_if(tokens_, [&](const auto& each) {
    return std::memcmp(each.second.data(), hello.data(), each.second.size()) == 0;
  });
  if (of == tokens_.end()) return false;
  std::memcpy(&connection.number, hello.data() + of->second.size(), sizeof connection.number);
  std::size_t before = 0;
  for (auto& each : connections_) {
    if (!each || each->name != of->first) continue;
    if (each->open) ++before;
    else each.reset();  // nobody has spoken for it, and nobody will
  }
  if (before >= kConnectionsMax) return false;
  connection.name = of->first;
  const auto last = switched_.find(connection.name);
  connection.open = last != switched_.end() && connection.number <= last->second;
  connection.staged.resize(kStagedBytes);
  return true;
}

LocalInbox::Outcome LocalInbox::read(Connection& c, std::vector<LocalFrame>& into) {
  const auto room = c.large.bytes ? c.large.bytes.writable().subspan(c.large_have) : std::span(c.staged).subspan(c.have);
  const auto got = ::recv(c.socket.get(), room.data(), room.size(), MSG_DONTWAIT);
  if (got == 0) return Outcome::over;
  if (got < 0) return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR ? Outcome::more : Outcome::over;
  if (!c.large.bytes) {
    c.have += static_cast<std::size_t>(got);
    return take_staged(c, into);
  }
  c.large_have += static_cast<std::size_t>(got);
  if (c.large_have == c.large.bytes.size) into.push_back(std::exchange(c.large, {}));
  return Outcome::more;
}

LocalInbox::Outcome LocalInbox::take_staged(Connection& c, std::vector<LocalFrame>& into) {
  std::size_t at = 0;
  while (!c.large.bytes && c.have - at >= sizeof(Sizes)) {
    Sizes sizes;
    std::memcpy(&sizes, c.staged.data() + at, sizeof sizes);
    if (sizes.head > kHeadBytesMax || sizes.bulk > kBulkBytesMax) return Outcome::broken;
    at += sizeof sizes;
    const std::size_t here = std::min(c.have - at, sizes.total());
    const std::shared_ptr<std::byte[]> bytes(new std::byte[sizes.total()]);
    std::memcpy(bytes.get(), c.staged.data() + at, here);
    at += here;
    LocalFrame frame{c.name, {bytes, bytes.get(), sizes.total()}, sizes.head, sizes.bulk_at()};
    if (here == sizes.total()) {
      into.push_back(std::move(frame));
    } else {
      c.large = std::move(frame);
      c.large_have = here;
    }
  }
  std::memmove(c.staged.data(), c.staged.data() + at, c.have - at);
  c.have -= at;
  return Outcome::more;
}

}  // namespace coppice::runtime
