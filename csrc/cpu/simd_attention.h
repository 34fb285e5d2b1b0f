// The vector kernels of channel_attention, part of simd_kernels.h: a row of softmax weights P and the gradient of its
// scores, dS = P (dP - delta) with dP = grad value^T.

template <typename T>
void softmax_slopes(T* __restrict__ weights, T* __restrict__ slopes, int64_t count, T share, T delta) {
  for (int64_t j = 0; j < count; ++j) {
    const T weight = weights[j] * share;
    weights[j] = weight;
    slopes[j] = weight * (slopes[j] - delta);
  }
}

// With kFewValues numbers a value, dP is so short a sum that its matrix need not be: a vector of weights takes 8 fused
// additions and 3 other operations between its load and its store. Values and their gradient stay in registers for all
// rows.
template <typename T>
void few_value_slopes(T* weights, int64_t rows, int64_t stride, const T* share, const T* delta, const T* grads,
                      const T* values, T* grad_values) {
  using Vector = typename Simd<T>::Vector;
  for (int64_t j = 0; j + Simd<T>::kLanes <= stride; j += Simd<T>::kLanes) {
    Vector value[kFewValues], sums[kFewValues];
#pragma GCC unroll 4
    for (int v = 0; v < kFewValues; ++v) {
      value[v] = *reinterpret_cast<const Vector*>(values + v * stride + j);
      sums[v] = *reinterpret_cast<const Vector*>(grad_values + v * stride + j);
    }
    for (int64_t r = 0; r < rows; ++r) {
      Vector* at = reinterpret_cast<Vector*>(weights + r * stride + j);
      const Vector weight = *at * share[r];
      Vector slope = Vector{} - delta[r];
#pragma GCC unroll 4
      for (int v = 0; v < kFewValues; ++v) {
        const T grad = grads[r * kFewValues + v];
        slope += grad * value[v];
        sums[v] += grad * weight;
      }
      *at = weight * slope;
    }
#pragma GCC unroll 4
    for (int v = 0; v < kFewValues; ++v) *reinterpret_cast<Vector*>(grad_values + v * stride + j) = sums[v];
  }
}
