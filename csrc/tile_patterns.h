// SPDX-License-Identifier: Apache-2.0
// The masks of a 4 x 4 tile that keep two elements in each row and in each column, and how the best one is chosen.
//
// A row keeps a pair of columns; pairs are counted 01, 02, 03, 12, 13, 23. The masks are counted in lexicographic order of
// the pairs of rows 0, 1, 2, 3. The sum of a mask is (pair of row 0 + pair of row 1) + (pair of row 2 + pair of row 3) in
// double; the best mask is the first of those with the largest sum.
#pragma once
#include <array>
#include <cmath>
#include <cstdint>

#include "pack_bits.h"
#include "select.h"

namespace sparsekit {

constexpr int kTile = 4, kTileMasks = 90, kPairs = 6;
constexpr int kPairFirst[kPairs] = {0, 0, 0, 1, 1, 2}, kPairSecond[kPairs] = {1, 2, 3, 2, 3, 3};

struct TileMask {
  int pairs[kTile];  // of each row
  uint32_t bits;     // element (row, col) is bit 4 * row + col
};

constexpr uint32_t pair_bits(int pair) { return 1u << kPairFirst[pair] | 1u << kPairSecond[pair]; }

constexpr bool keeps_two_per_column(uint32_t bits) {
  for (int col = 0; col < kTile; ++col) {
    int kept = 0;
    for (int row = 0; row < kTile; ++row) kept += static_cast<int>(bits >> (kTile * row + col) & 1u);
    if (kept != 2) return false;
  }
  return true;
}

struct TileMaskTable {
  TileMask masks[kTileMasks];
  int count;
};

constexpr TileMaskTable make_tile_masks() {
  TileMaskTable table{};
  for (int code = 0; code < kPairs * kPairs * kPairs * kPairs; ++code) {
    TileMask mask{};
    for (int row = kTile - 1, rest = code; row >= 0; --row, rest /= kPairs) {
      mask.pairs[row] = rest % kPairs;
      mask.bits |= pair_bits(mask.pairs[row]) << (kTile * row);
    }
    if (!keeps_two_per_column(mask.bits)) continue;
    if (table.count < kTileMasks) table.masks[table.count] = mask;
    ++table.count;
  }
  return table;
}

constexpr TileMaskTable kTileTable = make_tile_masks();
static_assert(kTileTable.count == kTileMasks, "a 4 x 4 tile has 90 masks with two elements per row and column");

// What a NaN counts in a sum: nothing, or more than eight infinities if it is kept.
inline double tile_nan_value(NanPolicy nan) { return nan == NanPolicy::kKeep ? 0x1p1010 : 0.0; }

// What a score counts in a sum. No number counts more than 2^1000, infinity neither, so that sums are numbers.
SPARSEKIT_BOTH double tile_value(double score, bool magnitude, double nan_value) {
  constexpr double kMost = 0x1p1000;
  double value = magnitude ? fabs(score) : score;
  value = value > kMost ? kMost : value;
  value = value < -kMost ? -kMost : value;
  return score != score ? nan_value : value;
}

}  // namespace sparsekit
