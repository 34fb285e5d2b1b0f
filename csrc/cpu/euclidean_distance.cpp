// euclidean_distance: all pairs of two sets of points, and its gradient.
//
// With W_ij = grad_ij * (2 for squared distances, 1 / d_ij otherwise, 0 where d_ij = 0):
//   dx_i = sum_j W_ij (x_i - y_j) = (sum_j W_ij) x_i - (W y)_i,  dy_j likewise with W^T.
// The product form costs 2 M N d FLOPs a side, but cancels for pairs nearer than their norms; those are left out of W and
// added from their differences.
//
// Both run on the vector unit, so that the distance is the same to the last bit from either side.
#include "centre.h"
#include "products.h"
#include "tensor.h"
#include "tiles.h"

namespace reidops {
namespace {

constexpr int64_t kBlockRows = 64;

Tensor euclidean_distance(const Tensor& x, const Tensor& y, bool squared) {
  const Tensor left = dense(x, 2, "x"), right = dense(y, 2, "y");
  const int64_t m = left.size(0), n = right.size(0), d = left.size(1);
  STD_TORCH_CHECK(d >= 1 && right.size(1) == d && left.scalar_type() == right.scalar_type(), "x and y should match");
  Tensor out = new_tensor({m, n}, left.scalar_type());
  return with_floating_type(left, "x", [&](auto zero) {
    using T = decltype(zero);
    T* result = mutable_data<T>(out);
    EuclideanTiles<T> tiles(one_set(data<T>(left), m, 1, d), one_set(data<T>(right), n, 1, d), vector_engine<T>());
    for_each_tile(tiles, 0, m, 0, n, false, [&](int64_t, const Tile<T>& tile) {
      for (int64_t i = tile.i0; i < tile.i1; ++i) {
        const T* row = tile.row(i);
        T* to = result + i * n + tile.j0;
        for (int64_t j = 0; j < tile.j1 - tile.j0; ++j) to[j] = squared ? row[j] : std::sqrt(row[j]);
      }
    });
    return out;
  });
}

// One side's points: as they are, around the centre, and the squared norms of the latter.
template <typename T>
struct Points {
  const T* plain;
  int64_t count, depth;
  std::vector<T> centred, norms;

  Points(const T* x, int64_t rows, int64_t d, const std::vector<T>& centre)
      : plain(x), count(rows), depth(d), centred(rows * d), norms(rows) {
    parallel_ranges(rows, 4 * d, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        for (int64_t k = 0; k < d; ++k) centred[i * d + k] = x[i * d + k] - centre[k];
        norms[i] = kernels<T>().dot(&centred[i * d], &centred[i * d], d);
      }
    });
  }
};

// The gradient of one side. grad and distance of the pair (i of own, j of other) lie at i * row_stride + j * column_stride.
template <typename T>
void side_gradient(const T* grad, const T* distance, int64_t row_stride, int64_t column_stride, bool squared,
                   const Points<T>& own, const Points<T>& other, T* out) {
  const int64_t d = own.depth;
  Right<T> others(vector_engine<T>());
  others.pack_transposed(other.centred.data(), d, other.count);
  struct Worker {
    BlockProduct<T> product{vector_engine<T>()};
    Scratch<T> weights, sums;
  };
  std::vector<Worker> workers(num_workers());
  parallel_tasks(ceil_div(own.count, kBlockRows), kBlockRows * other.count * d, [&](int64_t task, int64_t worker) {
    Worker& w = workers[worker];
    const int64_t i0 = task * kBlockRows, rows = std::min(kBlockRows, own.count - i0);
    T* weights = w.weights.reserve(rows * other.count);
    for (int64_t i = i0; i < i0 + rows; ++i) {
      T* row = weights + (i - i0) * other.count;
      T* to = out + i * d;
      T total = T(0);
      std::fill_n(to, d, T(0));
      for (int64_t j = 0; j < other.count; ++j) {
        const T g = grad[i * row_stride + j * column_stride], from = distance[i * row_stride + j * column_stride];
        T weight = squared ? 2 * g : from == T(0) ? T(0) : g / from;
        const T square = squared ? from : from * from;
        if (weight != T(0) && !(square >= kCancellation<T> * (own.norms[i] + other.norms[j]))) {
          const T *a = own.plain + i * d, *b = other.plain + j * d;
          for (int64_t k = 0; k < d; ++k) to[k] += weight * (a[k] - b[k]);
          weight = T(0);
        }
        row[j] = weight;
        total += weight;
      }
      for (int64_t k = 0; k < d; ++k) to[k] += total * own.centred[i * d + k];
    }
    const T* sums = w.product.multiply(weights, rows, other.count, others, w.sums);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t k = 0; k < d; ++k) out[(i0 + i) * d + k] -= sums[i * others.stride() + k];
    }
  });
}

std::tuple<Tensor, Tensor> euclidean_distance_backward(const Tensor& grad_in, const Tensor& x_in, const Tensor& y_in,
                                                       const Tensor& distance_in, bool squared) {
  const Tensor x = dense(x_in, 2, "x"), y = dense(y_in, 2, "y"), grad = dense(grad_in, 2, "grad");
  const Tensor distance = dense(distance_in, 2, "distance");
  const int64_t m = x.size(0), n = y.size(0), d = x.size(1);
  STD_TORCH_CHECK(d >= 1 && y.size(1) == d && y.scalar_type() == x.scalar_type(), "x and y should match");
  for (const Tensor* t : {&grad, &distance}) {
    STD_TORCH_CHECK(t->size(0) == m && t->size(1) == n && t->scalar_type() == x.scalar_type(),
                    "grad and distance should match x and y");
  }
  Tensor grad_x = new_tensor({m, d}, x.scalar_type()), grad_y = new_tensor({n, d}, x.scalar_type());
  return with_floating_type(x, "x", [&](auto zero) {
    using T = decltype(zero);
    CoarseMean<T> mean(d);
    mean.add(data<T>(x), m);
    mean.add(data<T>(y), n);
    const auto centre = mean.get();
    const Points<T> left(data<T>(x), m, d, centre), right(data<T>(y), n, d, centre);
    const T *g = data<T>(grad), *from = data<T>(distance);
    if (m == 0 || n == 0) {
      std::fill_n(mutable_data<T>(grad_x), m * d, T(0));
      std::fill_n(mutable_data<T>(grad_y), n * d, T(0));
    } else {
      side_gradient(g, from, n, 1, squared, left, right, mutable_data<T>(grad_x));
      side_gradient(g, from, 1, n, squared, right, left, mutable_data<T>(grad_y));
    }
    return std::make_tuple(grad_x, grad_y);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(reidops, CPU, m) {
  m.impl("euclidean_distance", TORCH_BOX(&euclidean_distance));
  m.impl("euclidean_distance_backward", TORCH_BOX(&euclidean_distance_backward));
}

}  // namespace reidops
