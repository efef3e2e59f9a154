#include "runtime/transport.hpp"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <thread>
#include <utility>

#include "runtime/local_links.hpp"
#include "runtime/sockets.hpp"
#include "runtime/wire.hpp"

namespace coppice::runtime {
struct Transport::Io {
  struct Dialled {
    std::string name;
    zmq::socket_t socket;
  };
  // To a process of this machine.
  struct LocalWay {
    std::optional<LocalOffer> offer;
    std::unique_ptr<LocalOutbox> outbox = nullptr;  // in use
    std::uint64_t frames = 0;                       // that went there
  };
  // A whole message, and whose it is; at: its first part.
  struct Arrived {
    actors::Peer from;
    Parts in;
    std::size_t at = 0;
  };

  TransportOptions options;
  std::map<std::string, std::string> names;  // by public key: who is let in
  OnDelivery on_delivery;
  TransportCounts counts;
  zmq::context_t context{1};
  std::mutex mutex;  // of all that follows but the thread
  zmq::socket_t zap, router;
  std::map<actors::Peer, std::unique_ptr<Dialled>> dialled;  // one a peer and link
  std::map<std::string, LocalWay> local_ways;                // by name
  bool stop = false;
  bool changed = false;     // sockets came or went
  bool look_again = false;  // something may have arrived that no descriptor tells of any more
  int wake = -1;
  // Who serves the sockets: the I/O thread, or one caller.
  using Clock = std::chrono::steady_clock;
  bool caller_serves = false, thread_rests = false;
  std::uint64_t callers = 0;              // that have served
  Clock::time_point served{}, rests_to{};  // the last caller, until then; the thread, unless it is told
  std::condition_variable handed_over;
  // Of whoever serves.
  std::unique_ptr<LocalInbox> inbox;  // nothing: no local links
  std::vector<pollfd> waiting;  // with what happened
  Descriptor watcher;           // epoll: of all that
  std::size_t outboxes_at = 0, inbox_at = 0;  // in waiting
  std::vector<Arrived> arrived;
  std::vector<LocalFrame> arrived_locally;
  std::thread thread;

  ~Io() {
    close();
    if (wake >= 0) ::close(wake);
  }

  void close() {
    {
      std::unique_lock lock(mutex);
      stop = true;
      handed_over.notify_all();
      if (caller_serves) ring();
      handed_over.wait(lock, [&] { return !caller_serves; });
    }
    if (thread.joinable()) {
      ring();
      thread.join();
    }
    const auto until = Clock::now() + std::chrono::milliseconds{options.linger_ms};
    for (auto& [name, way] : local_ways)
      if (way.outbox) way.outbox->drain(until);
    local_ways.clear();
    inbox.reset();
    for (auto& [to, peer] : dialled) peer->socket.set(zmq::sockopt::linger, options.linger_ms);
    dialled.clear();
    router.close();
    zap.close();
    context.close();  // waits until what lingers has left, and lets go of all shared bytes
  }

  void ring() {
    const std::uint64_t one = 1;
    [[maybe_unused]] const auto written = ::write(wake, &one, sizeof one);
  }

  void sockets_changed() {
    changed = true;
    ring();
  }

  Expected<void> listen() {
    wake = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (wake < 0) return failed(std::string("eventfd: ") + std::strerror(errno));
    zap = zmq::socket_t(context, zmq::socket_type::rep);
    zap.set(zmq::sockopt::linger, 0);
    try {
      // First of all: a CURVE listener without a handler lets every key in.
      zap.bind("inproc://zeromq.zap.01");
    } catch (const zmq::error_t& fault) {
      return failed(std::string("no listener without an authenticator: ") + fault.what());
    }
    router = zmq::socket_t(context, zmq::socket_type::router);
    set_limits(router, {options.heartbeat_ms, options.frames_max > 0 ? options.frames_max : SocketLimits{}.frames_max});
    be_curve_server(router, options.identity);
    std::set<std::string> addresses(options.link_addresses.begin(), options.link_addresses.end());
    addresses.insert(options.bind_address);
    for (const auto& address : addresses)
      if (auto bound = bind(tcp_endpoint(address, options.port), address == options.bind_address); !bound) return bound;
    if (!options.local) return {};
    std::vector<std::string> others;
    for (const auto& host : options.hosts) others.push_back(host.name);
    // Without Unix sockets there is TCP.
    if (auto opened = LocalInbox::open(others)) inbox = std::move(*opened);
    return {};
  }

