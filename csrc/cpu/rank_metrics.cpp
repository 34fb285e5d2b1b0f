// rank_metrics: CMC, average precision and inverse negative penalty of every query, from one read of its distances.
//
// Nothing is sorted but a query's few matches: the rank of a match is the number of kept gallery images that come
// before it. Distances become integer keys of the same order, kBlock at a time; the keys of images dropped for the
// query (junk; same identity and camera) become the largest; then a key comes before match i if it is smaller than the
// match's, or, in blocks that lie wholly before the match in the gallery, not larger: smaller than the next integer.
// Only in the match's own block are equal keys looked for. A comparison and an addition of vectors for each distance
// and match up to kVectorMatches of them (simd_ranking.h), beyond that log2(matches) steps of a search without branches.
#include <algorithm>
#include <limits>
#include <numeric>
#include <unordered_map>

#include "../core/rank.h"
#include "parallel.h"
#include "simd.h"
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
struct Match {
  OrderKey<T> key;
  int64_t image;
};

// Ranks the matches of one query after the other; a worker's own, for its scratch memory.
template <typename T>
class Ranker {
 public:
  using Key = OrderKey<T>;

  // ranks: 1-based, ascending, of the matches among the images of the row (count) that are in neither list of dropped
  // ones. matches, at least one, and both lists in the order of the gallery. True if a distance is NaN.
  bool rank(const T* row, int64_t count, const std::vector<Match<T>>& matches, const std::vector<int64_t>& junk,
            const std::vector<int64_t>& dropped, std::vector<int64_t>& ranks) {
    const int64_t size = static_cast<int64_t>(matches.size());
    const bool few = size <= kVectorMatches;
    set_limits(matches, few);
    ranks.assign(size, 1);
    bool has_nan = false;
    auto next_junk = junk.begin(), next_dropped = dropped.begin();
    int64_t passed = 0;  // matches in this block and those before
    for (int64_t begin = 0; begin < count; begin += kBlock) {
      const int64_t end = std::min(begin + kBlock, count);
      has_nan |= kernel_.order_keys(row + begin, end - begin, keys_);
      for (; next_junk != junk.end() && *next_junk < end; ++next_junk) keys_[*next_junk - begin] = kLargestKey<T>;
      for (; next_dropped != dropped.end() && *next_dropped < end; ++next_dropped)
        keys_[*next_dropped - begin] = kLargestKey<T>;
      for (; passed < size && matches[passed].image < end; ++passed) {
        const Match<T>& match = matches[passed];
        limits_[places_[passed]] = match.key;
        ranks[places_[passed]] += kernel_.count_equal(keys_, match.image - begin, match.key);
      }
      if (few) {
        const T* ahead = row + std::min(end + kBlock, count);
        kernel_.count_below(keys_, end - begin, limits_.data(), size, counts_.data(), ahead);
      } else {
        place(end - begin);
      }
    }
    if (few) {
      for (int64_t i = 0; i < size; ++i) {
        for (int64_t lane = 0; lane < kernel_.lanes; ++lane) ranks[i] += counts_[i * kernel_.lanes + lane];
      }
      std::sort(ranks.begin(), ranks.end());
    } else {
      int64_t before = 0;
      for (int64_t i = 0; i < size; ++i) ranks[i] += before += counts_[i];
    }
    return has_nan;
  }

  bool contains_nan(const T* row, int64_t count) {
    bool has_nan = false;
    for (int64_t begin = 0; begin < count; begin += kBlock)
      has_nan |= kernel_.order_keys(row + begin, std::min(kBlock, count - begin), keys_);
    return has_nan;
  }

 private:
  // 512 floats are 2 KB, which stay in L1 with the counts of 192 matches (12 KB). About there a search of 8 steps costs
  // as much as the comparisons.
  static constexpr int64_t kBlock = 512;
  static constexpr int64_t kVectorMatches = 192;
  static constexpr int64_t kSearches = 4;  // under way at once

