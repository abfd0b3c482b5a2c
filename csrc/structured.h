// SPDX-License-Identifier: Apache-2.0
// Structured masks on the CPU: scores of units, masks from decisions on units, n of every m, and 4 x 4 tiles.
//
// Counts are in elements, memory is contiguous. Results are a function of the input alone, whatever the number of threads
// and the instruction set.
#pragma once
#include <cstdint>
#include <string>

#include "dtypes.h"
#include "group_order.h"
#include "select.h"

namespace sparsekit {

// Scores [grid.rows, grid.cols], and where the scores [units] of the units go: double for kFloat64, else float.
struct UnitScores {
  UnitGrid grid;
  const void* scores;
  void* out;
  Dtype dtype;
  Reduction reduction;
  double p;  // of kPower
};

// Each unit's score, added up as group_order.h says.
void group_scores(const UnitScores& problem, int threads, const std::string& force);

// Decisions on the units of a grid as packed bits: one row of bits for each row of the grid, or (listed) one row for all.
struct UnitBits {
  UnitGrid grid;
  const uint32_t* bits;
  bool listed;
};

// Words of the mask [grid.rows, grid.cols] whose elements have the bits of their units.
void expand_units(const UnitBits& units, uint32_t* words, int threads);

// Scores [rows, channels * spatial] and where the words of their mask go. Groups run along the channels, for each of the
// spatial positions on their own: channel c and position s are column c * spatial + s.
struct GroupedScores {
  const void* scores;
  uint32_t* words;
  int64_t rows, channels, spatial;
  Dtype dtype;
  KeyKind key;
  NanPolicy nan;

  SPARSEKIT_BOTH int64_t cols() const { return channels * spatial; }
};

// Keeps the n largest of every m consecutive channels; ties and NaN as in topk_mask.h. Needs 1 <= n <= m and channels
// divisible by m. Returns the number of NaN.
int64_t nm_mask(const GroupedScores& problem, int64_t n, int64_t m, int threads, const std::string& force);

// Keeps two elements in each row and each column of every tile of 4 rows x 4 channels: the best mask of tile_patterns.h,
// without NaN unless they are kept. Needs rows and channels divisible by 4. Returns the number of NaN.
int64_t transposable_nm_mask(const GroupedScores& problem, int threads, const std::string& force);

}  // namespace sparsekit
