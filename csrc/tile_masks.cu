// SPDX-License-Identifier: Apache-2.0
// The best mask of every 4 x 4 tile on a CUDA device.
#include <algorithm>
#include <type_traits>
#include <utility>

#include "device.cuh"
#include "score_values.h"
#include "structured_cuda.h"
#include "tile_patterns.h"

namespace sparsekit::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kMaxBlocks = 1 << 20;

struct Best {
  double sum;
  uint32_t mask;
};

// Takes mask kIndex if its sum is larger. The table is read by the compiler: the kernel sees numbers.
template <int kIndex>
__device__ void try_mask(const double (&pairs)[kTile][kPairs], Best& best) {
  constexpr TileMask kMask = kTileTable.masks[kIndex];
  constexpr int kA = kMask.pairs[0], kB = kMask.pairs[1], kC = kMask.pairs[2], kD = kMask.pairs[3];
  constexpr uint32_t kBits = kMask.bits;
  const double sum = (pairs[0][kA] + pairs[1][kB]) + (pairs[2][kC] + pairs[3][kD]);
  if (sum > best.sum) best = {sum, kBits};
}

template <int... kIndex>
__device__ uint32_t best_mask(const double (&pairs)[kTile][kPairs], std::integer_sequence<int, kIndex...>) {
  Best best{-1e308, 0};  // every sum is larger
  (try_mask<kIndex>(pairs, best), ...);
  return best.mask;
}

template <int... kPair>
__device__ void add_pairs(const double (&row)[kTile], double (&pairs)[kPairs], std::integer_sequence<int, kPair...>) {
  ((pairs[kPair] = row[std::integral_constant<int, kPairFirst[kPair]>::value] +
                   row[std::integral_constant<int, kPairSecond[kPair]>::value]),
   ...);
}

// The four scores of a row of a tile. Those of neighbouring channels are read at once if kAdjacent.
template <class T, bool kAdjacent>
__device__ void load_row(const T* scores, int64_t spatial, T (&row)[kTile]) {
  struct alignas(sizeof(T) < 4 ? 8 : 16) Row {
    T items[kTile];
  };
  if constexpr (kAdjacent) {
    const Row all = *reinterpret_cast<const Row*>(scores);
#pragma unroll
    for (int col = 0; col < kTile; ++col) row[col] = all.items[col];
  } else {
#pragma unroll
    for (int col = 0; col < kTile; ++col) row[col] = scores[col * spatial];
  }
}

// One thread per tile. masks: [rows / 4, channels / 4, spatial].
template <class T, bool kAdjacent>
__global__ void __launch_bounds__(kThreads) tile_kernel(const __grid_constant__ GroupedScores problem,
                                                        double nan_value, uint16_t* masks, uint8_t* invalid) {
  const int64_t cols = problem.cols(), spatial = problem.spatial, per_row = cols / kTile;
  const int64_t total = problem.rows / kTile * per_row;
  const bool magnitude = problem.key == KeyKind::kMagnitude;
  for (int64_t at = thread_index(); at < total; at += thread_count()) {
    const int64_t tile_row = divide(at, per_row), in_row = at - tile_row * per_row;
    const int64_t block = divide(in_row, spatial), position = in_row - block * spatial;
    const T* const scores =
        static_cast<const T*>(problem.scores) + tile_row * kTile * cols + block * kTile * spatial + position;
    double pairs[kTile][kPairs];
    uint32_t numbers = ~0u;
#pragma unroll
    for (int row = 0; row < kTile; ++row) {
      double values[kTile];
      T own[kTile];
      load_row<T, kAdjacent>(scores + row * cols, spatial, own);
#pragma unroll
      for (int col = 0; col < kTile; ++col) {
        const double score = as_double(own[col]);
        values[col] = tile_value(score, magnitude, nan_value);
        if (score != score) numbers &= ~one_bit(kTile * row + col);
      }
      add_pairs(values, pairs[row], std::make_integer_sequence<int, kPairs>{});
    }
    const uint32_t best = best_mask(pairs, std::make_integer_sequence<int, kTileMasks>{});
    masks[at] = static_cast<uint16_t>(problem.nan == NanPolicy::kKeep ? best : best & numbers);
    if (problem.nan == NanPolicy::kError && numbers != ~0u) raise_flag(invalid);
  }
}

// One warp per word of four rows, one lane per column.
__global__ void __launch_bounds__(kThreads) words_kernel(const __grid_constant__ GroupedScores problem, const uint16_t* masks) {
  const int64_t cols = problem.cols(), spatial = problem.spatial, per_row = words_per_row(cols);
  const int64_t total = problem.rows / kTile * per_row;
  for (int64_t at = thread_index() / kWarp; at < total; at += thread_count() / kWarp) {
    const int64_t tile_row = divide(at, per_row), word = at - tile_row * per_row, col = word * kWordBits + lane_id();
    uint32_t mask = 0;
    if (col < cols) {
      const int64_t channel = divide(col, spatial), position = col - channel * spatial;
      mask = masks[tile_row * (cols / kTile) + channel / kTile * spatial + position] >> (channel % kTile);
    }
#pragma unroll
    for (int row = 0; row < kTile; ++row) {
      const uint32_t bits = __ballot_sync(kAll, test_bit(mask, kTile * row));
      if (lane_id() == row) problem.words[(tile_row * kTile + row) * per_row + word] = bits;
    }
  }
}

int64_t blocks_for(int64_t threads) { return std::min(kMaxBlocks, ceil_divide(threads, kThreads)); }

}  // namespace

int transposable_nm_mask(const GroupedScores& problem, uint16_t* scratch, uint8_t* invalid, int device, uintptr_t stream) {
  const DeviceGuard guard(device);
  if (guard.code() != cudaSuccess) return guard.code();
  const int64_t tiles = problem.rows * problem.cols() / (kTile * kTile);
  const cudaError_t code = with_score_type(problem.dtype, [&](auto score) {
    using T = decltype(score);
    const bool adjacent = problem.spatial == 1 && reinterpret_cast<uintptr_t>(problem.scores) % 16 == 0;
    const auto kernel = adjacent ? &tile_kernel<T, true> : &tile_kernel<T, false>;
    const double nan_value = tile_nan_value(problem.nan);
    return launch(kernel, blocks_for(tiles), kThreads, stream, false, problem, nan_value, scratch, invalid);
  });
  if (code != cudaSuccess) return code;
  const int64_t threads = problem.rows / kTile * words_per_row(problem.cols()) * kWarp;
  return launch(&words_kernel, blocks_for(threads), kThreads, stream, false, problem, scratch);
}

}  // namespace sparsekit::cuda
