// Mutates a target's seeds, always in the same way: what runs where libFuzzer does not, above all under the sanitizers.
// usage: <target>_replay ROUNDS [SEED]
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "tests/fuzz/target.hpp"

namespace {

std::string mutated(std::string bytes, std::mt19937_64& random) {
  const auto place = [&] { return bytes.empty() ? 0 : random() % bytes.size(); };
  for (auto changes = random() % 4 + 1; changes > 0 && !bytes.empty(); --changes) {
    const auto at = place(), length = std::min<std::size_t>(random() % 16 + 1, bytes.size() - at);
    switch (random() % 7) {
      case 0:
        bytes[at] = static_cast<char>(random());
        break;
      case 1:
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << random() % 8));
        break;
      case 2:
        bytes[at] = static_cast<char>(bytes[at] + (random() % 2 == 0 ? 1 : -1));
        break;
      case 3:
        bytes.erase(at, length);
        break;
      case 4:
        bytes.insert(at, bytes.substr(place(), length));
        break;
      case 5:
        bytes.replace(at, length, length, static_cast<char>(random() % 2 == 0 ? 0xFF : 0));
        break;
      default:
        bytes.resize(at);
    }
  }
  return bytes;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return std::fprintf(stderr, "usage: %s ROUNDS [SEED]\n", argv[0]), 2;
  std::mt19937_64 random(argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1);
  const auto seeds = coppice::fuzz::seeds();
  const auto run = [](const std::string& bytes) {
    LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
  };
  for (const auto& seed : seeds) run(seed);
  for (auto rounds = std::strtoull(argv[1], nullptr, 10); rounds > 0; --rounds)
    run(mutated(seeds[random() % seeds.size()], random));
  std::printf("nothing broke\n");
}
