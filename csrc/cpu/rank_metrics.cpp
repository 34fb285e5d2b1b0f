// rank_metrics: CMC, average precision and inverse negative penalty of every query, from one read of its distances.
//
// Nothing is sorted but a query's few matches: the rank of a match is the number of kept gallery images that come
// before it, and each image falls between two of the sorted matches. Images dropped for a query (junk; same identity
// and camera) are counted with the rest and taken out again, so the inner loop reads distances alone: M N comparisons
// with the farthest match, and log2(matches) more for what is nearer.
#include <algorithm>
#include <limits>
#include <unordered_map>

#include "../core/rank.h"
#include "parallel.h"
#include "tensor.h"

namespace reidops {
namespace {

// Gallery images by identity, each list in gallery order.
struct GalleryIndex {
  std::unordered_map<int64_t, int64_t> slots;  // identity -> position in `identities`
  std::vector<int64_t> identities;             // in order of first appearance
  std::vector<int64_t> first, images;          // images of identities[s]: images[first[s] .. first[s + 1])

  GalleryIndex(const int64_t* ids, int64_t count) {
    std::vector<int64_t> slot(count);
    for (int64_t j = 0; j < count; ++j) {
      const auto found = slots.emplace(ids[j], static_cast<int64_t>(identities.size()));
      if (found.second) identities.push_back(ids[j]);
      slot[j] = found.first->second;
    }
    first.assign(identities.size() + 1, 0);
    for (int64_t s : slot) ++first[s + 1];
    for (size_t s = 0; s < identities.size(); ++s) first[s + 1] += first[s];
    images.resize(count);
    std::vector<int64_t> next(first.begin(), first.end() - 1);
    for (int64_t j = 0; j < count; ++j) images[next[slot[j]]++] = j;
  }

  // [begin, end) in `images`
  std::pair<int64_t, int64_t> range(int64_t identity) const {
    const auto found = slots.find(identity);
    if (found == slots.end()) return {0, 0};
    return {first[found->second], first[found->second + 1]};
  }
};

template <typename T>
struct Ranked {
  T distance;
  int64_t image;
  bool operator<(const Ranked& o) const { return ranks_before(distance, image, o.distance, o.image); }
};

struct Scores {
  double average_precision, inverse_negative_penalty;
};

// ranks: of the matches, 1-based, ascending.
Scores score(const std::vector<int64_t>& ranks, bool trapezoid) {
  double sum = 0;
  for (size_t i = 0; i < ranks.size(); ++i) sum += match_precision(i + 1, ranks[i], trapezoid);
  const double count = static_cast<double>(ranks.size());
  return {sum / count, count / static_cast<double>(ranks.back())};
}

template <typename T>
class Evaluation {
 public:
  Evaluation(const int64_t* query_ids, const int64_t* query_cameras, const int64_t* gallery_ids,
             const int64_t* gallery_cameras, int64_t gallery_count)
      : query_ids_(query_ids),
        query_cameras_(query_cameras),
        gallery_cameras_(gallery_cameras),
        count_(gallery_count),
        gallery_(gallery_ids, gallery_count) {}

  // Without cameras nothing is dropped.
  bool drops() const { return query_cameras_ != nullptr; }

  // Matches of a query, nearest first, and what is dropped for it.
  void partition(int64_t query, const T* row, std::vector<Ranked<T>>& matches, std::vector<Ranked<T>>& dropped) const {
    matches.clear();
    dropped.clear();
    const int64_t id = query_ids_[query];
    const auto same = gallery_.range(id);
    for (int64_t p = same.first; p < same.second; ++p) {
      const int64_t j = gallery_.images[p];
      const bool drop = drops() && (id == kJunk || gallery_cameras_[j] == query_cameras_[query]);
      (drop ? dropped : matches).push_back({rankable(row[j]), j});
    }
    if (drops() && id != kJunk) {
      const auto junk = gallery_.range(kJunk);
      for (int64_t p = junk.first; p < junk.second; ++p)
        dropped.push_back({rankable(row[gallery_.images[p]]), gallery_.images[p]});
    }
    std::sort(matches.begin(), matches.end());
  }

  // ranks[i] = 1-based rank of matches[i] among the kept images
  void rank(const T* row, const std::vector<Ranked<T>>& matches, const std::vector<Ranked<T>>& dropped,
            std::vector<int64_t>& ranks) const {
    ranks.assign(matches.size(), 0);
    // adds to the first match that does not come before the image
    const auto count = [&](const Ranked<T>& image, int64_t amount) {
      const auto at = std::lower_bound(matches.begin(), matches.end(), image);
      if (at != matches.end()) ranks[at - matches.begin()] += amount;
    };
    const T farthest = matches.back().distance;
    for (int64_t j = 0; j < count_; ++j) {
      if (!(row[j] > farthest)) count({rankable(row[j]), j}, 1);
    }
    for (const auto& image : dropped) count(image, -1);
    for (size_t i = 1; i < ranks.size(); ++i) ranks[i] += ranks[i - 1];
  }

