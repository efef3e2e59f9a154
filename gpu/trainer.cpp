#include "gpu/trainer.hpp"

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <deque>
#include <memory>
#include <numeric>
#include <optional>
#include <thread>
#include <utility>

#include "gpu/augment.hpp"
#include "gpu/checkpoint.hpp"

namespace coppice::gpu {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point then) { return std::chrono::duration<double>(Clock::now() - then).count(); }

// Threads that share a number of pieces of work out among themselves and the caller, again and again.
class Crew {
 public:
  explicit Crew(int threads) : gate_(threads) {
    for (int i = 1; i < threads; ++i)
      helpers_.emplace_back([this] {
        for (;;) {
          gate_.arrive_and_wait();
          if (!work_) return;
          take();
          gate_.arrive_and_wait();
        }
      });
  }
  ~Crew() {
    work_ = nullptr;
    if (!helpers_.empty()) gate_.arrive_and_wait();
  }
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;

  // Calls work(0) to work(count - 1), each once, and returns when all have.
  void run(std::size_t count, const std::function<void(std::size_t)>& work) {
    next_ = 0;
    count_ = count;
    work_ = &work;
    if (!helpers_.empty()) gate_.arrive_and_wait();
    take();
    if (!helpers_.empty()) gate_.arrive_and_wait();
  }

 private:
  void take() {
    for (std::size_t i = next_++; i < count_; i = next_++) (*work_)(i);
  }

  std::barrier<> gate_;  // passed before each round and after it
  std::atomic<std::size_t> next_{0};
  std::size_t count_ = 0;
  const std::function<void(std::size_t)>* work_ = nullptr;
  std::vector<std::jthread> helpers_;
};

// One of the nets, with its part of every batch.
struct Pupil {
  std::unique_ptr<TrainableNet> net;
  std::size_t outputs = 0;  // of one item
  std::vector<float> scores, gradients;
  Expected<void> result;
};

class Training {
 public:
  Training(const Dataset& data, std::span<const std::int64_t> items, const LossFunction& loss,
           const TrainerOptions& options, int crew)
      : data_(data), items_(items), loss_(loss), options_(options), replicas_(options.replicas), crew_(crew) {
    if (replicas_) {
      batch_ /= static_cast<std::size_t>(replicas_->size());
      first_of_batch_ = batch_ * static_cast<std::size_t>(replicas_->rank());
    }
    steps_per_epoch_ = std::max<std::int64_t>(std::ssize(items) / options.batch, 1);
    steps_ = steps_per_epoch_ * options.epochs;
  }

  Expected<void> prepare(Device& device, const std::vector<Network>& nets, int threads) {
    std::size_t outputs = 0;
    for (const auto& net : nets) {
      auto made = device.compile_training(net, {.batch = static_cast<int>(batch_), .threads = threads});
      if (!made) return unexpected(made.error());
      auto& pupil = pupils_.emplace_back();
      pupil.net = std::move(*made);
      pupil.scores.resize(static_cast<std::size_t>(pupil.net->output_elements()));
      pupil.gradients.resize(pupil.scores.size());
      pupil.outputs = pupil.scores.size() / batch_;
      outputs += pupil.scores.size();
    }
    scores_.resize(outputs);
    gradients_.resize(outputs);
    images_.resize(batch_ * static_cast<std::size_t>(elements(data_.item)));
    labels_.resize(batch_);
    indices_.resize(batch_);
    if (replicas_) buckets_.emplace(nets.front(), options_.bucket_bytes);
    if (replicas_ || !options_.checkpoint.empty()) fingerprint_ = fingerprint(nets, data_, items_, options_);
    if (leads())
      if (auto resumed = resume(); !resumed) return resumed;
    return replicas_ ? agree() : Expected<void>();
  }

  Expected<Trained> run() {
    begun_ = told_ = saved_ = Clock::now();
    first_ = step_;
    while (step_ < steps_) {
      if (auto stepped = take_step(); !stepped) return unexpected(stepped.error());
      if (auto done = look_around(); !done) return unexpected(done.error());
    }
    auto nets = networks();
    if (!nets) return unexpected(nets.error());
    return Trained{std::move(*nets), recent_loss(), seconds_since(begun_)};
  }

