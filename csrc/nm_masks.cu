// SPDX-License-Identifier: Apache-2.0
// The n largest of every m on a CUDA device, straight to packed words.
#include <algorithm>

#include "device.cuh"
#include "structured_cuda.h"

namespace sparsekit::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 20;

// Marks the masks invalid where a NaN meets NanPolicy::kError. Every lane of the warp has to call it.
__device__ void report(bool has_nan, NanPolicy nan, uint8_t* invalid) {
  if (nan == NanPolicy::kError && __any_sync(kAll, has_nan) && lane_id() == 0) raise_flag(invalid);
}

// One warp per word, one lane per element, which counts those of its group that are ahead of it; their scores come from
// the L1 cache.
template <class U>
__global__ void __launch_bounds__(kThreads) count_kernel(const __grid_constant__ GroupedScores problem, KeySpec<U> spec,
                                                         int64_t n, int64_t m, uint8_t* invalid) {
  const int64_t cols = problem.cols(), per_row = words_per_row(cols), total = problem.rows * per_row;
  for (int64_t word = thread_index() / kWarp; word < total; word += thread_count() / kWarp) {
    const int64_t row = divide(word, per_row), col = (word - row * per_row) * kWordBits + lane_id();
    bool kept = false, is_nan = false;
    if (col < cols) {
      const U* const scores = static_cast<const U*>(problem.scores) + row * cols;
      const int64_t channel = divide(col, problem.spatial), position = col - channel * problem.spatial;
      const int64_t group = divide(channel, m), place = channel - group * m;
      const U* const own_group = scores + group * m * problem.spatial + position;
      const auto key = spec(scores[col]);
      int64_t ahead = 0;
      for (int64_t i = 0; i < m; ++i) {
        const auto rival = spec(own_group[i * problem.spatial]);
        ahead += rival > key || (rival == key && i < place);
      }
      is_nan = key == spec.nan_key;
      kept = ahead < n && (!is_nan || problem.nan == NanPolicy::kKeep);
    }
    const uint32_t bits = __ballot_sync(kAll, kept);
    if (lane_id() == 0) problem.words[word] = bits;
    report(is_nan, problem.nan, invalid);
  }
}

template <class U, int kWidth>
struct alignas(sizeof(U) * kWidth) Pack {
  U items[kWidth];
};

// One thread per 16 bytes of a row, which are whole groups of kGroup adjacent scores; the threads of a word join their bits.
template <class U, int kGroup>
__global__ void __launch_bounds__(kThreads) pack_kernel(const __grid_constant__ GroupedScores problem, KeySpec<U> spec,
                                                        int64_t n, uint8_t* invalid) {
  constexpr int kWidth = 16 / sizeof(U), kPerWord = kWordBits / kWidth;
  const int64_t cols = problem.cols(), per_row = words_per_row(cols) * kPerWord, total = problem.rows * per_row;
  const int64_t step = thread_count();
  // Whole warps stay together: `total` is a multiple of the threads of a word, not of a warp.
  for (int64_t at = thread_index(); at - lane_id() < total; at += step) {
    const int64_t row = divide(at, per_row), part = at - row * per_row, col = part * kWidth;
    uint32_t bits = 0;
    bool has_nan = false;
    if (at < total && col < cols) {
      using Source = Pack<U, kWidth>;
      const Source pack = *reinterpret_cast<const Source*>(static_cast<const U*>(problem.scores) + row * cols + col);
      SignedOf<U> keys[kWidth];
#pragma unroll
      for (int i = 0; i < kWidth; ++i) keys[i] = spec(pack.items[i]);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        constexpr int kMask = kGroup - 1;
        int ahead = 0;
#pragma unroll
        for (int j = 0; j < kGroup; ++j) {
          const int rival = (i & ~kMask) + j;
          if (rival != i) ahead += rival < i ? keys[rival] >= keys[i] : keys[rival] > keys[i];
        }
        const bool is_nan = keys[i] == spec.nan_key;
        has_nan |= is_nan;
        bits |= static_cast<uint32_t>(ahead < n && (!is_nan || problem.nan == NanPolicy::kKeep)) << i;
      }
    }
    bits <<= kWidth * (part % kPerWord);
#pragma unroll
    for (int apart = 1; apart < kPerWord; apart *= 2) bits |= __shfl_xor_sync(kAll, bits, apart);
    if (at < total && part % kPerWord == 0) problem.words[at / kPerWord] = bits;
    report(has_nan, problem.nan, invalid);
  }
}

int64_t blocks_for(int64_t threads) { return std::min(kMaxBlocks, ceil_divide(threads, kThreads)); }

template <class U, int kGroup>
cudaError_t launch_packs(const GroupedScores& problem, const KeySpec<U>& spec, int64_t n, uint8_t* invalid, uintptr_t stream) {
  const int64_t threads = problem.rows * words_per_row(problem.cols()) * (kWordBits * sizeof(U) / 16);
  return launch(&pack_kernel<U, kGroup>, blocks_for(threads), kThreads, stream, false, problem, spec, n, invalid);
}

template <class U>
cudaError_t launch_width(const GroupedScores& problem, int64_t n, int64_t m, uint8_t* invalid, uintptr_t stream) {
  constexpr int kWidth = 16 / sizeof(U);
  const KeySpec<U> spec(problem.dtype, problem.key, problem.nan);
  const bool aligned = reinterpret_cast<uintptr_t>(problem.scores) % 16 == 0 && problem.cols() % kWidth == 0;
  if (problem.spatial == 1 && aligned) {
    if constexpr (kWidth >= 4) {
      if (m == 4) return launch_packs<U, 4>(problem, spec, n, invalid, stream);
    }
    if constexpr (kWidth >= 8) {
      if (m == 8) return launch_packs<U, 8>(problem, spec, n, invalid, stream);
    }
  }
  const int64_t threads = problem.rows * words_per_row(problem.cols()) * kWarp;
  return launch(&count_kernel<U>, blocks_for(threads), kThreads, stream, false, problem, spec, n, m, invalid);
}

}  // namespace

int nm_mask(const GroupedScores& problem, int64_t n, int64_t m, uint8_t* invalid, int device, uintptr_t stream) {
  const DeviceGuard guard(device);
  if (guard.code() != cudaSuccess) return guard.code();
  return for_width(problem.dtype, [&](auto u) { return launch_width<decltype(u)>(problem, n, m, invalid, stream); });
}

}  // namespace sparsekit::cuda
