#include "apps/plan_draw.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numbers>
#include <numeric>

namespace coppice::apps {
namespace {

using collectives::Plan;
using collectives::Topology;
using collectives::Tree;

constexpr double kRadius = 400;
constexpr double kMargin = 90;
constexpr double kSide = 2 * (kRadius + kMargin);
constexpr double kLegend = 330;
constexpr double kNodeRadius = 17;
constexpr std::size_t kTreesMax = 24;

struct Point {
  double x;
  double y;
};

std::string escaped(const std::string& text) {
  std::string safe;
  for (const char c : text) {
    switch (c) {
      case '&':
        safe += "&amp;";
        break;
      case '<':
        safe += "&lt;";
        break;
      case '>':
        safe += "&gt;";
        break;
      case '"':
        safe += "&quot;";
        break;
      default:
        safe += static_cast<unsigned char>(c) < 0x20 ? '?' : c;
    }
  }
  return safe;
}

// Colours that differ from their neighbours in the list as much as they can: hues a golden angle apart.
std::string colour(std::size_t tree) {
  const double hue = std::fmod(static_cast<double>(tree) * 137.508, 360.0);
  return fmt::format("hsl({:.0f},75%,{}%)", hue, tree % 2 == 0 ? 40 : 52);
}

// Hosts in the file's order around the circle; a switch in the middle of the nodes that it joins, pulled inwards.
std::vector<Point> places(const Topology& topology) {
  std::vector<Point> at(topology.nodes.size(), Point{kRadius + kMargin, kRadius + kMargin});
  const auto hosts = collectives::hosts(topology);
  const double step = 2 * std::numbers::pi / static_cast<double>(hosts.size());
  for (std::size_t i = 0; i < hosts.size(); ++i) {
    const double angle = step * static_cast<double>(i) - std::numbers::pi / 2;
    at[static_cast<std::size_t>(hosts[i])] = {kRadius + kMargin + kRadius * std::cos(angle),
                                              kRadius + kMargin + kRadius * std::sin(angle)};
  }
  for (int round = 0; round < 8; ++round) {
    for (std::size_t node = 0; node < topology.nodes.size(); ++node) {
      if (!topology.nodes[node].is_switch) continue;
      Point sum{kRadius + kMargin, kRadius + kMargin};
      double count = 1;
      for (const auto& link : topology.links) {
        if (link.from != static_cast<int>(node) && link.to != static_cast<int>(node)) continue;
        const auto other = static_cast<std::size_t>(link.from == static_cast<int>(node) ? link.to : link.from);
        sum = {sum.x + at[other].x, sum.y + at[other].y};
        count += 1;
      }
      at[node] = {sum.x / count, sum.y / count};
    }
  }
  // Switches of the same neighbours would lie on one another: spread them over a small ring.
  std::size_t switches = 0;
  for (std::size_t node = 0; node < topology.nodes.size(); ++node) {
    if (!topology.nodes[node].is_switch) continue;
    const double angle = static_cast<double>(switches++) * 2.4;
    at[node] = {at[node].x + 45 * std::cos(angle), at[node].y + 45 * std::sin(angle)};
  }
  return at;
}

class Drawing {
 public:
  Drawing(const Plan& plan, const Topology& topology) : plan_(plan), topology_(topology), at_(places(topology)) {
    order_.resize(plan.trees.size());
    std::iota(order_.begin(), order_.end(), std::size_t{0});
    std::ranges::stable_sort(order_,
                             [&](std::size_t a, std::size_t b) { return plan.trees[a].rate > plan.trees[b].rate; });
    if (order_.size() > kTreesMax) order_.resize(kTreesMax);
    for (const auto& link : topology.links) widest_ = std::max(widest_, link.capacity.get_d());
  }