 private:
  static constexpr std::size_t kRecent = 100;  // steps

  bool leads() const { return !replicas_ || replicas_->rank() == 0; }

  // ---- with other replicas -----------------------------------------------------------------------------------------

  // All begin where rank 0 stands, which may be a checkpoint's place. REQUIRES: one net.
  Expected<void> agree() {
    auto& net = *pupils_.front().net;
    auto state = net.state();
    if (!state) return unexpected(state.error());
    struct Place {
      Fingerprint fingerprint;
      std::int64_t step;
      std::uint64_t averaged;
    } place{fingerprint_, step_, state->average.empty() ? 0U : 1U};
    replicas_->share(std::as_writable_bytes(std::span(&place, 1)));
    if (auto done = replicas_->finish(); !done) return done;
    if (place.fingerprint != fingerprint_) return unexpected(disagreement(place.fingerprint));
    step_ = place.step;
    state->average.resize(place.averaged != 0 ? state->weights.size() : 0);
    for (auto* part : {&state->weights, &state->velocity, &state->average})
      if (!part->empty()) replicas_->share(std::as_writable_bytes(std::span(*part)));
    if (auto done = replicas_->finish(); !done) return done;
    return leads() ? Expected<void>() : net.restore(*state);
  }
  Error disagreement(const Fingerprint& with) const {
    std::string what;
    const auto add = [&](bool differs, const char* name) {
      if (differs) what += (what.empty() ? "" : ", ") + std::string(name);
    };
    add(with.nets != fingerprint_.nets, "net");
    add(with.data != fingerprint_.data, "data");
    add(with.options != fingerprint_.options, "options");
    return {ErrorCode::replica_lost, "replica " + std::to_string(replicas_->rank()) +
                                         " and replica 0 do not train the same: other " + what};
  }

  // ---- a step ------------------------------------------------------------------------------------------------------

  Expected<void> take_step() {
    draw_batch();
    if (auto done = each([&](Pupil& pupil) { return pupil.net->forward(images_, pupil.scores, Mode::train); }); !done)
      return done;
    gather();
    std::fill(gradients_.begin(), gradients_.end(), 0.0F);
    const auto loss = loss_({images_, indices_, labels_, step_, steps_}, scores_, gradients_);
    if (!loss) return unexpected(loss.error());
    scatter();
    SgdStep sgd = options_.sgd;
    sgd.rate = options_.schedule.rate(step_, steps_);
    const auto age = static_cast<float>(step_);
    sgd.average_decay = std::min(sgd.average_decay, (1 + age) / (10 + age));
    if (options_.sgd.average_decay <= 0) sgd.average_decay = 0;
    auto done = replicas_ ? learn_together(*loss, sgd) : learn(*loss, sgd);
    if (done) ++step_;
    return done;
  }

  Expected<void> learn(double loss, const SgdStep& sgd) {
    remember(loss);
    return each([&](Pupil& pupil) {
      auto back = pupil.net->backward(pupil.gradients);
      return back ? pupil.net->update(sgd) : back;
    });
  }
  Expected<void> learn_together(double loss, const SgdStep& sgd) {
    auto& pupil = pupils_.front();
    if (auto back = buckets_->backward(*pupil.net, pupil.gradients, loss, *replicas_); !back) return back;
    const auto mean = buckets_->finish(*pupil.net, *replicas_);
    if (!mean) return unexpected(mean.error());
    remember(*mean);
    return pupil.net->update(sgd);
  }

  template <class Work>
  Expected<void> each(Work work) {
    crew_.run(pupils_.size(), [&](std::size_t i) { pupils_[i].result = work(pupils_[i]); });
    for (auto& pupil : pupils_)
      if (!pupil.result) return pupil.result;
    return {};
  }

