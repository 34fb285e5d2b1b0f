// knn: the k nearest gallery points of every query, without the matrix of distances. Points among themselves: each pair
// of them is made once, M^2 d FLOPs instead of 2 M^2 d.
#include "equal_images.h"
#include "nearest.h"
#include "tensor.h"
#include "tiles.h"

namespace reidops {
namespace {

bool same_tensor(const Tensor& a, const Tensor& b) {
  if (a.const_data_ptr() != b.const_data_ptr() || a.dim() != b.dim()) return false;
  for (int64_t i = 0; i < a.dim(); ++i) {
    if (a.size(i) != b.size(i) || a.stride(i) != b.stride(i)) return false;
  }
  return true;
}

std::tuple<Tensor, Tensor> knn(const Tensor& query_in, const Tensor& gallery_in, int64_t k, std::string precision) {
  const Tensor query = dense(query_in, 2, "query");
  const Tensor gallery = same_tensor(query_in, gallery_in) ? query : dense(gallery_in, 2, "gallery");
  const int64_t m = query.size(0), n = gallery.size(0), d = query.size(1);
  STD_TORCH_CHECK(d >= 1 && gallery.size(1) == d && query.scalar_type() == gallery.scalar_type(),
                  "query and gallery should match");
  STD_TORCH_CHECK(k >= 1 && k <= n, "k should be between 1 and ", n, ", got ", k);
  Tensor distance = new_tensor({m, k}, query.scalar_type()), index = new_tensor({m, k}, ScalarType::Long);
  return with_floating_type(query, "query", [&](auto zero) {
    using T = decltype(zero);
    const Images<T> left = one_set(data<T>(query), m, 1, d), right = one_set(data<T>(gallery), n, 1, d);
    const Precision words = parse_precision(precision);
    EuclideanTiles<T> tiles(left, right, left == right ? engine_for_pairs(left, words) : engine<T>(words));
    T* distances = mutable_data<T>(distance);
    int64_t* indices = mutable_data<int64_t>(index);
    NearestTable<T> nearest(m, n, k);
    for_each_tile(tiles, 0, m, 0, n, tiles.symmetric(), [&](int64_t, const Tile<T>& tile) { nearest.add(tile); });
    parallel_ranges(m, 64 * k, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        // Distances that are not numbers are nobody's neighbours: fewer than k may have come.
        for (int64_t r = nearest.finish(i, distances + i * k, indices + i * k); r < k; ++r) {
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
