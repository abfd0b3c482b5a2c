// SPDX-License-Identifier: Apache-2.0
// What every CUDA source uses: launches, 16-byte accesses, sums over a warp and a block.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "pack_bits.h"

// A variable that the threads of a block share. The tests run the kernels on a CPU and define it otherwise.
#ifndef SPARSEKIT_SHARED
#define SPARSEKIT_SHARED(Type, name) __shared__ Type name
#endif

namespace sparsekit::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAll = ~0u;

// Launches happen on the caller's device and leave the current device as it was.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    code_ = cudaGetDevice(&previous_);
    if (code_ == cudaSuccess && previous_ != device) code_ = cudaSetDevice(device);
    changed_ = code_ == cudaSuccess && previous_ != device;
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(previous_);
  }
  cudaError_t code() const { return code_; }

 private:
  int previous_ = 0;
  bool changed_ = false;
  cudaError_t code_;
};

// cooperative: all blocks run at once and may wait for each other; the launch fails where they do not fit.
template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), int64_t blocks, int threads, uintptr_t stream, bool cooperative,
                   const A&... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3{static_cast<unsigned>(blocks), 1, 1};
  config.blockDim = dim3{static_cast<unsigned>(threads), 1, 1};
  config.stream = reinterpret_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = cooperative ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

// Memory that no kernel writes while this one runs: a load by the shortest way.
template <class T>
__device__ inline T load(const T* source) {
  return __ldg(source);
}

// Pointers that come from memory could lead anywhere; these lead to device memory.
template <class T>
__device__ inline T* in_device_memory(T* pointer) {
#ifdef __CUDA_ARCH__
  __builtin_assume(__isGlobal(pointer));
#endif
  return pointer;
}

// Several blocks may raise a flag at the same time; plain stores would be a data race, volatile ones are not.
__device__ inline void raise_flag(uint8_t* flag) { *static_cast<volatile uint8_t*>(flag) = 1; }

__device__ inline int lane_id() { return static_cast<int>(threadIdx.x % kWarp); }
__device__ inline int warp_id() { return static_cast<int>(threadIdx.x / kWarp); }
__device__ inline int64_t thread_index() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline int64_t thread_count() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

// Division of non-negative numbers; the 64-bit one is several times slower.
__device__ inline int64_t divide(int64_t a, int64_t b) {
  return ((a | b) >> 32) == 0 ? static_cast<uint32_t>(a) / static_cast<uint32_t>(b) : a / b;
}

template <class T>
__device__ inline T warp_inclusive_sum(T value) {
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const T other = __shfl_up_sync(kAll, value, distance);
    if (lane_id() >= distance) value += other;
  }
  return value;
}

// Sum of the values of the threads before this one, and of all, in a block of kThreads. Every thread has to call it.
template <class T, int kThreads>
__device__ inline T block_exclusive_sum(T value, T* total) {
  struct Sums {
    T warps[kThreads / kWarp];
  };
  SPARSEKIT_SHARED(Sums, sums);
  const T inclusive = warp_inclusive_sum(value);
  if (lane_id() == kWarp - 1) sums.warps[warp_id()] = inclusive;
  __syncthreads();
  T before = 0, all = 0;
#pragma unroll
  for (int warp = 0; warp < kThreads / kWarp; ++warp) {
    if (warp < warp_id()) before += sums.warps[warp];
    all += sums.warps[warp];
  }
  __syncthreads();
  *total = all;
  return before + inclusive - value;
}

// The `count` lowest set bits of a word; none for count <= 0.
__device__ inline uint32_t lowest_set_bits(uint32_t word, int64_t count) {
  if (count >= __popc(word)) return word;
  uint32_t taken = 0;
  for (; count > 0; --count) {
    taken |= word & (~word + 1u);
    word &= word - 1u;
  }
  return taken;
}

}  // namespace sparsekit::cuda