  void draw_batch() {
    const auto epoch = step_ / steps_per_epoch_, in_epoch = step_ % steps_per_epoch_;
    if (epoch != epoch_of_order_) {
      order_ = shuffled(std::ssize(items_), options_.seed, epoch);
      epoch_of_order_ = epoch;
    }
    for (std::size_t i = 0; i < batch_; ++i) {
      const auto in_batch = first_of_batch_ + i;
      const auto at = static_cast<std::size_t>(in_epoch * options_.batch) + in_batch;
      indices_[i] = items_[static_cast<std::size_t>(order_[at % order_.size()])];
      labels_[i] = data_.labels[static_cast<std::size_t>(indices_[i])];
    }
    augmented(data_, indices_, options_.normalisation, options_.augmentation, options_.seed, step_,
              static_cast<std::int64_t>(first_of_batch_), images_);
  }

  // The nets' scores of each item stand side by side; and back.
  void gather() {
    auto to = scores_.begin();
    for (std::size_t i = 0; i < batch_; ++i)
      for (const auto& pupil : pupils_) to = std::copy_n(&pupil.scores[i * pupil.outputs], pupil.outputs, to);
  }
  void scatter() {
    auto from = gradients_.cbegin();
    for (std::size_t i = 0; i < batch_; ++i)
      for (auto& pupil : pupils_) {
        std::copy_n(from, pupil.outputs, &pupil.gradients[i * pupil.outputs]);
        from += static_cast<std::ptrdiff_t>(pupil.outputs);
      }
  }

  // ---- between steps -----------------------------------------------------------------------------------------------

  Expected<void> look_around() {
    const bool last = step_ == steps_;
    if (last || seconds_since(told_) >= 0.1) tell();
    const bool stopping = !last && options_.stop && options_.stop();
    if (last || stopping || seconds_since(saved_) >= options_.checkpoint_every_seconds)
      if (auto saved = save(); !saved) return saved;
    if (step_ % steps_per_epoch_ == 0)
      if (auto reported = report(); !reported) return reported;
    if (!stopping) return {};
    const auto taken = std::to_string(step_) + " of " + std::to_string(steps_) + " steps";
    return unexpected(
        Error{ErrorCode::stopped, "stopped after " + taken +
                                      (options_.checkpoint.empty() ? "; without a checkpoint they are lost"
                                                                   : "; go on from " + options_.checkpoint.string())});
  }

  void tell() {
    told_ = Clock::now();
    if (!options_.progress) return;
    TrainingProgress progress{step_, steps_, epoch_now(), options_.epochs, recent_loss(), 0, 0};
    const double spent = seconds_since(begun_) - reporting_seconds_;
    const auto images = static_cast<double>((step_ - first_) * options_.batch);
    if (spent > 0 && images > 0) {
      progress.images_per_second = images / spent;
      progress.seconds_left = static_cast<double>((steps_ - step_) * options_.batch) / progress.images_per_second;
    }
    options_.progress(progress);
  }

  Expected<void> report() {
    const double loss = epoch_steps_ > 0 ? epoch_loss_ / static_cast<double>(epoch_steps_) : 0;
    epoch_loss_ = 0;
    epoch_steps_ = 0;
    if (!options_.after_epoch) return {};
    const auto since = Clock::now();
    auto nets = networks();
    if (!nets) return unexpected(nets.error());
    auto done =
        options_.after_epoch({static_cast<int>(step_ / steps_per_epoch_), options_.epochs, loss, std::move(*nets)});
    reporting_seconds_ += seconds_since(since);
    return done;
  }

  int epoch_now() const { return static_cast<int>((step_ - 1) / steps_per_epoch_) + 1; }

  void remember(double loss) {
    recent_.push_back(loss);
    if (recent_.size() > kRecent) recent_.pop_front();
    epoch_loss_ += loss;
    ++epoch_steps_;
  }
  double recent_loss() const {
    return recent_.empty() ? 0
                           : std::accumulate(recent_.begin(), recent_.end(), 0.0) / static_cast<double>(recent_.size());
  }

  Expected<std::vector<Network>> networks() const {
    std::vector<Network> out;
    for (const auto& pupil : pupils_) {
      auto net = pupil.net->network(options_.sgd.average_decay > 0);
      if (!net) return unexpected(net.error());
      out.push_back(std::move(*net));
    }
    return out;
  }

  // ---- checkpoints -------------------------------------------------------------------------------------------------

