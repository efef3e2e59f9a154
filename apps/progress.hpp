// apps/progress.hpp: how far long work is: a bar on a terminal, a line now and then in a log. On standard error.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <utility>

namespace coppice::apps {

double seconds_since(std::chrono::steady_clock::time_point begun);

class Progress {
 public:
  // begun: how much was done before this process, which says nothing about how fast it goes.
  Progress(std::string label, std::int64_t total, std::int64_t begun = 0);
  ~Progress();  // ends the line
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  void at(std::int64_t done);
  void label(std::string label) { label_ = std::move(label); }  // from the next drawing on
  void line(const std::string& text);                           // above the bar

 private:
  void draw(std::int64_t done);
  std::string label_;
  std::int64_t total_, before_, shown_ = -1;
  bool terminal_, drawn_ = false;
  std::chrono::steady_clock::time_point begun_, last_;
};

}  // namespace coppice::apps
