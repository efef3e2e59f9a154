// gpu/cpu_training_graph.hpp: a net laid out for training: what runs forward and backward, in which order, on which
// memory.
#pragma once

#include <dnnl.hpp>
#include <functional>
#include <vector>

#include "gpu/cpu_training_parameters.hpp"
#include "gpu/network.hpp"
#include "gpu/training.hpp"

namespace coppice::gpu {

struct CpuTrainingValue {
  Dims dims;
  dnnl::memory data;      // [batch, dims] in whatever layout its layer chose
  dnnl::memory gradient;  // in the layout of data; none where nothing that learns or is read from comes after
  bool borrowed = false;  // the gradient is another value's too and may not be added to in place
  bool learns = false;    // a parameter, or an input whose gradient is wanted, lies before it
};

// A batch norm that has taken up the ReLU after it: its own value is computed only when somebody asks for it.
struct CpuFusedNorm {
  int node = 0, relu = 0;
  dnnl::memory mean, variance;  // of the latest batch; the running ones are parameters
  dnnl::memory running_mean, running_variance, scale_shift;
};

struct CpuTrainingGraph {
  using Program = std::vector<std::function<void()>>;

  CpuTrainingGraph(const dnnl::engine& on, int of_threads)
      : engine(on), stream(on), threads(of_threads), parameters(on) {}

  dnnl::engine engine;
  dnnl::stream stream;
  int threads;
  CpuParameters parameters;
  std::vector<CpuTrainingValue> values;  // [0] the input, [i + 1] of node i
  std::vector<CpuFusedNorm> fused_norms;
  std::vector<int> fused_adds;  // nodes: adds that have taken up the ReLU after them
  dnnl::memory scratch;         // one for all steps, since they run one after another
  // Plain memories of the scores and of their gradients, which the caller's buffers take the place of.
  dnnl::memory scores, score_gradients;
  Program forward[2], backward[2];  // by Mode
  // By Mode: once so many steps of the backward are done, the gradients from parameter `first` on are whole.
  struct Ready {
    std::size_t steps = 0;
    std::int64_t first = 0;
  };
  std::vector<Ready> ready[2];
};

// Throws dnnl::error. REQUIRES: shapes are the net's.
void compile(CpuTrainingGraph& graph, const Network& net, const std::vector<Dims>& shapes,
             const TrainingOptions& options);

// Sizes along each axis, the last one running fastest.
dnnl::memory::desc plain_layout(const dnnl::memory::dims& dims);
dnnl::memory::dims with_batch(int batch, const Dims& dims);

}  // namespace coppice::gpu
