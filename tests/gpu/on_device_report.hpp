// The JSON document that tests/gpu/on_device prints, row by row.
#pragma once

#include <chrono>
#include <cmath>
#include <cstdio>
#include <string>

namespace coppice::gpu {

using Clock = std::chrono::steady_clock;

inline constexpr double kSecondsMax = 200;  // of all of it

inline double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// ---- JSON ----------------------------------------------------------------------------------------------------------

inline std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) >= 0x20) out += c;
  }
  return out + "\"";
}
inline std::string json(const std::string& text) { return quoted(text); }
inline std::string json(int value) { return std::to_string(value); }
inline std::string json(double value) {  // JSON has no infinity
  char text[32];
  std::snprintf(text, sizeof text, "%.4g", std::isfinite(value) ? value : 1e300);
  return text;
}
inline std::string object() { return "}"; }
template <class T, class... Rest>
std::string object(const std::string& key, const T& value, const Rest&... rest) {
  return quoted(key) + ":" + json(value) + (sizeof...(rest) > 0 ? "," : "") + object(rest...);
}
template <class... All>
std::string row(const All&... all) {
  return "{" + object(all...);
}

class Report {
 public:
  void begin(const std::string& section) {
    std::printf("%s\n%s:[", sections_++ ? "," : "", quoted(section).c_str());
    rows_ = 0;
  }
  void end() { std::printf("]"); }
  void add(const std::string& text) {
    std::printf("%s\n%s", rows_++ ? "," : "", text.c_str());
    std::fflush(stdout);
  }
  // A row that may be wrong.
  void add(bool good, const std::string& text) {
    good_ = good_ && good;
    add(text);
  }
  bool good() const { return good_; }
  bool late() const { return seconds_since(begin_) > kSecondsMax; }  // then what is only measured is left out
  double seconds() const { return seconds_since(begin_); }

 private:
  int sections_ = 1, rows_ = 0;  // the device's name stands before them
  bool good_ = true;
  Clock::time_point begin_ = Clock::now();
};

}  // namespace coppice::gpu
