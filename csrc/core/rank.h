// What both backends share of rank_metrics: the protocols, where a distance ranks, and what a match is worth.
#pragma once

#include <limits>
#include <string>

#include "draw.h"
#include "order.h"
#include "tensor.h"

namespace reidops {

constexpr int64_t kJunk = -1;  // the identity that is dropped where cameras are given

enum class Protocol { kMarket1501, kCuhk03, kMuDeep };

inline Protocol parse_protocol(const std::string& name) {
  if (name == "market1501") return Protocol::kMarket1501;
  if (name == "cuhk03") return Protocol::kCuhk03;
  STD_TORCH_CHECK(name == "mudeep", "protocol should be market1501, cuhk03 or mudeep, got ", name);
  return Protocol::kMuDeep;
}

// A distance that is not a number ranks last, with the infinite ones.
template <typename T>
REIDOPS_HD T rankable(T distance) {
  return distance == distance ? distance : std::numeric_limits<T>::infinity();
}

// What the i-th match, from 1, adds to average precision when it comes at `rank`. The step rule: its precision,
// i / rank. The trapezoid under the precision-recall curve: the mean of that and the precision just before the match,
// (i - 1) / (rank - 1), or 1 at the first rank.
REIDOPS_HD double match_precision(int64_t i, int64_t rank, bool trapezoid) {
  const double precision = static_cast<double>(i) / static_cast<double>(rank);
  if (!trapezoid) return precision;
  const double before = rank > 1 ? static_cast<double>(i - 1) / static_cast<double>(rank - 1) : 1.0;
  return 0.5 * (before + precision);
}

}  // namespace reidops
