// collectives/operation.hpp: the collective operations, in MPI's words.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace coppice::collectives {

enum class Operation : std::uint8_t { broadcast, reduce, allreduce, allgather, reduce_scatter, gather, scatter };

inline constexpr Operation kOperations[] = {Operation::broadcast,      Operation::reduce, Operation::allreduce,
                                            Operation::allgather,      Operation::reduce_scatter,
                                            Operation::gather,         Operation::scatter};

std::string_view name(Operation operation);
std::optional<Operation> operation_of(std::string_view word);

// Whether it combines what the ranks hold.
bool combines(Operation operation);

// Whether every rank has a part of the buffer of its own.
bool has_parts(Operation operation);

}  // namespace coppice::collectives
