// Squared Euclidean distances of stripes in tiles, m to an image on the left and n on the right; plain points are images
// of one stripe. Products around the sets' centre, by the engine of the precision asked for (engine.h).
//
// Right-hand panels hold one stripe of `lanes` consecutive images, so that the path can run over images in vector lanes.
#pragma once

#include <vector>

#include "centre.h"
#include "engine.h"
#include "parallel.h"
#include "products.h"
#include "simd.h"

namespace reidops {

constexpr int64_t kChunkBytes = int64_t(32) << 20;  // packed columns that all threads work on together
constexpr int64_t kTileColumns = 512;

// Images of `stripes` rows of `depth` values, in one array or in two, one after the other.
template <typename T>
struct Images {
  const T* first = nullptr;
  int64_t first_count = 0;
  const T* second = nullptr;
  int64_t count = 0;  // of both
  int64_t stripes = 1, depth = 0;

  const T* row(int64_t image, int64_t stripe) const {
    const T* base =
        image < first_count ? first + image * stripes * depth : second + (image - first_count) * stripes * depth;
    return base + stripe * depth;
  }
  bool operator==(const Images& o) const {
    return first == o.first && second == o.second && first_count == o.first_count && count == o.count &&
           stripes == o.stripes && depth == o.depth;
  }
};

template <typename T>
Images<T> one_set(const T* x, int64_t count, int64_t stripes, int64_t depth) {
  return {x, count, nullptr, count, stripes, depth};
}

template <typename T>
class StripeProducts {
 public:
  StripeProducts(const Images<T>& x, const Images<T>& y, const Engine<T>& engine)
      : engine_(engine), x_(x), y_(y), centre_(middle(x, y)), workers_(num_workers()) {
    norms_x_ = centred_norms(x_);
    norms_y_ = symmetric() ? norms_x_ : centred_norms(y_);
  }

  const Images<T>& x() const { return x_; }
  const Images<T>& y() const { return y_; }
  int64_t m() const { return x_.stripes; }
  int64_t n() const { return y_.stripes; }
  int64_t d() const { return x_.depth; }
  int64_t lanes() const { return k_.lanes; }
  bool symmetric() const { return x_ == y_; }

  int64_t tile_images_x() const { return std::max<int64_t>(1, engine_.tile_rows / m()); }
  int64_t tile_images_y() const { return std::max<int64_t>(1, kTileColumns / (n() * k_.lanes)) * k_.lanes; }
  int64_t chunk_images_y() const {
    const int64_t tile_bytes = tile_images_y() / k_.lanes * n() * engine_.right_bytes(d());
    return std::max<int64_t>(1, kChunkBytes / std::max<int64_t>(tile_bytes, 1)) * tile_images_y();
  }

  // Packs images [begin, end) of the right, by all threads.
  void load(int64_t begin, int64_t end) {
    const int64_t panels = ceil_div(end - begin, k_.lanes) * n();
    columns_.reserve(panels, engine_.right_bytes(d()), k_.lanes);
    chunk_begin_ = begin;
    parallel_tasks(panels, k_.lanes * d() * 2, [&](int64_t panel, int64_t) {
      const int64_t image = begin + panel / n() * k_.lanes;
      pack_column_panel(columns_, panel, std::min(k_.lanes, end - image), [&](int64_t lane) { return image + lane; });
    });
  }

  // Packs images [begin, end) of the left for one thread.
  void begin_rows(int64_t worker, int64_t begin, int64_t end) {
    Worker& w = workers_[worker];
    w.begin = begin;
    w.rows = (end - begin) * m();
    const int64_t panels = ceil_div(w.rows, engine_.rows);
    unsigned char* packed = w.packed.reserve(panels * engine_.left_bytes(d()));
    T* norms = w.norms.reserve(panels * engine_.rows);
    const T* rows[kWidestPanel];
    for (int64_t r = 0; r < w.rows; r += engine_.rows, packed += engine_.left_bytes(d())) {
      const int64_t count = std::min(engine_.rows, w.rows - r);
      for (int64_t p = 0; p < count; ++p) {
        rows[p] = x_.row(begin + (r + p) / m(), (r + p) % m());
        norms[r + p] = norms_x_[begin * m() + r + p];
      }
      engine_.pack_left(rows, count, d(), centre_.data(), packed);
    }
  }

  // The worker's rows against images [begin, end): returns squared distances in rows stride() apart, columns ordered
  // [group of lanes][stripe][lane]; begin lies on a group of the chunk.
  T* squared(int64_t worker, int64_t begin, int64_t end) {
    const int64_t first = (begin - chunk_begin_) / k_.lanes * n();  // panel of the packed chunk
    return squared_of(workers_[worker], columns_, first, end - begin, [&](int64_t p) { return begin + p; });
  }

