// SPDX-License-Identifier: Apache-2.0
// Inner loops of structured masks; included once per instruction set with
//   LANES_NAMESPACE  where to put them,   LANES_TARGET  the function attribute,   LANES_BYTES  the register width.
// They are loops over independent lanes, which the compiler turns into vectors; where it does not, vectors are written out.

namespace sparsekit::LANES_NAMESPACE {

template <class T, Reduction kReduction>
LANES_TARGET void add(const void* scores, int64_t stride, int64_t steps, int64_t count, double p, double* __restrict lanes) {
  constexpr bool kLargest = kReduction == Reduction::kMax;
  const T* x = static_cast<const T*>(scores);
  // Several steps at once, in order, so that the lanes are loaded and stored less often.
  for (; steps >= 4; steps -= 4, x += 4 * stride) {
    const T *const second = x + stride, *const third = second + stride, *const fourth = third + stride;
    for (int64_t i = 0; i < count; ++i) {
      double lane = combine<kLargest>(lanes[i], term<kReduction>(as_double(x[i]), p));
      lane = combine<kLargest>(lane, term<kReduction>(as_double(second[i]), p));
      lane = combine<kLargest>(lane, term<kReduction>(as_double(third[i]), p));
      lanes[i] = combine<kLargest>(lane, term<kReduction>(as_double(fourth[i]), p));
    }
  }
  for (; steps > 0; --steps, x += stride) {
    for (int64_t i = 0; i < count; ++i) lanes[i] = combine<kLargest>(lanes[i], term<kReduction>(as_double(x[i]), p));
  }
}

template <bool kLargest>
LANES_TARGET void halve(const double* __restrict lanes, int64_t count, double* __restrict sums) {
  for (int64_t i = 0; i < count; ++i) sums[i] = combine<kLargest>(lanes[2 * i], lanes[2 * i + 1]);
}

template <class U>
LANES_TARGET int64_t keep_best(const GroupStretch<U>& stretch, KeySpec<U> spec, SignedOf<U> dropped) {
  using Key = SignedOf<U>;
  const U* __restrict const scores = stretch.scores;
  const Key* __restrict const place = stretch.place;
  Key *__restrict const keys = stretch.keys, *__restrict const ahead = stretch.ahead, *__restrict const behind = stretch.behind;
  const int64_t count = stretch.count;
  int64_t nans = 0;
  for (int64_t i = 0; i < count; ++i) keys[i] = spec(scores[i]);
  for (int64_t i = 0; i < count; ++i) nans += keys[i] == spec.nan_key;
  for (int64_t i = 0; i < count; ++i) ahead[i] = behind[i] = 0;
  for (int64_t apart = 1; apart < stretch.m; ++apart) {
    const int64_t distance = apart * stretch.spatial;
    const Key* __restrict const later = keys + distance;
    Key* __restrict const later_behind = behind + distance;
    const Key limit = static_cast<Key>(stretch.m - apart);  // places below it have a rival that far behind them
    for (int64_t i = 0; i < count - distance; ++i) {
      const Key rivals = place[i] < limit ? 1 : 0, beaten = later[i] > keys[i] ? rivals : 0;
      ahead[i] = static_cast<Key>(ahead[i] + beaten);
      later_behind[i] = static_cast<Key>(later_behind[i] + (rivals - beaten));
    }
  }
  const Key limit = static_cast<Key>(stretch.n);
  uint8_t* __restrict const kept = stretch.kept;
  for (int64_t i = 0; i < count; ++i) kept[i] = (ahead[i] + behind[i] < limit) & (keys[i] != dropped) ? 1 : 0;
  return nans;
}

template <class T>
LANES_TARGET int64_t tile_values(const void* scores, int64_t count, bool magnitude, double nan_value,
                                 double* __restrict values) {
  const T* const x = static_cast<const T*>(scores);
  int64_t nans = 0;
  for (int64_t i = 0; i < count; ++i) values[i] = tile_value(as_double(x[i]), magnitude, nan_value);
  for (int64_t i = 0; i < count; ++i) nans += as_double(x[i]) != as_double(x[i]);
  return nans;
}

typedef double TileVector __attribute__((vector_size(LANES_BYTES)));
typedef int64_t TileBits __attribute__((vector_size(LANES_BYTES)));

LANES_TARGET inline void best_masks(const double* values, uint32_t* masks) {
  constexpr int kWidth = LANES_BYTES / 8;
  for (int first = 0; first < kTiles; first += kWidth) {
    TileVector row[kTile], pairs[kTile][kPairs], top[kPairs * kPairs], bottom[kPairs * kPairs];
    for (int r = 0; r < kTile; ++r) {
      for (int col = 0; col < kTile; ++col) {
        __builtin_memcpy(&row[col], values + (kTile * r + col) * kTiles + first, sizeof row[col]);
      }
      for (int pair = 0; pair < kPairs; ++pair) pairs[r][pair] = row[kPairFirst[pair]] + row[kPairSecond[pair]];
    }
    for (int i = 0; i < kPairs; ++i) {
      for (int j = 0; j < kPairs; ++j) {
        top[i * kPairs + j] = pairs[0][i] + pairs[1][j];
        bottom[i * kPairs + j] = pairs[2][i] + pairs[3][j];
      }
    }
    TileVector best = TileVector{} - std::numeric_limits<double>::infinity();
    TileBits chosen{};
    for (const TileMask& mask : kTileTable.masks) {
      const TileVector sum = top[mask.pairs[0] * kPairs + mask.pairs[1]] + bottom[mask.pairs[2] * kPairs + mask.pairs[3]];
      const TileBits better = sum > best, bits = TileBits{} + static_cast<int64_t>(mask.bits);
      chosen = better ? bits : chosen;
      best = better ? sum : best;
    }
    for (int l = 0; l < kWidth; ++l) masks[first + l] = static_cast<uint32_t>(chosen[l]);
  }
}

#define LANES_ROW(T)                                                                                    \
  {add<T, Reduction::kSum>, add<T, Reduction::kOne>, add<T, Reduction::kTwo>, add<T, Reduction::kMax>, \
   add<T, Reduction::kPower>}
const GroupLanes kGroupTable = {{LANES_ROW(float), LANES_ROW(double), LANES_ROW(BFloat16), LANES_ROW(Half)},
                                {halve<false>, halve<true>},
                                keep_best<uint16_t>,
                                keep_best<uint32_t>,
                                keep_best<uint64_t>,
                                {tile_values<float>, tile_values<double>, tile_values<BFloat16>, tile_values<Half>},
                                best_masks};
#undef LANES_ROW

}  // namespace sparsekit::LANES_NAMESPACE

#undef LANES_NAMESPACE
#undef LANES_TARGET
#undef LANES_BYTES
