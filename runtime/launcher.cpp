#include "runtime/launcher.hpp"

#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <thread>
#include <utility>

namespace coppice::runtime {
namespace {

// ---- the template --------------------------------------------------------------------------------------------------

struct Word {
  std::string text;
  bool plain = true;  // nothing in it was quoted
};

bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\n'; }

Expected<std::vector<Word>> split_words(std::string_view text) {
  std::vector<Word> words;
  bool open = false;  // inside a word
  const auto word = [&]() -> Word& {
    if (!open) words.emplace_back();
    open = true;
    return words.back();
  };
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (is_blank(c)) {
      open = false;
    } else if (c == '\\') {
      if (++i == text.size()) return bad_input("launcher: ends in a lone backslash");
      if (text[i] == '\n') continue;  // the line goes on
      word().text += text[i];
      word().plain = false;
    } else if (c == '\'' || c == '"') {
      word().plain = false;
      for (++i; i < text.size() && text[i] != c; ++i) {
        const bool escape = c == '"' && text[i] == '\\' && i + 1 < text.size() &&
                            std::string_view("\\\"$`").find(text[i + 1]) != std::string_view::npos;
        if (escape) ++i;
        word().text += text[i];
      }
      if (i >= text.size()) return bad_input(std::string("launcher: a quote ") + c + " is not closed");
    } else {
      word().text += c;
    }
  }
  return words;
}

std::string shell_quoted(const std::string& word) {
  const auto safe = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           std::string_view("@%+=:,./_-").find(c) != std::string_view::npos;
  };
  if (!word.empty() && std::all_of(word.begin(), word.end(), safe)) return word;
  std::string result = "'";
  for (const char c : word) {
    if (c == '\'')
      result += "'\\''";
    else
      result += c;
  }
  return result + "'";
}

std::string shell_joined(const std::vector<std::string>& words) {
  std::string result;
  for (const auto& word : words) result += (result.empty() ? "" : " ") + shell_quoted(word);
  return result;
}

bool is_placeholder(std::string_view inner) {
  return !inner.empty() &&
         std::all_of(inner.begin(), inner.end(), [](char c) { return (c >= 'a' && c <= 'z') || c == '_'; });
}

// One word with its placeholders filled in. What is filled in is not looked at again.
Expected<std::string> filled(std::string_view word, const Host& host, const std::vector<std::string>& command) {
  std::string result;
  while (!word.empty()) {
    const auto open = word.find('{');
    result += word.substr(0, open);
    if (open == std::string_view::npos) break;
    word.remove_prefix(open);
    const auto close = word.find('}');
    const auto inner = close == std::string_view::npos ? std::string_view() : word.substr(1, close - 1);
    if (inner == "name") {
      result += host.name;
    } else if (inner == "address") {
      result += host.address;
    } else if (inner == "command") {
      result += shell_joined(command);
    } else if (is_placeholder(inner)) {
      return bad_input("launcher: unknown placeholder {" + one_line(inner) + "}; known: {name}, {address}, {command}");
    } else {  // a brace that is no placeholder stands for itself
      result += '{';
      word.remove_prefix(1);
      continue;
    }
    word.remove_prefix(close + 1);
  }
  return result;
}

// ---- starting ------------------------------------------------------------------------------------------------------

class Fd {
 public:
  explicit Fd(int descriptor = -1) : fd_(descriptor) {}
  ~Fd() { reset(); }
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&&) = delete;
  int get() const { return fd_; }
  bool good() const { return fd_ >= 0; }
  void reset() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }

 private:
  int fd_;
};

// Away from 0, 1 and 2, which the child fills anew: this process may have been started with those closed.
Fd above_standard(int descriptor) {
  const Fd original(descriptor);
  return Fd(original.good() ? ::fcntl(original.get(), F_DUPFD_CLOEXEC, 3) : -1);
}

// All that the child needs, made before the fork: after it only async-signal-safe calls are allowed, since another
// thread may have held any lock (malloc's, say) at that moment.
struct ChildPlan {
  char* const* argv;
  int null, log, report;  // report: the parent reads the errno of a failed start from its other end
  pid_t parent;
  int descriptors_max;
  sigset_t mask;  // what the child shall block: nothing
};

void close_rest_on_exec(int descriptors_max) {
  if (::close_range(3, ~0U, CLOSE_RANGE_CLOEXEC) == 0) return;
  for (int fd = 3; fd < descriptors_max; ++fd) ::fcntl(fd, F_SETFD, FD_CLOEXEC);
}

