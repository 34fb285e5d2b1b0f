// CUDA's device functions. Those of a warp want all 32 lanes, as csrc/cuda does.
#pragma once

// The place in the sources, as default arguments.
#define MACHINE_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

// ----------------------------------------------------------------------------------------------------------- barriers

inline void __syncthreads(MACHINE_HERE) { machine::meet_block(0, {"__syncthreads", file, line}); }
inline int __syncthreads_count(int vote, MACHINE_HERE) {
  return machine::meet_block(vote != 0, {"__syncthreads_count", file, line});
}
inline int __syncthreads_or(int vote, MACHINE_HERE) {
  return machine::meet_block(vote != 0, {"__syncthreads_or", file, line}) != 0;
}
inline int __syncthreads_and(int vote, MACHINE_HERE) {
  return machine::meet_block(vote == 0, {"__syncthreads_and", file, line}) == 0;
}
inline void __syncwarp(unsigned mask = ~0u, MACHINE_HERE) {
  machine::meet_warp(mask, true, {"__syncwarp", file, line});
}
inline void __threadfence() { machine::fence(); }
inline void __threadfence_block() {}

// ------------------------------------------------------------------------------------------------------ within a warp

namespace machine {

inline int lane() { return static_cast<int>(threadIdx.x % kWarp); }

template <typename T>
T from_lane(T value, int source, unsigned mask, const Place& place) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 2, "shuffles take 2, 4 or 8 bytes");
  const unsigned char* all = exchange(&value, sizeof(T), mask, place);
  T result;
  memcpy(&result, all + source * kLaneBytes, sizeof(T));
  return result;
}

template <typename T, typename Combine>
T reduce(T value, unsigned mask, const Place& place, Combine combine) {
  const unsigned char* all = exchange(&value, sizeof(T), mask, place);
  T result;
  memcpy(&result, all, sizeof(T));
  for (int l = 1; l < kWarp; ++l) {
    T other;
    memcpy(&other, all + l * kLaneBytes, sizeof(T));
    result = combine(result, other);
  }
  return result;
}

}  // namespace machine

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, MACHINE_HERE) {
  const int l = machine::lane(), first = l & ~(width - 1);
  return machine::from_lane(value, first + (source & (width - 1)), mask, {"__shfl_sync", file, line});
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int step, int width = 32, MACHINE_HERE) {
  const int l = machine::lane(), source = l ^ step;
  const bool inside = source / width <= l / width;  // a later group's value is not given
  return machine::from_lane(value, inside ? source & 31 : l, mask, {"__shfl_xor_sync", file, line});
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned step, int width = 32, MACHINE_HERE) {
  const int l = machine::lane(), inside = l % width + static_cast<int>(step);
  return machine::from_lane(value, inside < width ? l + static_cast<int>(step) : l, mask,
                            {"__shfl_down_sync", file, line});
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned step, int width = 32, MACHINE_HERE) {
  const int l = machine::lane(), inside = l % width - static_cast<int>(step);
  return machine::from_lane(value, inside >= 0 ? l - static_cast<int>(step) : l, mask, {"__shfl_up_sync", file, line});
}

inline unsigned __ballot_sync(unsigned mask, int vote, MACHINE_HERE) {
  const unsigned mine = vote != 0 ? 1u << machine::lane() : 0u;
  return machine::reduce(mine, mask, {"__ballot_sync", file, line}, [](unsigned a, unsigned b) { return a | b; });
}
inline int __any_sync(unsigned mask, int vote, MACHINE_HERE) {
  return machine::reduce(vote != 0, mask, {"__any_sync", file, line}, [](bool a, bool b) { return a || b; });
}
inline int __all_sync(unsigned mask, int vote, MACHINE_HERE) {
  return machine::reduce(vote != 0, mask, {"__all_sync", file, line}, [](bool a, bool b) { return a && b; });
}
template <typename T>
unsigned __match_any_sync(unsigned mask, T value, MACHINE_HERE) {
  const unsigned char* all = machine::exchange(&value, sizeof(T), mask, {"__match_any_sync", file, line});
  unsigned same = 0;
  for (int l = 0; l < machine::kWarp; ++l) {
    same |= unsigned(memcmp(all + l * machine::kLaneBytes, &value, sizeof(T)) == 0) << l;
  }
  return same;
}

#define MACHINE_REDUCE(name, type, expression)                                            \
  inline type __reduce_##name##_sync(unsigned mask, type value, MACHINE_HERE) {           \
    return machine::reduce(value, mask, {"__reduce_" #name "_sync", file, line},          \
                           [](type a, type b) { return static_cast<type>(expression); }); \
  }
