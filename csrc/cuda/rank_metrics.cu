// rank_metrics: CMC, average precision and inverse negative penalty of every query, from one read of its distances.
//
// The gallery's identities are sorted once, so that a query finds its images in one range. Then nothing is sorted but a
// query's few matches: the rank of a match is the number of kept gallery images that come before it, and each image
// falls between two of the sorted matches. Images dropped for a query (junk; same identity and camera) are counted with
// the rest and taken out again. Counts are integers, so their order does not matter, and terms are summed in the order
// of their ranks: the scores are those of the CPU, bit by bit. An identity of more than 1,023 images is ranked 1,023 at
// a time, with a pass over the distances each; its terms are summed in that order, so that the last bits may differ.
// Nothing but the sorted identities and the CMC's counts needs memory.
#include "rank.cuh"
#include "rank_draws.cuh"

namespace reidops {
namespace {

constexpr int kSlots = 1024;        // a power of two; 16 KB of shared memory in float32, 20 KB in float64
constexpr int kChunk = kSlots - 1;  // images that are ranked at a time; a slot stays empty
constexpr int kLeastWidth = 32;     // slots that are sorted and searched at least, so that the last 5 steps are known
constexpr int kLoads = 4;           // of 16 bytes, that a thread has under way

template <typename T>
constexpr int kWidth = 16 / sizeof(T);  // distances that a thread places at once

// In shared memory: up to kChunk matches of a query, nearest first, then empty slots (kNoImage, infinitely far).
template <typename T>
struct Matches {
  T distance[kSlots];
  int image[kSlots];
  unsigned kept[kSlots];    // of the kept images, those after match s - 1 and up to match s
  unsigned others[kSlots];  // of the query's matches, likewise; counted only where there are several chunks
};

// The part of Matches that is in use.
template <typename T>
struct Extent {
  int width;           // a power of two, at least size + 1
  int size;            // matches
  T middle, farthest;  // distances of slot width / 2 - 1 and of the last match
};

// Calls add(e, s) for each of the images, s being the first match that does not come before it, or the slot after the
// last; nothing at all where every image is beyond the farthest match. log2(width) loads from shared memory each.
template <int kCount, typename T, typename Add>
__device__ __forceinline__ void place_images(const Matches<T>& matches, const Extent<T>& extent,
                                             const T (&distance)[kCount], const int (&image)[kCount], Add add) {
  bool near = false;
#pragma unroll
  for (int e = 0; e < kCount; ++e) near |= !(distance[e] > extent.farthest);
  if (!near) return;
  T own[kCount];
  int place[kCount];  // matches known to be nearer
#pragma unroll
  for (int e = 0; e < kCount; ++e) {
    own[e] = rankable(distance[e]);
    place[e] = extent.middle < own[e] ? extent.width / 2 : 0;
  }
  const auto narrow = [&](int half) {
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      if (matches.distance[place[e] + half - 1] < own[e]) place[e] += half;
    }
  };
#pragma unroll 1
  for (int half = extent.width / 4; half > kLeastWidth / 4; half /= 2) narrow(half);
#pragma unroll
  for (int half = kLeastWidth / 4; half > 0; half /= 2) narrow(half);

  bool tie = false;
#pragma unroll
  for (int e = 0; e < kCount; ++e) tie |= matches.distance[place[e]] == own[e];
  if (tie) {  // once more, with the order of the gallery
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      place[e] = 0;
#pragma unroll 1
      for (int half = extent.width / 2; half > 0; half /= 2) {
        const int s = place[e] + half - 1;
        if (ranks_before(matches.distance[s], matches.image[s], own[e], image[e])) place[e] += half;
      }
    }
  }
#pragma unroll
  for (int e = 0; e < kCount; ++e) add(e, place[e]);
}

// Counts the whole row, (count,), in loads of 16 bytes but for the few images before and after the aligned ones.
template <typename T>
__device__ __forceinline__ void count_row(const T* __restrict__ row, int count, Matches<T>& matches,
                                          const Extent<T>& extent) {
  struct alignas(16) Vector {
    T distance[kWidth<T>];
  };
  const auto add = [&](int, int s) { atomicAdd(&matches.kept[s], 1u); };
  const int misaligned = reinterpret_cast<uintptr_t>(row) % sizeof(Vector) / sizeof(T);
  const int head = min(count, (kWidth<T> - misaligned) % kWidth<T>), vectors = (count - head) / kWidth<T>;
  const Vector* __restrict__ aligned = reinterpret_cast<const Vector*>(row + head);
  for (int first = threadIdx.x; first < vectors; first += kLoads * kRankThreads) {
    Vector loaded[kLoads];
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      if (first + u * kRankThreads < vectors) loaded[u] = aligned[first + u * kRankThreads];
    }
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      const int vector = first + u * kRankThreads;
      if (vector >= vectors) break;
      int image[kWidth<T>];
#pragma unroll
      for (int e = 0; e < kWidth<T>; ++e) image[e] = head + vector * kWidth<T> + e;
      place_images(matches, extent, loaded[u].distance, image, add);
    }
  }
  const int t = threadIdx.x, edge = t < head ? t : t + vectors * kWidth<T>;
  if (edge < count) {
    const T distance[] = {row[edge]};
    const int image[] = {edge};
    place_images(matches, extent, distance, image, add);
  }
}

