// SPDX-License-Identifier: Apache-2.0
// Scores of units on a CUDA device: every score is read once, and the sums keep to the order of group_order.h.
#include <algorithm>

#include "group_sums.cuh"

// Blocks at most; beyond it each has several parts of the work.
#ifndef SPARSEKIT_GROUP_BLOCKS
#define SPARSEKIT_GROUP_BLOCKS (1 << 20)
#endif

namespace sparsekit::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlockCols = 1024;  // columns of narrow units that a block adds side by side
constexpr int64_t kMaxBlocks = SPARSEKIT_GROUP_BLOCKS;

// What the host divides, so that no thread has to.
struct Plan {
  int64_t wide;             // units in a row of the grid
  int64_t strips;           // strips of all rows of the grid
  int64_t units_per_block;  // narrow units side by side in a block
  int64_t stretches;        // blocks side by side
  int64_t blocks;           // of narrow units, maybe more than a grid can have
};

__device__ void write_leaf(const UnitScores& problem, double* scratch, int64_t unit, int64_t leaf, double total) {
  if (scratch == nullptr) write_unit(problem, unit, total);
  else scratch[unit * problem.grid.leaves() + leaf] = total;
}

// One warp per leaf: for units that are wider than a warp's lanes.
template <class T, Family kFamily, int kWidth>
__global__ void __launch_bounds__(kThreads, 2) wide_kernel(const __grid_constant__ UnitScores problem, double* scratch,
                                                           Plan plan) {
  constexpr int kAhead = 2;  // steps that are loaded together
  const UnitGrid& grid = problem.grid;
  const int64_t leaves = grid.leaves(), chunks = grid.chunks(), count = plan.strips * plan.wide * chunks;
  for (int64_t at = thread_index() / kWarp; at < count; at += thread_count() / kWarp) {
    const int64_t unit = divide(at, leaves), leaf = at - unit * leaves, a = divide(unit, plan.wide);
    const int64_t b = unit - a * plan.wide, strip = divide(leaf, chunks), chunk = leaf - strip * chunks;
    const int64_t first = grid.first_col(b, chunk), width = grid.end_col(b, chunk) - first;
    double lanes[kOwn] = {};
    for (int64_t row = grid.first_row(a, strip); row < grid.end_row(a, strip); ++row) {
      const T* const scores = static_cast<const T*>(problem.scores) + row * grid.cols + first;
      for (int64_t step = kOwn * lane_id(); step < width; step += kAhead * kLanes) {
        Pack<T, kWidth> own[kAhead][kOwn / kWidth];
#pragma unroll
        for (int i = 0; i < kAhead; ++i) load_own(scores + step + i * kLanes, width - step - i * kLanes, own[i]);
#pragma unroll
        for (int i = 0; i < kAhead * kOwn / kWidth; ++i) {
          add_pack<kFamily>(own[i / (kOwn / kWidth)][i % (kOwn / kWidth)], problem, lanes + i % (kOwn / kWidth) * kWidth);
        }
      }
    }
    const double total = add_pairs<kFamily>(lanes);
    if (lane_id() == 0) write_leaf(problem, scratch, unit, leaf, total);
  }
}

template <int kWidth>
constexpr int kNarrowThreads = kBlockCols / kWidth < kThreads ? kBlockCols / kWidth : kThreads;

template <int kStrips>
struct NarrowSums {
  double columns[kStrips][kBlockCols];
};

