// Distances in tiles: the one form in which the evaluation operators see them, whatever they are made from.
//
// A tile is a matrix product of some ten million elements, two waves of the multiprocessors: 35 MB on an H200, most of
// which its L2 cache of 50 MB still holds when the kernel that uses it reads it. The features it is made from are packed
// in windows (operands.h): 128 MB on the left, a tile's width on the right. While the kernels that use a tile run, the
// next product is under way (overlap.h).
#pragma once

#include <memory>
#include <string>

#include "operands.h"
#include "overlap.h"
#include "tile_kernels.cuh"

namespace reidops {

constexpr int64_t kLeftBytes = int64_t(128) << 20;

// How far the rows of a tile of so many columns lie apart, in elements: whole cache lines. What reads the tile reads 16
// bytes at once, and cuBLAS takes its fast kernels only where every row of the result begins and ends at 16 bytes: it is
// given up to kSpareColumns columns more, whose products with whatever lies in memory fall between the rows.
constexpr int64_t tile_pitch(int64_t columns) { return ceil_div(columns, kWarp) * kWarp; }
constexpr int64_t kSpareColumns = 3;
constexpr int64_t with_spare(int64_t columns) { return ceil_div(columns, kSpareColumns + 1) * (kSpareColumns + 1); }

// Rows and columns of a product that is `waves` full waves of 128 x 256 blocks, one for each multiprocessor.
struct TileShape {
  int64_t rows, columns;
};

inline TileShape tile_shape(const Tensor& like) {
  constexpr int kWaves = 2, kBlockRows = 128, kBlockColumns = 256;
  int multiprocessors = 0;
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, like.get_device_index()),
        "multiprocessors of the device");
  const int across = std::clamp(multiprocessors / 11, 1, 12);  // 132: 22 x 12 blocks
  return {int64_t(kBlockRows) * (kWaves * multiprocessors / across), int64_t(kBlockColumns) * across};
}

// Rows are what is on the left. `load_left` and `load_right` come before the product of what lies in them; the product
// goes into one of two buffers, and `tile` makes distances of it, which hold until the next call.
template <typename T>
class TileSource {
 public:
  virtual ~TileSource() = default;
  virtual int64_t rows() const = 0;
  virtual int64_t columns() const = 0;
  virtual int64_t tile_rows() const = 0;
  virtual int64_t tile_columns() const = 0;
  virtual int64_t left_rows() const = 0;  // a window on the left
  virtual void load_left(int64_t begin, int64_t end) = 0;
  virtual void load_right(int64_t begin, int64_t end) = 0;
  // Of rows [i0, i1) and columns [j0, j1).
  virtual void multiply(int buffer, int64_t i0, int64_t i1, int64_t j0, int64_t j1) = 0;
  virtual Tile<T> tile(int buffer, int64_t i0, int64_t i1, int64_t j0, int64_t j1) = 0;
};

// visit(buffer, i0, i1, j0, j1) for products that cover rows [row_begin, row_end) and columns [column_begin,
// column_end). upper: of a symmetric source, only columns from i0 on: every pair i < j, and of the block on the diagonal
// all. What visit launches on the current stream runs beside the next product.
template <typename T, typename Visit>
void for_each_product(TileSource<T>& source, int64_t row_begin, int64_t row_end, int64_t column_begin,
                      int64_t column_end, bool upper, const Tensor& like, const Visit& visit) {
  const bool several = row_end - row_begin > source.tile_rows() || column_end - column_begin > source.tile_columns();
  Overlap overlap(like, several);
  int buffer = 0;
  for (int64_t left = row_begin; left < row_end; left += source.left_rows()) {
    const int64_t left_end = std::min(row_end, left + source.left_rows());
    source.load_left(left, left_end);
    for (int64_t j = upper ? left : column_begin; j < column_end; j += source.tile_columns()) {
      const int64_t j1 = std::min(column_end, j + source.tile_columns());
      source.load_right(j, j1);
      for (int64_t i0 = left; i0 < left_end; i0 += source.tile_rows()) {
        const int64_t i1 = std::min(left_end, i0 + source.tile_rows()), j0 = upper ? std::max(i0, j) : j;
        if (j0 >= j1) continue;
        overlap.reuse(buffer);
        source.multiply(buffer, i0, i1, j0, j1);
        overlap.enter();
        visit(buffer, i0, i1, j0, j1);
        overlap.leave(buffer);
        buffer = several ? 1 - buffer : 0;
      }
    }
  }
}