  // One draw of the CUHK03 protocol: the rank of the drawn match among one kept image of each identity.
  int64_t draw_rank(int64_t query, int64_t draw, int64_t seed, const T* row,
                    const std::vector<int64_t>& kept_matches) const {
    const int64_t id = query_ids_[query];
    const int64_t match = kept_matches[draw_image(seed, query, draw, id, static_cast<int64_t>(kept_matches.size()))];
    int64_t rank = 1;
    for (size_t s = 0; s < gallery_.identities.size(); ++s) {
      const int64_t other = gallery_.identities[s];
      if (other == id || (drops() && other == kJunk)) continue;
      const int64_t size = gallery_.first[s + 1] - gallery_.first[s];
      const int64_t image = gallery_.images[gallery_.first[s] + draw_image(seed, query, draw, other, size)];
      rank += ranks_before(rankable(row[image]), image, rankable(row[match]), match);
    }
    return rank;
  }

 private:
  const int64_t *query_ids_, *query_cameras_, *gallery_cameras_;
  int64_t count_;
  GalleryIndex gallery_;
};

// Sums of what each thread counted; integers, so that their order does not matter.
std::tuple<Tensor, Tensor, Tensor, Tensor> rank_metrics(const Tensor& distance_in, const Tensor& query_ids_in,
                                                        const Tensor& gallery_ids_in,
                                                        std::optional<Tensor> query_cameras_in,
                                                        std::optional<Tensor> gallery_cameras_in, int64_t max_rank,
                                                        std::string protocol_name, int64_t num_draws, int64_t seed) {
  const Tensor distance = dense(distance_in, 2, "distance");
  const int64_t queries = distance.size(0), gallery = distance.size(1);
  const Tensor query_ids = dense_int64(query_ids_in, queries, "query_ids"),
               gallery_ids = dense_int64(gallery_ids_in, gallery, "gallery_ids");
  const bool cameras = query_cameras_in.has_value() && gallery_cameras_in.has_value();
  const Tensor query_cameras = cameras ? dense_int64(*query_cameras_in, queries, "query_cameras") : query_ids;
  const Tensor gallery_cameras = cameras ? dense_int64(*gallery_cameras_in, gallery, "gallery_cameras") : gallery_ids;
  STD_TORCH_CHECK(queries >= 1 && gallery >= 1 && max_rank >= 1 && num_draws >= 1,
                  "distance should not be empty, max_rank and num_draws positive");
  const Protocol protocol = parse_protocol(protocol_name);
  const int64_t length = std::min(max_rank, gallery);

  Tensor cmc = new_tensor({length}, ScalarType::Double), num_valid = new_tensor({}, ScalarType::Long);
  Tensor precision = new_tensor({queries}, ScalarType::Double), penalty = new_tensor({queries}, ScalarType::Double);
  with_floating_type(distance, "distance", [&](auto zero) {
    using T = decltype(zero);
    const T* distances = data<T>(distance);
    const Evaluation<T> evaluation(data<int64_t>(query_ids), cameras ? data<int64_t>(query_cameras) : nullptr,
                                   data<int64_t>(gallery_ids), cameras ? data<int64_t>(gallery_cameras) : nullptr,
                                   gallery);
    double *ap = mutable_data<double>(precision), *inp = mutable_data<double>(penalty);
    // hits[worker][r]: how often the first match came at rank r + 1
    std::vector<std::vector<int64_t>> hits(num_workers(), std::vector<int64_t>(length, 0));
    std::vector<int64_t> valid(num_workers(), 0);
    constexpr int64_t kBlock = 16;
    parallel_tasks(ceil_div(queries, kBlock), kBlock * gallery * 8, [&](int64_t task, int64_t worker) {
      std::vector<Ranked<T>> matches, dropped;
      std::vector<int64_t> ranks, kept;
      for (int64_t q = task * kBlock; q < std::min(queries, (task + 1) * kBlock); ++q) {
        const T* row = distances + q * gallery;
        evaluation.partition(q, row, matches, dropped);
        if (matches.empty()) {
          ap[q] = inp[q] = protocol == Protocol::kMuDeep ? 0.0 : std::numeric_limits<double>::quiet_NaN();
          continue;
        }
        ++valid[worker];
        if (protocol == Protocol::kCuhk03) {
          kept.clear();
          for (const auto& match : matches) kept.push_back(match.image);
          std::sort(kept.begin(), kept.end());
          double sum = 0;
          for (int64_t draw = 0; draw < num_draws; ++draw) {
            const int64_t rank = evaluation.draw_rank(q, draw, seed, row, kept);
            if (rank <= length) ++hits[worker][rank - 1];
            sum += 1.0 / static_cast<double>(rank);
          }
          ap[q] = inp[q] = sum / static_cast<double>(num_draws);
          continue;
        }
        evaluation.rank(row, matches, dropped, ranks);
        const Scores scores = score(ranks, protocol == Protocol::kMuDeep);
        ap[q] = scores.average_precision;
        inp[q] = scores.inverse_negative_penalty;
        if (ranks[0] <= length) ++hits[worker][ranks[0] - 1];
      }
    });
    int64_t total = 0;
    for (int64_t v : valid) total += v;
    *mutable_data<int64_t>(num_valid) = total;
    const int64_t trials =
        (protocol == Protocol::kMuDeep ? queries : total) * (protocol == Protocol::kCuhk03 ? num_draws : 1);
    double* curve = mutable_data<double>(cmc);
    int64_t found = 0;
    for (int64_t r = 0; r < length; ++r) {
      for (const auto& worker : hits) found += worker[r];
      curve[r] = trials > 0 ? static_cast<double>(found) / static_cast<double>(trials) : 0.0;
    }
    return 0;
  });
  return std::make_tuple(cmc, precision, penalty, num_valid);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(reidops, CPU, m) { m.impl("rank_metrics", TORCH_BOX(&rank_metrics)); }

}  // namespace reidops
