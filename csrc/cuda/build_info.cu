// What this module was compiled with; only nvcc knows.
#include "build_info.h"

namespace reidops {

std::string cuda_version() { return std::to_string(__CUDACC_VER_MAJOR__) + "." + std::to_string(__CUDACC_VER_MINOR__); }

std::vector<int> cuda_archs() {
  std::vector<int> archs{__CUDA_ARCH_LIST__};  // 800, 900, ...
  for (int& arch : archs) arch /= 10;
  return archs;
}

}  // namespace reidops
