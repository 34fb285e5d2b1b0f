// Tile sources: where rows of distances come from.
//
// A source knows the distances between `rows()` left and `columns()` right points and hands them out in tiles, so that
// nothing larger than a tile is held unless the caller asked for it. What follows a source (k nearest, row maximum,
// re-ranking) is the same code whatever the source. Memory: one chunk of packed columns (about kChunkBytes) for all
// threads, one packed block of rows and one tile for each thread.
//
// Work per tile of R x C pairs: 2 R C d FLOPs over (R + C) d elements; with R = 128 rows a column block is read from
// the shared cache once for 256 d FLOPs an element, so that the products are bound by arithmetic, not memory.
#pragma once

#include <cmath>
#include <memory>
#include <numeric>
#include <vector>

#include "../core/path.h"
#include "../core/stripe.h"
#include "stripe_products.h"

namespace reidops {

// values[r * stride + c] belongs to row r and column c.
template <typename T>
struct Block {
  T* values;
  int64_t stride;
};

template <typename T>
class TileSource {
 public:
  virtual ~TileSource() = default;
  virtual int64_t rows() const = 0;
  virtual int64_t columns() const = 0;
  virtual int64_t tile_rows() const = 0;              // rows a thread takes at once
  virtual int64_t tile_columns() const = 0;           // columns of one tile
  virtual int64_t column_step() const { return 1; }   // tiles begin at multiples of it; divides tile_columns()
  virtual int64_t chunk_columns() const = 0;          // columns loaded at once, a multiple of tile_columns()
  virtual bool symmetric() const { return false; }    // rows and columns are the same points
  virtual void load(int64_t begin, int64_t end) = 0;  // makes ready columns [begin, end), by all threads
  virtual void begin_rows(int64_t worker, int64_t begin,
                          int64_t end) = 0;  // makes ready rows [begin, end) for one thread
  // Distances of the worker's rows to columns [begin, end) of the chunk, in memory of the worker's.
  virtual Block<T> fill(int64_t worker, int64_t begin, int64_t end) = 0;
  // out[c] = distance(i, columns[c]) for the worker's one row i, to the last bit as `fill` gives it
  virtual void gather(int64_t worker, const int32_t* columns, int64_t count, T* out) = 0;
  virtual T pair(int64_t i, int64_t j) const = 0;  // one distance, computed by itself
  virtual int64_t pair_work() const = 0;           // multiply-adds of one distance
};

// Distances of rows [i0, i1) to columns [j0, j1), `stride` apart. Where every pair of a symmetric source is made once,
// columns from `mirrored` on stand for rows of their own, which these are the distances of, too.
template <typename T>
struct Tile {
  int64_t i0, i1, j0, j1, mirrored;
  const T* values;
  int64_t stride;
  const T* row(int64_t i) const { return values + (i - i0) * stride; }
};

// A thread's share: rows [i0, i1) against columns [j0, j1).
struct TileTask {
  int64_t i0, i1, j0, j1;
};

// Tasks of one chunk. All threads but a few would wait for the last blocks of rows, so these are cut along the columns.
inline std::vector<TileTask> tile_tasks(int64_t row_begin, int64_t row_end, int64_t block, int64_t chunk,
                                        int64_t chunk_end, int64_t tile_columns, bool symmetric) {
  const int64_t end = symmetric ? std::min(row_end, chunk_end) : row_end;
  const int64_t blocks = ceil_div(end - row_begin, block), workers = num_workers();
  const int64_t rest = blocks % workers, parts = rest > 0 ? ceil_div(workers, rest) : 1;
  std::vector<TileTask> tasks;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t i0 = row_begin + b * block, i1 = std::min(end, i0 + block);
    const int64_t begin = symmetric ? std::max(chunk, i0) : chunk;
    const int64_t width = b < blocks - rest || symmetric
                              ? chunk_end - begin
                              : ceil_div(ceil_div(chunk_end - begin, parts), tile_columns) * tile_columns;
    for (int64_t j0 = begin; j0 < chunk_end; j0 += width)
      tasks.push_back({i0, i1, j0, std::min(chunk_end, j0 + width)});
  }
  return tasks;
}

