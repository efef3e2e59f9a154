#include "runtime/prober.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <random>
#include <utility>

#include "runtime/communicator.hpp"

namespace coppice::runtime {
namespace {

using namespace actors;
using collectives::Measured;
using Clock = std::chrono::steady_clock;

constexpr std::size_t kFrameBytes = 256 << 10;
constexpr auto kTick = std::chrono::milliseconds{10};
constexpr auto kHelloEvery = std::chrono::seconds{3};  // so that whoever has nothing to do knows that it goes on
constexpr std::chrono::milliseconds kAskAgain{2'500};
constexpr std::chrono::milliseconds kAliveWithin{6'000};  // whoever is asked after a measure has failed
constexpr std::size_t kEarlyMax = 1'024;

// Nothing on the way can make less of them.
SharedBytes incompressible() {
  std::mt19937_64 random(1);
  std::vector<std::uint64_t> words(kFrameBytes / sizeof(std::uint64_t));
  for (auto& word : words) word = random();
  return SharedBytes::copy_of(std::as_bytes(std::span(words)));
}

}  // namespace

Prober::Prober(ProberOptions options)
    : options_(std::move(options)), leader_(options_.cluster.hosts.front().name), agent_(options_.agent, incompressible()) {}

void Prober::deliver(Delivery delivery) {
  const std::lock_guard lock(mutex_);
  if (!options_.cluster.find(delivery.from.name)) return;  // clients have keys too
  if (transport_)
    take(std::move(delivery));
  else if (early_.size() < kEarlyMax)
    early_.push_back(std::move(delivery));
}

void Prober::take(Delivery delivery) {
  const auto* note = std::get_if<ProbeNote>(&delivery.message);
  if (!note) return;
  const bool from_leader = delivery.from.name == leader_;
  if (from_leader) leader_heard_ = Clock::now();
  if (std::holds_alternative<ProbeHere>(note->note)) {
    here_.insert(delivery.from.name);
    gone_.erase(delivery.from.name);  // it was late
  } else if (const auto* done = std::get_if<MeasureDone>(&note->note)) {
    if (const auto wanted = done_.find(note->measure); wanted != done_.end()) wanted->second = *done;
    here_.insert(delivery.from.name);
  } else if (const auto* over = std::get_if<SurveyOver>(&note->note)) {
    if (from_leader) over_ = *over;
  } else if (from_leader || !std::holds_alternative<MeasureOrder>(note->note)) {
    return send(agent_.handle(Clock::now(), delivery.from, *note));
  } else {
    return;
  }
  changed_.notify_all();
}

void Prober::send(std::vector<Outgoing> out) {
  for (auto& each : out) {
    if (each.to.name == options_.name)
      take({{options_.name}, std::move(each.message)});
    else
      transport_->send(each.to, std::move(each.message));
  }
}

void Prober::tell_all(const decltype(ProbeNote::note)& note) {
  for (const auto& host : options_.cluster.hosts)
    if (host.name != options_.name) transport_->send({host.name}, ProbeNote{0, note});
}

void Prober::say(const std::string& line) const {
  if (options_.progress) options_.progress(line);
}

bool Prober::wait(Lock& lock, std::chrono::milliseconds patience, const std::function<bool()>& over) {
  const auto until = Clock::now() + patience;
  while (!over()) {
    changed_.wait_for(lock, kTick);
    const auto now = Clock::now();
    send(agent_.tick(now));
    for (const auto& peer : agent_.given_up()) transport_->hang_up(peer);
    if (now >= until) return over();
  }
  return true;
}

Expected<ProbeOutcome> Prober::run(std::shared_ptr<Transport> transport) {
  Lock lock(mutex_);
  transport_ = std::move(transport);
  leader_heard_ = Clock::now();
  for (auto& delivery : std::exchange(early_, {})) take(std::move(delivery));
  auto outcome = options_.name == leader_ ? lead(lock) : follow(lock);
  transport_.reset();
  return outcome;
}

// ---- who follows -----------------------------------------------------------------------------------------------------

Expected<ProbeOutcome> Prober::follow(Lock& lock) {
  const auto patience = options_.start_patience + options_.patience;
  while (!over_) {
    wait(lock, kHelloEvery, [&] { return over_.has_value(); });
    if (!over_ && Clock::now() - leader_heard_ > patience)
      return failed("no word from " + leader_ + ", which leads, for " + std::to_string(patience.count() / 1'000) +
                    " s; see whether it runs and can be reached");
  }
  if (!over_->fault.empty()) return failed(leader_ + ": " + one_line(over_->fault));
  auto topology = collectives::parse_topology(nlohmann::json::parse(over_->topology, nullptr, false));
  if (!topology) return failed(leader_ + " sent no topology: " + one_line(topology.error().what));
  return ProbeOutcome{std::move(*topology), std::nullopt};
}

// ---- who leads -------------------------------------------------------------------------------------------------------

Expected<ProbeOutcome> Prober::lead(Lock& lock) {
  std::set<std::string> others;
  std::vector<collectives::SurveyHost> hosts;
  for (const auto& host : options_.cluster.hosts) {
    hosts.push_back({host.name, host.address});
    if (host.name != options_.name) others.insert(host.name);
  }
  say("waiting for " + std::to_string(others.size()) + " hosts");
  look_for(lock, others, options_.start_patience);
  if (gone_.size() == others.size()) {
    const auto why = "no other host answers within " + std::to_string(options_.start_patience.count() / 1'000) +
                     " s; there is nothing to measure";
    tell_all(SurveyOver{"", why});
    return failed(why);
  }
  collectives::Survey survey(hosts, options_.declared, {options_.alone, options_.cluster.name});
  auto said = Clock::now();
  while (const auto round = survey.next()) {
    say(round->what);
    if (Clock::now() - said > kHelloEvery) {
      tell_all(ProbeHello{});
      said = Clock::now();
    }
    survey.take(measure(lock, *round));
  }
  auto report = survey.report();
  tell_all(SurveyOver{to_json(report.topology).dump(), ""});
  auto topology = report.topology;
  return ProbeOutcome{std::move(topology), std::move(report)};
}

// Those that do not answer are gone from then on.
void Prober::look_for(Lock& lock, const std::set<std::string>& hosts, std::chrono::milliseconds patience) {
  here_.clear();
  for (const auto& host : hosts) transport_->send({host}, ProbeNote{0, ProbeHello{}});
  const auto all_here = [&] { return std::ranges::all_of(hosts, [&](const auto& host) { return here_.contains(host); }); };
  wait(lock, patience, all_here);
  for (const auto& host : hosts) {
    if (here_.contains(host)) continue;
    gone_.insert(host);
    say(host + " does not answer; it is left out from here on");
  }
}

std::vector<Measured> Prober::measure(Lock& lock, const collectives::SurveyRound& round) {
  static const std::string kWaiting(1, '\0');  // no fault of the world reads so
  const auto name = [&](int host) -> const std::string& { return options_.cluster.hosts[static_cast<std::size_t>(host)].name; };
  std::vector<Measured> figures(round.measures.size());
  std::vector<std::uint64_t> numbers(round.measures.size(), 0);
  done_.clear();
  for (std::size_t i = 0; i < round.measures.size(); ++i) {
    const auto& measure = round.measures[i];
    const auto& missing = gone_.contains(name(measure.from)) ? name(measure.from) : name(measure.to);
    if (gone_.contains(missing)) {
      figures[i].fault = missing + " does not answer";
      continue;
    }
    numbers[i] = next_measure_++;
    done_[numbers[i]].fault = kWaiting;
  }
  const auto until = Clock::now() + options_.patience;
  for (bool all = false; !all && Clock::now() < until;) {
    for (std::size_t i = 0; i < round.measures.size(); ++i) {
      const auto& measure = round.measures[i];
      if (numbers[i] > 0 && done_.at(numbers[i]).fault == kWaiting)
        send({{{name(measure.from)}, ProbeNote{numbers[i], MeasureOrder{measure.kind, name(measure.to), measure.from_address, measure.to_address}}}});
    }
    // Words are lost with the connection that they were on: whoever is not heard of is asked again.
    all = wait(lock, kAskAgain, [&] { return std::ranges::none_of(done_, [](const auto& done) { return done.second.fault == kWaiting; }); });
  }

  std::set<std::string> doubtful;
  for (std::size_t i = 0; i < figures.size(); ++i) {
    if (numbers[i] == 0) continue;
    const auto& done = done_.at(numbers[i]);
    if (!done.fault.empty())
      for (const int host : {round.measures[i].from, round.measures[i].to})
        if (name(host) != options_.name) doubtful.insert(name(host));
    figures[i] = {static_cast<double>(done.bytes_per_s), static_cast<double>(done.least_ns) / 1e3,
                  static_cast<double>(done.median_ns) / 1e3, done.settled,
                  done.fault == kWaiting ? name(round.measures[i].from) + " does not answer" : done.fault};
  }
  if (!doubtful.empty()) look_for(lock, doubtful, kAliveWithin);
  return figures;
}

// ---- over a transport of its own ---------------------------------------------------------------------------------------

Expected<ProbeOutcome> probe(ProbeOptions options) {
  const auto* host = options.cluster.find(options.name);
  if (!host) return bad_input("the cluster file has no host named " + options.name);
  auto identity = load_identity(options.cluster.keys, options.name);
  if (!identity) return tl::unexpected(identity.error());
  auto allow = load_allow_list(options.cluster.keys);
  if (!allow) return tl::unexpected(allow.error());
  ProberOptions prober_options;
  TransportOptions transport;
  if (!options.cluster.topology.empty()) {
    auto declared = topology_of(options.cluster);
    if (!declared) return tl::unexpected(declared.error());
    transport.link_addresses = link_addresses(*declared, options.name);
    prober_options.declared = std::move(*declared);
  }
  transport.identity = std::move(*identity);
  transport.allow = std::move(*allow);
  transport.bind_address = host->address;
  transport.port = host->port;
  transport.heartbeat_ms = 2'000;  // its own bulk may hold a heartbeat up on a link that others share
  transport.hosts = options.cluster.hosts;
  transport.linger_ms = 2'000;  // others wait for the last word
  prober_options.name = std::move(options.name);
  prober_options.cluster = std::move(options.cluster);
  prober_options.alone = options.alone;
  prober_options.agent = actors::probe_timing(options.measure);
  prober_options.start_patience = options.start_patience;
  prober_options.progress = std::move(options.progress);
  Prober prober(std::move(prober_options));
  auto opened = Transport::open(std::move(transport), [&](Delivery delivery) { prober.deliver(std::move(delivery)); });
  if (!opened) return tl::unexpected(opened.error());
  auto outcome = prober.run(*opened);
  (*opened)->close();
  return outcome;
}

}  // namespace coppice::runtime
