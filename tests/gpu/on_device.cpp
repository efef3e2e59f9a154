// What tests/gpu/on_device runs where a GPU is: nets on cuda:0 against a plain reference, with their times.
//
// Prints one JSON document. Exit 0: all agree; 1: some do not, or something failed. Also takes "cpu", to check itself.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <iterator>
#include <limits>
#include <random>
#include <string>
#include <thread>

#include "gpu/device.hpp"

namespace coppice::gpu {
namespace {

constexpr double kErrorMax = 1e-3;
constexpr int kChecks = 5;  // fresh inputs each, so that nothing left over from an earlier run can pass
constexpr int kWarmUps = 50;
constexpr int kRuns = 2'000;

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

// The reference: the definitions of the operators, in double, on the net as it was made rather than simplified.
using Numbers = std::vector<double>;

double identity_of(bool average) { return average ? 0.0 : -std::numeric_limits<double>::infinity(); }

struct Reference {
  const std::vector<const Numbers*>& inputs;
  const Dims& in;
  const Dims& out;
  Numbers result = Numbers(at(elements(out)), 0.0);

  const Numbers& x() const { return *inputs[0]; }

  // f(output index, channel, first row and column of the window)
  template <class F>
  void each_window(const Window& w, F f) {
    for (std::int64_t c = 0, i = 0; c < out[0]; ++c)
      for (std::int64_t y = 0; y < out[1]; ++y)
        for (std::int64_t v = 0; v < out[2]; ++v, ++i)
          result[at(i)] = f(c, y * w.stride_h - w.pad_top, v * w.stride_w - w.pad_left);
  }
  // f(pixel, row and column in the kernel), of those that are not padding
  template <class F>
  void each_pixel(const Window& w, std::int64_t channel, std::int64_t top, std::int64_t left, F f) const {
    for (std::int64_t ky = 0; ky < w.kernel_h; ++ky)
      for (std::int64_t kx = 0; kx < w.kernel_w; ++kx) {
        const auto y = top + ky, v = left + kx;
        if (y >= 0 && y < in[1] && v >= 0 && v < in[2]) f(x()[at((channel * in[1] + y) * in[2] + v)], ky, kx);
      }
  }
  void pool(const Window& w, bool average, bool count_padding) {
    each_window(w, [&](std::int64_t c, std::int64_t top, std::int64_t left) {
      double value = identity_of(average), seen = 0;
      each_pixel(w, c, top, left, [&](double pixel, std::int64_t, std::int64_t) {
        value = average ? value + pixel : std::max(value, pixel);
        ++seen;
      });
      return average ? value / (count_padding ? static_cast<double>(w.kernel_h * w.kernel_w) : seen) : value;
    });
  }

