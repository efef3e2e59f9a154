#include "actors/on_this_thread.hpp"

#include <caf/actor.hpp>
#include <caf/actor_cast.hpp>
#include <caf/actor_system.hpp>
#include <caf/execution_unit.hpp>
#include <caf/message.hpp>
#include <caf/resumable.hpp>
#include <caf/scheduler/abstract_coordinator.hpp>
#include <deque>
#include <utility>

namespace coppice::actors {
namespace {

thread_local caf::execution_unit* running = nullptr;

}  // namespace

class OnThisThread::Unit final : public caf::execution_unit {
 public:
  explicit Unit(caf::actor_system& system) : caf::execution_unit(&system) {}
  ~Unit() override {
    for (auto* job : jobs_) hand_over(job);
  }

  void exec_later(caf::resumable* job) override { jobs_.push_back(job); }

  void run() {
    while (!jobs_.empty()) {
      auto* job = jobs_.front();
      jobs_.pop_front();
      switch (job->resume(this, kMessagesMax)) {
        case caf::resumable::resume_later: hand_over(job); break;
        case caf::resumable::done:
        case caf::resumable::awaiting_message: caf::intrusive_ptr_release(job); break;
        case caf::resumable::shutdown_execution_unit: break;
      }
    }
  }

 private:
  static constexpr std::size_t kMessagesMax = 64;  // that one actor takes at once

  void hand_over(caf::resumable* job) { system().scheduler().enqueue(job); }

  std::deque<caf::resumable*> jobs_;  // with a reference each, as every execution unit holds
};

OnThisThread::OnThisThread(caf::actor_system& system) : unit_(std::make_unique<Unit>(system)) {}
OnThisThread::~OnThisThread() = default;
caf::execution_unit* OnThisThread::unit() { return unit_.get(); }
void OnThisThread::run() {
  const auto before = std::exchange(running, unit_.get());
  unit_->run();
  running = before;
}
caf::execution_unit* OnThisThread::here() { return running; }

void tell(const caf::actor& to, caf::execution_unit* unit, caf::message content) {
  if (to) caf::actor_cast<caf::abstract_actor*>(to)->enqueue(nullptr, caf::make_message_id(), std::move(content), unit);
}

}  // namespace coppice::actors
