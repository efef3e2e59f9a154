#include "apps/local_cluster.hpp"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <fstream>
#include <set>

#include "runtime/keys.hpp"

namespace coppice::apps {
namespace {

bool bindable(std::uint16_t port) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return false;
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const bool bound = ::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  ::close(fd);
  return bound;
}

// `count` consecutive ports that nobody listens on, below the range that outgoing connections take theirs from.
std::optional<std::uint16_t> free_run(int count) {
  constexpr int kFirst = 20'000, kLast = 32'000;
  const int span = kLast - kFirst - count;
  const int start = static_cast<int>(::getpid()) * 37 % span;
  for (int tried = 0; tried < span; tried += count) {
    const int base = kFirst + (start + tried) % span;
    int good = 0;
    while (good < count && bindable(static_cast<std::uint16_t>(base + good))) ++good;
    if (good == count) return static_cast<std::uint16_t>(base);
  }
  return std::nullopt;
}

}  // namespace

runtime::Expected<LocalCluster> make_local_cluster(const std::filesystem::path& directory,
                                                   const std::filesystem::path& model_directory,
                                                   const runtime::Manifest& manifest) {
  std::error_code fault;
  std::filesystem::remove_all(directory, fault);
  std::filesystem::create_directories(directory / "logs", fault);
  if (fault) return runtime::bad_input("cannot make " + directory.string() + ": " + fault.message());

  LocalCluster made;
  made.file = directory / "cluster.toml";
  made.logs = directory / "logs";
  auto& cluster = made.cluster;
  cluster.name = "local";
  cluster.keys = directory / "keys";
  cluster.model = std::filesystem::absolute(model_directory);
  cluster.faults_allowed = true;
  cluster.code.scheme = manifest.scheme;
  cluster.code.shape = manifest.shape;
  cluster.code.blocks = static_cast<int>(manifest.blocks.size());
  const auto workers = static_cast<int>(manifest.workers.size());
  const auto base = free_run(workers + 2);
  if (!base) return runtime::failed("no free ports between 20000 and 32000 on 127.0.0.1");
  runtime::Host gateway;
  gateway.name = "gateway";
  gateway.address = "127.0.0.1";
  gateway.port = *base;  // and control on the next
  gateway.gateway = true;
  cluster.hosts.push_back(gateway);
  std::vector<std::string> names{gateway.name};
  for (int w = 0; w < workers; ++w) {
    runtime::Host host;
    host.name = "w" + std::to_string(w);
    host.address = "127.0.0.1";
    host.port = static_cast<std::uint16_t>(*base + 2 + w);
    names.push_back(host.name);
    cluster.hosts.push_back(host);
  }
  std::ofstream(made.file) << runtime::to_toml(cluster);
  auto reread = runtime::load_cluster(made.file);  // what the nodes will read
  if (!reread) return tl::unexpected(reread.error());
  if (auto keys = runtime::make_keys(cluster.keys, names, true); !keys) return tl::unexpected(keys.error());
  return made;
}

}  // namespace coppice::apps
