#include "tests/gpu/heap_hook.hpp"

#include <cerrno>
#include <cstddef>

namespace coppice::gpu {
namespace {

constinit thread_local std::int64_t count = 0;

}  // namespace

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__GLIBC__)
bool heap_is_counted() { return false; }
#else
bool heap_is_counted() { return true; }
#endif
std::int64_t heap_allocations() { return count; }

}  // namespace coppice::gpu

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && defined(__GLIBC__)
// The program's own definitions come before the C library's, for every shared library too.
extern "C" {

void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);

void* malloc(std::size_t bytes) {
  ++coppice::gpu::count;
  return __libc_malloc(bytes);
}
void* calloc(std::size_t many, std::size_t bytes) {
  ++coppice::gpu::count;
  return __libc_calloc(many, bytes);
}
void* realloc(void* place, std::size_t bytes) {
  ++coppice::gpu::count;
  return __libc_realloc(place, bytes);
}
void* memalign(std::size_t alignment, std::size_t bytes) {
  ++coppice::gpu::count;
  return __libc_memalign(alignment, bytes);
}
void* aligned_alloc(std::size_t alignment, std::size_t bytes) { return memalign(alignment, bytes); }
int posix_memalign(void** place, std::size_t alignment, std::size_t bytes) {
  *place = memalign(alignment, bytes);
  return *place ? 0 : ENOMEM;
}

}  // extern "C"
#endif
