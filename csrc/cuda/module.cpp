// The Python face of the CUDA kernels: importing reidops._C_cuda registers them; build_info() says what was compiled.
#undef TORCH_TARGET_VERSION  // as in csrc/module.cpp
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "build_info.h"

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "reidops: CUDA kernels.";
  m.def("build_info", [] {
    pybind11::dict info;
    info["cuda"] = reidops::cuda_version();
    info["archs"] = reidops::cuda_archs();
    return info;
  });
}