  Expected<void> bind(const std::string& endpoint, bool own) {
    try {
      router.bind(endpoint);
    } catch (const zmq::error_t& fault) {
      return failed("cannot listen on " + endpoint + ": " + fault.what() +
                    (fault.num() == EADDRINUSE ? "; stop what uses the port or give this host another in the cluster file"
                     : own                     ? "; see this host's address in the cluster file"
                                               : "; see this host's links in the topology file"));
    }
    return {};
  }

  // ---- receiving: the I/O thread, or a caller who serves instead ----

  // A caller who waits again and again hardly ever finds the sockets with the thread: it lets them be for so long. While one
  // and the same caller serves, it looks less and less often, and is told.
  static constexpr std::chrono::milliseconds kRest{2}, kRestMax{200};

  void run() {
    std::unique_lock lock(mutex);
    for (changed = true; !stop;) {
      if (caller_serves) {
        rest(lock);
      } else {
        round(lock);
      }
    }
  }

  void rest(std::unique_lock<std::mutex>& lock) {
    thread_rests = true;
    handed_over.notify_all();
    auto looks_after = kRest;
    for (std::uint64_t seen = 0; !stop && (caller_serves || Clock::now() < served + kRest);) {
      looks_after = caller_serves && std::exchange(seen, callers) == callers ? std::min(2 * looks_after, kRestMax) : kRest;
      rests_to = caller_serves ? Clock::now() + looks_after : served + kRest;
      handed_over.wait_until(lock, rests_to);
    }
    thread_rests = false;
    look_again = true;
  }

  bool serve_until(const std::function<bool()>& done) {
    std::unique_lock lock(mutex);
    if (stop || caller_serves) return false;
    caller_serves = true;
    ++callers;
    if (!thread_rests) ring();
    struct HandBack {
      Io& io;
      std::unique_lock<std::mutex>& lock;
      ~HandBack() {
        if (!lock.owns_lock()) lock.lock();  // something was thrown
        io.caller_serves = false;
        io.served = Clock::now();
        if (io.stop || io.rests_to > io.served + kRest) io.handed_over.notify_all();
      }
    } const hand_back{*this, lock};
    handed_over.wait(lock, [&] { return thread_rests || stop; });
    while (!stop && !done()) round(lock);
    return true;
  }

  void end_rest() {
    const std::lock_guard lock(mutex);
    if (!thread_rests || caller_serves) return;
    served = {};
    handed_over.notify_all();
  }

  // Sleeps on descriptors, not on sockets, so that others may send meanwhile. A socket's descriptor tells of what has come
  // since somebody last used the socket: whoever used it has to see to what was there (look_again).
  void round(std::unique_lock<std::mutex>& lock) {
    if (std::exchange(changed, false)) watch();
    // Also where something is known to have come, lest those with much to say were all that is heard.
    const bool at_once = look_again;
    lock.unlock();
    sleep(at_once);
    lock.lock();
    if (stop || changed) return;
    const bool all = std::exchange(look_again, false);
    if (all || waiting[0].revents) {
      std::uint64_t rings = 0;
      [[maybe_unused]] const auto drained = ::read(wake, &rings, sizeof rings);
    }
    if (all || waiting[1].revents) authenticate();
    if (all || waiting[2].revents) receive_router();
    auto at = waiting.begin() + 3;
    for (auto& [to, peer] : dialled)
      if (at++->revents || all) receive_dialled(*peer);
    std::vector<Frame> through;
    flush_outboxes(through);
    lock.unlock();
    through.clear();  // whoever hears of it may want to send
    const bool others = inbox && inbox->receive(std::span(waiting).subspan(inbox_at), arrived_locally);
    for (auto& each : arrived) deliver(each);
    arrived.clear();
    for (auto& each : arrived_locally) deliver(each);
    arrived_locally.clear();
    for (auto& each : waiting) each.revents = 0;
    lock.lock();
    if (others) changed = true;
  }

