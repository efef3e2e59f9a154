#include "runtime/launcher.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <sstream>
#include <thread>

namespace coppice::runtime {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using Words = std::vector<std::string>;

const Host kHost{"h1", "10.77.0.2", 7000, "cpu", false};

Words command_of(const std::string& launcher, const Words& command = {"coppice", "node", "--name", "h1"}) {
  const auto argv = launch_command(launcher, kHost, command);
  EXPECT_TRUE(argv) << argv.error().what;
  return argv.value_or(Words{});
}

TEST(LaunchCommand, FillsTheTemplateWordByWord) {
  EXPECT_EQ(command_of("{command}"), (Words{"coppice", "node", "--name", "h1"}));
  EXPECT_EQ(command_of("ip netns exec {name} {command}"),
            (Words{"ip", "netns", "exec", "h1", "coppice", "node", "--name", "h1"}));
  EXPECT_EQ(command_of("ssh  me@{address}\t{command} --more"),
            (Words{"ssh", "me@10.77.0.2", "coppice", "node", "--name", "h1", "--more"}));
  EXPECT_EQ(command_of("sh -c 'cd /srv; {command}'", {"a b", "it's", ""}),
            (Words{"sh", "-c", "cd /srv; 'a b' 'it'\\''s' ''"}));
  EXPECT_EQ(command_of("ssh {address} \"{command}\"", {"a", "b c"}), (Words{"ssh", "10.77.0.2", "a 'b c'"}));
  EXPECT_EQ(command_of(R"(a\ b "c \" \x" '' ${HOME} x{}y {command})", {"c"}),
            (Words{"a b", "c \" \\x", "", "${HOME}", "x{}y", "c"}));
}

TEST(LaunchCommand, FilledInTextIsNotFilledAgain) {
  EXPECT_EQ(command_of("env {command}", {"{name}", "a\"b"}), (Words{"env", "{name}", "a\"b"}));
}

TEST(LaunchCommand, NamesWhatIsWrong) {
  const std::vector<std::pair<std::string, std::string>> faults{{"", "no {command}"},
                                                                {"ssh {address}", "no {command}"},
                                                                {"ssh {host} {command}", "{host}"},
                                                                {"sh -c '{command}", "not closed"},
                                                                {"sh -c \"{command}", "not closed"},
                                                                {"{command} \\", "lone backslash"},
                                                                {"'' {command}", "no program"}};
  for (const auto& [launcher, says] : faults) {
    const auto argv = launch_command(launcher, kHost, {"coppice"});
    ASSERT_FALSE(argv) << launcher;
    EXPECT_TRUE(argv.error().what.starts_with("launcher: ")) << argv.error().what;
    EXPECT_NE(argv.error().what.find(says), std::string::npos) << argv.error().what;
  }
}

RC_GTEST_PROP(LaunchCommand, PassesEveryWordThroughUnchanged, (Words words)) {
  words.insert(words.begin(), "coppice");
  const auto argv = launch_command("{command}", kHost, words);
  RC_ASSERT(argv.has_value());
  RC_ASSERT(*argv == words);
}

// The quoted form and the splitter are each other's inverse.
RC_GTEST_PROP(LaunchCommand, QuotedTextSplitsIntoTheSameWords, (Words words)) {
  words.insert(words.begin(), "coppice");
  const auto one = launch_command("sh -c '{command}'", kHost, words);
  RC_ASSERT(one.has_value());
  RC_ASSERT(one->size() == 3U);
  const std::string text = one->back();
  RC_PRE(text.find('{') == std::string::npos);
  const auto back = launch_command(text + " {command}", kHost, {"end"});
  words.push_back("end");
  RC_ASSERT(back.has_value());
  RC_ASSERT(*back == words);
}

// ---- processes -----------------------------------------------------------------------------------------------------

template <class Condition>
bool soon(const Condition& condition) {
  const auto deadline = std::chrono::steady_clock::now() + 20s;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(2ms);
  }
  return true;
}

