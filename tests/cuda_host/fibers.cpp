// The threads of a block as fibers: who runs next, barriers, exchanges within a warp, asynchronous copies, atomics.
#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "inside.h"
#include "switch.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace machine {

Now now;
std::string error;
bool failed = false;
uint64_t random_state = 1;
int64_t switches = 0;

void go_on();

namespace {

constexpr size_t kStackBytes = 256 << 10;
constexpr int64_t kMostAtomics = 100'000'000;  // of a block that gets on

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

bool same(const Place& a, const Place& b) {
  const auto equal = [](const char* s, const char* t) { return s == t || strcmp(s, t) == 0; };
  return a.line == b.line && equal(a.what, b.what) && equal(a.file, b.file);
}

std::string name(const Place& p) {
  if (p.line == 0) return p.what;
  const char* slash = strrchr(p.file, '/');
  return std::string(p.what) + " (" + (slash ? slash + 1 : p.file) + ":" + std::to_string(p.line) + ")";
}

// ------------------------------------------------------------------------------------------------------------- whose turn

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
  ++switches;
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

void run_threads(const Launch& launch) {
  const int threads = static_cast<int>(launch.block.x);
  current = &launch;
  block = {};
  host.stack = nullptr;  // of whichever thread launches
  if (static_cast<int>(fibers.size()) < threads) fibers.resize(threads);
  warps.resize(threads / kWarp);
  priority.resize(threads / kWarp);
  for (size_t w = 0; w < warps.size(); ++w) {
    warps[w].ready = ~0u;
    warps[w].arrived = 0;
    priority[w] = static_cast<int>(w);
    now.warp_phase[w] = 0;
  }
  shuffle(priority);
  for (int t = 0; t < threads; ++t) {
    Fiber& f = fibers[t];
    if (f.stack == nullptr) {
      void* memory =
          mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
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
}

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
