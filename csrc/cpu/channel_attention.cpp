// channel_attention: softmax(query @ key^T) @ value over channels, the leader attention of MuDeep_v2, without the C x C
// matrix of every image.
//
// query, key: (B, C, L), value: (B, C, V). A thread takes kRows channels at a time: their C scores, the softmax and the
// weighted sum, 2 C (L + V) FLOPs a channel, while keys and values, packed once an image, stream from the cache.
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

// One thread's buffers.
template <typename T>
struct Worker : BlockProduct<T> {
  using BlockProduct<T>::BlockProduct;
  Scratch<T> scores, sums;
};

std::tuple<Tensor, Tensor> channel_attention(const Tensor& query_in, const Tensor& key_in, const Tensor& value_in) {
  const Tensor query = dense(query_in, 3, "query"), key = dense(key_in, 3, "key"), value = dense(value_in, 3, "value");
  const Sizes s = check(query, key, value);
  Tensor output = new_tensor({s.batch, s.channels, s.width}, query.scalar_type());
  Tensor statistics = new_tensor({s.batch, 2, s.channels}, query.scalar_type());  // maximum, 1 / sum of each row
  return with_floating_type(query, "query", [&](auto zero) {
    using T = decltype(zero);
    const auto& kernel = kernels<T>();
    const T *q = data<T>(query), *k = data<T>(key), *v = data<T>(value);
    T *out = mutable_data<T>(output), *saved = mutable_data<T>(statistics);
    const Engine<T>& engine = engine_for_values<T>(
        {{q, s.batch * s.image()}, {k, s.batch * s.image()}, {v, s.few() ? 0 : s.batch * s.values()}});
    Right<T> keys(engine), values(engine);
    Scratch<T> few_values;
    std::vector<Worker<T>> workers;
    for (int64_t worker = 0; worker < num_workers(); ++worker) workers.emplace_back(engine);
    for (int64_t b = 0; b < s.batch; ++b) {
      keys.pack_plain(k + b * s.image(), s.channels, s.length);
      const int64_t stride = keys.stride();
      if (s.few()) {
        turn_few(v + b * s.values(), s.channels, s.width, stride, few_values.reserve(kFewValues * stride));
      } else {
        values.pack_transposed(v + b * s.values(), s.width, s.channels);
      }
      parallel_tasks(ceil_div(s.channels, kRows), kRows * (s.image() + s.values()), [&](int64_t task, int64_t worker) {
        Worker<T>& w = workers[worker];
        const int64_t c0 = b * s.channels + task * kRows;
        const int64_t rows = std::min(kRows, s.channels - task * kRows);
        T* scores = w.multiply(q + c0 * s.length, rows, s.length, keys, w.scores);
        T shares[kRows];
        for (int64_t r = 0; r < rows; ++r) {
          T* row = scores + r * stride;
          T smallest = std::numeric_limits<T>::infinity(), largest = -std::numeric_limits<T>::infinity();
          kernel.extrema(row, s.channels, &smallest, &largest);
          const T sum = kernel.exponentials(row, s.channels, largest);
          shares[r] = T(1) / sum;
          T* row_saved = saved + b * 2 * s.channels + task * kRows + r;
          row_saved[0] = largest;
          row_saved[s.channels] = shares[r];
          for (int64_t l = 0; s.few() && l < s.width; ++l) {
            out[(c0 + r) * s.width + l] = kernel.dot(row, few_values.get() + l * stride, s.channels) * shares[r];
          }
        }
        if (s.few()) return;
        const T* sums = w.multiply(scores, rows, stride, values, w.sums);
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t l = 0; l < s.width; ++l) out[(c0 + r) * s.width + l] = sums[r * values.stride() + l] * shares[r];
        }
      });
    }
    return std::make_tuple(output, statistics);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(reidops, CPU, m) { m.impl("channel_attention", TORCH_BOX(&channel_attention)); }

}  // namespace reidops
