// Finds accesses of two CUDA threads to the same byte that nothing orders: what compute-sanitizer's racecheck does, for
// global memory too. The compiler's half of ThreadSanitizer (-fsanitize=thread) reports every access to the functions
// at the foot; the judgement is ours, because the usual runtime does not know what orders CUDA threads:
//
//   a barrier of the block, its threads;   __syncwarp, the lanes of its warp (shuffles and votes do not);
//   the end of a launch, everything;       __threadfence and then an atomic, those that take the atomic up after it.
//
// Nothing orders two blocks of a launch. Nothing depends on the order in which threads happened to run, so one run is
// enough for the accesses that it makes.
#include <dlfcn.h>
#include <stdio.h>

#include <cstring>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "inside.h"

namespace machine {
namespace {

// An access, or several that nothing orders among each other. 16 bytes: most of the time goes into fetching them.
struct Record {
  enum Kind : uint32_t { kThread, kLanes, kWarps, kBlocks, kOpenCopy };
  uint32_t block = 0, block_phase = 0;
  uint32_t thread : 10, kind : 3, atomic : 1, warp_phase : 18;  // a phase is compared with the present one only
  uint32_t code = 0;                                            // where in the library
  Record() : thread(0), kind(0), atomic(0), warp_phase(0) {}
};
static_assert(sizeof(Record) == 16 && kMaxThreads == 1 << 10, "the fields fill the record");

struct Cell {
  Record written, read;
};

// The cells of 4,096 bytes: one for each word, or for each part of a word that has been accessed by itself.
struct Page {
  static constexpr uintptr_t kBytes = 4096;
  uintptr_t granule = 4;
  std::vector<Cell> cells{kBytes / 4};

