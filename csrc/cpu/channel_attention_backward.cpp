// The gradient of channel_attention. With P = softmax rows, dP = dO V^T, delta_i = dO_i . O_i, dS = P (dP - delta):
//   dQ = dS K,  dK^T = Q^T dS,  dV^T = dO^T P.
//
// The weights are recomputed from each row's saved maximum and 1 / sum (their logarithm added up would lose the sum's
// digits beside a large maximum), tile by tile of kRows queries and kColumns keys. While a tile is in the second-level
// cache, it becomes dS and goes into the sums of all three gradients, so that there never is a C x C matrix:
// 2 C^2 (3 L + 2 V) FLOPs an image. Products with few values V the vector unit does on the way.
//
// A thread takes a column of tiles from top to bottom: its packed keys and sums of dK (1.2 MB at L = 288 in three bfloat16
// pieces) stay near while a tile's packed queries and sums of dQ, as much, pass by for 113 MFLOP. With a tile's own 1 MB
// that is more than a second-level cache of 2 MB; but tiles that fit (128 x 192) were measured no faster, their sums
// coming and going more often. What bounds it are the products, at two thirds of what the matrix unit can, and its clock.
//
// Sums of dQ must take a row's tiles from left to right, whichever thread has them: a thread waits before a tile until
// the one to the left is done, which is but one tile's time at the start. Every sum so has its order, and the number of
// threads changes nothing. With as many images as threads each takes its own image and nobody waits.
#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "channel_attention.h"
#include "products.h"

namespace reidops {
namespace {

using namespace attention;

constexpr int64_t kFewRows = 4;                       // rows of weights that stay in the first-level cache
constexpr int64_t kPanelRows = kRows + kWidestPanel;  // room for kRows in panels, the last of which may be part empty

// Where the gradients of one image go, and what they are made of.
template <typename T>
struct Image {
  const T *query, *key;            // (channels, length)
  const T *value, *grad, *output;  // (channels, width)
  const T *largest, *share;        // (channels)
  T *grad_query, *grad_key;        // (channels, length)
  T* grad_value;                   // (channels, width)
};

// Rows `first` to `first` + count - 1 of `to`, (.., width): of sums^T. sums: (width, count), rows `stride` apart.
template <typename T>
void turn_back(const T* sums, int64_t stride, int64_t first, int64_t count, int64_t width, T* to) {
  constexpr int64_t kLine = 16;  // rows of sums whose lines stay in the first-level cache
  for (int64_t l0 = 0; l0 < width; l0 += kLine) {
    const int64_t l1 = std::min(width, l0 + kLine);
    for (int64_t c = 0; c < count; ++c) {
      for (int64_t l = l0; l < l1; ++l) to[(first + c) * width + l] = sums[l * stride + c];
    }
  }
}

template <typename T>
class Backward {
 public:
  Backward(const Engine<T>& engine, const Sizes& s, int64_t workers)
      : engine_(engine),
        s_(s),
        rows_(ceil_div(s.channels, kRows)),
        columns_(ceil_div(s.channels, kColumns)),
        tile_(whole_vectors<T>(std::min(s.channels, kColumns))),
        map_(row_stride(whole_vectors<T>(s.length), kernels<T>().lanes)),
        queries_(engine),
        queries_turned_(engine),
        grads_(engine),
        grads_turned_(engine),
        delta_(s.channels),
        done_(new std::atomic<int64_t>[columns_]) {
    queries_.reserve(rows_, kRows, s.length);
    queries_turned_.reserve(rows_, s.length, kRows);
    query_sums_.reserve(rows_ * kPanelRows * map_);
    if (!s.few()) {
      grads_.reserve(rows_, kRows, s.width);
      grads_turned_.reserve(rows_, s.width, kRows);
    }
    for (int64_t worker = 0; worker < workers; ++worker) workers_.emplace_back(engine).reserve(s, tile_);
  }

  void run(const Image<T>& image) {
    const int64_t work = kPackingWork * 2 * (s_.length + s_.width);
    parallel_tasks(rows_, work * kRows, [&](int64_t task, int64_t) { pack_rows(image, {task, kRows, s_.channels}); });
    for (int64_t c = 0; c < columns_; ++c) done_[c] = 0;
    parallel_tasks(columns_, kColumns * (3 * s_.image() + 2 * s_.values()), [&](int64_t task, int64_t worker) {
      column(image, {task, kColumns, s_.channels}, workers_[worker]);
    });
  }

