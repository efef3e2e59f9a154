#include "apps/progress.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace coppice::apps {

double seconds_since(std::chrono::steady_clock::time_point begun) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
}

Progress::Progress(std::string label, std::int64_t total, std::int64_t begun)
    : label_(std::move(label)), total_(std::max<std::int64_t>(total, 1)), before_(begun),
      terminal_(::isatty(STDERR_FILENO) == 1), begun_(std::chrono::steady_clock::now()), last_(begun_) {}

Progress::~Progress() {
  if (terminal_ && drawn_) std::fputc('\n', stderr);
}

void Progress::at(std::int64_t done) {
  // A terminal sees every percent; a log a line every five seconds, so that short work is told of once, at its end.
  const std::int64_t percent = done * 100 / total_;
  if (percent == shown_) return;
  shown_ = percent;
  const auto now = std::chrono::steady_clock::now();
  if (!terminal_ && done < total_ && now - last_ < std::chrono::seconds{5}) return;
  last_ = now;
  draw(done);
}

void Progress::line(const std::string& text) {
  if (terminal_ && drawn_) std::fputs("\r\033[K", stderr);
  std::fprintf(stderr, "%s\n", text.c_str());
  drawn_ = false;
  shown_ = -1;
}

void Progress::draw(std::int64_t done) {
  drawn_ = true;
  const double share = static_cast<double>(done) / static_cast<double>(total_);
  const double spent = std::chrono::duration<double>(std::chrono::steady_clock::now() - begun_).count();
  const double gone = share - static_cast<double>(before_) / static_cast<double>(total_);
  const double left = gone > 0 ? spent * (1 - share) / gone : 0;
  if (terminal_) {
    constexpr int kWidth = 30;
    const int filled = static_cast<int>(share * kWidth);
    std::fprintf(stderr, "\r%-34s [%s%s] %3.0f %%  %4.0f s left ", label_.c_str(),
                 std::string(static_cast<std::size_t>(filled), '#').c_str(),
                 std::string(static_cast<std::size_t>(kWidth - filled), '.').c_str(), share * 100, left);
  } else {
    std::fprintf(stderr, "%s: %.0f %% (%.1f s)\n", label_.c_str(), share * 100, spent);
  }
  std::fflush(stderr);
}

}  // namespace coppice::apps
