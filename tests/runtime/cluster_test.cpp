#include "runtime/cluster.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <random>

namespace coppice::runtime {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFile = "/srv/lab.toml";

// A file of three workers; `code` and `more` are put in their places.
std::string lab(const std::string& top = "", const std::string& code = "", const std::string& host = "") {
  return "name = \"lab\"\n" + top + "\n[code]\n" + code +
         "\n[[host]]\nname = \"g\"\naddress = \"10.77.0.1\"\nroles = [\"gateway\"]\n"
         "[[host]]\nname = \"h0\"\naddress = \"10.77.0.2\"\n"
         "[[host]]\nname = \"h1\"\naddress = \"10.77.0.3\"\n"
         "[[host]]\nname = \"h2\"\naddress = \"10.77.0.4\"\n" +
         host;
}

struct ScratchDirectory {
  fs::path path;
  ScratchDirectory() {
    auto pattern = (fs::temp_directory_path() / "coppice-cluster-XXXXXX").string();
    path = ::mkdtemp(pattern.data());
  }
  ~ScratchDirectory() { fs::remove_all(path); }
};

void write(const fs::path& file, const std::string& text) { std::ofstream(file, std::ios::binary) << text; }

TEST(Cluster, ReadsEveryKey) {
  const auto cluster = parse_cluster(
      "name = \"lab\"\nkeys = \"keys/\"\nlauncher = \"ssh {address} {command}\"\ntopology = \"lab.topology.json\"\n"
      "model = \"../nets/parity\"\nallow_faults = true\n"
      "[code]\nscheme = \"replicate\"\nworkers = 2\nneeded = 1\ndeadline_ms = 70\n"
      "[[host]]\nname = \"h0\"\naddress = \"10.77.0.1\"\nport = 7100\ndevice = \"cuda:1\"\nroles = [\"gateway\"]\n"
      "[[host]]\nname = \"h1\"\naddress = \"::1\"\n"
      "[[host]]\nname = \"h2\"\naddress = \"h2.lab\"\nport = 7001\ndevice = \"replay:h2.json\"\n",
      "/srv/lab/lab.toml");
  ASSERT_TRUE(cluster) << cluster.error().what;
  EXPECT_EQ(cluster->name, "lab");
  EXPECT_EQ(cluster->keys, "/srv/lab/keys");
  EXPECT_EQ(cluster->model, "/srv/nets/parity");
  EXPECT_EQ(cluster->topology, "/srv/lab/lab.topology.json");
  EXPECT_EQ(cluster->launcher, "ssh {address} {command}");
  EXPECT_TRUE(cluster->faults_allowed);
  EXPECT_EQ(cluster->code, (CodeSection{coding::Scheme::replicate, {2, 1}, std::chrono::milliseconds(70)}));
  EXPECT_EQ(cluster->gateway(), (Host{"h0", "10.77.0.1", 7100, "cuda:1", true}));
  ASSERT_EQ(cluster->workers().size(), 2U);
  EXPECT_EQ(cluster->workers()[0], (Host{"h1", "::1", 7000, "cpu", false}));
  EXPECT_EQ(cluster->workers()[1].device, "replay:/srv/lab/h2.json");
  EXPECT_EQ(cluster->find("h2"), &cluster->hosts[2]);
  EXPECT_EQ(cluster->find("h3"), nullptr);
}

TEST(Cluster, FillsInWhatIsLeftOut) {
  const auto cluster = parse_cluster(lab(), kFile);
  ASSERT_TRUE(cluster) << cluster.error().what;
  EXPECT_EQ(cluster->keys, "/srv/keys");
  EXPECT_TRUE(cluster->model.empty());
  EXPECT_TRUE(cluster->topology.empty());
  EXPECT_EQ(cluster->launcher, "{command}");
  EXPECT_FALSE(cluster->faults_allowed);
  EXPECT_EQ(cluster->code, (CodeSection{coding::Scheme::parity, {3, 1}, std::chrono::milliseconds(50)}));
  const auto uncoded = parse_cluster(lab("", "scheme = \"none\""), kFile);
  ASSERT_TRUE(uncoded) << uncoded.error().what;
  EXPECT_EQ(uncoded->code.shape, (coding::CodeShape{3, 3}));
}

TEST(Cluster, TakesRelativePathsFromTheFilesDirectory) {
  const auto cluster = parse_cluster(lab("keys = \"k\"\nmodel = \"/opt/m\""), "sub/lab.toml");
  ASSERT_TRUE(cluster) << cluster.error().what;
  EXPECT_EQ(cluster->keys, fs::current_path() / "sub" / "k");
  EXPECT_EQ(cluster->model, "/opt/m");
}

struct Fault {
  std::string toml, place, says;
};

TEST(Cluster, EveryFaultNamesFileLineAndKey) {
  const std::string nameless = "[[host]]\naddress = \"10.0.0.9\"\n";
  const std::vector<Fault> faults{
      {"name = \"lab\"\nkeys = [[\n", "/srv/lab.toml:", ""},
      {"name = \"lab\nkeys = 1\n", "/srv/lab.toml:1: ", ""},
      {lab("keyz = \"k\""), ":2: ", "unknown key \"keyz\"; did you mean \"keys\"?"},
      {lab("colour = 1"), ":2: ", "unknown key \"colour\"; known: name, keys, model"},
      {lab("", "worker = 3"), ":4: ", "unknown key \"code.worker\"; did you mean \"workers\"?"},
      {lab("", "", "prot = 1\n"), ":18: ", "unknown key \"host.prot\"; did you mean \"port\"?"},
      {"keys = \"k\"\n", "", "name: is missing"},
      {"name = \"\"\n", ":1: ", "name: is empty"},
      {"name = 5\n", ":1: ", "name: must be a string"},
      {"name = \"a\\u0000b\"\n", ":1: ", "name: holds a control character"},
      {lab("keys = \"\""), ":2: ", "keys: is empty"},
      {lab("launcher = \"ssh {address}\""), ":2: ", "has no {command}"},
      {lab("launcher = \"ssh {host} {command}\""), ":2: ", "unknown placeholder {host}"},
      {lab("launcher = \"'ssh {command}\""), ":2: ", "not closed"},
      {lab("allow_faults = 1"), ":2: ", "allow_faults: must be true or false"},
      {"name = \"lab\"\ncode = 3\n" + lab().substr(lab().find("[[host]]")), ":2: ", "code: must be a table"},
      {lab("", "scheme = \"fancy\""), ":4: ", "code.scheme: "},
      {lab("", "scheme = \"fancy\""), ":4: ", "harmonic"},
      {lab("", "workers = 4"), ":4: ", "code.workers: is 4 but the file has 3 worker hosts"},
      {lab("", "workers = 2.0"), ":4: ", "code.workers: must be a whole number"},
      {lab("", "needed = 4"), ":4: ", "code.needed: is 4 but must lie in 1..3"},
      {lab("", "needed = 0"), ":4: ", "code.needed: is 0"},
      {lab("", "scheme = \"none\"\nneeded = 2"), ":5: ", "code.needed: is 2 but scheme \"none\" needs all 3"},
      {lab("", "blocks = 2"), ":4: ", "code.blocks: is 2 but the file has 3 worker hosts"},
      {lab("", "blocks = 0"), ":4: ", "code.blocks: is 0"},
      {lab("", "blocks = 3\nworkers = 3"), ":5: ", "code.workers: is 3 in each of 3 blocks but the file has 3 worker hosts"},
      {lab("", "heads = \"gateway\""), ":4: ", "code.heads: goes with code.blocks"},
      {lab("", "blocks = 3\nheads = \"all\""), ":5: ", "code.heads: unknown: \"all\"; known: workers, gateway"},
      {lab("", "deadline_ms = 0"), ":4: ", "code.deadline_ms: is 0"},
      {"name = \"lab\"\n", "", "host: none is named"},
      {"name = \"lab\"\nhost = 1\n", ":2: ", "host: must be tables"},
      {"name = \"lab\"\nhost = [1]\n", ":2: ", "host: must be tables"},
      {lab("", "", nameless), ":18: ", "host.name: is missing"},
      {lab("", "", nameless + "name = \"../x\"\n"), ":20: ", "host.name: \"../x\" must be"},
      {lab("", "", nameless + "name = \"client\"\n"), ":20: ", "host.name: \"client\" is the name of a key"},
      {lab("", "", nameless + "name = \"h1\"\n"), ":18: ", "two hosts are called \"h1\" (the first is on line 12)"},
      {lab("", "", "[[host]]\nname = \"h3\"\n"), ":18: ", "host.address: is missing"},
      {lab("", "", "[[host]]\nname = \"h3\"\naddress = \"-oProxyCommand=x\"\n"), ":20: ", "host.address: "},
      {lab("", "", "[[host]]\nname = \"h3\"\naddress = \"10.77.0.4\"\n"),
       ":18: ", "\"h2\" and \"h3\" would both listen"},
      {lab("", "", "[[host]]\nname = \"h3\"\naddress = \"10.77.0.1\"\nport = 7001\n"), ":18: ", "10.77.0.1 port 7001"},
      {lab("", "", "port = 65536\n"), ":18: ", "host.port: is 65536"},
      {lab("", "", "port = \"7000\"\n"), ":18: ", "host.port: must be a whole number"},
      {lab("", "", "device = \"gpu\"\n"), ":18: ", "known: replay:FILE, cpu, cuda:N"},
      {lab("", "", "device = \"cuda:\"\n"), ":18: ", "host.device"},
      {lab("", "", "device = \"cuda:01\"\n"), ":18: ", "host.device"},
      {lab("", "", "device = \"cuda:256\"\n"), ":18: ", "host.device"},
      {lab("", "", "device = \"cuda:0:fp32\"\n"), ":18: ", "host.device"},
      {lab("", "", "device = \"replay:\"\n"), ":18: ", "host.device"},
      {lab("", "", "roles = \"gateway\"\n"), ":18: ", "host.roles: must be an array"},
      {lab("", "", "roles = [1]\n"), ":18: ", "host.roles: must be an array of strings"},
      {lab("", "", "roles = [\"worker\"]\n"), ":18: ", "unknown role \"worker\"; known: gateway"},
      {lab("", "", "roles = [\"gateway\"]\n"), ":15: ", "a second gateway, \"h2\"; \"g\" leads already (line 5)"},
      {"name = \"lab\"\n[[host]]\nname = \"a\"\naddress = \"::1\"\n", ":2: ", "host.roles: no host leads"},
      {"name = \"lab\"\n[[host]]\nname = \"a\"\naddress = \"::1\"\nroles = [\"gateway\"]\n",
       ":2: ", "host: there is no worker"},
  };
  for (const auto& fault : faults) {
    SCOPED_TRACE(fault.toml);
    const auto cluster = parse_cluster(fault.toml, kFile);
    ASSERT_FALSE(cluster);
    EXPECT_EQ(cluster.error().code, ErrorCode::bad_input);
    const auto& what = cluster.error().what;
    EXPECT_TRUE(what.starts_with(kFile + fault.place) || (!fault.place.starts_with(':') && what.starts_with(kFile)))
        << what;
    EXPECT_NE(what.find(fault.says), std::string::npos) << what;
    EXPECT_EQ(what.find('\n'), std::string::npos) << what;
  }
}

TEST(Cluster, RefusesMoreWorkersThanACodeHas) {
  std::string hosts;
  for (int i = 3; i < 33; ++i)
    hosts += "[[host]]\nname = \"h" + std::to_string(i) + "\"\naddress = \"h" + std::to_string(i) + "\"\n";
  const auto cluster = parse_cluster(lab("", "", hosts), kFile);
  ASSERT_FALSE(cluster);
  EXPECT_NE(cluster.error().what.find("32 workers"), std::string::npos) << cluster.error().what;
  const auto shared_out = parse_cluster(lab("", "blocks = 3", hosts), kFile);
  ASSERT_TRUE(shared_out) << shared_out.error().what;
  EXPECT_EQ(shared_out->code.shape, (coding::CodeShape{11, 10})) << "any all but one of each block";
  EXPECT_FALSE(shared_out->code.gateway_heads);
}

TEST(Cluster, NestingCannotExhaustTheStack) {
  const std::string deep_key = [] {
    std::string key = "a";
    for (int i = 0; i < 400'000; ++i) key += ".a";
    return key;
  }();
  std::string brackets(500'000, '[');
  std::string tables;
  for (int i = 0; i < 200; ++i) tables += "[\n{a.a.a.a.a.a.a.a = ";
  for (const auto& toml : {deep_key + " = 1\n", "[" + deep_key + "]\n", "x = " + brackets, "x = " + tables,
                           "name = \"\"\"\n" + deep_key + "\"\"\"\n", "x = '''" + deep_key + "'''\n"}) {
    const auto cluster = parse_cluster(toml, kFile);
    ASSERT_FALSE(cluster);
    EXPECT_TRUE(cluster.error().what.starts_with(std::string(kFile) + ":")) << cluster.error().what;
  }
}

TEST(Cluster, CommentsAndQuotedDotsAreNoNesting) {
  const std::string dots(200, '.');
  const auto cluster = parse_cluster("# " + dots + " [[[[[[[[[[[ '''\n" + lab("keys = 'k" + dots + "k'"), kFile);
  EXPECT_TRUE(cluster) << cluster.error().what;
}

TEST(Cluster, LoadsAFileAndNamesWhyItCannot) {
  const ScratchDirectory scratch;
  const auto file = scratch.path / "lab.toml";
  const auto error = [&] { return load_cluster(file).error().what; };
  EXPECT_EQ(error(), file.string() + ": No such file or directory");
  write(file, lab());
  ASSERT_TRUE(load_cluster(file));
  EXPECT_EQ(load_cluster(file)->keys, scratch.path / "keys");
  write(file, std::string((1U << 20) + 1, '#'));
  EXPECT_EQ(error(), file.string() + ": is larger than 1048576 bytes");
  fs::remove(file);
  fs::create_directory(file);
  EXPECT_EQ(error(), file.string() + ": is not a regular file");
  fs::remove(file);
  ASSERT_EQ(::mkfifo(file.c_str(), 0600), 0);
  EXPECT_EQ(error(), file.string() + ": is not a regular file");
}

// ---- properties ----------------------------------------------------------------------------------------------------

Cluster any_cluster() {
  const auto words = rc::gen::container<std::string>(rc::gen::elementOf(std::string("ab \"\\'#{}[]=.~")));
  const auto path = [&](const char* root) { return (fs::path(root) / ("x" + *words + "y")).lexically_normal(); };
  Cluster cluster;
  cluster.name = "n" + *words;
  cluster.keys = path("/keys");
  if (*rc::gen::arbitrary<bool>()) cluster.model = path("/m");
  if (*rc::gen::arbitrary<bool>()) cluster.topology = path("/t");
  cluster.launcher =
      *rc::gen::element<std::string>("{command}", "ssh {address} {command}", "sh -c \"a\\\\b '{command}'\"");
  cluster.faults_allowed = *rc::gen::arbitrary<bool>();
  const int workers = *rc::gen::inRange(1, coding::kWorkersMax + 1);
  cluster.code.scheme = *rc::gen::element(coding::Scheme::none, coding::Scheme::replicate, coding::Scheme::harmonic,
                                          coding::Scheme::parity, coding::Scheme::wide, coding::Scheme::control);
  const bool uncoded = cluster.code.scheme == coding::Scheme::none;
  cluster.code.shape = {workers, uncoded ? workers : *rc::gen::inRange(1, workers + 1)};
  const int blocks = *rc::gen::inRange(0, 5);  // so many, with the workers of one each; 0: none
  cluster.code.blocks = blocks;
  cluster.code.gateway_heads = blocks > 0 && *rc::gen::arbitrary<bool>();
  cluster.code.deadline = std::chrono::milliseconds(*rc::gen::inRange(1, 600'000));
  const int in_all = workers * std::max(1, blocks);
  for (int i = 0; i <= in_all; ++i) {
    cluster.hosts.push_back({"h" + std::to_string(i), "10.0.0." + std::to_string(i),
                             static_cast<std::uint16_t>(*rc::gen::inRange(1, 65'535)),
                             *rc::gen::element<std::string>("cpu", "cuda:0", "cuda:255", "cuda:1:fp16", "replay:/a b.json"), false});
  }
  cluster.hosts[static_cast<std::size_t>(*rc::gen::inRange(0, in_all + 1))].gateway = true;
  return cluster;
}

RC_GTEST_PROP(Cluster, ReadsBackWhatItWrites, ()) {
  const auto cluster = any_cluster();
  const auto back = parse_cluster(to_toml(cluster), kFile);
  if (!back) RC_FAIL(back.error().what + "\n" + to_toml(cluster));
  RC_ASSERT(*back == cluster);
}

TEST(Cluster, MutatedFilesNeverCrash) {
  constexpr unsigned kSeed = 20240501;
  SCOPED_TRACE("SEED=" + std::to_string(kSeed));
  const std::string original = lab("keys = \"k\"\nlauncher = \"ssh {address} {command}\"\nallow_faults = true",
                                   "scheme = \"parity\"\nworkers = 3\nneeded = 2\ndeadline_ms = 50");
  const std::string spice = "\"'[]{}=.#\n\\,0x-\xC3\xFF";
  std::mt19937 random(kSeed);
  const auto below = [&](std::size_t end) { return std::uniform_int_distribution<std::size_t>(0, end - 1)(random); };
  int read = 0;
  for (int round = 0; round < 2'000; ++round) {
    auto text = original;
    for (std::size_t edits = 1 + below(4); edits > 0; --edits) {
      const auto at = below(text.size());
      switch (below(4)) {
        case 0:
          text[at] = static_cast<char>(below(256));
          break;
        case 1:
          text.insert(at, 1, spice[below(spice.size())]);
          break;
        case 2:
          text.erase(at, 1 + below(8));
          break;
        default:
          text.insert(below(text.size()), text.substr(at, 1 + below(40)));
          break;
      }
    }
    const auto cluster = parse_cluster(text, kFile);
    if (!cluster) {
      ASSERT_TRUE(cluster.error().what.starts_with(kFile)) << cluster.error().what;
      continue;
    }
    ++read;
    const auto again = parse_cluster(to_toml(*cluster), kFile);
    ASSERT_TRUE(again) << again.error().what;
    ASSERT_EQ(*again, *cluster);
  }
  EXPECT_GT(read, 0);
}

TEST(Cluster, PlainNamesCannotLeaveADirectoryOrBeOptions) {
  for (const char* good : {"h0", "a.b-c_d", "_", "0", "subnet0.onnx"}) EXPECT_TRUE(is_plain_name(good)) << good;
  for (const char* bad : {"", ".", "..", ".h", "-h", "a/b", "a b", "a\n", "é"}) EXPECT_FALSE(is_plain_name(bad)) << bad;
  EXPECT_TRUE(is_plain_name(std::string(64, 'a')));
  EXPECT_FALSE(is_plain_name(std::string(65, 'a')));
}

TEST(Cluster, OneLineHasNoControlCharactersAndEnds) {
  EXPECT_EQ(one_line("a\nb\x1b[31m\n"), "a b [31m");
  EXPECT_LE(one_line(std::string(10'000, 'x')).size(), 403U);
}

}  // namespace
}  // namespace coppice::runtime
