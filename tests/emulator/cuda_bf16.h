// SPDX-License-Identifier: Apache-2.0
// Rounding to bfloat16 on the emulator.
#pragma once
#include "cuda_runtime.h"

struct __nv_bfloat16 {
  uint16_t bits = 0;
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(int) {}
};

inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  __nv_bfloat16 result;
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  result.bits = static_cast<uint16_t>(is_nan ? 0x7fffu : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  return result;
}
