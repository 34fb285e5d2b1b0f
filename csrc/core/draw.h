// The random draw of the CUHK03 protocol: a counter-based generator (SplitMix64), so that every backend and every
// number of threads draws the same images.
#pragma once

#include "macros.h"

namespace reidops {

REIDOPS_HD uint64_t split_mix(uint64_t x) {
  uint64_t z = x + 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

// The draw of one query, to be combined with each identity in draw_of.
REIDOPS_HD uint64_t draw_hash(int64_t seed, int64_t query, int64_t draw) {
  const uint64_t a = split_mix(static_cast<uint64_t>(seed));
  const uint64_t b = split_mix(a ^ static_cast<uint64_t>(query));
  return split_mix(b ^ static_cast<uint64_t>(draw));
}

// Which of `count` images of an identity the draw takes: 0 .. count - 1.
REIDOPS_HD int64_t draw_of(uint64_t hash, int64_t identity, int64_t count) {
  const uint64_t z = split_mix(hash ^ static_cast<uint64_t>(identity));
  return static_cast<int64_t>(((z >> 32) * static_cast<uint64_t>(count)) >> 32);
}

REIDOPS_HD int64_t draw_image(int64_t seed, int64_t query, int64_t draw, int64_t identity, int64_t count) {
  return draw_of(draw_hash(seed, query, draw), identity, count);
}

}  // namespace reidops