  void operator()(const Convolution& c) {
    const auto& w = c.window;
    const auto inner = in[0] / c.groups, outer = c.out_channels / c.groups;
    each_window(w, [&](std::int64_t o, std::int64_t top, std::int64_t left) {
      double sum = c.bias.empty() ? 0.0 : c.bias[at(o)];
      for (std::int64_t i = 0; i < inner; ++i)
        each_pixel(w, o / outer * inner + i, top, left, [&](double pixel, std::int64_t ky, std::int64_t kx) {
          sum += pixel * c.weight[at(((o * inner + i) * w.kernel_h + ky) * w.kernel_w + kx)];
        });
      return sum;
    });
  }
  void operator()(const BatchNorm& b) {
    const auto inner = result.size() / b.scale.size();
    for (std::size_t i = 0; i < result.size(); ++i) {
      const auto c = i / inner;
      result[i] =
          (x()[i] - b.mean[c]) / std::sqrt(static_cast<double>(b.variance[c]) + b.epsilon) * b.scale[c] + b.shift[c];
    }
  }
  void operator()(const Relu&) {
    for (std::size_t i = 0; i < result.size(); ++i) result[i] = std::max(x()[i], 0.0);
  }
  void operator()(const MaxPool& p) { pool(p.window, false, false); }
  void operator()(const AveragePool& p) { pool(p.window, true, p.count_padding); }
  void operator()(const GlobalAveragePool&) { pool({in[1], in[2], 1, 1, 0, 0, 0, 0}, true, false); }
  void operator()(const Dense& d) {
    for (std::int64_t o = 0; o < d.out_features; ++o) {
      double sum = d.bias.empty() ? 0.0 : d.bias[at(o)];
      for (std::int64_t i = 0; i < in[0]; ++i) sum += x()[at(i)] * d.weight[at(o * in[0] + i)];
      result[at(o)] = sum;
    }
  }
  void operator()(const Flatten&) { result = x(); }
  void operator()(const Add&) {
    for (std::size_t i = 0; i < result.size(); ++i) result[i] = x()[i] + (*inputs[1])[i];
  }
  void operator()(const Identity&) { result = x(); }
  template <class Other>
  void operator()(const Other&) {
    throw std::logic_error("no reference for this operator");
  }
};

Numbers reference(const Network& net, const std::vector<Dims>& shapes, std::span<const float> item) {
  std::vector<Numbers> values{Numbers(item.begin(), item.end())};
  values.reserve(net.nodes.size() + 1);  // pointers into it are kept
  for (std::size_t i = 0; i < net.nodes.size(); ++i) {
    std::vector<const Numbers*> inputs;
    for (const int input : net.nodes[i].inputs) inputs.push_back(&values[static_cast<std::size_t>(input)]);
    Reference node{inputs, shapes[static_cast<std::size_t>(net.nodes[i].inputs[0])], shapes[i + 1]};
    std::visit(node, net.nodes[i].op);
    values.push_back(std::move(node.result));
  }
  return values.back();
}

// Every operator and every pair of them that a device may fuse.
Network residual_net() {
  Network net{"residual", {3, 25, 23}, {}};
  std::mt19937_64 random(7);
  const auto draw = [&](std::int64_t count, float mean, float deviation) {
    std::normal_distribution<float> normal(mean, deviation);
    std::vector<float> out(at(count));
    for (auto& value : out) value = normal(random);
    return out;
  };
  const auto push = [&](const std::string& name, Operator op, std::vector<int> inputs = {}) {
    if (inputs.empty()) inputs = {static_cast<int>(net.nodes.size())};
    net.nodes.push_back({name, std::move(op), std::move(inputs)});
    return static_cast<int>(net.nodes.size());
  };
  const auto conv = [&](Window w, std::int64_t in, std::int64_t out, std::int64_t groups, bool bias) {
    const auto fan_in = in / groups * w.kernel_h * w.kernel_w;
    return Convolution{w, out, groups, draw(out * fan_in, 0.0F, std::sqrt(2.0F / static_cast<float>(fan_in))),
                       bias ? draw(out, 0.0F, 0.5F) : std::vector<float>{}};
  };
  const auto norm = [&](std::int64_t channels) {
    BatchNorm out{draw(channels, 1.0F, 0.2F), draw(channels, 0.0F, 0.3F), draw(channels, 0.0F, 0.3F),
                  draw(channels, 1.0F, 0.1F), 1e-3F};
    for (auto& value : out.variance) value = std::abs(value) + 0.1F;
    return out;
  };
  const auto dense = [&](std::int64_t in, std::int64_t out, bool bias) {
    return Dense{out, draw(in * out, 0.0F, std::sqrt(2.0F / static_cast<float>(in))),
                 bias ? draw(out, 0.0F, 0.5F) : std::vector<float>{}};
  };

  push("stem", conv({3, 3, 2, 2, 0, 1, 1, 0}, 3, 16, 1, false));  // padded more on one side than on the other
  push("stem norm", norm(16));
  const int trunk = push("stem relu", Relu{});
  push("grouped", conv({3, 3, 1, 1, 1, 1, 1, 1}, 16, 32, 4, true));
  push("grouped relu", Relu{});
  push("narrowing", conv({1, 1, 1, 1, 0, 0, 0, 0}, 32, 16, 1, false));
  const int branch = push("narrowing norm", norm(16));
  push("joined", Add{}, {trunk, branch});
  const int joined = push("joined relu", Relu{});
  push("same", Identity{});
  const int left = push("depthwise", conv({5, 3, 1, 1, 2, 1, 2, 1}, 16, 16, 16, true), {joined});
  const int plain = push("joined without relu", Add{}, {left, joined});
  push("exclusive", AveragePool{{3, 3, 2, 2, 1, 1, 1, 1}, false}, {plain});
  const int exclusive = push("lone norm", norm(16));
  push("inclusive", AveragePool{{3, 3, 2, 2, 1, 1, 1, 1}, true}, {plain});
  const int inclusive = push("lone relu", Relu{});
  const int doubled = push("doubled", Add{}, {inclusive, inclusive});
  push("three", Add{}, {exclusive, doubled});
  push("skewed maximum", MaxPool{{3, 2, 2, 1, 0, 0, 1, 1}});
  push("wide", conv({3, 3, 1, 1, 1, 1, 1, 1}, 16, 48, 1, true));
  const int wide = push("whole", GlobalAveragePool{});
  push("flat", Flatten{}, {wide});
  push("hidden", dense(48, 40, true));
  push("hidden relu", Relu{});
  push("scores", dense(40, 10, false));
  return net;
}

struct Result {
  double max_relative_error = 0, p50_us = 0, p99_us = 0;
};

std::vector<float> random_input(std::int64_t count, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0.0F, 1.0F);
  std::vector<float> out(at(count));
  for (auto& value : out) value = normal(random);
  return out;
}

// The largest difference over the largest number of the reference; infinite where a number is not finite.
double relative_error(const Numbers& wanted, std::span<const float> had) {
  double largest = 0, difference = 0;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    if (!std::isfinite(had[i])) return std::numeric_limits<double>::infinity();
    largest = std::max(largest, std::abs(wanted[i]));
    difference = std::max(difference, std::abs(wanted[i] - had[i]));
  }
  return difference / std::max(largest, 1e-12);
}