  // places_[i]: where match i stands among the limits; beside one another if they are few, else in order.
  void set_limits(const std::vector<Match<T>>& matches, bool few) {
    const int64_t size = static_cast<int64_t>(matches.size());
    places_.resize(size);
    std::iota(places_.begin(), places_.end(), 0);
    if (few) {
      counts_.assign(size * kernel_.lanes, 0);
      limits_.resize(size);
    } else {
      std::vector<int64_t> order(places_);
      std::sort(order.begin(), order.end(),
                [&](int64_t a, int64_t b) { return ranks_before(matches[a].key, a, matches[b].key, b); });
      for (int64_t i = 0; i < size; ++i) places_[order[i]] = i;
      for (width_ = 1; width_ <= size;) width_ *= 2;
      counts_.assign(width_, 0);
      limits_.assign(width_, kLargestKey<T>);
    }
    for (int64_t i = 0; i < size; ++i) limits_[places_[i]] = matches[i].key + 1;
  }

  // counts_[p] grows by how many keys have p limits that are not larger; p < width_, a power of two beyond the matches.
  void place(int64_t count) {
    for (int64_t j = 0; j < count; j += kSearches) {  // beyond the count, the keys before it fill up kBlock
      int64_t at[kSearches] = {};
      for (int64_t half = width_ / 2; half > 0; half /= 2) {
        for (int64_t u = 0; u < kSearches; ++u) at[u] += -(limits_[at[u] + half - 1] <= keys_[j + u]) & half;
      }
      for (int64_t u = 0; u < kSearches && j + u < count; ++u) ++counts_[at[u]];
    }
  }

  const Kernels<T>& kernel_ = kernels<T>();
  alignas(64) Key keys_[kBlock] = {};
  int64_t width_ = 1;
  std::vector<int64_t> places_;
  std::vector<Key> limits_, counts_;
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
        gallery_(gallery_ids, gallery_count) {
    if (!drops()) return;
    const auto range = gallery_.range(kJunk);
    junk_.assign(gallery_.images.begin() + range.first, gallery_.images.begin() + range.second);
  }

  // Without cameras nothing is dropped.
  bool drops() const { return query_cameras_ != nullptr; }

  const std::vector<int64_t>& junk() const { return junk_; }

  const GalleryIndex& gallery() const { return gallery_; }
  int64_t identity(int64_t query) const { return query_ids_[query]; }

  // The matches of a query and the other images of its identity, in the order of the gallery.
  void partition(int64_t query, const T* row, std::vector<Match<T>>& matches, std::vector<int64_t>& dropped) const {
    matches.clear();
    dropped.clear();
    const int64_t id = query_ids_[query];
    const auto same = gallery_.range(id);
    for (int64_t p = same.first; p < same.second; ++p) {
      const int64_t j = gallery_.images[p];
      if (drops() && (id == kJunk || gallery_cameras_[j] == query_cameras_[query])) {
        dropped.push_back(j);
      } else {
        matches.push_back({order_key(row[j]), j});
      }
    }
  }

 private:
  const int64_t *query_ids_, *query_cameras_, *gallery_cameras_;
  GalleryIndex gallery_;
  std::vector<int64_t> junk_;
};

// The draws of the CUHK03 protocol: one image of every identity but the query's own and junk.
template <typename T>
class Draws {
 public:
  using Key = OrderKey<T>;

  Draws(const GalleryIndex& gallery, bool without_junk) : first_{0} {
    for (size_t s = 0; s < gallery.identities.size(); ++s) {
      if (without_junk && gallery.identities[s] == kJunk) continue;
      identities_.push_back(gallery.identities[s]);
      images_.insert(images_.end(), gallery.images.begin() + gallery.first[s],
                     gallery.images.begin() + gallery.first[s + 1]);
      first_.push_back(static_cast<int64_t>(images_.size()));
    }
  }

  // Takes up a query: the keys of its row, those of an identity side by side. Returns where its identity stands.
  int64_t load(const T* row, int64_t id, std::vector<Key>& keys) const {
    keys.resize(images_.size());
    for (size_t p = 0; p < images_.size(); ++p) keys[p] = order_key(row[images_[p]]);
    return std::find(identities_.begin(), identities_.end(), id) - identities_.begin();
  }

