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
  // Numbers below 2^-14 are subnormal in 16 bits only: as the fraction of one between 2^-14 and 2^-13, less 2^-14, they are
  // exact in 32 bits, and no float on the way is subnormal, which the processor may have been told to take for zero.
  constexpr uint32_t kLeast = 113u << 23;  // 2^-14
  const uint32_t magnitude = value.bits & 0x7fffu, fraction = magnitude << 13;
  const uint32_t small = bits_of_float(float_of_bits((fraction & 0x007fffffu) | kLeast) - float_of_bits(kLeast));
  const uint32_t large = magnitude < 0x7c00u ? fraction + (112u << 23) : fraction | 0x7f800000u;
  return float_of_bits((magnitude < 0x0400u ? small : large) | static_cast<uint32_t>(value.bits & 0x8000u) << 16);
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
