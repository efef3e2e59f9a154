// gpu/checkpoint.hpp: a training on disk: everything needed to go on to the very bits it would have come to.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string_view>
#include <vector>

#include "gpu/trainer.hpp"

namespace coppice::gpu {

// What a checkpoint belongs to. 64-bit digests against mistakes, not against malice.
struct Fingerprint {
  std::uint64_t nets = 0, data = 0, options = 0;
  bool operator==(const Fingerprint&) const = default;
};

// nets: as they are given, with the weights they begin from. Threads and callbacks do not count as options.
Fingerprint fingerprint(const std::vector<Network>& nets, const Dataset& data, std::span<const std::int64_t> items,
                        const TrainerOptions& options);

struct Checkpoint {
  Fingerprint fingerprint;
  std::int64_t step = 0;  // the next one
  std::vector<TrainingState> nets;
};

// Written beside, brought to the disk and renamed: at any moment the file is a whole checkpoint, the old or the new.
// Errors: unreadable, naming the file and why.
Expected<void> save_checkpoint(const std::filesystem::path& file, const Checkpoint& checkpoint);

// None where there is no file. parameters: how many each net has; nothing larger is read or allocated.
// Errors: unreadable or malformed, naming the file and what to do: damaged, or of another training.
Expected<std::optional<Checkpoint>> load_checkpoint(const std::filesystem::path& file, const Fingerprint& expected,
                                                    const std::vector<std::int64_t>& parameters);

}  // namespace coppice::gpu