// Takes the dropped images of the row out again and, where there are several chunks, counts the matches.
template <typename T>
__device__ __forceinline__ void count_identity(const T* __restrict__ row, const Gallery& gallery, const Query& query,
                                               bool several, Matches<T>& matches, const Extent<T>& extent) {
  const int own = query.bounds[1] - query.bounds[0], junk = query.bounds[3] - query.bounds[2];
  const int count = gallery.cameras == nullptr ? (several ? own : 0) : own + junk;
  for (int first = threadIdx.x; first < count; first += kWidth<T> * kRankThreads) {
    T distance[kWidth<T>];
    int image[kWidth<T>];
    bool match[kWidth<T>];
#pragma unroll
    for (int u = 0; u < kWidth<T>; ++u) {
      const int i = first + u * kRankThreads;
      image[u] = i < count ? gallery.image(i < own ? query.bounds[0] + i : query.bounds[2] + i - own) : kNoImage;
      match[u] = i < own && query.matches(gallery, image[u]);
      if (match[u] && !several) image[u] = kNoImage;
    }
#pragma unroll
    for (int u = 0; u < kWidth<T>; ++u) {
      distance[u] = image[u] == kNoImage ? std::numeric_limits<T>::infinity() : row[image[u]];
    }
    place_images(matches, extent, distance, image,
                 [&](int u, int s) { match[u] ? atomicAdd(&matches.others[s], 1u) : atomicSub(&matches.kept[s], 1u); });
  }
}

// The matches among images[begin] .. images[begin + length - 1] of the gallery, length <= kChunk, sorted, and nothing
// counted yet. By a block; a bitonic sort, of 15 steps for 16 to 31 images.
template <typename T>
__device__ __forceinline__ Extent<T> load_matches(const T* __restrict__ row, const Gallery& gallery, const Query& query,
                                                  int begin, int length, Matches<T>& matches) {
  int width = kLeastWidth, size = 0;
  while (width <= length) width *= 2;
  for (int first = 0; first < width; first += kRankThreads) {
    const int s = first + threadIdx.x;
    const int image = s < length ? gallery.image(begin + s) : kNoImage;
    const bool match = image != kNoImage && query.matches(gallery, image);
    if (s < width) {
      matches.distance[s] = match ? rankable(row[image]) : std::numeric_limits<T>::infinity();
      matches.image[s] = match ? image : kNoImage;
      matches.kept[s] = matches.others[s] = 0;
    }
    size += __syncthreads_count(match);
  }
  for (int run = 2; run <= width; run *= 2) {
    for (int stride = run / 2; stride > 0; stride /= 2) {
#pragma unroll 1
      for (int pair = threadIdx.x; pair < width / 2; pair += kRankThreads) {
        const int a = 2 * pair - (pair & (stride - 1)), b = a + stride;
        const T distance_a = matches.distance[a], distance_b = matches.distance[b];
        const int image_a = matches.image[a], image_b = matches.image[b];
        if (ranks_before(distance_b, image_b, distance_a, image_a) == ((a & run) == 0)) {
          matches.distance[a] = distance_b;
          matches.distance[b] = distance_a;
          matches.image[a] = image_b;
          matches.image[b] = image_a;
        }
      }
      __syncthreads();
    }
  }
  return {width, size, matches.distance[width / 2 - 1], matches.distance[max(size, 1) - 1]};
}

// In shared memory.
struct Score {
  double sum;            // of match_precision
  int matches;           // so far
  unsigned first, last;  // ranks of the nearest and of the farthest match

