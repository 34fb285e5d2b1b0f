// The choice of the instruction set, made once when it is first asked for.
#include "simd.h"

#include <cstdio>
#include <cstdlib>

namespace reidops {

#define REIDOPS_DECLARE_LEVEL(level)       \
  namespace level {                        \
  const Kernels<float>* float_kernels();   \
  const Kernels<double>* double_kernels(); \
  }
REIDOPS_DECLARE_LEVEL(baseline)
#if defined(__x86_64__)
REIDOPS_DECLARE_LEVEL(avx2)
REIDOPS_DECLARE_LEVEL(avx512)
#endif
#undef REIDOPS_DECLARE_LEVEL

namespace {

SimdLevel best_level() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    return SimdLevel::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return SimdLevel::kAvx2;
#endif
  return SimdLevel::kBaseline;
}

SimdLevel chosen_level() {
  const SimdLevel best = best_level();
  const char* wish = std::getenv("REIDOPS_SIMD");
  if (wish == nullptr || *wish == '\0') return best;
  for (int level = 0; level <= static_cast<int>(best); ++level) {
    if (simd_level_name(static_cast<SimdLevel>(level)) == wish) return static_cast<SimdLevel>(level);
  }
  std::fprintf(stderr, "reidops: REIDOPS_SIMD=%s is not a level of this processor; using %s\n", wish,
               simd_level_name(best).c_str());
  return best;
}

}  // namespace

SimdLevel simd_level() {
  static const SimdLevel level = chosen_level();
  return level;
}

std::string simd_level_name(SimdLevel level) {
  switch (level) {
    case SimdLevel::kAvx512:
      return "avx512";
    case SimdLevel::kAvx2:
      return "avx2";
    default:
      return "baseline";
  }
}

std::vector<std::string> available_simd_levels() {
  std::vector<std::string> names;
  for (int level = 0; level <= static_cast<int>(best_level()); ++level) {
    names.push_back(simd_level_name(static_cast<SimdLevel>(level)));
  }
  return names;
}

template <>
const Kernels<float>& kernels<float>() {
#if defined(__x86_64__)
  if (simd_level() == SimdLevel::kAvx512) return *avx512::float_kernels();
  if (simd_level() == SimdLevel::kAvx2) return *avx2::float_kernels();
#endif
  return *baseline::float_kernels();
}

template <>
const Kernels<double>& kernels<double>() {
#if defined(__x86_64__)
  if (simd_level() == SimdLevel::kAvx512) return *avx512::double_kernels();
  if (simd_level() == SimdLevel::kAvx2) return *avx2::double_kernels();
#endif
  return *baseline::double_kernels();
}

}  // namespace reidops