// A stretch of narrow units and kStrips strips: a thread adds columns, then the columns of a unit are added.
template <class T, Family kFamily, int kWidth, int kStrips>
__device__ void add_stretch(const UnitScores& problem, double* scratch, const Plan& plan, int64_t block,
                            NarrowSums<kStrips>& sums) {
  constexpr int kStride = kNarrowThreads<kWidth>;
  const UnitGrid& grid = problem.grid;
  const int64_t group = divide(block, plan.stretches);
  const int64_t first_unit = (block - group * plan.stretches) * plan.units_per_block;
  const int64_t left = first_unit * grid.w, end = left + plan.units_per_block * grid.w;
  const int count = static_cast<int>((end < grid.cols ? end : grid.cols) - left), width = static_cast<int>(grid.w);
  const T* tops[kStrips];
  int rows[kStrips], most_rows = 0;
#pragma unroll
  for (int s = 0; s < kStrips; ++s) {
    const int64_t strip = group * kStrips + s, a = divide(strip, grid.strips()), in_unit = strip - a * grid.strips();
    const int64_t first = grid.first_row(a, in_unit);
    tops[s] = static_cast<const T*>(problem.scores) + first * grid.cols + left;
    rows[s] = strip < plan.strips ? static_cast<int>(grid.end_row(a, in_unit) - first) : 0;
    most_rows = rows[s] > most_rows ? rows[s] : most_rows;
  }
  for (int col = static_cast<int>(threadIdx.x) * kWidth; col < count; col += kStride * kWidth) {
    double lanes[kStrips][kWidth] = {};
#pragma unroll(kStrips == 1 ? 8 : 1)
    for (int row = 0; row < most_rows; ++row) {
      Pack<T, kWidth> packs[kStrips] = {};
#pragma unroll
      for (int s = 0; s < kStrips; ++s) {
        if (row < rows[s]) packs[s] = *reinterpret_cast<const Pack<T, kWidth>*>(tops[s] + row * grid.cols + col);
      }
#pragma unroll
      for (int s = 0; s < kStrips; ++s) add_pack<kFamily>(packs[s], problem, lanes[s]);
    }
#pragma unroll
    for (int s = 0; s < kStrips; ++s) {
#pragma unroll
      for (int e = 0; e < kWidth; ++e) sums.columns[s][col + e] = lanes[s][e];
    }
  }
  __syncthreads();
  for (int apart = 1; apart < width; apart *= 2) {
    for (int col = static_cast<int>(threadIdx.x); col + apart < count; col += kStride) {
      const int place = col % width;
      if (place % (2 * apart) != 0 || place + apart >= width) continue;
#pragma unroll
      for (int s = 0; s < kStrips; ++s) {
        sums.columns[s][col] = add<kFamily>(sums.columns[s][col], sums.columns[s][col + apart]);
      }
    }
    __syncthreads();
  }
  for (int unit = static_cast<int>(threadIdx.x); unit * width < count; unit += kStride) {
    for (int s = 0; s < kStrips && group * kStrips + s < plan.strips; ++s) {
      const int64_t strip = group * kStrips + s, a = divide(strip, grid.strips());
      write_leaf(problem, scratch, a * plan.wide + first_unit + unit, strip - a * grid.strips(), sums.columns[s][unit * width]);
    }
  }
}

template <class T, Family kFamily, int kWidth, int kStrips>
__global__ void __launch_bounds__(kNarrowThreads<kWidth>) narrow_kernel(const __grid_constant__ UnitScores problem,
                                                                       double* scratch, Plan plan) {
  SPARSEKIT_SHARED(NarrowSums<kStrips>, sums);
  for (int64_t block = blockIdx.x; block < plan.blocks; block += gridDim.x) {
    add_stretch<T, kFamily, kWidth>(problem, scratch, plan, block, sums);
    __syncthreads();
  }
}

// One warp per unit adds the leaves.
template <Family kFamily>
__global__ void __launch_bounds__(kThreads) leaves_kernel(const __grid_constant__ UnitScores problem, const double* scratch,
                                                             int64_t units) {
  const int64_t leaves = problem.grid.leaves();
  for (int64_t unit = thread_index() / kWarp; unit < units; unit += thread_count() / kWarp) {
    double lanes[kOwn] = {};
    for (int64_t step = kOwn * lane_id(); step < leaves; step += kLanes) {
#pragma unroll
      for (int e = 0; e < kOwn; ++e) {
        if (step + e < leaves) lanes[e] = add<kFamily>(lanes[e], scratch[unit * leaves + step + e]);
      }
    }
    const double total = add_pairs<kFamily>(lanes);
    if (lane_id() == 0) write_unit(problem, unit, total);
  }
}

