// SPDX-License-Identifier: Apache-2.0
// The masked product per instruction set: a few rows of the weight against a few rows of x at a time.
#include "masked_linear.h"

#include <algorithm>

#include "lanes.h"
#include "pack_bits.h"
#include "parallel.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define SPARSEKIT_X86_PRODUCT 1
#include <immintrin.h>
#endif

namespace sparsekit {
namespace {

constexpr int kRows = 2, kTokens = 8;  // of a tile; its sums stay in registers
constexpr int64_t kRowsPerTask = 16;
constexpr int64_t kStretch = 1024;  // columns whose products are added up before they join the sum: long sums lose digits

// Sums of kTokens x kRows products; token t and row r start at x + t * cols and weight + r * cols.
struct Tile {
  const float* x;
  const float* weight;
  const uint32_t* words;
  int64_t cols;
};

using TileFn = void (*)(const Tile& tile, float (*sums)[kRows]);

}  // namespace
}  // namespace sparsekit

namespace sparsekit::product_scalar {

template <int kHere, int kThere>
void add_tile(const Tile& tile, float (*sums)[kRows]) {
  const int64_t per_row = words_per_row(tile.cols);
  for (int r = 0; r < kThere; ++r) {
    float lanes[kHere][kWordBits] = {};
    for (int64_t word = 0; word < per_row; ++word) {
      const uint32_t bits = tile.words[r * per_row + word];
      const int count = static_cast<int>(std::min<int64_t>(kWordBits, tile.cols - word * kWordBits));
      const float* const weight = tile.weight + r * tile.cols + word * kWordBits;
      for (int i = 0; i < count; ++i) {
        const float value = test_bit(bits, i) ? weight[i] : 0.0f;
        for (int t = 0; t < kHere; ++t) lanes[t][i] += tile.x[t * tile.cols + word * kWordBits + i] * value;
      }
    }
    for (int t = 0; t < kHere; ++t) {
      for (int apart = kWordBits / 2; apart > 0; apart /= 2) {
        for (int i = 0; i < apart; ++i) lanes[t][i] += lanes[t][i + apart];
      }
      sums[t][r] = lanes[t][0];
    }
  }
}

}  // namespace sparsekit::product_scalar

#ifdef SPARSEKIT_X86_PRODUCT

namespace sparsekit::product_avx2 {
#define PRODUCT_TARGET __attribute__((target("avx2,fma,bmi,bmi2,popcnt")))

PRODUCT_TARGET inline __m256i lanes_of(uint32_t bits) {
  const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lane), lane);
}

PRODUCT_TARGET inline float sum_of(__m256 lanes) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

template <int kHere, int kThere>
PRODUCT_TARGET void add_tile(const Tile& tile, float (*sums)[kRows]) {
  constexpr int kLanes = 8;
  const int64_t per_row = words_per_row(tile.cols);
  __m256 sum[kHere][kThere];
  for (int t = 0; t < kHere; ++t) {
    for (int r = 0; r < kThere; ++r) sum[t][r] = _mm256_setzero_ps();
  }
  for (int64_t begin = 0; begin < tile.cols; begin += kStretch) {
    const int64_t end = std::min(tile.cols, begin + kStretch);
    __m256 total[kHere][kThere];
    for (int t = 0; t < kHere; ++t) {
      for (int r = 0; r < kThere; ++r) total[t][r] = _mm256_setzero_ps();
    }
    for (int64_t at = begin; at < end; at += kLanes) {
      const int64_t left = tile.cols - at;
      const uint32_t inside = left >= kLanes ? 0xffu : (1u << left) - 1u;
      const __m256i there = lanes_of(inside);
      __m256 weight[kThere];
      for (int r = 0; r < kThere; ++r) {
        const uint32_t bits = tile.words[r * per_row + word_of(at)] >> bit_of(at);
        weight[r] = _mm256_maskload_ps(tile.weight + r * tile.cols + at, lanes_of(bits & inside));
      }
      for (int t = 0; t < kHere; ++t) {
        const float* const source = tile.x + t * tile.cols + at;
        const __m256 x = left >= kLanes ? _mm256_loadu_ps(source) : _mm256_maskload_ps(source, there);
        for (int r = 0; r < kThere; ++r) total[t][r] = _mm256_fmadd_ps(weight[r], x, total[t][r]);
      }
    }
    for (int t = 0; t < kHere; ++t) {
      for (int r = 0; r < kThere; ++r) sum[t][r] = _mm256_add_ps(sum[t][r], total[t][r]);
    }
  }
  for (int t = 0; t < kHere; ++t) {
    for (int r = 0; r < kThere; ++r) sums[t][r] = sum_of(sum[t][r]);
  }
}

#undef PRODUCT_TARGET
}  // namespace sparsekit::product_avx2

