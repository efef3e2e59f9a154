#include <Eigen/Cholesky>
#include <Eigen/Core>
#include <bit>
#include <charconv>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <type_traits>

#include "coding/base64.hpp"
#include "coding/checks.hpp"
#include "coding/decoder.hpp"

// Arrays are stored as they lie in memory.
static_assert(std::endian::native == std::endian::little && std::numeric_limits<float>::is_iec559 &&
              std::numeric_limits<double>::is_iec559);

namespace coppice::coding {
namespace {

using Json = nlohmann::json;
template <typename T>
using Read = tl::expected<T, DecodeError>;

tl::unexpected<DecodeError> malformed(const std::string& field, std::string_view why) {
  return tl::unexpected(DecodeError{DecodeErrorCode::malformed, field + ": " + std::string(why)});
}

template <typename T>
constexpr const char* kArrayWord = std::is_same_v<T, float> ? "float32" : "float64";

template <typename T>
Json array_json(const std::vector<T>& values, std::vector<std::size_t> shape) {
  std::size_t product = 1;
  for (std::size_t extent : shape) product *= extent;
  check(product == values.size(), "to_json: arrays have the shapes that decoder.hpp gives them");
  return Json{{"shape", std::move(shape)}, {kArrayWord<T>, base64_encode(std::as_bytes(std::span(values)))}};
}

const Json* member(const Json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto found = object.find(key);
  return found == object.end() ? nullptr : &*found;
}

// An integer in [low, high].
Read<int> read_int(const Json* value, const std::string& field, int low, int high) {
  if (value == nullptr) return malformed(field, "missing");
  const bool whole = value->is_number_unsigned() ? value->get<std::uint64_t>() <= static_cast<std::uint64_t>(high)
                                                 : value->is_number_integer() && value->get<std::int64_t>() <= high;
  if (!whole || value->get<std::int64_t>() < low)
    return malformed(field, "not an integer from " + std::to_string(low) + " to " + std::to_string(high));
  return static_cast<int>(value->get<std::int64_t>());
}

// {"shape": shape, "float32" | "float64": base64}, all numbers finite. The text's length is compared with the shape's
// product, in 64 bits, before anything is allocated: a reader never holds more than the document's own size.
template <typename T>
Read<std::vector<T>> read_array(const Json* object, const std::string& field, const std::vector<int>& shape) {
  if (object == nullptr) return malformed(field, "missing");
  if (!object->is_object()) return malformed(field, "not an object");
  const Json* stored = member(*object, "shape");
  if (stored == nullptr || !stored->is_array() || stored->size() != shape.size())
    return malformed(field + ".shape", "not a list of " + std::to_string(shape.size()) + " extents");
  std::uint64_t product = 1;  // at most (kWorkersMax * kFloatsMax)^2 = 2^34 elements
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (auto extent = read_int(&(*stored)[i], field + ".shape", shape[i], shape[i]); !extent)
      return tl::unexpected(extent.error());
    product *= static_cast<std::uint64_t>(shape[i]);
  }
  const Json* text = member(*object, kArrayWord<T>);
  const std::string text_field = field + "." + kArrayWord<T>;
  if (text == nullptr || !text->is_string()) return malformed(text_field, "not a string of base64");
  const std::string& base64 = text->get_ref<const std::string&>();
  if (base64.size() != base64_length(product * sizeof(T)))
    return malformed(text_field, "not as long as its shape asks for");
  std::vector<T> values(product);
  if (!base64_decode(base64, std::as_writable_bytes(std::span(values)))) return malformed(text_field, "not base64");
  for (T value : values)
    if (!std::isfinite(value)) return malformed(text_field, "holds a number that is not finite");
  return values;
}

Read<Generator> read_generator(const Json& object) {
  const Json* floats = member(object, "floats");
  const Json* stored = member(object, "generator");
  if (floats == nullptr || !floats->is_array() || floats->empty() || floats->size() > size_of(kWorkersMax))
    return malformed("floats", "not a list of 1 to " + std::to_string(kWorkersMax) + " workers");
  if (stored == nullptr || !stored->is_array() || stored->size() != floats->size())
    return malformed("generator", "not a list of one array a worker");
  Generator generator;
  for (std::size_t i = 0; i < stored->size(); ++i) {
    const std::string field = "generator[" + std::to_string(i) + "]";
    const auto count = read_int(&(*floats)[i], "floats[" + std::to_string(i) + "]", 1, kFloatsMax);
    if (!count) return tl::unexpected(count.error());
    if (i == 0) {  // the first worker's rows say how many classes there are
      const Json* shape = member((*stored)[0], "shape");
      if (shape == nullptr || !shape->is_array() || shape->size() != 2)
        return malformed(field + ".shape", "not a list of 2 extents");
      const auto classes = read_int(&(*shape)[1], field + ".shape", 1, kClassesMax);
      if (!classes) return tl::unexpected(classes.error());
      generator.classes = *classes;
    }
    auto rows = read_array<float>(&(*stored)[i], field, {*count, generator.classes});
    if (!rows) return tl::unexpected(rows.error());
    generator.workers.push_back({*count, *std::move(rows)});
  }
  return generator;
}

Read<Decoder> read_ridge(const Json& object) {
  const Json* prior = member(object, "prior");
  if (prior == nullptr || !prior->is_number()) return malformed("prior", "not a number");
  const double value = prior->get<double>();
  if (!(value > 0) || !std::isfinite(value)) return malformed("prior", "not positive and finite");
  return RidgeDecoder{value};
}

Read<Decoder> read_posterior(const Json& object, const Generator& generator) {
  const int total = generator.total_floats();
  auto means = read_array<double>(member(object, "means"), "means", {generator.classes, total});
  if (!means) return tl::unexpected(means.error());
  auto covariance = read_array<double>(member(object, "covariance"), "covariance", {total, total});
  if (!covariance) return tl::unexpected(covariance.error());
  auto log_prior = read_array<double>(member(object, "log_prior"), "log_prior", {generator.classes});
  if (!log_prior) return tl::unexpected(log_prior.error());
  // Checked here once for all arrival sets: every principal part of a positive definite matrix is one.
  const Eigen::Map<const Eigen::MatrixXd> matrix(covariance->data(), total, total);
  if (matrix != matrix.transpose() || Eigen::LLT<Eigen::MatrixXd>(matrix).info() != Eigen::Success)
    return malformed("covariance", "not symmetric and positive definite");
  return PosteriorDecoder{*std::move(means), *std::move(covariance), *std::move(log_prior)};
}

Read<Decoder> read_logistic(const Json& object, const Generator& generator) {
  const Json* sets = member(object, "sets");
  if (sets == nullptr || !sets->is_object()) return malformed("sets", "not an object");
  const std::uint64_t sets_end = std::uint64_t{1} << generator.workers.size();
  LogisticDecoder decoder;
  for (const auto& [key, stored] : sets->items()) {
    ArrivalSet set = 0;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), set);
    // Printed back and compared, so that "07" and "7" cannot both be there.
    if (error != std::errc{} || end != key.data() + key.size() || std::to_string(set) != key || set == 0 ||
        set >= sets_end)
      return malformed("sets", "a key that is not the number of a set of its workers");
    auto weights = read_array<float>(&stored, "sets." + key, {generator.classes, generator.floats_of(set) + 1});
    if (!weights) return tl::unexpected(weights.error());
    decoder.weights.emplace(set, *std::move(weights));
  }
  return decoder;
}

}  // namespace

