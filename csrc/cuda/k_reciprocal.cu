// k_reciprocal: re-ranking of features or of given distances (Zhong 2017). Distances come from tiles.h, neighbours from
// nearest.h, what follows from re_ranking.h.
//
// Market-1501, 19,281 points of 2,048 channels: 1.9 ms of products in TF32 (each pair once), 0.3 ms for the lists, and
// sparse stages of kilobytes a point; nothing of size T x T is kept.
#include "nearest.h"
#include "re_ranking.h"

namespace reidops {
namespace {

using Points = std::optional<Tensor>;

// Queries and gallery, one after the other, in one piece of memory: (T, ...).
Tensor joined(const Tensor& query, const Tensor& gallery, int64_t width) {
  const int64_t row_bytes = width * query.element_size();
  Tensor all = new_tensor({query.size(0) + gallery.size(0), width}, query.scalar_type(), query);
  auto* to = static_cast<unsigned char*>(all.mutable_data_ptr());
  for (const Tensor& part : {torch::stable::contiguous(query), torch::stable::contiguous(gallery)}) {
    const int64_t bytes = part.size(0) * row_bytes;
    check(cudaMemcpyAsync(to, part.const_data_ptr(), bytes, cudaMemcpyDeviceToDevice, current_stream(query)),
          "k_reciprocal");
    to += bytes;
  }
  return all;
}

// The points of a re-ranking: features, stripes or both, queries first.
struct Features {
  Points points, stripes;  // (T, depth), (T, stripe_count * stripe_depth)
  int64_t queries = 0, total = 0, depth = 0, stripe_count = 0, stripe_depth = 0;
  Tensor like;

  Features(const Points& query, const Points& gallery, const Points& query_local, const Points& gallery_local) {
    STD_TORCH_CHECK(query.has_value() == gallery.has_value() && query_local.has_value() == gallery_local.has_value() &&
                        (query.has_value() || query_local.has_value()),
                    "query and gallery, query_local and gallery_local, or both should be given");
    like = query.has_value() ? *query : *query_local;
    const DeviceGuard guard(like.get_device_index());
    if (query.has_value()) {
      check_pair(*query, *gallery, 2, "query", "gallery");
      depth = query->size(1);
      points = joined(*query, *gallery, depth);
    }
    if (query_local.has_value()) {
      check_pair(*query_local, *gallery_local, 3, "query_local", "gallery_local");
      stripe_count = query_local->size(1);
      stripe_depth = query_local->size(2);
      STD_TORCH_CHECK(stripe_count <= kMostStripes, "query_local should have at most ", kMostStripes,
                      " stripes an image, got ", stripe_count);
      stripes = joined(*query_local, *gallery_local, stripe_count * stripe_depth);
    }
  }

  template <typename T>
  Pairs<T> pairs() const {
    Pairs<T> pairs;
    if (points.has_value()) pairs.points = data<T>(*points);
    if (stripes.has_value()) pairs.stripes = data<T>(*stripes);
    pairs.depth = depth;
    pairs.stripe_depth = stripe_depth;
    pairs.stripe_count = static_cast<int>(stripe_count);
    return pairs;
  }

  template <typename T>
  std::unique_ptr<TileSource<T>> source(Format format) const {
    std::unique_ptr<EuclideanTiles<T>> global;
    std::unique_ptr<DmliTiles<T>> local;
    if (points.has_value()) {
      const Rows<T> rows{data<T>(*points), total, depth};
      global = std::make_unique<EuclideanTiles<T>>(rows, rows, format, like);
    }
    if (stripes.has_value()) {
      const Rows<T> rows{data<T>(*stripes), total * stripe_count, stripe_depth};
      local = std::make_unique<DmliTiles<T>>(rows, stripe_count, rows, stripe_count, true, format, like);
    }
    if (global == nullptr) return local;
    if (local == nullptr) return global;
    return std::make_unique<SumTiles<T>>(std::move(global), std::move(local), like);
  }

