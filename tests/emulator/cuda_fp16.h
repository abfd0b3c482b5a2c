// SPDX-License-Identifier: Apache-2.0
// Rounding to float16 on the emulator.
#pragma once
#include <immintrin.h>

#include "cuda_runtime.h"

struct __half {
  uint16_t bits = 0;
  __half() = default;
  explicit __half(int) {}
};

inline __half __float2half_rn(float value) {
  __half result;
  result.bits = _cvtss_sh(value, 0);
  return result;
}