  void watch() {
    waiting.assign({watched(wake), watched(zap.get(zmq::sockopt::fd)), watched(router.get(zmq::sockopt::fd))});
    for (auto& [to, peer] : dialled) waiting.push_back(watched(peer->socket.get(zmq::sockopt::fd)));
    outboxes_at = waiting.size();
    for (const auto& [name, way] : local_ways)
      if (way.outbox && way.outbox->waits()) waiting.push_back({way.outbox->descriptor(), POLLOUT, 0});
    inbox_at = waiting.size();
    if (inbox) inbox->watch(waiting);
    watcher = Descriptor(::epoll_create1(EPOLL_CLOEXEC));
    for (std::size_t i = 0; i < waiting.size(); ++i) {
      epoll_event event{};
      event.events = static_cast<std::uint32_t>(waiting[i].events);  // POLLIN and POLLOUT are EPOLLIN and EPOLLOUT
      event.data.u64 = i;
      if (watcher && waiting[i].fd >= 0 && ::epoll_ctl(watcher.get(), EPOLL_CTL_ADD, waiting[i].fd, &event) != 0) watcher = Descriptor();
    }
    look_again = true;
  }

  void sleep(bool at_once) {
    const int timeout = at_once ? 0 : -1;
    if (!watcher) {  // the system has no more of them
      (void)::poll(waiting.data(), waiting.size(), timeout);
      return;
    }
    std::array<epoll_event, 64> happened;
    const int count = ::epoll_wait(watcher.get(), happened.data(), static_cast<int>(happened.size()), timeout);
    for (int i = 0; i < count; ++i) {
      const auto& event = happened[static_cast<std::size_t>(i)];
      waiting[event.data.u64].revents = static_cast<short>(event.events);
    }
  }

  static pollfd watched(int descriptor) { return {descriptor, POLLIN, 0}; }

  // ---- sending: whoever calls, with the mutex ----

  static bool names_a_link(const actors::Peer& to) { return !to.from_address.empty() || !to.to_address.empty(); }

  // A topology that was measured names the ends of every link. Two processes at one address have no link between them: they
  // are on one machine.
  actors::Peer without_address(const actors::Peer& to) const {
    const auto& own = options.bind_address;
    if (!inbox || to.from_address != own || to.to_address != own) return to;
    const auto host = std::ranges::find(options.hosts, to.name, &Host::name);
    return host != options.hosts.end() && host->address == own ? actors::Peer{to.name, to.route} : to;
  }

  void send_now(const actors::Peer& whom, Frame& frame) {
    const actors::Peer to = without_address(whom);
    if (inbox && send_locally(to, frame)) return;
    zmq::socket_t* socket = to.route.empty() ? dial(to) : &router;
    if (!socket) {
      ++counts.dropped;
      return;
    }
    try {
      using zmq::send_flags;
      const std::size_t size = frame.head.size() + frame.bulk_bytes();
      const bool routed = to.route.empty() || retried([&] { return socket->send(zmq::buffer(to.route), send_flags::sndmore | send_flags::dontwait); });
      if (!routed || !send_frame(*socket, frame)) {
        ++counts.dropped;
        return;
      }
      ++counts.sent;
      counts.bytes_sent += size;
      used(*socket);
    } catch (const zmq::error_t&) {  // an unroutable peer: lost, as on any network
      ++counts.dropped;
    }
  }

