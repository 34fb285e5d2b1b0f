// The moment a kernel is at: what the scheduler (machine.cpp) tells the race detector (races.cpp).
#pragma once

#include "machine.h"

namespace machine {

struct Now {
  bool inside = false;                          // a kernel runs
  uint32_t launch = 0, block = 0;               // blocks are numbered through all launches; launch: its first block
  uint32_t thread = 0;
  uint32_t block_phase = 0;                     // barriers of the block so far
  uint32_t warp_phase[kMaxThreads / kWarp] = {};  // __syncwarp()s of each warp so far
  const unsigned char *stack = nullptr, *stack_end = nullptr;    // of the fiber
  const unsigned char *shared = nullptr, *shared_end = nullptr;  // all shared memory
};
extern Now now;

enum class Access { kRead, kWrite, kAtomic, kCopyBegun, kCopyArrived };

#ifdef MACHINE_RACES
void note_access(const void* address, size_t bytes, Access access, const void* code);
void note_fence();
#else
inline void note_access(const void*, size_t, Access, const void*) {}
inline void note_fence() {}
#endif

}  // namespace machine