 private:
  void check_pair(const Tensor& query, const Tensor& gallery, int64_t dim, const char* query_name,
                  const char* gallery_name) {
    check_input(query, dim, query_name);
    check_input(gallery, dim, gallery_name);
    check_like(query, like, query_name);
    check_like(gallery, like, gallery_name);
    for (int64_t k = 1; k < dim; ++k) {
      STD_TORCH_CHECK(query.size(k) >= 1 && gallery.size(k) == query.size(k), query_name, " and ", gallery_name,
                      " should match");
    }
    STD_TORCH_CHECK(query.size(0) >= 1 && gallery.size(0) >= 1, query_name, " and ", gallery_name,
                    " should not be empty");
    const int64_t together = query.size(0) + gallery.size(0);
    STD_TORCH_CHECK(total == 0 || (queries == query.size(0) && total == together),
                    "query_local should match query, gallery_local gallery");
    STD_TORCH_CHECK(together < std::numeric_limits<int32_t>::max(), "there should be fewer than 2^31 images");
    queries = query.size(0);
    total = together;
  }
};

constexpr int64_t kRowBytes = int64_t(1) << 30;  // of the result's rows that are held at once when its best are taken

// The stages, from tiles of distances to the result.
template <typename T>
class Pipeline {
 public:
  Pipeline(TileSource<T>& source, bool symmetric, const Pairs<T>& pairs, int64_t queries, const Parameters& parameters,
           const Tensor& like)
      : source_(source),
        symmetric_(symmetric),
        pairs_(pairs),
        queries_(queries),
        gallery_(source.rows() - queries),
        p_(parameters),
        like_(like) {}

  // out: (queries, gallery)
  void dense(T* out) {
    const auto keep = [&](int64_t i0, int64_t i1, int64_t j0, int64_t j1, const Tile<T>& tile) {
      if (!p_.jaccard) copy(i0, std::min(i1, queries_), j0, j1, tile, 0, out);
    };
    ranking(keep).finish(0, queries_, out, gallery_);
  }

  // distances and indices: (queries, topk). Queries and gallery are multiplied once more, in tiles of other shapes than
  // those the lists came from, for which cuBLAS may take another kernel: d then differs from dense()'s in its last digits.
  // The same tiles again would multiply whole tiles of rows for a handful of queries.
  void best(int64_t topk, T* distances, int64_t* indices) {
    const auto re_ranking = ranking([](int64_t, int64_t, int64_t, int64_t, const Tile<T>&) {});
    const int64_t block = std::clamp<int64_t>(kRowBytes / (gallery_ * static_cast<int64_t>(sizeof(T))), 1, queries_);
    Tensor memory = new_tensor({block, gallery_}, like_.scalar_type(), like_);
    T* const rows = mutable_data<T>(memory);
    NearestLists<T> lists(block, topk, like_);
    for (int64_t begin = 0; begin < queries_; begin += block) {
      const int64_t end = std::min(queries_, begin + block);
      if (!p_.jaccard) {
        for_each_tile(source_, begin, end, queries_, queries_ + gallery_, false, like_,
                      [&](int64_t i0, int64_t i1, int64_t j0, int64_t j1, const Tile<T>& tile) {
                        copy(i0, i1, j0, j1, tile, begin, rows);
                      });
      }
      re_ranking.finish(begin, end, rows, gallery_);
      lists.clear();
      lists.add_all(memory, end - begin, nullptr);
      launch_elements("k_reciprocal", like_, end - begin, topk,
                      TakeNeighbors<T>{lists.get(), topk, distances + begin * topk, indices + begin * topk});
    }
  }

 private:
  // The gallery's part of a tile into rows of the result, of which the first is query `first`.
  void copy(int64_t i0, int64_t i1, int64_t j0, int64_t j1, const Tile<T>& tile, int64_t first, T* rows) {
    const int64_t from = std::max(j0, queries_);
    if (i0 >= i1 || from >= j1) return;
    launch_elements(
        "k_reciprocal", like_, i1 - i0, j1 - from,
        CopyTile<T>{tile.from_column(from - j0), rows + (i0 - first) * gallery_ + from - queries_, gallery_});
  }

  template <typename Visit>
  ReRanking<T, Pairs<T>> ranking(const Visit& visit) {
    const int64_t total = source_.rows();
    NearestLists<T> lists(total, std::max(p_.near_count(), p_.k2), like_);
    Tensor maximum = new_tensor({total}, like_.scalar_type(), like_);
    maximum = torch::stable::zero_(maximum);
    find_nearest(source_, symmetric_, lists, mutable_data<T>(maximum), like_, visit);
    return ReRanking<T, Pairs<T>>(lists.get(), lists.k(), maximum, pairs_, queries_, total, p_, like_);
  }

