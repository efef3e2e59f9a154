#include "runtime/doorsteps.hpp"

#include <netdb.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace coppice::runtime {
namespace {

using actors::Door;

constexpr std::chrono::milliseconds kEvery{500}, kPatience{1'000};

Door door_of(int fault) {
  if (fault == 0) return Door::open;
  return fault == ECONNREFUSED || fault == ECONNRESET ? Door::refused : Door::silent;
}

}  // namespace

Doorsteps::Doorsteps(const std::vector<Host>& hosts) {
  for (const auto& host : hosts) {
    addrinfo wanted{}, *found = nullptr;
    wanted.ai_socktype = SOCK_STREAM;
    if (::getaddrinfo(host.address.c_str(), std::to_string(host.port).c_str(), &wanted, &found) != 0 || !found) continue;
    auto& at = hosts_[host.name];
    std::memcpy(&at.address, found->ai_addr, found->ai_addrlen);
    at.size = found->ai_addrlen;
    ::freeaddrinfo(found);
  }
}

Doorsteps::~Doorsteps() {
  for (auto& [name, at] : hosts_)
    if (at.socket >= 0) ::close(at.socket);
}

void Doorsteps::begin(At& at) {
  const auto now = Clock::now();
  if (now - at.begun > 2 * kPatience) at.last = Door::silent;  // of long ago
  at.begun = now;
  at.socket = ::socket(at.address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (at.socket < 0) return;
  const int done = ::connect(at.socket, reinterpret_cast<const sockaddr*>(&at.address), at.size);
  if (done != 0 && errno == EINPROGRESS) return;
  at.last = door_of(done == 0 ? 0 : errno);
  ::close(std::exchange(at.socket, -1));
}

void Doorsteps::look(At& at) {
  pollfd wait{at.socket, POLLOUT, 0};
  if (::poll(&wait, 1, 0) > 0) {
    int fault = 0;
    socklen_t size = sizeof fault;
    if (::getsockopt(at.socket, SOL_SOCKET, SO_ERROR, &fault, &size) != 0) fault = errno;
    at.last = door_of(fault);
  } else if (Clock::now() - at.begun < kPatience) {
    return;
  } else {
    at.last = Door::silent;
  }
  ::close(std::exchange(at.socket, -1));
}

Door Doorsteps::knock(const std::string& host) {
  const auto found = hosts_.find(host);
  if (found == hosts_.end()) return Door::silent;
  auto& at = found->second;
  if (at.socket < 0 && Clock::now() - at.begun >= kEvery) begin(at);
  if (at.socket >= 0) look(at);
  return at.last;
}

}  // namespace coppice::runtime
