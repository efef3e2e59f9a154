#include "runtime/msgpack.hpp"

#include <exception>
#include <new>
#include <string>

namespace coppice::runtime {

Expected<msgpack::object_handle> unpack(std::span<const std::byte> bytes, const UnpackLimits& limits) {
  constexpr std::size_t kNoExtensions = 0;  // no message of ours holds one
  const msgpack::unpack_limit limit(limits.array, limits.map, limits.string, limits.binary, kNoExtensions,
                                    limits.depth);
  try {
    std::size_t offset = 0;
    // No reference function: the handle owns copies and may outlive the bytes.
    auto handle =
        msgpack::unpack(reinterpret_cast<const char*>(bytes.data()), bytes.size(), offset, nullptr, nullptr, limit);
    if (offset == bytes.size()) return handle;
    return bad_input("msgpack: " + std::to_string(bytes.size() - offset) + " bytes follow the end of the object");
  } catch (const msgpack::insufficient_bytes&) {
    return bad_input("msgpack: the bytes end inside the object");
  } catch (const msgpack::size_overflow& error) {
    return bad_input("msgpack: beyond a limit: " + std::string(error.what()));
  } catch (const msgpack::unpack_error& error) {
    return bad_input("msgpack: malformed: " + std::string(error.what()));
  } catch (const std::bad_alloc&) {
    return bad_input("msgpack: too large for the memory that is left");
  } catch (const std::exception& error) {
    return bad_input("msgpack: malformed: " + std::string(error.what()));
  }
}

}  // namespace coppice::runtime
