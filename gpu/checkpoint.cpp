#include "gpu/checkpoint.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "gpu/file.hpp"

namespace coppice::gpu {
namespace {

constexpr std::array<char, 8> kMagic{'C', 'P', 'T', 'R', 'A', 'I', 'N', '1'};

// FNV-1a over words of eight bytes, with the high bits folded down: a digest as fast as memory is read.
class Digest {
 public:
  void add(const void* data, std::size_t bytes) {
    const auto* at = static_cast<const std::byte*>(data);
    std::uint64_t word = 0;
    for (; bytes >= sizeof word; bytes -= sizeof word, at += sizeof word) {
      std::memcpy(&word, at, sizeof word);
      mix(word);
    }
    word = 0;
    if (bytes > 0) std::memcpy(&word, at, bytes);
    mix(word ^ bytes << 56);
  }
  template <class Number>
  void add_number(const Number& number) {
    static_assert(std::is_arithmetic_v<Number> || std::is_enum_v<Number>);
    add(&number, sizeof number);
  }
  template <class Number>
  void add_numbers(const std::vector<Number>& numbers) {
    add_number(numbers.size());
    add(numbers.data(), numbers.size() * sizeof(Number));
  }
  std::uint64_t value() const { return state_; }

 private:
  void mix(std::uint64_t word) {
    state_ = (state_ ^ word) * 0x100000001B3;
    state_ ^= state_ >> 29;
  }
  std::uint64_t state_ = 0xCBF29CE484222325;
};

// Everything in an operator that is not a name.
struct OperatorDigest {
  Digest& to;