Expected<Result> measure(CompiledNet& compiled, const Network& net, int batch) {
  const auto shapes = infer_shapes(net);
  if (!shapes) return unexpected(shapes.error());
  const auto in_each = elements(shapes->front()), out_each = elements(shapes->back());
  std::vector<float> output(at(compiled.output_elements()));
  Result result;
  std::vector<float> input;
  for (int check = 0; check < kChecks; ++check) {
    input = random_input(compiled.input_elements(), static_cast<std::uint64_t>(check) + 1);
    std::ranges::fill(output, std::numeric_limits<float>::quiet_NaN());
    if (const auto ran = compiled.run(input, output); !ran) return unexpected(ran.error());
    for (int item = 0; item < batch; ++item) {
      const auto wanted = reference(net, *shapes, std::span(input).subspan(at(item * in_each), at(in_each)));
      result.max_relative_error =
          std::max(result.max_relative_error,
                   relative_error(wanted, std::span<const float>(output).subspan(at(item * out_each), at(out_each))));
    }
  }
  std::vector<double> times;
  for (int i = 0; i < kWarmUps + kRuns; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    if (const auto ran = compiled.run(input, output); !ran) return unexpected(ran.error());
    if (i >= kWarmUps)
      times.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count());
  }
  std::ranges::sort(times);
  result.p50_us = times[times.size() / 2];
  result.p99_us = times[times.size() * 99 / 100];
  return result;
}

// Nets of one device, one on each of two threads that did not compile them, give what they give alone.
bool same_on_threads(CompiledNet& a, CompiledNet& b) {
  constexpr int kRounds = 200;
  const auto answers = [](CompiledNet& net, std::vector<float>& out) {
    const auto input = random_input(net.input_elements(), 99);
    out.assign(at(net.output_elements()), std::numeric_limits<float>::quiet_NaN());
    return net.run(input, out).has_value();
  };
  std::vector<float> alone_a, alone_b;
  if (!answers(a, alone_a) || !answers(b, alone_b)) return false;
  bool same_a = true, same_b = true;
  const auto repeat = [&](CompiledNet& net, const std::vector<float>& alone, bool& same) {
    std::vector<float> out;
    for (int i = 0; i < kRounds && same; ++i) same = answers(net, out) && out == alone;
  };
  std::thread other([&] { repeat(b, alone_b, same_b); });
  std::thread one([&] { repeat(a, alone_a, same_a); });
  other.join();
  one.join();
  return same_a && same_b;
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) >= 0x20) out += c;
  }
  return out + "\"";
}

struct Case {
  Network net;
  int batch;
};

int run(const std::string& spec, const std::string& card) {
  const auto device = make_device(spec, CpuOptions{});
  if (!device) {
    std::fprintf(stderr, "on_device: %s\n", device.error().what.c_str());
    return 1;
  }
  auto wide = vgg({1, 28, 28}, {16, 16, 32, 32, 64, 64}, 10, 1);
  wide.name = "vgg 16-16-32-32-64-64";
  auto narrow = vgg({1, 28, 28}, {8, 8, 16, 16, 32, 32}, 10, 2);
  narrow.name = "vgg 8-8-16-16-32-32";
  // Batches: one request, few (dense layers read row by row) and many (dense layers multiplied).
  std::vector<Case> cases;
  for (const int batch : {1, 5, 32})
    for (const auto& net : {wide, narrow, residual_net()}) cases.push_back({net, batch});

  bool good = true;
  std::vector<std::unique_ptr<CompiledNet>> compiled;
  std::printf("{\"device\":%s,\"nets\":[", quoted(card.empty() ? (*device)->name() : card).c_str());
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const auto& [net, batch] = cases[i];
    auto made = (*device)->compile(net, CompileOptions{batch});
    const auto result = made ? measure(**made, net, batch) : unexpected(made.error());
    std::printf("%s\n{\"name\":%s,\"batch\":%d,\"macs\":%lld,", i ? "," : "", quoted(net.name).c_str(), batch,
                static_cast<long long>(multiply_adds(net)));
    if (result) {
      // JSON has no infinity.
      const double error = std::isfinite(result->max_relative_error) ? result->max_relative_error : 1e300;
      std::printf("\"max_relative_error\":%.3g,\"p50_us\":%.2f,\"p99_us\":%.2f,\"runs\":%d}", error, result->p50_us,
                  result->p99_us, kRuns);
      good = good && error <= kErrorMax;
      compiled.push_back(std::move(*made));
    } else {
      std::printf("\"error\":%s}", quoted(result.error().what).c_str());
      good = false;
    }
  }
  const bool threads = compiled.size() == cases.size() && same_on_threads(*compiled[0], *compiled[2]);
  std::vector<float> short_input(3), output(10);
  const bool sizes = !compiled.empty() && !compiled[0]->run(short_input, output);
  std::printf("\n],\"same_on_threads\":%s,\"wrong_sizes_refused\":%s}\n", threads ? "true" : "false",
              sizes ? "true" : "false");
  return good && threads && sizes ? 0 : 1;
}

}  // namespace
}  // namespace coppice::gpu

int main(int count, char** arguments) {
  return coppice::gpu::run(count > 1 ? arguments[1] : "cuda:0", count > 2 ? arguments[2] : "");
}
