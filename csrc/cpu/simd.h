// The vector kernels that every CPU operator is built on, and the choice among their builds.
//
// simd_kernels.h is compiled once per instruction set (simd_baseline.cpp, simd_avx2.cpp, simd_avx512.cpp); kernels<T>()
// is the table of the best one that this processor runs. The two highest levels add instructions for bfloat16 products
// (engine.h) and share AVX-512's table. REIDOPS_SIMD=baseline|avx2|avx512|avx512_bf16|amx takes a lower level.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../core/cancellation.h"
#include "order_key.h"

namespace reidops {

enum class SimdLevel { kBaseline = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3, kAmx = 4 };

SimdLevel simd_level();
std::string simd_level_name(SimdLevel level);
std::vector<std::string> available_simd_levels();

constexpr int kFewValues = 4;  // as many numbers are a value to few_value_slopes

struct DrawnImages {
  int64_t nearer, equal;
};

template <typename T>
struct Kernels {
  int64_t lanes;  // elements of a vector, the width of right-hand panels

  // values[j] = max(0, norm + norms[j] - 2 values[j]); true if one of them lost too many digits to cancellation
  // (or all of them: inf - inf), or is below `smallest` of the engine that made the products.
  bool (*squared_distances)(T* values, int64_t count, T norm, const T* norms, T smallest);

  // sum of (x - y)^2 without cancellation.
  T (*pair_squared_distance)(const T* x, const T* y, int64_t depth);

  // out[lanes] = path (or diagonal) cost of `lanes` images at once.
  // squared: (m) rows `stride` apart, each [n][lanes] squared stripe distances; total: scratch of n * lanes.
  void (*stripe_path)(const T* squared, int64_t stride, int64_t m, int64_t n, bool aligned, T* total, T* out);

  // the largest and smallest of count >= 0 values, starting from the given ones
  void (*extrema)(const T* values, int64_t count, T* smallest, T* largest);

  // the same apart by label: largest over labels[j] == label, smallest over the others
  void (*labelled_extrema)(const T* values, const int32_t* labels, int32_t label, int64_t count, T* largest_same,
                           T* smallest_other);

  // Sample `index` of the given label is values[j] away from anchor j of labels[j]: takes it for the anchor's positive or
  // negative where it is farther or nearer than the one so far, or as far and of lower index.
  void (*harden)(const T* values, const int32_t* labels, int32_t label, int32_t index, int64_t count, T* positive,
                 int32_t* positive_index, T* negative, int32_t* negative_index);

  // Whether a value is at most `limit`, or at most its own limits[j]; raises *largest to the largest value and each
  // largest_each[j] to its own. limits (then largest_each is not looked at) and largest may be null.
  bool (*scan)(const T* values, int64_t count, T limit, const T* limits, T* largest, T* largest_each);

  // values[j] = e^(values[j] - shift), for values <= shift; returns their sum.
  T (*exponentials)(T* values, int64_t count, T shift);

  T (*dot)(const T* x, const T* y, int64_t count);

  // keys[j] = integers in the order of the values, both zeros alike and NaN as infinity; then kLargestKey up to a whole
  // vector of `lanes`. True if a value is NaN.
  bool (*order_keys)(const T* values, int64_t count, OrderKey<T>* keys);

  // counts[i, :] of (thresholds, lanes) grows by how many of the keys are smaller than thresholds[i], spread over the
  // lanes. keys: filled up to a whole vector, as order_keys does. next: as much memory that will be read soon, to be
  // fetched meanwhile.
  void (*count_below)(const OrderKey<T>* keys, int64_t count, const OrderKey<T>* thresholds, int64_t thresholds_count,
                      OrderKey<T>* counts, const T* next);

  int64_t (*count_equal)(const OrderKey<T>* keys, int64_t count, OrderKey<T> key);

  // Of one image drawn from each of `count` identities (core/draw.h), how many keys are smaller than the given one, and
  // how many equal. keys: those of identity s at first[s] .. first[s + 1].
  DrawnImages (*count_drawn)(uint64_t hash, const int64_t* identities, const int64_t* first, int64_t count,
                             const OrderKey<T>* keys, OrderKey<T> key);

  // out[i * stride + j] = squared distance of x[i] of (m, depth) and y[j] of (n, depth), from the differences; equal for
  // equal rows, and the same from either side.
  void (*pair_distances)(const T* x, int64_t m, const T* y, int64_t n, int64_t depth, T* out, int64_t stride);

  // values: squared distances of stripes, become distances; costs[j] = tanh(values[j] / 2).
  void (*stripe_costs)(T* values, int64_t count, T* costs);

  // values: distances of stripes, become d tanh(d / 2) / d d / d: what the difference of the stripes is weighed with in
  // the gradient; 0 for equal stripes.
  void (*stripe_slopes)(T* values, int64_t count);

  // out = sum over c of weights[c] (self - others[c]), (depth) each.
  void (*weighted_differences)(const T* self, const T* const* others, const T* weights, int64_t count, int64_t depth,
                               T* out);

  // A row of channel_attention, weights: (count) exponentials, slopes: (count) products of the row's grad with values.
  // weights[j] *= share; slopes[j] = weights[j] (slopes[j] - delta).
  void (*softmax_slopes)(T* weights, T* slopes, int64_t count, T share, T delta);

  // The same of a few rows of weights, `stride` (whole vectors) apart, which become slopes in place, with the products.
  // share, delta: (rows), grads: (rows, kFewValues), values: (kFewValues, stride). grad_values, (kFewValues, stride),
  // grows by grads^T @ weights.
  void (*few_value_slopes)(T* weights, int64_t rows, int64_t stride, const T* share, const T* delta, const T* grads,
                           const T* values, T* grad_values);
};

template <typename T>
const Kernels<T>& kernels();

}  // namespace reidops
