#include "actors/probe_agent.hpp"

#include <algorithm>
#include <utility>

namespace coppice::actors {
namespace {

using Kind = collectives::Measure::Kind;

constexpr std::size_t kReceivingMax = 256;  // measures, of which a host takes part in a few at a time
constexpr std::size_t kFinishedMax = 64;
constexpr std::size_t kMarksMax = 64;
constexpr double kWindowMin = 256 << 10, kWindowMax = 32 << 20;  // bytes on their way
constexpr double kFrameMin = 16 << 10;
constexpr double kFrame_s = 0.01;   // of a link's time in a frame
// Of a link's time that waits for it, beside what is under way: its ends may be kept from it for so long.
constexpr double kQueued_s = 0.15;

double seconds(Duration duration) { return std::chrono::duration<double>(duration).count(); }

std::uint64_t nanoseconds(Duration duration) {
  return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(duration).count());
}

RateMeterOptions meter_options(const ProbeAgentOptions& options, Kind kind) {
  if (kind == Kind::share) return options.share;
  auto meter = options.rate;
  if (kind == Kind::long_rate) {
    meter.shortest *= 2;
    meter.longest *= 2;
  }
  return meter;
}

}  // namespace

ProbeAgentOptions probe_timing(std::chrono::milliseconds measure) {
  ProbeAgentOptions options;
  options.rate.warm_up = measure / 3;
  options.rate.shortest = measure * 2 / 3;
  options.rate.longest = measure * 5 / 2;
  options.share.warm_up = measure / 2;
  options.share.longest = measure * 3 / 2;
  options.silence = std::max<Duration>(std::chrono::seconds{2}, measure * 10 / 3);
  return options;
}

std::vector<Outgoing> ProbeAgent::handle(Instant now, const Peer& from, const ProbeNote& note) {
  std::vector<Outgoing> out;
  if (std::holds_alternative<ProbeHello>(note.note)) {
    out.push_back({from, ProbeNote{note.measure, ProbeHere{}}});
  } else if (const auto* order = std::get_if<MeasureOrder>(&note.note)) {
    begin(now, from, note.measure, *order, out);
  } else if (const auto* ping = std::get_if<ProbePing>(&note.note)) {
    out.push_back({from, ProbeNote{note.measure, ProbePong{ping->index}}});
  } else if (const auto* pong_note = std::get_if<ProbePong>(&note.note)) {
    pong(now, note.measure, pong_note->index, out);
  } else if (const auto* bytes = std::get_if<ProbeBytes>(&note.note)) {
    received(now, from, note.measure, bytes->bytes.size, out);
  } else if (const auto* progress = std::get_if<ProbeArrived>(&note.note)) {
    arrived(now, note.measure, *progress, out);
  }
  return out;
}

std::vector<Outgoing> ProbeAgent::tick(Instant now) {
  std::vector<Outgoing> out;
  std::vector<std::uint64_t> silent;
  for (const auto& [measure, sending] : sending_)
    if (now - sending.heard >= options_.silence) silent.push_back(measure);
  for (const auto measure : silent) {
    const auto& sending = sending_.at(measure);
    given_up_.push_back(sending.to);
    MeasureDone done;
    if (sending.rate) {  // only the last few bytes are lost
      done = {static_cast<std::uint64_t>(sending.rate->bytes_per_s), 0, 0, false, ""};
    } else {
      const auto& address = sending.order.to_address;
      done.fault = sending.order.to + (address.empty() ? "" : " does not answer over " + address) +
                   (address.empty() ? " does not answer" : "");
    }
    finish(measure, std::move(done), out);
  }
  return out;
}

std::vector<Peer> ProbeAgent::given_up() { return std::exchange(given_up_, {}); }

void ProbeAgent::begin(Instant now, const Peer& leader, std::uint64_t measure, const MeasureOrder& order,
                       std::vector<Outgoing>& out) {
  if (const auto finished = finished_.find(measure); finished != finished_.end()) {
    out.push_back({leader, ProbeNote{measure, finished->second}});
    return;
  }
  if (const auto under_way = sending_.find(measure); under_way != sending_.end()) {
    under_way->second.leader = leader;
    return;
  }
  Sending sending{.order = order,
                  .leader = leader,
                  .to = {order.to, "", order.from_address, order.to_address},
                  .heard = now,
                  .pinged_at = {},
                  .trips = {},
                  .meter = RateMeter(meter_options(options_, order.kind)),
                  .marks = {},
                  .rate = {}};
  const auto at = sending_.emplace(measure, std::move(sending)).first;
  if (order.kind == Kind::latency)
    ping(now, measure, at->second, out);
  else
    fill(now, measure, at->second, out);
}

