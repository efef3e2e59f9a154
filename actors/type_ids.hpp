// actors/type_ids.hpp: tells CAF which messages cross processes (control) and which never do. Only for .cpp files that
// speak CAF: its headers cost ten seconds a file.
#pragma once

#include <caf/all.hpp>

#include "actors/collective_messages.hpp"
#include "actors/local_messages.hpp"
#include "actors/messages.hpp"

namespace coppice::actors {

// CAF 0.17's inspection: fields in order. No floats here, by rule.
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, Join& x) {
  return f(caf::meta::type_name("coppice.join"), x.name, x.pid, x.version);
}
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, Ready& x) {
  return f(caf::meta::type_name("coppice.ready"), x.name, x.transfer);
}
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, Refused& x) {
  return f(caf::meta::type_name("coppice.refused"), x.name, x.reason);
}
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, SetFaults& x) {
  return f(caf::meta::type_name("coppice.set_faults"), x.spec, x.worker, x.workers);
}

}  // namespace coppice::actors

CAF_BEGIN_TYPE_ID_BLOCK(coppice, caf::first_custom_type_id)
  CAF_ADD_TYPE_ID(coppice, (coppice::actors::Join))
  CAF_ADD_TYPE_ID(coppice, (coppice::actors::Ready))
  CAF_ADD_TYPE_ID(coppice, (coppice::actors::Refused))
  CAF_ADD_TYPE_ID(coppice, (coppice::actors::SetFaults))
CAF_END_TYPE_ID_BLOCK(coppice)

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(coppice::actors::Delivery)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(coppice::actors::SubnetScores)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(coppice::actors::WorkerJoined)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(coppice::actors::WorkerReady)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(coppice::actors::WorkerLost)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(coppice::actors::Expect)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(coppice::actors::ExpectBlocks)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(coppice::actors::StopWaitingFor)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(coppice::actors::StatusDraft)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(coppice::actors::RequestsClosed)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(coppice::actors::StartTransfer)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(coppice::actors::WeightsArrived)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(coppice::actors::InstallRows)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(coppice::actors::InstallBlocks)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(coppice::actors::DeadlineTick)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(coppice::actors::RosterTick)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(coppice::actors::LateSend)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(coppice::actors::StartCall)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(coppice::actors::TakeOn)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(coppice::actors::BeginRelay)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(coppice::actors::RelayDone)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(coppice::actors::RelayKnows)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(coppice::actors::SendAcks)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(coppice::actors::LeaseEnded)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(coppice::actors::WatchTick)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(coppice::actors::EndARelay)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(coppice::actors::RemindRelay)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(coppice::actors::CallDiffers)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(coppice::actors::PeerReplaced)