// Calls visit(worker, tile) until every distance of rows [row_begin, row_end) to columns [column_begin, column_end) has
// been seen: from several threads, in no order, and two may see the same row at once. With `once` the source is
// symmetric, the ranges are all of it, and every pair is made once: the blocks then do not depend on the threads.
template <typename T, typename Visit>
void for_each_tile(TileSource<T>& source, int64_t row_begin, int64_t row_end, int64_t column_begin, int64_t column_end,
                   bool once, const Visit& visit) {
  int64_t height = source.tile_rows();
  if (once) {
    const int64_t step = source.column_step(), steps = source.tile_columns() / step;
    int64_t many = std::clamp<int64_t>(height / step, 1, steps);
    while (steps % many != 0) --many;
    height = many * step;
  } else {  // few rows are spread over all threads, each at least a register tile high
    const int64_t share = ceil_div(ceil_div(row_end - row_begin, num_workers()), kWidestPanel) * kWidestPanel;
    height = std::max<int64_t>(1, std::min(height, share));
  }
  for (int64_t chunk = column_begin; chunk < column_end; chunk += source.chunk_columns()) {
    const int64_t chunk_end = std::min(column_end, chunk + source.chunk_columns());
    source.load(chunk, chunk_end);
    const auto tasks = tile_tasks(row_begin, row_end, height, chunk, chunk_end, source.tile_columns(), once);
    const int64_t work = height * (chunk_end - chunk) * source.pair_work();
    parallel_tasks(static_cast<int64_t>(tasks.size()), work, [&](int64_t index, int64_t worker) {
      const TileTask task = tasks[index];
      source.begin_rows(worker, task.i0, task.i1);
      for (int64_t j0 = task.j0; j0 < task.j1; j0 += source.tile_columns()) {
        const int64_t j1 = std::min(task.j1, j0 + source.tile_columns());
        const Block<T> block = source.fill(worker, j0, j1);
        visit(worker, Tile<T>{task.i0, task.i1, j0, j1, once ? task.i1 : column_end, block.values, block.stride});
      }
    });
  }
}

// What the sources made from features share: sizes and packing.
template <typename T>
class StripeTiles : public TileSource<T> {
 public:
  int64_t rows() const override { return products_.x().count; }
  int64_t columns() const override { return products_.y().count; }
  int64_t tile_rows() const override { return products_.tile_images_x(); }
  int64_t tile_columns() const override { return products_.tile_images_y(); }
  int64_t column_step() const override { return products_.lanes(); }
  int64_t chunk_columns() const override { return products_.chunk_images_y(); }
  bool symmetric() const override { return products_.symmetric(); }
  int64_t pair_work() const override { return products_.m() * products_.n() * products_.d(); }
  void load(int64_t begin, int64_t end) override { products_.load(begin, end); }
  void begin_rows(int64_t worker, int64_t begin, int64_t end) override {
    products_.begin_rows(worker, begin, end);
    row_counts_[worker] = end - begin;
  }
  Block<T> fill(int64_t worker, int64_t begin, int64_t end) override {
    return distances(worker, products_.squared(worker, begin, end), end - begin);
  }
  void gather(int64_t worker, const int32_t* columns, int64_t count, T* out) override {
    std::copy_n(distances(worker, products_.squared_of_images(worker, columns, count), count).values, count, out);
  }

 protected:
  StripeTiles(const Images<T>& x, const Images<T>& y, const Engine<T>& engine)
      : products_(x, y, engine), row_counts_(num_workers()) {}
  // From squared distances of stripes, as StripeProducts gives them, to those of `count` images.
  virtual Block<T> distances(int64_t worker, T* squared, int64_t count) = 0;

