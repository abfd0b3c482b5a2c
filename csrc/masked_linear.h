// SPDX-License-Identifier: Apache-2.0
// y = x @ where(m, w, 0).T + b on a CPU in one pass over the weight, for the few rows of x for which forming the masked
// weight first would cost more than the product itself.
#pragma once
#include <cstdint>
#include <string>

namespace sparsekit {

// x [tokens, cols], weight [rows, cols], words [rows, words_per_row(cols)], bias [rows] or null, y [tokens, rows]; C order.
struct MaskedProduct {
  const float* x;
  const float* weight;
  const uint32_t* words;
  const float* bias;
  float* y;
  int64_t tokens, rows, cols;
};

// Every element of y is added up by one thread in an order that depends on the instruction path alone.
void masked_linear(const MaskedProduct& product, int threads, const std::string& force);

}  // namespace sparsekit
