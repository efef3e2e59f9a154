#include "apps/accuracy.hpp"

#include <algorithm>
#include <cmath>

#include "apps/progress.hpp"

namespace coppice::apps {
namespace {

using nlohmann::json;
using runtime::bad_input;
using runtime::Expected;

constexpr std::size_t kPatternsMax = 1U << 16;

std::vector<int> missing_of(coding::ArrivalSet present, int n) {
  std::vector<int> missing;
  for (int w = 0; w < n; ++w)
    if (!(present >> w & 1U)) missing.push_back(w);
  return missing;
}

// A logistic decoder knows the sets that it was fitted to; say so before the work rather than in its midst.
Expected<void> check_entries(const coding::Decoder& decoder, int n, const std::vector<coding::ArrivalSet>& sets) {
  const auto* logistic = std::get_if<coding::LogisticDecoder>(&decoder);
  for (const auto set : sets) {
    if (!logistic || logistic->weights.contains(set)) continue;
    std::string text;
    for (const int w : missing_of(set, n)) text += (text.empty() ? "" : ", ") + std::to_string(w);
    return bad_input("the decoder has no entry for the workers that are left when {" + text +
                     "} are missing: ask for fewer with --missing, or decompose again");
  }
  return {};
}

// How many sets of missing workers there are when so many are missing in every block at once; held to kPatternsMax + 1.
std::size_t joint_patterns(const runtime::Manifest& manifest, std::size_t sets) {
  std::size_t patterns = 1;
  for (std::size_t block = 0; block < std::max<std::size_t>(1, manifest.blocks.size()); ++block)
    patterns = std::min(patterns * sets, kPatternsMax + 1);
  return patterns;
}

Expected<std::vector<std::vector<coding::ArrivalSet>>> sets_by_missing(const runtime::Manifest& manifest,
                                                                       int missing_max) {
  const int n = manifest.shape.workers;
  if (missing_max < 0 || missing_max >= n)
    return bad_input("with " + std::to_string(missing_max) + " of " + std::to_string(n) +
                     " workers missing there is nobody to answer: ask for 0 to " + std::to_string(n - 1));
  std::vector<std::vector<coding::ArrivalSet>> by_missing;
  std::size_t patterns = 0;
  for (int missing = 0; missing <= missing_max; ++missing) {
    auto sets = sets_without(n, missing);
    patterns += joint_patterns(manifest, sets.size());
    if (patterns > kPatternsMax)
      return bad_input(std::to_string(missing) + " of " + std::to_string(n) + " workers missing: more than " +
                       std::to_string(kPatternsMax) + " sets to decode");
    if (manifest.blocks.empty())
      if (auto known = check_entries(manifest.decoder, n, sets); !known) return tl::unexpected(known.error());
    for (const auto& block : manifest.blocks)
      if (auto known = check_entries(block.decoder, n, sets); !known) return tl::unexpected(known.error());
    by_missing.push_back(std::move(sets));
  }
  return by_missing;
}

// What every block says of every item with each set of its workers.
struct BlockAnswers {
  struct Answer {
    float score = 0;
    int label = -1;
  };
  std::vector<std::vector<std::vector<Answer>>> of;  // [block][set][item]
};

Expected<BlockAnswers> block_answers(const runtime::Manifest& manifest, const runtime::OfflineResponses& responses,
                                     const std::vector<coding::ArrivalSet>& sets) {
  BlockAnswers answers;
  for (int block = 0; block < static_cast<int>(manifest.blocks.size()); ++block) {
    auto& by_set = answers.of.emplace_back();
    for (const auto set : sets) {
      auto& items = by_set.emplace_back();
      for (std::int64_t i = 0; i < responses.items; ++i) {
        const auto best = runtime::block_best_of(manifest, responses, i, block, set);
        if (!best) return runtime::failed(best.error().what);
        items.push_back({best->score, best->label});
      }
    }
  }
  return answers;
}

// Percent right when block b answers with its choice[b]-th set.
double joint_accuracy(const BlockAnswers& answers, const std::vector<std::size_t>& choice,
                      const std::vector<std::uint16_t>& truth) {
  std::size_t right = 0;
  for (std::size_t item = 0; item < truth.size(); ++item) {
    const auto* best = &answers.of[0][choice[0]][item];
    for (std::size_t block = 1; block < choice.size(); ++block) {
      const auto& other = answers.of[block][choice[block]][item];
      if (other.score > best->score || (other.score == best->score && other.label < best->label)) best = &other;
    }
    right += best->label == truth[item] ? 1 : 0;
  }
  return 100.0 * static_cast<double>(right) / static_cast<double>(truth.size());
}

// Every set of so many workers missing in every block at once.
Expected<MissingAccuracy> measure_blocks(const runtime::Manifest& manifest, const runtime::OfflineResponses& responses,
                                         const std::vector<std::uint16_t>& truth, int missing,
                                         const std::vector<coding::ArrivalSet>& sets) {
  const auto answers = block_answers(manifest, responses, sets);
  if (!answers) return tl::unexpected(answers.error());
  const auto patterns = joint_patterns(manifest, sets.size());
  Progress bar(std::to_string(missing) + " missing in every block", static_cast<std::int64_t>(patterns));
  MissingAccuracy row{missing, static_cast<int>(patterns), 0, 101, {}};
  std::vector<std::size_t> choice(manifest.blocks.size());
  for (std::size_t pattern = 0; pattern < patterns; ++pattern) {
    auto rest = pattern;
    for (auto& each : choice) {
      each = rest % sets.size();
      rest /= sets.size();
    }
    const double percent = joint_accuracy(*answers, choice, truth);
    row.mean += percent / static_cast<double>(patterns);
    if (percent < row.worst) {
      row.worst = percent;
      row.worst_pattern.clear();
      for (std::size_t block = 0; block < choice.size(); ++block)
        for (const int place : missing_of(sets[choice[block]], manifest.shape.workers))
          row.worst_pattern.push_back(static_cast<int>(block) * manifest.shape.workers + place);
    }
    bar.at(static_cast<std::int64_t>(pattern) + 1);
  }
  return row;
}

Expected<Accuracy> measure_all_blocks(const runtime::Manifest& manifest, const runtime::OfflineResponses& responses,
                                      const std::vector<std::uint16_t>& truth,
                                      const std::vector<std::vector<coding::ArrivalSet>>& by_missing) {
  Accuracy accuracy;
  for (std::size_t missing = 0; missing < by_missing.size(); ++missing) {
    auto row = measure_blocks(manifest, responses, truth, static_cast<int>(missing), by_missing[missing]);
    if (!row) return tl::unexpected(row.error());
    if (missing == 0) {
      accuracy.clean = row->mean;
    } else {
      accuracy.missing.push_back(std::move(*row));
    }
  }
  return accuracy;
}

}  // namespace

std::vector<coding::ArrivalSet> sets_without(int n, int missing) {
  std::vector<char> gone(static_cast<std::size_t>(n), 0);
  std::fill_n(gone.begin(), missing, 1);
  std::vector<coding::ArrivalSet> sets;
  do {
    coding::ArrivalSet present = 0;
    for (int w = 0; w < n; ++w)
      if (!gone[static_cast<std::size_t>(w)]) present |= coding::ArrivalSet{1} << w;
    sets.push_back(present);
  } while (std::ranges::prev_permutation(gone).found && sets.size() <= kPatternsMax);
  return sets;
}

double rounded(double percent) { return std::round(percent * 1e4) / 1e4; }

Expected<void> check_missing(const runtime::Manifest& manifest, int missing_max) {
  if (const auto sets = sets_by_missing(manifest, missing_max); !sets) return tl::unexpected(sets.error());
  return {};
}

Expected<Accuracy> measure_accuracy(const runtime::Manifest& manifest, const runtime::OfflineResponses& responses,
                                    const std::vector<std::uint16_t>& truth, int missing_max) {
  const auto by_missing = sets_by_missing(manifest, missing_max);
  if (!by_missing) return tl::unexpected(by_missing.error());
  if (!manifest.blocks.empty()) return measure_all_blocks(manifest, responses, truth, *by_missing);
  std::int64_t total = 0, done = 0;
  for (const auto& sets : *by_missing) total += static_cast<std::int64_t>(sets.size());
  Progress bar("decoding with workers missing", total);
  Accuracy accuracy;
  for (std::size_t missing = 0; missing < by_missing->size(); ++missing) {
    const auto& sets = (*by_missing)[missing];
    MissingAccuracy row{static_cast<int>(missing), static_cast<int>(sets.size()), 0, 101, {}};
    for (const auto set : sets) {
      const auto labels = runtime::labels_of(manifest, responses, set);
      if (!labels) return tl::unexpected(labels.error());
      const double percent = runtime::accuracy_percent(*labels, truth);
      row.mean += percent / static_cast<double>(sets.size());
      if (percent < row.worst) {
        row.worst = percent;
        row.worst_pattern = missing_of(set, manifest.shape.workers);
      }
      bar.at(++done);
    }
    if (missing == 0) {
      accuracy.clean = row.mean;
    } else {
      accuracy.missing.push_back(std::move(row));
    }
  }
  return accuracy;
}

json to_json(const Accuracy& accuracy, const json& base) {
  json missing = json::array();
  for (const auto& row : accuracy.missing)
    missing.push_back({{"count", row.count},
                       {"patterns", row.patterns},
                       {"mean", rounded(row.mean)},
                       {"worst", rounded(row.worst)},
                       {"worst_pattern", row.worst_pattern}});
  return {{"base", base}, {"clean", rounded(accuracy.clean)}, {"missing", std::move(missing)}};
}

Expected<double> net_accuracy(const gpu::Network& net, const gpu::Dataset& data,
                              const gpu::Normalisation& normalisation) {
  Progress bar("the plain net", data.count());
  const auto scores =
      runtime::run_net(net, data, normalisation, [&](std::int64_t done, std::int64_t) { bar.at(done); });
  if (!scores) return tl::unexpected(scores.error());
  const auto width = scores->size() / data.labels.size();
  if (const auto top = std::ranges::max(data.labels); top >= width)
    return bad_input("the net answers with " + std::to_string(width) + " scores, the data has label " +
                     std::to_string(top));
  std::vector<int> labels;
  for (std::size_t i = 0; i < data.labels.size(); ++i)
    labels.push_back(runtime::argmax(std::span(*scores).subspan(i * width, width)));
  return rounded(runtime::accuracy_percent(labels, data.labels));
}

Expected<runtime::OfflineResponses> answers_of(const runtime::Model& model, const gpu::Dataset& data,
                                               const std::string& label) {
  Progress bar(label, data.count() * static_cast<std::int64_t>(model.manifest.workers.size()));
  return runtime::run_offline(model, data, [&](std::int64_t done, std::int64_t) { bar.at(done); });
}

}  // namespace coppice::apps
