#include "gpu/class_groups.hpp"

#include <algorithm>
#include <limits>
#include <numeric>
#include <random>
#include <string>

namespace coppice::gpu {
namespace {

constexpr int kStarts = 20, kRoundsMax = 100;

using Point = std::vector<double>;

double distance(const Point& a, const Point& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return sum;
}

std::size_t at(int index) { return static_cast<std::size_t>(index); }

unexpected<Error> mismatch(const std::string& what) { return unexpected(Error{ErrorCode::shape_mismatch, what}); }

class BalancedMeans {
 public:
  BalancedMeans(const std::vector<Point>& points, int groups, std::mt19937_64& random)
      : points_(points), groups_(groups), random_(random), group_of_(points.size(), 0) {}

  // The sum of squared distances to the group's mean.
  double run() {
    begin();
    std::vector<int> before;
    for (int round = 0; round < kRoundsMax && before != group_of_; ++round) {
      before = group_of_;
      assign();
      move_centres();
    }
    exchange();
    return inertia();
  }
  const std::vector<int>& groups() const { return group_of_; }

 private:
  // Arthur and Vassilvitskii 2007: far points are likelier to be centres.
  void begin() {
    centres_ = {points_[random_() % points_.size()]};
    while (std::ssize(centres_) < groups_) {
      std::vector<double> weights;
      for (const auto& point : points_) {
        double nearest = std::numeric_limits<double>::infinity();
        for (const auto& centre : centres_) nearest = std::min(nearest, distance(point, centre));
        weights.push_back(nearest);
      }
      if (std::ranges::all_of(weights, [](double w) { return w == 0; })) std::ranges::fill(weights, 1.0);
      centres_.push_back(points_[std::discrete_distribution<std::size_t>(weights.begin(), weights.end())(random_)]);
    }
  }
  // Who would lose most by going elsewhere chooses first.
  void assign() {
    std::vector<std::vector<double>> cost;
    for (const auto& point : points_) {
      cost.emplace_back();
      for (const auto& centre : centres_) cost.back().push_back(distance(point, centre));
    }
    std::vector<int> order(points_.size());
    std::iota(order.begin(), order.end(), 0);
    const auto regret = [&](int i) { return std::ranges::min(cost[at(i)]) - std::ranges::max(cost[at(i)]); };
    std::ranges::stable_sort(order, {}, regret);
    const int count = static_cast<int>(points_.size()), least = count / groups_;
    int larger = count % groups_;  // so many groups have one more
    std::vector<int> sizes(at(groups_), 0);
    for (const int i : order) {
      int best = -1;
      for (int g = 0; g < groups_; ++g) {
        const bool room = sizes[at(g)] < least || (sizes[at(g)] == least && larger > 0);
        if (room && (best < 0 || cost[at(i)][at(g)] < cost[at(i)][at(best)])) best = g;
      }
      if (sizes[at(best)] == least) --larger;
      ++sizes[at(best)];
      group_of_[at(i)] = best;
    }
  }
  void move_centres() {
    std::vector<int> sizes(at(groups_), 0);
    for (auto& centre : centres_) std::ranges::fill(centre, 0.0);
    for (std::size_t i = 0; i < points_.size(); ++i) {
      auto& centre = centres_[at(group_of_[i])];
      for (std::size_t d = 0; d < centre.size(); ++d) centre[d] += points_[i][d];
      ++sizes[at(group_of_[i])];
    }
    for (int g = 0; g < groups_; ++g)
      for (double& value : centres_[at(g)]) value /= std::max(sizes[at(g)], 1);
  }
  double inertia() {
    move_centres();
    double sum = 0;
    for (std::size_t i = 0; i < points_.size(); ++i) sum += distance(points_[i], centres_[at(group_of_[i])]);
    return sum;
  }
  void exchange() {
    double best = inertia();
    for (bool better = true; better;) {
      better = false;
      for (std::size_t a = 0; a < points_.size(); ++a)
        for (std::size_t b = a + 1; b < points_.size(); ++b) {
          const int ga = group_of_[a], gb = group_of_[b];
          if (ga == gb) continue;
          // With fixed centres first, since it is cheap; then for real.
          const double gain = distance(points_[a], centres_[at(ga)]) + distance(points_[b], centres_[at(gb)]) -
                              distance(points_[a], centres_[at(gb)]) - distance(points_[b], centres_[at(ga)]);
          if (gain <= 0) continue;
          std::swap(group_of_[a], group_of_[b]);
          if (const double now = inertia(); now < best * (1 - 1e-12)) {
            best = now;
            better = true;
          } else {
            std::swap(group_of_[a], group_of_[b]);
            move_centres();
          }
        }
    }
  }

  const std::vector<Point>& points_;
  int groups_;
  std::mt19937_64& random_;
  std::vector<Point> centres_;
  std::vector<int> group_of_;
};

ClassGroups parts(const std::vector<int>& group_of, int groups) {
  ClassGroups out(at(groups));
  for (std::size_t c = 0; c < group_of.size(); ++c) out[at(group_of[c])].push_back(static_cast<int>(c));
  std::ranges::sort(out);
  return out;
}

}  // namespace

ClassGroups contiguous_groups(int classes, int groups) {
  std::vector<int> group_of;
  for (int c = 0; c < classes; ++c)
    group_of.push_back(static_cast<int>(static_cast<std::int64_t>(c) * groups / classes));
  return parts(group_of, groups);
}

Expected<ClassGroups> similar_groups(const std::vector<std::vector<double>>& features, int groups, std::uint64_t seed) {
  if (groups < 1 || groups > std::ssize(features))
    return mismatch(std::to_string(features.size()) + " classes do not make " + std::to_string(groups) + " groups");
  for (std::size_t c = 0; c < features.size(); ++c)
    if (features[c].size() != features.front().size() || features[c].empty())
      return mismatch("class " + std::to_string(c) + " has no features: no item of it was seen");
  std::mt19937_64 random(seed);
  double best = std::numeric_limits<double>::infinity();
  std::vector<int> chosen;
  for (int start = 0; start < kStarts; ++start) {
    BalancedMeans means(features, groups, random);
    if (const double inertia = means.run(); inertia < best) {
      best = inertia;
      chosen = means.groups();
    }
  }
  return parts(chosen, groups);
}

Expected<void> check_groups(const ClassGroups& groups, int classes) {
  std::vector<int> seen(at(classes), 0);
  for (const auto& group : groups) {
    if (group.empty()) return mismatch("a group has no classes");
    for (const int c : group) {
      if (c < 0 || c >= classes)
        return mismatch("class " + std::to_string(c) + " is not one of 0 to " + std::to_string(classes - 1));
      if (++seen[at(c)] > 1) return mismatch("class " + std::to_string(c) + " is in two groups");
    }
  }
  for (int c = 0; c < classes; ++c)
    if (seen[at(c)] == 0) return mismatch("class " + std::to_string(c) + " is in no group");
  return {};
}

}  // namespace coppice::gpu