  Expected<void> save() {
    saved_ = Clock::now();
    if (options_.checkpoint.empty() || !leads()) return {};
    Checkpoint checkpoint{fingerprint_, step_, {}};
    for (const auto& pupil : pupils_) {
      auto state = pupil.net->state();
      if (!state) return unexpected(state.error());
      checkpoint.nets.push_back(std::move(*state));
    }
    return save_checkpoint(options_.checkpoint, checkpoint);
  }

  Expected<void> resume() {
    if (options_.checkpoint.empty()) return {};
    std::vector<std::int64_t> parameters;
    for (const auto& pupil : pupils_) parameters.push_back(pupil.net->parameter_elements());
    const auto found = load_checkpoint(options_.checkpoint, fingerprint_, parameters);
    if (!found) return unexpected(found.error());
    if (!*found) return {};
    step_ = std::min((*found)->step, steps_);
    for (std::size_t i = 0; i < pupils_.size(); ++i)
      if (auto restored = pupils_[i].net->restore((*found)->nets[i]); !restored) return restored;
    return {};
  }

  const Dataset& data_;
  std::span<const std::int64_t> items_;
  const LossFunction& loss_;
  const TrainerOptions& options_;
  ReplicaGroup* replicas_;
  std::optional<GradientBuckets> buckets_;
  std::size_t batch_ = static_cast<std::size_t>(options_.batch), first_of_batch_ = 0;  // of this replica
  Crew crew_;
  std::vector<Pupil> pupils_;
  std::int64_t step_ = 0, steps_ = 0, steps_per_epoch_ = 1, first_ = 0;
  std::vector<std::int64_t> order_, indices_;
  std::int64_t epoch_of_order_ = -1;
  std::vector<std::uint16_t> labels_;
  std::vector<float> images_, scores_, gradients_;  // of all nets
  std::deque<double> recent_;
  double epoch_loss_ = 0, reporting_seconds_ = 0;
  std::int64_t epoch_steps_ = 0;
  Fingerprint fingerprint_;
  Clock::time_point begun_, told_, saved_;
};

Expected<void> check(const std::vector<Network>& nets, const Dataset& data, std::span<const std::int64_t> items,
                     const TrainerOptions& options) {
  const auto wrong = [](const std::string& why) {
    return unexpected(Error{ErrorCode::shape_mismatch, "train: " + why});
  };
  if (nets.empty()) return wrong("there are no nets");
  if (items.empty()) return wrong("there are no items");
  if (options.epochs < 1 || options.batch < 1 || options.threads < 1)
    return wrong("epochs, batch and threads are at least 1");
  if (options.replicas) {
    if (nets.size() != 1) return wrong("replicas train one net, not " + std::to_string(nets.size()));
    if (parameters(nets.front()) == 0) return wrong("replicas have nothing to share of a net without parameters");
    if (options.bucket_bytes < 1) return wrong("buckets of " + std::to_string(options.bucket_bytes) + " bytes");
    if (options.batch % options.replicas->size() != 0)
      return wrong("a batch of " + std::to_string(options.batch) + " has no " + std::to_string(options.replicas->size()) +
                   " equal parts, one for each replica");
  }
  for (const auto& net : nets)
    if (elements(net.input) != elements(data.item))
      return wrong(net.name + " takes " + to_string(net.input) + ", the data's items are " + to_string(data.item));
  for (const auto index : items)
    if (index < 0 || index >= data.count())
      return wrong("item " + std::to_string(index) + " of " + std::to_string(data.count()));
  return {};
}

}  // namespace

Expected<Trained> train(Device& device, const std::vector<Network>& nets, const Dataset& data,
                        std::span<const std::int64_t> items, const LossFunction& loss, const TrainerOptions& options) {
  if (auto valid = check(nets, data, items, options); !valid) return unexpected(valid.error());
  const int crew = std::min(options.threads, static_cast<int>(nets.size()));
  Training training(data, items, loss, options, crew);
  if (auto ready = training.prepare(device, nets, options.threads / crew); !ready) return unexpected(ready.error());
  return training.run();
}

}  // namespace coppice::gpu