  // Sending may have taken the word that something came.
  void used(zmq::socket_t& socket) {
    if (!(retried([&] { return socket.get(zmq::sockopt::events); }) & ZMQ_POLLIN)) return;
    look_again = true;
    ring();
  }

  // False: it is no process of this machine, as far as is known. Links that have addresses are kept to.
  bool send_locally(const actors::Peer& to, Frame& frame) {
    if (!to.route.empty() || names_a_link(to)) return false;
    const auto found = local_ways.find(to.name);
    if (found == local_ways.end() || !found->second.offer) return false;
    auto& way = found->second;
    if (!way.outbox && !switch_over(to, way)) return false;
    if (options.frames_max > 0 && way.outbox->frames_waiting() >= static_cast<std::size_t>(options.frames_max)) {
      ++counts.dropped;
      return true;
    }
    const bool waited = way.outbox->waits();
    const std::size_t size = frame.head.size() + frame.bulk_bytes();
    if (!way.outbox->send(frame)) {
      forget(way);
      return false;
    }
    const bool waits = !waited && way.outbox->waits();
    if (waits) sockets_changed();
    // The word may go with a connection that breaks: it is said again, more and more seldom, and when nobody seems to read.
    if (waits || std::has_single_bit(++way.frames)) say_switch(to, *way.outbox);
    ++counts.sent;
    ++counts.sent_locally;
    counts.bytes_sent += size;
    return true;
  }

  bool switch_over(const actors::Peer& to, LocalWay& way) {
    bool busy = false;
    way.outbox = LocalOutbox::connect(*way.offer, &busy);
    way.frames = 0;
    if (way.outbox && say_switch(to, *way.outbox)) return true;
    way.outbox.reset();
    if (!busy) way.offer.reset();
    return false;
  }

  bool say_switch(const actors::Peer& to, const LocalOutbox& outbox) { return say(to, LocalSwitch{outbox.number()}); }

  bool say(const actors::Peer& to, const LocalWord& word) {
    const auto bytes = encode(word);
    try {
      auto* socket = dial(to);
      if (!socket || !retried([&] { return socket->send(zmq::buffer(bytes.data(), bytes.size()), zmq::send_flags::dontwait); })) return false;
      used(*socket);
      return true;
    } catch (const zmq::error_t&) {
      return false;
    }
  }

  void forget(LocalWay& way) {
    if (way.outbox && way.outbox->waits()) sockets_changed();
    way = {};
  }

  void flush_outboxes(std::vector<Frame>& through) {
    auto at = waiting.begin() + static_cast<std::ptrdiff_t>(outboxes_at);
    for (auto& [name, way] : local_ways) {
      if (!way.outbox || !way.outbox->waits()) continue;
      if (at == waiting.begin() + static_cast<std::ptrdiff_t>(inbox_at)) break;  // not watched yet
      if (!at++->revents) continue;
      if (!way.outbox->flush(through)) {
        forget(way);
      } else if (!way.outbox->waits()) {
        sockets_changed();
      }
    }
  }

  // Peers name addresses in what they tell one another: as many connections as a host may have links, not as many as
  // somebody may think of.
  static constexpr std::ptrdiff_t kConnectionsMax = 64;

