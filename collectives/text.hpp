// collectives/text.hpp: names from files we do not trust, inside one-line messages. Private to collectives/.
#pragma once

#include <string>
#include <string_view>

namespace coppice::collectives {

// 'text' in quotes, without control characters and cut to a length fit for one line.
inline std::string in_quotes(std::string_view text) {
  constexpr std::size_t kShownMax = 48;
  std::string shown = "'";
  for (const char c : text.substr(0, kShownMax)) shown += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
  // A cut must not leave half of a UTF-8 character behind.
  if (text.size() > kShownMax) {
    while (shown.size() > 1 && (static_cast<unsigned char>(shown.back()) & 0xc0U) == 0x80U) shown.pop_back();
    if (shown.size() > 1 && static_cast<unsigned char>(shown.back()) >= 0xc0U) shown.pop_back();
    shown += "...";
  }
  return shown + "'";
}

// "link 7". Appending, because GCC 12 warns of an overlap that is not there (its bug 105651) when a string that is
// about to be destroyed is put behind a literal.
template <class Number>
std::string numbered(std::string_view before, Number number) {
  std::string text(before);
  text += std::to_string(number);
  return text;
}

}  // namespace coppice::collectives
