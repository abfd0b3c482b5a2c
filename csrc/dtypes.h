// SPDX-License-Identifier: Apache-2.0
// Element types of scores and weights, by the codes that Python passes.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>

namespace sparsekit {

enum class Dtype : int { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2, kFloat16 = 3 };

inline Dtype dtype_of(int code) {
  if (code < 0 || code > 3) throw std::invalid_argument("dtype: expected a code of _C.dtypes, got " + std::to_string(code));
  return static_cast<Dtype>(code);
}

inline int itemsize(Dtype dtype) { return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2; }

// Bit pattern of +infinity: every larger pattern without its sign bit is a NaN.
inline uint64_t infinity_bits(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32: return 0x7f800000u;
    case Dtype::kFloat64: return 0x7ff0000000000000u;
    case Dtype::kBFloat16: return 0x7f80u;
    default: return 0x7c00u;
  }
}

// Calls call(U{}) with the unsigned type of the dtype's width.
template <class Call>
auto for_width(Dtype dtype, const Call& call) {
  switch (itemsize(dtype)) {
    case 2: return call(uint16_t{});
    case 4: return call(uint32_t{});
    default: return call(uint64_t{});
  }
}

}  // namespace sparsekit
