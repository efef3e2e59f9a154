#include "runtime/doorsteps.hpp"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <unistd.h>

#include <thread>

using namespace coppice::runtime;
using coppice::actors::Door;

namespace {

// What the door says in the end.
Door ask(Doorsteps& doorsteps, const std::string& host, Door wanted) {
  Door door = Door::silent;
  for (int i = 0; i < 500 && door != wanted; ++i) {
    door = doorsteps.knock(host);
    std::this_thread::sleep_for(std::chrono::milliseconds{10});
  }
  return door;
}

TEST(Doorsteps, AListenerThatNeverAcceptsIsThereAndOneThatIsClosedIsNot) {
  const int listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof at;
  ASSERT_EQ(::bind(listener, reinterpret_cast<sockaddr*>(&at), size), 0);
  ASSERT_EQ(::listen(listener, 100), 0);
  ASSERT_EQ(::getsockname(listener, reinterpret_cast<sockaddr*>(&at), &size), 0);
  Host host;
  host.name = "h0";
  host.address = "127.0.0.1";
  host.port = ntohs(at.sin_port);
  Doorsteps doorsteps({host});
  EXPECT_EQ(ask(doorsteps, "h0", Door::open), Door::open);
  ::close(listener);
  EXPECT_EQ(ask(doorsteps, "h0", Door::refused), Door::refused);
  EXPECT_EQ(doorsteps.knock("h9"), Door::silent) << "of whom nothing is known";
}

}  // namespace
