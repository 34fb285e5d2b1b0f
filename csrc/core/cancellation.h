// When a distance computed from a product has lost too many digits.
#pragma once

namespace reidops {

// Squared distances below this share of the two squared norms are computed again from the differences. The rounding of
// a product is a few 1e-7 of the norms in float (a chain of 128 additions, and one more for each 128 channels), so what is
// kept is right to a few 1e-6. (Of tens of thousands of channels that are all alike it can be a few 1e-5.)
template <typename T>
constexpr T kCancellation = sizeof(T) == 4 ? T(1) / 8 : T(1) / 1024;

// The same for products of tensor cores, which cut off where others round (gemm.h).
template <typename T>
constexpr T kTensorCancellation = sizeof(T) == 4 ? T(1) / 4 : T(1) / 1024;

}  // namespace reidops