 private:
  // A thread's buffers for a tile and the sums of its column.
  struct Worker {
    explicit Worker(const Engine<T>& engine)
        : left(engine), right(engine), keys(engine), keys_turned(engine), values(engine) {}
    void reserve(const Sizes& s, int64_t tile) {
      keys.reserve(1, kColumns, s.length);
      keys_turned.reserve(1, s.length, kColumns);
      if (!s.few()) values.reserve(1, kColumns, s.width);
      weights.reserve(kPanelRows * tile);
      left.reserve(1, kRows, kColumns);
      right.reserve(1, kColumns, kRows);
      key_sums.reserve((s.length + kWidestPanel) * tile);
      if (!s.few()) slopes.reserve(kPanelRows * tile);
      value_sums.reserve(s.few() ? 3 * kFewValues * tile : (s.width + kWidestPanel) * tile);
    }
    Scratch<T> weights, slopes, key_sums, value_sums;
    LeftBlocks<T> left;
    RightBlocks<T> right, keys, keys_turned, values;
  };

  void pack_rows(const Image<T>& image, const Block& rows) {
    const T* query = image.query + rows.first * s_.length;
    queries_.pack(rows.index, query, s_.length, rows.count, s_.length);
    queries_turned_.pack_transposed(rows.index, query, s_.length, s_.length, rows.count);
    const T *grad = image.grad + rows.first * s_.width, *output = image.output + rows.first * s_.width;
    for (int64_t r = 0; r < rows.count; ++r) {
      delta_[rows.first + r] = kernel_.dot(grad + r * s_.width, output + r * s_.width, s_.width);
    }
    if (s_.few()) return;
    grads_.pack(rows.index, grad, s_.width, rows.count, s_.width);
    grads_turned_.pack_transposed(rows.index, grad, s_.width, s_.width, rows.count);
  }

  // A column of tiles. value_sums of few values: sums of dV, those of one tile, and the turned values.
  void column(const Image<T>& image, const Block& columns, Worker& w) {
    const int64_t few_size = kFewValues * tile_;
    T *value_sums = w.value_sums.get(), *few_values = value_sums + 2 * few_size;
    const T *key = image.key + columns.first * s_.length, *value = image.value + columns.first * s_.width;
    w.keys.pack(0, key, s_.length, columns.count, s_.length);
    w.keys_turned.pack_transposed(0, key, s_.length, s_.length, columns.count);
    if (s_.few()) {
      std::fill_n(value_sums, few_size, T(0));
      turn_few(value, columns.count, s_.width, tile_, few_values);
    } else {
      w.values.pack(0, value, s_.width, columns.count, s_.width);
    }
    for (int64_t r = 0; r < rows_; ++r) {
      const Block rows(r, kRows, s_.channels);
      engine_.multiply(queries_[r], queries_.panels(rows.count), w.keys[0], w.keys.panels(columns.count), s_.length,
                       w.weights.get(), tile_, false);
      const T* slopes;
      if (s_.few()) {
        slopes = few_slopes(image, rows, columns, few_values, value_sums + few_size, w);
        for (int64_t j = 0; j < few_size; ++j) value_sums[j] += value_sums[few_size + j];
      } else {
        slopes = whole_slopes(image, rows, columns, w);
        add_turned(grads_turned_, s_.width, rows, w.weights.get(), columns, w, value_sums);
      }
      add_turned(queries_turned_, s_.length, rows, slopes, columns, w, w.key_sums.get());
      add_to_query(image, rows, columns, slopes, w);
    }
    turn_back(w.key_sums.get(), tile_, columns.first, columns.count, s_.length, image.grad_key);
    turn_back(value_sums, tile_, columns.first, columns.count, s_.width, image.grad_value);
  }

  // A tile of dS, and of P in w.weights.
  const T* whole_slopes(const Image<T>& image, const Block& rows, const Block& columns, Worker& w) {
    T *weights = w.weights.get(), *slopes = w.slopes.get();
    engine_.multiply(grads_[rows.index], grads_.panels(rows.count), w.values[0], w.values.panels(columns.count),
                     s_.width, slopes, tile_, false);
    for (int64_t r = 0; r < rows.count; ++r) {
      const int64_t i = rows.first + r;
      kernel_.exponentials(weights + r * tile_, columns.count, image.largest[i]);
      kernel_.softmax_slopes(weights + r * tile_, slopes + r * tile_, columns.count, image.share[i], delta_[i]);
    }
    return slopes;
  }

  // The same in place, and the tile's sums of dV.
  const T* few_slopes(const Image<T>& image, const Block& rows, const Block& columns, const T* values, T* value_sums,
                      Worker& w) {
    T* weights = w.weights.get();
    std::fill_n(value_sums, kFewValues * tile_, T(0));
    for (int64_t r0 = 0; r0 < rows.count; r0 += kFewRows) {
      const int64_t first = rows.first + r0, count = std::min(kFewRows, rows.count - r0);
      T grads[kFewRows * kFewValues] = {};
      for (int64_t r = 0; r < count; ++r) {
        kernel_.exponentials(weights + (r0 + r) * tile_, columns.count, image.largest[first + r]);
        std::copy_n(image.grad + (first + r) * s_.width, s_.width, grads + r * kFewValues);
      }
      kernel_.few_value_slopes(weights + r0 * tile_, count, tile_, image.share + first, delta_.data() + first, grads,
                               values, value_sums);
    }
    return weights;
  }

