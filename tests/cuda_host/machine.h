// The machine on which CUDA kernels run here: one block at a time, each of its threads a fiber of one host thread.
//
// Fibers and not operating system threads: a barrier of 256 threads would cost hundreds of microseconds on two cores,
// a switch of fibers costs some 20 ns, and the order in which threads run can be drawn from a seed. A fiber runs until
// it waits: at a barrier, at a warp intrinsic or, now and then, at an atomic. Which warp and which lane goes on is
// random and unfair. What goes wrong ends the launch with an error that says where.
#pragma once

#include <cstddef>
#include <cstdint>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// The running thread's; every switch sets them.
extern __attribute__((visibility("hidden"))) dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace machine {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 1024;
constexpr size_t kSharedBytes = 227 << 10;  // of the largest GPU
constexpr size_t kLaneBytes = 64;           // that a lane can bring to a meeting of its warp

// Where in the sources a barrier or an intrinsic stands.
struct Place {
  const char* what;
  const char* file;
  int line;
};

// ------------------------------------------------------------------------------------------------------- for a kernel

// Waits for every thread of the block; the sum of their votes.
int meet_block(int vote, const Place& place);
// Waits for every lane of the warp. `ordered`: memory accesses before and after it are ordered, as by __syncwarp.
void meet_warp(unsigned mask, bool ordered, const Place& place);
// What all lanes of the warp brought, kLaneBytes apart; valid until the warp's next meeting but one.
const unsigned char* exchange(const void* mine, size_t bytes, unsigned mask, const Place& place);

// Fails unless the bytes lie in shared memory, aligned to their number.
void check_shared(const void* address, size_t bytes, const Place& place);

// Copies of the calling thread that arrive at once or only when they are waited for, which is drawn from the seed.
void copy_async(void* to, const void* from, size_t bytes, size_t zeros, const Place& place);
void commit_copies();
void wait_for_copies(size_t open_groups);

// Before an atomic operation on the bytes at `address`, made at `code`; lets other threads go first, now and then.
void before_atomic(const void* address, size_t bytes, const void* code);
void fence();  // __threadfence

[[noreturn]] void fail(const Place& place, const char* format, ...) __attribute__((format(printf, 2, 3)));

// --------------------------------------------------------------------------------------------------------- for a host

struct Launch {
  dim3 grid, block;
  size_t shared_bytes;
  const void* kernel;
  void (*run)(const void* arguments);
  const void* arguments;
};

int launch(const Launch& launch);                            // 0, or an error that last_error() describes
int allow_shared_memory(const void* kernel, int64_t bytes);  // cudaFuncSetAttribute
const char* last_error();

// What the device is said to be; set_limit() in machine.cpp changes it by name.
struct Limits {
  int64_t shared_memory = kSharedBytes;  // a block, when asked for
  int64_t multiprocessors = 132;
  int64_t max_blocks = (int64_t(1) << 31) - 1;
  int64_t scratch_bytes = 64 << 20;
};
Limits& limits();

}  // namespace machine
