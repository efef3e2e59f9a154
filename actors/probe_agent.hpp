// actors/probe_agent.hpp: what one host does while links are measured: it answers, it receives, and it sends what it is
// told to. Pure: `now` is passed in, and what to send comes out.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "actors/messages.hpp"
#include "actors/rate_meter.hpp"

namespace coppice::actors {

struct ProbeAgentOptions {
  RateMeterOptions rate;
  // Of a total: the same time for all of a round, and long enough for flows that meet to have found their shares.
  RateMeterOptions share{.warm_up = std::chrono::milliseconds{600},
                         .longest = std::chrono::milliseconds{1'800},
                         .settles = false};
  int pings = 24, pings_warm = 4;  // the first few open the connection, and do not count
  Duration silence = std::chrono::seconds{4};  // after so long without a word the measure has failed
};

// With so long for a rate where nothing is in the way: a third to warm up, the rest measured over. Shorter is less sure.
ProbeAgentOptions probe_timing(std::chrono::milliseconds measure);

struct Outgoing {
  Peer to;
  DataMessage message;
};

class ProbeAgent {
 public:
  // bytes: what is sent over and over; the longest frame is all of it.
  ProbeAgent(ProbeAgentOptions options, SharedBytes bytes) : options_(options), bytes_(std::move(bytes)) {}

  // A note from a host of the cluster. An order that comes again is answered again, and not carried out twice: words are
  // lost with the connection that they were on. Notes that are the leader's alone to read are left out.
  std::vector<Outgoing> handle(Instant now, const Peer& from, const ProbeNote& note);
  // What time alone brings: call it a hundred times a second or so. It ends measures that nobody answers.
  std::vector<Outgoing> tick(Instant now);
  // Peers of measures that failed since the last call: what still waits for them should be thrown away.
  std::vector<Peer> given_up();

 private:
  struct Sending {
    MeasureOrder order;
    Peer leader, to;
    Instant heard;  // last, from the other end
    // latency
    std::uint32_t pinged = 0;
    Instant pinged_at;
    std::vector<Duration> trips;
    // rate and share
    RateMeter meter;
    std::uint64_t sent = 0, arrived = 0;
    Duration least_trip = Duration::max();
    std::map<std::uint64_t, Instant> marks;  // bytes sent by then, for the round trip
    std::optional<RateMeter::Rate> rate;     // known: only what is on its way is waited for
  };
  struct Receiving {
    Instant first;
    std::uint64_t bytes = 0;
  };
  void begin(Instant now, const Peer& leader, std::uint64_t measure, const MeasureOrder& order, std::vector<Outgoing>& out);
  void pong(Instant now, std::uint64_t measure, std::uint32_t index, std::vector<Outgoing>& out);
  void arrived(Instant now, std::uint64_t measure, const ProbeArrived& note, std::vector<Outgoing>& out);
  void received(Instant now, const Peer& from, std::uint64_t measure, std::size_t bytes, std::vector<Outgoing>& out);
  void ping(Instant now, std::uint64_t measure, Sending& sending, std::vector<Outgoing>& out);
  void fill(Instant now, std::uint64_t measure, Sending& sending, std::vector<Outgoing>& out);
  void finish(std::uint64_t measure, MeasureDone done, std::vector<Outgoing>& out);

  ProbeAgentOptions options_;
  SharedBytes bytes_;
  std::map<std::uint64_t, Sending> sending_;
  std::map<std::uint64_t, Receiving> receiving_;
  std::map<std::uint64_t, MeasureDone> finished_;  // the latest, for a leader who asks again
  std::vector<Peer> given_up_;
};

}  // namespace coppice::actors
