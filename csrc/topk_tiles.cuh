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
    result.scores = in_device_memory(static_cast<const U*>(tensor.scores));
    result.cols = tensor.cols;
    result.per_row = words_per_row(tensor.cols);
    result.first = (tile - tensor.first_tile) * kTileWords;
    const int64_t left = tensor.rows * result.per_row - result.first;
    result.count = static_cast<int>(left < kTileWords ? left : kTileWords);
    result.words = in_device_memory(tensor.words) + result.first;
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