// Handlers and blocked signals of this process must not reach a program that knows nothing of them.
void reset_signals(const ChildPlan& plan) {
  struct sigaction usual {};
  usual.sa_handler = SIG_DFL;
  for (int number = 1; number < NSIG; ++number) ::sigaction(number, &usual, nullptr);
  ::sigprocmask(SIG_SETMASK, &plan.mask, nullptr);
}

[[noreturn]] void give_up(const ChildPlan& plan) {
  const int error = errno;
  [[maybe_unused]] const auto ignored = ::write(plan.report, &error, sizeof error);
  ::_exit(127);
}

[[noreturn]] void run_child(const ChildPlan& plan) {
  if (::setpgid(0, 0) != 0) give_up(plan);
  if (::prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) give_up(plan);
  if (::getppid() != plan.parent) ::_exit(127);  // it died before the line above: no signal will come
  if (::dup2(plan.null, 0) < 0 || ::dup2(plan.log, 1) < 0 || ::dup2(plan.log, 2) < 0) give_up(plan);
  close_rest_on_exec(plan.descriptors_max);
  reset_signals(plan);
  // Not on POSIX's list of safe calls, but glibc's takes no lock and allocates on the stack alone.
  ::execvp(plan.argv[0], plan.argv);
  give_up(plan);
}

pid_t fork_child(const ChildPlan& plan) {
  // Blocked across the fork, so that no handler of this process runs in the child.
  sigset_t all, before;
  sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  const pid_t pid = ::fork();
  if (pid == 0) run_child(plan);
  const int error = errno;
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  errno = error;
  return pid;
}

void wait_for(pid_t pid, int* status) {
  while (::waitpid(pid, status, 0) < 0 && errno == EINTR) {
  }
}

// The errno that the child failed with, or 0 once it runs its program: exec closes the pipe.
int start_error(int pipe) {
  int error = 0;
  ssize_t got = 0;
  do {
    got = ::read(pipe, &error, sizeof error);
  } while (got < 0 && errno == EINTR);
  return got == static_cast<ssize_t>(sizeof error) ? error : 0;
}

// ---- ending --------------------------------------------------------------------------------------------------------

// Whether the child has ended; it stays a zombie, so that its pid and its group's number cannot be reused yet.
bool has_ended(pid_t pid) {
  siginfo_t info{};
  return ::waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOHANG | WNOWAIT) != 0 ? errno == ECHILD
                                                                                          : info.si_pid == pid;
}

// Kills the child, if it still runs, and what it leaves in its group, while the group's number is still its own: a
// child that someone else has reaped is left alone.
int bury(pid_t pid) {
  siginfo_t info{};
  int status = 0;
  if (::waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOHANG | WNOWAIT) != 0) return status;
  ::kill(-pid, SIGKILL);
  wait_for(pid, &status);
  return status;
}

