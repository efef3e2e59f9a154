// apps/progress.hpp: how far long work is: a bar on a terminal, a line now and then in a log. On standard error.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace coppice::apps {

class Progress {
 public:
  Progress(std::string label, std::int64_t total);
  ~Progress();  // ends the line
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  void at(std::int64_t done);

 private:
  void draw(std::int64_t done);
  std::string label_;
  std::int64_t total_, shown_ = -1;
  bool terminal_, drawn_ = false;
  std::chrono::steady_clock::time_point begun_, last_;
};

}  // namespace coppice::apps
