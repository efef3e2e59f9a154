// What ZeroMQ alone needs for a small allreduce over a star: every leaf sends its floats to rank 0, which adds them up and
// sends the sums back. No plan, no faults, keys only where they are asked for (one pair for all, from the seed of a test):
// the least that an allreduce over ZeroMQ's sockets can take.
//   zmq_star RANK RANKS ADDRESS:PORT BYTES CALLS plain|curve    (the address is rank 0's)
// Rank 0 prints "seconds S" for each call.
#include <zmq.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace {

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "zmq_star: %s: %s\n", what, zmq_strerror(zmq_errno()));
  std::exit(1);
}

void check(int result, const char* what) {
  if (result < 0) fail(what);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 7) {
    std::fprintf(stderr, "zmq_star RANK RANKS ADDRESS:PORT BYTES CALLS plain|curve\n");
    return 2;
  }
  const int rank = std::atoi(argv[1]), ranks = std::atoi(argv[2]), calls = std::atoi(argv[5]);
  const std::string where = std::string("tcp://") + argv[3];
  const std::size_t count = static_cast<std::size_t>(std::atol(argv[4])) / sizeof(float);
  const std::size_t bytes = count * sizeof(float);
  void* context = zmq_ctx_new();
  void* socket = zmq_socket(context, rank == 0 ? ZMQ_ROUTER : ZMQ_DEALER);
  if (argv[6] == std::string("curve")) {
    char open[41], closed[41];
    const unsigned char seed[32] = {7, 1, 8, 2};  // a secret key that everybody knows: this measures, and hides nothing
    zmq_z85_encode(closed, seed, sizeof seed);
    check(zmq_curve_public(open, closed), "curve");
    const int yes = 1;
    if (rank == 0) check(zmq_setsockopt(socket, ZMQ_CURVE_SERVER, &yes, sizeof yes), "curve");
    if (rank != 0) check(zmq_setsockopt(socket, ZMQ_CURVE_SERVERKEY, open, sizeof open), "curve");
    if (rank != 0) check(zmq_setsockopt(socket, ZMQ_CURVE_PUBLICKEY, open, sizeof open), "curve");
    check(zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, closed, sizeof closed), "curve");
  }
  check(rank == 0 ? zmq_bind(socket, where.c_str()) : zmq_connect(socket, where.c_str()), where.c_str());
  constexpr int kWarmUp = 20;
  for (int call = -kWarmUp; call < calls; ++call) {
    std::vector<float> values(count, static_cast<float>(rank + call)), other(count);
    const auto begun = std::chrono::steady_clock::now();
    if (rank == 0) {
      std::vector<std::string> names;
      for (int leaf = 1; leaf < ranks; ++leaf) {
        char name[256];
        const int length = zmq_recv(socket, name, sizeof name, 0);
        check(length, "receive");
        names.emplace_back(name, static_cast<std::size_t>(length));
        check(zmq_recv(socket, other.data(), bytes, 0), "receive");
        for (std::size_t i = 0; i < count; ++i) values[i] += other[i];
      }
      for (const auto& name : names) {
        check(zmq_send(socket, name.data(), name.size(), ZMQ_SNDMORE), "send");
        check(zmq_send(socket, values.data(), bytes, 0), "send");
      }
    } else {
      check(zmq_send(socket, values.data(), bytes, 0), "send");
      check(zmq_recv(socket, values.data(), bytes, 0), "receive");
    }
    const float right = static_cast<float>(ranks * (ranks - 1) / 2 + ranks * call);
    for (const float value : values)
      if (value != right) {
        std::fprintf(stderr, "zmq_star: rank %d, call %d: %g, not %g\n", rank, call, static_cast<double>(value), static_cast<double>(right));
        return 1;
      }
    // Rank 0's own clock from call to call: from its last sends to the next call's all is counted.
    if (rank == 0 && call >= 0) std::printf("seconds %.9f\n", std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count());
  }
  zmq_close(socket);
  zmq_ctx_term(context);
  return 0;
}
