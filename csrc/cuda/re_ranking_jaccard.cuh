// From the encodings V to the result: the inverted index of the gallery's rows, and the Jaccard distances through it.
#pragma once

#include "re_ranking_sets.cuh"

namespace reidops {

// ------------------------------------------------------------------------------------------------------ inverted index

// A gallery image that has a weight at some column; read at once.
template <typename T>
struct alignas(2 * sizeof(T)) Entry {
  T weight;
  int32_t image;
};

// The gallery's rows of V by column: who has a weight there. A list's order differs from run to run, and no sum depends
// on it, because an image stands in a list once.
template <typename T>
struct Inverted {
  int64_t* first;            // (total,)
  int32_t* sizes;            // (total,)
  Entry<T>* entries;         // (capacity,): column g in [first[g], first[g] + sizes[g])
  unsigned long long* used;  // (1,)
};

// Calls run(image, entry of V) for every weight of the gallery, a warp an image.
template <typename T, typename Run>
__device__ __forceinline__ void for_each_weight(const SparseRows<T>& encoding, int64_t queries, int64_t total,
                                                Run run) {
  for (int64_t j = queries + first_point(); j < total; j += point_step()) {
    const int64_t first = encoding.first[j];
    for (int k = threadIdx.x % kWarp; k < encoding.sizes[j]; k += kWarp) run(j - queries, first + k);
  }
}

// Adds to inverted.sizes.
template <typename T>
__global__ void __launch_bounds__(kPointThreads)
    count_lists_kernel(SparseRows<T> encoding, int64_t queries, int64_t total, Inverted<T> inverted) {
  for_each_weight(encoding, queries, total,
                  [&](int64_t, int64_t at) { atomicAdd(&inverted.sizes[encoding.columns[at]], 1); });
}

// Gives each column a place for its list; the sizes start again at 0. A thread a column; a warp takes the place of its
// 32 lists at once.
template <typename T>
__global__ void __launch_bounds__(kPointThreads) place_lists_kernel(int64_t total, Inverted<T> inverted) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t begin = first_point() * kWarp; begin < total; begin += point_step() * kWarp) {
    const int64_t g = begin + lane;
    const long long size = g < total ? inverted.sizes[g] : 0;
    const long long end = scan_in_warp(size);  // of this list, within the warp's
    unsigned long long place = 0;
    if (lane == kWarp - 1) place = atomicAdd(inverted.used, static_cast<unsigned long long>(end));
    place = __shfl_sync(kAllLanes, place, kWarp - 1);
    if (g < total) {
      inverted.first[g] = static_cast<int64_t>(place) + end - size;
      inverted.sizes[g] = 0;
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kPointThreads)
    fill_lists_kernel(SparseRows<T> encoding, int64_t queries, int64_t total, Inverted<T> inverted) {
  for_each_weight(encoding, queries, total, [&](int64_t image, int64_t at) {
    const int32_t column = encoding.columns[at];
    const int64_t place = inverted.first[column] + atomicAdd(&inverted.sizes[column], 1);
    inverted.entries[place] = {encoding.weights[at], static_cast<int32_t>(image)};
  });
}

// ------------------------------------------------------------------------------------------------------------- Jaccard

constexpr int kJaccardThreads = 256;
constexpr int64_t kSegmentBytes = 32 << 10;  // of sums: gallery images that a block takes at once
constexpr int kAhead = 4;                    // columns whose entries are on their way at once

// One column of a query's row of V, and the gallery's list there.
template <typename T>
struct Column {
  int64_t first;
  int size;
  T weight;
};

// sums[j - begin] = the sum over the columns of row i, ascending, of min(V_i, V_j), for gallery images [begin, begin +
// count). A column's list has every image once, so that its entries are added by all threads at once; a barrier ends
// every column. sums: (count,) in shared memory; the thread that clears an image's sum should be the one that reads it.
template <typename T>
__device__ __forceinline__ void add_minima(const SparseRows<T>& encoding, const Inverted<T>& inverted, int64_t i,
                                           int64_t begin, int count, T* sums) {
  __shared__ Column<T> columns[kJaccardThreads];
  const int thread = threadIdx.x;
  for (int k = thread; k < count; k += kJaccardThreads) sums[k] = T(0);
  const int64_t first = encoding.first[i];
  const int size = encoding.sizes[i];
  for (int staged = 0; staged < size; staged += kJaccardThreads) {
    const int staged_count = size - staged < kJaccardThreads ? size - staged : kJaccardThreads;
    if (thread < staged_count) {
      const int32_t column = encoding.columns[first + staged + thread];
      columns[thread] = {inverted.first[column], inverted.sizes[column], encoding.weights[first + staged + thread]};
    }
    __syncthreads();
    Entry<T> next[kAhead];
    const auto fetch = [&](int c) {
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        if (c + a < staged_count && thread < columns[c + a].size)
          next[a] = inverted.entries[columns[c + a].first + thread];
      }
    };
    fetch(0);
    for (int c = 0; c < staged_count; c += kAhead) {
      Entry<T> now[kAhead];
#pragma unroll
      for (int a = 0; a < kAhead; ++a) now[a] = next[a];
      fetch(c + kAhead);
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        if (c + a >= staged_count) break;
        const Column<T> column = columns[c + a];
        const auto add = [&](const Entry<T>& entry) {
          const int64_t k = entry.image - begin;
          if (k < 0 || k >= count) return;
          sums[k] += entry.weight < column.weight ? entry.weight : column.weight;
        };
        if (thread < column.size) add(now[a]);
        for (int k = thread + kJaccardThreads; k < column.size; k += kJaccardThreads) {
          add(inverted.entries[column.first + k]);
        }
        __syncthreads();
      }
    }
  }
}

