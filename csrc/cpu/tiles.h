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
#include "centre.h"
#include "pack.h"
#include "parallel.h"
#include "simd.h"

namespace reidops {

constexpr int64_t kChunkBytes = int64_t(16) << 20;  // packed columns that all threads work on together
constexpr int64_t kTileRows = 128;
constexpr int64_t kTileColumns = 512;

template <typename T>
class TileSource {
 public:
  virtual ~TileSource() = default;
  virtual int64_t rows() const = 0;
  virtual int64_t columns() const = 0;
  virtual int64_t tile_rows() const = 0;              // rows a thread takes at once
  virtual int64_t tile_columns() const = 0;           // columns of one tile
  virtual int64_t chunk_columns() const = 0;          // columns loaded at once, a multiple of tile_columns()
  virtual void load(int64_t begin, int64_t end) = 0;  // makes ready columns [begin, end), by all threads
  virtual void begin_rows(int64_t worker, int64_t begin,
                          int64_t end) = 0;  // makes ready rows [begin, end) for one thread
  // out[(i - row begin) * stride + (j - begin)] = distance(i, j) for the worker's rows and columns [begin, end) of the
  // chunk
  virtual void fill(int64_t worker, int64_t begin, int64_t end, T* out, int64_t stride) = 0;
  virtual T pair(int64_t i, int64_t j) const = 0;  // one distance, computed by itself
  virtual int64_t pair_work() const = 0;           // multiply-adds of one distance
};

// Visits the distances of rows [row_begin, row_end) against columns [column_begin, column_end):
// visit(worker, row begin, row end, column begin, column end, tile, stride). For a given row the columns come in
// ascending order.
template <typename T, typename Visit>
void for_each_tile(TileSource<T>& source, int64_t row_begin, int64_t row_end, int64_t column_begin, int64_t column_end,
                   const Visit& visit) {
  // Few rows are spread over all threads, each at least a register tile high.
  const int64_t share = ceil_div(ceil_div(row_end - row_begin, num_workers()), 8) * 8;
  const int64_t block = std::max<int64_t>(1, std::min(source.tile_rows(), share));
  const int64_t blocks = ceil_div(row_end - row_begin, block);
  std::vector<Scratch<T>> tiles(num_workers());
  for (int64_t chunk = column_begin; chunk < column_end; chunk += source.chunk_columns()) {
    const int64_t chunk_end = std::min(column_end, chunk + source.chunk_columns());
    source.load(chunk, chunk_end);
    parallel_tasks(blocks, block * (chunk_end - chunk) * source.pair_work(), [&](int64_t task, int64_t worker) {
      const int64_t i0 = row_begin + task * block, i1 = std::min(row_end, i0 + block);
      const int64_t stride = std::min(source.tile_columns(), chunk_end - chunk);
      T* tile = tiles[worker].reserve((i1 - i0) * stride);
      source.begin_rows(worker, i0, i1);
      for (int64_t j0 = chunk; j0 < chunk_end; j0 += source.tile_columns()) {
        const int64_t j1 = std::min(chunk_end, j0 + source.tile_columns());
        source.fill(worker, j0, j1, tile, stride);
        visit(worker, i0, i1, j0, j1, tile, stride);
      }
    });
  }
}

// Squared Euclidean distances of stripes, m to an image on the left and n on the right, around their centre; plain points
// are images of one stripe. Right-hand panels hold one stripe of `lanes` consecutive images, so that the path can run over images in
// vector lanes.
template <typename T>
class StripeProducts {
 public:
  // x: (images_x, m, d), y: (images_y, n, d)
  StripeProducts(const T* x, int64_t images_x, int64_t m, const T* y, int64_t images_y, int64_t n, int64_t d)
      : x_(x),
        y_(y),
        images_x_(images_x),
        images_y_(images_y),
        m_(m),
        n_(n),
        d_(d),
        centre_(coarse_mean(x, images_x * m, y, images_y * n, d)),
        workers_(num_workers()) {}

