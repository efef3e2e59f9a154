// gpu/cuda_peer_jobs.hpp: what a reduction does to buffers on one GPU, as jobs (see gpu/cuda_jobs.hpp).
//
// float16 and bfloat16 are combined in float32 and rounded to nearest even at every step; integers wrap around; bytes
// are unsigned; a NaN of either side stays one. Where all buffers lie alike, a thread takes 16 bytes at a time, so that
// memory is the bound; otherwise one element.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "gpu/cuda_jobs.hpp"
#include "gpu/element.hpp"

namespace coppice::gpu {

// How an element is kept, what it is counted in, and the way there and back.
template <class T, class W>
struct Plainly {
  using Kept = T;
  using Wide = W;  // of the division that ends an average
  COPPICE_BOTH static T open(T value) { return value; }
  COPPICE_BOTH static T close(T value) { return value; }
  COPPICE_BOTH static T divided(T value, int by) {
    return static_cast<T>(static_cast<Wide>(value) / static_cast<Wide>(by));
  }
};
struct Float16 {
  using Kept = __half;
  COPPICE_BOTH static float open(__half value) { return __half2float(value); }
  COPPICE_BOTH static __half close(float value) { return __float2half_rn(value); }
  COPPICE_BOTH static __half divided(__half value, int by) { return close(open(value) / static_cast<float>(by)); }
};
struct Bfloat16 {
  using Kept = __nv_bfloat16;
  COPPICE_BOTH static float open(__nv_bfloat16 value) { return __bfloat162float(value); }
  COPPICE_BOTH static __nv_bfloat16 close(float value) { return __float2bfloat16_rn(value); }
  COPPICE_BOTH static __nv_bfloat16 divided(__nv_bfloat16 value, int by) {
    return close(open(value) / static_cast<float>(by));
  }
};

// `does` with how the element is kept.
template <class Does>
COPPICE_BOTH void with_kind(Element element, const Does& does) {
  switch (element) {
    case Element::float32:
      return does(Plainly<float, float>());
    case Element::float16:
      return does(Float16());
    case Element::bfloat16:
      return does(Bfloat16());
    case Element::int32:
      return does(Plainly<std::int32_t, std::int64_t>());
    case Element::int64:
      return does(Plainly<std::int64_t, std::int64_t>());
    case Element::bytes:
      return does(Plainly<std::uint8_t, int>());
  }
}

COPPICE_BOTH float added(float a, float b) { return a + b; }
COPPICE_BOTH std::int32_t added(std::int32_t a, std::int32_t b) {  // wraps around without undefined behaviour
  return static_cast<std::int32_t>(static_cast<std::uint32_t>(a) + static_cast<std::uint32_t>(b));
}
COPPICE_BOTH std::int64_t added(std::int64_t a, std::int64_t b) {
  return static_cast<std::int64_t>(static_cast<std::uint64_t>(a) + static_cast<std::uint64_t>(b));
}
COPPICE_BOTH std::uint8_t added(std::uint8_t a, std::uint8_t b) { return static_cast<std::uint8_t>(a + b); }

// Comparisons that keep `a` when it is a NaN, and take `b` when that is one.
template <class T>
COPPICE_BOTH T combined(Reduction reduction, T a, T b) {
  switch (reduction) {
    case Reduction::min:
      return b < a || b != b ? b : a;
    case Reduction::max:
      return b > a || b != b ? b : a;
    case Reduction::sum:
    case Reduction::avg:
      break;
  }
  return added(a, b);
}

constexpr unsigned kPackBytes = 16;
template <class T>
struct alignas(kPackBytes) Pack {
  T at[kPackBytes / sizeof(T)];
};

// A buffer as a few elements up to where packs begin, packs, and the elements left over. One thread each.
struct Packing {
  unsigned head, packs, tail;
  COPPICE_BOTH unsigned size() const { return head + packs + tail; }
};

// Packs where every place is as far from a multiple of 16 as `place` is. REQUIRES: whole elements.
template <class... Places>
Packing packing_of(std::size_t bytes, std::size_t element, const void* place, const Places*... others) {
  const auto past = [](const void* at) { return reinterpret_cast<std::uintptr_t>(at) % kPackBytes; };
  const std::size_t before = (kPackBytes - past(place)) % kPackBytes;
  if (before > bytes || ((past(others) != past(place)) || ...) || before % element != 0)
    return {0, 0, static_cast<unsigned>(bytes / element)};
  const std::size_t rest = bytes - before;
  return {static_cast<unsigned>(before / element), static_cast<unsigned>(rest / kPackBytes),
          static_cast<unsigned>(rest % kPackBytes / element)};
}

// The index of the element that thread i takes, given how many a pack holds. REQUIRES: i is not a pack's.
COPPICE_BOTH std::size_t single(const Packing& packing, unsigned i, unsigned in_pack) {
  return i < packing.head ? i : i - packing.packs + static_cast<std::size_t>(packing.packs) * in_pack;
}
COPPICE_BOTH bool takes_pack(const Packing& packing, unsigned i) {
  return i >= packing.head && i - packing.head < packing.packs;
}

// out[i] = a[i] ∘ b[i]; avg adds. out may be a or b.
struct Combine {
  void* out;
  const void *a, *b;
  Packing packing;
  Element element;
  Reduction reduction;
  COPPICE_BOTH unsigned size() const { return packing.size(); }
  COPPICE_BOTH void operator()(unsigned i) const {
    with_kind(element, [this, i](auto kind) { take(kind, i); });
  }

