// runtime/doorsteps.hpp: whether a process still listens at a host's port, asked of the host's kernel. Busy processes answer
// late, and their kernel does not; where the process was killed it refuses.
#pragma once

#include <sys/socket.h>

#include <chrono>
#include <map>
#include <string>
#include <vector>

#include "actors/liveness.hpp"
#include "runtime/cluster.hpp"

namespace coppice::runtime {

// Not thread-safe.
class Doorsteps {
 public:
  // Looks their addresses up; one that is not found is never heard of.
  explicit Doorsteps(const std::vector<Host>& hosts);
  ~Doorsteps();
  Doorsteps(const Doorsteps&) = delete;
  Doorsteps& operator=(const Doorsteps&) = delete;

  // What the last connection that was tried came to, and tries the next where it is time. Never blocks.
  actors::Door knock(const std::string& host);

 private:
  using Clock = std::chrono::steady_clock;
  struct At {
    sockaddr_storage address{};
    socklen_t size = 0;
    int socket = -1;  // of the connection that is being tried
    Clock::time_point begun{};
    actors::Door last = actors::Door::silent;
  };
  static void begin(At& at);
  static void look(At& at);

  std::map<std::string, At> hosts_;
};

}  // namespace coppice::runtime
