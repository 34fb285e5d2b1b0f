// batch_hard: each anchor's farthest sample of its label and nearest of another (Hermans 2017).
//
// Selection runs over tiles of squared distances, each pair once: B^2 d FLOPs, memory O(B d); the two distances returned
// are computed again from the differences. Small batches take all distances from the differences, 3 B^2 d / 2 FLOPs. The
// anchor is a positive candidate at distance 0. Ties: the lowest index.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <unordered_map>

#include "equal_images.h"
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
  return compact;
}

// The first sample of another label; the anchor itself where there is none.
int64_t first_other(const std::vector<int32_t>& labels, int64_t anchor) {
  const auto other = std::find_if(labels.begin(), labels.end(), [&](int32_t l) { return l != labels[anchor]; });
  return other == labels.end() ? anchor : other - labels.begin();
}

// Elements of all pairs up to which the differences are taken: about where waking threads and packing for a product cost
// less than the arithmetic that it saves.
constexpr int64_t kSmallWork = 1 << 24;

bool is_small(int64_t batch, int64_t depth) { return batch <= 512 && batch * batch * depth <= kSmallWork; }

// A few rows at a time: their distances among themselves and to what comes after.
template <typename T>
void mine_small(const T* x, int64_t batch, int64_t d, HardestTable<T>& hardest) {
  constexpr int64_t kRows = 8;
  std::vector<Scratch<T>> squared(num_workers());
  parallel_tasks(ceil_div(batch, kRows), 2 * batch * kRows * d, [&](int64_t task, int64_t worker) {
    const int64_t i0 = task * kRows, i1 = std::min(batch, i0 + kRows), width = batch - i0;
    T* values = squared[worker].reserve(kRows * batch);
    kernels<T>().pair_distances(x + i0 * d, i1 - i0, x + i0 * d, width, d, values, width);
    hardest.add(Tile<T>{i0, i1, i0, batch, i1, values, width});
  });
}

// Whether squared distances cannot overflow: |value| at most sqrt(largest / 4 d). NaN is not looked for.
template <typename T>
bool fit_squares(const T* x, int64_t batch, int64_t d) {
  const T limit = std::sqrt(std::numeric_limits<T>::max() / static_cast<T>(4 * d));
  std::atomic<bool> fit{true};
  parallel_ranges(batch, d, [&](int64_t begin, int64_t end) {
    T smallest = T(0), largest = T(0);
    kernels<T>().extrema(x + begin * d, (end - begin) * d, &smallest, &largest);
    if (!(smallest >= -limit && largest <= limit)) fit = false;
  });
  return fit;
}

Result batch_hard(const Tensor& features_in, const Tensor& labels_in, std::string precision, bool refuse) {
  const Tensor features = dense(features_in, 2, "features");
  const int64_t batch = features.size(0), d = features.size(1);
  const Tensor labels = dense_int64(labels_in, batch, "labels");
  STD_TORCH_CHECK(batch >= 1 && d >= 1, "features should not be empty");
  STD_TORCH_CHECK(batch < std::numeric_limits<int32_t>::max(), "too many samples");
  const std::vector<int32_t> compact = compact_labels(data<int64_t>(labels), batch);
  STD_TORCH_CHECK(!refuse || first_other(compact, 0) != 0, "labels should hold at least two different values");
  Tensor positive = new_tensor({batch}, features.scalar_type()), negative = new_tensor({batch}, features.scalar_type());
  Tensor positive_index = new_tensor({batch}, ScalarType::Long), negative_index = new_tensor({batch}, ScalarType::Long);
  return with_floating_type(features, "features", [&](auto zero) {
    using T = decltype(zero);
    const T* x = data<T>(features);
    HardestTable<T> hardest(compact);
    const bool small = is_small(batch, d);
    STD_TORCH_CHECK(!refuse || fit_squares(x, batch, d), "features should be finite, and their squares as well");
    if (small) {
      mine_small(x, batch, d, hardest);
    } else {
      const Images<T> samples = one_set(x, batch, 1, d);
      EuclideanTiles<T> tiles(samples, samples, engine_for_pairs(samples, parse_precision(precision)));
      for_each_tile(tiles, 0, batch, 0, batch, true, [&](int64_t, const Tile<T>& tile) { hardest.add(tile); });
    }
    T *p = mutable_data<T>(positive), *n = mutable_data<T>(negative);
    int64_t *pi = mutable_data<int64_t>(positive_index), *ni = mutable_data<int64_t>(negative_index);
    std::atomic<bool> finite{true};
    parallel_ranges(batch, small ? 1 : 4 * d, [&](int64_t begin, int64_t end) {
      const auto distance = [&](int64_t i, int64_t j) {
        return std::sqrt(kernels<T>().pair_squared_distance(x + i * d, x + j * d, d));
      };
      for (int64_t i = begin; i < end; ++i) {
        // Distances that overflow, or are not numbers, leave no index: the first sample there is stands in.
        const int32_t far = hardest.positive_index(i), near = hardest.negative_index(i);
        pi[i] = far == hardest.kNone ? i : far;
        ni[i] = near == hardest.kNone ? first_other(compact, i) : near;
        p[i] = small && far != hardest.kNone ? std::sqrt(hardest.positive(i)) : distance(i, pi[i]);
        n[i] = small && near != hardest.kNone ? std::sqrt(hardest.negative(i)) : distance(i, ni[i]);
        if (ni[i] == i) n[i] = std::numeric_limits<T>::quiet_NaN();  // there is no other label
        if (!std::isfinite(p[i]) || !std::isfinite(n[i])) finite = false;
      }
    });
    // A value that is not finite makes its own sample's distance to itself NaN.
    STD_TORCH_CHECK(finite || !refuse, "features should be finite, and their squares as well");
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
        n[i] = near < 0 ? std::numeric_limits<T>::quiet_NaN() : row[near];
        pi[i] = far;
        ni[i] = near < 0 ? i : near;  // there is no other label
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