Json to_json(const Decoder& decoder, const Generator& generator) {
  check(!generator_fault(generator), "to_json: a well-formed generator");
  const std::size_t classes = size_of(generator.classes), total = size_of(generator.total_floats());
  Json object{{"type", name(decoder)}, {"floats", Json::array()}, {"generator", Json::array()}};
  for (const WorkerRows& worker : generator.workers) {
    object["floats"].push_back(worker.floats);
    object["generator"].push_back(array_json(worker.rows, {size_of(worker.floats), classes}));
  }
  if (const auto* ridge = std::get_if<RidgeDecoder>(&decoder)) {
    object["prior"] = ridge->prior;
  } else if (const auto* posterior = std::get_if<PosteriorDecoder>(&decoder)) {
    object["means"] = array_json(posterior->means, {classes, total});
    object["covariance"] = array_json(posterior->covariance, {total, total});
    object["log_prior"] = array_json(posterior->log_prior, {classes});
  } else if (const auto* logistic = std::get_if<LogisticDecoder>(&decoder)) {
    Json& sets = object["sets"] = Json::object();
    for (const auto& [set, weights] : logistic->weights)
      sets[std::to_string(set)] = array_json(weights, {classes, size_of(generator.floats_of(set)) + 1});
  }
  return object;
}

tl::expected<std::pair<Generator, Decoder>, DecodeError> from_json(const Json& object) {
  if (!object.is_object()) return malformed("decoder", "not an object");
  const Json* type = member(object, "type");
  if (type == nullptr || !type->is_string()) return malformed("type", "not a word");
  auto generator = read_generator(object);
  if (!generator) return tl::unexpected(generator.error());
  const std::string& word = type->get_ref<const std::string&>();
  Read<Decoder> decoder = word == "sum"         ? Read<Decoder>(SumDecoder{})
                          : word == "ridge"     ? read_ridge(object)
                          : word == "posterior" ? read_posterior(object, *generator)
                          : word == "logistic"  ? read_logistic(object, *generator)
                                                : malformed("type", "not sum, ridge, posterior or logistic");
  if (!decoder) return tl::unexpected(decoder.error());
  return std::pair{*std::move(generator), *std::move(decoder)};
}

}  // namespace coppice::coding