  // Adds matches that have been counted; by a warp.
  template <typename T>
  __device__ __forceinline__ void add(const Matches<T>& counted, int size, bool several, bool trapezoid) {
    double total = 0;
    unsigned rank = 0, place = 0, nearest = 0;  // among the kept images; among the matches
    for (int begin = 0; begin < size; begin += kWarp) {
      const int s = begin + threadIdx.x % kWarp;
      const unsigned own_rank = rank + scan_in_warp(s < size ? counted.kept[s] : 0);
      const unsigned own_place = several ? place + scan_in_warp(s < size ? counted.others[s] : 0) : s + 1;
      const double term = s < size ? match_precision(own_place, own_rank, trapezoid) : 0.0;
      total = add_in_order(total, term, min(size - begin, kWarp));
      if (begin == 0) nearest = __shfl_sync(kAllLanes, own_rank, 0);
      rank = __shfl_sync(kAllLanes, own_rank, kWarp - 1);
      place = __shfl_sync(kAllLanes, own_place, kWarp - 1);
    }
    if (threadIdx.x % kWarp == 0) {
      first = matches == 0 ? nearest : min(first, nearest);
      last = matches == 0 ? rank : max(last, rank);
      sum += total;
      matches += size;
    }
  }
};

// distance: (queries, gallery), rows `pitch` apart. A block a query.
//
// It reads 4 N bytes in float32, 64 KB for the 15,913 images of Market-1501: 214 MB, 50 us at 4.3 TB/s; on MSMT17 it is
// 3.8 GB, 0.9 ms. A warp does nothing with 128 distances that are all beyond the farthest match. Otherwise 32 of them
// take 28 instructions and 6 accesses of shared memory, for up to 31 images of the query's identity (7 and 1 more each
// time that number doubles): on Market-1501 at most 47 and 10 million, which 132 multiprocessors issue in 48 us and
// serve in 41 us at 1.85 GHz. So memory bounds it, though not by far. Eight blocks of 128 threads with four loads of 16
// bytes each have up to 64 KB in flight on a multiprocessor, where 26 KB keep the memory busy: some may place images
// while others read. 59 registers and 16.4 KB of shared memory in float32, 61 and 20.5 KB in float64.
template <typename T>
__global__ void __launch_bounds__(kRankThreads, kRankBlocks)
    rank_metrics_kernel(const T* __restrict__ distance, int64_t pitch, Queries queries, Gallery gallery, bool trapezoid,
                        Results results) {
  __shared__ Matches<T> matches;
  __shared__ Query query;
  __shared__ Score score;
  for (int64_t q = blockIdx.x; q < queries.count; q += gridDim.x) {
    const T* row = distance + q * pitch;
    query.find(gallery, queries, q);
    if (threadIdx.x == 0) score = Score();
    const bool several = query.bounds[1] - query.bounds[0] > kChunk;
    for (int begin = query.bounds[0]; begin < query.bounds[1]; begin += kChunk) {
      const Extent<T> extent = load_matches(row, gallery, query, begin, min(kChunk, query.bounds[1] - begin), matches);
      if (extent.size > 0) {
        count_row(row, gallery.count, matches, extent);
        count_identity(row, gallery, query, several, matches, extent);
        __syncthreads();
        if (threadIdx.x < kWarp) score.add(matches, extent.size, several, trapezoid);
      }
      __syncthreads();
    }
    if (threadIdx.x == 0) {
      const bool valid = score.matches > 0;
      const double count = score.matches;
      results.precision[q] = valid ? score.sum / count : results.without_match;
      results.penalty[q] = valid ? count / static_cast<double>(score.last) : results.without_match;
      if (valid) {
        atomicAdd(results.valid, 1ull);
        results.add_hit(score.first);
      }
    }
  }
}

