// The choice of the instruction set, made once when it is first asked for.
#include "simd.h"

#include <cstdio>
#include <cstdlib>

#include "engine.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__) && __has_include(<amxbf16intrin.h>)
#define REIDOPS_HAS_AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace reidops {

#define REIDOPS_DECLARE_LEVEL(level)       \
  namespace level {                        \
  const Kernels<float>* float_kernels();   \
  const Kernels<double>* double_kernels(); \
  const Engine<float>* float_engine();     \
  const Engine<double>* double_engine();   \
  }
REIDOPS_DECLARE_LEVEL(baseline)
#if defined(__x86_64__)
REIDOPS_DECLARE_LEVEL(avx2)
REIDOPS_DECLARE_LEVEL(avx512)
namespace avx512_bf16 {
const Engine<float>* medium_engine();
}
#if defined(REIDOPS_HAS_AMX)
namespace amx {
const Engine<float>* engine_of_pieces(int pieces);
}
#endif
#endif
#undef REIDOPS_DECLARE_LEVEL

namespace {

#if defined(__x86_64__)
bool has_avx512_bf16() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
}

// The processor has the matrix unit, and the system lets this process use its registers.
bool has_amx() {
#if defined(REIDOPS_HAS_AMX)
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool unit = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1) && (d >> 24 & 1);
  constexpr long kAskForState = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return unit && syscall(SYS_arch_prctl, kAskForState, kTileData) == 0;
#else
  return false;
#endif
}
#endif

SimdLevel best_level() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    if (!has_avx512_bf16()) return SimdLevel::kAvx512;
    if (has_amx()) return SimdLevel::kAmx;
    // By their manuals AMD's processors multiply bfloat16 pairs twice as fast as float32; Intel's were measured to be slower.
    return __builtin_cpu_is("amd") ? SimdLevel::kAvx512Bf16 : SimdLevel::kAvx512;
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
    case SimdLevel::kAmx:
      return "amx";
    case SimdLevel::kAvx512Bf16:
      return "avx512_bf16";
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
  if (simd_level() >= SimdLevel::kAvx512) return *avx512::float_kernels();
  if (simd_level() == SimdLevel::kAvx2) return *avx2::float_kernels();
#endif
  return *baseline::float_kernels();
}

template <>
const Kernels<double>& kernels<double>() {
#if defined(__x86_64__)
  if (simd_level() >= SimdLevel::kAvx512) return *avx512::double_kernels();
  if (simd_level() == SimdLevel::kAvx2) return *avx2::double_kernels();
#endif
  return *baseline::double_kernels();
}

template <>
const Engine<float>& vector_engine<float>();
template <>
const Engine<double>& vector_engine<double>();

// Bfloat16 products of one piece are the fastest wherever they are; those of several pieces only in a matrix unit.
template <>
const Engine<float>& engine<float>(Precision precision) {
#if defined(REIDOPS_HAS_AMX)
  if (simd_level() == SimdLevel::kAmx) {
    return *amx::engine_of_pieces(precision == Precision::kHighest ? 3 : precision == Precision::kHigh ? 2 : 1);
  }
#endif
#if defined(__x86_64__)
  if (simd_level() == SimdLevel::kAvx512Bf16 && precision == Precision::kMedium) return *avx512_bf16::medium_engine();
#endif
  return vector_engine<float>();
}

template <>
const Engine<double>& engine<double>(Precision) {
  return vector_engine<double>();
}

template <>
const Engine<float>& vector_engine<float>() {
#if defined(__x86_64__)
  if (simd_level() >= SimdLevel::kAvx512) return *avx512::float_engine();
  if (simd_level() == SimdLevel::kAvx2) return *avx2::float_engine();
#endif
  return *baseline::float_engine();
}

template <>
const Engine<double>& vector_engine<double>() {
#if defined(__x86_64__)
  if (simd_level() >= SimdLevel::kAvx512) return *avx512::double_engine();
  if (simd_level() == SimdLevel::kAvx2) return *avx2::double_engine();
#endif
  return *baseline::double_engine();
}

}  // namespace reidops
