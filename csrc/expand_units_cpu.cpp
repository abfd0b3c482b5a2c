// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "parallel.h"
#include "structured.h"
#include "unit_bits.h"

namespace sparsekit {

void expand_units(const UnitBits& units, uint32_t* words, int threads) {
  constexpr int64_t kTaskWords = 1 << 13;
  const UnitGrid& grid = units.grid;
  const int64_t per_row = words_per_row(grid.cols), step = std::max<int64_t>(1, kTaskWords / std::max<int64_t>(1, per_row));
  parallel_for(threads, ceil_divide(grid.rows, step), [&](int64_t task) {
    int64_t made = -1;  // the row of the grid whose words the row above has
    for (int64_t row = task * step; row < std::min(grid.rows, (task + 1) * step); ++row) {
      uint32_t* const own = words + row * per_row;
      const int64_t a = row / grid.h;
      if (a == made) {
        std::copy(own - per_row, own, own);
        continue;
      }
      for (int64_t word = 0; word < per_row; ++word) own[word] = expanded_word(units, a, word);
      made = a;
    }
  });
}

}  // namespace sparsekit
