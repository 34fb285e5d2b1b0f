// k_reciprocal: re-ranking of features or of given distances. The stages are in re_ranking.h, the distances in tiles.h.
#include <limits>
#include <memory>
#include <optional>

#include "equal_images.h"
#include "re_ranking.h"
#include "tensor.h"
#include "tiles.h"

namespace reidops {
namespace {

struct Features {
  struct Sets {
    Tensor query, gallery;
  };
  std::optional<Sets> points, stripes;  // (., d) and (., stripes, d)
  int64_t queries = 0, total = 0;
  ScalarType type = ScalarType::Float;
  Tensor like;

  Features(const std::optional<Tensor>& query, const std::optional<Tensor>& gallery,
           const std::optional<Tensor>& query_local, const std::optional<Tensor>& gallery_local) {
    STD_TORCH_CHECK(query.has_value() == gallery.has_value() && query_local.has_value() == gallery_local.has_value() &&
                        (query.has_value() || query_local.has_value()),
                    "query and gallery, query_local and gallery_local, or both should be given");
    if (query.has_value()) {
      const Tensor q = dense(*query, 2, "query"), g = dense(*gallery, 2, "gallery");
      STD_TORCH_CHECK(q.size(1) == g.size(1) && q.size(1) >= 1 && q.scalar_type() == g.scalar_type(),
                      "query and gallery should match");
      points = Sets{q, g};
      queries = q.size(0);
      total = queries + g.size(0);
      like = q;
    }
    if (query_local.has_value()) {
      const Tensor q = dense(*query_local, 3, "query_local"), g = dense(*gallery_local, 3, "gallery_local");
      STD_TORCH_CHECK(q.size(1) == g.size(1) && q.size(2) == g.size(2) && q.size(1) * q.size(2) >= 1 &&
                          q.scalar_type() == g.scalar_type(),
                      "query_local and gallery_local should match");
      STD_TORCH_CHECK(!query.has_value() || (q.size(0) == queries && q.size(0) + g.size(0) == total &&
                                             q.scalar_type() == like.scalar_type()),
                      "query_local should match query, gallery_local gallery");
      stripes = Sets{q, g};
      queries = q.size(0);
      total = queries + g.size(0);
      like = q;
    }
    STD_TORCH_CHECK(queries >= 1 && total > queries, "query and gallery should not be empty");
    STD_TORCH_CHECK(total < std::numeric_limits<int32_t>::max(), "too many points");
  }

  template <typename T>
  std::unique_ptr<TileSource<T>> source(Precision precision) const {
    std::unique_ptr<TileSource<T>> global, local;
    if (points.has_value()) {
      const Images<T> all = images<T>(*points, 1);
      global = std::make_unique<EuclideanTiles<T>>(all, all, engine_for_pairs(all, precision));
    }
    if (stripes.has_value()) {
      const Images<T> all = images<T>(*stripes, stripes->query.size(1));
      local = std::make_unique<DmliTiles<T>>(all, all, true, engine_for_pairs(all, precision));
    }
    if (global == nullptr) return local;
    if (local == nullptr) return global;
    return std::make_unique<SumTiles<T>>(std::move(global), std::move(local));
  }

 private:
  // Queries and gallery one after the other.
  template <typename T>
  Images<T> images(const Sets& sets, int64_t stripe_count) const {
    return {data<T>(sets.query),   queries,
            data<T>(sets.gallery), total,
            stripe_count,          sets.query.size(sets.query.dim() - 1)};
  }
};

Tensor k_reciprocal(std::optional<Tensor> query, std::optional<Tensor> gallery, std::optional<Tensor> query_local,
                    std::optional<Tensor> gallery_local, int64_t k1, int64_t k2, double lambda, std::string variant,
                    std::string precision) {
  const Features features(query, gallery, query_local, gallery_local);
  const Parameters parameters = parse(k1, k2, lambda, variant, features.total);
  Tensor out = new_tensor({features.queries, features.total - features.queries}, features.like.scalar_type());
  return with_floating_type(features.like, "query", [&](auto zero) {
    using T = decltype(zero);
    const auto source = features.source<T>(parse_precision(precision));
    ReRanking<T>(*source, features.queries, parameters).dense(mutable_data<T>(out));
    return out;
  });
}

std::tuple<Tensor, Tensor> k_reciprocal_topk(std::optional<Tensor> query, std::optional<Tensor> gallery,
                                             std::optional<Tensor> query_local, std::optional<Tensor> gallery_local,
                                             int64_t k1, int64_t k2, double lambda, std::string variant, int64_t topk,
                                             std::string precision) {
  const Features features(query, gallery, query_local, gallery_local);
  const Parameters parameters = parse(k1, k2, lambda, variant, features.total);
  STD_TORCH_CHECK(topk >= 1 && topk <= features.total - features.queries, "topk out of range");
  Tensor distance = new_tensor({features.queries, topk}, features.like.scalar_type()),
         index = new_tensor({features.queries, topk}, ScalarType::Long);
  return with_floating_type(features.like, "query", [&](auto zero) {
    using T = decltype(zero);
    const auto source = features.source<T>(parse_precision(precision));
    ReRanking<T>(*source, features.queries, parameters)
        .best(topk, mutable_data<T>(distance), mutable_data<int64_t>(index));
    return std::make_tuple(distance, index);
  });
}

Tensor k_reciprocal_from_distance(const Tensor& query_gallery, const Tensor& query_query, const Tensor& gallery_gallery,
                                  int64_t k1, int64_t k2, double lambda, std::string variant) {
  const Tensor qg = dense(query_gallery, 2, "query_gallery"), qq = dense(query_query, 2, "query_query"),
               gg = dense(gallery_gallery, 2, "gallery_gallery");
  const int64_t m = qg.size(0), n = qg.size(1);
  STD_TORCH_CHECK(m >= 1 && n >= 1 && qq.size(0) == m && qq.size(1) == m && gg.size(0) == n && gg.size(1) == n,
                  "matrices should match");
  STD_TORCH_CHECK(qg.scalar_type() == qq.scalar_type() && qg.scalar_type() == gg.scalar_type(),
                  "matrices should have one dtype");
  STD_TORCH_CHECK(m + n < std::numeric_limits<int32_t>::max(), "too many points");
  const Parameters parameters = parse(k1, k2, lambda, variant, m + n);
  Tensor out = new_tensor({m, n}, qg.scalar_type());
  return with_floating_type(qg, "query_gallery", [&](auto zero) {
    using T = decltype(zero);
    MatrixTiles<T> source(data<T>(qg), data<T>(qq), data<T>(gg), m, n);
    ReRanking<T>(source, m, parameters).dense(mutable_data<T>(out));
    return out;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(reidops, CPU, m) {
  m.impl("k_reciprocal", TORCH_BOX(&k_reciprocal));
  m.impl("k_reciprocal_topk", TORCH_BOX(&k_reciprocal_topk));
  m.impl("k_reciprocal_from_distance", TORCH_BOX(&k_reciprocal_from_distance));
}

}  // namespace reidops
