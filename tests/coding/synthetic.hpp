// tests/coding/synthetic.hpp: codes and responses that tests draw from a seed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "coding/decoder.hpp"

namespace synthetic {

using namespace coppice::coding;
using Random = std::mt19937_64;

inline std::size_t size_of(int count) { return static_cast<std::size_t>(count); }
inline int draw(Random& random, int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); }
inline float normal(Random& random) { return std::normal_distribution<float>()(random); }

// One dense, random code: up to `workers_max` workers of 1 to 3 floats each.
inline Generator random_generator(Random& random, int workers_max = 6, int classes_max = 8) {
  Generator generator{draw(random, 1, classes_max), {}};
  generator.workers.resize(size_of(draw(random, 1, workers_max)));
  for (WorkerRows& worker : generator.workers) {
    worker.floats = draw(random, 1, 3);
    worker.rows.resize(size_of(worker.floats * generator.classes));
    for (float& entry : worker.rows) entry = normal(random);
  }
  return generator;
}

// The harmonic code on k scores: n workers of one float each.
inline Generator harmonic_generator(CodeShape shape) {
  const std::vector<double> frame = harmonic_frame(shape);
  Generator generator{shape.needed, {}};
  for (int i = 0; i < shape.workers; ++i) {
    const auto row = frame.begin() + i * shape.needed;
    generator.workers.push_back({1, std::vector<float>(row, row + shape.needed)});
  }
  return generator;
}

// Two classes a systematic worker, and companions that answer with all of them.
inline Generator paired_generator(int groups, int companions) {
  std::vector<std::vector<int>> pairs;
  for (int g = 0; g < groups; ++g) pairs.push_back({2 * g, 2 * g + 1});
  return grouped_generator(pairs, 2 * groups, companions).value();
}

inline std::vector<float> random_scores(Random& random, int classes) {
  std::vector<float> scores(size_of(classes));
  for (float& score : scores) score = normal(random);
  return scores;
}

inline Arrivals encoded(const Generator& generator, const std::vector<float>& scores, ArrivalSet set) {
  Arrivals arrivals;
  for (std::size_t i = 0; i < generator.workers.size(); ++i) {
    arrivals.responses.emplace_back();
    if ((set >> i & 1U) != 0) arrivals.responses.back() = encode(generator.workers[i], scores);
  }
  return arrivals;
}

inline ArrivalSet everyone(const Generator& generator) {
  return static_cast<ArrivalSet>((std::uint64_t{1} << generator.workers.size()) - 1);
}

// y = G (one-hot of the label + spread * noise) + worker_noise * noise.
inline FitData noisy_data(const Generator& generator, int samples, float spread, float worker_noise,
                          std::uint64_t seed) {
  Random random(seed);
  FitData data;
  for (int s = 0; s < samples; ++s) {
    const int label = draw(random, 0, generator.classes - 1);
    std::vector<float> scores(size_of(generator.classes));
    for (float& score : scores) score = spread * normal(random);
    scores[size_of(label)] += 1.0F;
    for (const WorkerRows& worker : generator.workers)
      for (float y : encode(worker, scores)) data.responses.push_back(y + worker_noise * normal(random));
    data.labels.push_back(label);
  }
  return data;
}

inline Arrivals sample_of(const Generator& generator, const FitData& data, std::size_t sample, ArrivalSet set) {
  Arrivals arrivals;
  const float* next = data.responses.data() + sample * size_of(generator.total_floats());
  for (std::size_t i = 0; i < generator.workers.size(); ++i) {
    arrivals.responses.emplace_back();
    if ((set >> i & 1U) != 0) arrivals.responses.back().assign(next, next + generator.workers[i].floats);
    next += generator.workers[i].floats;
  }
  return arrivals;
}

// The share of samples whose label is decoded, from 0 to 1; a failed decode counts as wrong.
inline double accuracy(const Decoder& decoder, const Generator& generator, const FitData& data, ArrivalSet set) {
  int right = 0;
  for (std::size_t s = 0; s < data.labels.size(); ++s) {
    const auto scores = decode(decoder, generator, sample_of(generator, data, s, set));
    if (scores && scores->label == data.labels[s]) ++right;
  }
  return static_cast<double>(right) / static_cast<double>(data.labels.size());
}

}  // namespace synthetic
