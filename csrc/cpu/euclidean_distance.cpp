// euclidean_distance: all pairs of two sets of points.
#include "tensor.h"
#include "tiles.h"

namespace reidops {
namespace {

Tensor euclidean_distance(const Tensor& x, const Tensor& y, bool squared) {
  const Tensor left = dense(x, 2, "x"), right = dense(y, 2, "y");
  const int64_t m = left.size(0), n = right.size(0), d = left.size(1);
  STD_TORCH_CHECK(d >= 1 && right.size(1) == d && left.scalar_type() == right.scalar_type(), "x and y should match");
  Tensor out = new_tensor({m, n}, left.scalar_type());
  return with_floating_type(left, "x", [&](auto zero) {
    using T = decltype(zero);
    T* result = mutable_data<T>(out);
    EuclideanTiles<T> tiles(data<T>(left), m, data<T>(right), n, d);
    for_each_tile(tiles, 0, m, 0, n,
                  [&](int64_t, int64_t i0, int64_t i1, int64_t j0, int64_t j1, const T* tile, int64_t stride) {
                    for (int64_t i = i0; i < i1; ++i) {
                      const T* row = tile + (i - i0) * stride;
                      T* to = result + i * n + j0;
                      for (int64_t j = 0; j < j1 - j0; ++j) to[j] = squared ? row[j] : std::sqrt(row[j]);
                    }
                  });
    return out;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(reidops, CPU, m) { m.impl("euclidean_distance", TORCH_BOX(&euclidean_distance)); }

}  // namespace reidops
