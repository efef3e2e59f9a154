#include "gpu/cpu_memory.hpp"

#include <algorithm>
#include <cstring>

namespace coppice::gpu {
namespace {

using dnnl::memory;
constexpr std::size_t kFloat = sizeof(float);

std::size_t aligned(std::size_t bytes) { return (bytes + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment; }

// Whether the numbers lie one after another as in the plain layout, though the layout is called otherwise.
bool lies_plain(const memory::desc& layout, const Dims& dims) {
  if (layout == plain_layout(static_cast<int>(layout.data.dims[0]), dims)) return true;
  if (dims.size() != 3 || dims[1] * dims[2] != 1) return false;
  for (std::int64_t c = 0; c < dims[0]; ++c) {
    const auto place = channel_place(layout, c);
    if (!place || place->offset != c || (layout.data.dims[0] > 1 && place->item != dims[0])) return false;
  }
  return true;
}

}  // namespace

memory::desc plain_layout(int batch, const Dims& dims) {
  memory::dims with_batch{batch};
  with_batch.insert(with_batch.end(), dims.begin(), dims.end());
  return {with_batch, memory::data_type::f32, memory::dims(row_major(with_batch))};
}

std::optional<ChannelPlace> channel_place(const memory::desc& layout, std::int64_t c) {
  const auto& d = layout.data;
  const auto& b = d.format_desc.blocking;
  if (d.ndims != 4 || d.format_kind != dnnl_blocked || b.inner_nblks > 1) return std::nullopt;
  if (b.inner_nblks == 1 && b.inner_idxs[0] != 1) return std::nullopt;
  if (d.dims[2] > 1 && b.strides[2] != d.dims[3] * b.strides[3]) return std::nullopt;
  const std::int64_t block = b.inner_nblks == 1 ? b.inner_blks[0] : 1;
  return ChannelPlace{0, d.offset0 + c / block * b.strides[1] + c % block,
                      d.dims[3] > 1   ? b.strides[3]
                      : d.dims[2] > 1 ? b.strides[2]
                                      : 0,
                      b.strides[0]};
}

bool padded(const memory::desc& layout) {
  return !std::equal(layout.data.dims, layout.data.dims + layout.data.ndims, layout.data.padded_dims);
}

std::shared_ptr<const Stored> Workspace::make(const memory::desc& layout, const Dims& dims) {
  const int now = static_cast<int>(steps_.size());
  memory data(layout, engine_, DNNL_MEMORY_NONE);
  buffers_.push_back({{layout.get_size(), now, now}, {{data}}});
  return std::make_shared<Stored>(Stored{data, buffers_.size() - 1, 0, dims});
}

std::shared_ptr<const Stored> Workspace::constant(const std::vector<float>& values, const Dims& dims) {
  std::vector<float> all;
  for (int n = 0; n < batch_; ++n) all.insert(all.end(), values.begin(), values.end());
  values_.push_back(std::move(all));
  const auto stored = make(plain(dims), dims);
  stored->data.set_data_handle(values_.back().data());
  buffers_.back().constant = true;
  return stored;
}

std::shared_ptr<const Stored> Workspace::view(const Stored& of, const memory::desc& layout, const Dims& dims,
                                              std::size_t offset) {
  auto& buffer = buffers_[of.buffer];
  memory data(layout, engine_, DNNL_MEMORY_NONE);
  if (buffer.constant) data.set_data_handle(static_cast<std::byte*>(of.data.get_data_handle()) + offset);
  buffer.views.push_back({data, of.offset + offset});
  return std::make_shared<Stored>(Stored{data, of.buffer, of.offset + offset, dims});
}

memory Workspace::weights(const memory::desc& layout) {
  AlignedBytes bytes(layout.get_size());
  memory data(layout, engine_, bytes.data());
  weights_.push_back({data, std::move(bytes)});
  return data;
}

bool Workspace::writable(const Stored& stored) const { return stored.buffer != 0 && !buffers_[stored.buffer].constant; }

const memory& Workspace::use(const Stored& stored) {
  auto& life = buffers_[stored.buffer].life;
  life.last = std::max(life.last, static_cast<int>(steps_.size()));
  return stored.data;
}

void Workspace::step(const dnnl::primitive& primitive, Arguments arguments, const memory::desc& scratch) {
  scratch_bytes_ = std::max(scratch_bytes_, scratch.get_size());
  if (scratch.get_size() > 0) {
    scratch_views_.push_back(memory(scratch, engine_, DNNL_MEMORY_NONE));
    arguments.emplace_back(DNNL_ARG_SCRATCHPAD, scratch_views_.back());
  }
  CpuStep made{primitive, {}, {}};
  for (const auto& [index, data] : arguments) {
    kept_.push_back(data);
    made.arguments.push_back({index, data.get()});
  }
  steps_.push_back(std::move(made));
}

void Workspace::step(std::function<void()> kernel) { steps_.push_back({{}, {}, std::move(kernel)}); }

std::shared_ptr<const Stored> Workspace::reordered(const Stored& from, const memory::desc& wanted) {
  auto to = make(wanted, from.dims);
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  const dnnl::reorder::primitive_desc chosen(engine_, from.data.get_desc(), engine_, wanted, attr);
  step(dnnl::reorder(chosen), {{DNNL_ARG_FROM, use(from)}, {DNNL_ARG_TO, use(*to)}}, chosen.scratchpad_desc());
  return to;
}

// Channels that follow one another in one image whose layout keeps them so: no copy is needed.
std::shared_ptr<const Stored> Workspace::side_by_side(const Value& value) {
  const auto& first = value.channels.front();
  for (std::size_t i = 0; i < value.channels.size(); ++i)
    if (value.channels[i].from != first.from || value.channels[i].index != first.index + static_cast<std::int64_t>(i))
      return nullptr;
  if (value.dims[0] == first.from->dims[0]) return first.from;
  const auto layout = first.from->data.get_desc();
  const auto& blocking = layout.data.format_desc.blocking;
  const auto place = channel_place(layout, first.index);
  if (!place || batch_ != 1) return nullptr;
  if (blocking.inner_nblks == 0) {
    if (layout != plain(first.from->dims)) return nullptr;
    return view(*first.from, plain(value.dims), value.dims, static_cast<std::size_t>(place->offset) * kFloat);
  }
  if (first.index % blocking.inner_blks[0] != 0 || value.dims[0] % blocking.inner_blks[0] != 0) return nullptr;
  return view(*first.from, layout_for(value), value.dims, static_cast<std::size_t>(place->offset) * kFloat);
}

// The layout of the value's first channel, for as many channels as the value has.
memory::desc Workspace::layout_for(const Value& value) const {
  const auto& d = value.channels.front().from->data.get_desc().data;
  const memory::dims dims{batch_, value.dims[0], value.dims[1], value.dims[2]};
  using Tag = memory::format_tag;
  Tag tag = d.format_desc.blocking.strides[1] == 1 ? Tag::nhwc : Tag::nchw;
  if (d.format_desc.blocking.inner_nblks == 1) {
    const auto block = d.format_desc.blocking.inner_blks[0];
    tag = block == 16 ? Tag::nChw16c : block == 8 ? Tag::nChw8c : block == 4 ? Tag::nChw4c : tag;
  }
  return {dims, memory::data_type::f32, tag};
}

std::shared_ptr<const Stored> Workspace::gathered(const Value& value, const memory::desc& wanted) {
  auto to = make(wanted, value.dims);
  ChannelCopy copy{{}, {}, batch_, value.dims[1] * value.dims[2]};
  std::vector<memory> from;
  std::vector<const Stored*> known;
  for (const auto& channel : value.channels) {
    auto at = std::find(known.begin(), known.end(), channel.from.get());
    if (at == known.end()) {
      known.push_back(channel.from.get());
      from.push_back(use(*channel.from));
      at = known.end() - 1;
    }
    auto place = *channel_place(channel.from->data.get_desc(), channel.index);
    place.memory = static_cast<int>(at - known.begin());
    copy.from.push_back(place);
  }
  for (std::int64_t c = 0; c < wanted.data.padded_dims[1]; ++c) copy.to.push_back(*channel_place(wanted, c));
  copy.from.resize(copy.to.size());
  step([copy = std::move(copy), from = std::move(from), places = std::vector<const float*>(known.size()),
        data = use(*to)]() mutable {
    for (std::size_t i = 0; i < from.size(); ++i) places[i] = static_cast<const float*>(from[i].get_data_handle());
    copy_channels(copy, places, static_cast<float*>(data.get_data_handle()));
  });
  return to;
}

std::shared_ptr<const Stored> Workspace::solid(Value& value) {
  if (!value.stored) value.stored = side_by_side(value);
  if (!value.stored) value.stored = gathered(value, layout_for(value));
  return value.stored;
}

std::shared_ptr<const Stored> Workspace::in_layout(Value& value, const memory::desc& wanted) {
  if (!value.stored) value.stored = side_by_side(value);
  if (!value.stored && channel_place(wanted, 0)) value.stored = gathered(value, wanted);
  const auto from = solid(value);
  if (from->data.get_desc() == wanted) return from;
  return reordered(*from, wanted);
}

std::shared_ptr<const Stored> Workspace::reshaped(Value& value, const Dims& dims) {
  auto source = solid(value);
  if (!lies_plain(source->data.get_desc(), source->dims)) source = in_layout(value, plain(source->dims));
  return view(*source, plain(dims), dims);
}

CpuProgram Workspace::finish(Value& output) {
  CpuProgram program;
  auto last = in_layout(output, plain(output.dims));
  program.input_count = static_cast<std::int64_t>(buffers_[0].life.bytes / kFloat);
  program.output_count = batch_ * elements(output.dims);
  const auto bytes = static_cast<std::size_t>(program.output_count) * kFloat;
  // The caller's memory takes the place of a buffer of just that size which the net itself fills.
  if (!writable(*last) || last->offset != 0 || buffers_[last->buffer].life.bytes != bytes)
    last = reordered(*last, plain(output.dims));
  place(program, last->buffer);
  return program;
}

void Workspace::place(CpuProgram& program, std::size_t output) {
  std::vector<Lifetime> lives;
  for (auto& buffer : buffers_) lives.push_back(buffer.life);
  for (std::size_t i = 0; i < buffers_.size(); ++i)
    if (i == 0 || i == output || buffers_[i].constant) lives[i].bytes = 0;
  const auto plan = plan_arena(lives);
  std::size_t bytes = plan.bytes + aligned(scratch_bytes_);
  for (const auto& weights : weights_) bytes += aligned(weights.data.get_desc().get_size());
  program.memory = AlignedBytes(bytes);
  std::byte* next = program.memory.data();
  for (std::size_t i = 1; i < buffers_.size(); ++i)
    if (i != output && !buffers_[i].constant)
      for (auto& view : buffers_[i].views) view.data.set_data_handle(next + plan.offsets[i] + view.offset);
  next += plan.bytes;
  for (auto& view : scratch_views_) view.set_data_handle(next);  // one for all, since steps run one after another
  next += aligned(scratch_bytes_);
  for (auto& [data, from] : weights_) {  // in the order in which they are read
    const std::size_t size = data.get_desc().get_size();
    std::memcpy(next, from.data(), size);
    data.set_data_handle(next);
    next += aligned(size);
    program.kept.push_back(data);
  }
  for (auto& view : buffers_[0].views) program.input_views.push_back({view.data, view.offset});
  for (auto& view : buffers_[output].views) program.output_views.push_back({view.data, view.offset});
  program.kept.insert(program.kept.end(), kept_.begin(), kept_.end());
  program.steps = std::move(steps_);
  program.values = std::move(values_);
}

}  // namespace coppice::gpu
