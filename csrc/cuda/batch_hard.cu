// batch_hard: each anchor's farthest sample of its label and nearest of another (Hermans 2017): the selection from
// given distances, and the gradient. Ties: the lowest index.
#include <limits>

#include "../core/order.h"
#include "launch.h"

namespace reidops {
namespace {

// --------------------------------------------------------------------------------------------------------- selection

constexpr int kSelectThreads = 128;

// The candidate that comes first by ranks_before. No candidate yet: infinitely far, after every index.
template <typename T>
struct First {
  T key = std::numeric_limits<T>::infinity();
  int64_t index = std::numeric_limits<int64_t>::max();

  __device__ __forceinline__ void offer(T other_key, int64_t other_index) {
    if (ranks_before(other_key, other_index, key, index)) {
      key = other_key;
      index = other_index;
    }
  }
  __device__ __forceinline__ void reduce_in_warp() {
    for (int step = kWarp / 2; step > 0; step /= 2) {
      const T other_key = __shfl_xor_sync(kAllLanes, key, step);
      const int64_t other_index = __shfl_xor_sync(kAllLanes, index, step);
      offer(other_key, other_index);
    }
  }
};

// distance: (batch, batch), labels and the results: (batch,). A warp an anchor. It reads its row once, 4 B bytes in
// float32, and the labels, 8 B bytes, which the L1 cache holds up to some ten thousand: memory bounds it, at 4 B^2
// bytes (0.25 MB for 256 anchors, which is to say that the launch bounds it; 64 MB for 4096). A NaN is never chosen. An
// anchor without a candidate is given itself, at distance NaN.
template <typename T>
__global__ void __launch_bounds__(kSelectThreads)
    batch_hard_from_distance_kernel(const T* __restrict__ distance, const int64_t* __restrict__ labels, int64_t batch,
                                    T* __restrict__ positive, T* __restrict__ negative,
                                    int64_t* __restrict__ positive_index, int64_t* __restrict__ negative_index) {
  constexpr int kWarps = kSelectThreads / kWarp;
  const int lane = threadIdx.x % kWarp;
  for (int64_t anchor = blockIdx.x * int64_t(kWarps) + threadIdx.x / kWarp; anchor < batch;
       anchor += gridDim.x * int64_t(kWarps)) {
    const T* row = distance + anchor * batch;
    const int64_t label = labels[anchor];
    First<T> farthest, nearest;  // farthest: by the negated distance
#pragma unroll 4
    for (int64_t j = lane; j < batch; j += kWarp) {
      const T value = row[j];
      if (labels[j] == label) {
        farthest.offer(-value, j);
      } else {
        nearest.offer(value, j);
      }
    }
    farthest.reduce_in_warp();
    nearest.reduce_in_warp();
    if (lane == 0) {
      constexpr T kNan = std::numeric_limits<T>::quiet_NaN();
      const bool has_positive = farthest.index < batch, has_negative = nearest.index < batch;
      positive[anchor] = has_positive ? row[farthest.index] : kNan;
      negative[anchor] = has_negative ? row[nearest.index] : kNan;
      positive_index[anchor] = has_positive ? farthest.index : anchor;
      negative_index[anchor] = has_negative ? nearest.index : anchor;
    }
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_hard_from_distance(const Tensor& distance_in,
                                                                    const Tensor& labels_in) {
  check_input(distance_in, 2, "distance");
  const int64_t batch = distance_in.size(0);
  STD_TORCH_CHECK(batch >= 1 && distance_in.size(1) == batch, "distance should be square and not empty");
  check_int64(labels_in, batch, distance_in, "labels");
  const DeviceGuard guard(distance_in.get_device_index());
  return with_floating_type(distance_in, "distance", [&](auto zero) {
    using T = decltype(zero);
    const Tensor distance = torch::stable::contiguous(distance_in), labels = torch::stable::contiguous(labels_in);
    Tensor positive = new_tensor({batch}, distance.scalar_type(), distance),
           negative = new_tensor({batch}, distance.scalar_type(), distance);
    Tensor positive_index = new_tensor({batch}, ScalarType::Long, distance),
           negative_index = new_tensor({batch}, ScalarType::Long, distance);
    const int64_t blocks = std::min(ceil_div(batch, kSelectThreads / kWarp), kMaxBlocks);
    launch("batch_hard_from_distance", batch_hard_from_distance_kernel<T>, dim3(blocks), kSelectThreads, 0, 0,
           current_stream(distance), data<T>(distance), data<int64_t>(labels), batch, mutable_data<T>(positive),
           mutable_data<T>(negative), mutable_data<int64_t>(positive_index), mutable_data<int64_t>(negative_index));
    return std::make_tuple(positive, negative, positive_index, negative_index);
  });
}

// ---------------------------------------------------------------------------------------------------------- gradient

constexpr int kGradThreads = 256;
constexpr int kGradWarps = kGradThreads / kWarp;
constexpr int kTerms = 4 * kGradThreads;  // 12 KB of shared memory in float32, 16 KB in float64
constexpr int64_t kWantedBlocks = 1024;   // several for each multiprocessor

// The pairs (anchor a, partner index[a]) of one kind and their gradients; all (batch,).
template <typename T>
struct Pairs {
  const T *grad, *distance;
  const int64_t* index;

  // d loss / d distance / distance; the subgradient at distance 0 is 0.
  __device__ __forceinline__ T slope(int64_t anchor) const {
    return distance[anchor] > T(0) ? grad[anchor] / distance[anchor] : T(0);
  }
};

// Terms of one row's gradient: scale (x_row - x_other), in the order in which they are summed.
template <typename T>
struct Terms {
  T scale[kTerms];
  int64_t other[kTerms];
  int warp_counts[kGradWarps];
};

// Appends the terms of the threads that have one (`wanted`), in the order of the threads; returns the new count.
template <typename T>
__device__ __forceinline__ int append(Terms<T>& terms, int count, bool wanted, T scale, int64_t other) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const unsigned lanes = __ballot_sync(kAllLanes, wanted);
  if (lane == 0) terms.warp_counts[warp] = __popc(lanes);
  __syncthreads();
  int place = count;
  for (int w = 0; w < kGradWarps; ++w) {
    if (w < warp) place += terms.warp_counts[w];
    count += terms.warp_counts[w];
  }
  if (wanted) {
    place += __popc(lanes & ((1u << lane) - 1));
    terms.scale[place] = scale;
    terms.other[place] = other;
  }
  __syncthreads();
  return count;
}

// features and out: (batch, d). For anchor a, partner b = index[a], s = slope(a):
//   d x_a += s (x_a - x_b),  d x_b -= s (x_a - x_b).
// blockIdx.x is a row and gathers its own terms and those of the anchors whose partner it is, in ascending order: no
// atomics, and the same sum every time. blockIdx.y is a slice of the channels.
//
// A row has 4 terms on average, so about 5 B d values are read, mostly from the L2 cache, and B d written. Each block
// reads both indices, 16 B bytes, from the caches: 16 B^2 bytes a slice, which stays below the rows themselves as long
// as B is not far above d. A training batch of 128 x 2048 is 1 MB: 1,024 blocks of 256 channels, bound by latency.
template <typename T>
__global__ void __launch_bounds__(kGradThreads, 4)
    batch_hard_backward_kernel(Pairs<T> positive, Pairs<T> negative, const T* __restrict__ features, int64_t batch,
                               int64_t d, T* __restrict__ out) {
  __shared__ Terms<T> terms;
  for (int64_t row = blockIdx.x; row < batch; row += gridDim.x) {
    int count = 0;  // the same in every thread
    bool written = false;
    const auto add_terms = [&] {
      for (int64_t k = blockIdx.y * int64_t(kGradThreads) + threadIdx.x; k < d;
           k += gridDim.y * int64_t(kGradThreads)) {
        const T self = features[row * d + k];
        T sum = written ? out[row * d + k] : T(0);
#pragma unroll 4
        for (int t = 0; t < count; ++t) sum += terms.scale[t] * (self - features[terms.other[t] * d + k]);
        out[row * d + k] = sum;
      }
      written = true;  // append() has a barrier before it writes over these terms
      count = 0;
    };
    const auto append_own = [&](const Pairs<T>& pairs) {
      const T scale = pairs.slope(row);
      const int64_t partner = pairs.index[row];
      const bool wanted = threadIdx.x == 0 && scale != T(0) && partner >= 0 && partner < batch;
      count = append(terms, count, wanted, scale, partner);
    };
    const auto append_partners = [&](const Pairs<T>& pairs, int64_t anchor) {
      const T scale = anchor < batch && pairs.index[anchor] == row ? pairs.slope(anchor) : T(0);
      count = append(terms, count, scale != T(0), scale, anchor);
    };
    append_own(positive);
    append_own(negative);
    for (int64_t first = 0; first < batch; first += kGradThreads) {
      if (count > kTerms - 2 * kGradThreads) add_terms();
      append_partners(positive, first + threadIdx.x);
      append_partners(negative, first + threadIdx.x);
    }
    add_terms();
  }
}

Tensor batch_hard_backward(const Tensor& grad_positive_in, const Tensor& grad_negative_in, const Tensor& features_in,
                           const Tensor& positive_in, const Tensor& negative_in, const Tensor& positive_index_in,
                           const Tensor& negative_index_in) {
  check_input(features_in, 2, "features");
  const int64_t batch = features_in.size(0), d = features_in.size(1);
  for (const Tensor* t : {&grad_positive_in, &grad_negative_in, &positive_in, &negative_in}) {
    check_input(*t, 1, "gradients and distances");
    check_like(*t, features_in, "gradients and distances");
    STD_TORCH_CHECK(t->size(0) == batch, "gradients and distances should match features");
  }
  check_int64(positive_index_in, batch, features_in, "positive_index");
  check_int64(negative_index_in, batch, features_in, "negative_index");
  const DeviceGuard guard(features_in.get_device_index());
  Tensor out = new_tensor({batch, d}, features_in.scalar_type(), features_in);
  return with_floating_type(features_in, "features", [&](auto zero) {
    using T = decltype(zero);
    if (batch == 0 || d == 0) return out;
    const auto dense = [](const Tensor& t) { return torch::stable::contiguous(t); };
    const Tensor features = dense(features_in), grad_positive = dense(grad_positive_in),
                 grad_negative = dense(grad_negative_in), positive = dense(positive_in), negative = dense(negative_in),
                 positive_index = dense(positive_index_in), negative_index = dense(negative_index_in);
    const int64_t slices = std::min(ceil_div(d, kGradThreads), ceil_div(kWantedBlocks, batch));
    launch("batch_hard_backward", batch_hard_backward_kernel<T>, dim3(std::min(batch, kMaxBlocks), slices),
           kGradThreads, 0, 0, current_stream(features),
           Pairs<T>{data<T>(grad_positive), data<T>(positive), data<int64_t>(positive_index)},
           Pairs<T>{data<T>(grad_negative), data<T>(negative), data<int64_t>(negative_index)}, data<T>(features), batch,
           d, mutable_data<T>(out));
    return out;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(reidops, CUDA, m) {
  m.impl("batch_hard_from_distance", TORCH_BOX(&batch_hard_from_distance));
  m.impl("batch_hard_backward", TORCH_BOX(&batch_hard_backward));
}

}  // namespace reidops
