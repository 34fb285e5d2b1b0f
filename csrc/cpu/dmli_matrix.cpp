// dmli_matrix: the local distance of all pairs of two sets of images, for evaluation.
#include "tensor.h"
#include "tiles.h"

namespace reidops {
namespace {

Tensor dmli_matrix(const Tensor& x_in, const Tensor& y_in, bool aligned, std::string precision) {
  const Tensor x = dense(x_in, 3, "x"), y = dense(y_in, 3, "y");
  const int64_t rows = x.size(0), m = x.size(1), columns = y.size(0), n = y.size(1), d = x.size(2);
  STD_TORCH_CHECK(
      m >= 1 && n >= 1 && d >= 1 && y.size(2) == d && (aligned || m == n) && x.scalar_type() == y.scalar_type(),
      "x and y should match");
  Tensor out = new_tensor({rows, columns}, x.scalar_type());
  return with_floating_type(x, "x", [&](auto zero) {
    using T = decltype(zero);
    T* result = mutable_data<T>(out);
    DmliTiles<T> tiles(one_set(data<T>(x), rows, m, d), one_set(data<T>(y), columns, n, d), aligned,
                       engine<T>(parse_precision(precision)));
    for_each_tile(tiles, 0, rows, 0, columns, false, [&](int64_t, const Tile<T>& tile) {
      for (int64_t i = tile.i0; i < tile.i1; ++i)
        std::copy_n(tile.row(i), tile.j1 - tile.j0, result + i * columns + tile.j0);
    });
    return out;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(reidops, CPU, m) { m.impl("dmli_matrix", TORCH_BOX(&dmli_matrix)); }

}  // namespace reidops