// A killed orphan stays a zombie until init reaps it: that is gone too.
bool is_gone(pid_t pid) {
  std::ifstream stat("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  if (!std::getline(stat, text)) return true;
  const auto state = text.rfind(") ");
  return state != std::string::npos && (text[state + 2] == 'Z' || text[state + 2] == 'X');
}

class Launching : public testing::Test {
 protected:
  Launching() {
    auto pattern = (fs::temp_directory_path() / "coppice-launcher-XXXXXX").string();
    scratch_ = ::mkdtemp(pattern.data());
  }
  ~Launching() override { fs::remove_all(scratch_); }

  static void shell(Launcher& launcher, const std::string& name, const std::string& script) {
    const auto started = launcher.start(name, {"/bin/sh", "-c", script});
    ASSERT_TRUE(started) << started.error().what;
  }
  static Exit next_exit(Launcher& launcher) {
    std::vector<Exit> exits;
    EXPECT_TRUE(soon([&] {
      exits = launcher.reap();
      return !exits.empty();
    }));
    return exits.empty() ? Exit{} : exits.front();
  }
  std::string log(const std::string& name) const {
    std::ostringstream text;
    text << std::ifstream(logs() / (name + ".log")).rdbuf();
    return text.str();
  }
  bool logged(const std::string& name, const std::string& text) const {
    return soon([&] { return log(name).find(text) != std::string::npos; });
  }
  fs::path logs() const { return scratch_ / "logs"; }

  fs::path scratch_;
};

TEST_F(Launching, ReportsStatusAndLastLine) {
  Launcher launcher(logs(), 1s);
  shell(launcher, "h0", "echo starting; echo 'coppice node: port 7000 is in use' >&2; echo; exit 2");
  const auto exit = next_exit(launcher);
  EXPECT_EQ(exit.name, "h0");
  EXPECT_TRUE(WIFEXITED(exit.status) && WEXITSTATUS(exit.status) == 2);
  EXPECT_EQ(exit.reason, "exit status 2: coppice node: port 7000 is in use");
  EXPECT_EQ(log("h0"), "starting\ncoppice node: port 7000 is in use\n\n");
  EXPECT_FALSE(launcher.pid("h0"));
  EXPECT_TRUE(launcher.reap().empty());
}

TEST_F(Launching, ReasonIsOfThisRunBoundedAndOneLine) {
  Launcher launcher(logs(), 1s);
  shell(launcher, "h0", "echo first; exit 1");
  EXPECT_EQ(next_exit(launcher).reason, "exit status 1: first");
  shell(launcher, "h0", "exit 3");
  EXPECT_EQ(next_exit(launcher).reason, "exit status 3");
  shell(launcher, "h0", "head -c 100000 /dev/zero | tr '\\0' x; printf '\\n\\033[31mred'");
  EXPECT_EQ(next_exit(launcher).reason, "exit status 0:  [31mred");
  shell(launcher, "h0", "head -c 100000 /dev/zero | tr '\\0' x");
  EXPECT_LT(next_exit(launcher).reason.size(), 500U);
}

TEST_F(Launching, NamesTheSignalThatKilled) {
  Launcher launcher(logs(), 1s);
  shell(launcher, "h0", "kill -SEGV $$");
  const auto exit = next_exit(launcher);
  EXPECT_TRUE(WIFSIGNALED(exit.status));
  EXPECT_TRUE(exit.reason.starts_with("killed by SIGSEGV")) << exit.reason;
}

TEST_F(Launching, StartSaysThatAProgramCannotRun) {
  Launcher launcher(logs(), 1s);
  const auto missing = launcher.start("h0", {"no-such-program-here", "x"});
  ASSERT_FALSE(missing);
  EXPECT_NE(missing.error().what.find("cannot run \"no-such-program-here\" for \"h0\": No such file"),
            std::string::npos)
      << missing.error().what;
  EXPECT_FALSE(launcher.start("h0", {"/dev/null"}));
  EXPECT_FALSE(launcher.start("h0", {}));
  EXPECT_FALSE(launcher.start("h0", {""}));
  EXPECT_FALSE(launcher.start("../h0", {"true"}));
  EXPECT_FALSE(launcher.pid("h0"));
  shell(launcher, "h0", "sleep 100");
  const auto twice = launcher.start("h0", {"true"});
  ASSERT_FALSE(twice);
  EXPECT_NE(twice.error().what.find("\"h0\" runs already"), std::string::npos);
}

TEST_F(Launching, LogThatCannotBeWrittenIsNamed) {
  std::ofstream(scratch_ / "file") << "";
  Launcher launcher(scratch_ / "file", 1s);
  const auto started = launcher.start("h0", {"true"});
  ASSERT_FALSE(started);
  EXPECT_NE(started.error().what.find((scratch_ / "file" / "h0.log").string()), std::string::npos)
      << started.error().what;
}

TEST_F(Launching, ChildrenGetACleanSlate) {
  const int leaked = ::open("/dev/null", O_RDONLY);  // without O_CLOEXEC
  sigset_t blocked, before;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGTERM);
  ::pthread_sigmask(SIG_BLOCK, &blocked, &before);
  const auto handler = ::signal(SIGPIPE, SIG_IGN);
  Launcher launcher(logs(), 5s);
  shell(launcher, "h0",
        "ls /proc/self/fd | tr '\\n' ' '; readlink /proc/$$/fd/0; "
        "grep -E 'SigBlk|SigIgn' /proc/$$/status | tr '\\t\\n' '  ';");
  next_exit(launcher);
  ::signal(SIGPIPE, handler);
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  ::close(leaked);
  const auto text = log("h0");
  EXPECT_TRUE(text.starts_with("0 1 2 3 /dev/null\n")) << text;  // 3 is what ls reads
  EXPECT_NE(text.find("SigBlk: 0000000000000000"), std::string::npos) << text;
  EXPECT_NE(text.find("SigIgn: 0000000000000000"), std::string::npos) << text;
}

