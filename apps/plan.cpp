// coppice plan: which trees carry an operation over a topology, how fast, and a proof of how fast it could be.
#include "collectives/plan.hpp"

#include <chrono>
#include <fstream>
#include <memory>
#include <sstream>

#include "apps/command.hpp"
#include "apps/plan_compare.hpp"
#include "apps/plan_deploy.hpp"
#include "apps/plan_draw.hpp"
#include "apps/table.hpp"
#include "collectives/builtin.hpp"
#include "collectives/hybrid.hpp"
#include "collectives/planner.hpp"
#include "collectives/schedule.hpp"
#include "collectives/simulate.hpp"
#include "collectives/verify.hpp"
#include "runtime/communicator.hpp"

namespace coppice::apps {
namespace {

using collectives::Operation;
using collectives::Plan;
using collectives::to_string;
using collectives::Topology;
using nlohmann::json;

struct Options {
  std::string topology, builtin, operation = "broadcast", root, planner = "exact", kind;
  std::string check, draw, deploy, hybrid;
  std::vector<std::string> participants;
  int grain = 0;
  double epsilon = 0.1;
  std::string bytes = "0";
  double latency_us = 0, overhead_bytes = 0;
  std::int64_t chunks = 0;
  bool compare = false, allocations = false, print_topology = false;
  bool operation_given = false;
};

tl::unexpected<runtime::Error> wrong(const std::string& what) { return runtime::bad_input(runtime::one_line(what)); }

std::string named(const Options& options) {
  if (!options.builtin.empty()) return options.builtin;
  return options.topology.empty() ? options.deploy : options.topology;
}

runtime::Expected<Operation> operation_of(const std::string& word) {
  const auto operation = collectives::operation_of(word);
  if (!operation) {
    return wrong(
        "--op " + word +
        ": no such operation; there are broadcast, reduce, allreduce, allgather, reduce_scatter, gather and scatter");
  }
  return *operation;
}

std::string builtin_list() {
  std::string text;
  for (const auto& [name, meaning] : collectives::builtin_names()) text += (text.empty() ? "" : ", ") + name;
  return text;
}

runtime::Expected<Topology> read_topology(const Options& options) {
  collectives::Expected<Topology> topology;
  if (!options.builtin.empty()) {
    topology = collectives::builtin_topology(options.builtin);
    if (!topology) return wrong("--builtin " + options.builtin + ": no such topology; there are " + builtin_list());
  } else if (!options.topology.empty()) {
    topology = collectives::load_topology(options.topology);
  } else if (!options.deploy.empty()) {
    const auto cluster = runtime::load_cluster(options.deploy);
    if (!cluster) return tl::unexpected(cluster.error());
    return runtime::topology_of(*cluster);
  } else {
    return wrong("a topology is needed: --topology FILE or --builtin NAME");
  }
  if (!topology) return wrong(topology.error().what);
  if (options.kind.empty()) return *std::move(topology);
  Topology part = collectives::of_kind(*topology, options.kind);
  if (part.links.empty())
    return wrong("--kind " + options.kind + ": no link of " + named(options) + " is of this kind");
  return part;
}

runtime::Expected<int> node_of(const std::string& option, const std::string& id, const Topology& topology,
                               const std::string& file) {
  const auto node = collectives::find_node(topology, id);
  if (!node) return wrong(option + " " + id + ": no such node in " + file);
  return *node;
}

// The host that leads the cluster that is deployed to; otherwise the planner takes the first host that takes part.
runtime::Expected<std::optional<int>> root_of(const Options& options, const Topology& topology) {
  std::string root = options.root;
  if (root.empty() && !options.deploy.empty()) {
    const auto cluster = runtime::load_cluster(options.deploy);
    if (!cluster) return tl::unexpected(cluster.error());
    root = cluster->gateway().name;
  }
  if (root.empty()) return std::optional<int>{};
  const auto node = node_of("--root", root, topology, named(options));
  if (!node) return tl::unexpected(node.error());
  return std::optional(*node);
}

runtime::Expected<collectives::PlanRequest> request_of(const Options& options, const Topology& topology) {
  collectives::PlanRequest request;
  const auto operation = operation_of(options.operation);
  if (!operation) return tl::unexpected(operation.error());
  request.operation = *operation;
  const auto planner = collectives::planner_of(options.planner);
  if (!planner)
    return wrong("--planner " + options.planner +
                 ": no such planner; there are exact, mwu, rs_ag, rings, best_ring and three_phase");
  request.planner = *planner;
  const auto root = root_of(options, topology);
  if (!root) return tl::unexpected(root.error());
  request.root = *root;
  if (!options.participants.empty()) {
    std::vector<int> hosts;
    for (const std::string& id : options.participants) {
      const auto node = node_of("--participants", id, topology, named(options));
      if (!node) return tl::unexpected(node.error());
      hosts.push_back(*node);
    }
    request.participants = std::move(hosts);
  }
  if (options.grain < 0 || options.grain > 1'000'000) return wrong("--grain: between 1 and 1000000");
  if (!(options.epsilon >= 0.01 && options.epsilon <= 0.5)) return wrong("--epsilon: between 0.01 and 0.5");
  request.grain = options.grain;
  request.epsilon = options.epsilon;
  return request;
}

struct Planned {
  Plan plan;
  double seconds;
};

runtime::Expected<Planned> make(const Topology& topology, const collectives::PlanRequest& request,
                                const std::string& file) {
  const auto begun = std::chrono::steady_clock::now();
  auto plan = collectives::make_plan(topology, request);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
  if (!plan) {
    const std::string what = runtime::one_line(file + ": " + plan.error().what);
    return plan.error().code == collectives::ErrorCode::not_planned ? runtime::failed(what) : runtime::bad_input(what);
  }
  return Planned{*std::move(plan), seconds};
}

// ---- what is printed -----------------------------------------------------------------------------------------------

// "h0 -> sw -> h1"
std::string path_text(const Topology& topology, const collectives::TreeEdge& edge) {
  const auto nodes = edge.path.empty() ? std::vector<int>{edge.from, edge.to} : edge.path;
  std::string text;
  for (const int node : nodes) text += (text.empty() ? "" : " -> ") + topology.nodes[static_cast<std::size_t>(node)].id;
  return text;
}

std::string plan_text(const Plan& plan, const Topology& topology, double seconds) {
  using collectives::to_string;
  std::string text = std::string(collectives::name(plan.operation)) + " over " + plan.topology + ": rate " +
                     to_string(plan.rate) + " " + plan.unit + ", bound " + to_string(plan.bound) + " " + plan.unit +
                     ", ";
  if (plan.optimal()) {
    text += "optimal";
  } else {
    const collectives::Rational gap((plan.bound - plan.rate) / plan.bound * 100);
    text += "not proven optimal (" + fixed(gap.get_d(), 2) + " % below the bound)";
  }
  text += ", planned in " + fixed(seconds * 1e3, 2) + " ms\n";
  if (plan.trees_bound > 0) {
    text += std::to_string(plan.trees.size()) + (plan.trees.size() == 1 ? " tree" : " trees") +
            (static_cast<int>(plan.trees.size()) == plan.trees_bound
                 ? ", the fewest that there can be\n"
                 : "; at least " + std::to_string(plan.trees_bound) + " are needed\n");
  }
  for (const auto& tree : plan.trees) {
    text += (tree.target ? "path from " : "tree from ") + topology.nodes[static_cast<std::size_t>(tree.root)].id;
    if (tree.target) text += " for " + topology.nodes[static_cast<std::size_t>(*tree.target)].id;
    text += ", rate " + to_string(tree.rate) + ", depth " + std::to_string(collectives::depth(tree)) + "\n";
    for (const auto& edge : tree.edges) text += "  " + path_text(topology, edge) + "\n";
    if (!tree.reduce_edges.empty()) text += " reduced by\n";
    for (const auto& edge : tree.reduce_edges) text += "  " + path_text(topology, edge) + "\n";
  }
  return text;
}

// Chunks of every tree and what the simulator predicts, where a buffer is given.
runtime::Expected<void> add_schedule(const Options& options, const Planned& planned, const Topology& topology,
                                     json& document, std::string& text) {
  const auto bytes = byte_count("--bytes", options.bytes);
  if (!bytes) return tl::unexpected(bytes.error());
  if (*bytes == 0) return {};
  const auto unit = collectives::unit_bytes_per_s(topology.unit);
  if (!unit)
    return wrong("--bytes: " + named(options) + " is in '" + topology.unit + "', of which the speed is not known");
  const collectives::LinkModel model{
      .latency_s = options.latency_us * 1e-6, .unit_bytes_per_s = unit->get_d(), .overhead_bytes = options.overhead_bytes};
  const auto schedule = collectives::schedule(
      planned.plan, {.bytes = *bytes, .latency_s = model.latency_s, .unit_bytes_per_s = model.unit_bytes_per_s});
  json trees = json::array();
  text += "tree  bytes  chunks  chunk bytes  depth  seconds\n";
  for (std::size_t at = 0; at < schedule.trees.size(); ++at) {
    const auto& tree = schedule.trees[at];
    trees.push_back({{"offset", tree.offset},
                     {"bytes", tree.bytes},
                     {"chunks", tree.chunking.count},
                     {"chunk_bytes", tree.chunking.chunk_bytes},
                     {"depth", tree.depth},
                     {"seconds", tree.seconds}});
    text += std::to_string(at) + "  " + std::to_string(tree.bytes) + "  " + std::to_string(tree.chunking.count) + "  " +
            std::to_string(tree.chunking.chunk_bytes) + "  " + std::to_string(tree.depth) + "  " +
            fixed(tree.seconds, 6) + "\n";
  }
  constexpr std::size_t kTransfersMax = 4'000'000;
  std::size_t hops = 0;
  for (const auto& tree : planned.plan.trees)
    hops += tree.edges.size() + (tree.reduce_edges.empty() ? tree.edges.size() : tree.reduce_edges.size());
  if (options.chunks > 0 && static_cast<std::size_t>(options.chunks) > kTransfersMax / std::max<std::size_t>(hops, 1))
    return wrong("--chunks " + std::to_string(options.chunks) + ": of this plan the simulator takes at most " +
                 std::to_string(kTransfersMax / std::max<std::size_t>(hops, 1)));
  const auto transfers = options.chunks > 0 ? collectives::transfers_in_chunks(planned.plan, *bytes, options.chunks)
                                            : collectives::transfers_of(planned.plan, *bytes, model);
  const double simulated = collectives::simulate(topology, transfers, model);
  document["schedule"] = {
      {"bytes", *bytes}, {"trees", std::move(trees)}, {"seconds", schedule.seconds}, {"simulated_s", simulated}};
  text += "predicted by the pipeline " + fixed(schedule.seconds, 6) + " s, by the simulator " + fixed(simulated, 6) +
          " s\n";
  if (planned.plan.operation != Operation::allreduce) return {};
  constexpr std::pair<collectives::Classic, const char*> kClassics[] = {
      {collectives::Classic::ring, "ring"},
      {collectives::Classic::recursive_doubling, "recursive_doubling"},
      {collectives::Classic::rabenseifner, "rabenseifner"}};
  for (const auto& [classic, name] : kClassics) {
    const double seconds =
        collectives::simulate(topology, collectives::classic_allreduce(classic, topology, *bytes), model);
    document["schedule"]["classic_s"][name] = seconds;
    text += std::string(name) + " " + fixed(seconds, 6) + " s\n";
  }
  return {};
}

runtime::Expected<void> write_file(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  if (!file) return wrong(path + ": cannot be written");
  return {};
}

// ---- what is done --------------------------------------------------------------------------------------------------

runtime::Expected<void> check(const Options& options, const Topology& topology, const Shell& shell) {
  const auto text = runtime::read_file(-100, options.check, options.check, {.bytes_max = std::size_t{512} << 20});
  if (!text) return tl::unexpected(text.error());
  const json document = json::parse(*text, nullptr, false);
  if (document.is_discarded()) return wrong(options.check + ": is not JSON");
  const auto plan = collectives::parse_plan(document, topology);
  if (!plan) return wrong(options.check + ": " + plan.error().what);
  const auto held = collectives::verify(*plan, topology);
  if (!held) return runtime::failed(runtime::one_line(options.check + ": " + held.error().what));
  if (shell.json) {
    shell.print({{"valid", true},
                 {"op", collectives::name(plan->operation)},
                 {"rate", to_string(plan->rate)},
                 {"bound", to_string(plan->bound)},
                 {"optimal", plan->optimal()}});
  } else {
    std::printf("%s: valid; %s at rate %s, bound %s%s\n", options.check.c_str(),
                collectives::name(plan->operation).data(), to_string(plan->rate).c_str(),
                to_string(plan->bound).c_str(), plan->optimal() ? ", optimal" : "");
  }
  return {};
}

runtime::Expected<void> compare_planners(const Options& options, const Topology& topology, const Shell& shell) {
  std::vector<Operation> operations = {Operation::broadcast, Operation::allreduce, Operation::allgather};
  if (options.operation_given) {
    const auto operation = operation_of(options.operation);
    if (!operation) return tl::unexpected(operation.error());
    operations = {*operation};
  }
  const auto compared = compare(topology, operations, options.allocations);
  if (!compared) return tl::unexpected(compared.error());
  shell.json ? shell.print(to_json(*compared)) : static_cast<void>(std::fputs(to_text(*compared).c_str(), stdout));
  return {};
}

// --hybrid KIND:MILLISECONDS: the buffer over the links of --kind and, after switching, over those of KIND as well.
runtime::Expected<void> hybrid(const Options& options, const Shell& shell) {
  const auto kinds = collectives::hybrid_of(options.kind, options.hybrid);
  if (!kinds) return wrong("--hybrid " + options.hybrid + ": give KIND:MILLISECONDS here, and the first kind as --kind");
  const auto bytes = byte_count("--bytes", options.bytes);
  if (!bytes) return tl::unexpected(bytes.error());
  if (*bytes == 0) return wrong("--hybrid needs --bytes");
  Options all = options;
  all.kind.clear();
  const auto topology = read_topology(all);
  if (!topology) return tl::unexpected(topology.error());
  const auto request = request_of(all, *topology);
  if (!request) return tl::unexpected(request.error());
  const auto plan = collectives::plan_hybrid(*topology, *request, *kinds, static_cast<double>(*bytes));
  if (!plan) return wrong(named(options) + ": " + plan.error().what);
  const double alone = static_cast<double>(*bytes) / (plan->first.rate.get_d() * collectives::unit_bytes_per_s(topology->unit)->get_d());
  json document{{"bytes", *bytes},
                {"first", {{"kind", kinds->first}, {"rate", to_string(plan->first.rate)}, {"bytes", plan->split.first_bytes}}},
                {"second", {{"kind", kinds->second}, {"rate", to_string(plan->second.rate)}, {"bytes", plan->split.second_bytes}}},
                {"seconds", plan->split.seconds},
                {"seconds_first_alone", alone}};
  std::string text;
  if (!options.deploy.empty()) {
    const auto cluster = runtime::load_cluster(options.deploy);
    if (!cluster) return tl::unexpected(cluster.error());
    auto chains = deploy(plan->first, plan->first_links, *cluster);
    if (!chains) return tl::unexpected(chains.error());
    const auto second = deploy(plan->second, plan->second_links, *cluster, plan->first.trees.size());
    if (!second) return tl::unexpected(second.error());
    if (plan->split.second_bytes > 0) chains->insert(chains->end(), second->begin(), second->end());
    document["deploy"] = to_json(*chains);
    text = "relays, in the order in which they are spawned; shares are of each kind's part\n" + to_text(*chains);
  }
  if (shell.json) {
    shell.print(document);
    return {};
  }
  std::printf("%s: rate %s, %.0f bytes; %s: rate %s, %.0f bytes; %.6f s instead of %.6f s\n%s", kinds->first.c_str(),
              to_string(plan->first.rate).c_str(), plan->split.first_bytes, kinds->second.c_str(),
              to_string(plan->second.rate).c_str(), plan->split.second_bytes, plan->split.seconds, alone, text.c_str());
  return {};
}

runtime::Expected<void> plan_and_show(const Options& options, const Topology& topology, const Shell& shell) {
  const auto request = request_of(options, topology);
  if (!request) return tl::unexpected(request.error());
  auto planned = make(topology, *request, named(options));
  if (!planned) return tl::unexpected(planned.error());
  json document = collectives::to_json(planned->plan, topology, planned->seconds);
  std::string text = plan_text(planned->plan, topology, planned->seconds);
  if (request->planner == collectives::Planner::mwu) {
    document["epsilon"] = options.epsilon;
    text += "multiplicative weights with epsilon " + fixed(options.epsilon, 3) + "\n";
  }
  if (auto added = add_schedule(options, *planned, topology, document, text); !added) return added;
  if (!options.draw.empty()) {
    if (auto drawn = write_file(options.draw, draw(planned->plan, topology)); !drawn) return drawn;
  }
  if (!options.deploy.empty()) {
    const auto cluster = runtime::load_cluster(options.deploy);
    if (!cluster) return tl::unexpected(cluster.error());
    const auto chains = deploy(planned->plan, topology, *cluster);
    if (!chains) return tl::unexpected(chains.error());
    document["deploy"] = to_json(*chains);
    text += "relays, in the order in which they are spawned\n" + to_text(*chains);
  }
  shell.json ? shell.print(document) : static_cast<void>(std::fputs(text.c_str(), stdout));
  return {};
}

runtime::Expected<void> plan(const Options& options, const Shell& shell) {
  if (!options.hybrid.empty()) return hybrid(options, shell);
  // What is asked for is looked at before what it is asked of.
  if (const auto known = operation_of(options.operation); !known) return tl::unexpected(known.error());
  const auto topology = read_topology(options);
  if (!topology) return tl::unexpected(topology.error());
  if (options.print_topology) {
    std::fputs((collectives::to_json(*topology).dump(1) + "\n").c_str(), stdout);
    return {};
  }
  if (!options.check.empty()) return check(options, *topology, shell);
  if (options.compare) return compare_planners(options, *topology, shell);
  return plan_and_show(options, *topology, shell);
}

}  // namespace

void add_plan(CLI::App& app, Shell& shell) {
  auto options = std::make_shared<Options>();
  CLI::App* command = nullptr;
  command = add_command(app, shell, "plan", "Pack trees for a topology, with a proof of the best possible rate",
                        "coppice plan --topology lab.topology.json --op broadcast --root h0\n"
                        "  coppice plan --builtin dgx-1v --op allreduce --draw trees.svg",
                        [options, &shell] { return plan(*options, shell); });
  command
      ->add_option("--topology", options->topology, "the topology: JSON, NCCL's XML or the table of nvidia-smi topo -m")
      ->envname("COPPICE_TOPOLOGY");
  command->add_option("--builtin", options->builtin, "a topology that is known: " + builtin_list());
  command->add_option("--kind", options->kind, "use links of this kind only");
  command->add_flag("--print-topology", options->print_topology, "print the topology as JSON, and plan nothing");
  command->add_option_function<std::string>(
      "--op",
      [options](const std::string& word) {
        options->operation = word;
        options->operation_given = true;
      },
      "broadcast (default), reduce, allreduce, allgather, reduce_scatter, gather, scatter");
  command->add_option("--root", options->root, "the node that holds or gets the data (default: the first host)");
  command->add_option("--participants", options->participants, "only these hosts take part: h0,h1,…")->delimiter(',');
  command->add_option("--planner", options->planner, "exact, mwu, rs_ag, rings, best_ring or three_phase")->capture_default_str();
  command->add_option("--epsilon", options->epsilon, "of mwu: how far it may stay below the optimum")
      ->capture_default_str();
  command->add_option("--grain", options->grain,
                      "trees carry multiples of 1/GRAIN of the unit (default: any fraction)");
  command->add_option("--bytes", options->bytes, "a buffer (64M) to cut into chunks and predict the time of");
  command->add_option("--latency", options->latency_us, "of one chunk on one hop, in microseconds")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--overhead", options->overhead_bytes, "bytes that every chunk takes on every link beside its own")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--chunks", options->chunks, "for the simulator: so many a tree, as coppice bench collective cuts them")
      ->check(CLI::Range(1, 1'000'000));
  command->add_option("--hybrid", options->hybrid,
                      "KIND:MILLISECONDS: links of KIND too, after switching to them for so long");
  command->add_option("--draw", options->draw, "write a picture of the trees to this file (SVG)");
  command->add_option("--deploy", options->deploy, "a cluster file: say which relay actors go to which hosts");
  command->add_option("--check", options->check, "verify this plan (JSON) instead of making one");
  command->add_flag("--compare", options->compare, "a table of all planners");
  command->add_flag("--allocations", options->allocations,
                    "with --compare: of every class of 3 or more GPUs of the machine");
}

}  // namespace coppice::apps