// hits and valid as in Results, cmc: (length,). The curve's denominator is `trials` a query that counts: one that has a
// match, or any of `queries` if that is not 0. By a warp: 50 ranks take no longer than the launch.
__global__ void __launch_bounds__(kWarp)
    cmc_kernel(const unsigned long long* __restrict__ hits, const unsigned long long* __restrict__ valid,
               int64_t length, int64_t queries, int64_t trials, double* __restrict__ cmc,
               int64_t* __restrict__ num_valid) {
  const int64_t with_match = static_cast<int64_t>(*valid), total = (queries > 0 ? queries : with_match) * trials;
  if (threadIdx.x == 0) *num_valid = with_match;
  int64_t found = 0;
  for (int64_t first = 0; first < length; first += kWarp) {
    const int64_t r = first + threadIdx.x;
    const int64_t up_to = found + scan_in_warp(r < length ? static_cast<int64_t>(hits[r]) : 0);
    if (r < length) cmc[r] = total > 0 ? static_cast<double>(up_to) / static_cast<double>(total) : 0.0;
    found = __shfl_sync(kAllLanes, up_to, kWarp - 1);
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> rank_metrics(const Tensor& distance_in, const Tensor& query_ids_in,
                                                        const Tensor& gallery_ids_in,
                                                        std::optional<Tensor> query_cameras_in,
                                                        std::optional<Tensor> gallery_cameras_in, int64_t max_rank,
                                                        std::string protocol_name, int64_t num_draws, int64_t seed,
                                                        bool /*refuse*/) {
  check_input(distance_in, 2, "distance");
  const int64_t queries = distance_in.size(0), gallery = distance_in.size(1);
  check_int64(query_ids_in, queries, distance_in, "query_ids");
  check_int64(gallery_ids_in, gallery, distance_in, "gallery_ids");
  const bool cameras = query_cameras_in.has_value() && gallery_cameras_in.has_value();
  if (cameras) {
    check_int64(*query_cameras_in, queries, distance_in, "query_cameras");
    check_int64(*gallery_cameras_in, gallery, distance_in, "gallery_cameras");
  }
  STD_TORCH_CHECK(queries >= 1 && gallery >= 1 && max_rank >= 1 && num_draws >= 1,
                  "distance should not be empty, max_rank and num_draws positive");
  STD_TORCH_CHECK(gallery < kMaxGallery, "distance should have fewer columns, got ", gallery);
  const Protocol protocol = parse_protocol(protocol_name);
  const int64_t length = std::min(max_rank, gallery);

  const DeviceGuard guard(distance_in.get_device_index());
  const auto dense = [](const Tensor& t) { return torch::stable::contiguous(t); };
  const Tensor distance = distance_in.stride(1) == 1 ? distance_in : dense(distance_in);
  const Tensor query_ids = dense(query_ids_in), query_cameras = cameras ? dense(*query_cameras_in) : query_ids;
  const auto sorted = stable_sort(dense(gallery_ids_in));
  const Tensor &gallery_ids = std::get<0>(sorted), &order = std::get<1>(sorted);
  const Tensor gallery_cameras = cameras ? dense(*gallery_cameras_in) : gallery_ids;
  const Queries people{data<int64_t>(query_ids), cameras ? data<int64_t>(query_cameras) : nullptr, queries};
  const Gallery images{data<int64_t>(gallery_ids), data<int64_t>(order),
                       cameras ? data<int64_t>(gallery_cameras) : nullptr, static_cast<int>(gallery)};

  Tensor cmc = new_tensor({length}, ScalarType::Double, distance),
         precision = new_tensor({queries}, ScalarType::Double, distance),
         penalty = new_tensor({queries}, ScalarType::Double, distance),
         num_valid = new_tensor({}, ScalarType::Long, distance);
  Tensor counters = new_tensor({length + 2}, ScalarType::Long, distance);
  torch::stable::zero_(counters);
  auto *hits = mutable_data<unsigned long long>(counters), *valid = hits + length, *identity_count = valid + 1;
  const Results results{hits,
                        valid,
                        length,
                        mutable_data<double>(precision),
                        mutable_data<double>(penalty),
                        protocol == Protocol::kMuDeep ? 0.0 : std::numeric_limits<double>::quiet_NaN()};
  const cudaStream_t stream = current_stream(distance);
  const dim3 blocks(std::min(queries, kMaxBlocks));
  with_floating_type(distance, "distance", [&](auto zero) {
    using T = decltype(zero);
    const T* distances = data<T>(distance);
    if (protocol == Protocol::kCuhk03) {
      const Scratch memory(gallery, gallery_ids);
      Identity* identities = memory.get<Identity>();
      static_assert(sizeof(Identity) == sizeof(int64_t));
      launch("rank_metrics", list_identities_kernel, dim3(ceil_div(gallery, kRankThreads)), kRankThreads, 0, 0, stream,
             images, identities, identity_count);
      launch("rank_metrics", draw_metrics_kernel<T>, blocks, kRankThreads, 0, 0, stream, distances, distance.stride(0),
             people, images, identities, identity_count, num_draws, seed, results);
    } else {
      launch("rank_metrics", rank_metrics_kernel<T>, blocks, kRankThreads, 0, 0, stream, distances, distance.stride(0),
             people, images, protocol == Protocol::kMuDeep, results);
    }
    return 0;
  });
  launch("rank_metrics", cmc_kernel, dim3(1), kWarp, 0, 0, stream, hits, valid, length,
         protocol == Protocol::kMuDeep ? queries : 0, protocol == Protocol::kCuhk03 ? num_draws : 1,
         mutable_data<double>(cmc), mutable_data<int64_t>(num_valid));
  return std::make_tuple(cmc, precision, penalty, num_valid);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(reidops, CUDA, m) { m.impl("rank_metrics", TORCH_BOX(&rank_metrics)); }

}  // namespace reidops
