// Launches: what is valid, shared memory before and after a block, the order of the blocks; and what tests can set.
#include <link.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <stdexcept>

#include "inside.h"

namespace {
constexpr size_t kGuard = 4096;  // bytes behind dynamic shared memory that no one may touch
}

namespace reidops {
alignas(128) thread_local unsigned char reidops_shared[machine::kSharedBytes + kGuard];
}

namespace machine {
namespace {

constexpr int64_t kPlainSharedBytes = 48 << 10;

Limits the_limits;
std::map<const void*, int64_t> allowed_shared;  // by kernel
int64_t launches = 0;

// This library's thread-local memory, which is all of its shared memory.
struct TlsOfThisLibrary {
  unsigned char* begin = nullptr;
  size_t bytes = 0;
};

// The calling thread's copy.
TlsOfThisLibrary find_tls() {
  reidops::reidops_shared[0] = 0;  // so that it is there
  TlsOfThisLibrary found;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* result) {
        const auto* begin = static_cast<unsigned char*>(info->dlpi_tls_data);
        if (begin == nullptr) return 0;
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const auto& header = info->dlpi_phdr[i];
          if (header.p_type != PT_TLS || reidops::reidops_shared < begin ||
              reidops::reidops_shared >= begin + header.p_memsz) {
            continue;
          }
          *static_cast<TlsOfThisLibrary*>(result) = {const_cast<unsigned char*>(begin), header.p_memsz};
          return 1;
        }
        return 0;
      },
      &found);
  return found;
}

// Before a block: NaN and -1 everywhere.
void poison_shared_memory(const TlsOfThisLibrary& tls, size_t dynamic) {
  unsigned char *shared = reidops::reidops_shared, *shared_end = shared + sizeof reidops::reidops_shared;
  __asan_unpoison_memory_region(tls.begin, tls.bytes);
  memset(tls.begin, 0xff, shared - tls.begin);
  memset(shared, 0xff, dynamic + kGuard);
  memset(shared_end, 0xff, tls.begin + tls.bytes - shared_end);
  __asan_poison_memory_region(shared + dynamic, shared_end - (shared + dynamic));
}

bool guard_is_whole(size_t dynamic) {
#ifdef MACHINE_ASAN
  return true;
#endif
  const unsigned char* guard = reidops::reidops_shared + dynamic;
  return std::all_of(guard, guard + kGuard, [](unsigned char c) { return c == 0xff; });
}

int refuse(const std::string& why) {
  error = "the launch is not valid: " + why;
  return 1;  // cudaErrorInvalidValue
}

int check_launch(const Launch& launch) {
  const dim3 grid = launch.grid, size = launch.block;
  if (grid.x < 1 || grid.y < 1 || grid.z < 1) return refuse("an empty grid");
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) return refuse("a grid beyond the limits");
  if (size.y != 1 || size.z != 1 || size.x < 1 || size.x > kMaxThreads) {
    return refuse("blocks of " + std::to_string(size.x) + " x " + std::to_string(size.y) + " threads");
  }
  if (size.x % kWarp != 0) return refuse("blocks of " + std::to_string(size.x) + " threads, not whole warps");
  const auto allowed = allowed_shared.find(launch.kernel);
  const int64_t most =
      allowed == allowed_shared.end() ? kPlainSharedBytes : std::max(kPlainSharedBytes, allowed->second);
  if (static_cast<int64_t>(launch.shared_bytes) > most) {
    return refuse(std::to_string(launch.shared_bytes) + " bytes of shared memory of " + std::to_string(most));
  }
  return 0;
}

}  // namespace

int launch(const Launch& launch) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  if (const int status = check_launch(launch)) return status;
  const TlsOfThisLibrary tls = find_tls();
  now.shared = tls.begin;
  now.shared_end = tls.begin + tls.bytes;
  const uint64_t plane = uint64_t(launch.grid.x) * launch.grid.y, blocks = plane * launch.grid.z;
  std::vector<uint32_t> order;
  if (blocks < (1u << 20)) {
    order.resize(blocks);
    for (uint32_t b = 0; b < blocks; ++b) order[b] = b;
    shuffle(order);
  }
  ++launches;
  failed = false;
  gridDim = launch.grid;
  blockDim = launch.block;
  now.launch = now.block + 1;
  for (uint64_t i = 0; i < blocks && !failed; ++i) {
    const uint64_t b = order.empty() ? i : order[i];
    blockIdx = dim3(b % launch.grid.x, b % plane / launch.grid.x, b / plane);
    ++now.block;
    now.block_phase = 0;
    poison_shared_memory(tls, launch.shared_bytes);
    run_threads(launch);
    if (!failed && !guard_is_whole(launch.shared_bytes)) {
      error = "a write behind the " + std::to_string(launch.shared_bytes) + " bytes of dynamic shared memory";
      failed = true;
    }
  }
  return failed ? 719 : 0;  // cudaErrorLaunchFailure
}

int allow_shared_memory(const void* kernel, int64_t bytes) {
  if (bytes > the_limits.shared_memory)
    return refuse(std::to_string(bytes) + " bytes of shared memory, more than the device has");
  allowed_shared[kernel] = bytes;
  return 0;
}

const char* last_error() { return error.c_str(); }
Limits& limits() { return the_limits; }

}  // namespace machine

// ---------------------------------------------------------------------------------------------------------- for tests

extern "C" {
__attribute__((visibility("default"))) void machine_seed(uint64_t seed) {
  machine::random_state = seed * 0x9e3779b97f4a7c15ull + 1;
  if (machine::random_state == 0) machine::random_state = 1;
}
__attribute__((visibility("default"))) int machine_set_limit(const char* name, int64_t value) {
  machine::Limits& l = machine::the_limits;
  const std::string n = name;
  int64_t* place = n == "shared_memory"     ? &l.shared_memory
                   : n == "multiprocessors" ? &l.multiprocessors
                   : n == "max_blocks"      ? &l.max_blocks
                   : n == "scratch_bytes"   ? &l.scratch_bytes
                                            : nullptr;
  if (place == nullptr) return 1;
  *place = value;
  return 0;
}
void machine_call_of_what_is_missing() { throw std::runtime_error("this calls a source that did not compile"); }
__attribute__((visibility("default"))) void machine_reset_limits() { machine::the_limits = {}; }
__attribute__((visibility("default"))) int64_t machine_launches() { return machine::launches; }
__attribute__((visibility("default"))) int64_t machine_switches() { return machine::switches; }
}