// The re-ranked distances of queries first_query, ..., first_query + count - 1, by a block for each query and segment
// of the gallery. rows: (count, gallery), rows `stride` apart: d on entry (but for "jaccard"), the result on return.
// row_maximum: (total,), not read for "jaccard".
//
// A query has 25 to 43 columns of 20 to 40 entries (twice that and more on less regular data), mostly from the L2
// cache, and a barrier for each: 5 to 10 microseconds where the loads of four columns overlap. The distances are 8
// bytes an image and query in and out, 0.43 GB for 3,368 x 15,913, and 0.09 ms at 4.8 TB/s: with five blocks of 36 KB
// and 48 registers a multiprocessor, 6,736 blocks in ten waves, both take about as long. Every segment reads the
// query's lists again: for a million images that is 123 times 8 KB a query beside 8 MB of distances.
template <typename T>
__global__ void __launch_bounds__(kJaccardThreads, sizeof(T) == 4 ? 5 : 4)
    jaccard_kernel(SparseRows<T> encoding, Inverted<T> inverted, const T* __restrict__ row_maximum, Parameters p,
                   int64_t first_query, int64_t count, int64_t gallery, int64_t segment, T* __restrict__ rows,
                   int64_t stride) {
  T* const sums = shared_memory<T>();
  const int64_t segments = (gallery + segment - 1) / segment;
  for (int64_t block = blockIdx.x; block < count * segments; block += gridDim.x) {
    const int64_t q = block / segments, i = first_query + q, begin = block % segments * segment;
    const int width = static_cast<int>(gallery - begin < segment ? gallery - begin : segment);
    add_minima(encoding, inverted, i, begin, width, sums);
    const T maximum = p.jaccard ? T(0) : row_maximum[i];
    T* const row = rows + q * stride + begin;
#pragma unroll 4
    for (int k = threadIdx.x; k < width; k += kJaccardThreads) {
      row[k] = p.final_distance(sums[k], p.jaccard ? T(0) : row[k], maximum);
    }
  }
}

}  // namespace reidops