TEST_F(Launching, EachRunsInItsOwnGroupAndIsSignalledByName) {
  Launcher launcher(logs(), 1s);
  shell(launcher, "h0", "sleep 100");
  shell(launcher, "h1", "sleep 100");
  for (const char* name : {"h0", "h1"}) EXPECT_EQ(::getpgid(*launcher.pid(name)), *launcher.pid(name));
  launcher.signal("nobody", SIGKILL);
  launcher.signal("h1", SIGKILL);
  const auto exit = next_exit(launcher);
  EXPECT_EQ(exit.name, "h1");
  EXPECT_EQ(exit.reason, "killed by SIGKILL");
  EXPECT_TRUE(launcher.pid("h0"));
}

TEST_F(Launching, StopIsGentleFirst) {
  Launcher launcher(logs(), 20s);
  shell(launcher, "h0", "trap 'echo goodbye; exit 0' TERM; echo ready; while :; do sleep 0.01; done");
  ASSERT_TRUE(logged("h0", "ready"));
  const auto start = std::chrono::steady_clock::now();
  launcher.stop();
  EXPECT_LT(std::chrono::steady_clock::now() - start, 10s);
  EXPECT_NE(log("h0").find("goodbye"), std::string::npos);
  launcher.stop();
  EXPECT_TRUE(launcher.reap().empty());
}

TEST_F(Launching, StopKillsTheStubbornAndTheStopped) {
  Launcher launcher(logs(), 300ms);
  shell(launcher, "deaf", "trap '' TERM; echo ready; while :; do sleep 0.05; done");
  shell(launcher, "frozen", "trap '' TERM; echo ready; kill -STOP $$; while :; do sleep 0.05; done");
  shell(launcher, "asleep", "sleep 100");
  ASSERT_TRUE(logged("deaf", "ready") && logged("frozen", "ready"));
  std::vector<pid_t> pids;
  for (const char* name : {"deaf", "frozen", "asleep"}) pids.push_back(*launcher.pid(name));
  const auto start = std::chrono::steady_clock::now();
  launcher.stop();
  EXPECT_GE(std::chrono::steady_clock::now() - start, 300ms);
  EXPECT_LT(std::chrono::steady_clock::now() - start, 10s);
  for (const pid_t pid : pids) EXPECT_TRUE(::kill(pid, 0) != 0 && errno == ESRCH) << pid;
}

TEST_F(Launching, AStoppedChildEndsGentlyToo) {
  Launcher launcher(logs(), 20s);
  shell(launcher, "h0", "echo ready; sleep 100");
  ASSERT_TRUE(logged("h0", "ready"));
  launcher.signal("h0", SIGSTOP);
  const auto start = std::chrono::steady_clock::now();
  launcher.stop();
  EXPECT_LT(std::chrono::steady_clock::now() - start, 10s);
}

TEST_F(Launching, NothingIsLeftAfterTheDestructor) {
  std::vector<pid_t> pids;
  {
    Launcher launcher(logs(), 100ms);
    shell(launcher, "h0",
          "trap '' TERM; sleep 1000 & echo $! > " + (scratch_ / "grandchild").string() +
              "; echo ready; while :; do sleep 0.05; done");
    shell(launcher, "h1", "sleep 1000");
    ASSERT_TRUE(logged("h0", "ready"));
    pids = {*launcher.pid("h0"), *launcher.pid("h1"), 0};
    std::ifstream(scratch_ / "grandchild") >> pids.back();
    ASSERT_GT(pids.back(), 0);
  }
  for (const pid_t pid : pids) EXPECT_TRUE(soon([&] { return is_gone(pid); })) << pid;
}

TEST_F(Launching, WhatAChildLeavesInItsGroupDiesWithIt) {
  Launcher launcher(logs(), 1s);
  shell(launcher, "h0", "sleep 1000 & echo $! > " + (scratch_ / "orphan").string() + "; exit 0");
  EXPECT_EQ(next_exit(launcher).status, 0);
  pid_t orphan = 0;
  std::ifstream(scratch_ / "orphan") >> orphan;
  ASSERT_GT(orphan, 0);
  EXPECT_TRUE(soon([&] { return is_gone(orphan); }));
}

// A process that launches is killed outright: no destructor runs, and its children must go all the same.
TEST_F(Launching, ChildrenDieWithAKilledParent) {
  const pid_t parent = ::fork();
  ASSERT_GE(parent, 0);
  if (parent == 0) {
    Launcher launcher(logs(), 1s);
    const auto started =
        launcher.start("h0", {"/bin/sh", "-c", "trap '' TERM HUP; echo $$; while :; do sleep 0.05; done"});
    while (started) ::pause();
    ::_exit(1);
  }
  ASSERT_TRUE(logged("h0", "\n"));
  const pid_t child = std::stoi(log("h0"));
  ASSERT_FALSE(is_gone(child));
  ::kill(parent, SIGKILL);
  ::waitpid(parent, nullptr, 0);
  EXPECT_TRUE(soon([&] { return is_gone(child); }));
}

}  // namespace
}  // namespace coppice::runtime
