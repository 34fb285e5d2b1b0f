// dmli_matrix: DMLI distance of every image of x to every image of y.
//
// 3,368 x 15,913 images of 8 stripes of 2,048 channels: 1.4e13 FLOPs of matrix products, 35 ms in TF32 at 400 TFLOP/s
// and 20 ms in bfloat16 at 700, whose result of 13.7 GB is never in memory as a whole: tiles of 35 MB stay in the L2
// cache, and 3 ms of path arithmetic (tile_kernels.cuh) make 0.2 GB of distances of them. The products bound it.
#include "tiles.h"

namespace reidops {
namespace {

Tensor dmli_matrix(const Tensor& x_in, const Tensor& y_in, bool aligned, std::string precision) {
  check_input(x_in, 3, "x");
  check_input(y_in, 3, "y");
  check_like(y_in, x_in, "y");
  const int64_t images_x = x_in.size(0), m = x_in.size(1), images_y = y_in.size(0), n = y_in.size(1), d = x_in.size(2);
  STD_TORCH_CHECK(m >= 1 && n >= 1 && d >= 1 && y_in.size(2) == d, "x and y should match");
  STD_TORCH_CHECK(aligned || m == n, "x and y should have as many stripes");
  STD_TORCH_CHECK(std::max(m, n) < 1 << 20, "an image should have fewer stripes");
  const DeviceGuard guard(x_in.get_device_index());
  Tensor out = new_tensor({images_x, images_y}, x_in.scalar_type(), x_in);
  return with_floating_type(x_in, "x", [&](auto zero) {
    using T = decltype(zero);
    const Format format = product_format<T>(precision);
    if (images_x == 0 || images_y == 0) return out;
    const Tensor x = torch::stable::contiguous(x_in), y = torch::stable::contiguous(y_in);
    DmliTiles<T> tiles({data<T>(x), images_x * m, d}, m, {data<T>(y), images_y * n, d}, n, aligned, format, x);
    for_each_product(tiles, 0, images_x, 0, images_y, false, x,
                     [&](int buffer, int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
                       tiles.write(buffer, i0, i1, j0, j1, mutable_data<T>(out) + i0 * images_y + j0, images_y);
                     });
    return out;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(reidops, CUDA, m) { m.impl("dmli_matrix", TORCH_BOX(&dmli_matrix)); }

}  // namespace reidops
