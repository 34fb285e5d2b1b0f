// The one order of neighbours: nearer first, equal distances by the lower index.
#pragma once

#include "macros.h"

namespace reidops {

template <typename T>
REIDOPS_HD bool ranks_before(T distance_a, int64_t index_a, T distance_b, int64_t index_b) {
  return distance_a < distance_b || (distance_a == distance_b && index_a < index_b);
}

// A neighbour in a list: 8 bytes for float, 16 for double, read and written at once.
template <typename T>
struct alignas(2 * sizeof(T)) Neighbor {
  T distance;
  int32_t index;

  REIDOPS_HD bool before(const Neighbor& other) const {
    return ranks_before(distance, index, other.distance, other.index);
  }
};

}  // namespace reidops
