// apps/table.hpp: columns that line up.
#pragma once

#include <string>
#include <vector>

namespace coppice::apps {

// The first row is the header; the first column is set left, the others right. Every row has the header's length.
std::string table(const std::vector<std::vector<std::string>>& rows);

std::string fixed(double value, int digits);  // "-" for NaN

}  // namespace coppice::apps
