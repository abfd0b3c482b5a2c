// SPDX-License-Identifier: Apache-2.0
// The inner loops of structured masks, for the instruction sets chosen at run time.
#pragma once
#include <cstdint>
#include <string>

#include "group_order.h"
#include "select.h"

namespace sparsekit {

// For each of `steps` stretches of scores, `stride` scores apart: lanes[i] = combine(lanes[i], term(score i)) for i < count.
using AddFn = void (*)(const void* scores, int64_t stride, int64_t steps, int64_t count, double p, double* lanes);

// sums[i] = combine(lanes[2 i], lanes[2 i + 1]) for i < count.
using HalveFn = void (*)(const double* lanes, int64_t count, double* sums);

// Whole groups of m channels in a stretch of a row: n are kept of the channels that are `spatial` apart.
template <class U>
struct GroupStretch {
  using Key = SignedOf<U>;
  const U* scores;
  int64_t count;     // columns, a multiple of m * spatial
  const Key* place;  // of each column's channel in its group, 0 to m - 1
  int64_t n, m, spatial;
  Key *keys, *ahead, *behind;  // scratch of `count` each
  uint8_t* kept;               // 0 or 1 for each column
};

// Marks the n largest keys of each group, the first of equals, but no `dropped` one. Returns the number of NaN.
template <class U>
using KeepBestFn = int64_t (*)(const GroupStretch<U>& stretch, KeySpec<U> spec, SignedOf<U> dropped);

// values[i] = what scores[i] counts in the sum of a tile, see tile_patterns.h. Returns the number of NaN.
using TileValuesFn = int64_t (*)(const void* scores, int64_t count, bool magnitude, double nan_value, double* values);

// Tiles that are decided at once; element e (4 * row + col) of tile l is values[e * kTiles + l].
constexpr int kTiles = 16;
using BestMasksFn = void (*)(const double* values, uint32_t* masks);

struct GroupLanes {
  AddFn add[4][5];    // [Dtype][Reduction]
  HalveFn halve[2];   // sum, largest
  KeepBestFn<uint16_t> keep_two;
  KeepBestFn<uint32_t> keep_four;
  KeepBestFn<uint64_t> keep_eight;
  TileValuesFn tile_values[4];  // [Dtype]
  BestMasksFn best_masks;
};

template <class U>
KeepBestFn<U> keep_of_width(const GroupLanes& lanes) {
  if constexpr (sizeof(U) == 2) return lanes.keep_two;
  else if constexpr (sizeof(U) == 4) return lanes.keep_four;
  else return lanes.keep_eight;
}

// The path of that name (see lane_paths), or the best one for "". Throws std::invalid_argument for a name it does not know.
const GroupLanes& choose_group_lanes(const std::string& name);

}  // namespace sparsekit