  // sums, (width, columns), take in left @ tile: the rows' part of dK^T or dV^T.
  void add_turned(const LeftBlocks<T>& left, int64_t width, const Block& rows, const T* tile, const Block& columns,
                  Worker& w, T* sums) {
    w.right.pack_transposed(0, tile, tile_, columns.count, rows.count);
    engine_.multiply(left[rows.index], left.panels(width), w.right[0], w.right.panels(columns.count), rows.count, sums,
                     tile_, rows.index > 0);
  }

  // The rows' sums of dQ take in this tile's part after those to its left, and are whole after the last.
  void add_to_query(const Image<T>& image, const Block& rows, const Block& columns, const T* slopes, Worker& w) {
    const int64_t c = columns.index;
    w.left.pack(0, slopes, tile_, rows.count, columns.count);
    while (c > 0 && done_[c - 1].load(std::memory_order_acquire) <= rows.index) std::this_thread::yield();
    T* sums = query_sums_.get() + rows.index * kPanelRows * map_;
    engine_.multiply(w.left[0], w.left.panels(rows.count), w.keys_turned[0], w.keys_turned.panels(s_.length),
                     columns.count, sums, map_, c > 0);
    done_[c].store(rows.index + 1, std::memory_order_release);
    for (int64_t r = 0; c + 1 == columns_ && r < rows.count; ++r) {
      std::copy_n(sums + r * map_, s_.length, image.grad_query + (rows.first + r) * s_.length);
    }
  }

  const Kernels<T>& kernel_ = kernels<T>();
  const Engine<T>& engine_;
  const Sizes s_;
  const int64_t rows_, columns_, tile_, map_;
  LeftBlocks<T> queries_, queries_turned_, grads_, grads_turned_;
  Scratch<T> query_sums_;
  std::vector<Worker> workers_;
  std::vector<T> delta_;
  std::unique_ptr<std::atomic<int64_t>[]> done_;  // rows of tiles done in each column
};

std::tuple<Tensor, Tensor, Tensor> channel_attention_backward(const Tensor& grad_in, const Tensor& query_in,
                                                              const Tensor& key_in, const Tensor& value_in,
                                                              const Tensor& output_in, const Tensor& statistics_in) {
  const Tensor query = dense(query_in, 3, "query"), key = dense(key_in, 3, "key"), value = dense(value_in, 3, "value");
  const Tensor grad = dense(grad_in, 3, "grad"), output = dense(output_in, 3, "output"),
               statistics = dense(statistics_in, 3, "statistics");
  const Sizes s = check(query, key, value);
  for (const Tensor* t : {&grad, &output}) {
    STD_TORCH_CHECK(check(query, key, *t).width == s.width, "grad and output should match value");
  }
  STD_TORCH_CHECK(statistics.size(0) == s.batch && statistics.size(1) == 2 && statistics.size(2) == s.channels &&
                      statistics.scalar_type() == query.scalar_type(),
                  "statistics should match query");
  Tensor grad_query = new_tensor({s.batch, s.channels, s.length}, query.scalar_type());
  Tensor grad_key = new_tensor({s.batch, s.channels, s.length}, query.scalar_type());
  Tensor grad_value = new_tensor({s.batch, s.channels, s.width}, query.scalar_type());
  return with_floating_type(query, "query", [&](auto zero) {
    using T = decltype(zero);
    const int64_t maps = s.batch * s.image(), values = s.batch * s.values();
    const Engine<T>& engine = engine_for_values<T>(
        {{data<T>(query), maps}, {data<T>(key), maps}, {data<T>(value), values}, {data<T>(grad), values}});
    const bool apart = s.batch >= num_workers();  // an image a thread, within which nothing more is shared out
    std::vector<Backward<T>> backward;
    for (int64_t i = 0; i < (apart ? num_workers() : 1); ++i)
      backward.emplace_back(engine, s, apart ? 1 : num_workers());
    const auto run = [&](int64_t b, int64_t worker) {
      const int64_t map = b * s.image(), vector = b * s.values();
      const T* largest = data<T>(statistics) + b * 2 * s.channels;
      backward[worker].run({data<T>(query) + map, data<T>(key) + map, data<T>(value) + vector, data<T>(grad) + vector,
                            data<T>(output) + vector, largest, largest + s.channels, mutable_data<T>(grad_query) + map,
                            mutable_data<T>(grad_key) + map, mutable_data<T>(grad_value) + vector});
    };
    if (apart) {
      parallel_tasks(s.batch, s.channels * (3 * s.image() + 2 * s.values()), run);
    } else {
      for (int64_t b = 0; b < s.batch; ++b) run(b, 0);
    }
    return std::make_tuple(grad_query, grad_key, grad_value);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(reidops, CPU, m) {
  m.impl("channel_attention_backward", TORCH_BOX(&channel_attention_backward));
}

}  // namespace reidops
