// SPDX-License-Identifier: Apache-2.0
// One warp compares the keys of 32 mask words with a bracket.
#pragma once
#include "topk_tiles.cuh"

namespace sparsekit::cuda {

// The item-th element of 16 bytes.
template <class U>
__device__ inline U item_of(const uint4& pack, int item) {
  const uint32_t parts[4] = {pack.x, pack.y, pack.z, pack.w};
  if constexpr (sizeof(U) == 2) return static_cast<U>(parts[item / 2] >> (item % 2 * 16));
  else if constexpr (sizeof(U) == 4) return parts[item];
  else return static_cast<U>(parts[2 * item]) | (static_cast<U>(parts[2 * item + 1]) << 32);
}

// 32 words of 32 elements read by one warp in 16-byte pieces: load i gives lane l the elements i * 32 * kItems + l * kItems
// and following.
template <class U>
struct WideLoad {
  static constexpr int kItems = 16 / static_cast<int>(sizeof(U));  // elements of a piece
  static constexpr int kLoads = kWordBits / kItems;

  // Bit i * kItems + e of each lane is element e of its load i. Returns to lane w the word of the elements 32 w to 32 w + 31.
  __device__ static uint32_t to_words(uint32_t bits) {
    const int lane = lane_id();
    // A transposition of kLoads x kLoads fields among neighbouring lanes, by halves.
#pragma unroll
    for (int distance = kLoads / 2; distance > 0; distance /= 2) {
      uint32_t low = 0;
#pragma unroll
      for (int field = 0; field < kLoads; ++field) {
        if ((field & distance) == 0) low |= ((1u << kItems) - 1u) << (field * kItems);
      }
      const uint32_t other = __shfl_xor_sync(kAll, bits, distance);
      bits = (lane & distance) == 0 ? (bits & low) | ((other & low) << (distance * kItems))
                                    : (bits & ~low) | ((other & ~low) >> (distance * kItems));
    }
    return __shfl_sync(kAll, bits, lane % kItems * kLoads + lane / kItems);
  }
};

// Calls visit(pack, number) for the 16-byte loads of a lane's elements in 32 words from `word` on.
template <class U, class Visit>
__device__ inline void for_packs(const Tile<U>& tile, int word, const Visit& visit) {
  constexpr int kLoads = WideLoad<U>::kLoads, kBatch = kLoads < 8 ? kLoads : 8;  // loads in flight
  const uint4* const source = reinterpret_cast<const uint4*>(tile.scores + (tile.first + word) * kWordBits) + lane_id();
#pragma unroll
  for (int start = 0; start < kLoads; start += kBatch) {
    uint4 packs[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) packs[i] = load(source + (start + i) * kWarp);
#pragma unroll
    for (int i = 0; i < kBatch; ++i) visit(packs[i], start + i);
  }
}

// Calls visit(bits, number) for a lane's elements in 32 words from `word` on.
template <class U, class Visit>
__device__ inline void for_wide(const Tile<U>& tile, int word, const Visit& visit) {
  constexpr int kItems = WideLoad<U>::kItems;
  for_packs(tile, word, [&](const uint4& pack, int number) {
#pragma unroll
    for (int item = 0; item < kItems; ++item) visit(item_of<U>(pack, item), number * kItems + item);
  });
}

// What a warp found in 32 words: each lane has those of its word, in order.
struct ShotBits {
  uint32_t above, inside;
  int nans;
};

// Bits of a lane's elements, for magnitudes without NaN.
struct LaneBits {
  uint32_t above, over_low;
  bool has_nan;
};

// The sign of a difference is the comparison, and a funnel shift collects it: a third of the work of predicates.
__device__ inline LaneBits compare_magnitudes(const Tile<uint32_t>& tile, int word, const KeySpec<uint32_t>& spec,
                                              Bracket<int32_t> bracket) {
  const int32_t high = (bracket.high > 0 ? bracket.high : 0) - 1, low = bracket.low > -1 ? bracket.low : -1;
  LaneBits result = {0, 0, false};
  int32_t largest = 0;
  for_wide(tile, word, [&](uint32_t bits, int) {
    const int32_t magnitude = static_cast<int32_t>(bits & 0x7fffffffu);
    result.above = __funnelshift_l(static_cast<uint32_t>(high - magnitude), result.above, 1);
    result.over_low = __funnelshift_l(static_cast<uint32_t>(low - magnitude), result.over_low, 1);
    largest = magnitude > largest ? magnitude : largest;
  });
  // The first element came to the highest bit.
  return {__brev(result.above), __brev(result.over_low), largest > spec.infinity};
}

// Bit i of the lower half goes to bit 2 i, bit i of the upper half to bit 2 i + 1.
__device__ inline uint32_t interleave_halves(uint32_t bits) {
  const auto swap = [&](uint32_t mask, int distance) {
    const uint32_t differ = (bits ^ (bits >> distance)) & mask;
    bits ^= differ ^ (differ << distance);
  };
  swap(0x0000ff00u, 8);
  swap(0x00f000f0u, 4);
  swap(0x0c0c0c0cu, 2);
  swap(0x22222222u, 1);
  return bits;
}

// Two 15-bit magnitudes at a time: with a one put before each, its bit survives a subtraction exactly if no more is taken.
__device__ inline LaneBits compare_magnitudes(const Tile<uint16_t>& tile, int word, const KeySpec<uint16_t>& spec,
                                              Bracket<int16_t> bracket) {
  constexpr uint32_t kOnes = 0x80008000u, kTwice = 0x00010001u;
  const uint32_t high = static_cast<uint32_t>(bracket.high > 0 ? bracket.high : 0) * kTwice;
  const uint32_t low = static_cast<uint32_t>((bracket.low > -1 ? bracket.low : -1) + 1) * kTwice;
  const uint32_t no_number = static_cast<uint32_t>(spec.infinity + 1) * kTwice;
  uint32_t above = 0, over_low = 0, nan = 0;
  for_packs(tile, word, [&](const uint4& pack, int) {
    const uint32_t parts[4] = {pack.x, pack.y, pack.z, pack.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t pair = parts[i] | kOnes;
      above = ((above >> 1) & ~kOnes) | ((pair - high) & kOnes);
      over_low = ((over_low >> 1) & ~kOnes) | ((pair - low) & kOnes);
      nan |= pair - no_number;
    }
  });
  return {interleave_halves(above), interleave_halves(over_low), (nan & kOnes) != 0};
}

// Compares the keys of 32 words of a tile with the bracket; words beyond the tile are empty.
template <bool kMagnitude, class U>
__device__ inline ShotBits classify(const Tile<U>& tile, int word, const KeySpec<U>& spec, Bracket<SignedOf<U>> bracket) {
  using Key = SignedOf<U>;
  ShotBits result = {0, 0, 0};
  if (tile.is_wide(word)) {
    if constexpr (kMagnitude && sizeof(U) <= 4) {
      const LaneBits bits = compare_magnitudes(tile, word, spec, bracket);
      if (!__any_sync(kAll, bits.has_nan)) {
        result.above = WideLoad<U>::to_words(bits.above);
        result.inside = WideLoad<U>::to_words(bits.over_low & ~bits.above);
        return result;
      }
    }
    for_wide(tile, word, [&](U bits, int at) {
      const Key key = spec.template of<kMagnitude>(bits);
      result.above |= static_cast<uint32_t>(key >= bracket.high) << at;
      result.inside |= static_cast<uint32_t>(key > bracket.low && key < bracket.high) << at;
      result.nans += key == spec.nan_key;
    });
    result.above = WideLoad<U>::to_words(result.above);
    result.inside = WideLoad<U>::to_words(result.inside);
    return result;
  }
  const int end = tile.count - word < kWarp ? tile.count - word : kWarp;
  for (int i = 0; i < end; ++i) {
    int valid;
    const int64_t at = tile.element(word + i, &valid);
    const bool real = lane_id() < valid;
    const Key key = real ? spec.template of<kMagnitude>(load(tile.scores + at + lane_id())) : Key{0};
    const uint32_t above = __ballot_sync(kAll, real && key >= bracket.high);
    const uint32_t inside = __ballot_sync(kAll, real && key > bracket.low && key < bracket.high);
    result.nans += real && key == spec.nan_key;
    if (lane_id() == i) {
      result.above = above;
      result.inside = inside;
    }
  }
  return result;
}

}  // namespace sparsekit::cuda
