// batch_hard: each anchor's farthest sample of its label and nearest of another (Hermans 2017).
//
// Selection runs over tiles of squared distances, 2 B^2 d FLOPs, memory O(B d); the two distances returned are computed
// again from the differences. Small batches take all distances from the differences, 3 B^2 d / 2 FLOPs, in a B x B
// matrix that is not larger than a few feature matrices. The anchor is a positive candidate at distance 0. Ties: the
// lowest index.
#include <algorithm>
#include <cmath>
#include <limits>
#include <unordered_map>

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

template <typename T>
struct Hardest {
  T positive = -std::numeric_limits<T>::infinity(), negative = std::numeric_limits<T>::infinity();
  int64_t positive_index = -1, negative_index = -1;

  // distances[j] belongs to sample first + j
  void add(const T* distances, const int32_t* labels, int32_t label, int64_t first, int64_t count,
           const Kernels<T>& kernel) {
    T farthest = positive, nearest = negative;
    kernel.labelled_extrema(distances, labels + first, label, count, &farthest, &nearest);
    for (int64_t j = 0; farthest > positive && j < count; ++j) {
      if (labels[first + j] == label && distances[j] == farthest) positive = farthest, positive_index = first + j;
    }
    for (int64_t j = 0; nearest < negative && j < count; ++j) {
      if (labels[first + j] != label && distances[j] == nearest) negative = nearest, negative_index = first + j;
    }
  }

  // Distances that overflow, or are not numbers, leave no index: the first sample there is stands in.
  void stand_in(const std::vector<int32_t>& labels, int64_t anchor) {
    if (positive_index < 0) positive_index = anchor;
    if (negative_index < 0) negative_index = first_other(labels, anchor);
  }
};

// Elements of all pairs up to which the differences are taken: about where waking threads and packing for a product cost
// less than the arithmetic that it saves.
constexpr int64_t kSmallWork = 1 << 24;

bool is_small(int64_t batch, int64_t depth) { return batch <= 512 && batch * batch * depth <= kSmallWork; }

// The squared distances of a small batch, (batch, batch): those on and above the diagonal from the differences, one task
// for each kRows of rows, the rest from across the diagonal.
template <typename T>
void small_distances(const T* x, int64_t batch, int64_t d, T* squared) {
  constexpr int64_t kRows = 8;
  const int64_t tasks = ceil_div(batch, kRows);
  parallel_tasks(tasks, 2 * batch * kRows * d, [&](int64_t task, int64_t) {
    const int64_t i = task * kRows, rows = std::min(kRows, batch - i);
    kernels<T>().pair_distances(x + i * d, rows, x + i * d, batch - i, d, squared + i * batch + i, batch);
  });
  for (int64_t i = kRows; i < batch; ++i) {
    const int64_t block = i - i % kRows;  // the kernel has filled the row from here on
    for (int64_t j = 0; j < block; ++j) squared[i * batch + j] = squared[j * batch + i];
  }
}

// small_distances, and each anchor's extremes among them. False if one is not finite: a value that is not makes its own
// sample's distance to itself NaN.
template <typename T>
bool mine_small(const T* x, const std::vector<int32_t>& labels, int64_t d, T* positive, T* negative,
                int64_t* positive_index, int64_t* negative_index) {
  const int64_t batch = static_cast<int64_t>(labels.size());
  Scratch<T> memory;
  T* squared = memory.reserve(batch * batch);
  small_distances(x, batch, d, squared);
  bool finite = true;
  for (int64_t i = 0; i < batch; ++i) {
    const T* row = squared + i * batch;
    Hardest<T> hardest;
    hardest.add(row, labels.data(), labels[i], 0, batch, kernels<T>());
    hardest.stand_in(labels, i);
    positive_index[i] = hardest.positive_index;
    negative_index[i] = hardest.negative_index;
    positive[i] = std::sqrt(row[hardest.positive_index]);
    negative[i] = std::sqrt(row[hardest.negative_index]);
    finite &= std::isfinite(positive[i]) && std::isfinite(negative[i]);
  }
  return finite;
}

// Whether squared distances cannot overflow: |value| at most sqrt(largest / 4 d), and no NaN.
template <typename T>
bool fit_squares(const T* x, int64_t batch, int64_t d) {
  const T limit = std::sqrt(std::numeric_limits<T>::max() / static_cast<T>(4 * d));
  std::atomic<bool> fit{true};
  parallel_ranges(batch, d, [&](int64_t begin, int64_t end) {
    int beyond = 0;
    for (int64_t k = begin * d; k < end * d; ++k) beyond |= !(std::abs(x[k]) <= limit);
    if (beyond) fit = false;
  });
  return fit;
}

Result batch_hard(const Tensor& features_in, const Tensor& labels_in, std::string /*precision*/, bool refuse) {
  const Tensor features = dense(features_in, 2, "features");
  const int64_t batch = features.size(0), d = features.size(1);
  const Tensor labels = dense_int64(labels_in, batch, "labels");
  STD_TORCH_CHECK(batch >= 1 && d >= 1, "features should not be empty");
  const std::vector<int32_t> compact = compact_labels(data<int64_t>(labels), batch);
  Tensor positive = new_tensor({batch}, features.scalar_type()), negative = new_tensor({batch}, features.scalar_type());
  Tensor positive_index = new_tensor({batch}, ScalarType::Long), negative_index = new_tensor({batch}, ScalarType::Long);
  return with_floating_type(features, "features", [&](auto zero) {
    using T = decltype(zero);
    const auto& kernel = kernels<T>();
    const T* x = data<T>(features);
    T *p = mutable_data<T>(positive), *n = mutable_data<T>(negative);
    int64_t *pi = mutable_data<int64_t>(positive_index), *ni = mutable_data<int64_t>(negative_index);
    if (is_small(batch, d)) {
      const bool finite = mine_small(x, compact, d, p, n, pi, ni);
      STD_TORCH_CHECK(finite || !refuse, "features should be finite, and their squares as well");
      return Result(positive, negative, positive_index, negative_index);
    }
    STD_TORCH_CHECK(!refuse || fit_squares(x, batch, d), "features should be finite, and their squares as well");
    std::vector<Hardest<T>> hardest(batch);
    EuclideanTiles<T> tiles(x, batch, x, batch, d);
    for_each_tile(tiles, 0, batch, 0, batch,
                  [&](int64_t, int64_t i0, int64_t i1, int64_t j0, int64_t j1, const T* tile, int64_t stride) {
                    for (int64_t i = i0; i < i1; ++i)
                      hardest[i].add(tile + (i - i0) * stride, compact.data(), compact[i], j0, j1 - j0, kernel);
                  });
    parallel_ranges(batch, 4 * d, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        hardest[i].stand_in(compact, i);
        pi[i] = hardest[i].positive_index;
        ni[i] = hardest[i].negative_index;
        p[i] = std::sqrt(kernel.pair_squared_distance(x + i * d, x + pi[i] * d, d));
        n[i] = std::sqrt(kernel.pair_squared_distance(x + i * d, x + ni[i] * d, d));
      }
    });
    return Result(positive, negative, positive_index, negative_index);
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
  m.impl("batch_hard_from_distance", TORCH_BOX(&batch_hard_from_distance));
}

}  // namespace reidops