  int64_t m() const { return m_; }
  int64_t n() const { return n_; }
  int64_t d() const { return d_; }
  int64_t images_x() const { return images_x_; }
  int64_t images_y() const { return images_y_; }
  const T* x(int64_t image, int64_t stripe) const { return x_ + (image * m_ + stripe) * d_; }
  const T* y(int64_t image, int64_t stripe) const { return y_ + (image * n_ + stripe) * d_; }
  int64_t lanes() const { return k_.lanes; }

  int64_t tile_images_x() const { return std::max<int64_t>(1, kTileRows / m_); }
  int64_t tile_images_y() const { return std::max<int64_t>(1, kTileColumns / (n_ * k_.lanes)) * k_.lanes; }
  int64_t chunk_images_y() const {
    const int64_t tile_bytes = tile_images_y() * n_ * d_ * static_cast<int64_t>(sizeof(T));
    return std::max<int64_t>(1, kChunkBytes / std::max<int64_t>(tile_bytes, 1)) * tile_images_y();
  }

  void load(int64_t begin, int64_t end) {
    const int64_t groups = ceil_div(end - begin, k_.lanes);
    T* packed = columns_.reserve(groups * n_ * k_.lanes * d_);
    T* norms = column_norms_.reserve(groups * n_ * k_.lanes);
    chunk_begin_ = begin;
    parallel_tasks(groups * n_, k_.lanes * d_ * 4, [&](int64_t panel, int64_t) {
      const int64_t image = begin + panel / n_ * k_.lanes, stripe = panel % n_;
      T* out = packed + panel * k_.lanes * d_;
      pack_panel([&](int64_t l) { return y(image + l, stripe); }, std::min(k_.lanes, end - image), d_, 1, k_.lanes,
                 centre_.data(), out);
      k_.squared_norms(out, d_, k_.lanes, norms + panel * k_.lanes);
    });
  }

  void begin_rows(int64_t worker, int64_t begin, int64_t end) {
    Worker& w = workers_[worker];
    w.begin = begin;
    w.rows = (end - begin) * m_;
    const int64_t panels = ceil_div(w.rows, k_.rows);
    T* packed = w.packed.reserve(panels * k_.rows * d_);
    T* norms = w.norms.reserve(panels * k_.rows);
    pack_rows(x(begin, 0), w.rows, d_, d_, 1, k_.rows, centre_.data(), packed);
    for (int64_t p = 0; p < panels; ++p) k_.squared_norms(packed + p * k_.rows * d_, d_, k_.rows, norms + p * k_.rows);
  }

  // The worker's rows against images [begin, end): returns (rows, stride()) squared distances, columns ordered
  // [group of lanes][stripe][lane]; begin lies on a group of the chunk.
  T* squared(int64_t worker, int64_t begin, int64_t end) {
    Worker& w = workers_[worker];
    const int64_t row_panels = ceil_div(w.rows, k_.rows), width = stride(begin, end);
    const int64_t first = (begin - chunk_begin_) * n_;  // column of the packed chunk
    T* tile = w.tile.reserve(row_panels * k_.rows * width);
    k_.multiply(w.packed.get(), row_panels, columns_.get() + first * d_, width / k_.lanes, d_, tile, width);
    for (int64_t r = 0; r < w.rows; ++r) {
      T* row = tile + r * width;
      if (k_.squared_distances(row, width, w.norms.get()[r], column_norms_.get() + first)) {
        repair(w, r, begin, end, row, column_norms_.get() + first);
      }
    }
    return tile;
  }

  int64_t stride(int64_t begin, int64_t end) const { return ceil_div(end - begin, k_.lanes) * k_.lanes * n_; }

  T pair(const T* x, const T* y) const { return k_.pair_squared_distance(x, y, d_); }
  const Kernels<T>& kernel() const { return k_; }

 private:
  struct Worker {
    int64_t begin = 0, rows = 0;
    Scratch<T> packed, norms, tile;
  };

  // Computes again, from the differences, what cancellation has spoilt in one row.
  void repair(const Worker& w, int64_t r, int64_t begin, int64_t end, T* row, const T* norms) {
    const T* left = x(w.begin + r / m_, r % m_);
    const T norm = w.norms.get()[r];
    const int64_t group = n_ * k_.lanes;
    for (int64_t p = 0; p < stride(begin, end); ++p) {
      if (row[p] >= kCancellation<T> * (norm + norms[p])) continue;
      const int64_t image = begin + p / group * k_.lanes + p % k_.lanes;
      if (image < end) row[p] = pair(left, y(image, p % group / k_.lanes));
    }
  }

