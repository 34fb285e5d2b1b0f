// The gradient of batch_hard. For anchor a, its positive or negative b, and w = grad[a] / distance[a]:
//   d x_a += w (x_a - x_b),  d x_b += w (x_b - x_a).
//
// Each sample gathers its own two terms and those of the anchors that chose it, about four rows of d elements in all, in
// one pass that writes its gradient once: bound by memory. The order of the terms is that of the anchors, so that the
// sum does not depend on the number of threads.
#include <algorithm>

#include "parallel.h"
#include "simd.h"
#include "tensor.h"

namespace reidops {
namespace {

// The terms of every sample: those of sample i at first[i] .. first[i + 1].
template <typename T>
struct Terms {
  std::vector<int64_t> first, other;
  std::vector<T> weight;

  struct Pairs {
    const T *grad, *distance;  // (batch)
    const int64_t* index;      // (batch)

    T slope(int64_t a) const { return distance[a] > T(0) ? grad[a] / distance[a] : T(0); }
  };

  Terms(std::initializer_list<Pairs> kinds, int64_t batch) : first(batch + 2, 0) {
    // first[i + 2] counts the terms of sample i, and first[i + 1] becomes the place of its next one.
    for_each(kinds, batch, [&](int64_t i, int64_t, T) { ++first[i + 2]; });
    for (int64_t i = 0; i < batch; ++i) first[i + 2] += first[i + 1];
    other.resize(first[batch + 1]);
    weight.resize(first[batch + 1]);
    for_each(kinds, batch, [&](int64_t i, int64_t partner, T w) {
      const int64_t place = first[i + 1]++;
      other[place] = partner;
      weight[place] = w;
    });
  }

  // Pairs without a gradient, and those at distance 0, where the subgradient is 0, are left out.
  template <typename Visit>
  static void for_each(std::initializer_list<Pairs> kinds, int64_t batch, Visit visit) {
    for (int64_t a = 0; a < batch; ++a) {
      for (const Pairs& pairs : kinds) {
        const T w = pairs.slope(a);
        if (w == T(0)) continue;
        visit(a, pairs.index[a], w);
        visit(pairs.index[a], a, w);
      }
    }
  }
};

void check_index(const int64_t* index, int64_t batch) {
  for (int64_t a = 0; a < batch; ++a) STD_TORCH_CHECK(index[a] >= 0 && index[a] < batch, "index out of range");
}

Tensor batch_hard_backward(const Tensor& grad_positive_in, const Tensor& grad_negative_in, const Tensor& features_in,
                           const Tensor& positive_in, const Tensor& negative_in, const Tensor& positive_index_in,
                           const Tensor& negative_index_in) {
  const Tensor features = dense(features_in, 2, "features");
  const int64_t batch = features.size(0), d = features.size(1);
  const Tensor grad_positive = dense(grad_positive_in, 1, "grad_positive"),
               grad_negative = dense(grad_negative_in, 1, "grad_negative");
  const Tensor positive = dense(positive_in, 1, "positive_distance"),
               negative = dense(negative_in, 1, "negative_distance");
  for (const Tensor* t : {&grad_positive, &grad_negative, &positive, &negative}) {
    STD_TORCH_CHECK(t->size(0) == batch && t->scalar_type() == features.scalar_type(),
                    "gradients and distances should match features");
  }
  const Tensor positive_index = dense_int64(positive_index_in, batch, "positive_index");
  const Tensor negative_index = dense_int64(negative_index_in, batch, "negative_index");
  check_index(data<int64_t>(positive_index), batch);
  check_index(data<int64_t>(negative_index), batch);
  Tensor out = new_tensor({batch, d}, features.scalar_type());
  return with_floating_type(features, "features", [&](auto zero) {
    using T = decltype(zero);
    const T* x = data<T>(features);
    T* result = mutable_data<T>(out);
    const Terms<T> terms({{data<T>(grad_positive), data<T>(positive), data<int64_t>(positive_index)},
                          {data<T>(grad_negative), data<T>(negative), data<int64_t>(negative_index)}},
                         batch);
    constexpr int64_t kRows = 16;
    parallel_tasks(ceil_div(batch, kRows), kRows * 16 * d, [&](int64_t task, int64_t) {
      std::vector<const T*> others;
      for (int64_t i = task * kRows; i < std::min(batch, (task + 1) * kRows); ++i) {
        const int64_t begin = terms.first[i], count = terms.first[i + 1] - begin;
        others.resize(count);
        for (int64_t c = 0; c < count; ++c) others[c] = x + terms.other[begin + c] * d;
        kernels<T>().weighted_differences(x + i * d, others.data(), terms.weight.data() + begin, count, d,
                                          result + i * d);
      }
    });
    return out;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(reidops, CPU, m) { m.impl("batch_hard_backward", TORCH_BOX(&batch_hard_backward)); }

}  // namespace reidops
