// SPDX-License-Identifier: Apache-2.0
// Steps that every entry of a list of tensors takes on its own, given a gradient and a mask bit: what goes in and comes out.
// Their arithmetic is in step_math.h.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "dtypes.h"
#include "score_values.h"

#ifdef __CUDACC__
#define SPARSEKIT_STEP __host__ __device__ __forceinline__
#else
#define SPARSEKIT_STEP __attribute__((always_inline)) inline
#endif

namespace sparsekit {

constexpr int kOperands = 3;

// Tensors of one weight's shape and layout (spatial as in mask_cpu.h), and the words of its mask. Which operand is what
// stands with each step; those that a step neither reads nor writes may be null, and two may be the same tensor.
struct StepTensor {
  void* operands[kOperands];
  const void* grad;
  const uint32_t* words;
  int64_t rows, cols, spatial;
};

// Numbers that change from step to step: from memory of the device where they are known only there, else from the host.
struct Rates {
  const double* device;
  double host[3];

  SPARSEKIT_STEP double operator[](int i) const { return device == nullptr ? host[i] : device[i]; }
};

enum class ScoreStep { kMagnitude, kValue, kReleased };

// rates: learning rate. first: the momentum starts here, whatever it holds.
struct BilevelOptions {
  Rates rates;
  double momentum, decay, inverse_gamma;
  ScoreStep key;
  bool first;
};

// rates: learning rate.
struct SgdOptions {
  Rates rates;
  double momentum, dampening, decay;
  bool nesterov, first;
};

// rates: factor of the weight (its decay), step size, root of the correction of the second moment.
struct AdamwOptions {
  Rates rates;
  double beta1, beta2, eps;
};

// Of non-negative numbers; the 64-bit division of a device is several times slower.
SPARSEKIT_STEP int64_t quotient(int64_t a, int64_t b) {
  return ((a | b) >> 32) == 0 ? static_cast<uint32_t>(a) / static_cast<uint32_t>(b) : a / b;
}

// Bits of the n <= 32 entries of a row that lie behind each other in memory from in_row on, a multiple of n.
SPARSEKIT_STEP uint32_t active_bits(const StepTensor& tensor, int64_t row, int64_t in_row, int n) {
  const uint32_t* const words = tensor.words + row * words_per_row(tensor.cols);
  if (tensor.spatial == 1) return words[word_of(in_row)] >> bit_of(in_row);
  const int64_t channels = quotient(tensor.cols, tensor.spatial);
  int64_t position = quotient(in_row, channels), channel = in_row - position * channels;
  uint32_t bits = 0;
  for (int i = 0; i < n; ++i) {
    const int64_t col = channel * tensor.spatial + position;
    bits |= static_cast<uint32_t>(test_bit(words[word_of(col)], bit_of(col))) << i;
    if (++channel == channels) {
      channel = 0;
      ++position;
    }
  }
  return bits;
}

// Rows without padding bits follow each other like one row.
inline StepTensor joined_rows(StepTensor tensor) {
  if (tensor.spatial == 1 && tensor.cols % kWordBits == 0) {
    tensor.cols *= tensor.rows;
    tensor.rows = 1;
  }
  return tensor;
}

// Calls visit(C{}, G{}) with the types of operands and gradients: equal, or 16-bit gradients of float32.
template <class Visit>
auto with_step_types(Dtype dtype, Dtype grad, const Visit& visit) {
  if (dtype == Dtype::kFloat64) return visit(double{}, double{});
  switch (grad) {
    case Dtype::kBFloat16: return visit(float{}, BFloat16{});
    case Dtype::kFloat16: return visit(float{}, Half{});
    default: return visit(float{}, float{});
  }
}

// dtype: of the operands, kFloat32 or kFloat64; grad: of the gradients, the same, or a 16-bit type for kFloat32.
void bilinear_grads(const std::vector<StepTensor>& tensors, Dtype dtype, Dtype grad, int threads, const std::string& force);
void bilevel_update(const std::vector<StepTensor>& tensors, const BilevelOptions& options, Dtype dtype, Dtype grad, int threads,
                    const std::string& force);
void masked_sgd(const std::vector<StepTensor>& tensors, const SgdOptions& options, Dtype dtype, Dtype grad, int threads,
                const std::string& force);
void masked_adamw(const std::vector<StepTensor>& tensors, const AdamwOptions& options, Dtype dtype, Dtype grad, int threads,
                  const std::string& force);

namespace cuda {

// As above on `stream` of `device`: no synchronisation, graphs can capture them; a cudaError code (0 is success).
int bilinear_grads(const std::vector<StepTensor>& tensors, Dtype dtype, Dtype grad, int device, uintptr_t stream);
int bilevel_update(const std::vector<StepTensor>& tensors, const BilevelOptions& options, Dtype dtype, Dtype grad, int device,
                   uintptr_t stream);
int masked_sgd(const std::vector<StepTensor>& tensors, const SgdOptions& options, Dtype dtype, Dtype grad, int device,
               uintptr_t stream);
int masked_adamw(const std::vector<StepTensor>& tensors, const AdamwOptions& options, Dtype dtype, Dtype grad, int device,
                 uintptr_t stream);

}  // namespace cuda
}  // namespace sparsekit