  std::string run() {
    text_ = fmt::format(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0:.0f} {1:.0f}\" width=\"{0:.0f}\" "
        "height=\"{1:.0f}\" "
        "font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        kSide + kLegend, kSide);
    links();
    count_slots();
    for (std::size_t i = 0; i < order_.size(); ++i) tree(i);
    nodes();
    legend();
    return text_ + "</svg>\n";
  }

 private:
  using Pair = std::pair<int, int>;

  const Point& place(int node) const { return at_[static_cast<std::size_t>(node)]; }
  double width(const collectives::Rational& rate) const { return 1.5 + 7 * rate.get_d() / std::max(widest_, 1e-300); }

  void links() {
    std::map<Pair, double> capacity;
    for (const auto& link : topology_.links) capacity[std::minmax(link.from, link.to)] += link.capacity.get_d();
    double most = 1e-300;
    for (const auto& [pair, sum] : capacity) most = std::max(most, sum);
    for (const auto& [pair, sum] : capacity) {
      const Point& a = place(pair.first);
      const Point& b = place(pair.second);
      text_ += fmt::format(
          "<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"#ddd\" stroke-width=\"{:.1f}\"/>\n",
          a.x, a.y, b.x, b.y, 3 + 15 * sum / most);
    }
  }

  template <class Do>
  void each_hop(const Tree& tree, const Do& act) const {
    for (const auto& edge : tree.edges) {
      const auto path = edge.path.empty() ? std::vector<int>{edge.from, edge.to} : edge.path;
      for (std::size_t hop = 1; hop < path.size(); ++hop) act(path[hop - 1], path[hop]);
    }
  }

  void count_slots() {
    for (const std::size_t at : order_) {
      each_hop(plan_.trees[at], [&](int from, int to) { ++slots_[std::minmax(from, to)]; });
    }
  }

  // Side by side around the link's middle line, bent a little so that lines of one link part.
  void tree(std::size_t place_in_order) {
    const Tree& tree = plan_.trees[order_[place_in_order]];
    const std::string paint = colour(place_in_order);
    text_ += fmt::format(
        "<g stroke=\"{0}\" fill=\"none\" stroke-width=\"{1:.1f}\" stroke-linecap=\"round\" opacity=\"0.85\">\n", paint,
        width(tree.rate));
    std::string heads;
    each_hop(tree, [&](int from, int to) {
      const Pair pair = std::minmax(from, to);
      const Point a = place(pair.first);
      const Point b = place(pair.second);
      const double length = std::max(std::hypot(b.x - a.x, b.y - a.y), 1.0);
      const Point across{(a.y - b.y) / length, (b.x - a.x) / length};
      const int slot = used_[pair]++;
      const double offset = (slot - (slots_[pair] - 1) / 2.0) * std::min(9.0, 90.0 / slots_[pair]);
      const Point middle{(a.x + b.x) / 2 + across.x * offset * 2, (a.y + b.y) / 2 + across.y * offset * 2};
      text_ += fmt::format("<path d=\"M{:.1f} {:.1f} Q{:.1f} {:.1f} {:.1f} {:.1f}\"/>\n", a.x, a.y, middle.x, middle.y,
                           b.x, b.y);
      const double way = from == pair.first ? 1 : -1;
      // Past the middle, where the arrows of lines through the centre would lie on one another.
      const double t = way > 0 ? 0.64 : 0.36;
      const Point top{(1 - t) * (1 - t) * a.x + 2 * t * (1 - t) * middle.x + t * t * b.x,
                      (1 - t) * (1 - t) * a.y + 2 * t * (1 - t) * middle.y + t * t * b.y};
      const Point along{way * (b.x - a.x) / length, way * (b.y - a.y) / length};
      heads += fmt::format("<path d=\"M{:.1f} {:.1f} L{:.1f} {:.1f} L{:.1f} {:.1f} Z\"/>\n", top.x + 8 * along.x,
                           top.y + 8 * along.y, top.x - 5 * along.x + 6 * across.x, top.y - 5 * along.y + 6 * across.y,
                           top.x - 5 * along.x - 6 * across.x, top.y - 5 * along.y - 6 * across.y);
    });
    text_ += fmt::format("</g>\n<g fill=\"{}\">\n{}</g>\n", paint, heads);
  }