  StripeProducts<T> products_;
  std::vector<int64_t> row_counts_;  // of each worker's block
};

// Squared Euclidean distances of points.
template <typename T>
class EuclideanTiles : public StripeTiles<T> {
 public:
  EuclideanTiles(const Images<T>& x, const Images<T>& y, const Engine<T>& engine) : StripeTiles<T>(x, y, engine) {}
  T pair(int64_t i, int64_t j) const override {
    return this->products_.pair(this->products_.x().row(i, 0), this->products_.y().row(j, 0));
  }

 protected:
  Block<T> distances(int64_t, T* squared, int64_t count) override { return {squared, this->products_.stride(count)}; }
};

// DMLI distances of images (AlignedReID++): shortest path over, or diagonal of, the tanh(d/2) of their stripes.
template <typename T>
class DmliTiles : public StripeTiles<T> {
 public:
  DmliTiles(const Images<T>& x, const Images<T>& y, bool aligned, const Engine<T>& engine)
      : StripeTiles<T>(x, y, engine), aligned_(aligned), workers_(num_workers()) {}
  T pair(int64_t i, int64_t j) const override {
    const StripeProducts<T>& products = this->products_;
    const int64_t m = products.m(), n = products.n();
    thread_local std::vector<T> cost;
    cost.assign(m * n, T(0));
    for (int64_t a = 0; a < m; ++a) {
      for (int64_t b = aligned_ ? 0 : a; b < (aligned_ ? n : a + 1); ++b) {
        cost[a * n + b] = tanh_half(std::sqrt(products.pair(products.x().row(i, a), products.y().row(j, b))));
      }
    }
    if (!aligned_) return std::accumulate(cost.begin(), cost.end(), T(0));
    accumulate_path(cost.data(), m, n, cost.data());
    return cost[m * n - 1];
  }

 protected:
  Block<T> distances(int64_t worker, T* squared, int64_t count) override {
    const StripeProducts<T>& products = this->products_;
    const int64_t m = products.m(), n = products.n(), lanes = products.lanes(), apart = products.stride(count);
    const int64_t images = this->row_counts_[worker], stride = products.width(count) / n;
    Worker& w = workers_[worker];
    T* total = w.total.reserve(n * lanes);
    T* out = w.tile.reserve(images * stride);
    for (int64_t i = 0; i < images; ++i) {
      for (int64_t j = 0; j < stride; j += lanes) {
        products.kernel().stripe_path(squared + i * m * apart + j * n, apart, m, n, aligned_, total,
                                      out + i * stride + j);
      }
    }
    return {out, stride};
  }

 private:
  struct Worker {
    Scratch<T> total, tile;
  };
  bool aligned_;
  std::vector<Worker> workers_;
};

