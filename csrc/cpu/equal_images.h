// Whether a set holds the same image twice.
#pragma once

#include <algorithm>
#include <vector>

#include "parallel.h"
#include "simd.h"
#include "stripe_products.h"

namespace reidops {

// Images with the same two numbers, the squared norm and the product with the first image, are compared value by value.
// One read of the set; more of them alike than can be compared count as equal.
template <typename T>
bool has_equal_images(const Images<T>& set) {
  struct Key {
    T norm, product;
    int64_t image;
    bool operator<(const Key& o) const { return norm < o.norm || (norm == o.norm && product < o.product); }
  };
  const int64_t width = set.stripes * set.depth;
  std::vector<Key> keys(set.count);
  parallel_ranges(set.count, 2 * width, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* image = set.row(i, 0);
      keys[i] = {kernels<T>().dot(image, image, width), kernels<T>().dot(image, set.row(0, 0), width), i};
    }
  });
  const auto no_number = [](const Key& key) { return key.norm != key.norm || key.product != key.product; };
  keys.erase(std::remove_if(keys.begin(), keys.end(), no_number), keys.end());
  std::sort(keys.begin(), keys.end());
  constexpr size_t kMostCompared = 64;
  for (size_t a = 0; a < keys.size(); ++a) {
    for (size_t b = a + 1; b < keys.size() && !(keys[a] < keys[b]); ++b) {
      const T* image = set.row(keys[a].image, 0);
      if (b - a > kMostCompared || std::equal(image, image + width, set.row(keys[b].image, 0))) return true;
    }
  }
  return false;
}

// The engine for a set with itself where every pair is made once. Of equal images one may come before a point and one
// after it: products that are not symmetric would give them distances that differ in the last bit, and ties would not go
// to the lowest index.
template <typename T>
const Engine<T>& engine_for_pairs(const Images<T>& set, Precision precision) {
  const Engine<T>& fastest = engine<T>(precision);
  return fastest.symmetric || !has_equal_images(set) ? fastest : vector_engine<T>();
}

}  // namespace reidops
