// coppice plan: which trees carry an operation over a topology, how fast, and a proof of how fast it could be.
#include "collectives/plan.hpp"

#include <chrono>
#include <memory>

#include "apps/command.hpp"
#include "apps/table.hpp"
#include "runtime/cluster.hpp"

namespace coppice::apps {
namespace {

struct Options {
  std::string topology, operation = "broadcast", root;
};

tl::unexpected<runtime::Error> wrong(const std::string& what) { return runtime::bad_input(runtime::one_line(what)); }

runtime::Expected<void> check_operation(const std::string& word) {
  const auto operation = collectives::operation_of(word);
  if (!operation)
    return wrong(
        "--op " + word +
        ": no such operation; there are broadcast, reduce, allreduce, allgather, reduce_scatter, gather and scatter");
  if (*operation != collectives::Operation::broadcast)
    return wrong("--op " + word + " is not planned yet; broadcast is");
  return {};
}

runtime::Expected<int> root_of(const Options& options, const collectives::Topology& topology) {
  if (options.root.empty()) return collectives::hosts(topology).front();  // a valid topology has a host
  const auto node = collectives::find_node(topology, options.root);
  if (!node) return wrong("--root " + options.root + ": no such node in " + options.topology);
  return *node;
}

// "h0 -> sw -> h1"
std::string path_text(const collectives::Topology& topology, const collectives::TreeEdge& edge) {
  const auto nodes = edge.path.empty() ? std::vector<int>{edge.from, edge.to} : edge.path;
  std::string text;
  for (const int node : nodes) text += (text.empty() ? "" : " -> ") + topology.nodes[static_cast<std::size_t>(node)].id;
  return text;
}

std::string plan_text(const collectives::Plan& plan, const collectives::Topology& topology, double seconds) {
  using collectives::to_string;
  std::string text = std::string(collectives::name(plan.operation)) + " over " + plan.topology + ": rate " +
                     to_string(plan.rate) + " " + plan.unit + ", bound " + to_string(plan.bound) + " " + plan.unit +
                     ", " + (plan.optimal() ? "optimal" : "not proven optimal") + ", planned in " +
                     fixed(seconds * 1e3, 2) + " ms\n";
  for (const auto& tree : plan.trees) {
    text += "tree from " + topology.nodes[static_cast<std::size_t>(tree.root)].id + ", rate " + to_string(tree.rate) +
            ", depth " + std::to_string(collectives::depth(tree)) + "\n";
    for (const auto& edge : tree.edges) text += "  " + path_text(topology, edge) + "\n";
  }
  return text;
}

runtime::Expected<void> plan(const Options& options, const Shell& shell) {
  if (auto known = check_operation(options.operation); !known) return known;
  const auto topology = collectives::load_topology(options.topology);
  if (!topology) return wrong(topology.error().what);
  const auto root = root_of(options, *topology);
  if (!root) return tl::unexpected(root.error());
  const auto begun = std::chrono::steady_clock::now();
  const auto planned = collectives::plan_broadcast(*topology, *root);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
  if (!planned) return wrong(options.topology + ": " + planned.error().what);
  if (shell.json) {
    shell.print(collectives::to_json(*planned, *topology, seconds));
  } else {
    std::fputs(plan_text(*planned, *topology, seconds).c_str(), stdout);
  }
  return {};
}

}  // namespace

void add_plan(CLI::App& app, Shell& shell) {
  auto options = std::make_shared<Options>();
  auto* command = add_command(app, shell, "plan", "Pack trees for a topology, with a proof of the best possible rate",
                              "coppice plan --topology lab.topology.json --op broadcast --root h0",
                              [options, &shell] { return plan(*options, shell); });
  command->add_option("--topology", options->topology, "the topology file (JSON)")
      ->required()
      ->envname("COPPICE_TOPOLOGY");
  command->add_option("--op", options->operation, "the operation; so far: broadcast")->capture_default_str();
  command->add_option("--root", options->root, "the node that holds the data (default: the first host)");
}

}  // namespace coppice::apps
