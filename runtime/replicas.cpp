#include "runtime/replicas.hpp"

#include <optional>
#include <utility>
#include <vector>

namespace coppice::runtime {
namespace {

class Replicas final : public gpu::ReplicaGroup {
 public:
  explicit Replicas(Communicator& group) : group_(group) {}
  int rank() const override { return group_.rank(); }
  int size() const override { return group_.size(); }
  void average(std::span<float> numbers) override {
    begun_.push_back(group_.allreduce(numbers, collectives::Reduction::avg));
  }
  void share(std::span<std::byte> bytes) override { begun_.push_back(group_.broadcast(bytes, 0)); }

  // Waits for every call, whatever became of the first: their memory is the caller's again afterwards.
  gpu::Expected<void> finish() override {
    std::optional<Error> fault;
    for (const auto& call : std::exchange(begun_, {}))
      if (const auto done = call.wait(); !done && !fault) fault = done.error();
    if (fault) return gpu::unexpected(gpu::Error{gpu::ErrorCode::replica_lost, fault->what});
    return {};
  }

 private:
  Communicator& group_;
  std::vector<Completion> begun_;
};

}  // namespace

std::unique_ptr<gpu::ReplicaGroup> replicas_over(Communicator& group) { return std::make_unique<Replicas>(group); }

}  // namespace coppice::runtime