  // The same against any images of the right, which need not be loaded; bit for bit what `squared` gives for them.
  T* squared_of_images(int64_t worker, const int32_t* images, int64_t count) {
    Worker& w = workers_[worker];
    const int64_t panels = ceil_div(count, k_.lanes) * n();
    w.gathered.reserve(panels, engine_.right_bytes(d()), k_.lanes);
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t at = panel / n() * k_.lanes;
      pack_column_panel(w.gathered, panel, std::min(k_.lanes, count - at),
                        [&](int64_t lane) { return static_cast<int64_t>(images[at + lane]); });
    }
    return squared_of(w, w.gathered, 0, count, [&](int64_t p) { return static_cast<int64_t>(images[p]); });
  }

  int64_t width(int64_t images) const { return ceil_div(images, k_.lanes) * k_.lanes * n(); }
  int64_t stride(int64_t images) const { return row_stride(width(images), k_.lanes); }

  T pair(const T* x, const T* y) const { return k_.pair_squared_distance(x, y, d()); }
  const Kernels<T>& kernel() const { return k_; }

 private:
  struct Panels {
    Scratch<unsigned char> packed;
    Scratch<T> norms;
    void reserve(int64_t count, int64_t bytes, int64_t width) {
      packed.reserve(count * bytes);
      norms.reserve(count * width);
    }
  };
  struct Worker {
    int64_t begin = 0, rows = 0;
    Scratch<unsigned char> packed;
    Scratch<T> norms, tile;
    Panels gathered;
  };

  static std::vector<T> middle(const Images<T>& x, const Images<T>& y) {
    CoarseMean<T> mean(x.depth);
    for (const Images<T>* set : {&x, &y}) {
      if (set == &y && y == x) break;
      mean.add(set->first, set->first_count * set->stripes);
      mean.add(set->second, (set->count - set->first_count) * set->stripes);
    }
    return mean.get();
  }

  // Squared norms of all stripes around the centre.
  std::vector<T> centred_norms(const Images<T>& set) const {
    std::vector<T> norms(set.count * set.stripes);
    parallel_ranges(set.count * set.stripes, 2 * d(), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        norms[r] = k_.pair_squared_distance(set.row(r / set.stripes, r % set.stripes), centre_.data(), d());
      }
    });
    return norms;
  }

  // The panel of one stripe of `count` images, image_at(lane) each.
  template <typename ImageAt>
  void pack_column_panel(Panels& panels, int64_t panel, int64_t count, ImageAt image_at) {
    const T* rows[kWidestPanel];
    T* norms = panels.norms.get() + panel * k_.lanes;
    for (int64_t lane = 0; lane < k_.lanes; ++lane) {
      if (lane < count) rows[lane] = y_.row(image_at(lane), panel % n());
      norms[lane] = lane < count ? norms_y_[image_at(lane) * n() + panel % n()] : T(0);
    }
    engine_.pack_right(rows, count, d(), centre_.data(), panels.packed.get() + panel * engine_.right_bytes(d()));
  }

  template <typename ImageAt>
  T* squared_of(Worker& w, const Panels& panels, int64_t first, int64_t count, ImageAt image_at) {
    const int64_t row_panels = ceil_div(w.rows, engine_.rows), wide = width(count), apart = stride(count);
    const T* norms = panels.norms.get() + first * k_.lanes;
    T* tile = w.tile.reserve(row_panels * engine_.rows * apart);
    engine_.multiply(w.packed.get(), row_panels, panels.packed.get() + first * engine_.right_bytes(d()),
                     wide / k_.lanes, d(), tile, apart, false);
    constexpr int64_t kLook = 128;  // pairs looked at together
    for (int64_t r = 0; r < w.rows; ++r) {
      T* row = tile + r * apart;
      const T norm = w.norms.get()[r];
      for (int64_t p0 = 0; p0 < wide; p0 += kLook) {
        const int64_t p1 = std::min(wide, p0 + kLook);
        if (!k_.squared_distances(row + p0, p1 - p0, norm, norms + p0, engine_.smallest)) continue;
        // Computes again, from the differences, what cancellation has spoilt.
        const T* left = x_.row(w.begin + r / m(), r % m());
        for (int64_t p = p0; p < p1; ++p) {
          if (row[p] >= kCancellation<T> * (norm + norms[p]) + engine_.smallest) continue;
          const int64_t group = n() * k_.lanes, image = p / group * k_.lanes + p % k_.lanes;
          if (image < count) row[p] = pair(left, y_.row(image_at(image), p % group / k_.lanes));
        }
      }
    }
    return tile;
  }

  const Kernels<T>& k_ = kernels<T>();
  const Engine<T>& engine_;
  Images<T> x_, y_;
  std::vector<T> centre_, norms_x_, norms_y_;
  int64_t chunk_begin_ = 0;
  Panels columns_;
  std::vector<Worker> workers_;
};

}  // namespace reidops
