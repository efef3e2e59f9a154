// runtime/error.hpp: a fault of the world, in one line that a person can act on.
#pragma once

#include <cstdint>
#include <string>
#include <tl/expected.hpp>
#include <vector>

namespace coppice::runtime {

enum class ErrorCode : std::uint8_t {
  bad_input = 1,  // a file, key or flag that is wrong: exit status 2
  failed,         // the work itself went wrong: exit status 1
  rank_gone,      // failed, because ranks of a group are gone for good: `ranks`
};

struct Error {
  ErrorCode code;
  std::string what;  // names the file, field, host or peer at fault and what to do next
  std::vector<int> ranks = {};  // of rank_gone: which, ascending; the same at every survivor
};

template <class T>
using Expected = tl::expected<T, Error>;

inline tl::unexpected<Error> bad_input(std::string what) {
  return tl::unexpected(Error{ErrorCode::bad_input, std::move(what)});
}
inline tl::unexpected<Error> failed(std::string what) {
  return tl::unexpected(Error{ErrorCode::failed, std::move(what)});
}

}  // namespace coppice::runtime
