// SPDX-License-Identifier: Apache-2.0
// Which numbers are added in which order when the scores of a unit become one score. CPU and CUDA keep to it, so that
// both give the same bits, whatever the number of threads.
//
// A unit is a rectangle of h x w elements of the matrix [rows, cols], smaller at the edges. All sums are in double:
//   leaf    at most kStripRows rows and kChunkCols columns of the unit, counted from its corner. Lane l of kLanes adds the
//           elements of its columns l, l + kLanes, ... of the first row, then of the next; then the lanes are added in
//           adjacent pairs, the pairs in adjacent pairs, and so on.
//   unit    its leaves, strip by strip, are added by the same rule: lane l adds leaf l, l + kLanes, ...; then pairs.
// What is absent counts as 0. For the largest magnitude "added" means the larger of two, and NaN where one is NaN.
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>

#include "pack_bits.h"

namespace sparsekit {

constexpr int kLanes = 256, kStripRows = 32, kChunkCols = 32 * kLanes;

// Sum of s, of |s|, of s^2 (then its root), largest |s|, sum of |s|^p (then its root).
enum class Reduction : int { kSum = 0, kOne = 1, kTwo = 2, kMax = 3, kPower = 4 };

SPARSEKIT_BOTH int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The units of a matrix and their leaves. Needs rows, cols, h, w >= 1.
struct UnitGrid {
  int64_t rows, cols, h, w;

  SPARSEKIT_BOTH int64_t high() const { return ceil_divide(rows, h); }
  SPARSEKIT_BOTH int64_t wide() const { return ceil_divide(cols, w); }
  SPARSEKIT_BOTH int64_t units() const { return high() * wide(); }
  SPARSEKIT_BOTH int64_t strips() const { return ceil_divide(h, kStripRows); }
  SPARSEKIT_BOTH int64_t chunks() const { return ceil_divide(w, kChunkCols); }
  SPARSEKIT_BOTH int64_t leaves() const { return strips() * chunks(); }
  // Rows [first_row, end_row) of strip s of the units in row a of the grid; none below the edge.
  SPARSEKIT_BOTH int64_t first_row(int64_t a, int64_t s) const { return a * h + s * kStripRows; }
  SPARSEKIT_BOTH int64_t end_row(int64_t a, int64_t s) const {
    const int64_t strip = first_row(a, s) + kStripRows, unit = a * h + h, end = strip < unit ? strip : unit;
    return end < rows ? end : rows;
  }
  // Columns [first_col, end_col) of chunk c of the units in column b of the grid.
  SPARSEKIT_BOTH int64_t first_col(int64_t b, int64_t c) const { return b * w + c * kChunkCols; }
  SPARSEKIT_BOTH int64_t end_col(int64_t b, int64_t c) const {
    const int64_t chunk = first_col(b, c) + kChunkCols, unit = b * w + w, end = chunk < unit ? chunk : unit;
    return end < cols ? end : cols;
  }
};

// A product that no compiler joins with the sum it goes into: that would round once where others round twice.
SPARSEKIT_BOTH double product(double a, double b) {
#ifdef __CUDA_ARCH__
  return __dmul_rn(a, b);
#else
  return a * b;  // the CPU part is compiled with -ffp-contract=off
#endif
}

// What an element contributes.
template <Reduction kReduction>
SPARSEKIT_BOTH double term(double score, double p) {
  if constexpr (kReduction == Reduction::kSum) return score;
  else if constexpr (kReduction == Reduction::kTwo) return product(score, score);
  else if constexpr (kReduction == Reduction::kPower) return pow(fabs(score), p);
  else return fabs(score);
}

// "Addition".
template <bool kLargest>
SPARSEKIT_BOTH double combine(double a, double b) {
  if constexpr (kLargest) return b <= a || a != a ? a : b;
  else return a + b;
}

template <class Out>
constexpr Out kNan = std::numeric_limits<Out>::quiet_NaN();

// The score of a unit; every NaN has the same bits.
template <class Out>
SPARSEKIT_BOTH Out finish(Reduction reduction, double total, double p) {
  if (reduction == Reduction::kTwo) total = sqrt(total);
  if (reduction == Reduction::kPower) total = pow(total, 1.0 / p);
  return total != total ? kNan<Out> : static_cast<Out>(total);
}

}  // namespace sparsekit
