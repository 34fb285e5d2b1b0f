// The scheduler of machine.h. Compiled without a sanitizer in every flavour; MACHINE_ASAN and MACHINE_RACES say which
// flavour the kernels have.
#include "machine.h"

#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "now.h"
#include "switch.h"

#ifdef MACHINE_ASAN
#include <sanitizer/asan_interface.h>
#else
#define __asan_poison_memory_region(address, bytes)
#define __asan_unpoison_memory_region(address, bytes)
#endif

namespace {
constexpr size_t kGuard = 4096;  // bytes behind dynamic shared memory that no one may touch
}

namespace reidops {
alignas(128) thread_local unsigned char reidops_shared[machine::kSharedBytes + kGuard];
}

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace machine {

Now now;
void go_on();

namespace {

constexpr size_t kStackBytes = 256 << 10;
constexpr int64_t kPlainSharedBytes = 48 << 10;
constexpr int64_t kMostAtomics = 100'000'000;  // of a block that gets on

uint64_t random_state = 1;

uint32_t random_bits() {  // xorshift64*
  random_state ^= random_state >> 12;
  random_state ^= random_state << 25;
  random_state ^= random_state >> 27;
  return static_cast<uint32_t>(random_state * 0x2545f4914f6cdd1dull >> 32);
}
uint32_t random_below(uint64_t count) { return static_cast<uint32_t>(random_bits() * count >> 32); }

template <typename T>
void shuffle(std::vector<T>& values) {
  for (size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[random_below(i)]);
}

// This library's thread-local memory, which is all of its shared memory.
struct TlsOfThisLibrary {
  unsigned char* begin = nullptr;
  size_t bytes = 0;
};

struct Copy {
  void* to;
  const void* from;
  size_t bytes, zeros;
  const void* code;  // where it was begun
  bool here = false;
};

struct Fiber {
  Context context;
  unsigned char* stack = nullptr;
  Place place;  // where it waits
  bool done;
  unsigned round;  // of its warp's exchanges
  std::vector<Copy> open;
  std::vector<std::vector<Copy>> groups;
};

struct Warp {
  uint32_t ready;
  int arrived;
  Place place;
  alignas(16) unsigned char brought[2][kWarp][kLaneBytes];
};

struct Block {
  int arrived, votes, result, done;
  Place place;
  int64_t atomics;
};

Context host;
std::vector<Fiber> fibers;
std::vector<Warp> warps;
std::vector<int> priority;  // the warps; the first that can run does
Block block;
const Launch* current = nullptr;
TlsOfThisLibrary tls;
Limits the_limits;
std::map<const void*, int64_t> allowed_shared;
std::string error;
bool failed = false;
int64_t counts[3] = {};  // launches, blocks, switches

bool same(const Place& a, const Place& b) {
  const auto equal = [](const char* s, const char* t) { return s == t || strcmp(s, t) == 0; };
  return a.line == b.line && equal(a.what, b.what) && equal(a.file, b.file);
}

std::string name(const Place& p) {
  if (p.line == 0) return p.what;
  const char* slash = strrchr(p.file, '/');
  return std::string(p.what) + " (" + (slash ? slash + 1 : p.file) + ":" + std::to_string(p.line) + ")";
}

// ---------------------------------------------------------------------------------------------------------- scheduler

void run_fiber() {
  current->run(current->arguments);
  Fiber& f = fibers[now.thread];
  if (!f.open.empty()) fail({"the end of the kernel", "", 0}, "copies were begun and never committed");
  f.done = true;
  ++block.done;
  go_on();
}

[[noreturn]] void report_deadlock() {
  std::vector<std::pair<std::string, std::vector<int>>> groups;
  for (size_t t = 0; t < fibers.size() && t < blockDim.x; ++t) {
    const std::string where = fibers[t].done ? "finished" : "wait at " + name(fibers[t].place);
    auto it = std::find_if(groups.begin(), groups.end(), [&](auto& g) { return g.first == where; });
    if (it == groups.end()) it = groups.insert(groups.end(), {where, {}});
    it->second.push_back(static_cast<int>(t));
  }
  std::string text;
  for (const auto& [where, threads] : groups) {
    text += "; " + std::to_string(threads.size()) + " threads (" + std::to_string(threads.front()) + " to " +
            std::to_string(threads.back()) + ") " + where;
  }
  fail({"barrier", "", 0}, "deadlock%s", text.c_str());
}

// The thread that runs next, or -1 when all have finished.
int next_thread() {
  const uint32_t random = random_bits();
  if (random % 64 == 0) shuffle(priority);
  for (const int w : priority) {
    const uint32_t ready = warps[w].ready;
    if (ready == 0) continue;
    const int turn = random >> 27;  // the first lane from this one on that can run
    const int lane = (__builtin_ctz(ready >> turn | ready << (32 - turn) % 32) + turn) % kWarp;
    warps[w].ready &= ~(1u << lane);
    return w * kWarp + lane;
  }
  if (block.done == static_cast<int>(blockDim.x)) return -1;
  report_deadlock();
}

void set_thread(int t) {
  now.thread = t;
  now.stack = fibers[t].stack;
  now.stack_end = fibers[t].stack + kStackBytes;
  threadIdx = dim3(t, 0, 0);
}

}  // namespace

// Gives the host thread to the next fiber, or back to the host; returns when this fiber's turn has come again.
void go_on() {
  const int from = static_cast<int>(now.thread), to = next_thread();
  ++counts[2];
  if (to == from) return;
  if (to >= 0) set_thread(to);
  switch_context(fibers[from].context, to >= 0 ? fibers[to].context : host);
}

void fail(const Place& place, const char* format, ...) {
  char text[2000];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  error = name(place) + ", block (" + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ", " +
          std::to_string(blockIdx.z) + "), thread " + std::to_string(now.thread) + ": " + text;
  failed = true;
  switch_context(fibers[now.thread].context, host);
  __builtin_unreachable();
}

namespace {

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
void poison_shared_memory(size_t dynamic) {
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

void run_block(const Launch& launch, dim3 index) {
  const int threads = static_cast<int>(launch.block.x);
  block = {};
  blockIdx = index;
  ++now.block;
  now.block_phase = 0;
  ++counts[1];
  poison_shared_memory(launch.shared_bytes);
  if (static_cast<int>(fibers.size()) < threads) fibers.resize(threads);
  warps.assign(threads / kWarp, Warp{});
  priority.resize(threads / kWarp);
  for (size_t w = 0; w < priority.size(); ++w) {
    priority[w] = static_cast<int>(w);
    warps[w].ready = ~0u;
    memset(warps[w].brought, 0xff, sizeof warps[w].brought);
    now.warp_phase[w] = 0;
  }
  shuffle(priority);
  for (int t = 0; t < threads; ++t) {
    Fiber& f = fibers[t];
    if (f.stack == nullptr) {
      void* memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      mprotect(memory, 4096, PROT_NONE);
      f.stack = static_cast<unsigned char*>(memory);
    }
    f.done = false;
    f.round = 0;
    f.open.clear();
    f.groups.clear();
    __asan_unpoison_memory_region(f.stack + 4096, kStackBytes - 4096);
    make_context(f.context, f.stack, kStackBytes - t % 64 * 1088, run_fiber);  // not all in the same lines of the cache
  }
  const int first = next_thread();
  set_thread(first);
  now.inside = true;
  switch_context(host, fibers[first].context);
  now.inside = false;
  if (!failed && !guard_is_whole(launch.shared_bytes)) {
    error = "a write behind the " + std::to_string(launch.shared_bytes) + " bytes of dynamic shared memory";
    failed = true;
  }
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
  const int64_t most = allowed == allowed_shared.end() ? kPlainSharedBytes : std::max(kPlainSharedBytes, allowed->second);
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
  tls = find_tls();
  now.shared = tls.begin;
  now.shared_end = tls.begin + tls.bytes;
  const uint64_t plane = uint64_t(launch.grid.x) * launch.grid.y, blocks = plane * launch.grid.z;
  std::vector<uint32_t> order;
  if (blocks < (1u << 20)) {
    order.resize(blocks);
    for (uint32_t b = 0; b < blocks; ++b) order[b] = b;
    shuffle(order);
  }
  ++counts[0];
  current = &launch;
  failed = false;
  gridDim = launch.grid;
  blockDim = launch.block;
  now.launch = now.block + 1;
  for (uint64_t i = 0; i < blocks && !failed; ++i) {
    const uint64_t b = order.empty() ? i : order[i];
    run_block(launch, dim3(b % launch.grid.x, b % plane / launch.grid.x, b / plane));
  }
  current = nullptr;
  return failed ? 719 : 0;  // cudaErrorLaunchFailure
}

int allow_shared_memory(const void* kernel, int64_t bytes) {
  if (bytes > the_limits.shared_memory) return refuse(std::to_string(bytes) + " bytes of shared memory, more than the device has");
  allowed_shared[kernel] = bytes;
  return 0;
}

const char* last_error() { return error.c_str(); }
Limits& limits() { return the_limits; }

// ------------------------------------------------------------------------------------------------------- for a kernel

int meet_block(int vote, const Place& place) {
  if (block.arrived == 0) block.place = place;
  if (!same(block.place, place)) {
    fail(place, "other threads of the block are at another barrier, %s", name(block.place).c_str());
  }
  fibers[now.thread].place = place;
  block.votes += vote;
  if (++block.arrived == static_cast<int>(blockDim.x)) {
    block.result = block.votes;
    block.arrived = block.votes = 0;
    ++now.block_phase;
    for (Warp& w : warps) w.ready = ~0u;
  }
  go_on();
  return block.result;
}

void meet_warp(unsigned mask, bool ordered, const Place& place) {
  Warp& warp = warps[now.thread / kWarp];
  if (mask != ~0u) fail(place, "the mask %08x leaves lanes out", mask);
  if (warp.arrived == 0) warp.place = place;
  if (!same(warp.place, place)) fail(place, "other lanes of the warp are at %s", name(warp.place).c_str());
  fibers[now.thread].place = place;
  if (++warp.arrived == kWarp) {
    warp.arrived = 0;
    warp.ready = ~0u;
    if (ordered) ++now.warp_phase[now.thread / kWarp];
  }
  go_on();
}

const unsigned char* exchange(const void* mine, size_t bytes, unsigned mask, const Place& place) {
  Warp& warp = warps[now.thread / kWarp];
  auto& brought = warp.brought[fibers[now.thread].round++ % 2];  // the other one may still be read
  memcpy(brought[now.thread % kWarp], mine, bytes);
  meet_warp(mask, false, place);
  return brought[0];
}

void check_shared(const void* address, size_t bytes, const Place& place) {
  const auto* first = static_cast<const unsigned char*>(address);
  if (first < now.shared || first + bytes > now.shared_end) fail(place, "%p is not in shared memory", address);
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) fail(place, "%p is not aligned to %zu bytes", address, bytes);
}

namespace {

void bring(Copy& c) {
  if (c.here) return;
  memcpy(c.to, c.from, c.bytes - c.zeros);
  memset(static_cast<char*>(c.to) + c.bytes - c.zeros, 0, c.zeros);
  c.here = true;
}

}  // namespace

void copy_async(void* to, const void* from, size_t bytes, size_t zeros, const Place& place) {
  if ((bytes != 4 && bytes != 8 && bytes != 16) || zeros > bytes) fail(place, "a copy of %zu bytes", bytes);
  if (reinterpret_cast<uintptr_t>(from) % bytes != 0) fail(place, "%p is not aligned to %zu bytes", from, bytes);
  check_shared(to, bytes, place);
  const void* code = __builtin_return_address(0);
  note_access(from, bytes - zeros, Access::kRead, code);
  note_access(to, bytes, Access::kCopyBegun, code);
  std::vector<Copy>& open = fibers[now.thread].open;
  open.push_back({to, from, bytes, zeros, code});
  if (random_below(2) == 0) bring(open.back());
}

void commit_copies() {
  Fiber& f = fibers[now.thread];
  f.groups.push_back(std::move(f.open));
  f.open.clear();
}

void wait_for_copies(size_t open_groups) {
  Fiber& f = fibers[now.thread];
  while (f.groups.size() > open_groups) {
    for (Copy& c : f.groups.front()) {
      bring(c);
      note_access(c.from, c.bytes - c.zeros, Access::kRead, c.code);
      note_access(c.to, c.bytes, Access::kCopyArrived, c.code);
    }
    f.groups.erase(f.groups.begin());
  }
}

void before_atomic(const void* address, size_t bytes, const void* code) {
  const Place place{"an atomic operation", "", 0};
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) fail(place, "%p is not aligned to %zu bytes", address, bytes);
  if (++block.atomics > kMostAtomics) fail(place, "the block does not end: does it wait for another block?");
  if (random_below(4) == 0) {
    warps[now.thread / kWarp].ready |= 1u << now.thread % kWarp;
    go_on();
  }
  note_access(address, bytes, Access::kAtomic, code);
}

void fence() { note_fence(); }

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
__attribute__((visibility("default"))) int64_t machine_count(int what) { return machine::counts[what]; }
}