  void split() {
    std::vector<Cell> finer(2 * cells.size());
    for (size_t i = 0; i < finer.size(); ++i) finer[i] = cells[i / 2];
    cells = std::move(finer);
    granule /= 2;
  }
};

Page& page_of(uintptr_t address) {
  constexpr size_t kMostPages = 8192;  // 256 MB and more of cells; what is from earlier launches can go
  static std::unordered_map<uintptr_t, Page> pages;
  static std::pair<uintptr_t, Page*> recent[64];
  static uint32_t launch = 0;
  if (launch != now.launch) {
    launch = now.launch;
    if (pages.size() > kMostPages) {
      pages.clear();
      for (auto& entry : recent) entry = {};
    }
  }
  const uintptr_t number = address / Page::kBytes;
  auto& [recent_number, page] = recent[number % 64];
  if (recent_number != number) {
    recent_number = number;
    page = &pages[number];
  }
  return *page;
}

// What a fence and then an atomic published: of each block, everything before a phase, and one thread's own accesses in
// that phase.
struct Point {
  uint32_t phase = 0;
  uint32_t thread = 0;
};
using Knowledge = std::map<uint32_t, Point>;             // by block
std::unordered_map<uintptr_t, Knowledge> published;      // by the atomic's address
std::map<uint32_t, Knowledge> known_to_threads, fenced;  // of the running block; fenced: at their last fence
Knowledge known_to_block;
uint32_t knowing_block = 0, knowing_phase = 0;

void merge(Knowledge& to, const Knowledge& from) {
  for (const auto& [block, point] : from) {
    const auto [it, fresh] = to.insert({block, point});
    if (!fresh && it->second.phase < point.phase) it->second = point;
  }
}

// Starts anew with each block; a barrier tells the block what its threads know.
void update_knowledge() {
  if (knowing_block != now.block) {
    known_to_threads.clear();
    fenced.clear();
    known_to_block.clear();
    if (knowing_block < now.launch) published.clear();
  } else if (knowing_phase != now.block_phase) {
    for (const auto& [thread, knowledge] : known_to_threads) merge(known_to_block, knowledge);
    known_to_threads.clear();
  }
  knowing_block = now.block;
  knowing_phase = now.block_phase;
}

bool knows(const Knowledge& knowledge, const Record& r) {
  const auto it = knowledge.find(r.block);
  if (it == knowledge.end() || r.kind == Record::kBlocks) return false;
  return r.block_phase < it->second.phase ||
         (r.block_phase == it->second.phase && r.kind == Record::kThread && r.thread == it->second.thread);
}

bool known(const Record& r) {
  if (published.empty()) return false;
  update_knowledge();
  const auto own = known_to_threads.find(now.thread);
  return knows(known_to_block, r) || (own != known_to_threads.end() && knows(own->second, r));
}

// An atomic takes up what others published there, and publishes what its thread knew at its last fence.
void exchange_knowledge(uintptr_t address) {
  update_knowledge();
  const auto here = published.find(address);
  if (here != published.end()) merge(known_to_threads[now.thread], here->second);
  const auto fence = fenced.find(now.thread);
  if (fence != fenced.end()) merge(published[address], fence->second);
}

uint32_t warp_phase() { return now.warp_phase[now.thread / kWarp] & ((1u << 18) - 1); }

// Whether everything in the record comes before what the running thread does now.
inline bool ordered(const Record& r, bool shared) {
  if (r.block < now.launch) return true;
  if (r.block != now.block || r.kind == Record::kBlocks) return shared || known(r);  // each block has its shared memory
  if (r.kind == Record::kOpenCopy) return false;                                     // it may come at any time
  if (r.block_phase != now.block_phase) return true;
  if (r.kind == Record::kThread && r.thread == now.thread) return true;
  return r.kind != Record::kWarps && r.thread / kWarp == now.thread / kWarp && r.warp_phase != warp_phase();
}

// The running thread joins the record, `together` with those in it that nothing orders before it.
inline void add(Record& r, bool together, bool atomic, uint32_t code) {
  uint32_t kind = Record::kThread;
  if (together) {
    const uint32_t apart = r.block != now.block                     ? Record::kBlocks
                           : r.thread / kWarp != now.thread / kWarp ? Record::kWarps
                                                                    : Record::kLanes;
    kind = r.kind > apart ? r.kind : apart;
  }
  r.block = now.block;
  r.block_phase = now.block_phase;
  r.thread = now.thread;
  r.kind = kind;
  r.atomic = atomic;
  r.warp_phase = warp_phase();
  r.code = code;
}

// ------------------------------------------------------------------------------------------------------------- report

uintptr_t library_base() {
  static const uintptr_t base = [] {
    Dl_info info{};
    dladdr(reinterpret_cast<void*>(&note_access), &info);
    return reinterpret_cast<uintptr_t>(info.dli_fbase);
  }();
  return base;
}

// "file.cu:12" of the innermost place outside of this folder, by binutils' addr2line.
std::string line_of(uint32_t code) {
  if (code == 0) return "";
  Dl_info info{};
  dladdr(reinterpret_cast<void*>(&note_access), &info);
  char command[4096], line[4096];
  snprintf(command, sizeof command, "addr2line -s -i -e '%s' 0x%x 2>/dev/null", info.dli_fname, code - 1);
  std::string found;
  if (FILE* pipe = popen(command, "r")) {
    while (fgets(line, sizeof line, pipe)) {
      std::string text(line, strcspn(line, " \n"));
      if (found.empty() || found.find("intrinsics.h") == 0 || found.find("cuda_pipeline.h") == 0) found = text;
    }
    pclose(pipe);
  }
  return found.empty() || found[0] == '?' ? " (in the library at " + std::to_string(code) + ")" : " (" + found + ")";
}

std::string who(const Record& r) {
  if (r.block != now.block) return "another block's thread " + std::to_string(r.thread);
  if (r.thread == now.thread) return r.kind == Record::kOpenCopy ? "the same thread" : "several threads";
  return "thread " + std::to_string(r.thread);
}

[[noreturn]] void report(const char* mine, size_t bytes, const char* others, const Record& r, uint32_t code) {
  const char* what = r.kind == Record::kOpenCopy ? "copy that has not been waited for" : others;
  fail({"race", "", 0}, "%s of %zu bytes%s and a %s by %s%s, with nothing that orders them", mine, bytes,
       line_of(code).c_str(), what, who(r).c_str(), line_of(r.code).c_str());
}

}  // namespace

void note_access(const void* pointer, size_t bytes, Access access, const void* code_pointer) {
  const auto* p = static_cast<const unsigned char*>(pointer);
  if (!now.inside || (p >= now.stack && p < now.stack_end)) return;
  const bool shared = p >= now.shared && p < now.shared_end;
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  const auto code =
      static_cast<uint32_t>(code_pointer ? reinterpret_cast<uintptr_t>(code_pointer) - library_base() : 0);
  const bool atomic = access == Access::kAtomic, writes = access != Access::kRead;
  for (uintptr_t a = address; a < address + bytes;) {
    Page& page = page_of(a);
    while ((address | bytes) % page.granule != 0) page.split();
    Cell& cell = page.cells[a % Page::kBytes / page.granule];
    a += page.granule;
    if (access == Access::kCopyArrived) cell.written = {};
    const bool after_writes = ordered(cell.written, shared), after_reads = ordered(cell.read, shared);
    if (!after_writes && !(atomic && cell.written.atomic)) {
      report(writes ? "write" : "read", bytes, cell.written.atomic ? "atomic" : "write", cell.written, code);
    }
    if (writes && !after_reads) report("write", bytes, "read", cell.read, code);
    if (writes) {
      add(cell.written, !after_writes, atomic, code);
      if (access == Access::kCopyBegun) cell.written.kind = Record::kOpenCopy;
    } else if (cell.read.kind != Record::kBlocks || cell.read.block < now.launch) {  // which no reader adds to
      add(cell.read, !after_reads, false, code);
    }
  }
  if (atomic && !shared) exchange_knowledge(address);
}

void note_fence() {
  update_knowledge();
  Knowledge& mine = fenced[now.thread];
  mine = known_to_block;
  merge(mine, known_to_threads[now.thread]);
  merge(mine, {{now.block, {now.block_phase, now.thread}}});
}

}  // namespace machine

