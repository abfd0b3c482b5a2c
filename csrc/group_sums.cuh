// SPDX-License-Identifier: Apache-2.0
// Pieces of the kernels that add up units on a CUDA device: terms, sums in a thread and a warp, loads, results.
#pragma once
#include "device.cuh"
#include "group_order.h"
#include "score_values.h"
#include "structured_cuda.h"

namespace sparsekit::cuda {

constexpr int kOwn = kLanes / kWarp;  // adjacent lanes that a thread of a warp owns

// Sums and maxima need a kernel each; which term goes into a sum is decided at run time, at a few instructions per score.
enum class Family { kSums, kLargest, kPowers };

template <Family kFamily>
__device__ inline double term_of(double score, const UnitScores& problem) {
  if constexpr (kFamily == Family::kLargest) return fabs(score);
  if constexpr (kFamily == Family::kPowers) return term<Reduction::kPower>(score, problem.p);
  const double value = problem.reduction == Reduction::kSum ? score : fabs(score);
  return product(value, problem.reduction == Reduction::kTwo ? value : 1.0);
}

template <Family kFamily>
__device__ inline double add(double a, double b) {
  return combine<kFamily == Family::kLargest>(a, b);
}

__device__ inline void write_unit(const UnitScores& problem, int64_t unit, double total) {
  if (problem.dtype == Dtype::kFloat64) {
    static_cast<double*>(problem.out)[unit] = finish<double>(problem.reduction, total, problem.p);
  } else {
    static_cast<float*>(problem.out)[unit] = finish<float>(problem.reduction, total, problem.p);
  }
}

// Adds the lanes of a warp, kOwn adjacent ones in each thread, in adjacent pairs; all threads get the sum.
template <Family kFamily>
__device__ inline double add_pairs(double* own) {
#pragma unroll
  for (int apart = 1; apart < kOwn; apart *= 2) {
#pragma unroll
    for (int i = 0; i < kOwn; i += 2 * apart) own[i] = add<kFamily>(own[i], own[i + apart]);
  }
  double total = own[0];
#pragma unroll
  for (int apart = 1; apart < kWarp; apart *= 2) total = add<kFamily>(total, __shfl_xor_sync(kAll, total, apart));
  return total;
}

template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth) Pack {
  T items[kWidth];
};

template <Family kFamily, class T, int kWidth>
__device__ inline void add_pack(const Pack<T, kWidth>& pack, const UnitScores& problem, double* lanes) {
#pragma unroll
  for (int e = 0; e < kWidth; ++e) lanes[e] = add<kFamily>(lanes[e], term_of<kFamily>(as_double(pack.items[e]), problem));
}

// kOwn adjacent scores of which `left` are there; kWidth of them are read at once.
template <class T, int kWidth>
__device__ inline void load_own(const T* scores, int64_t left, Pack<T, kWidth>* own) {
#pragma unroll
  for (int i = 0; i < kOwn / kWidth; ++i) {
    own[i] = {};
    if (i * kWidth < left) own[i] = *reinterpret_cast<const Pack<T, kWidth>*>(scores + i * kWidth);
  }
}

}  // namespace sparsekit::cuda