// visit(i0, i1, j0, j1, tile) with the distances.
template <typename T, typename Visit>
void for_each_tile(TileSource<T>& source, int64_t row_begin, int64_t row_end, int64_t column_begin, int64_t column_end,
                   bool upper, const Tensor& like, const Visit& visit) {
  for_each_product(source, row_begin, row_end, column_begin, column_end, upper, like,
                   [&](int buffer, int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
                     visit(i0, i1, j0, j1, source.tile(buffer, i0, i1, j0, j1));
                   });
}

// Products of stripes, m to an image on the left and n on the right; plain points are images of one stripe.
template <typename T>
class StripeProducts {
 public:
  // x: (images_x m, d), y: (images_y n, d)
  StripeProducts(const Rows<T>& x, int64_t m, const Rows<T>& y, int64_t n, Format format, const Tensor& like)
      : m_(m), n_(n), shape_(tile_shape(like)), centre_(coarse_mean(x, y, like)), like_(like) {
    tile_rows_ = std::max<int64_t>(1, std::min(shape_.rows, x.count) / m);
    tile_columns_ = std::max<int64_t>(1, std::min(shape_.columns, y.count) / n);
    const int64_t tiles = kLeftBytes / (tile_rows_ * m * Operand<T>::row_bytes(x.depth, format));
    left_rows_ = std::max<int64_t>(1, tiles) * tile_rows_;
    left_ = std::make_unique<Operand<T>>(x, centre_, format, true, left_rows_ * m);
    right_ = std::make_unique<Operand<T>>(y, centre_, format, false, tile_columns_ * n, kSpareColumns * n);
    product_size_ = tile_rows_ * m * tile_pitch(tile_columns_ * n);
    products_ = new_tensor({2 * product_size_}, like.scalar_type(), like);
  }

  int64_t m() const { return m_; }
  int64_t n() const { return n_; }
  int64_t images_x() const { return left_->rows().count / m_; }
  int64_t images_y() const { return right_->rows().count / n_; }
  int64_t tile_rows() const { return tile_rows_; }
  int64_t tile_columns() const { return tile_columns_; }
  int64_t left_rows() const { return left_rows_; }
  void load_left(int64_t begin, int64_t end) { left_->load(begin * m_, end * m_); }
  void load_right(int64_t begin, int64_t end) { right_->load(begin * n_, end * n_); }

  // All stripes of images [i0, i1) with all of [j0, j1): (i1 - i0) m rows, (j1 - j0) n columns.
  void multiply(int buffer, int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
    multiply_into(products(buffer), i0 * m_, (i1 - i0) * m_, 1, j0 * n_, (j1 - j0) * n_, 1);
  }
  Tile<T> tile(int buffer, int64_t i0, int64_t i1, int64_t j0, int64_t j1) const {
    return finished({products(buffer), i0 * m_, (i1 - i0) * m_, 1, j0 * n_, (j1 - j0) * n_, 1});
  }

  // Each stripe with the same one of the other image, one after the other: m times (i1 - i0, j1 - j0).
  void multiply_stripes(int buffer, int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
    for (int64_t s = 0; s < m_; ++s) {
      T* const out = products(buffer) + s * (i1 - i0) * tile_pitch(j1 - j0);
      multiply_into(out, i0 * m_ + s, i1 - i0, m_, j0 * n_ + s, j1 - j0, n_);
    }
  }
  Tile<T> stripe_tile(int buffer, int64_t s, int64_t i0, int64_t i1, int64_t j0, int64_t j1) const {
    T* const product = products(buffer) + s * (i1 - i0) * tile_pitch(j1 - j0);
    return finished({product, i0 * m_ + s, i1 - i0, m_, j0 * n_ + s, j1 - j0, n_});
  }

  // Distances of points [i0, i1) and [j0, j1), or their squares, into out: (i1 - i0, j1 - j0), rows `stride` apart.
  void write(int buffer, int64_t i0, int64_t i1, int64_t j0, int64_t j1, bool root, T* out, int64_t stride) const {
    launch_finish({products(buffer), i0, i1 - i0, 1, j0, j1 - j0, 1}, root, out, stride);
  }

 private:
  // A product of rows `row`, row + row_step, ... with columns `column`, column + column_step, ...: (rows, columns), rows
  // tile_pitch(columns) apart.
  struct Product {
    T* values;
    int64_t row, rows, row_step, column, columns, column_step;
  };

  T* products(int buffer) const { return mutable_data<T>(products_) + buffer * product_size_; }

  void multiply_into(T* out, int64_t row, int64_t rows, int64_t row_step, int64_t column, int64_t columns,
                     int64_t column_step) {
    reidops::multiply(left_->format(), left_->row(row), left_->pitch() * row_step, rows, right_->row(column),
                      right_->pitch() * column_step, with_spare(columns), left_->depth(), out, tile_pitch(columns));
  }

