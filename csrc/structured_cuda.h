// SPDX-License-Identifier: Apache-2.0
// Structured masks on a CUDA device: structured.h with device pointers. Every function launches on `stream` of `device`,
// does not synchronise, can be captured in a graph, and returns a cudaError code (0 is success).
#pragma once
#include <cstdint>

#include "structured.h"

namespace sparsekit::cuda {

// Doubles of scratch memory that group_scores needs.
inline int64_t group_scores_scratch(const UnitGrid& grid) { return grid.leaves() == 1 ? 0 : grid.units() * grid.leaves(); }

// scratch: group_scores_scratch doubles of device memory.
int group_scores(const UnitScores& problem, double* scratch, int device, uintptr_t stream);

int expand_units(const UnitBits& units, uint32_t* words, int device, uintptr_t stream);

// invalid: one device byte that becomes 1 when a NaN meets NanPolicy::kError and otherwise stays as it is.
int nm_mask(const GroupedScores& problem, int64_t n, int64_t m, uint8_t* invalid, int device, uintptr_t stream);

// scratch: rows * channels * spatial / 16 elements of 2 bytes of device memory. invalid: as above.
int transposable_nm_mask(const GroupedScores& problem, uint16_t* scratch, uint8_t* invalid, int device, uintptr_t stream);

}  // namespace sparsekit::cuda