// --------------------------------------------------------------------------------- what the compiler puts into the code

using machine::Access;
using machine::note_access;

namespace {
void check_alignment(const void* address, size_t bytes) {
  if (machine::now.inside && reinterpret_cast<uintptr_t>(address) % bytes != 0) {
    machine::fail({"memory", "", 0}, "an access of %zu bytes at %p, which is not aligned to that", bytes, address);
  }
}
}  // namespace

extern "C" {
#define MACHINE_TSAN_ACCESS(bytes)                                            \
  void __tsan_read##bytes(void* address) {                                    \
    check_alignment(address, bytes);                                          \
    note_access(address, bytes, Access::kRead, __builtin_return_address(0));  \
  }                                                                           \
  void __tsan_write##bytes(void* address) {                                   \
    check_alignment(address, bytes);                                          \
    note_access(address, bytes, Access::kWrite, __builtin_return_address(0)); \
  }                                                                           \
  void __tsan_unaligned_read##bytes(void* address) {                          \
    note_access(address, bytes, Access::kRead, __builtin_return_address(0));  \
  }                                                                           \
  void __tsan_unaligned_write##bytes(void* address) {                         \
    note_access(address, bytes, Access::kWrite, __builtin_return_address(0)); \
  }
MACHINE_TSAN_ACCESS(1)
MACHINE_TSAN_ACCESS(2)
MACHINE_TSAN_ACCESS(4)
MACHINE_TSAN_ACCESS(8)
MACHINE_TSAN_ACCESS(16)
void __tsan_read_range(void* address, size_t bytes) {
  note_access(address, bytes, Access::kRead, __builtin_return_address(0));
}
void __tsan_write_range(void* address, size_t bytes) {
  note_access(address, bytes, Access::kWrite, __builtin_return_address(0));
}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}

// Atomics of the host's own code, as in std::shared_ptr.
#define MACHINE_TSAN_UPDATE(bits, type, name) \
  type __tsan_atomic##bits##_##name(type* address, type value, int) { return __atomic_##name(address, value, 5); }
#define MACHINE_TSAN_ATOMIC(bits, type)                                                                     \
  type __tsan_atomic##bits##_load(const type* address, int) { return __atomic_load_n(address, 5); }         \
  void __tsan_atomic##bits##_store(type* address, type value, int) { __atomic_store_n(address, value, 5); } \
  type __tsan_atomic##bits##_exchange(type* address, type value, int) {                                     \
    return __atomic_exchange_n(address, value, 5);                                                          \
  }                                                                                                         \
  int __tsan_atomic##bits##_compare_exchange_strong(type* address, type* expected, type value, int, int) {  \
    return __atomic_compare_exchange_n(address, expected, value, false, 5, 5);                              \
  }                                                                                                         \
  int __tsan_atomic##bits##_compare_exchange_weak(type* address, type* expected, type value, int, int) {    \
    return __atomic_compare_exchange_n(address, expected, value, true, 5, 5);                               \
  }                                                                                                         \
  MACHINE_TSAN_UPDATE(bits, type, fetch_add)                                                                \
  MACHINE_TSAN_UPDATE(bits, type, fetch_sub)                                                                \
  MACHINE_TSAN_UPDATE(bits, type, fetch_and)                                                                \
  MACHINE_TSAN_UPDATE(bits, type, fetch_or)
MACHINE_TSAN_ATOMIC(8, uint8_t)
MACHINE_TSAN_ATOMIC(32, uint32_t)
MACHINE_TSAN_ATOMIC(64, uint64_t)
}