  zmq::socket_t* dial(const actors::Peer& to) {
    const std::string& name = to.name;
    if (const auto found = dialled.find(to); found != dialled.end()) return &found->second->socket;
    const auto host = std::find_if(options.hosts.begin(), options.hosts.end(),
                                   [&](const Host& h) { return h.name == name; });
    const auto key = public_key_of(options.allow, name);
    if (host == options.hosts.end() || !key) return nullptr;
    if (std::ranges::count_if(dialled, [&](const auto& each) { return each.first.name == name; }) >= kConnectionsMax) return nullptr;
    try {
      auto peer = std::make_unique<Dialled>(Dialled{name, zmq::socket_t(context, zmq::socket_type::dealer)});
      set_limits(peer->socket, {options.heartbeat_ms, options.frames_max});
      if (options.frames_max == 0) peer->socket.set(zmq::sockopt::rcvhwm, SocketLimits{}.frames_max);
      be_curve_client(peer->socket, options.identity, *key);
      peer->socket.connect(tcp_endpoint(to.from_address, to.to_address.empty() ? host->address : to.to_address, host->port));
      auto& socket = dialled.emplace(to, std::move(peer)).first->second->socket;
      sockets_changed();
      if (const auto offer = inbox ? inbox->offer_to(name) : std::nullopt) say(to, *offer);
      return &socket;
    } catch (const zmq::error_t&) {  // no such address, or no more sockets
      return nullptr;
    }
  }

  void authenticate() {
    Parts request;
    while (receive_parts(zap, request)) {
      // version, request id, domain, address, identity, mechanism, credentials (the client's public key, 32 bytes)
      const auto& p = request.parts;
      std::string status = "400", user;
      if (p.size() == 7 && p[0].to_string_view() == "1.0" && p[5].to_string_view() == "CURVE" && p[6].size() == 32) {
        std::array<char, 41> key{};
        zmq_z85_encode(key.data(), static_cast<const std::uint8_t*>(p[6].data()), 32);
        const auto found = names.find(key.data());
        if (found != names.end()) {
          status = "200";
          user = found->second;
        }
      }
      if (status != "200") ++counts.refused_keys;
      const std::string id = p.size() > 1 ? p[1].to_string() : "";
      const std::array<std::string, 6> reply{"1.0", id, status, status == "200" ? "OK" : "unknown key", user, ""};
      for (std::size_t i = 0; i < reply.size(); ++i)
        retried([&] { return zap.send(zmq::buffer(reply[i]), i + 1 < reply.size() ? zmq::send_flags::sndmore : zmq::send_flags::none); });
    }
  }

  // The address that a frame came from: "10.0.0.1", also where the socket says "::ffff:10.0.0.1". Empty: not known.
  static std::string address_of(zmq::message_t& part) {
    constexpr std::string_view kMapped = "::ffff:";
    try {
      std::string_view address = part.gets("Peer-Address");
      if (address.starts_with(kMapped) && address.find('.') != std::string_view::npos) address.remove_prefix(kMapped.size());
      return std::string(address);
    } catch (const zmq::error_t&) {
      return "";
    }
  }

  // A bounded number at a time, so that a flood from one side does not starve the others.
  static constexpr int kBatch = 64;

  bool receive_next(zmq::socket_t& socket, Parts& in, int already) {
    if (already == kBatch) {
      look_again = true;
      return false;
    }
    return receive_parts(socket, in);
  }

  void receive_router() {
    Parts in;
    for (int i = 0; receive_next(router, in, i); ++i) {
      const char* user = nullptr;
      try {
        if (in.parts.size() > 1) user = in.parts[1].gets("User-Id");
      } catch (const zmq::error_t&) {
      }
      if (!user || *user == '\0') {  // the handler names everyone it lets in
        ++counts.malformed;
        continue;
      }
      actors::Peer from{user, in.parts[0].to_string(), "", options.note_addresses ? address_of(in.parts[1]) : ""};
      arrived.push_back({std::move(from), std::exchange(in, {}), 1});
    }
  }

  void receive_dialled(Dialled& peer) {
    Parts in;
    for (int i = 0; receive_next(peer.socket, in, i); ++i) arrived.push_back({{peer.name, ""}, std::exchange(in, {}), 0});
  }

  void deliver(Arrived& each) {
    std::size_t size = 0;
    for (std::size_t i = each.at; i < each.in.parts.size(); ++i) size += each.in.parts[i].size();
    if (inbox && each.in.parts.size() == each.at + 1) {
      const auto& part = each.in.parts[each.at];
      if (const auto word = decode_local({static_cast<const std::byte*>(part.data()), part.size()})) return take(each.from.name, *word);
    }
    hand_on(std::move(each.from), decode_parts(each.in, each.at), size);
  }

