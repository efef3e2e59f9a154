#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>

#include "coding/decoder.hpp"
#include "tests/coding/allocations.hpp"
#include "tests/coding/synthetic.hpp"

using namespace synthetic;
using Json = nlohmann::json;

namespace {

// Any finite number, by its bits: signed zeros and subnormal numbers too.
template <typename T, typename Bits>
T random_number(Random& random) {
  for (;;)
    if (const T value = std::bit_cast<T>(static_cast<Bits>(random())); std::isfinite(value)) return value;
}

template <typename T>
std::vector<T> random_numbers(Random& random, int count) {
  using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
  std::vector<T> values(size_of(count));
  for (T& value : values) value = random_number<T, Bits>(random);
  return values;
}

Decoder random_decoder(Random& random, const Generator& generator, int kind) {
  const int total = generator.total_floats();
  if (kind == 0) return SumDecoder{};
  if (kind == 1) return RidgeDecoder{std::abs(random_number<double, std::uint64_t>(random)) + 1e-300};
  if (kind == 2) {
    PosteriorDecoder decoder{random_numbers<double>(random, generator.classes * total),
                             std::vector<double>(size_of(total * total)),
                             random_numbers<double>(random, generator.classes)};
    for (int i = 0; i < total; ++i)
      for (int j = 0; j <= i; ++j)
        decoder.covariance[size_of(i * total + j)] = decoder.covariance[size_of(j * total + i)] =
            i == j ? 2.0 : static_cast<double>(normal(random)) * 0.01;
    return decoder;
  }
  LogisticDecoder decoder;
  for (ArrivalSet set = 1; set <= everyone(generator); ++set)
    if (draw(random, 0, 2) > 0)
      decoder.weights[set] = random_numbers<float>(random, generator.classes * (generator.floats_of(set) + 1));
  return decoder;
}

template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

bool same_bits(const Decoder& a, const Decoder& b) {
  if (a != b) return false;  // equal but for the sign of zeros
  if (const auto* posterior = std::get_if<PosteriorDecoder>(&a)) {
    const auto& other = std::get<PosteriorDecoder>(b);
    return same_bits(posterior->means, other.means) && same_bits(posterior->covariance, other.covariance) &&
           same_bits(posterior->log_prior, other.log_prior);
  }
  if (const auto* logistic = std::get_if<LogisticDecoder>(&a))
    return std::ranges::all_of(logistic->weights, [&](const auto& entry) {
      return same_bits(entry.second, std::get<LogisticDecoder>(b).weights.at(entry.first));
    });
  return true;
}

TEST(Json, ReturnsEveryDecoderBitForBitThroughText) {
  EXPECT_TRUE(rc::check([](std::uint64_t seed) {
    Random random(seed);
    Generator generator = random_generator(random, 5, 6);
    for (WorkerRows& worker : generator.workers)
      worker.rows = random_numbers<float>(random, worker.floats * generator.classes);
    for (int kind = 0; kind < 4; ++kind) {
      const Decoder decoder = random_decoder(random, generator, kind);
      const auto read = from_json(Json::parse(to_json(decoder, generator).dump()));
      RC_ASSERT(read.has_value());
      RC_ASSERT(read->first == generator);
      for (std::size_t i = 0; i < generator.workers.size(); ++i)
        RC_ASSERT(same_bits(read->first.workers[i].rows, generator.workers[i].rows));
      RC_ASSERT(same_bits(read->second, decoder));
    }
  }));
}

TEST(Json, LooksAsTheManifestPromises) {
  const Generator generator{2, {{1, {1.0F, 0.0F}}, {1, {0.0F, 1.0F}}}};
  const Json rows =
      Json::parse(R"([{"shape": [1, 2], "float32": "AACAPwAAAAA="}, {"shape": [1, 2], "float32": "AAAAAAAAgD8="}])");
  EXPECT_EQ(to_json(SumDecoder{}, generator), (Json{{"type", "sum"}, {"floats", {1, 1}}, {"generator", rows}}));
  EXPECT_EQ(to_json(RidgeDecoder{0.25}, generator),
            (Json{{"type", "ridge"}, {"floats", {1, 1}}, {"generator", rows}, {"prior", 0.25}}));
  const Json logistic = to_json(LogisticDecoder{{{2, {1.0F, 0.0F, 0.0F, 1.0F}}}}, generator);
  EXPECT_EQ(logistic["sets"], Json::parse(R"({"2": {"shape": [2, 2], "float32": "AACAPwAAAAAAAAAAAACAPw=="}})"));
  const Json posterior = to_json(PosteriorDecoder{{1, 0, 0, 1}, {1, 0, 0, 1}, {0, 0}}, generator);
  EXPECT_EQ(posterior["means"]["shape"], Json({2, 2}));
  EXPECT_EQ(posterior["covariance"]["float64"], "AAAAAAAA8D8AAAAAAAAAAAAAAAAAAAAAAAAAAAAA8D8=");
  EXPECT_EQ(posterior["log_prior"]["shape"], Json::array({2}));
}

TEST(Json, NamesTheFieldThatIsMalformed) {
  const Generator generator = paired_generator(2, 1);
  Random random(1);
  const Json logistic = to_json(random_decoder(random, generator, 3), generator);
  const Json posterior = to_json(random_decoder(random, generator, 2), generator);
  const Json ridge = to_json(RidgeDecoder{}, generator);
  const auto fault = [](Json object, const char* pointer, const Json& value) {
    object[Json::json_pointer(pointer)] = value;
    const auto read = from_json(object);
    EXPECT_FALSE(read) << pointer;
    if (read) return std::string();
    EXPECT_EQ(read.error().code, DecodeErrorCode::malformed);
    return read.error().what.substr(0, read.error().what.find(':'));
  };
  EXPECT_EQ(fault(ridge, "/type", "magic"), "type");
  EXPECT_EQ(fault(ridge, "/type", 3), "type");
  EXPECT_EQ(fault(ridge, "/prior", 0.0), "prior");
  EXPECT_EQ(fault(ridge, "/prior", "0.1"), "prior");
  EXPECT_EQ(fault(ridge, "/floats", Json::array()), "floats");
  EXPECT_EQ(fault(ridge, "/floats/1", -2), "floats[1]");
  EXPECT_EQ(fault(ridge, "/floats/1", 2.5), "floats[1]");
  EXPECT_EQ(fault(ridge, "/floats/1", 4097), "floats[1]");
  EXPECT_EQ(fault(ridge, "/floats/1", std::numeric_limits<std::uint64_t>::max()), "floats[1]");
  EXPECT_EQ(fault(ridge, "/generator/0/shape/1", 4097), "generator[0].shape");
  EXPECT_EQ(fault(ridge, "/generator/2/shape/1", 5), "generator[2].shape");
  EXPECT_EQ(fault(ridge, "/generator/1/float32", "AAAA"), "generator[1].float32");
  EXPECT_EQ(fault(ridge, "/generator/1", Json()), "generator[1]");
  EXPECT_EQ(fault(logistic, "/sets", Json::array()), "sets");
  EXPECT_EQ(fault(logistic, "/sets/8", logistic["sets"].front()), "sets");  // a worker that is not there
  EXPECT_EQ(fault(logistic, "/sets/0", logistic["sets"].front()), "sets");
  EXPECT_EQ(fault(logistic, "/sets/07", logistic["sets"].front()), "sets");
  EXPECT_EQ(fault(logistic, "/sets/7", 1), "sets.7");
  EXPECT_EQ(fault(posterior, "/means/float64", "!"), "means.float64");
  Json indefinite = posterior;
  indefinite["covariance"] = to_json(PosteriorDecoder{std::vector<double>(32), std::vector<double>(64), {0, 0, 0, 0}},
                                     generator)["covariance"];
  EXPECT_EQ(fault(indefinite, "/type", "posterior"), "covariance");
  // 4 NaN of 4 bytes.
  Json single = to_json(SumDecoder{}, Generator{1, {{1, {1.0F}}}});
  EXPECT_EQ(fault(single, "/generator/0/float32", "AADAfw=="), "generator[0].float32");
  for (const Json& object : {Json(), Json(3), Json::array(), Json::object(), Json("sum")})
    EXPECT_FALSE(from_json(object));
}

// Every value of the document, depth first.
void collect(Json& value, std::vector<Json*>& all) {
  all.push_back(&value);
  if (value.is_structured())
    for (Json& element : value) collect(element, all);
}

void mutate(Json& document, Random& random) {
  std::vector<Json*> all;
  collect(document, all);
  Json& victim = *all[size_of(draw(random, 0, static_cast<int>(all.size()) - 1))];
  const auto pick = [&](std::size_t count) { return size_of(draw(random, 0, static_cast<int>(count) - 1)); };
  switch (draw(random, 0, 5)) {
    case 0:  // a dropped or doubled key or element
      if (victim.is_object() && !victim.empty()) {
        const std::string key = std::next(victim.begin(), static_cast<std::ptrdiff_t>(pick(victim.size()))).key();
        if (draw(random, 0, 1) == 0)
          victim.erase(key);
        else
          victim[std::to_string(random())] = Json(victim[key]);
      } else if (victim.is_array() && !victim.empty()) {
        victim.erase(pick(victim.size()));
      }
      break;
    case 1: {  // another type
      const std::vector<Json> others{
          Json(), true, -1, 0.5, "", "word", Json::array(), Json::object(), Json::array({Json()})};
      victim = others[pick(others.size())];
      break;
    }
    case 2: {  // a huge, negative or neighbouring size
      const std::vector<Json> sizes{-1,
                                    0,
                                    1,
                                    2,
                                    4096,
                                    4097,
                                    1 << 30,
                                    std::numeric_limits<std::int64_t>::max(),
                                    std::numeric_limits<std::int64_t>::min(),
                                    std::numeric_limits<std::uint64_t>::max(),
                                    1e300};
      if (victim.is_number() || draw(random, 0, 3) == 0) victim = sizes[pick(sizes.size())];
      break;
    }
    case 3:  // shapes and floats that agree with each other, and with nothing else
      if (document.contains("floats") && document["floats"].is_array() && !document["floats"].empty()) {
        const int huge = draw(random, 1, 1 << 20);
        document["floats"][0] = huge;
        if (document.contains("generator") && document["generator"].is_array() && !document["generator"].empty())
          document["generator"][0] = Json{{"shape", {huge, 4096}}, {"float32", "AAAA"}};
      }
      break;
    case 4:  // other base64
      if (victim.is_string()) {
        std::string text = victim;
        if (!text.empty()) text[pick(text.size())] = static_cast<char>(draw(random, 0, 127));
        if (draw(random, 0, 2) == 0) text.resize(pick(text.size() + 8), 'A');
        victim = text;
      }
      break;
    default:  // a value from elsewhere in the document
      victim = Json(*all[pick(all.size())]);
  }
}

TEST(Json, NoMutationCrashesOrAllocatesBeyondTheDocument) {
  constexpr std::uint64_t kSeeds = 2000;
  int refused = 0;
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Random random(seed);
    const Generator generator = random_generator(random, 4, 5);
    Json document = to_json(random_decoder(random, generator, static_cast<int>(seed % 4)), generator);
    for (int i = draw(random, 1, 3); i > 0; --i) mutate(document, random);
    const std::size_t size = document.dump(-1, ' ', false, Json::error_handler_t::replace).size();
    allocations::reset();
    const auto read = from_json(document);
    ASSERT_LE(allocations::largest(), 8 * size + 4096);
    if (read) {  // the mutation struck nothing that matters: it must then be usable
      const auto decoded = decode(read->second, read->first,
                                  encoded(read->first, random_scores(random, read->first.classes), 0xFFFFFFFF));
      ASSERT_TRUE(decoded || decoded.error().code != DecodeErrorCode::malformed);
    } else {
      ++refused;
      ASSERT_EQ(read.error().code, DecodeErrorCode::malformed);
      ASSERT_NE(read.error().what.find(": "), std::string::npos);
    }
  }
  EXPECT_GT(refused, static_cast<int>(kSeeds) / 2);
}

}  // namespace
