#include "runtime/replay.hpp"

#include <fcntl.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <thread>

#include "coding/base64.hpp"
#include "runtime/cluster.hpp"
#include "runtime/offline.hpp"
#include "runtime/sha256.hpp"

namespace coppice::runtime {
namespace {

using nlohmann::json;

constexpr std::size_t kBytesMax = 256U << 20, kItemsMax = 1'000'000, kInputMax = 1U << 24;
constexpr std::uint32_t kServiceMax = 600'000'000;  // microseconds
constexpr int kDepthMax = 4;
constexpr std::size_t kDigits = 16;  // of an item's SHA-256

std::string digits_of(std::span<const float> item) { return sha256(std::as_bytes(item)).substr(0, kDigits); }

// Thrown and caught in this file alone.
struct Fault {
  std::string what;
};

const json& field(const json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end()) throw Fault{std::string(key) + ": missing"};
  return *found;
}

std::size_t whole(const json& value, const std::string& name, std::size_t low, std::size_t high) {
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() < low || value.get<std::uint64_t>() > high)
    throw Fault{name + ": must be a whole number in " + std::to_string(low) + ".." + std::to_string(high)};
  return value.get<std::size_t>();
}

const json& list(const json& object, const char* key, std::size_t size) {
  const auto& value = field(object, key);
  if (!value.is_array() || value.size() != size || size > kItemsMax)
    throw Fault{std::string(key) + ": must be a list of one entry an item, at most " + std::to_string(kItemsMax)};
  return value;
}

json parsed(std::string_view text) {
  const auto shallow = [](int depth, json::parse_event_t, json&) {
    if (depth > kDepthMax) throw Fault{"is nested too deeply"};
    return true;
  };
  auto object = json::parse(text, shallow, false);
  if (!object.is_object()) throw Fault{"must be a JSON object"};
  return object;
}

std::vector<float> read_scores(const json& object, std::size_t items, std::size_t outputs) {
  const auto& scores = field(object, "scores");
  const auto* base64 = scores.is_object() && scores.contains("float32") ? scores["float32"].get_ptr<const std::string*>() : nullptr;
  // Bounded by the file that is there: the text's length is that of the numbers.
  if (!base64 || base64->size() != coding::base64_length(items * outputs * sizeof(float)))
    throw Fault{"scores.float32: must be base64 of " + std::to_string(items) + " x " + std::to_string(outputs) + " numbers"};
  std::vector<float> values(items * outputs);
  if (!coding::base64_decode(*base64, std::as_writable_bytes(std::span(values)))) throw Fault{"scores.float32: not base64"};
  if (!std::ranges::all_of(values, [](float x) { return std::isfinite(x); })) throw Fault{"scores.float32: holds numbers that are not finite"};
  return values;
}

}  // namespace

Expected<std::unique_ptr<ReplayNet>> ReplayNet::parse(std::string_view text, const std::string& origin) {
  try {
    const auto object = parsed(text);
    std::unique_ptr<ReplayNet> net(new ReplayNet);
    whole(field(object, "schema"), "schema", 1, 1);
    net->input_ = whole(field(object, "input"), "input", 1, kInputMax);
    net->outputs_ = whole(field(object, "outputs"), "outputs", 1, coding::kClassesMax);
    const auto& items = field(object, "items");
    list(object, "items", items.size());
    for (const auto& item : items) {
      const auto* digits = item.get_ptr<const std::string*>();
      if (!digits || digits->size() != kDigits) throw Fault{"items: must be " + std::to_string(kDigits) + " hexadecimal digits each"};
      net->rows_.emplace(*digits, net->rows_.size());
    }
    if (net->rows_.size() != items.size()) throw Fault{"items: one is there twice"};
    for (const auto& each : list(object, "service_us", items.size()))
      net->service_us_.push_back(static_cast<std::uint32_t>(whole(each, "service_us", 0, kServiceMax)));
    net->scores_ = read_scores(object, items.size(), net->outputs_);
    return net;
  } catch (const Fault& fault) {
    return bad_input(origin + ": " + one_line(fault.what));
  }
}

Expected<std::unique_ptr<ReplayNet>> ReplayNet::load(const std::filesystem::path& file) {
  const auto text = read_file(AT_FDCWD, file, file, {.bytes_max = kBytesMax});
  if (!text) return tl::unexpected(text.error());
  return parse(*text, file.string());
}

std::optional<std::string> ReplayNet::run(std::span<const float> item, actors::Floats& scores) {
  const auto due = std::chrono::steady_clock::now();
  const auto row = rows_.find(digits_of(item));
  if (row == rows_.end()) return "this item was not recorded";
  const auto first = scores_.begin() + static_cast<std::ptrdiff_t>(row->second * outputs_);
  scores.assign(first, first + static_cast<std::ptrdiff_t>(outputs_));
  std::this_thread::sleep_until(due + std::chrono::microseconds(service_us_[row->second]));
  return std::nullopt;
}

Expected<json> record_replay(const Model& model, std::size_t worker, const gpu::Dataset& data, std::int64_t items) {
  const auto recorded = time_net(model, worker, data, items);
  if (!recorded) return tl::unexpected(recorded.error());
  const auto& net = model.manifest.workers[worker];
  std::vector<std::string> digits;
  std::vector<float> kept;
  std::vector<std::uint32_t> service_us;
  std::unordered_map<std::string, bool> seen;
  std::vector<float> item(static_cast<std::size_t>(gpu::elements(data.item)));
  const auto outputs = net.classes.size();
  for (std::size_t i = 0; i < recorded->service_us.size(); ++i) {
    gpu::item(data, static_cast<std::int64_t>(i), model.manifest.normalisation, item);
    auto name = digits_of(item);
    if (!seen.emplace(name, true).second) continue;  // the same image again
    digits.push_back(std::move(name));
    const auto first = recorded->scores.begin() + static_cast<std::ptrdiff_t>(i * outputs);
    kept.insert(kept.end(), first, first + static_cast<std::ptrdiff_t>(outputs));
    service_us.push_back(recorded->service_us[i]);
  }
  return json{{"schema", 1},
              {"net", net.file},
              {"input", item.size()},
              {"outputs", outputs},
              {"items", digits},
              {"scores",
               {{"shape", {digits.size(), outputs}}, {"float32", coding::base64_encode(std::as_bytes(std::span(kept)))}}},
              {"service_us", service_us}};
}

}  // namespace coppice::runtime
