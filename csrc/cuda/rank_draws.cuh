// The CUHK03 protocol of rank_metrics: one image of every identity, drawn many times.
#pragma once

#include "rank.cuh"

namespace reidops {

// The images of one identity, Gallery::images[begin] .. [begin + size - 1].
struct Identity {
  int begin, size;
};

// identities: (up to gallery,), in no certain order, and their number. A thread an image.
__global__ void __launch_bounds__(kRankThreads)
    list_identities_kernel(Gallery gallery, Identity* __restrict__ identities, unsigned long long* number) {
  const int p = blockIdx.x * kRankThreads + threadIdx.x;
  if (p >= gallery.count || (p > 0 && gallery.ids[p - 1] == gallery.ids[p])) return;
  int last = p, beyond = gallery.count;  // the identity's last image lies from `last` to before `beyond`
  while (beyond - last > 1) {
    const int middle = last + (beyond - last) / 2;
    (gallery.ids[middle] == gallery.ids[p] ? last : beyond) = middle;
  }
  identities[atomicAdd(number, 1ull)] = {p, last - p + 1};
}

// Calls visit(lanes, image) for every 32 images of the query's identity, until it returns true; bits of `lanes` mark
// the matches. By a warp.
template <typename Visit>
__device__ __forceinline__ void visit_matches(const Gallery& gallery, const Query& query, Visit visit) {
  for (int first = query.bounds[0]; first < query.bounds[1]; first += kWarp) {
    const int p = first + threadIdx.x % kWarp;
    const int image = p < query.bounds[1] ? gallery.image(p) : kNoImage;
    if (visit(__ballot_sync(kAllLanes, image != kNoImage && query.matches(gallery, image)), image)) break;
  }
}

__device__ __forceinline__ int count_matches(const Gallery& gallery, const Query& query) {
  int count = 0;
  visit_matches(gallery, query, [&](unsigned lanes, int) {
    count += __popc(lanes);
    return false;
  });
  return count;
}

// The match that has `before` matches before it in the gallery.
__device__ __forceinline__ int nth_match(const Gallery& gallery, const Query& query, int before) {
  const int lane = threadIdx.x % kWarp;
  int match = 0;
  visit_matches(gallery, query, [&](unsigned lanes, int image) {
    const bool mine = (lanes >> lane & 1) && count_below(lanes, lane) == before;
    const unsigned found = __ballot_sync(kAllLanes, mine);
    if (found != 0) match = __shfl_sync(kAllLanes, image, __ffs(found) - 1);
    before -= __popc(lanes);
    return found != 0;
  });
  return match;
}

// distance: (queries, gallery), rows `pitch` apart; identities: (*number,). A block a query, a warp a draw, a lane an
// identity, whose image is drawn, looked up and compared. With 750 identities and 100 draws a query has 75,000 of them,
// each 60 instructions: 0.14 million of a warp. That bounds it, at 0.5 ms for 3,368 queries; the row is read from the
// caches but for the first time.
template <typename T>
__global__ void __launch_bounds__(kRankThreads, kRankBlocks)
    draw_metrics_kernel(const T* __restrict__ distance, int64_t pitch, Queries queries, Gallery gallery,
                        const Identity* __restrict__ identities, const unsigned long long* __restrict__ number,
                        int64_t num_draws, int64_t seed, Results results) {
  __shared__ Query query;
  __shared__ unsigned ranks[kWarp];  // of 32 draws
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, count = static_cast<int>(*number);
  for (int64_t q = blockIdx.x; q < queries.count; q += gridDim.x) {
    const T* row = distance + q * pitch;
    query.find(gallery, queries, q);
    const int matches = count_matches(gallery, query);
    double sum = 0;
    for (int64_t first = 0; first < num_draws && matches > 0; first += kWarp) {
      const int draws = static_cast<int>(min(int64_t(kWarp), num_draws - first));
      for (int d = warp; d < draws; d += kRankWarps) {
        const int64_t drawn = draw_image(seed, q, first + d, query.id, matches);
        const int match = nth_match(gallery, query, static_cast<int>(drawn));
        const T match_distance = rankable(row[match]);
        unsigned nearer = 0;
#pragma unroll 2
        for (int i = lane; i < count; i += kWarp) {
          const Identity other = identities[i];
          const int64_t id = gallery.ids[other.begin];
          if (id == query.id || (gallery.cameras != nullptr && id == kJunk)) continue;
          const int64_t place = draw_image(seed, q, first + d, id, other.size);
          const int image = gallery.image(other.begin + static_cast<int>(place));
          nearer += ranks_before<T>(rankable(row[image]), image, match_distance, match);
        }
        nearer = warp_sum(nearer);
        if (lane == 0) ranks[d] = nearer + 1;
      }
      __syncthreads();
      if (warp == 0) {
        if (lane < draws) results.add_hit(ranks[lane]);
        sum = add_in_order(sum, lane < draws ? 1.0 / static_cast<double>(ranks[lane]) : 0.0, draws);
      }
      __syncthreads();
    }
    if (threadIdx.x == 0) {
      const double score = matches > 0 ? sum / static_cast<double>(num_draws) : results.without_match;
      results.precision[q] = results.penalty[q] = score;
      if (matches > 0) atomicAdd(results.valid, 1ull);
    }
  }
}

}  // namespace reidops
