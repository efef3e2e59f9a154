#include "gpu/trainer.hpp"

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cmath>
#include <mutex>
#include <numbers>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>

namespace coppice::gpu {
namespace {

using Clock = std::chrono::steady_clock;

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

double seconds_since(Clock::time_point begun) { return std::chrono::duration<double>(Clock::now() - begun).count(); }

// Batches without end: each epoch is a new order; what does not fill a batch is left to the next epoch's luck.
class Batches {
 public:
  Batches(const Dataset& data, std::span<const std::int64_t> items, const TrainerOptions& options)
      : data_(data), options_(options), order_(items.begin(), items.end()), random_(options.seed), next_(order_.size()) {
    const auto batch = at(options.batch);
    images.resize(batch * at(elements(data.item)));
    indices.resize(batch);
    labels.resize(batch);
  }

  void advance() {
    const auto batch = at(options_.batch);
    if (next_ + batch > order_.size()) {
      shuffle();
      next_ = 0;
    }
    const auto size = at(elements(data_.item));
    for (std::size_t i = 0; i < batch; ++i) {
      indices[i] = order_[next_ + i];
      labels[i] = data_.labels[at(indices[i])];
      put(indices[i], std::span(images).subspan(i * size, size));
    }
    next_ += batch;
  }

  std::vector<float> images;
  std::vector<std::int64_t> indices;
  std::vector<std::uint16_t> labels;

 private:
  // Not std::shuffle: its order is the library's own affair, and a seed should mean the same everywhere.
  std::uint64_t below(std::uint64_t bound) { return random_() % bound; }
  void shuffle() {
    for (std::size_t i = order_.size(); i-- > 1;) std::swap(order_[i], order_[below(i + 1)]);
  }

  void put(std::int64_t index, std::span<float> out) {
    const auto& a = options_.augmentation;
    const auto reach = static_cast<std::uint64_t>(2 * a.shift + 1);
    const auto down = static_cast<std::int64_t>(a.shift > 0 ? below(reach) : 0) - a.shift;
    const auto right = static_cast<std::int64_t>(a.shift > 0 ? below(reach) : 0) - a.shift;
    const bool flip = a.flip && below(2) == 1;
    const auto height = data_.item.size() == 3 ? data_.item[1] : 1, width = data_.item.back();
    const auto planes = elements(data_.item) / (height * width);
    const auto* pixels = data_.pixels.data() + at(index * elements(data_.item));
    const auto normal = [&](std::uint8_t pixel) {
      return (static_cast<float>(pixel) / 255.0F - options_.normalisation.mean) / options_.normalisation.deviation;
    };
    const float dark = normal(0);
    auto* to = out.data();
    for (std::int64_t c = 0; c < planes; ++c)
      for (std::int64_t y = 0; y < height; ++y)
        for (std::int64_t x = 0; x < width; ++x) {
          const auto from_y = y + down, from_x = (flip ? width - 1 - x : x) + right;
          const bool inside = from_y >= 0 && from_y < height && from_x >= 0 && from_x < width;
          *to++ = inside ? normal(pixels[(c * height + from_y) * width + from_x]) : dark;
        }
  }

  const Dataset& data_;
  const TrainerOptions& options_;
  std::vector<std::int64_t> order_;
  std::mt19937_64 random_;
  std::size_t next_;
};

// Nets shared out among threads, which go through the phases of a step together.
class Crew {
 public:
  using Work = std::function<Expected<void>(std::size_t net)>;