// ---- latency ---------------------------------------------------------------------------------------------------------

void ProbeAgent::ping(Instant now, std::uint64_t measure, Sending& sending, std::vector<Outgoing>& out) {
  sending.pinged_at = now;
  out.push_back({sending.to, ProbeNote{measure, ProbePing{++sending.pinged}}});
}

void ProbeAgent::pong(Instant now, std::uint64_t measure, std::uint32_t index, std::vector<Outgoing>& out) {
  const auto found = sending_.find(measure);
  if (found == sending_.end() || index != found->second.pinged) return;
  auto& sending = found->second;
  sending.heard = now;
  if (index > static_cast<std::uint32_t>(options_.pings_warm)) sending.trips.push_back(now - sending.pinged_at);
  if (std::ssize(sending.trips) < options_.pings) return ping(now, measure, sending, out);
  std::ranges::sort(sending.trips);
  finish(measure, {0, nanoseconds(sending.trips.front()), nanoseconds(sending.trips[sending.trips.size() / 2]), true, ""}, out);
}

// ---- rates -----------------------------------------------------------------------------------------------------------

// As much is on its way as keeps the link busy: twice what fits into it, and a little more. A link that is slow holds little
// then, and is soon empty for the next measure; one that is fast or far away gets as much again with every round trip until
// it is full.
void ProbeAgent::fill(Instant now, std::uint64_t measure, Sending& sending, std::vector<Outgoing>& out) {
  const double rate = sending.meter.recent();
  const double trip = sending.least_trip == Duration::max() ? 0 : seconds(sending.least_trip);
  const double window = std::clamp(2 * rate * (trip + kQueued_s), kWindowMin, kWindowMax);
  const auto frame = static_cast<std::size_t>(
      std::clamp(rate * kFrame_s, std::min(kFrameMin, static_cast<double>(bytes_.size)), static_cast<double>(bytes_.size)));
  while (static_cast<double>(sending.sent - sending.arrived + frame) <= window) {
    auto part = bytes_;
    part.size = frame;
    sending.sent += frame;
    if (sending.marks.size() < kMarksMax) sending.marks.emplace(sending.sent, now);
    out.push_back({sending.to, ProbeNote{measure, ProbeBytes{std::move(part)}}});
  }
}

void ProbeAgent::received(Instant now, const Peer& from, std::uint64_t measure, std::size_t bytes, std::vector<Outgoing>& out) {
  if (receiving_.size() >= kReceivingMax && !receiving_.contains(measure)) receiving_.erase(receiving_.begin());
  auto& receiving = receiving_.emplace(measure, Receiving{now, 0}).first->second;
  receiving.bytes += bytes;
  const auto at = std::chrono::duration_cast<std::chrono::microseconds>(now - receiving.first).count();
  out.push_back({from, ProbeNote{measure, ProbeArrived{receiving.bytes, static_cast<std::uint64_t>(at)}}});
}

void ProbeAgent::arrived(Instant now, std::uint64_t measure, const ProbeArrived& note, std::vector<Outgoing>& out) {
  const auto found = sending_.find(measure);
  if (found == sending_.end()) return;
  auto& sending = found->second;
  if (note.bytes <= sending.arrived || note.bytes > sending.sent) return;
  sending.heard = now;
  sending.arrived = note.bytes;
  if (const auto mark = sending.marks.find(note.bytes); mark != sending.marks.end()) {
    sending.least_trip = std::min(sending.least_trip, now - mark->second);
    sending.marks.erase(sending.marks.begin(), std::next(mark));
  }
  if (!sending.rate) {
    sending.meter.add(std::chrono::microseconds(std::min<std::uint64_t>(note.at_us, INT32_MAX)), note.bytes);
    sending.rate = sending.meter.rate();
  }
  if (!sending.rate) return fill(now, measure, sending, out);
  if (sending.arrived < sending.sent) return;  // the link is not empty yet, and others wait for it
  finish(measure, {static_cast<std::uint64_t>(sending.rate->bytes_per_s), 0, 0, sending.rate->settled, ""}, out);
}

void ProbeAgent::finish(std::uint64_t measure, MeasureDone done, std::vector<Outgoing>& out) {
  const auto found = sending_.find(measure);
  out.push_back({found->second.leader, ProbeNote{measure, done}});
  sending_.erase(found);
  if (finished_.size() >= kFinishedMax) finished_.erase(finished_.begin());
  finished_.emplace(measure, std::move(done));
}

}  // namespace coppice::actors
