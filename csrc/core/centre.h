// A point in the middle of the features, which distances are computed around.
//
// |x|^2 + |y|^2 - 2 x . y loses digits in proportion to the norms, and features after a ReLU lie far from 0, close to
// each other. Around their middle the norms are as small as the distances. The middle is rounded so coarsely, to a 64th
// of each channel's largest value, that subtracting it is exact for integers and for most values near it: equal
// distances stay equal. What is still lost beside a small distance is found by computing that distance again.
#pragma once

#include <cmath>
#include <limits>

#include "macros.h"

namespace reidops {

constexpr int64_t kCentreSamples = 1024;  // of a set of rows, at least; every sample_step-th row is looked at

REIDOPS_HD int64_t sample_step(int64_t rows) { return rows > kCentreSamples ? rows / kCentreSamples : 1; }

// One channel of the middle, from the sum of `count` values and the largest absolute one.
template <typename T>
REIDOPS_HD T coarse_middle(double sum, int64_t count, T peak) {
  if (!(peak > T(0)) || !(peak <= std::numeric_limits<T>::max())) return T(0);
  const double grid = ldexp(1.0, ilogb(static_cast<double>(peak)) - 6);
  const double middle = nearbyint(sum / static_cast<double>(count) / grid) * grid;
  return middle - middle == 0.0 ? static_cast<T>(middle) : T(0);
}

}  // namespace reidops