  // The rank of the match that the draw takes. keys, own: of load; matches: in the order of the gallery.
  int64_t rank(uint64_t hash, const std::vector<Key>& keys, int64_t own, const std::vector<Match<T>>& matches) const {
    const Match<T>& match = matches[draw_of(hash, identities_[own], static_cast<int64_t>(matches.size()))];
    const int64_t count = static_cast<int64_t>(identities_.size());
    DrawnImages others =
        kernels<T>().count_drawn(hash, identities_.data(), first_.data(), count, keys.data(), match.key);
    const Key of_own = keys[place(hash, own)];
    others.nearer -= of_own < match.key;
    others.equal -= of_own == match.key;
    int64_t rank = 1 + others.nearer;
    for (int64_t s = 0; others.equal > 0 && s < count; ++s) {
      const int64_t p = place(hash, s);
      if (s == own || keys[p] != match.key) continue;
      rank += images_[p] < match.image;
      --others.equal;
    }
    return rank;
  }

 private:
  int64_t place(uint64_t hash, int64_t s) const {
    return first_[s] + draw_of(hash, identities_[s], first_[s + 1] - first_[s]);
  }

  std::vector<int64_t> identities_, first_, images_;  // images of identities_[s]: images_[first_[s] .. first_[s + 1])
};

// Sums of what each thread counted; integers, so that their order does not matter.
std::tuple<Tensor, Tensor, Tensor, Tensor> rank_metrics(const Tensor& distance_in, const Tensor& query_ids_in,
                                                        const Tensor& gallery_ids_in,
                                                        std::optional<Tensor> query_cameras_in,
                                                        std::optional<Tensor> gallery_cameras_in, int64_t max_rank,
                                                        std::string protocol_name, int64_t num_draws, int64_t seed,
                                                        bool refuse) {
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
    const std::optional<Draws<T>> draws = protocol == Protocol::kCuhk03
                                              ? std::optional<Draws<T>>(std::in_place, evaluation.gallery(), cameras)
                                              : std::nullopt;
    std::atomic<bool> has_nan{false};
    constexpr int64_t kQueries = 16;  // at a time
    parallel_tasks(ceil_div(queries, kQueries), kQueries * gallery * 8, [&](int64_t task, int64_t worker) {
      Ranker<T> ranker;
      std::vector<Match<T>> matches;
      std::vector<int64_t> dropped, ranks;
      std::vector<OrderKey<T>> keys;
      for (int64_t q = task * kQueries; q < std::min(queries, (task + 1) * kQueries); ++q) {
        const T* row = distances + q * gallery;
        evaluation.partition(q, row, matches, dropped);
        if (refuse && (matches.empty() || draws) && ranker.contains_nan(row, gallery)) has_nan = true;
        if (matches.empty()) {
          ap[q] = inp[q] = protocol == Protocol::kMuDeep ? 0.0 : std::numeric_limits<double>::quiet_NaN();
          continue;
        }
        ++valid[worker];
        if (draws) {
          const int64_t own = draws->load(row, evaluation.identity(q), keys);
          double sum = 0;
          for (int64_t draw = 0; draw < num_draws; ++draw) {
            const int64_t rank = draws->rank(draw_hash(seed, q, draw), keys, own, matches);
            if (rank <= length) ++hits[worker][rank - 1];
            sum += 1.0 / static_cast<double>(rank);
          }
          ap[q] = inp[q] = sum / static_cast<double>(num_draws);
          continue;
        }
        if (ranker.rank(row, gallery, matches, evaluation.junk(), dropped, ranks)) has_nan = true;
        const Scores scores = score(ranks, protocol == Protocol::kMuDeep);
        ap[q] = scores.average_precision;
        inp[q] = scores.inverse_negative_penalty;
        if (ranks[0] <= length) ++hits[worker][ranks[0] - 1];
      }
    });
    STD_TORCH_CHECK(!(refuse && has_nan), "distance should be free of NaN");
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