MACHINE_REDUCE(add, unsigned, a + b)
MACHINE_REDUCE(min, unsigned, a < b ? a : b)
MACHINE_REDUCE(max, unsigned, a > b ? a : b)
MACHINE_REDUCE(or, unsigned, a | b)
MACHINE_REDUCE(and, unsigned, a& b)
MACHINE_REDUCE(add, int, unsigned(a) + unsigned(b))
MACHINE_REDUCE(min, int, a < b ? a : b)
MACHINE_REDUCE(max, int, a > b ? a : b)
inline unsigned __activemask() { return ~0u; }

// ------------------------------------------------------------------------------------------------------------ atomics

// Only one fiber runs at a time, so that plain code is atomic; it is kept from the race detector, which is told of an
// atomic access instead. Never inlined, so that the return address is the place in the kernel.
namespace machine {
template <typename T, typename Change>
__attribute__((no_sanitize("thread"))) T atomically(T* address, const void* code, Change change) {
  before_atomic(address, sizeof(T), code);
  const T old = *address;
  *address = change(old);
  return old;
}
}  // namespace machine

#define MACHINE_ATOMIC(name, type, expression)                                               \
  __attribute__((noinline)) inline type atomic##name(type* address, type value) {            \
    return machine::atomically(address, __builtin_return_address(0),                         \
                               [value](type old) { return static_cast<type>(expression); }); \
  }
#define MACHINE_ATOMICS(type, wide)                                                          \
  MACHINE_ATOMIC(Add, type, static_cast<wide>(old) + static_cast<wide>(value))               \
  MACHINE_ATOMIC(Min, type, old < value ? old : value)                                       \
  MACHINE_ATOMIC(Max, type, old > value ? old : value)                                       \
  MACHINE_ATOMIC(Exch, type, value)                                                          \
  MACHINE_ATOMIC(Or, type, old | value)                                                      \
  MACHINE_ATOMIC(And, type, old& value)                                                      \
  MACHINE_ATOMIC(Xor, type, old ^ value)                                                     \
  __attribute__((noinline)) inline type atomicCAS(type* address, type compare, type value) { \
    return machine::atomically(address, __builtin_return_address(0),                         \
                               [=](type old) { return old == compare ? value : old; });      \
  }
MACHINE_ATOMICS(int, unsigned)
MACHINE_ATOMICS(unsigned, unsigned)
MACHINE_ATOMICS(unsigned long long, unsigned long long)
MACHINE_ATOMIC(Sub, int, unsigned(old) - unsigned(value))
MACHINE_ATOMIC(Sub, unsigned, old - value)
MACHINE_ATOMIC(Exch, float, value)

// --------------------------------------------------------------------------------------------------- bits and numbers

inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __ffsll(long long v) { return __builtin_ffsll(v); }
inline int __clz(int v) { return v == 0 ? 32 : __builtin_clz(static_cast<unsigned>(v)); }
inline int __clzll(long long v) { return v == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(v)); }
inline unsigned __brev(unsigned v) {
  unsigned r = 0;
  for (int i = 0; i < 32; ++i) r |= (v >> i & 1u) << (31 - i);
  return r;
}

template <typename T>
T __ldg(const T* address) {
  return *address;
}
template <typename T>
T __ldcs(const T* address) {
  return *address;
}
template <typename T>
T __ldcg(const T* address) {
  return *address;
}
template <typename T>
void __stcs(T* address, T value) {
  *address = value;
}
template <typename T>
void __stcg(T* address, T value) {
  *address = value;
}

namespace machine {
template <typename To, typename From>
To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To result;
  memcpy(&result, &value, sizeof(To));
  return result;
}
}  // namespace machine
inline unsigned __float_as_uint(float v) { return machine::bits_as<unsigned>(v); }
inline int __float_as_int(float v) { return machine::bits_as<int>(v); }
inline float __uint_as_float(unsigned v) { return machine::bits_as<float>(v); }
inline float __int_as_float(int v) { return machine::bits_as<float>(v); }
inline long long __double_as_longlong(double v) { return machine::bits_as<long long>(v); }
inline double __longlong_as_double(long long v) { return machine::bits_as<double>(v); }

inline float rsqrtf(float v) { return 1.0f / sqrtf(v); }
inline float rsqrt(float v) { return 1.0f / sqrtf(v); }
inline double rsqrt(double v) { return 1.0 / sqrt(v); }
inline float __expf(float v) { return expf(v); }
inline float __logf(float v) { return logf(v); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float v) { return 1.0f / v; }
inline float __fsqrt_rn(float v) { return sqrtf(v); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline float __saturatef(float v) { return v >= 0.0f ? (v < 1.0f ? v : 1.0f) : 0.0f; }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t(a) * b >> 32); }

template <typename T, typename = std::enable_if_t<std::is_arithmetic_v<T>>>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T, typename = std::enable_if_t<std::is_arithmetic_v<T>>>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}