  void window(const Window& w) const {  // no depth: what has one is not trained
    for (const auto number : {w.kernel_h, w.kernel_w, w.stride_h, w.stride_w, w.pad_top, w.pad_left, w.pad_bottom,
                              w.pad_right, w.dilation_h, w.dilation_w})
      to.add_number(number);
  }
  void operator()(const Convolution& c) const {
    window(c.window);
    to.add_number(c.groups);
    to.add_numbers(c.weight);
    to.add_numbers(c.bias);
  }
  void operator()(const BatchNorm& b) const {
    for (const auto* part : {&b.scale, &b.shift, &b.mean, &b.variance}) to.add_numbers(*part);
    to.add_number(b.epsilon);
  }
  void operator()(const Clip& c) const {
    to.add_number(c.low);
    to.add_number(c.high);
  }
  void operator()(const MaxPool& p) const { window(p.window); }
  void operator()(const AveragePool& p) const {
    window(p.window);
    to.add_number(p.count_padding);
  }
  void operator()(const Dense& d) const {
    to.add_numbers(d.weight);
    to.add_numbers(d.bias);
  }
  void operator()(const Concat& c) const { to.add_number(c.axis); }
  void operator()(const Slice& s) const {
    to.add_number(s.axis);
    to.add_number(s.begin);
    to.add_number(s.end);
  }
  void operator()(const Reshape& r) const { to.add_numbers(r.to); }
  void operator()(const Transpose& t) const { to.add_numbers(t.order); }
  void operator()(const ChannelShuffle& s) const { to.add_number(s.groups); }
  void operator()(const Constant& c) const {
    to.add_numbers(c.dims);
    to.add_numbers(c.values);
  }
  void operator()(const Arithmetic& a) const { to.add_number(static_cast<int>(a.kind)); }
  template <class Plain>  // Relu, GlobalAveragePool, Flatten, Add, Identity, SquareRoot
  void operator()(const Plain&) const {}
};

std::uint64_t digest_of(const std::vector<Network>& nets) {
  Digest digest;
  for (const auto& net : nets) {
    digest.add_numbers(net.input);
    for (const auto& node : net.nodes) {
      digest.add_number(node.op.index());
      digest.add_numbers(node.inputs);
      std::visit(OperatorDigest{digest}, node.op);
    }
  }
  return digest.value();
}

std::uint64_t digest_of(const Dataset& data, std::span<const std::int64_t> items) {
  Digest digest;
  digest.add_numbers(data.item);
  digest.add_numbers(data.pixels);
  digest.add_numbers(data.labels);
  digest.add(items.data(), items.size_bytes());
  return digest.value();
}

std::uint64_t digest_of(const TrainerOptions& options) {
  Digest digest;
  const auto all = [&](const auto&... numbers) { (digest.add_number(numbers), ...); };
  const auto& [schedule, sgd] = std::pair(options.schedule, options.sgd);
  all(options.epochs, options.batch, options.seed, schedule.kind, schedule.peak, schedule.rising);
  digest.add_numbers(schedule.milestones);
  all(sgd.momentum, sgd.weight_decay, sgd.nesterov, sgd.average_decay);
  all(options.augmentation.shift, options.augmentation.flip, options.normalisation.mean,
      options.normalisation.deviation);
  return digest.value();
}

// ---- bytes ---------------------------------------------------------------------------------------------------------

// magic, fingerprint, step, number of nets; for each net the sizes of its three vectors and these; a digest of it all.
using Bytes = std::vector<std::byte>;

void append(Bytes& to, const void* data, std::size_t bytes) {
  const auto* from = static_cast<const std::byte*>(data);
  to.insert(to.end(), from, from + bytes);
}
void append(Bytes& to, std::uint64_t number) { append(to, &number, sizeof number); }

Bytes encoded(const Checkpoint& checkpoint) {
  Bytes out;
  append(out, kMagic.data(), kMagic.size());
  const auto& print = checkpoint.fingerprint;
  for (const auto number : {print.nets, print.data, print.options, static_cast<std::uint64_t>(checkpoint.step),
                            static_cast<std::uint64_t>(checkpoint.nets.size())})
    append(out, number);
  for (const auto& net : checkpoint.nets)
    for (const auto* part : {&net.weights, &net.velocity, &net.average}) {
      append(out, part->size());
      append(out, part->data(), part->size() * sizeof(float));
    }
  Digest digest;
  digest.add(out.data(), out.size());
  append(out, digest.value());
  return out;
}

class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : left_(bytes) {}
  bool take(void* to, std::size_t bytes) {
    if (left_.size() < bytes) return false;
    if (bytes > 0) std::memcpy(to, left_.data(), bytes);
    left_ = left_.subspan(bytes);
    return true;
  }
  // A vector of exactly `count` numbers, or of none where it may be absent.
  bool take(std::vector<float>& to, std::int64_t count, bool optional) {
    std::uint64_t size = 0;
    if (!take(&size, sizeof size)) return false;
    if (size != static_cast<std::uint64_t>(count) && !(optional && size == 0)) return false;
    to.resize(size);
    return take(to.data(), size * sizeof(float));
  }
  bool at_end() const { return left_.empty(); }

 private:
  std::span<const std::byte> left_;
};

constexpr std::size_t kHeader = kMagic.size() + 5 * sizeof(std::uint64_t), kTrailer = sizeof(std::uint64_t);

bool intact(std::span<const std::byte> bytes) {
  if (bytes.size() < kHeader + kTrailer) return false;
  Digest digest;
  digest.add(bytes.data(), bytes.size() - kTrailer);
  std::uint64_t stored = 0;
  std::memcpy(&stored, bytes.data() + bytes.size() - kTrailer, sizeof stored);
  return stored == digest.value() && std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) == 0;
}

// REQUIRES: intact. Where the fingerprint is another's, nothing after it is read.
bool decode(std::span<const std::byte> bytes, const Fingerprint& expected, const std::vector<std::int64_t>& parameters,
            Checkpoint& out) {
  Reader reader(bytes.subspan(kMagic.size(), bytes.size() - kMagic.size() - kTrailer));
  std::array<std::uint64_t, 5> head{};
  if (!reader.take(head.data(), sizeof head)) return false;
  out.fingerprint = {head[0], head[1], head[2]};
  out.step = static_cast<std::int64_t>(head[3]);
  if (out.fingerprint != expected) return true;
  if (head[4] != parameters.size() || out.step < 0) return false;
  for (const auto count : parameters) {
    auto& net = out.nets.emplace_back();
    if (!reader.take(net.weights, count, false) || !reader.take(net.velocity, count, false) ||
        !reader.take(net.average, count, true))
      return false;
  }
  return reader.at_end();
}

