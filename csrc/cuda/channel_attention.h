// What the passes of channel_attention have in common. Forward is one pass and backward three; each is the same sum,
//
//   out_i = sum over j of weight_ij summed_j,
//
// with queries and keys in other roles, and with the scores computed again from query and key:
//
//   pass        i        weight_ij                              summed_j
//   kOutput     queries  P_ij                                   value_j
//   kGradQuery  queries  P_ij (grad_i . value_j - delta_i)      key_j
//   kGradKey    keys     P_ji (grad_j . value_i - delta_j)      query_j
//   kGradValue  keys     P_ji                                   grad_j
//
// where P = exp(query_i . key_j - maximum_i) share_i, share = 1 / the sum of the exponentials, and delta_i = grad_i .
// output_i. Every row of a result has one writer and a fixed order of sums, without atomics. With B C^2 L = N and values
// as long as queries, forward is 4 N FLOPs and backward 4 + 6 + 6 = 16 N, where 10 N would do if grad_query could be
// added up by all columns at once.
//
// MuDeep_v2 attends to averages, values of 3 or 4 numbers, and then products with values and grad hardly count: forward
// is 2 N. kGradKey has the weights of kGradValue in hand, and does that pass's work too: backward is 4 + 4 = 8 N.
#pragma once

#include <type_traits>

#include "launch.h"

namespace reidops {

enum class Pass { kOutput, kGradQuery, kGradKey, kGradValue };

constexpr bool by_query(Pass pass) { return pass == Pass::kOutput || pass == Pass::kGradQuery; }
constexpr bool by_slopes(Pass pass) { return pass == Pass::kGradQuery || pass == Pass::kGradKey; }

// What one side of the products brings: query, (batch, channels, length), and its output's gradient, (batch, channels,
// width), or key and value. Scores are products of the first ones, slopes (grad . value) of the second ones.
template <typename T>
struct Side {
  const T *first, *second;
};

// What forward leaves to backward, (batch, rows, channels) of the sums' type A: the maximum and the share of each
// query. For tensors of a half type T the image's numbers are followed by the rest that rounding took from the output,
// (channels, rest_length) in T; `width` is a value's. Without it delta would be wrong by what a rounding is of the output, and grad_query by
// that times a mean of keys: far more than a rounding of itself where keys and values are large against their
// differences.
template <typename T, typename A>
struct Statistics {
  static constexpr bool kHasRest = !std::is_same_v<T, A>;
  A* numbers;
  int channels, width;

  __host__ __device__ int rest_length() const { return width + width % 2; }
  __host__ __device__ int rows() const { return 2 + (kHasRest ? rest_length() / 2 : 0); }
  __device__ __forceinline__ A* maximum(int64_t image) const { return numbers + image * rows() * channels; }
  __device__ __forceinline__ A* share(int64_t image) const { return maximum(image) + channels; }
  __device__ __forceinline__ T* rest(int64_t image, int query) const {
    return reinterpret_cast<T*>(share(image) + channels) + int64_t(query) * rest_length();
  }
};

// T is the type of the tensors, A the one that sums have: float for half types, else T.
template <typename T, typename A>
struct PassArguments {
  Side<T> own, other;           // rows i and rows j of the pass
  T* out;                       // (batch, channels, columns of the pass)
  T* grad_value;                // (batch, channels, statistics.width), which kGradKey can leave as well
  Statistics<T, A> statistics;  // written by kOutput, read by the others
  const A* delta;               // (batch, channels) of queries, read by the passes that go by slopes
  const unsigned* largest;      // (batch, 2), see slope_scale in channel_attention_tensor.cu, or none
  int64_t batch;
  int channels, length, width;  // width: of grad and value here, filled up with zeros or statistics.width

  __host__ __device__ int columns(Pass pass) const { return by_slopes(pass) ? length : statistics.width; }
  __device__ __forceinline__ int64_t first(int64_t image) const { return image * channels * length; }
  __device__ __forceinline__ int64_t second(int64_t image) const { return image * channels * width; }
};

// How long the values are that kGradKey leaves the gradient of: on plain arithmetic, and on the tensor cores.
constexpr int kFewValues = 4, kFewTensorValues = 16;
constexpr int kTensorLength = 288;  // of the longest rows that the tensor cores take

// `blocks` for each image; the image is blockIdx.z gridDim.y + blockIdx.y, if there is such a one.
inline dim3 images_grid(int64_t blocks, int64_t batch) {
  constexpr int64_t kMost = 65535;  // of a grid's y dimension
  STD_TORCH_CHECK(blocks <= kMaxBlocks && batch <= kMost * kMost, "query should have fewer channels or images");
  return dim3(blocks, std::min(batch, kMost), ceil_div(batch, kMost));
}

// On the tensor cores, for T = Half and BFloat16; false if this device or this length is none for it.
template <typename T>
bool launch_on_tensor_cores(Pass pass, const PassArguments<T, float>& arguments, const Tensor& like);

// For every type and size.
template <typename T, typename A>
void launch_plain(Pass pass, const PassArguments<T, A>& arguments, const Tensor& like);

}  // namespace reidops