// What the last `kTail` bytes of the log end in, from this run alone; blank lines are skipped.
std::string last_line(const std::filesystem::path& log, off_t from) {
  constexpr off_t kTail = 4'096;
  const Fd fd(::open(log.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  struct stat status {};
  if (!fd.good() || ::fstat(fd.get(), &status) != 0) return {};
  std::array<char, kTail> bytes;
  const off_t start = std::max(from, status.st_size - kTail);
  const auto got = ::pread(fd.get(), bytes.data(), bytes.size(), start);
  std::string_view text(bytes.data(), got > 0 ? static_cast<std::size_t>(got) : 0);
  const auto end = text.find_last_not_of(" \t\r\n");
  if (end == std::string_view::npos) return {};
  text = text.substr(0, end + 1);
  const auto line = text.find_last_of('\n');
  return one_line(line == std::string_view::npos ? text : text.substr(line + 1));
}

std::string ending(int status) {
  if (WIFEXITED(status)) return "exit status " + std::to_string(WEXITSTATUS(status));
  const int number = WTERMSIG(status);
  const char* name = ::sigabbrev_np(number);
  return "killed by " + (name ? "SIG" + std::string(name) : "signal " + std::to_string(number));
}

}  // namespace

Expected<std::vector<std::string>> launch_command(const std::string& launcher, const Host& host,
                                                  const std::vector<std::string>& command) {
  const auto words = split_words(launcher);
  if (!words) return tl::unexpected(words.error());
  std::vector<std::string> argv;
  bool runs_command = false;
  for (const auto& word : *words) {
    runs_command = runs_command || word.text.find("{command}") != std::string::npos;
    if (word.plain && word.text == "{command}") {
      argv.insert(argv.end(), command.begin(), command.end());
      continue;
    }
    auto text = filled(word.text, host, command);
    if (!text) return tl::unexpected(text.error());
    argv.push_back(*std::move(text));
  }
  if (!runs_command)
    return bad_input("launcher: has no {command}, so it would start nothing; e.g. \"ssh {address} {command}\"");
  if (argv.empty() || argv.front().empty()) return bad_input("launcher: names no program");
  return argv;
}

Launcher::Launcher(std::filesystem::path log_directory, std::chrono::milliseconds grace)
    : log_directory_(std::move(log_directory)), grace_(grace) {}

Launcher::~Launcher() { stop(); }

std::filesystem::path Launcher::log_of(const std::string& name) const { return log_directory_ / (name + ".log"); }

Expected<void> Launcher::start(const std::string& name, const std::vector<std::string>& argv) {
  const auto who = "\"" + one_line(name) + "\"";
  if (!is_plain_name(name)) return bad_input("launcher: " + who + " cannot name a process: its log is NAME.log");
  if (pid(name)) return bad_input("launcher: " + who + " runs already");
  if (argv.empty() || argv.front().empty()) return bad_input("launcher: no program to start for " + who);

  const auto log_path = log_of(name);
  std::error_code error;
  std::filesystem::create_directories(log_directory_, error);
  const Fd log = above_standard(::open(log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0644));
  if (!log.good()) return failed(one_line(log_path.string()) + ": cannot write the log: " + std::strerror(errno));
  const Fd null = above_standard(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  std::array<int, 2> ends{-1, -1};
  const bool piped = ::pipe2(ends.data(), O_CLOEXEC) == 0;
  const Fd report_out(ends[0]);
  Fd report_in = above_standard(ends[1]);
  if (!null.good() || !piped || !report_in.good()) return failed("launcher: " + who + ": " + std::strerror(errno));

  std::vector<char*> pointers;
  for (const auto& word : argv) pointers.push_back(const_cast<char*>(word.c_str()));  // exec writes to none of them
  pointers.push_back(nullptr);
  const auto open_max = std::clamp(::sysconf(_SC_OPEN_MAX), 256L, 65'536L);
  ChildPlan plan{pointers.data(), null.get(), log.get(), report_in.get(), ::getpid(), static_cast<int>(open_max), {}};
  sigemptyset(&plan.mask);
  Child entry{name, -1, std::max<off_t>(0, ::lseek(log.get(), 0, SEEK_END))};
  children_.reserve(children_.size() + 1);  // nothing may throw between the fork and the entry

  const pid_t child = fork_child(plan);
  if (child < 0) return failed("launcher: cannot start " + who + ": " + std::strerror(errno));
  report_in.reset();
  if (const int failure = start_error(report_out.get()); failure != 0) {
    wait_for(child, nullptr);
    return bad_input("launcher: cannot run \"" + one_line(argv.front()) + "\" for " + who + ": " +
                     std::strerror(failure) + "; check the launcher line of the cluster file and PATH");
  }
  entry.pid = child;
  children_.push_back(std::move(entry));
  return {};
}

std::vector<Exit> Launcher::reap() {
  std::vector<Exit> exits;
  const auto ended = std::stable_partition(children_.begin(), children_.end(),
                                           [](const Child& child) { return !has_ended(child.pid); });
  for (auto child = ended; child != children_.end(); ++child) {
    const int status = bury(child->pid);
    const auto line = last_line(log_of(child->name), child->log_from);
    exits.push_back({child->name, status, ending(status) + (line.empty() ? "" : ": " + line)});
  }
  children_.erase(ended, children_.end());
  return exits;
}

std::optional<pid_t> Launcher::pid(const std::string& name) const {
  for (const auto& child : children_) {
    if (child.name == name) return child.pid;
  }
  return std::nullopt;
}

void Launcher::signal(const std::string& name, int number) {
  if (const auto group = pid(name)) ::kill(-*group, number);
}

void Launcher::stop() {
  // A stopped process acts on SIGTERM only once it goes on.
  for (auto child = children_.rbegin(); child != children_.rend(); ++child) {
    ::kill(-child->pid, SIGTERM);
    ::kill(-child->pid, SIGCONT);
  }
  const auto deadline = std::chrono::steady_clock::now() + grace_;
  const auto all_ended = [&] {
    return std::all_of(children_.begin(), children_.end(), [](const Child& child) { return has_ended(child.pid); });
  };
  while (!all_ended() && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  for (auto child = children_.rbegin(); child != children_.rend(); ++child) bury(child->pid);
  children_.clear();
}

}  // namespace coppice::runtime
