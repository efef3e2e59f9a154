#include "apps/table.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace coppice::apps {
namespace {

// What a terminal shows: bytes that continue a UTF-8 character take no column.
std::size_t columns(const std::string& text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U; }));
}

}  // namespace

std::string table(const std::vector<std::vector<std::string>>& rows) {
  if (rows.empty()) return "";
  std::vector<std::size_t> widths(rows.front().size(), 0);
  for (const auto& row : rows)
    for (std::size_t c = 0; c < widths.size(); ++c) widths[c] = std::max(widths[c], columns(row.at(c)));
  std::string out;
  const auto line = [&](const std::vector<std::string>& row) {
    for (std::size_t c = 0; c < widths.size(); ++c) {
      const std::string pad(widths[c] - columns(row[c]), ' ');
      out += (c == 0 ? row[c] + pad : "  " + pad + row[c]);
    }
    while (out.ends_with(' ')) out.pop_back();
    out += '\n';
  };
  line(rows.front());
  std::size_t total = 0;
  for (const auto width : widths) total += width + 2;
  out += std::string(total - 2, '-') + '\n';
  for (std::size_t r = 1; r < rows.size(); ++r) line(rows[r]);
  return out;
}

std::string fixed(double value, int digits) {
  if (std::isnan(value)) return "-";
  char buffer[64];
  std::snprintf(buffer, sizeof buffer, "%.*f", digits, value);
  return buffer;
}

}  // namespace coppice::apps