namespace sparsekit::product_avx512 {
#define PRODUCT_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi,bmi2,popcnt")))

template <int kHere, int kThere>
PRODUCT_TARGET void add_tile(const Tile& tile, float (*sums)[kRows]) {
  constexpr int kLanes = 16;
  const int64_t per_row = words_per_row(tile.cols);
  __m512 sum[kHere][kThere];
  for (int t = 0; t < kHere; ++t) {
    for (int r = 0; r < kThere; ++r) sum[t][r] = _mm512_setzero_ps();
  }
  for (int64_t begin = 0; begin < tile.cols; begin += kStretch) {
    const int64_t end = std::min(tile.cols, begin + kStretch);
    __m512 total[kHere][kThere];
    for (int t = 0; t < kHere; ++t) {
      for (int r = 0; r < kThere; ++r) total[t][r] = _mm512_setzero_ps();
    }
    for (int64_t at = begin; at < end; at += kLanes) {
      const int64_t left = tile.cols - at;
      const auto inside = static_cast<__mmask16>(left >= kLanes ? 0xffffu : (1u << left) - 1u);
      __m512 weight[kThere];
      for (int r = 0; r < kThere; ++r) {
        const auto bits = static_cast<__mmask16>(tile.words[r * per_row + word_of(at)] >> bit_of(at));
        weight[r] = _mm512_maskz_loadu_ps(static_cast<__mmask16>(bits & inside), tile.weight + r * tile.cols + at);
      }
      for (int t = 0; t < kHere; ++t) {
        const __m512 x = _mm512_maskz_loadu_ps(inside, tile.x + t * tile.cols + at);
        for (int r = 0; r < kThere; ++r) total[t][r] = _mm512_fmadd_ps(weight[r], x, total[t][r]);
      }
    }
    for (int t = 0; t < kHere; ++t) {
      for (int r = 0; r < kThere; ++r) sum[t][r] = _mm512_add_ps(sum[t][r], total[t][r]);
    }
  }
  for (int t = 0; t < kHere; ++t) {
    for (int r = 0; r < kThere; ++r) sums[t][r] = _mm512_reduce_add_ps(sum[t][r]);
  }
}

#undef PRODUCT_TARGET
}  // namespace sparsekit::product_avx512
#endif

namespace sparsekit {
namespace {

// Functions by the number of tokens and rows of a tile, each counted from 1.
struct Tiles {
  TileFn of[kTokens][kRows];
};

#define SPARSEKIT_TILES(path)                                                                                           \
  {{{path::add_tile<1, 1>, path::add_tile<1, 2>}, {path::add_tile<2, 1>, path::add_tile<2, 2>},                         \
    {path::add_tile<3, 1>, path::add_tile<3, 2>}, {path::add_tile<4, 1>, path::add_tile<4, 2>},                         \
    {path::add_tile<5, 1>, path::add_tile<5, 2>}, {path::add_tile<6, 1>, path::add_tile<6, 2>},                         \
    {path::add_tile<7, 1>, path::add_tile<7, 2>}, {path::add_tile<8, 1>, path::add_tile<8, 2>}}}

const Tiles& choose_tiles(const std::string& name) {
  choose_lanes(name);  // throws for what this processor does not have
  static const Tiles scalar = SPARSEKIT_TILES(product_scalar);
#ifdef SPARSEKIT_X86_PRODUCT
  static const Tiles avx2 = SPARSEKIT_TILES(product_avx2), avx512 = SPARSEKIT_TILES(product_avx512);
  static const std::string best = lane_paths().back();
  const std::string& path = name.empty() ? best : name;
  if (path == "avx512") return avx512;
  if (path == "avx2" && __builtin_cpu_supports("fma")) return avx2;
#endif
  return scalar;
}

void multiply_rows(const MaskedProduct& p, const Tiles& tiles, int64_t first, int64_t end) {
  const int64_t per_row = words_per_row(p.cols);
  for (int64_t row = first; row < end; row += kRows) {
    const int rows = static_cast<int>(std::min<int64_t>(kRows, end - row));
    for (int64_t token = 0; token < p.tokens; token += kTokens) {
      const int tokens = static_cast<int>(std::min<int64_t>(kTokens, p.tokens - token));
      float sums[kTokens][kRows];
      const Tile tile = {p.x + token * p.cols, p.weight + row * p.cols, p.words + row * per_row, p.cols};
      tiles.of[tokens - 1][rows - 1](tile, sums);
      for (int t = 0; t < tokens; ++t) {
        for (int r = 0; r < rows; ++r) {
          p.y[(token + t) * p.rows + row + r] = p.bias == nullptr ? sums[t][r] : sums[t][r] + p.bias[row + r];
        }
      }
    }
  }
}

}  // namespace

void masked_linear(const MaskedProduct& product, int threads, const std::string& force) {
  const Tiles& tiles = choose_tiles(force);
  const int64_t tasks = (product.rows + kRowsPerTask - 1) / kRowsPerTask;
  parallel_for(threads, tasks, [&](int64_t task) {
    const int64_t first = task * kRowsPerTask;
    multiply_rows(product, tiles, first, std::min(product.rows, first + kRowsPerTask));
  });
}

}  // namespace sparsekit