  TileSource<T>& source_;
  bool symmetric_;
  Pairs<T> pairs_;
  int64_t queries_, gallery_;
  Parameters p_;
  Tensor like_;
};

Tensor k_reciprocal(Points query, Points gallery, Points query_local, Points gallery_local, int64_t k1, int64_t k2,
                    double lambda, std::string variant, std::string precision) {
  const Features features(query, gallery, query_local, gallery_local);
  const Parameters parameters = parse(k1, k2, lambda, variant, features.total);
  const DeviceGuard guard(features.like.get_device_index());
  Tensor out =
      new_tensor({features.queries, features.total - features.queries}, features.like.scalar_type(), features.like);
  return with_floating_type(features.like, "query", [&](auto zero) {
    using T = decltype(zero);
    const auto source = features.source<T>(product_format<T>(precision));
    Pipeline<T>(*source, true, features.pairs<T>(), features.queries, parameters, features.like)
        .dense(mutable_data<T>(out));
    return out;
  });
}

std::tuple<Tensor, Tensor> k_reciprocal_topk(Points query, Points gallery, Points query_local, Points gallery_local,
                                             int64_t k1, int64_t k2, double lambda, std::string variant, int64_t topk,
                                             std::string precision) {
  const Features features(query, gallery, query_local, gallery_local);
  const Parameters parameters = parse(k1, k2, lambda, variant, features.total);
  STD_TORCH_CHECK(topk >= 1 && topk <= features.total - features.queries, "topk out of range");
  const DeviceGuard guard(features.like.get_device_index());
  Tensor distance = new_tensor({features.queries, topk}, features.like.scalar_type(), features.like),
         index = new_tensor({features.queries, topk}, ScalarType::Long, features.like);
  return with_floating_type(features.like, "query", [&](auto zero) {
    using T = decltype(zero);
    const auto source = features.source<T>(product_format<T>(precision));
    Pipeline<T>(*source, true, features.pairs<T>(), features.queries, parameters, features.like)
        .best(topk, mutable_data<T>(distance), mutable_data<int64_t>(index));
    return std::make_tuple(distance, index);
  });
}

Tensor k_reciprocal_from_distance(const Tensor& query_gallery, const Tensor& query_query, const Tensor& gallery_gallery,
                                  int64_t k1, int64_t k2, double lambda, std::string variant) {
  check_input(query_gallery, 2, "query_gallery");
  check_input(query_query, 2, "query_query");
  check_input(gallery_gallery, 2, "gallery_gallery");
  check_like(query_query, query_gallery, "query_query");
  check_like(gallery_gallery, query_gallery, "gallery_gallery");
  const int64_t m = query_gallery.size(0), n = query_gallery.size(1);
  STD_TORCH_CHECK(m >= 1 && n >= 1 && query_query.size(0) == m && query_query.size(1) == m &&
                      gallery_gallery.size(0) == n && gallery_gallery.size(1) == n,
                  "matrices should match");
  STD_TORCH_CHECK(m + n < std::numeric_limits<int32_t>::max(), "there should be fewer than 2^31 images");
  const Parameters parameters = parse(k1, k2, lambda, variant, m + n);
  const DeviceGuard guard(query_gallery.get_device_index());
  Tensor out = new_tensor({m, n}, query_gallery.scalar_type(), query_gallery);
  return with_floating_type(query_gallery, "query_gallery", [&](auto zero) {
    using T = decltype(zero);
    const Tensor qg = torch::stable::contiguous(query_gallery), qq = torch::stable::contiguous(query_query),
                 gg = torch::stable::contiguous(gallery_gallery);
    Pairs<T> pairs;
    pairs.query_gallery = data<T>(qg);
    pairs.query_query = data<T>(qq);
    pairs.gallery_gallery = data<T>(gg);
    pairs.queries = m;
    pairs.gallery = n;
    MatrixTiles<T> source(pairs, qg);
    Pipeline<T>(source, false, pairs, m, parameters, qg).dense(mutable_data<T>(out));
    return out;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(reidops, CUDA, m) {
  m.impl("k_reciprocal", TORCH_BOX(&k_reciprocal));
  m.impl("k_reciprocal_topk", TORCH_BOX(&k_reciprocal_topk));
  m.impl("k_reciprocal_from_distance", TORCH_BOX(&k_reciprocal_from_distance));
}

}  // namespace reidops
