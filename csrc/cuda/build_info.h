// What this module was compiled with.
#pragma once

#include <string>
#include <vector>

namespace reidops {

std::string cuda_version();     // of nvcc: "13.0"
std::vector<int> cuda_archs();  // compute capabilities that have kernels: {80, 90}

}  // namespace reidops
