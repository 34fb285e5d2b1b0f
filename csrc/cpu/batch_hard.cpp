// batch_hard: each anchor's farthest sample of its label and nearest of another (Hermans 2017), with gradient.
//
// Selection runs over tiles of squared distances, each pair once: B^2 d FLOPs, memory O(B d); the two distances returned are computed
// again from the differences. The anchor is a positive candidate at distance 0. Ties: the lowest index.
#include <algorithm>
#include <cmath>
#include <limits>
#include <unordered_map>

#include "hardest.h"
#include "tensor.h"
#include "tiles.h"

namespace reidops {
namespace {

using Result = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// Labels as 32-bit numbers 0, 1, ... in order of appearance, which vectors compare faster.
std::vector<int32_t> compact_labels(const int64_t* labels, int64_t count) {
  std::unordered_map<int64_t, int32_t> numbers;
  std::vector<int32_t> compact(count);
  for (int64_t i = 0; i < count; ++i)
    compact[i] = numbers.emplace(labels[i], static_cast<int32_t>(numbers.size())).first->second;
  STD_TORCH_CHECK(numbers.size() != 1, "every anchor needs a sample of another label, but all labels are equal");
  return compact;
}

int64_t first_other(const std::vector<int32_t>& labels, int64_t anchor) {
  return std::find_if(labels.begin(), labels.end(), [&](int32_t l) { return l != labels[anchor]; }) - labels.begin();
}

Result batch_hard(const Tensor& features_in, const Tensor& labels_in, std::string precision) {
  const Tensor features = dense(features_in, 2, "features");
  const int64_t batch = features.size(0), d = features.size(1);
  const Tensor labels = dense_int64(labels_in, batch, "labels");
  STD_TORCH_CHECK(batch >= 1 && d >= 1, "features should not be empty");
  STD_TORCH_CHECK(batch < std::numeric_limits<int32_t>::max(), "too many samples");
  const std::vector<int32_t> compact = compact_labels(data<int64_t>(labels), batch);
  Tensor positive = new_tensor({batch}, features.scalar_type()), negative = new_tensor({batch}, features.scalar_type());
  Tensor positive_index = new_tensor({batch}, ScalarType::Long), negative_index = new_tensor({batch}, ScalarType::Long);
  return with_floating_type(features, "features", [&](auto zero) {
    using T = decltype(zero);
    const auto& kernel = kernels<T>();
    const T* x = data<T>(features);
    const Images<T> samples = one_set(x, batch, 1, d);
    EuclideanTiles<T> tiles(samples, samples, engine<T>(parse_precision(precision)));
    HardestTable<T> hardest(compact);
    for_each_tile(tiles, 0, batch, 0, batch, true, [&](int64_t, const Tile<T>& tile) { hardest.add(tile); });
    T *p = mutable_data<T>(positive), *n = mutable_data<T>(negative);
    int64_t *pi = mutable_data<int64_t>(positive_index), *ni = mutable_data<int64_t>(negative_index);
    parallel_ranges(batch, 4 * d, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        // Distances that overflow, or are not numbers, leave no index: the first sample there is stands in.
        const int32_t far = hardest.positive_index(i), near = hardest.negative_index(i);
        pi[i] = far == hardest.kNone ? i : far;
        ni[i] = near == hardest.kNone ? first_other(compact, i) : near;
        p[i] = std::sqrt(kernel.pair_squared_distance(x + i * d, x + pi[i] * d, d));
        n[i] = std::sqrt(kernel.pair_squared_distance(x + i * d, x + ni[i] * d, d));
      }
    });
    return Result(positive, negative, positive_index, negative_index);
  });
}

