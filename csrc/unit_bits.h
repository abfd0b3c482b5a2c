// SPDX-License-Identifier: Apache-2.0
// A word of an element mask from the bits of the units it lies in; for the CPU and the CUDA part alike.
#pragma once
#include <cstdint>

#include "pack_bits.h"
#include "structured.h"

namespace sparsekit {

// Word `word` of the rows that belong to row `a` of the grid.
SPARSEKIT_BOTH uint32_t expanded_word(const UnitBits& units, int64_t a, int64_t word) {
  const UnitGrid& grid = units.grid;
  const int64_t wide = grid.wide();
  // In a list the units of row a start at bit a * wide; otherwise each row of the grid has words of its own.
  const uint32_t* const bits = units.listed ? units.bits : units.bits + a * words_per_row(wide);
  const int64_t first = units.listed ? a * wide : 0;
  const int64_t begin = word * kWordBits, end = begin + kWordBits < grid.cols ? begin + kWordBits : grid.cols;
  // A bit per column already.
  if (grid.w == 1 && (!units.listed || grid.high() == 1)) return bits[word] & valid_bits(end - begin);
  uint32_t result = 0;
  int64_t unit = begin / grid.w;
  for (int64_t col = begin; col < end; ++unit) {
    const int64_t next = (unit + 1) * grid.w, stop = next < end ? next : end;
    if (test_bit(bits[word_of(first + unit)], bit_of(first + unit))) result |= valid_bits(stop - col) << (col - begin);
    col = stop;
  }
  return result;
}

}  // namespace sparsekit
