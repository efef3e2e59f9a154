// actors/on_this_thread.hpp: actors that are woken by a small frame run on the thread that brought it.
//
// A hand-over to a scheduler's thread costs a wake-up on both sides, several times what a small chunk costs altogether;
// and what those actors tell one another takes the same way. Actors stay actors: each has its mailbox, and never runs
// twice at once. (CAF's multiplexer, which runs brokers, is such a unit as well.)
#pragma once

#include <caf/fwd.hpp>
#include <memory>

namespace coppice::actors {

// Of one thread. What is left when it goes is run by the scheduler.
class OnThisThread {
 public:
  explicit OnThisThread(caf::actor_system& system);
  ~OnThisThread();
  OnThisThread(const OnThisThread&) = delete;
  OnThisThread& operator=(const OnThisThread&) = delete;

  caf::execution_unit* unit();
  // Until nobody has anything to do, those that they woke included. Not with a lock that an actor may take.
  void run();
  // Of the thread that calls this, while it is in run(); otherwise nothing. For what is told from outside of an actor.
  static caf::execution_unit* here();

 private:
  class Unit;
  std::unique_ptr<Unit> unit_;
};

// As caf::anon_send; an actor that this wakes runs where `unit` does. None: where the scheduler says.
void tell(const caf::actor& to, caf::execution_unit* unit, caf::message content);

}  // namespace coppice::actors
