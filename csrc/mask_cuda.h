// SPDX-License-Identifier: Apache-2.0
// Packed masks on a CUDA device. Every function launches on `stream` of `device`, does not synchronise, can be captured in
// a graph, and returns a cudaError code (0 is success). Layouts as in mask_cpu.h; pointers are device pointers.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "dtypes.h"
#include "mask_cpu.h"

namespace sparsekit::cuda {

int pack_mask(const uint8_t* mask, uint32_t* words, int64_t rows, int64_t cols, int device, uintptr_t stream);
int unpack_mask(const uint32_t* words, uint8_t* mask, int64_t rows, int64_t cols, int device, uintptr_t stream);

// total: one device integer, overwritten.
int popcount(const uint32_t* words, int64_t count, int64_t* total, int device, uintptr_t stream);

// counts: device integers [pairs, 3], overwritten.
int mask_counts(const std::vector<MaskPair>& pairs, int64_t* counts, int device, uintptr_t stream);

// out_dtype is dtype, or a 16-bit type when dtype is kFloat32 (rounded to nearest even).
int mask_weights(const std::vector<MaskedTensor>& tensors, Dtype dtype, Dtype out_dtype, int device, uintptr_t stream);

std::string error_text(int code);

}  // namespace sparsekit::cuda
