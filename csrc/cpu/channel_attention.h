// What channel_attention and its backward share: sizes, and the tiles into which they cut an image's C x C scores.
#pragma once

#include <algorithm>

#include "packed_blocks.h"
#include "tensor.h"

namespace reidops {
namespace attention {

// A tile of scores has kRows queries and kColumns keys, 256 KB of float32: whole steps of every engine's depth, and of
// the blocks of depth that products are added up in, so that a sum taken tile by tile is that of a whole product.
constexpr int64_t kRows = 256, kColumns = 256;

struct Sizes {
  int64_t batch, channels, length, width;  // width: of a value, V
  int64_t image() const { return channels * length; }
  int64_t values() const { return channels * width; }
  bool few() const { return width <= kFewValues; }
};

inline Sizes check(const Tensor& query, const Tensor& key, const Tensor& value) {
  const Sizes s{query.size(0), query.size(1), query.size(2), value.size(2)};
  for (const Tensor* t : {&key, &value}) {
    STD_TORCH_CHECK(t->size(0) == s.batch && t->size(1) == s.channels && t->scalar_type() == query.scalar_type(),
                    "query, key and value should match");
  }
  STD_TORCH_CHECK(key.size(2) == s.length, "query and key should match");
  STD_TORCH_CHECK(s.channels >= 1 && s.length >= 1 && s.width >= 1,
                  "query and value should have channels and a length");
  return s;
}

// A block of channels.
struct Block {
  int64_t index, first, count;
  Block(int64_t index, int64_t size, int64_t channels)
      : index(index), first(index * size), count(std::min(size, channels - index * size)) {}
};

// count filled up to whole vectors
template <typename T>
int64_t whole_vectors(int64_t count) {
  const int64_t lanes = kernels<T>().lanes;
  return ceil_div(count, lanes) * lanes;
}

// A block's values, (count, width), turned to (kFewValues, stride) and filled up with zeros.
template <typename T>
void turn_few(const T* values, int64_t count, int64_t width, int64_t stride, T* turned) {
  std::fill_n(turned, kFewValues * stride, T(0));
  for (int64_t c = 0; c < count; ++c) {
    for (int64_t v = 0; v < width; ++v) turned[v * stride + c] = values[c * width + v];
  }
}

}  // namespace attention
}  // namespace reidops
