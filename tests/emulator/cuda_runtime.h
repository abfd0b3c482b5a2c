// SPDX-License-Identifier: Apache-2.0
// The part of CUDA that sparsekit's kernels use, on the emulator. Found instead of the real header by the tests' build.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>

#include "emulator.h"

// What the emulator itself does with memory is no access of the kernel's.
#define EMULATOR_OWN __attribute__((no_sanitize("thread")))

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
// A variable of the block; the address of the static tells it from others.
#define SPARSEKIT_SHARED(Type, name)   \
  static const char name##_id = 0;     \
  Type& name = emulator::shared<Type>(&name##_id)

using dim3 = emulator::Dim3;
using emulator::blockDim, emulator::blockIdx, emulator::gridDim, emulator::threadIdx;

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  emulator::sync_block({file, line});
}
inline void __syncwarp(unsigned mask = ~0u) { emulator::sync_warp(mask); }
inline void __threadfence() {}

template <class T>
T __ldg(const T* source) {
  return *source;
}

inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>(((uint64_t{high} << 32 | low) << (shift & 31)) >> 32);
}
inline unsigned __brev(unsigned v) {
  unsigned result = 0;
  for (int i = 0; i < 32; ++i) result |= (v >> i & 1u) << (31 - i);
  return result;
}
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __clz(int v) { return v == 0 ? 32 : __builtin_clz(static_cast<unsigned>(v)); }

template <class T>
EMULATOR_OWN uint64_t to_bits(T value) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}

template <class T>
EMULATOR_OWN T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

EMULATOR_OWN inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const uint64_t* const values = emulator::exchange(mask, predicate != 0);
  unsigned bits = 0;
  for (int lane = 0; lane < emulator::kWarp; ++lane) bits |= static_cast<unsigned>(values[lane]) << lane;
  return bits;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
EMULATOR_OWN inline unsigned __reduce_add_sync(unsigned mask, unsigned value) {
  const uint64_t* const values = emulator::exchange(mask, value);
  unsigned sum = 0;
  for (int lane = 0; lane < emulator::kWarp; ++lane) sum += static_cast<unsigned>(values[lane]);
  return sum;
}
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == ~0u; }

template <class T>
EMULATOR_OWN T __shfl_sync(unsigned mask, T value, int lane) {
  return from_bits<T>(emulator::exchange(mask, to_bits(value))[lane & 31]);
}
template <class T>
EMULATOR_OWN T __shfl_xor_sync(unsigned mask, T value, int distance) {
  return from_bits<T>(emulator::exchange(mask, to_bits(value))[(emulator::lane() ^ distance) & 31]);
}
template <class T>
EMULATOR_OWN T __shfl_up_sync(unsigned mask, T value, int distance) {
  const uint64_t* const values = emulator::exchange(mask, to_bits(value));
  const int lane = emulator::lane();
  return lane < distance ? value : from_bits<T>(values[lane - distance]);
}
template <class T>
EMULATOR_OWN T __shfl_down_sync(unsigned mask, T value, int distance) {
  const uint64_t* const values = emulator::exchange(mask, to_bits(value));
  const int lane = emulator::lane();
  return lane + distance > 31 ? value : from_bits<T>(values[lane + distance]);
}

template <class T, class V>
T atomicAdd(T* target, V value) {
  return __atomic_fetch_add(target, static_cast<T>(value), __ATOMIC_RELAXED);
}
template <class T, class V>
T atomicOr(T* target, V value) {
  return __atomic_fetch_or(target, static_cast<T>(value), __ATOMIC_RELAXED);
}

using cudaStream_t = void*;
enum cudaError_t : int { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorNotSupported = 801 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrCooperativeLaunch };
enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative };
enum cudaMemcpyKind { cudaMemcpyDeviceToDevice };

struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  union {
    int cooperative;
  } val;
};

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t code) { return code == cudaSuccess ? "no error" : "an error"; }
inline cudaError_t cudaMemsetAsync(void* target, int value, size_t bytes, cudaStream_t) {
  std::memset(target, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrCooperativeLaunch ? 1 : emulator::processors();
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, size_t) {
  *blocks = 2;
  return cudaSuccess;
}

template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), A&&... arguments) {
  bool cooperative = false;
  for (unsigned i = 0; i < config->numAttrs; ++i) cooperative |= config->attrs[i].val.cooperative != 0;
  const std::tuple<std::decay_t<P>...> values(arguments...);
  emulator::run_grid(config->gridDim.x, config->blockDim.x, cooperative, [&] { std::apply(kernel, values); });
  return cudaSuccess;
}
