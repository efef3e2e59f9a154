#include "coding/checks.hpp"

#include <cmath>
#include <cstdio>
#include <cstdlib>

namespace coppice::coding {

void check(bool kept, const char* promise, std::source_location where) {
  if (kept) return;
  std::fprintf(stderr, "%s:%u: broken promise: %s\n", where.file_name(), static_cast<unsigned>(where.line()), promise);
  std::abort();
}

std::string text_of(ArrivalSet set) {
  std::string text = "{";
  for (int i = 0; i < kWorkersMax; ++i) {
    if ((set >> i & 1U) == 0) continue;
    if (text.size() > 1) text += ", ";
    text += std::to_string(i);
  }
  return text + "}";
}

std::optional<DecodeError> generator_fault(const Generator& generator) {
  const auto mismatch = [](std::string what, int worker = -1) {
    return DecodeError{DecodeErrorCode::shape_mismatch, std::move(what), worker};
  };
  if (generator.classes < 1 || generator.classes > kClassesMax)
    return mismatch("the generator has " + std::to_string(generator.classes) + " classes");
  if (generator.workers.empty() || generator.workers.size() > size_of(kWorkersMax))
    return mismatch("the generator has " + std::to_string(generator.workers.size()) + " workers");
  for (std::size_t i = 0; i < generator.workers.size(); ++i) {
    const WorkerRows& worker = generator.workers[i];
    if (worker.floats < 1 || worker.floats > kFloatsMax ||
        worker.rows.size() != size_of(worker.floats) * size_of(generator.classes))
      return mismatch("the rows of worker " + std::to_string(i) + " are not [floats, classes]", static_cast<int>(i));
  }
  return std::nullopt;
}

std::optional<DecodeError> arrivals_fault(const Generator& generator, const Arrivals& arrivals) {
  if (auto fault = generator_fault(generator)) return fault;
  if (arrivals.responses.size() != generator.workers.size())
    return DecodeError{DecodeErrorCode::shape_mismatch, std::to_string(arrivals.responses.size()) + " responses for " +
                                                            std::to_string(generator.workers.size()) + " workers"};
  bool any = false;
  for (std::size_t i = 0; i < arrivals.responses.size(); ++i) {
    const std::vector<float>& response = arrivals.responses[i];
    if (response.empty()) continue;
    any = true;
    if (response.size() != size_of(generator.workers[i].floats))
      return DecodeError{DecodeErrorCode::shape_mismatch,
                         "worker " + std::to_string(i) + " answered with " + std::to_string(response.size()) +
                             " floats, its rows give " + std::to_string(generator.workers[i].floats),
                         static_cast<int>(i)};
    for (std::size_t j = 0; j < response.size(); ++j)
      if (!std::isfinite(response[j]))
        return DecodeError{DecodeErrorCode::not_finite,
                           "worker " + std::to_string(i) + ": float " + std::to_string(j) + " is not finite",
                           static_cast<int>(i)};
  }
  if (!any) return DecodeError{DecodeErrorCode::nothing_arrived, "no worker answered"};
  return std::nullopt;
}

}  // namespace coppice::coding
