// channel_attention: softmax(query @ key^T) @ value over channels, the leader attention of MuDeep_v2, without the C x C
// matrix of every image.
//
// query, key: (B, C, L), value: (B, C, V). A thread takes kRows channels at a time: their C scores, the softmax and the
// weighted sum, 2 C (L + V) FLOPs a channel, while keys and values, packed once an image, stream from the cache. Scores
// lie in tiles of kColumns keys, 1 MB of float32 in all at C = 2048: stores to rows 1 KB apart cost a fifth less of a
// product than to rows 8 KB apart, each on pages of its own.
//
// MuDeep_v2 attends to a map averaged over the image and its three parts, V = 3 or 4 beside L = 288 or 192. Products so
// narrow would fill panels with zeros; kernels of the vector unit do them while the weights are at hand.
#include <cmath>
#include <limits>

#include "channel_attention.h"
#include "products.h"

namespace reidops {
namespace {

using namespace attention;

template <typename T>
class Forward {
 public:
  Forward(const Engine<T>& engine, const Sizes& s)
      : engine_(engine),
        s_(s),
        columns_(ceil_div(s.channels, kColumns)),
        tile_(whole_vectors<T>(std::min(s.channels, kColumns))),
        keys_(engine),
        values_(engine) {
    keys_.reserve(columns_, kColumns, s.length);
    if (s.few()) {
      few_values_.reserve(columns_ * kFewValues * tile_);
    } else {
      values_.reserve(columns_, s.width, kColumns);
    }
    for (int64_t worker = 0; worker < num_workers(); ++worker) workers_.emplace_back(engine);
  }

  // query, key: (C, L), value, output: (C, V), statistics: (2, C) of one image
  void run(const T* query, const T* key, const T* value, T* output, T* statistics) {
    parallel_tasks(columns_, kPackingWork * kColumns * (s_.length + s_.width), [&](int64_t task, int64_t) {
      const Block block(task, kColumns, s_.channels);
      keys_.pack(task, key + block.first * s_.length, s_.length, block.count, s_.length);
      const T* values = value + block.first * s_.width;
      if (s_.few()) {
        turn_few(values, block.count, s_.width, tile_, few_values_.get() + task * kFewValues * tile_);
      } else {
        values_.pack_transposed(task, values, s_.width, s_.width, block.count);
      }
    });
    parallel_tasks(ceil_div(s_.channels, kRows), kRows * (s_.image() + s_.values()), [&](int64_t task, int64_t worker) {
      const Block rows(task, kRows, s_.channels);
      Worker& w = workers_[worker];
      T shares[kRows];
      softmax(query, rows, w, statistics, shares);
      s_.few() ? sum_few(rows, w, shares, output) : sum(rows, w, shares, output);
    });
  }

 private:
  struct Worker {
    explicit Worker(const Engine<T>& engine) : left(engine) {}
    LeftBlocks<T> left;
    Scratch<T> scores, sums;
  };

  T* tile(const Worker& w, int64_t column) const { return w.scores.get() + column * kRows * tile_; }

  // The rows' exponentials in w.scores, not yet times their shares, 1 / sum.
  void softmax(const T* query, const Block& rows, Worker& w, T* statistics, T* shares) {
    w.left.reserve(1, kRows, s_.length);
    w.left.pack(0, query + rows.first * s_.length, s_.length, rows.count, s_.length);
    w.scores.reserve(columns_ * kRows * tile_);
    for (int64_t c = 0; c < columns_; ++c) {
      const Block columns(c, kColumns, s_.channels);
      engine_.multiply(w.left[0], w.left.panels(rows.count), keys_[c], keys_.panels(columns.count), s_.length,
                       tile(w, c), tile_, false);
    }
    for (int64_t r = 0; r < rows.count; ++r) {
      T smallest = std::numeric_limits<T>::infinity(), largest = -std::numeric_limits<T>::infinity(), total = T(0);
      for (int64_t c = 0; c < columns_; ++c) {
        kernel_.extrema(tile(w, c) + r * tile_, Block(c, kColumns, s_.channels).count, &smallest, &largest);
      }
      for (int64_t c = 0; c < columns_; ++c) {
        total += kernel_.exponentials(tile(w, c) + r * tile_, Block(c, kColumns, s_.channels).count, largest);
      }
      shares[r] = T(1) / total;
      statistics[rows.first + r] = largest;
      statistics[s_.channels + rows.first + r] = shares[r];
    }
  }

  void sum_few(const Block& rows, const Worker& w, const T* shares, T* output) const {
    for (int64_t r = 0; r < rows.count; ++r) {
      for (int64_t v = 0; v < s_.width; ++v) {
        T total = T(0);
        for (int64_t c = 0; c < columns_; ++c) {
          total += kernel_.dot(tile(w, c) + r * tile_, few_values_.get() + (c * kFewValues + v) * tile_,
                               Block(c, kColumns, s_.channels).count);
        }
        output[(rows.first + r) * s_.width + v] = total * shares[r];
      }
    }
  }

  void sum(const Block& rows, Worker& w, const T* shares, T* output) {
    const int64_t stride = row_stride(whole_vectors<T>(s_.width), kernel_.lanes);
    w.left.reserve(1, kRows, kColumns);
    T* sums = w.sums.reserve(kRows * stride);
    for (int64_t c = 0; c < columns_; ++c) {
      const Block columns(c, kColumns, s_.channels);
      w.left.pack(0, tile(w, c), tile_, rows.count, columns.count);
      engine_.multiply(w.left[0], w.left.panels(rows.count), values_[c], values_.panels(s_.width), columns.count, sums,
                       stride, c > 0);
    }
    for (int64_t r = 0; r < rows.count; ++r) {
      for (int64_t v = 0; v < s_.width; ++v) output[(rows.first + r) * s_.width + v] = sums[r * stride + v] * shares[r];
    }
  }

  const Kernels<T>& kernel_ = kernels<T>();
  const Engine<T>& engine_;
  const Sizes s_;
  const int64_t columns_, tile_;  // blocks of keys, and how far apart a tile's rows are
  RightBlocks<T> keys_, values_;
  Scratch<T> few_values_;  // (blocks of keys, kFewValues, tile_)
  std::vector<Worker> workers_;
};

std::tuple<Tensor, Tensor> channel_attention(const Tensor& query_in, const Tensor& key_in, const Tensor& value_in) {
  const Tensor query = dense(query_in, 3, "query"), key = dense(key_in, 3, "key"), value = dense(value_in, 3, "value");
  const Sizes s = check(query, key, value);
  Tensor output = new_tensor({s.batch, s.channels, s.width}, query.scalar_type());
  Tensor statistics = new_tensor({s.batch, 2, s.channels}, query.scalar_type());  // maximum, 1 / sum of each row
  return with_floating_type(query, "query", [&](auto zero) {
    using T = decltype(zero);
    const T *q = data<T>(query), *k = data<T>(key), *v = data<T>(value);
    Forward<T> forward(engine_for_values<T>({{q, s.batch * s.image()},
                                             {k, s.batch * s.image()},
                                             {v, s.few() ? 0 : s.batch * s.values()}}),
                       s);
    for (int64_t b = 0; b < s.batch; ++b) {
      forward.run(q + b * s.image(), k + b * s.image(), v + b * s.values(), mutable_data<T>(output) + b * s.values(),
                  mutable_data<T>(statistics) + b * 2 * s.channels);
    }
    return std::make_tuple(output, statistics);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(reidops, CPU, m) { m.impl("channel_attention", TORCH_BOX(&channel_attention)); }

}  // namespace reidops
