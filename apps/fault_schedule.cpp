#include "apps/fault_schedule.hpp"

namespace coppice::apps {
namespace {

constexpr std::chrono::milliseconds kPatience{3'000};

}  // namespace

FaultSchedule::FaultSchedule(runtime::Client& client, actors::FaultSpec spec, std::int64_t requests)
    : client_(client), base_(std::move(spec)), requests_(requests), begun_(std::chrono::steady_clock::now()) {
  using Spec = actors::FaultSpec;
  for (const auto member : {&Spec::kill, &Spec::stop, &Spec::lie}) {
    if (base_.*member) timed_.push_back({member, *(base_.*member)});
    (base_.*member).reset();
  }
}

bool FaultSchedule::due(const Timed& timed, std::int64_t request) const {
  if (timed.sent) return false;
  if (timed.when.percent)
    return static_cast<double>(request) >= timed.when.value / 100 * static_cast<double>(requests_);
  return std::chrono::steady_clock::now() - begun_ >= std::chrono::duration<double>(timed.when.value);
}

runtime::Expected<void> FaultSchedule::send_due(std::int64_t request) {
  actors::FaultSpec now = base_;
  bool any = false;
  for (auto& timed : timed_) {
    if (!due(timed, request)) continue;
    now.*timed.member = actors::FaultTime{};
    timed.sent = any = true;
  }
  return any ? client_.faults(actors::to_string(now), kPatience) : runtime::Expected<void>{};
}

runtime::Expected<void> FaultSchedule::begin() {
  begun_ = std::chrono::steady_clock::now();
  if (base_.law)
    if (auto sent = client_.faults(actors::to_string(base_), kPatience); !sent) return sent;
  return send_due(0);
}

void FaultSchedule::before(std::int64_t request) {
  if (auto sent = send_due(request); !sent && !fault_) fault_ = sent.error();
}

runtime::Expected<void> FaultSchedule::end() {
  if (base_.law || !timed_.empty()) return client_.faults("", kPatience);
  return {};
}

}  // namespace coppice::apps
