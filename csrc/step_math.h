// SPDX-License-Identifier: Apache-2.0
// The arithmetic of the steps of steps.h, for the CPU and the CUDA part alike.
//
// Every product and sum rounds once, except where `fused` says that a product is not rounded before it is added: there
// PyTorch does the same on processors that can. So the results are those of PyTorch's chain of calls, and do not depend on
// the instruction set, the number of threads, or CPU or device.
#pragma once
#include "steps.h"

namespace sparsekit {

namespace step_math {

SPARSEKIT_STEP float widened(float value) { return value; }
SPARSEKIT_STEP double widened(double value) { return value; }
SPARSEKIT_STEP float widened(BFloat16 value) { return as_float(value); }
SPARSEKIT_STEP float widened(Half value) { return as_float(value); }

// A product that no compiler joins with the sum it goes into.
SPARSEKIT_STEP float product(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;  // the CPU part is compiled with -ffp-contract=off
#endif
}
SPARSEKIT_STEP double product(double a, double b) {
#ifdef __CUDA_ARCH__
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

// a * b + c, rounded once.
SPARSEKIT_STEP float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
SPARSEKIT_STEP double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }

SPARSEKIT_STEP float root(float value) { return __builtin_sqrtf(value); }
SPARSEKIT_STEP double root(double value) { return __builtin_sqrt(value); }

}  // namespace step_math

// Operands: weight, where(bit, grad, 0), weight * grad.
template <class C>
struct BilinearGrads {
  SPARSEKIT_STEP void resolve() {}
  SPARSEKIT_STEP unsigned reads() const { return 0b001; }
  SPARSEKIT_STEP unsigned writes() const { return 0b110; }
  SPARSEKIT_STEP void operator()(bool active, C grad, C* v) const {
    v[1] = active ? grad : C(0);
    v[2] = step_math::product(v[0], grad);
  }
};

// Operands: scores, weight, momentum. The bit enters the gradient; every score moves.
template <class C>
struct BilevelUpdate {
  Rates rates;
  C rate, momentum, decay, inverse_gamma;
  ScoreStep key;
  bool first;

  explicit BilevelUpdate(const BilevelOptions& o)
      : rates(o.rates), rate(0), momentum(static_cast<C>(o.momentum)), decay(static_cast<C>(o.decay)),
        inverse_gamma(static_cast<C>(o.inverse_gamma)), key(o.key), first(o.first) {}
  SPARSEKIT_STEP void resolve() { rate = static_cast<C>(rates[0]); }
  SPARSEKIT_STEP unsigned reads() const { return momentum != 0 && !first ? 0b111 : 0b011; }
  SPARSEKIT_STEP unsigned writes() const { return momentum != 0 ? 0b101 : 0b001; }

  SPARSEKIT_STEP C gradient(bool active, C score, C weight, C grad) const {
    const C direct = step_math::product(weight, grad);
    if (key == ScoreStep::kReleased) {
      const C sign = static_cast<C>((score > 0) - (score < 0)), own = step_math::product(sign, direct);
      return own - step_math::product(step_math::product(inverse_gamma, own), own);
    }
    // A square that overflows is no number times zero, neither under a zero bit nor for an infinite gamma.
    const C square = active && inverse_gamma != 0 ? step_math::product(step_math::product(grad, grad), inverse_gamma) : C(0);
    const C total = direct - square;
    return key == ScoreStep::kMagnitude && score < 0 ? -total : total;
  }

  SPARSEKIT_STEP void operator()(bool active, C grad, C* v) const {
    C g = gradient(active, v[0], v[1], grad);
    if (decay != 0) g = step_math::fused(decay, v[0], g);
    if (momentum != 0) {
      g = first ? g : step_math::product(v[2], momentum) + g;
      v[2] = g;
    }
    v[0] = step_math::fused(-rate, g, v[0]);
  }
};

// Operands: weight, momentum. Entries without a bit, and their momentum, stay as they are.
template <class C>
struct MaskedSgd {
  Rates rates;
  C rate, momentum, undamped, decay;
  bool nesterov, first;

  explicit MaskedSgd(const SgdOptions& o)
      : rates(o.rates), rate(0), momentum(static_cast<C>(o.momentum)), undamped(static_cast<C>(1 - o.dampening)),
        decay(static_cast<C>(o.decay)), nesterov(o.nesterov), first(o.first) {}
  SPARSEKIT_STEP void resolve() { rate = static_cast<C>(rates[0]); }
  SPARSEKIT_STEP unsigned reads() const { return momentum != 0 ? 0b011 : 0b001; }
  SPARSEKIT_STEP unsigned writes() const { return reads(); }

  SPARSEKIT_STEP void operator()(bool active, C grad, C* v) const {
    C g = grad;
    if (decay != 0) g = step_math::fused(decay, v[0], g);
    if (momentum != 0) {
      const C moved = first ? g : step_math::fused(undamped, g, step_math::product(v[1], momentum));
      g = nesterov ? step_math::fused(momentum, moved, g) : moved;
      v[1] = active ? moved : v[1];
    }
    v[0] = active ? step_math::fused(-rate, g, v[0]) : v[0];
  }
};

// Operands: weight, first moment, second moment. Entries without a bit, and their moments, stay as they are.
template <class C>
struct MaskedAdamw {
  Rates rates;
  C keep, size, root, near, beta2, far, eps;

  explicit MaskedAdamw(const AdamwOptions& o)
      : rates(o.rates), keep(1), size(0), root(1), near(static_cast<C>(1 - o.beta1)), beta2(static_cast<C>(o.beta2)),
        far(static_cast<C>(1 - o.beta2)), eps(static_cast<C>(o.eps)) {}
  SPARSEKIT_STEP void resolve() {
    keep = static_cast<C>(rates[0]);
    size = static_cast<C>(-rates[1]);
    root = static_cast<C>(rates[2]);
  }
  SPARSEKIT_STEP unsigned reads() const { return 0b111; }
  SPARSEKIT_STEP unsigned writes() const { return 0b111; }

  SPARSEKIT_STEP void operator()(bool active, C grad, C* v) const {
    const C apart = grad - v[1];
    // As torch.lerp: from the nearer end.
    const C mean = near < C(0.5) ? step_math::fused(near, apart, v[1]) : step_math::fused(near - 1, apart, grad);
    const C square = step_math::fused(step_math::product(far, grad), grad, step_math::product(v[2], beta2));
    const C below = step_math::root(square) / root + eps;
    const C weight = step_math::product(v[0], keep) + step_math::product(size, mean) / below;
    v[0] = active ? weight : v[0];
    v[1] = active ? mean : v[1];
    v[2] = active ? square : v[2];
  }
};

}  // namespace sparsekit
