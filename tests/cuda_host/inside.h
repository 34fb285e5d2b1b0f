// What the machine's own sources share. They are compiled without a sanitizer in every flavour; MACHINE_ASAN and
// MACHINE_RACES say which flavour the kernels have.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "machine.h"

#ifdef MACHINE_ASAN
#include <sanitizer/asan_interface.h>
#else
#define __asan_poison_memory_region(address, bytes)
#define __asan_unpoison_memory_region(address, bytes)
#endif

namespace machine {

// The moment a kernel is at.
struct Now {
  bool inside = false;             // a kernel runs
  uint32_t launch = 0, block = 0;  // blocks are numbered through all launches; launch: its first block
  uint32_t thread = 0;
  uint32_t block_phase = 0;                                      // barriers of the block so far
  uint32_t warp_phase[kMaxThreads / kWarp] = {};                 // __syncwarp()s of each warp so far
  const unsigned char *stack = nullptr, *stack_end = nullptr;    // of the fiber
  const unsigned char *shared = nullptr, *shared_end = nullptr;  // all shared memory
};
extern Now now;

void run_threads(const Launch& launch);  // of one block, blockIdx, to their end or until one has `failed`
extern bool failed;
extern std::string error;
extern int64_t switches;  // so far

extern uint64_t random_state;

inline uint32_t random_bits() {  // xorshift64*
  random_state ^= random_state >> 12;
  random_state ^= random_state << 25;
  random_state ^= random_state >> 27;
  return static_cast<uint32_t>(random_state * 0x2545f4914f6cdd1dull >> 32);
}
inline uint32_t random_below(uint64_t count) { return static_cast<uint32_t>(random_bits() * count >> 32); }

template <typename T>
void shuffle(std::vector<T>& values) {
  for (size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[random_below(i)]);
}

// What the race detector (races.cpp) is told.
enum class Access { kRead, kWrite, kAtomic, kCopyBegun, kCopyArrived };

#ifdef MACHINE_RACES
void note_access(const void* address, size_t bytes, Access access, const void* code);
void note_fence();
#else
inline void note_access(const void*, size_t, Access, const void*) {}
inline void note_fence() {}
#endif

}  // namespace machine
