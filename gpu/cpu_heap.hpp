// gpu/cpu_heap.hpp: a run of a net that leaves the heap alone.
//
// oneDNN's execute fills a small map of its arguments by operator new, a few hundred bytes a primitive, and empties it
// again. A worker that answers within microseconds must neither wait for another thread's malloc nor leave holes, so
// cpu_heap.cpp replaces operator new for the whole program: within a QuietHeap, and on its thread alone, small requests
// are met from a fixed block that is empty again whenever the last of them is returned, by whatever thread and however
// late. Everywhere else it is malloc. A program that replaces operator new and delete itself keeps its own: then a
// QuietHeap does nothing, as under a sanitizer, which has an operator new of its own.
#pragma once

namespace coppice::gpu {

struct HeapBlock;

// While it lives, this thread's operator new takes from a block; within another one it does nothing. One exchange.
class QuietHeap {
 public:
  QuietHeap() noexcept;
  ~QuietHeap();
  QuietHeap(const QuietHeap&) = delete;
  QuietHeap& operator=(const QuietHeap&) = delete;

 private:
  HeapBlock* block_;
};

}  // namespace coppice::gpu
