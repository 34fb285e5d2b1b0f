// knn: the k nearest gallery points of every query, without the matrix of distances.
#include "nearest.h"
#include "tensor.h"
#include "tiles.h"

namespace reidops {
namespace {

std::tuple<Tensor, Tensor> knn(const Tensor& query_in, const Tensor& gallery_in, int64_t k, std::string /*precision*/) {
  const Tensor query = dense(query_in, 2, "query"), gallery = dense(gallery_in, 2, "gallery");
  const int64_t m = query.size(0), n = gallery.size(0), d = query.size(1);
  STD_TORCH_CHECK(d >= 1 && gallery.size(1) == d && query.scalar_type() == gallery.scalar_type(),
                  "query and gallery should match");
  STD_TORCH_CHECK(k >= 1 && k <= n, "k should be between 1 and ", n, ", got ", k);
  Tensor distance = new_tensor({m, k}, query.scalar_type()), index = new_tensor({m, k}, ScalarType::Long);
  return with_floating_type(query, "query", [&](auto zero) {
    using T = decltype(zero);
    const auto& kernel = kernels<T>();
    EuclideanTiles<T> tiles(data<T>(query), m, data<T>(gallery), n, d);
    T* distances = mutable_data<T>(distance);
    int64_t* indices = mutable_data<int64_t>(index);
    std::vector<Nearest<T>> nearest(m);
    for (auto& row : nearest) row.start(k);
    for_each_tile(tiles, 0, m, 0, n,
                  [&](int64_t, int64_t i0, int64_t i1, int64_t j0, int64_t j1, const T* tile, int64_t stride) {
                    for (int64_t i = i0; i < i1; ++i) nearest[i].add(tile + (i - i0) * stride, j1 - j0, j0, kernel);
                  });
    parallel_ranges(m, 64 * k, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        // Distances that are not numbers are nobody's neighbours: fewer than k may have come.
        for (int64_t r = nearest[i].finish(distances + i * k, indices + i * k); r < k; ++r) {
          distances[i * k + r] = std::numeric_limits<T>::infinity();
          indices[i * k + r] = 0;
        }
      }
    });
    return std::make_tuple(distance, index);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(reidops, CPU, m) { m.impl("knn", TORCH_BOX(&knn)); }

}  // namespace reidops
