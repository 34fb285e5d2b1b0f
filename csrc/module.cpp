// The Python face of the module: importing reidops._C registers the operators; build_info() says what was compiled.
#undef TORCH_TARGET_VERSION  // the copy of pybind11 in some of torch's headers refuses to be included with it
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/simd.h"

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "reidops: operator schemas and CPU kernels.";
  m.def("build_info", [] {
    pybind11::dict info;
    info["simd"] = reidops::simd_level_name(reidops::simd_level());
    info["simd_levels"] = reidops::available_simd_levels();
    info["compiler"] = __VERSION__;
    return info;
  });
}