  Tile<T> as_tile(const Product& p) const {
    return {p.values, tile_pitch(p.columns), left_->norms(p.row), right_->norms(p.column), p.row_step, p.column_step};
  }

  // With all digits asked for, squared distances in place of the product, right wherever they are small; else the
  // product, from which Tile makes the distances as they are read.
  Tile<T> finished(const Product& p) const {
    if (!exact()) return as_tile(p);
    launch_finish(p, false, p.values, tile_pitch(p.columns));
    return {p.values, tile_pitch(p.columns), nullptr, nullptr, 1, 1};
  }

  bool exact() const { return left_->format() == Format::kPlain || left_->format() == Format::kSplit; }

  void launch_finish(const Product& p, bool root, T* out, int64_t stride) const {
    const Rows<T>&x = left_->rows(), &y = right_->rows();
    const int64_t warps = p.rows * ceil_div(p.columns, kFinishColumns);
    launch("finish", finish_kernel<T>, dim3(std::min(ceil_div(warps, kFinishThreads / kWarp), kMaxBlocks)),
           kFinishThreads, 0, 0, current_stream(like_), as_tile(p), p.rows, p.columns, x.at(p.row),
           x.depth * p.row_step, y.at(p.column), y.depth * p.column_step, x.depth, exact(), root, out, stride);
  }

  int64_t m_, n_;
  TileShape shape_;
  Tensor centre_, like_, products_;
  int64_t tile_rows_, tile_columns_, left_rows_, product_size_;
  std::unique_ptr<Operand<T>> left_, right_;
};

// What the sources made from features share.
template <typename T>
class StripeTiles : public TileSource<T> {
 public:
  int64_t rows() const override { return products_.images_x(); }
  int64_t columns() const override { return products_.images_y(); }
  int64_t tile_rows() const override { return products_.tile_rows(); }
  int64_t tile_columns() const override { return products_.tile_columns(); }
  int64_t left_rows() const override { return products_.left_rows(); }
  void load_left(int64_t begin, int64_t end) override { products_.load_left(begin, end); }
  void load_right(int64_t begin, int64_t end) override { products_.load_right(begin, end); }

 protected:
  explicit StripeTiles(StripeProducts<T> products) : products_(std::move(products)) {}
  StripeProducts<T> products_;
};

// Squared Euclidean distances of points.
template <typename T>
class EuclideanTiles : public StripeTiles<T> {
 public:
  EuclideanTiles(const Rows<T>& x, const Rows<T>& y, Format format, const Tensor& like)
      : StripeTiles<T>(StripeProducts<T>(x, 1, y, 1, format, like)) {}
  void multiply(int buffer, int64_t i0, int64_t i1, int64_t j0, int64_t j1) override {
    this->products_.multiply(buffer, i0, i1, j0, j1);
  }
  Tile<T> tile(int buffer, int64_t i0, int64_t i1, int64_t j0, int64_t j1) override {
    return this->products_.tile(buffer, i0, i1, j0, j1);
  }
  // The same, or its root, into out: (i1 - i0, j1 - j0), rows `stride` apart.
  void write(int buffer, int64_t i0, int64_t i1, int64_t j0, int64_t j1, bool root, T* out, int64_t stride) {
    this->products_.write(buffer, i0, i1, j0, j1, root, out, stride);
  }
};

// DMLI distances of images (AlignedReID++): shortest path over, or diagonal of, the tanh(d / 2) of their stripes.
template <typename T>
class DmliTiles : public StripeTiles<T> {
 public:
  // x: (images m, d), y: (images n, d)
  DmliTiles(const Rows<T>& x, int64_t m, const Rows<T>& y, int64_t n, bool aligned, Format format, const Tensor& like)
      : StripeTiles<T>(StripeProducts<T>(x, m, y, n, format, like)), aligned_(aligned), like_(like) {
    distances_ = new_tensor({this->tile_rows() * tile_pitch(this->tile_columns())}, like.scalar_type(), like);
    if (aligned_) path_ = std::make_unique<PathScratch>(n, sizeof(T), like);
  }
  void multiply(int buffer, int64_t i0, int64_t i1, int64_t j0, int64_t j1) override {
    if (aligned_) {
      this->products_.multiply(buffer, i0, i1, j0, j1);
    } else {
      this->products_.multiply_stripes(buffer, i0, i1, j0, j1);
    }
  }
  Tile<T> tile(int buffer, int64_t i0, int64_t i1, int64_t j0, int64_t j1) override {
    const int64_t stride = tile_pitch(j1 - j0);
    write(buffer, i0, i1, j0, j1, mutable_data<T>(distances_), stride);
    return {mutable_data<T>(distances_), stride, nullptr, nullptr, 1, 1};
  }
  // The same into out: (i1 - i0, j1 - j0), rows `stride` apart.
  void write(int buffer, int64_t i0, int64_t i1, int64_t j0, int64_t j1, T* out, int64_t stride) {
    const StripeProducts<T>& products = this->products_;
    if (aligned_) {
      launch_stripe_path(products.tile(buffer, i0, i1, j0, j1), i1 - i0, static_cast<int>(products.m()), j1 - j0,
                         static_cast<int>(products.n()), *path_, out, stride, like_);
      return;
    }
    for (int64_t s = 0; s < products.m(); ++s) {
      const Tile<T> tile = products.stripe_tile(buffer, s, i0, i1, j0, j1);
      launch_elements("stripe", like_, i1 - i0, j1 - j0, AddStripe<T>{tile, s > 0, out, stride});
    }
  }

