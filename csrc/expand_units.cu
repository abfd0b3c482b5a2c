// SPDX-License-Identifier: Apache-2.0
// Element masks from decisions on units, on a CUDA device: no element is visited, only words.
#include <algorithm>

#include "device.cuh"
#include "structured_cuda.h"
#include "unit_bits.h"

namespace sparsekit::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = 8;  // rows of a thread, which mostly have the same word
constexpr int64_t kMaxBlocks = 1 << 20;

__global__ void __launch_bounds__(kThreads) expand_kernel(const __grid_constant__ UnitBits units, uint32_t* words) {
  const UnitGrid& grid = units.grid;
  const int64_t per_row = words_per_row(grid.cols), count = ceil_divide(grid.rows, kRows) * per_row;
  for (int64_t at = thread_index(); at < count; at += thread_count()) {
    const int64_t group = divide(at, per_row), word = at - group * per_row, first = group * kRows;
    int64_t a = divide(first, grid.h), next = (a + 1) * grid.h;
    uint32_t bits = expanded_word(units, a, word);
    for (int64_t row = first; row < first + kRows && row < grid.rows; ++row) {
      if (row == next) {
        bits = expanded_word(units, ++a, word);
        next += grid.h;
      }
      words[row * per_row + word] = bits;
    }
  }
}

}  // namespace

int expand_units(const UnitBits& units, uint32_t* words, int device, uintptr_t stream) {
  const DeviceGuard guard(device);
  if (guard.code() != cudaSuccess) return guard.code();
  const int64_t threads = ceil_divide(units.grid.rows, kRows) * words_per_row(units.grid.cols);
  const int64_t blocks = std::min(kMaxBlocks, ceil_divide(threads, kThreads));
  return launch(&expand_kernel, blocks, kThreads, stream, false, units, words);
}

}  // namespace sparsekit::cuda
