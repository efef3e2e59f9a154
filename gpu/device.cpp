#include "gpu/device.hpp"

#include <charconv>
#include <optional>

#include "gpu/cuda_plugin.hpp"

namespace coppice::gpu {
namespace {

unexpected<Error> unavailable(const std::string& what) {
  return unexpected(Error{ErrorCode::device_unavailable, what});
}

Expected<std::unique_ptr<Device>> make_cuda_device(int ordinal, Precision precision) {
  const auto entry = cuda_plugin_entry(kCudaPluginEntry);
  if (!entry) return unexpected(entry.error());
  std::string fault;
  std::unique_ptr<Device> device(reinterpret_cast<CudaDeviceEntry>(*entry)(ordinal, precision, &fault));
  if (!device) return unavailable("device cuda:" + std::to_string(ordinal) + ": " + fault);
  return device;
}

std::optional<Precision> precision_of(std::string_view name) {
  if (name.empty()) return Precision::float32;
  if (name == ":tf32") return Precision::tf32;
  if (name == ":fp16") return Precision::float16;
  return {};
}

}  // namespace

std::optional<DeviceSpec> parse_device(std::string_view spec) {
  if (spec == "cpu") return DeviceSpec{};
  if (!spec.starts_with("cuda:")) return {};
  const auto* const first = spec.data() + 5;
  const auto* const last = spec.data() + spec.size();
  int ordinal = -1;
  const auto [end, fault] = std::from_chars(first, last, ordinal);
  const bool zeros_first = end - first > 1 && *first == '0';
  const auto precision = precision_of({end, static_cast<std::size_t>(last - end)});
  if (fault != std::errc{} || ordinal < 0 || zeros_first || !precision) return {};
  return DeviceSpec{ordinal, *precision};
}

Expected<std::unique_ptr<Device>> make_device(std::string_view spec, const CpuOptions& cpu) {
  const auto parsed = parse_device(spec);
  if (!parsed) return unavailable("device " + std::string(spec) + ": expected " + kDeviceSpecs);
  return parsed->ordinal ? make_cuda_device(*parsed->ordinal, parsed->precision) : make_cpu_device(cpu);
}

}  // namespace coppice::gpu
