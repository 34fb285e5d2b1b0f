// Asynchronous copies from global to shared memory (cp.async).
#pragma once

#include <cuda_runtime.h>

inline void __pipeline_memcpy_async(void* to, const void* from, size_t bytes, size_t zeros = 0, MACHINE_HERE) {
  machine::copy_async(to, from, bytes, zeros, {"__pipeline_memcpy_async", file, line});
}
inline void __pipeline_commit() { machine::commit_copies(); }
inline void __pipeline_wait_prior(size_t open_groups) { machine::wait_for_copies(open_groups); }
