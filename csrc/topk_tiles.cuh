// SPDX-License-Identifier: Apache-2.0
// How a CUDA device reads scores: tiles of mask words, one warp for 32 words at a time, keys compared with a bracket.
#pragma once
#include "device.cuh"
#include "select.h"

// Sizes; the tests choose small ones, so that small inputs have many tiles.
#ifndef SPARSEKIT_TOPK_THREADS
#define SPARSEKIT_TOPK_THREADS 256
#define SPARSEKIT_TOPK_SHOTS 2
#define SPARSEKIT_TOPK_DIGIT 12
#endif

namespace sparsekit::cuda {

constexpr int kTopkThreads = SPARSEKIT_TOPK_THREADS;
constexpr int kWarps = kTopkThreads / kWarp;
constexpr int kShots = SPARSEKIT_TOPK_SHOTS;             // times each warp reads 32 words of a tile
constexpr int kShotWords = kWarps * kWarp;
constexpr int kTileWords = kShots * kShotWords;
static_assert(kTileWords * kWordBits <= 1 << 16, "a position inside a tile has 16 bits");

// A tensor of scores, flat (rows == 1) where its rows have no padding bits.
struct TensorEntry {
  const void* scores;
  uint32_t* words;
  int64_t rows, cols;
  int64_t first_tile;
  int64_t first_element;  // of its segment
  int64_t segment;
  int64_t first_candidate;  // of its segment in the list of all
};

// One tile: up to kTileWords words of one tensor.
template <class U>
struct Tile {
  const U* scores;
  uint32_t* words;     // of the tile
  int64_t cols;        // of a row
  int64_t per_row;     // words of a row
  int64_t first;       // word of the tensor
  int count;           // words of the tile
  bool flat, wide;     // one row; 16-byte loads are possible

  __device__ static Tile of(const TensorEntry& tensor, int64_t tile) {
    Tile result;
    result.scores = static_cast<const U*>(tensor.scores);
    result.cols = tensor.cols;
    result.per_row = words_per_row(tensor.cols);
    result.first = (tile - tensor.first_tile) * kTileWords;
    const int64_t left = tensor.rows * result.per_row - result.first;
    result.count = static_cast<int>(left < kTileWords ? left : kTileWords);
    result.words = tensor.words + result.first;
    result.flat = tensor.rows == 1;
    result.wide = result.flat && reinterpret_cast<uintptr_t>(tensor.scores) % 16 == 0;
    return result;
  }

  // Index of the first element of a word of the tile, and how many elements the word has.
  __device__ int64_t element(int word, int* valid) const {
    const int64_t at = first + word, row = flat ? 0 : divide(at, per_row), col = (at - row * per_row) * kWordBits;
    *valid = static_cast<int>(cols - col < kWordBits ? cols - col : kWordBits);
    return row * cols + col;
  }

  // Do the 32 words from `word` on have all their elements, in one piece of memory?
  __device__ bool is_wide(int word) const {
    return wide && word + kWarp <= count && (first + word + kWarp) * kWordBits <= cols;
  }
};

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

// What a warp found in 32 words: each lane has those of its word, in order.
struct ShotBits {
  uint32_t above, inside;
  int nans;
};

// Calls visit(bits, item) for every element of 32 words from `word` on, in pieces of 16 bytes.
template <class U, class Visit>
__device__ inline void for_wide(const Tile<U>& tile, int word, const Visit& visit) {
  using Wide = WideLoad<U>;
  constexpr int kBatch = Wide::kLoads < 8 ? Wide::kLoads : 8;  // loads in flight
  const uint4* const source = reinterpret_cast<const uint4*>(tile.scores + (tile.first + word) * kWordBits) + lane_id();
#pragma unroll
  for (int start = 0; start < Wide::kLoads; start += kBatch) {
    uint4 packs[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) packs[i] = source[(start + i) * kWarp];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
#pragma unroll
      for (int item = 0; item < Wide::kItems; ++item) visit(item_of<U>(packs[i], item), (start + i) * Wide::kItems + item);
    }
  }
}

// Compares the keys of 32 words of a tile with the bracket; words beyond the tile are empty.
template <bool kMagnitude, class U>
__device__ inline ShotBits classify(const Tile<U>& tile, int word, const KeySpec<U>& spec, Bracket<SignedOf<U>> bracket) {
  using Key = SignedOf<U>;
  ShotBits result = {0, 0, 0};
  if (tile.is_wide(word)) {
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
    const Key key = real ? spec.template of<kMagnitude>(tile.scores[at + lane_id()]) : Key{0};
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

// The tensor of a tile: the last one that begins at or before it.
__device__ inline const TensorEntry& tensor_of(const TensorEntry* tensors, int64_t count, int64_t tile) {
  int64_t low = 0;
  for (int64_t high = count; high - low > 1;) {
    const int64_t middle = (low + high) / 2;
    if (tensors[middle].first_tile <= tile) low = middle;
    else high = middle;
  }
  return tensors[low];
}

}  // namespace sparsekit::cuda
