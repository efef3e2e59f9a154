// coppice run: one ONNX model on one device, and how long it takes.
#include <algorithm>
#include <chrono>
#include <memory>
#include <span>

#include "apps/assembly.hpp"
#include "apps/command.hpp"
#include "apps/inference_bench.hpp"
#include "apps/table.hpp"
#include "gpu/device.hpp"
#include "gpu/npy.hpp"
#include "gpu/onnx.hpp"

namespace coppice::apps {
namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  std::string model, input, output, device = "cpu";
  int threads = 1, repeat = 1;
};

// Items that one compiled net takes at once; longer arrays run in slices, so that memory stays bounded.
constexpr std::int64_t kBatchMax = 256;

// How an input array is cut into items. `batched`: its first axis counts them.
struct Batch {
  bool batched = false;
  std::int64_t items = 1;
};

runtime::Expected<Batch> batch_of(const gpu::Dims& array, const gpu::Dims& input, const Options& options) {
  if (array == input) return Batch{};
  if (array.size() == input.size() + 1 && std::equal(input.begin(), input.end(), array.begin() + 1)) {
    if (array.front() < 1) return runtime::bad_input(options.input + " holds no items");
    return Batch{true, array.front()};
  }
  return runtime::bad_input(options.input + " is " + gpu::to_string(array) + "; " + options.model + " takes " +
                            gpu::to_string(input) + ", or a batch of those along a first axis");
}

// A net compiled for full slices, and for the shorter last one where there is one.
struct Sliced {
  std::unique_ptr<gpu::CompiledNet> whole, last;
  std::int64_t items = 0, slice = 0;

  gpu::Expected<void> run(std::span<const float> input, std::span<float> output) const {
    const auto width = input.size() / static_cast<std::size_t>(items),
               scores = output.size() / static_cast<std::size_t>(items);
    for (std::int64_t first = 0; first < items; first += slice) {
      const auto count = std::min(slice, items - first);
      const auto from = static_cast<std::size_t>(first), many = static_cast<std::size_t>(count);
      auto& net = count == slice ? *whole : *last;
      if (auto ran = net.run(input.subspan(from * width, many * width), output.subspan(from * scores, many * scores));
          !ran)
        return ran;
    }
    return {};
  }
};

gpu::Expected<Sliced> compile(gpu::Device& device, const gpu::Network& net, std::int64_t items) {
  Sliced sliced;
  sliced.items = items;
  sliced.slice = std::min(items, kBatchMax);
  const auto make = [&](std::unique_ptr<gpu::CompiledNet>& into, std::int64_t batch) -> gpu::Expected<void> {
    auto compiled = device.compile(net, {.batch = static_cast<int>(batch)});
    if (!compiled) return tl::unexpected(compiled.error());
    into = *std::move(compiled);
    return {};
  };
  if (auto made = make(sliced.whole, sliced.slice); !made) return tl::unexpected(made.error());
  if (const auto rest = items % sliced.slice; rest != 0)
    if (auto made = make(sliced.last, rest); !made) return tl::unexpected(made.error());
  return sliced;
}

// Microseconds of each of `repeat` runs over all items, after one run in ten that warms up (at least one).
gpu::Expected<std::vector<double>> timed(const Sliced& net, int repeat, std::span<const float> input,
                                         std::span<float> output) {
  std::vector<double> us;
  us.reserve(static_cast<std::size_t>(repeat));
  for (int i = -std::max(1, repeat / 10); i < repeat; ++i) {
    const auto begun = Clock::now();
    if (auto ran = net.run(input, output); !ran) return tl::unexpected(ran.error());
    if (i >= 0) us.push_back(std::chrono::duration<double, std::micro>(Clock::now() - begun).count());
  }
  return us;
}

void print(const Options& options, const gpu::Network& net, const std::vector<double>& us, const gpu::Dims& shape,
           const Shell& shell) {
  const double p50 = quantile(us, 0.5), p99 = quantile(us, 0.99), least = *std::ranges::min_element(us);
  if (shell.json) {
    shell.print({{"model", options.model},
                 {"device", options.device},
                 {"threads", options.threads},
                 {"macs", gpu::multiply_adds(net)},
                 {"parameters", gpu::parameters(net)},
                 {"repeat", options.repeat},
                 {"p50_us", p50},
                 {"p99_us", p99},
                 {"min_us", least},
                 {"output_shape", shape}});
    return;
  }
  std::fputs(
      table({{"model", "device", "threads", "multiply-adds", "runs", "p50 us", "p99 us", "min us", "output"},
             {options.model, options.device, std::to_string(options.threads), std::to_string(gpu::multiply_adds(net)),
              std::to_string(options.repeat), fixed(p50, 1), fixed(p99, 1), fixed(least, 1), gpu::to_string(shape)}})
          .c_str(),
      stdout);
}

runtime::Expected<void> run(const Options& options, const Shell& shell) {
  const auto net = gpu::load_onnx(options.model);
  if (!net) return tl::unexpected(reported(net.error()));
  const auto shapes = gpu::infer_shapes(*net);
  if (!shapes) return tl::unexpected(reported(shapes.error()));
  const auto input = gpu::load_npy(options.input);
  if (!input) return tl::unexpected(reported(input.error()));
  const auto batch = batch_of(input->dims, net->input, options);
  if (!batch) return tl::unexpected(batch.error());

  auto device = gpu::make_device(options.device, {.threads = options.threads});
  if (!device) return tl::unexpected(reported(device.error()));
  const auto compiled = compile(**device, *net, batch->items);
  if (!compiled) return tl::unexpected(reported(compiled.error()));
  auto dims = shapes->back();
  if (batch->batched) dims.insert(dims.begin(), batch->items);
  std::vector<float> output(static_cast<std::size_t>(gpu::elements(shapes->back()) * batch->items));
  const auto us = timed(*compiled, options.repeat, input->values, output);
  if (!us) return tl::unexpected(reported(us.error()));
  if (auto saved = gpu::save_npy(options.output, dims, output); !saved) return tl::unexpected(reported(saved.error()));
  print(options, *net, *us, dims, shell);
  return {};
}

// Empty where there is none.
std::string device_fault(const std::string& spec) {
  return gpu::parse_device(spec) ? "" : std::string("must be ") + gpu::kDeviceSpecs + ", not " + spec;
}

}  // namespace

void add_run(CLI::App& app, Shell& shell) {
  auto options = std::make_shared<Options>();
  auto* command = add_command(app, shell, "run", "One ONNX model on one device, timed",
                              "coppice run --model base.onnx --input images.npy --output scores.npy --repeat 100",
                              [options, &shell] { return run(*options, shell); });
  command->add_option("--model", options->model, "the net (ONNX)")->required();
  command->add_option("--input", options->input, "float32 .npy, one item or a batch along a first axis")->required();
  command->add_option("--output", options->output, "where its scores go (.npy)")->required();
  command->add_option("--device", options->device, gpu::kDeviceSpecs)
      ->check(CLI::Validator(device_fault, "cpu|cuda:N[:tf32|:fp16]"))
      ->envname("COPPICE_DEVICE")
      ->capture_default_str();
  command->add_option("--threads", options->threads, "of each run on the CPU")
      ->check(CLI::Range(1, 1024))
      ->envname("COPPICE_THREADS")
      ->capture_default_str();
  command->add_option("--repeat", options->repeat, "timed runs over the whole input; some untimed ones warm up")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
}

}  // namespace coppice::apps