  const Kernels<T>& k_ = kernels<T>();
  const T *x_, *y_;
  int64_t images_x_, images_y_, m_, n_, d_;
  std::vector<T> centre_;
  int64_t chunk_begin_ = 0;
  Scratch<T> columns_, column_norms_;
  std::vector<Worker> workers_;
};

// What the sources made from features share: sizes and packing.
template <typename T>
class StripeTiles : public TileSource<T> {
 public:
  int64_t rows() const override { return products_.images_x(); }
  int64_t columns() const override { return products_.images_y(); }
  int64_t tile_rows() const override { return products_.tile_images_x(); }
  int64_t tile_columns() const override { return products_.tile_images_y(); }
  int64_t chunk_columns() const override { return products_.chunk_images_y(); }
  int64_t pair_work() const override { return products_.m() * products_.n() * products_.d(); }
  void load(int64_t begin, int64_t end) override { products_.load(begin, end); }
  void begin_rows(int64_t worker, int64_t begin, int64_t end) override {
    products_.begin_rows(worker, begin, end);
    row_counts_[worker] = end - begin;
  }

 protected:
  explicit StripeTiles(StripeProducts<T> products) : products_(std::move(products)), row_counts_(num_workers()) {}
  StripeProducts<T> products_;
  std::vector<int64_t> row_counts_;  // of each worker's block
};

// Squared Euclidean distances of points.
template <typename T>
class EuclideanTiles : public StripeTiles<T> {
 public:
  // x: (rows, d), y: (columns, d)
  EuclideanTiles(const T* x, int64_t rows, const T* y, int64_t columns, int64_t d)
      : StripeTiles<T>(StripeProducts<T>(x, rows, 1, y, columns, 1, d)) {}
  void fill(int64_t worker, int64_t begin, int64_t end, T* out, int64_t stride) override {
    const T* squared = this->products_.squared(worker, begin, end);
    const int64_t width = this->products_.stride(begin, end);
    for (int64_t i = 0; i < this->row_counts_[worker]; ++i) {
      std::copy_n(squared + i * width, end - begin, out + i * stride);
    }
  }
  T pair(int64_t i, int64_t j) const override {
    return this->products_.pair(this->products_.x(i, 0), this->products_.y(j, 0));
  }
};

// DMLI distances of images (AlignedReID++): shortest path over, or diagonal of, the tanh(d/2) of their stripes.
template <typename T>
class DmliTiles : public StripeTiles<T> {
 public:
  // x: (rows, m, d), y: (columns, n, d)
  DmliTiles(const T* x, int64_t rows, int64_t m, const T* y, int64_t columns, int64_t n, int64_t d, bool aligned)
      : StripeTiles<T>(StripeProducts<T>(x, rows, m, y, columns, n, d)), aligned_(aligned), workers_(num_workers()) {}
  void fill(int64_t worker, int64_t begin, int64_t end, T* out, int64_t stride) override {
    const StripeProducts<T>& products = this->products_;
    const int64_t m = products.m(), n = products.n(), lanes = products.lanes();
    const T* squared = this->products_.squared(worker, begin, end);
    const int64_t width = products.stride(begin, end);
    Worker& w = workers_[worker];
    T* cost = w.cost.reserve(n * lanes);
    T* total = w.total.reserve(n * lanes);
    T* path = w.path.reserve(lanes);
    for (int64_t i = 0; i < this->row_counts_[worker]; ++i) {
      for (int64_t j = begin; j < end; j += lanes) {
        const T* group = squared + i * m * width + (j - begin) * n;
        products.kernel().stripe_path(group, width, m, n, aligned_, cost, total, path);
        std::copy_n(path, std::min(lanes, end - j), out + i * stride + (j - begin));
      }
    }
  }
  T pair(int64_t i, int64_t j) const override {
    const StripeProducts<T>& products = this->products_;
    const int64_t m = products.m(), n = products.n();
    thread_local std::vector<T> cost;
    cost.assign(m * n, T(0));
    for (int64_t a = 0; a < m; ++a) {
      for (int64_t b = aligned_ ? 0 : a; b < (aligned_ ? n : a + 1); ++b) {
        cost[a * n + b] = tanh_half(std::sqrt(products.pair(products.x(i, a), products.y(j, b))));
      }
    }
    if (!aligned_) return std::accumulate(cost.begin(), cost.end(), T(0));
    accumulate_path(cost.data(), m, n, cost.data());
    return cost[m * n - 1];
  }

