// runtime/launcher.hpp: the processes of a cluster, started over its launcher template and stopped together.
#pragma once

#include <chrono>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <sys/types.h>

#include "runtime/cluster.hpp"
#include "runtime/error.hpp"

namespace coppice::runtime {

// The command line for one host: the template with {name}, {address} and {command} filled in, split as a POSIX shell
// splits words (quotes and backslashes; no expansion). A word that is {command} alone becomes the command's words as they
// are; inside another word or quotes, as in `sh -c "cd /srv; {command}"`, it becomes one shell-quoted text.
Expected<std::vector<std::string>> launch_command(const std::string& launcher, const Host& host,
                                                  const std::vector<std::string>& command);

struct Exit {
  std::string name;    // of the host
  int status = 0;      // as waitpid gives it
  std::string reason;  // "exit status 2: coppice node: port 7000 is in use …" (the last line of its error output)
};

// Owns child processes. Each runs in a process group of its own, with its output appended to DIRECTORY/NAME.log; all of
// them die with this process (PR_SET_PDEATHSIG) and in the destructor (SIGTERM, then SIGKILL after `grace`). What a child
// leaves behind in its group is killed when the child ends.
// One thread uses a Launcher, and it must outlive the children: the kernel's death signal follows the thread that forked.
class Launcher {
 public:
  Launcher(std::filesystem::path log_directory, std::chrono::milliseconds grace);
  ~Launcher();
  Launcher(const Launcher&) = delete;
  Launcher& operator=(const Launcher&) = delete;

  Expected<void> start(const std::string& name, const std::vector<std::string>& argv);
  // Those that ended since the last call. Never blocks.
  std::vector<Exit> reap();
  std::optional<pid_t> pid(const std::string& name) const;
  void signal(const std::string& name, int number);  // to the process group; unknown names are ignored
  void stop();                                       // all, in reverse order of start; idempotent

 private:
  struct Child {
    std::string name;
    pid_t pid;
    off_t log_from;  // where this run's output begins
  };
  std::filesystem::path log_of(const std::string& name) const;
  std::filesystem::path log_directory_;
  std::chrono::milliseconds grace_;
  std::vector<Child> children_;
};

}  // namespace coppice::runtime
