// Tasks handed to torch's threads one by one, so that uneven ones balance; and aligned scratch memory.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace reidops {

inline int64_t num_workers() { return static_cast<int64_t>(torch::stable::get_num_threads()); }

constexpr int64_t kWorkPerWorker =
    1 << 22;  // multiply-adds below which waking another thread costs more than it brings

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How far apart rows of `width` results are laid: not so that the rows of a register tile share a few lines of the
// first-level cache.
inline int64_t row_stride(int64_t width, int64_t lanes) { return width % 128 == 0 ? width + lanes : width; }

// run(task, worker) for every task of 0 .. count - 1; worker < num_workers() tells whose scratch memory to use.
// work: about how many multiply-adds a task takes.
template <typename Run>
void parallel_tasks(int64_t count, int64_t work, const Run& run) {
  const int64_t wanted = std::max<int64_t>(1, count * std::max<int64_t>(work, 1) / kWorkPerWorker);
  const int64_t workers = std::min({num_workers(), count, wanted});
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t) {
    for (int64_t task = next.fetch_add(1); task < count; task = next.fetch_add(1)) run(task, begin);
  });
}

// run(begin, end) over pieces of 0 .. count - 1, one a thread. work: about how many multiply-adds an item takes.
template <typename Run>
void parallel_ranges(int64_t count, int64_t work, const Run& run) {
  const int64_t grain = std::max<int64_t>(1, kWorkPerWorker / std::max<int64_t>(work, 1));
  if (count > 0) torch::stable::parallel_for(0, count, grain, run);
}

constexpr int64_t kHugePage = int64_t(2) << 20;

// Asks the system for pages of 2 MB where the memory is not yet in use: one fault each instead of 512.
inline void advise_huge_pages(void* memory, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  const uintptr_t page = static_cast<uintptr_t>(kHugePage), from = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t first = (from + page - 1) / page * page, last = (from + static_cast<uintptr_t>(bytes)) / page * page;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

// Uninitialised memory on a cache line boundary that grows and is kept. Much of it lies in pages of 2 MB where the system
// has them: products read many rows of panels at once, each on pages of its own.
template <typename T>
class Scratch {
 public:
  T* reserve(int64_t count) {
    if (count > size_) {
      data_.reset();
      const int64_t wanted = count * static_cast<int64_t>(sizeof(T)), line = wanted >= kHugePage ? kHugePage : 64;
      const size_t bytes = static_cast<size_t>(std::max<int64_t>(ceil_div(wanted, line), 1) * line);
      T* fresh = static_cast<T*>(std::aligned_alloc(static_cast<size_t>(line), bytes));
      if (fresh == nullptr) throw std::bad_alloc();
      if (line == kHugePage) advise_huge_pages(fresh, static_cast<int64_t>(bytes));
      data_.reset(fresh);
      size_ = count;
    }
    return data_.get();
  }
  T* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
  int64_t size_ = 0;
};

}  // namespace reidops