  Crew(const std::vector<Network>& nets, int threads) : share_(at(std::min<std::int64_t>(threads, std::ssize(nets)))) {
    // The dearest first, each to whoever has least.
    std::vector<std::size_t> order(nets.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::ranges::stable_sort(order, std::greater<>{}, [&](std::size_t n) { return multiply_adds(nets[n]); });
    std::vector<std::int64_t> load(share_.size(), 0);
    for (const auto net : order) {
      const auto least = at(std::ranges::min_element(load) - load.begin());
      load[least] += multiply_adds(nets[net]);
      share_[least].push_back(net);
    }
    gate_.emplace(std::ssize(share_));
    for (std::size_t t = 1; t < share_.size(); ++t) threads_.emplace_back([this, t] { serve(t); });
  }
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;
  ~Crew() {
    if (share_.size() < 2) return;
    work_ = nullptr;
    gate_->arrive_and_wait();
  }

  Expected<void> run(const Work& work) {
    fault_.reset();
    work_ = &work;
    if (share_.size() > 1) gate_->arrive_and_wait();
    part(0);
    if (share_.size() > 1) gate_->arrive_and_wait();
    if (fault_) return unexpected(*fault_);
    return {};
  }

 private:
  void serve(std::size_t thread) {
    for (;;) {
      gate_->arrive_and_wait();
      if (!work_) return;
      part(thread);
      gate_->arrive_and_wait();
    }
  }
  void part(std::size_t thread) {
    for (const auto net : share_[thread])
      if (auto done = (*work_)(net); !done) {
        const std::scoped_lock lock(fault_mutex_);
        fault_ = done.error();
      }
  }

  std::vector<std::vector<std::size_t>> share_;
  std::optional<std::barrier<>> gate_;
  const Work* work_ = nullptr;
  std::mutex fault_mutex_;
  std::optional<Error> fault_;
  std::vector<std::jthread> threads_;  // last: they end first
};

}  // namespace

float Schedule::rate(std::int64_t step, std::int64_t steps) const {
  const double along = steps > 1 ? static_cast<double>(step) / static_cast<double>(steps - 1) : 0.0;
  const auto falling = [](double from, double to, double share) {
    return to + (from - to) * 0.5 * (1 + std::cos(std::numbers::pi * share));
  };
  switch (kind) {
    case Kind::constant:
      return peak;
    case Kind::step: {
      double rate = peak;
      for (const float milestone : milestones)
        if (along >= milestone) rate /= 10;
      return static_cast<float>(rate);
    }
    case Kind::cosine:
      return static_cast<float>(falling(peak, 0, along));
    case Kind::one_cycle:
      if (along < rising) return static_cast<float>(falling(peak / 25.0, peak, along / rising));
      return static_cast<float>(falling(peak, peak / 1e4, (along - rising) / (1.0 - rising)));
  }
  return peak;
}

Expected<Trained> train(Device& device, const std::vector<Network>& nets, const Dataset& data,
                        std::span<const std::int64_t> items, const LossFunction& loss, const TrainerOptions& options) {
  const auto refuse = [](const std::string& what) { return unexpected(Error{ErrorCode::shape_mismatch, "training: " + what}); };
  if (nets.empty()) return refuse("no nets");
  if (options.batch < 1 || std::ssize(items) < options.batch)
    return refuse(std::to_string(items.size()) + " images do not fill a batch of " + std::to_string(options.batch));
  std::vector<std::unique_ptr<TrainableNet>> running;
  std::vector<std::size_t> widths;
  std::size_t width = 0;
  for (const auto& net : nets) {
    if (net.input != data.item)
      return refuse(net.name + " takes " + to_string(net.input) + ", the images are " + to_string(data.item));
    auto made = device.compile_training(net, {options.batch});
    if (!made) return unexpected(made.error());
    widths.push_back(at((*made)->output_elements() / options.batch));
    width += widths.back();
    running.push_back(std::move(*made));
  }

  const auto batch = at(options.batch);
  const auto steps_per_epoch = std::ssize(items) / options.batch, steps = steps_per_epoch * options.epochs;
  Batches batches(data, items, options);
  Crew crew(nets, options.threads);
  std::vector<std::vector<float>> own_scores, own_gradients;
  for (const auto own : widths) {
    own_scores.emplace_back(batch * own);
    own_gradients.emplace_back(batch * own);
  }
  std::vector<float> scores(batch * width), gradients(batch * width);
  const auto begun = Clock::now();
  auto told = begun;
  double recent = 0;
  Trained out;
  for (std::int64_t step = 0; step < steps; ++step) {
    batches.advance();
    if (auto ran = crew.run([&](std::size_t n) { return running[n]->forward(batches.images, own_scores[n], Mode::train); }); !ran)
      return unexpected(ran.error());
    std::size_t column = 0;
    for (std::size_t n = 0; n < nets.size(); column += widths[n++])
      for (std::size_t i = 0; i < batch; ++i)
        std::copy_n(own_scores[n].begin() + static_cast<std::ptrdiff_t>(i * widths[n]), widths[n],
                    scores.begin() + static_cast<std::ptrdiff_t>(i * width + column));
    std::ranges::fill(gradients, 0.0F);
    const auto value = loss({batches.images, batches.indices, batches.labels, step, steps}, scores, gradients);
    if (!value) return unexpected(value.error());
    if (!std::isfinite(*value))
      return unexpected(Error{ErrorCode::device_failed, "training: the loss is no number at step " + std::to_string(step) +
                                                            ": lower the rate"});
    column = 0;
    for (std::size_t n = 0; n < nets.size(); column += widths[n++])
      for (std::size_t i = 0; i < batch; ++i)
        std::copy_n(gradients.begin() + static_cast<std::ptrdiff_t>(i * width + column), widths[n],
                    own_gradients[n].begin() + static_cast<std::ptrdiff_t>(i * widths[n]));
    auto sgd = options.sgd;
    sgd.rate = options.schedule.rate(step, steps);
    const auto learn = [&](std::size_t n) -> Expected<void> {
      if (auto ran = running[n]->backward(own_gradients[n]); !ran) return ran;
      return running[n]->update(sgd);
    };
    if (auto ran = crew.run(learn); !ran) return unexpected(ran.error());
    recent += (*value - recent) / static_cast<double>(std::min<std::int64_t>(step + 1, 100));
    if (options.progress && (step + 1 == steps || seconds_since(told) > 0.1)) {
      told = Clock::now();
      const double each = seconds_since(begun) / static_cast<double>(step + 1);
      options.progress({step + 1, steps, static_cast<int>(step / steps_per_epoch), options.epochs, recent,
                        static_cast<double>(batch) / each, each * static_cast<double>(steps - step - 1)});
    }
    if (options.stop && options.stop()) return unexpected(Error{ErrorCode::device_failed, "training: stopped at step " + std::to_string(step + 1)});
  }
  for (const auto& net : running) {
    auto trained = net->network(options.sgd.average_decay > 0);
    if (!trained) return unexpected(trained.error());
    out.nets.push_back(std::move(*trained));
  }
  out.loss = recent;
  out.seconds = seconds_since(begun);
  return out;
}

}  // namespace coppice::gpu
