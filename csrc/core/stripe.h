// Stripe distance of AlignedReID: tanh(d / 2) of the Euclidean distance d of two stripes, and the exponential under it.
//
// tanh(d/2) = (e^d - 1) / (e^d + 1), but does not overflow. Branch-free float code, so that a loop over it is
// vectorised; maximum relative error below 4e-7.
#pragma once

#include <cmath>

#include "macros.h"

namespace reidops {

// e^x for x <= 0 in float: x = n ln 2 + r, |r| <= ln 2 / 2, e^r by a polynomial of degree 6, 2^n put into the exponent
// bits. Below -87 the result is below the smallest normal number and taken as that of -87 (1.6e-38).
REIDOPS_HD float exp_nonpositive(float x) {
#if defined(__CUDA_ARCH__)
  return expf(x);
#else
  x = x < -87.0f ? -87.0f : x;
  const int n =
      static_cast<int>(x * 1.44269504f - 0.5f);  // truncation is upward for negative numbers: the nearest integer
  const float nf = static_cast<float>(n);
  const float r = (x - nf * 0.693359375f) + nf * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * __builtin_bit_cast(float, (n + 127) << 23);
#endif
}

REIDOPS_HD double exp_nonpositive(double x) { return exp(x); }

// tanh(x) = x p(x^2) / q(x^2), the odd rational minimax approximation of degree 13 / 6 for |x| < kTanhReach, beyond which
// tanh is 1 to float precision. V: float, or a vector of them. Both polynomials come times kScale.
constexpr float kTanhReach = 7.90531110763549805f;

template <int kScale, typename V>
REIDOPS_HD void tanh_polynomials(V z, V& p, V& q) {
  p = z * (kScale * -2.76076847742355e-16f) + kScale * 2.00018790482477e-13f;
  p = p * z - kScale * 8.60467152213735e-11f;
  p = p * z + kScale * 5.12229709037114e-08f;
  p = p * z + kScale * 1.48572235717979e-05f;
  p = p * z + kScale * 6.37261928875436e-04f;
  p = p * z + kScale * 4.89352455891786e-03f;
  q = z * (kScale * 1.19825839466702e-06f) + kScale * 1.18534705686654e-04f;
  q = q * z + kScale * 2.26843463243900e-03f;
  q = q * z + kScale * 4.89352518554385e-03f;
}

// tanh(d / 2) for d >= 0: one division, no exponential, and no cancellation near 0.
REIDOPS_HD float tanh_half(float d) {
  float x = 0.5f * d, p, q;
  x = x > kTanhReach ? kTanhReach : x;  // a NaN stays one
  tanh_polynomials<1>(x * x, p, q);
#if defined(__CUDA_ARCH__)
  return __fdividef(x * p, q);  // two units in the last place; q is about 0.005 to 0.8
#else
  return x * p / q;
#endif
}

REIDOPS_HD double tanh_half(double d) { return tanh(0.5 * d); }

// d tanh(d / 2) / d d = 2 e / (1 + e)^2 with e = exp(-d), which keeps its digits where tanh is next to 1.
template <typename T>
REIDOPS_HD T tanh_half_slope(T d) {
  const T e = exp_nonpositive(-d), sum = T(1) + e;
  return T(2) * e / (sum * sum);
}

}  // namespace reidops
