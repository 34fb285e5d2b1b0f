// What both backends share of re-ranking with k-reciprocal encoding (Zhong 2017): the variants, the rule by which a set
// joins another, and the final distance.
#pragma once

#include <algorithm>
#include <string>

#include "macros.h"
#include "tensor.h"

namespace reidops {

struct Parameters {
  int64_t k1, k2;
  double lambda;
  bool squared;  // "torchreid": the distances are squared once more
  bool jaccard;  // "jaccard": no row maximum, no original distance, sets without the point itself counted extra

  int64_t near_count() const { return jaccard ? k1 : k1 + 1; }
  int64_t half_count() const {
    const int64_t half = k1 / 2 + (k1 % 2 == 1 && k1 / 2 % 2 == 1 ? 1 : 0);  // k1 / 2, halves to even
    return jaccard ? std::max<int64_t>(half, 1) : half + 1;
  }

  // Whether the original distance has a say in the final one.
  bool weighs_distance() const { return !jaccard && lambda > 0; }

  // d / row maximum, in the variant's meaning. A row of zeros stays as it is.
  template <typename T>
  REIDOPS_HD T scaled(T d, T row_maximum) const {
    if (jaccard) return d;
    const T share = row_maximum > T(0) ? d / row_maximum : d;
    return squared ? share * share : share;
  }

  // The re-ranked distance of a query and a gallery point: `shared` is the sum of the minima of their weights, d the
  // original distance.
  template <typename T>
  REIDOPS_HD T final_distance(T shared, T d, T row_maximum) const {
    const T rest = T(1) - shared / (T(2) - shared);
    const T apart = rest > T(0) ? rest : T(0);  // rounding may carry the sum a little past 1
    const T weight = static_cast<T>(lambda);
    return jaccard ? apart : (T(1) - weight) * apart + weight * scaled(d, row_maximum);
  }
};

inline Parameters parse(int64_t k1, int64_t k2, double lambda, const std::string& variant, int64_t total) {
  STD_TORCH_CHECK(variant == "zhong2017" || variant == "torchreid" || variant == "jaccard", "unknown variant ",
                  variant);
  const Parameters p{k1, k2, lambda, variant == "torchreid", variant == "jaccard"};
  STD_TORCH_CHECK(k1 >= 1 && p.near_count() <= total && k2 >= 1 && k2 <= total, "k1 or k2 out of range for ", total,
                  " points");
  return p;
}

// A candidate's set joins when the point's own set has more than two thirds of it.
REIDOPS_HD bool joins(int64_t shared, int64_t size) { return 3 * shared > 2 * size; }

// The most that a set of `size` can add when it joins.
inline int64_t most_joined(int64_t size) { return (size - 1) / 3; }

}  // namespace reidops