// The sum of two sources over the same pairs.
template <typename T>
class SumTiles : public TileSource<T> {
 public:
  SumTiles(std::unique_ptr<TileSource<T>> a, std::unique_ptr<TileSource<T>> b)
      : a_(std::move(a)), b_(std::move(b)), workers_(num_workers()) {}
  int64_t rows() const override { return a_->rows(); }
  int64_t columns() const override { return a_->columns(); }
  int64_t tile_rows() const override { return std::min(a_->tile_rows(), b_->tile_rows()); }
  // Both widths are a multiple of the lanes; the smaller one serves both.
  int64_t tile_columns() const override { return std::min(a_->tile_columns(), b_->tile_columns()); }
  int64_t column_step() const override { return a_->column_step(); }
  int64_t chunk_columns() const override {
    const int64_t least = std::min(a_->chunk_columns(), b_->chunk_columns());
    return std::max<int64_t>(1, least / tile_columns()) * tile_columns();
  }
  bool symmetric() const override { return a_->symmetric() && b_->symmetric(); }
  void load(int64_t begin, int64_t end) override {
    a_->load(begin, end);
    b_->load(begin, end);
  }
  void begin_rows(int64_t worker, int64_t begin, int64_t end) override {
    workers_[worker].rows = end - begin;
    a_->begin_rows(worker, begin, end);
    b_->begin_rows(worker, begin, end);
  }
  Block<T> fill(int64_t worker, int64_t begin, int64_t end) override {
    const Block<T> sum = a_->fill(worker, begin, end), second = b_->fill(worker, begin, end);
    for (int64_t i = 0; i < workers_[worker].rows; ++i) {
      for (int64_t j = 0; j < end - begin; ++j) sum.values[i * sum.stride + j] += second.values[i * second.stride + j];
    }
    return sum;
  }
  void gather(int64_t worker, const int32_t* columns, int64_t count, T* out) override {
    T* second = workers_[worker].second.reserve(count);
    a_->gather(worker, columns, count, out);
    b_->gather(worker, columns, count, second);
    for (int64_t c = 0; c < count; ++c) out[c] += second[c];
  }
  T pair(int64_t i, int64_t j) const override { return a_->pair(i, j) + b_->pair(i, j); }
  int64_t pair_work() const override { return a_->pair_work() + b_->pair_work(); }

 private:
  struct Worker {
    int64_t rows = 0;
    Scratch<T> second;
  };
  std::unique_ptr<TileSource<T>> a_, b_;
  std::vector<Worker> workers_;
};

// Given distances of queries and gallery among each other: the matrix [[query_query, query_gallery], [query_gallery^T,
// gallery_gallery]].
constexpr int64_t kMatrixTileRows = 128;

template <typename T>
class MatrixTiles : public TileSource<T> {
 public:
  // query_gallery: (M, N), query_query: (M, M), gallery_gallery: (N, N)
  MatrixTiles(const T* query_gallery, const T* query_query, const T* gallery_gallery, int64_t queries, int64_t gallery)
      : qg_(query_gallery), qq_(query_query), gg_(gallery_gallery), m_(queries), n_(gallery), workers_(num_workers()) {}
  int64_t rows() const override { return m_ + n_; }
  int64_t columns() const override { return m_ + n_; }
  int64_t tile_rows() const override { return kMatrixTileRows; }
  int64_t tile_columns() const override { return kTileColumns; }
  int64_t chunk_columns() const override { return ceil_div(m_ + n_, kTileColumns) * kTileColumns; }
  int64_t pair_work() const override { return 8; }
  void load(int64_t, int64_t) override {}
  void begin_rows(int64_t worker, int64_t begin, int64_t end) override {
    workers_[worker].begin = begin;
    workers_[worker].end = end;
  }
  Block<T> fill(int64_t worker, int64_t begin, int64_t end) override {
    Worker& w = workers_[worker];
    T* out = w.tile.reserve((w.end - w.begin) * (end - begin));
    for (int64_t i = w.begin; i < w.end; ++i) {
      for (int64_t j = begin; j < end; ++j) out[(i - w.begin) * (end - begin) + j - begin] = pair(i, j);
    }
    return {out, end - begin};
  }
  void gather(int64_t worker, const int32_t* columns, int64_t count, T* out) override {
    for (int64_t c = 0; c < count; ++c) out[c] = pair(workers_[worker].begin, columns[c]);
  }
  T pair(int64_t i, int64_t j) const override {
    if (i < m_) return j < m_ ? qq_[i * m_ + j] : qg_[i * n_ + j - m_];
    return j < m_ ? qg_[j * n_ + i - m_] : gg_[(i - m_) * n_ + j - m_];
  }

 private:
  struct Worker {
    int64_t begin = 0, end = 0;
    Scratch<T> tile;
  };
  const T *qg_, *qq_, *gg_;
  int64_t m_, n_;
  std::vector<Worker> workers_;
};

}  // namespace reidops