  void deliver(LocalFrame& each) {
    actors::Peer from{std::move(each.from)};
    hand_on(std::move(from), decode(each.head(), each.bulk()), each.bytes.size);
  }

  void hand_on(actors::Peer from, Expected<actors::DataMessage> message, std::size_t size) {
    if (!message) {
      ++counts.malformed;
      return;
    }
    ++counts.received;
    counts.bytes_received += size;
    on_delivery({std::move(from), std::move(*message)});
  }

  void take(const std::string& name, const LocalWord& word) {
    const auto* offer = std::get_if<LocalOffer>(&word);
    const bool others = !offer && inbox->switched(name, std::get<LocalSwitch>(word).number);
    const std::lock_guard lock(mutex);
    if (others) sockets_changed();
    if (!offer) return;
    auto& way = local_ways[name];
    if (way.offer == *offer) return;
    forget(way);  // of a process before that one
    way.offer = *offer;
    // At once, though nothing may have to be sent: it has no offer of ours before it is dialled. One that took the place of
    // another finds the old connection made again, and has none either.
    const bool dialled_before = dialled.contains({name});
    const auto own = inbox->offer_to(name);
    if (switch_over({name}, way) && dialled_before && own) say({name}, *own);
  }
};

Transport::Transport(std::unique_ptr<Io> io) : io_(std::move(io)) {}
Transport::~Transport() = default;

Expected<std::shared_ptr<Transport>> Transport::open(TransportOptions options, OnDelivery on_delivery) {
  auto io = std::make_unique<Io>();
  io->options = std::move(options);
  for (const auto& [name, key] : io->options.allow) io->names.emplace(key, name);
  io->on_delivery = std::move(on_delivery);
  try {
    if (auto listening = io->listen(); !listening) return tl::unexpected(listening.error());
  } catch (const zmq::error_t& fault) {
    return failed(std::string("ZeroMQ: ") + fault.what());
  }
  io->thread = std::thread([raw = io.get()] { raw->run(); });
  return std::shared_ptr<Transport>(new Transport(std::move(io)));
}

// On the caller's thread, to the socket: each hand-over to another thread costs as much as a small frame altogether.
void Transport::send(const actors::Peer& to, actors::DataMessage message) {
  Frame frame = encode(message);
  const std::lock_guard lock(io_->mutex);
  if (!io_->stop) io_->send_now(to, frame);
}

void Transport::send_to_all(const std::vector<actors::Peer>& to, const actors::DataMessage& message) {
  const Frame frame = encode(message);
  const std::lock_guard lock(io_->mutex);
  if (io_->stop) return;
  for (const auto& peer : to) {
    Frame own = frame;
    io_->send_now(peer, own);
  }
}

void Transport::close() { io_->close(); }

void Transport::hang_up() {
  const std::lock_guard lock(io_->mutex);
  if (io_->stop) return;
  io_->dialled.clear();
  for (auto& [name, way] : io_->local_ways) way.outbox.reset();
  io_->sockets_changed();
}

bool Transport::serve_until(const std::function<bool()>& done) { return io_->serve_until(done); }

void Transport::interrupt() { io_->ring(); }

void Transport::end_rest() { io_->end_rest(); }

void Transport::hang_up(const actors::Peer& whom) {
  const std::lock_guard lock(io_->mutex);
  if (io_->stop) return;
  const auto peer = io_->without_address(whom);
  io_->dialled.erase(peer);
  const auto way = io_->local_ways.find(peer.name);
  if (way != io_->local_ways.end() && !Io::names_a_link(peer)) way->second.outbox.reset();
  io_->sockets_changed();
}

const TransportCounts& Transport::counts() const { return io_->counts; }

}  // namespace coppice::runtime