 private:
  bool aligned_;
  Tensor distances_, like_;
  std::unique_ptr<PathScratch> path_;
};

// The sum of squared Euclidean and DMLI distances over the same pairs.
template <typename T>
class SumTiles : public TileSource<T> {
 public:
  SumTiles(std::unique_ptr<EuclideanTiles<T>> points, std::unique_ptr<DmliTiles<T>> stripes, const Tensor& like)
      : points_(std::move(points)), stripes_(std::move(stripes)), like_(like) {}
  int64_t rows() const override { return points_->rows(); }
  int64_t columns() const override { return points_->columns(); }
  int64_t tile_rows() const override { return std::min(points_->tile_rows(), stripes_->tile_rows()); }
  int64_t tile_columns() const override { return std::min(points_->tile_columns(), stripes_->tile_columns()); }
  int64_t left_rows() const override { return std::min(points_->left_rows(), stripes_->left_rows()); }
  void load_left(int64_t begin, int64_t end) override {
    points_->load_left(begin, end);
    stripes_->load_left(begin, end);
  }
  void load_right(int64_t begin, int64_t end) override {
    points_->load_right(begin, end);
    stripes_->load_right(begin, end);
  }
  void multiply(int buffer, int64_t i0, int64_t i1, int64_t j0, int64_t j1) override {
    points_->multiply(buffer, i0, i1, j0, j1);
    stripes_->multiply(buffer, i0, i1, j0, j1);
  }
  Tile<T> tile(int buffer, int64_t i0, int64_t i1, int64_t j0, int64_t j1) override {
    const Tile<T> points = points_->tile(buffer, i0, i1, j0, j1), sum = stripes_->tile(buffer, i0, i1, j0, j1);
    launch_elements("sum", like_, i1 - i0, j1 - j0, AddTile<T>{points, const_cast<T*>(sum.values), sum.stride});
    return sum;
  }

 private:
  std::unique_ptr<EuclideanTiles<T>> points_;
  std::unique_ptr<DmliTiles<T>> stripes_;
  Tensor like_;
};

// Given distances of queries and gallery among each other.
template <typename T>
class MatrixTiles : public TileSource<T> {
 public:
  MatrixTiles(const Pairs<T>& pairs, const Tensor& like)
      : pairs_(pairs), total_(pairs.queries + pairs.gallery), shape_(tile_shape(like)), like_(like) {
    shape_.rows = std::min(shape_.rows, total_);
    shape_.columns = std::min(shape_.columns, total_);
    distances_ = new_tensor({shape_.rows * tile_pitch(shape_.columns)}, like.scalar_type(), like);
  }
  int64_t rows() const override { return total_; }
  int64_t columns() const override { return total_; }
  int64_t tile_rows() const override { return shape_.rows; }
  int64_t tile_columns() const override { return shape_.columns; }
  int64_t left_rows() const override { return total_; }
  void load_left(int64_t, int64_t) override {}
  void load_right(int64_t, int64_t) override {}
  void multiply(int, int64_t, int64_t, int64_t, int64_t) override {}
  Tile<T> tile(int, int64_t i0, int64_t i1, int64_t j0, int64_t j1) override {
    T* out = mutable_data<T>(distances_);
    const int64_t stride = tile_pitch(j1 - j0);
    launch_elements("given", like_, i1 - i0, j1 - j0, CopyGiven<T>{pairs_, i0, j0, out, stride});
    return {out, stride, nullptr, nullptr, 1, 1};
  }

 private:
  Pairs<T> pairs_;
  int64_t total_;
  TileShape shape_;
  Tensor like_, distances_;
};

}  // namespace reidops
