// The gradient of batch_hard: what each anchor's two distances ask of the features.
#include "launch.h"

namespace reidops {
namespace {

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
    place += count_below(lanes, lane);
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

STABLE_TORCH_LIBRARY_IMPL(reidops, CUDA, m) { m.impl("batch_hard_backward", TORCH_BOX(&batch_hard_backward)); }

}  // namespace reidops
