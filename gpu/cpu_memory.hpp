// gpu/cpu_memory.hpp: the values of a net while the CPU device compiles it: where each lies, in what layout, how long.
#pragma once

#include <dnnl.hpp>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "gpu/arena.hpp"
#include "gpu/cpu_kernels.hpp"
#include "gpu/cpu_net.hpp"

namespace coppice::gpu {

using Arguments = std::vector<std::pair<int, dnnl::memory>>;

// Numbers that lie somewhere. Several may share a buffer.
struct Stored {
  dnnl::memory data;
  std::size_t buffer = 0;
  std::size_t offset = 0;  // bytes, from the buffer's start
  Dims dims;               // without batch
};

struct Channel {  // of an image that lies somewhere
  std::shared_ptr<const Stored> from;
  std::int64_t index = 0;
};

// A value of the net. Slice, Concat and ChannelShuffle along the channels move nothing: their value is a list of
// channels until something reads it that wants them side by side.
struct Value {
  Dims dims;
  std::shared_ptr<const Stored> stored;
  std::vector<Channel> channels;
};

dnnl::memory::desc plain_layout(int batch, const Dims& dims);  // row-major
// Where channel c of an image lies in this layout; nullopt where its pixels are not evenly apart.
std::optional<ChannelPlace> channel_place(const dnnl::memory::desc& layout, std::int64_t c);
bool padded(const dnnl::memory::desc& layout);

// Lays the steps out first and their memory afterwards, when it is known how long each buffer is needed.
// Every call that adds a step may throw dnnl::error.
class Workspace {
 public:
  Workspace(const dnnl::engine& engine, int batch) : engine_(engine), batch_(batch) {}

  int batch() const { return batch_; }
  const dnnl::engine& engine() const { return engine_; }
  dnnl::memory::desc plain(const Dims& dims) const { return plain_layout(batch_, dims); }

  // A new buffer; its place is given at the end. The first one made is the net's input.
  std::shared_ptr<const Stored> make(const dnnl::memory::desc& layout, const Dims& dims);
  // The same numbers for every item.
  std::shared_ptr<const Stored> constant(const std::vector<float>& values, const Dims& dims);
  std::shared_ptr<const Stored> view(const Stored& of, const dnnl::memory::desc& layout, const Dims& dims,
                                     std::size_t offset = 0);
  // To be filled at once; moved beside all others at the end.
  dnnl::memory weights(const dnnl::memory::desc& layout);
  bool writable(const Stored& stored) const;  // neither the caller's input nor a constant

  // The memory as an argument of the step that comes next.
  const dnnl::memory& use(const Stored& stored);
  void step(const dnnl::primitive& primitive, Arguments arguments, const dnnl::memory::desc& scratch);
  void step(std::function<void()> kernel);

  std::shared_ptr<const Stored> reordered(const Stored& from, const dnnl::memory::desc& wanted);
  // In any layout / in this one. Both leave the value with what they made, for the next reader.
  std::shared_ptr<const Stored> solid(Value& value);
  std::shared_ptr<const Stored> in_layout(Value& value, const dnnl::memory::desc& wanted);
  // The same numbers under other sizes: a view where the layout is plain, or is as good as plain.
  std::shared_ptr<const Stored> reshaped(Value& value, const Dims& dims);

  // Gives every buffer its place; the caller's own two serve as the first and the last one.
  CpuProgram finish(Value& output);

 private:
  struct View {
    dnnl::memory data;
    std::size_t offset = 0;
  };
  struct Weights {
    dnnl::memory data;
    AlignedBytes bytes;
  };
  struct Buffer {
    Lifetime life;
    std::vector<View> views;
    bool constant = false;
  };

  std::shared_ptr<const Stored> gathered(const Value& value, const dnnl::memory::desc& wanted);
  std::shared_ptr<const Stored> side_by_side(const Value& value);
  dnnl::memory::desc layout_for(const Value& value) const;
  void place(CpuProgram& program, std::size_t output);

  dnnl::engine engine_;
  int batch_;
  std::vector<Buffer> buffers_;  // [0] is the net's input
  std::vector<CpuStep> steps_;
  std::vector<dnnl::memory> kept_, scratch_views_;
  std::vector<std::vector<float>> values_;
  std::vector<Weights> weights_;
  std::size_t scratch_bytes_ = 0;
};

}  // namespace coppice::gpu