// Adds the gradient of one kind of pair: for anchor a and partner b = index[a], s = grad[a] / distance[a]:
//   d x_a += s (x_a - x_b),  d x_b -= s (x_a - x_b).
// Each sample gathers its own and its partners' terms in ascending order of anchors, so threads never share a row and
// the sum does not depend on their number.
template <typename T>
void add_pair_gradients(const T* x, const T* grad, const T* distance, const int64_t* index, int64_t batch, int64_t d,
                        T* out) {
  std::vector<int64_t> first(batch + 1, 0), anchors(batch);
  for (int64_t a = 0; a < batch; ++a) {
    STD_TORCH_CHECK(index[a] >= 0 && index[a] < batch, "index out of range");
    ++first[index[a] + 1];
  }
  for (int64_t i = 0; i < batch; ++i) first[i + 1] += first[i];
  std::vector<int64_t> next(first.begin(), first.end() - 1);
  for (int64_t a = 0; a < batch; ++a) anchors[next[index[a]]++] = a;
  const auto slope = [&](int64_t a) { return distance[a] > T(0) ? grad[a] / distance[a] : T(0); };
  parallel_ranges(batch, 16 * d, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T* to = out + i * d;
      const T* self = x + i * d;
      const auto add = [&](T scale, const T* other) {
        if (scale == T(0)) return;
        for (int64_t k = 0; k < d; ++k) to[k] += scale * (self[k] - other[k]);
      };
      add(slope(i), x + index[i] * d);
      for (int64_t r = first[i]; r < first[i + 1]; ++r) add(slope(anchors[r]), x + anchors[r] * d);
    }
  });
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
  Tensor out = new_tensor({batch, d}, features.scalar_type());
  return with_floating_type(features, "features", [&](auto zero) {
    using T = decltype(zero);
    const T* x = data<T>(features);
    T* result = mutable_data<T>(out);
    std::fill_n(result, batch * d, T(0));
    add_pair_gradients(x, data<T>(grad_positive), data<T>(positive), data<int64_t>(positive_index), batch, d, result);
    add_pair_gradients(x, data<T>(grad_negative), data<T>(negative), data<int64_t>(negative_index), batch, d, result);
    return out;
  });
}

Result batch_hard_from_distance(const Tensor& distance_in, const Tensor& labels_in) {
  const Tensor distance = dense(distance_in, 2, "distance");
  const int64_t batch = distance.size(0);
  STD_TORCH_CHECK(batch >= 1 && distance.size(1) == batch, "distance should be square and not empty");
  const Tensor labels = dense_int64(labels_in, batch, "labels");
  const std::vector<int32_t> compact = compact_labels(data<int64_t>(labels), batch);
  Tensor positive = new_tensor({batch}, distance.scalar_type()), negative = new_tensor({batch}, distance.scalar_type());
  Tensor positive_index = new_tensor({batch}, ScalarType::Long), negative_index = new_tensor({batch}, ScalarType::Long);
  return with_floating_type(distance, "distance", [&](auto zero) {
    using T = decltype(zero);
    const T* from = data<T>(distance);
    T *p = mutable_data<T>(positive), *n = mutable_data<T>(negative);
    int64_t *pi = mutable_data<int64_t>(positive_index), *ni = mutable_data<int64_t>(negative_index);
    parallel_ranges(batch, 8 * batch, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const T* row = from + i * batch;
        int64_t far = -1, near = -1;
        for (int64_t j = 0; j < batch; ++j) {
          if (compact[j] == compact[i]) {
            if (far < 0 || row[j] > row[far]) far = j;
          } else if (near < 0 || row[j] < row[near]) {
            near = j;
          }
        }
        p[i] = row[far];
        n[i] = row[near];
        pi[i] = far;
        ni[i] = near;
      }
    });
    return Result(positive, negative, positive_index, negative_index);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(reidops, CPU, m) {
  m.impl("batch_hard", TORCH_BOX(&batch_hard));
  m.impl("batch_hard_backward", TORCH_BOX(&batch_hard_backward));
  m.impl("batch_hard_from_distance", TORCH_BOX(&batch_hard_from_distance));
}

}  // namespace reidops