int64_t blocks_for(int64_t warps) { return std::min(kMaxBlocks, ceil_divide(warps * kWarp, kThreads)); }

// Units of a block whose columns fill whole packs; 0 if there is no such number.
int64_t units_of_block(int64_t w, int64_t width) {
  int64_t units = kBlockCols / w;
  while (units > 0 && units * w % width != 0) --units;
  return units;
}

template <class T, Family kFamily, int kWidth>
cudaError_t launch_width(const UnitScores& problem, double* scratch, uintptr_t stream) {
  const UnitGrid& grid = problem.grid;
  Plan plan = {grid.wide(), grid.high() * grid.strips(), 0, 0, 0};
  if (grid.w > kLanes) {
    const int64_t blocks = blocks_for(grid.units() * grid.leaves());
    return launch(&wide_kernel<T, kFamily, kWidth>, blocks, kThreads, stream, false, problem, scratch, plan);
  }
  plan.units_per_block = units_of_block(grid.w, kWidth);
  plan.stretches = ceil_divide(plan.wide, plan.units_per_block);
  // Flat units give a thread too little to read at once from one strip.
  constexpr int kMany = kWidth == 1 ? 1 : 4, kBlock = kNarrowThreads<kWidth>;
  const bool flat = grid.h < 8;
  const auto kernel = flat ? &narrow_kernel<T, kFamily, kWidth, kMany> : &narrow_kernel<T, kFamily, kWidth, 1>;
  plan.blocks = ceil_divide(plan.strips, flat ? kMany : 1) * plan.stretches;
  return launch(kernel, std::min(kMaxBlocks, plan.blocks), kBlock, stream, false, problem, scratch, plan);
}

template <class T, Family kFamily>
cudaError_t launch_family(const UnitScores& problem, double* scratch, uintptr_t stream) {
  constexpr int kWidth = 16 / sizeof(T);
  const UnitGrid& grid = problem.grid;
  const bool rows_fit = reinterpret_cast<uintptr_t>(problem.scores) % 16 == 0 && grid.cols % kWidth == 0;
  const bool units_fit = grid.w > kLanes ? grid.wide() == 1 || grid.w % kWidth == 0 : units_of_block(grid.w, kWidth) > 0;
  cudaError_t code;
  if constexpr (kFamily == Family::kPowers) code = launch_width<T, kFamily, 1>(problem, scratch, stream);
  else code = rows_fit && units_fit ? launch_width<T, kFamily, kWidth>(problem, scratch, stream)
                                    : launch_width<T, kFamily, 1>(problem, scratch, stream);
  if (code != cudaSuccess || scratch == nullptr) return code;
  return launch(&leaves_kernel<kFamily>, blocks_for(grid.units()), kThreads, stream, false, problem, scratch, grid.units());
}

}  // namespace

int group_scores(const UnitScores& problem, double* scratch, int device, uintptr_t stream) {
  const DeviceGuard guard(device);
  if (guard.code() != cudaSuccess) return guard.code();
  double* const leaves = group_scores_scratch(problem.grid) == 0 ? nullptr : scratch;
  return with_score_type(problem.dtype, [&](auto score) {
    using T = decltype(score);
    if (problem.reduction == Reduction::kMax) return launch_family<T, Family::kLargest>(problem, leaves, stream);
    if (problem.reduction == Reduction::kPower) return launch_family<T, Family::kPowers>(problem, leaves, stream);
    return launch_family<T, Family::kSums>(problem, leaves, stream);
  });
}

}  // namespace sparsekit::cuda
