// SPDX-License-Identifier: Apache-2.0
// Scores of every element type as double, 16-bit ones as float too, exactly; for the CPU and the CUDA part alike.
#pragma once
#include <cstdint>
#include <cstring>

#include "dtypes.h"
#include "pack_bits.h"

namespace sparsekit {

// Raw 16-bit scores; the C++ types tell them apart.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

SPARSEKIT_BOTH float float_of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
SPARSEKIT_BOTH uint32_t bits_of_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

SPARSEKIT_BOTH float as_float(BFloat16 value) { return float_of_bits(static_cast<uint32_t>(value.bits) << 16); }
SPARSEKIT_BOTH float as_float(Half value) {
  // The exponent is moved by a product, which is exact and serves subnormal numbers too; only that of inf and NaN is set.
  const float scaled = float_of_bits(static_cast<uint32_t>(value.bits & 0x7fffu) << 13) * 0x1p112f;
  const uint32_t special = (value.bits & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
  return float_of_bits(bits_of_float(scaled) | special | static_cast<uint32_t>(value.bits & 0x8000u) << 16);
}

SPARSEKIT_BOTH double as_double(float value) { return value; }
SPARSEKIT_BOTH double as_double(double value) { return value; }
SPARSEKIT_BOTH double as_double(BFloat16 value) { return as_float(value); }
SPARSEKIT_BOTH double as_double(Half value) { return as_float(value); }

// Calls visit(T{}) with the element type of dtype.
template <class Visit>
auto with_score_type(Dtype dtype, const Visit& visit) {
  switch (dtype) {
    case Dtype::kFloat32: return visit(float{});
    case Dtype::kFloat64: return visit(double{});
    case Dtype::kBFloat16: return visit(BFloat16{});
    default: return visit(Half{});
  }
}

}  // namespace sparsekit