  void nodes() {
    std::map<int, std::string> root_of;
    for (std::size_t i = order_.size(); i-- > 0;) root_of[plan_.trees[order_[i]].root] = colour(i);
    for (std::size_t node = 0; node < topology_.nodes.size(); ++node) {
      const Point& p = at_[node];
      const auto root = root_of.find(static_cast<int>(node));
      const std::string ring = root == root_of.end() ? "#444" : root->second;
      if (topology_.nodes[node].is_switch) {
        text_ += fmt::format(
            "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"30\" height=\"22\" rx=\"4\" fill=\"#eee\" stroke=\"#444\"/>\n",
            p.x - 15, p.y - 11);
      } else {
        text_ += fmt::format(
            "<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"{}\" fill=\"white\" stroke=\"{}\" stroke-width=\"{}\"/>\n", p.x,
            p.y, kNodeRadius, ring, root == root_of.end() ? 1.5 : 4.0);
      }
      label(topology_.nodes[node], p);
    }
  }

  // Short names inside; long ones outside of the circle.
  void label(const collectives::Node& node, const Point& p) {
    const double centre = kRadius + kMargin;
    const bool inside = node.id.size() <= 3;
    const double away = inside || node.is_switch ? 0 : kNodeRadius + 14;
    const double distance = std::max(std::hypot(p.x - centre, p.y - centre), 1.0);
    text_ += fmt::format(
        "<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text>\n", p.x + away * (p.x - centre) / distance,
        p.y + away * (p.y - centre) / distance + (node.is_switch && !inside ? 26 : 4.5), escaped(node.id));
  }

  void legend() {
    const double x = kSide;
    double y = 40;
    const auto line = [&](const std::string& words) {
      text_ += fmt::format("<text x=\"{:.0f}\" y=\"{:.0f}\">{}</text>\n", x, y, escaped(words));
      y += 20;
    };
    line(fmt::format("{} over {}", collectives::name(plan_.operation), plan_.topology));
    line(fmt::format("rate {} {}{}", collectives::to_string(plan_.rate), plan_.unit,
                     plan_.optimal() ? ", optimal" : ""));
    if (!plan_.optimal()) line("bound " + collectives::to_string(plan_.bound));
    y += 10;
    for (std::size_t i = 0; i < order_.size(); ++i) {
      const Tree& tree = plan_.trees[order_[i]];
      text_ += fmt::format(
          "<line x1=\"{0:.0f}\" y1=\"{1:.0f}\" x2=\"{2:.0f}\" y2=\"{1:.0f}\" stroke=\"{3}\" "
          "stroke-width=\"{4:.1f}\"/>\n",
          x, y - 4, x + 34, colour(i), width(tree.rate));
      text_ += fmt::format(
          "<text x=\"{:.0f}\" y=\"{:.0f}\">{}</text>\n", x + 44, y,
          escaped(fmt::format("from {}, rate {}, depth {}", topology_.nodes[static_cast<std::size_t>(tree.root)].id,
                              collectives::to_string(tree.rate), collectives::depth(tree))));
      y += 20;
    }
    if (order_.size() < plan_.trees.size())
      line(fmt::format("and {} more trees, not drawn", plan_.trees.size() - order_.size()));
  }

  const Plan& plan_;
  const Topology& topology_;
  std::vector<Point> at_;
  std::vector<std::size_t> order_;  // of the trees drawn, the widest first
  double widest_ = 0;
  std::map<Pair, int> slots_;  // lines over each link
  std::map<Pair, int> used_;
  std::string text_;
};

}  // namespace

std::string draw(const Plan& plan, const Topology& topology) { return Drawing(plan, topology).run(); }

}  // namespace coppice::apps
