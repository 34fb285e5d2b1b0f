// Distances as integers of the same order, which vectors compare exactly whatever the floating-point mode.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../core/macros.h"

namespace reidops {

template <typename T>
using OrderKey = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

// Beyond the keys of all distances, infinity included.
template <typename T>
constexpr OrderKey<T> kLargestKey = static_cast<OrderKey<T>>(sizeof(T) == 4 ? INT32_MAX : INT64_MAX);

// Smaller for what ranks earlier: -inf < ... < -0 = +0 < ... < inf = NaN.
template <typename T>
REIDOPS_HD OrderKey<T> order_key(T value) {
  using Key = OrderKey<T>;
  constexpr Key kInfinity = static_cast<Key>(sizeof(T) == 4 ? 0x7f800000 : 0x7ff0000000000000);
  const Key bits = __builtin_bit_cast(Key, value), sign = bits >> (8 * sizeof(Key) - 1);
  const Key magnitude = bits & kLargestKey<T>;
  return magnitude > kInfinity ? kInfinity : (magnitude ^ sign) - sign;
}

}  // namespace reidops