 private:
  template <class Kind>
  COPPICE_BOTH typename Kind::Kept one(Kind, typename Kind::Kept left, typename Kind::Kept right) const {
    return Kind::close(combined(reduction, Kind::open(left), Kind::open(right)));
  }
  template <class Kind>
  COPPICE_BOTH void take(Kind kind, unsigned i) const {
    using T = typename Kind::Kept;
    constexpr unsigned kInPack = kPackBytes / sizeof(T);
    T* to = static_cast<T*>(out);
    const T *left = static_cast<const T*>(a), *right = static_cast<const T*>(b);
    if (takes_pack(packing, i)) {
      const std::size_t first = packing.head + static_cast<std::size_t>(i - packing.head) * kInPack;
      auto x = *reinterpret_cast<const Pack<T>*>(left + first);
      const auto y = *reinterpret_cast<const Pack<T>*>(right + first);
#ifdef __CUDACC__
#pragma unroll
#endif
      for (unsigned k = 0; k < kInPack; ++k) x.at[k] = one(kind, x.at[k], y.at[k]);
      *reinterpret_cast<Pack<T>*>(to + first) = x;
    } else {
      const std::size_t at = single(packing, i, kInPack);
      to[at] = one(kind, left[at], right[at]);
    }
  }
};

// What is left to do once all ranks are in: data[i] /= ranks; integers drop the remainder.
struct Average {
  void* data;
  Packing packing;
  Element element;
  int ranks;
  COPPICE_BOTH unsigned size() const { return packing.size(); }
  COPPICE_BOTH void operator()(unsigned i) const {
    with_kind(element, [this, i](auto kind) { take(kind, i); });
  }

 private:
  template <class Kind>
  COPPICE_BOTH void take(Kind, unsigned i) const {
    using T = typename Kind::Kept;
    constexpr unsigned kInPack = kPackBytes / sizeof(T);
    T* values = static_cast<T*>(data);
    if (takes_pack(packing, i)) {
      auto* pack =
          reinterpret_cast<Pack<T>*>(values + packing.head + static_cast<std::size_t>(i - packing.head) * kInPack);
      auto x = *pack;
#ifdef __CUDACC__
#pragma unroll
#endif
      for (unsigned k = 0; k < kInPack; ++k) x.at[k] = Kind::divided(x.at[k], ranks);
      *pack = x;
    } else {
      T& value = values[single(packing, i, kInPack)];
      value = Kind::divided(value, ranks);
    }
  }
};

// REQUIRES: buffers of whole elements, aligned as their elements are, of less than 2^32 of them.
inline Combine combine_of(Element element, Reduction reduction, void* out, const void* a, const void* b,
                          std::size_t bytes) {
  return {out, a, b, packing_of(bytes, size_of(element), out, a, b), element, reduction};
}
inline Average average_of(Element element, int ranks, void* data, std::size_t bytes) {
  return {data, packing_of(bytes, size_of(element), data), element, ranks};
}

}  // namespace coppice::gpu
