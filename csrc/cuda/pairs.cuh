// The distance of single pairs of points, by a warp, from the differences themselves.
#pragma once

#include "../core/stripe.h"
#include "launch.h"

namespace reidops {

// |u - v|^2 of two rows of d channels; the same in every lane, and the same for (v, u).
template <typename T>
__device__ __forceinline__ T squared_distance_in_warp(const T* u, const T* v, int64_t d) {
  T sum = T(0);
#pragma unroll 4
  for (int64_t k = threadIdx.x % kWarp; k < d; k += kWarp) sum += (u[k] - v[k]) * (u[k] - v[k]);
  return warp_sum(sum);
}

constexpr int kMostStripes = 4 * kWarp;  // of an image, where a warp walks the path in registers

// The shortest path (core/path.h) over the stripe distances of two images, u and v: (stripes, d). Lane l keeps the
// totals of columns l, l + 32, ...; up to kMostStripes.
template <typename T>
__device__ __forceinline__ T dmli_in_warp(const T* u, const T* v, int stripes, int64_t d) {
  constexpr int kSlots = kMostStripes / kWarp;
  const int lane = threadIdx.x % kWarp;
  T totals[kSlots] = {}, left = T(0);
  for (int a = 0; a < stripes; ++a) {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      for (int l = 0; l < kWarp && slot * kWarp + l < stripes; ++l) {
        const int b = slot * kWarp + l;
        const T cost = tanh_half(sqrt(squared_distance_in_warp(u + a * d, v + b * d, d)));
        const T up = __shfl_sync(kAllLanes, totals[slot], l);
        const T before = a > 0 && b > 0 ? (up < left ? up : left) : a > 0 ? up : b > 0 ? left : T(0);
        left = cost + before;
        if (lane == l) totals[slot] = left;
      }
    }
  }
  return left;
}

// Distances of the points of a re-ranking among each other: what was given of squared Euclidean distance of features,
// DMLI of stripes (their sum where both are), or a matrix. Queries come first.
template <typename T>
struct Pairs {
  const T* points = nullptr;   // (total, depth)
  const T* stripes = nullptr;  // (total, stripe_count, stripe_depth)
  int64_t depth = 0, stripe_depth = 0;
  int stripe_count = 0;
  const T *query_gallery = nullptr, *query_query = nullptr, *gallery_gallery = nullptr;  // (M, N), (M, M), (N, N)
  int64_t queries = 0, gallery = 0;

  // One cell of [[query_query, query_gallery], [query_gallery^T, gallery_gallery]].
  __device__ __forceinline__ T given(int64_t i, int64_t j) const {
    if (i < queries) return j < queries ? query_query[i * queries + j] : query_gallery[i * gallery + j - queries];
    return j < queries ? query_gallery[j * gallery + i - queries]
                       : gallery_gallery[(i - queries) * gallery + j - queries];
  }

  __device__ __forceinline__ T in_warp(int64_t i, int64_t j) const {
    if (query_gallery != nullptr) return given(i, j);
    T sum = T(0);
    if (points != nullptr) sum += squared_distance_in_warp(points + i * depth, points + j * depth, depth);
    if (stripes != nullptr) {
      const int64_t image = stripe_count * stripe_depth;
      sum += dmli_in_warp(stripes + i * image, stripes + j * image, stripe_count, stripe_depth);
    }
    return sum;
  }
};

}  // namespace reidops