 private:
  struct Worker {
    Scratch<T> cost, total, path;
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
  // Both widths are a power of two of lanes or a multiple of the lanes; the smaller one serves both.
  int64_t tile_columns() const override { return std::min(a_->tile_columns(), b_->tile_columns()); }
  int64_t chunk_columns() const override {
    const int64_t least = std::min(a_->chunk_columns(), b_->chunk_columns());
    return std::max<int64_t>(1, least / tile_columns()) * tile_columns();
  }
  void load(int64_t begin, int64_t end) override {
    a_->load(begin, end);
    b_->load(begin, end);
  }
  void begin_rows(int64_t worker, int64_t begin, int64_t end) override {
    workers_[worker].rows = end - begin;
    a_->begin_rows(worker, begin, end);
    b_->begin_rows(worker, begin, end);
  }
  void fill(int64_t worker, int64_t begin, int64_t end, T* out, int64_t stride) override {
    Worker& w = workers_[worker];
    T* second = w.tile.reserve(w.rows * stride);
    a_->fill(worker, begin, end, out, stride);
    b_->fill(worker, begin, end, second, stride);
    for (int64_t i = 0; i < w.rows; ++i) {
      for (int64_t j = 0; j < end - begin; ++j) out[i * stride + j] += second[i * stride + j];
    }
  }
  T pair(int64_t i, int64_t j) const override { return a_->pair(i, j) + b_->pair(i, j); }
  int64_t pair_work() const override { return a_->pair_work() + b_->pair_work(); }

 private:
  struct Worker {
    int64_t rows = 0;
    Scratch<T> tile;
  };
  std::unique_ptr<TileSource<T>> a_, b_;
  std::vector<Worker> workers_;
};

// Given distances of queries and gallery among each other: the matrix [[query_query, query_gallery], [query_gallery^T,
// gallery_gallery]].
template <typename T>
class MatrixTiles : public TileSource<T> {
 public:
  // query_gallery: (M, N), query_query: (M, M), gallery_gallery: (N, N)
  MatrixTiles(const T* query_gallery, const T* query_query, const T* gallery_gallery, int64_t queries, int64_t gallery)
      : qg_(query_gallery), qq_(query_query), gg_(gallery_gallery), m_(queries), n_(gallery), blocks_(num_workers()) {}
  int64_t rows() const override { return m_ + n_; }
  int64_t columns() const override { return m_ + n_; }
  int64_t tile_rows() const override { return kTileRows; }
  int64_t tile_columns() const override { return kTileColumns; }
  int64_t chunk_columns() const override { return ceil_div(m_ + n_, kTileColumns) * kTileColumns; }
  int64_t pair_work() const override { return 8; }
  void load(int64_t, int64_t) override {}
  void begin_rows(int64_t worker, int64_t begin, int64_t end) override { blocks_[worker] = {begin, end}; }
  void fill(int64_t worker, int64_t begin, int64_t end, T* out, int64_t stride) override {
    for (int64_t i = blocks_[worker].begin; i < blocks_[worker].end; ++i) {
      for (int64_t j = begin; j < end; ++j) out[(i - blocks_[worker].begin) * stride + j - begin] = pair(i, j);
    }
  }
  T pair(int64_t i, int64_t j) const override {
    if (i < m_) return j < m_ ? qq_[i * m_ + j] : qg_[i * n_ + j - m_];
    return j < m_ ? qg_[j * n_ + i - m_] : gg_[(i - m_) * n_ + j - m_];
  }

 private:
  struct Block {
    int64_t begin = 0, end = 0;
  };
  const T *qg_, *qq_, *gg_;
  int64_t m_, n_;
  std::vector<Block> blocks_;
};

}  // namespace reidops
