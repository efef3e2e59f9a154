#include "collectives/operation.hpp"

#include <algorithm>
#include <array>

namespace coppice::collectives {
namespace {

constexpr std::array<std::string_view, std::size(kOperations)> kNames = {
    "broadcast", "reduce", "allreduce", "allgather", "reduce_scatter", "gather", "scatter"};

}  // namespace

std::string_view name(Operation operation) { return kNames.at(static_cast<std::size_t>(operation)); }

std::optional<Operation> operation_of(std::string_view word) {
  const auto found = std::ranges::find(kNames, word);
  if (found == kNames.end()) return std::nullopt;
  return kOperations[found - kNames.begin()];
}

bool combines(Operation operation) {
  return operation == Operation::reduce || operation == Operation::allreduce || operation == Operation::reduce_scatter;
}

bool has_parts(Operation operation) {
  return operation == Operation::allgather || operation == Operation::reduce_scatter ||
         operation == Operation::gather || operation == Operation::scatter;
}

}  // namespace coppice::collectives