// ---- files ---------------------------------------------------------------------------------------------------------

struct Descriptor {
  int number = -1;
  ~Descriptor() {
    if (number >= 0) ::close(number);
  }
};

unexpected<Error> unwritable(const std::filesystem::path& file) {
  return unexpected(Error{ErrorCode::unreadable, file.string() + ": cannot be written: " + std::strerror(errno)});
}

Expected<void> write_through(const std::filesystem::path& file, const Bytes& bytes) {
  const Descriptor to{::open(file.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644)};
  if (to.number < 0) return unwritable(file);
  for (std::size_t done = 0; done < bytes.size();) {
    const auto written = ::write(to.number, bytes.data() + done, bytes.size() - done);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return unwritable(file);
    done += static_cast<std::size_t>(written);
  }
  if (::fsync(to.number) != 0) return unwritable(file);
  return {};
}

std::string differences(const Fingerprint& found, const Fingerprint& expected) {
  std::string out;
  const auto tell = [&](bool differs, const char* what) {
    if (differs) out += (out.empty() ? "" : " and ") + std::string(what);
  };
  tell(found.nets != expected.nets, "net");
  tell(found.data != expected.data, "data");
  tell(found.options != expected.options, "options");
  return out;
}

}  // namespace

Fingerprint fingerprint(const std::vector<Network>& nets, const Dataset& data, std::span<const std::int64_t> items,
                        const TrainerOptions& options) {
  return {digest_of(nets), digest_of(data, items), digest_of(options)};
}

Expected<void> save_checkpoint(const std::filesystem::path& file, const Checkpoint& checkpoint) {
  auto beside = file;
  beside += ".part";
  if (auto written = write_through(beside, encoded(checkpoint)); !written) return written;
  if (::rename(beside.c_str(), file.c_str()) != 0) return unwritable(file);
  // The new name is in the directory, which is brought to the disk too.
  const auto directory = file.has_parent_path() ? file.parent_path() : std::filesystem::path(".");
  const Descriptor holder{::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  if (holder.number < 0 || ::fsync(holder.number) != 0) return unwritable(directory);
  return {};
}

Expected<std::optional<Checkpoint>> load_checkpoint(const std::filesystem::path& file, const Fingerprint& expected,
                                                    const std::vector<std::int64_t>& parameters) {
  std::error_code fault;
  const auto status = std::filesystem::status(file, fault);
  if (status.type() == std::filesystem::file_type::not_found) return std::nullopt;
  // Larger than this training's own can be is another's, which its first bytes do not need to prove.
  std::int64_t bytes_max = kHeader + kTrailer;
  for (const auto count : parameters) bytes_max += 3 * (count * std::int64_t{sizeof(float)} + 8);
  const std::string remedy = ": remove it to begin anew, or name another file";
  if (const auto size = std::filesystem::file_size(file, fault); !fault && static_cast<std::int64_t>(size) > bytes_max)
    return unexpected(Error{ErrorCode::unreadable, file.string() + ": is no checkpoint of this training, whose " +
                                                       "checkpoints are smaller" + remedy});
  const auto bytes = read_file(file, bytes_max);
  if (!bytes) return unexpected(bytes.error());
  Checkpoint out;
  if (!intact(*bytes) || !decode(*bytes, expected, parameters, out))
    return unexpected(Error{ErrorCode::malformed, file.string() + ": is damaged or no checkpoint" + remedy});
  if (out.fingerprint != expected)
    return unexpected(Error{ErrorCode::unreadable, file.string() + ": is the checkpoint of a training with other " +
                                                       differences(out.fingerprint, expected) + remedy});
  return out;
}

}  // namespace coppice::gpu
