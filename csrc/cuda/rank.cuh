// What the kernels of rank_metrics share: who is in the gallery, where a query's images are, and what is counted.
#pragma once

#include "../core/rank.h"
#include "launch.h"

namespace reidops {

constexpr int kRankThreads = 128;
constexpr int kRankWarps = kRankThreads / kWarp;
constexpr int kRankBlocks = 8;  // that a multiprocessor has at once: 64 registers a thread
constexpr int kMaxGallery = 1 << 30;
constexpr int kNoImage = kMaxGallery;  // ranks after every image at its distance

// The gallery by identity; all (count,).
struct Gallery {
  const int64_t* ids;      // ascending
  const int64_t* images;   // images[p] has identity ids[p]; those of an identity ascend
  const int64_t* cameras;  // of image j; null: nothing is dropped
  int count;

  __device__ __forceinline__ int image(int p) const { return static_cast<int>(images[p]); }
};

// Both (count,); cameras null as the gallery's.
struct Queries {
  const int64_t *ids, *cameras;
  int64_t count;
};

struct Results {
  unsigned long long* hits;     // (length,): how often the first match came at rank r + 1
  unsigned long long* valid;    // queries that have a match
  int64_t length;               // of the CMC
  double *precision, *penalty;  // (queries,)
  double without_match;         // what a query gets that has none

  __device__ __forceinline__ void add_hit(int64_t rank) const {
    if (rank <= length) atomicAdd(hits + rank - 1, 1ull);
  }
};

// ------------------------------------------------------------------------------------------------------ by one warp

// How many identities lie below `id`, or (`inclusive`) not above it; a warp looks at 32 at once: 3 rounds for a gallery
// of 32,768, 4 for a million.
__device__ __forceinline__ int count_ids_below(const Gallery& gallery, int64_t id, bool inclusive) {
  int begin = 0, length = gallery.count;  // `begin` of them do; of the next `length` it is not yet known
  while (length > 0) {
    const int step = (length - 1) / kWarp + 1, probe = threadIdx.x % kWarp * step;
    bool below = false;
    if (probe < length) {
      const int64_t found = gallery.ids[begin + probe];
      below = found < id || (inclusive && found == id);
    }
    const int lanes = __popc(__ballot_sync(kAllLanes, below));
    if (lanes == 0) break;
    const int known = (lanes - 1) * step + 1;
    begin += known;
    length = min(step - 1, length - known);
  }
  return begin;
}

// sum + the values of the first `count` lanes, one after the other; the same in every lane.
__device__ __forceinline__ double add_in_order(double sum, double value, int count) {
  for (int lane = 0; lane < count; ++lane) sum += __shfl_sync(kAllLanes, value, lane);
  return sum;
}

// --------------------------------------------------------------------------------------------------------- one query

// In shared memory.
struct Query {
  int64_t id, camera;
  int bounds[4];  // its identity: Gallery::images[bounds[0] .. bounds[1]); the junk: those of bounds[2] .. bounds[3]

  // By a block, with barriers before (the last query is done with) and after.
  __device__ __forceinline__ void find(const Gallery& gallery, const Queries& queries, int64_t q) {
    static_assert(kRankWarps == 4, "a warp a bound");
    const int warp = threadIdx.x / kWarp;
    const int64_t own = queries.ids[q];
    const int bound = count_ids_below(gallery, warp < 2 ? own : kJunk, warp % 2 == 1);
    __syncthreads();
    if (threadIdx.x % kWarp == 0) bounds[warp] = bound;
    if (threadIdx.x == 0) {
      id = own;
      if (gallery.cameras != nullptr) camera = queries.cameras[q];
    }
    __syncthreads();
  }

  // Whether an image of its identity is a match, and not dropped.
  __device__ __forceinline__ bool matches(const Gallery& gallery, int image) const {
    return gallery.cameras == nullptr || (id != kJunk && gallery.cameras[image] != camera);
  }
};

}  // namespace reidops
