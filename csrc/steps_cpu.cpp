// SPDX-License-Identifier: Apache-2.0
#include "steps.h"

#include <algorithm>

#include "lanes.h"
#include "memory_order.h"
#include "parallel.h"
#include "step_math.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-math-errno")  // nobody reads errno, and without it a root is one instruction
#endif

#define LANES_NAMESPACE steps_scalar
#define LANES_TARGET
#include "steps.inl"

#if defined(__x86_64__) && defined(__GNUC__)
#define SPARSEKIT_X86_STEPS 1

#define LANES_NAMESPACE steps_avx2
#define LANES_TARGET __attribute__((target("avx2,fma,bmi,bmi2,popcnt")))
#include "steps.inl"

#define LANES_NAMESPACE steps_avx512
#define LANES_TARGET \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi,bmi2,popcnt,prefer-vector-width=512")))
#include "steps.inl"
#endif

namespace sparsekit {
namespace {

constexpr int64_t kTaskBlocks = 1 << 11;  // of 32 entries: what one task handles

template <class C, class G, class Step>
using TakeSteps = void (*)(const StepTensor&, const Step&, int64_t, int64_t);

template <class C, class G, class Step>
TakeSteps<C, G, Step> chosen(const std::string& force) {
  choose_lanes(force);  // throws for what this processor does not have
#ifdef SPARSEKIT_X86_STEPS
  static const std::string best = lane_paths().back();
  const std::string& path = force.empty() ? best : force;
  // Every processor with AVX2 so far has FMA as well, but they are asked for one by one.
  const bool fused = __builtin_cpu_supports("fma");
  if (fused && path == "avx512") return steps_avx512::take_steps<C, G, Step>;
  if (fused && path == "avx2") return steps_avx2::take_steps<C, G, Step>;
#endif
  return steps_scalar::take_steps<C, G, Step>;
}

struct Task {
  size_t tensor;
  int64_t first, last;
};

template <class C, class G, class Step>
void run(std::vector<StepTensor> tensors, Step step, int threads, const std::string& force) {
  const TakeSteps<C, G, Step> take = chosen<C, G, Step>(force);
  step.resolve();
  std::vector<std::vector<uint32_t>> own;
  order_by_memory(tensors, own, threads, force);
  std::vector<StepTensor> joined;
  std::vector<Task> tasks;
  int64_t blocks = 0;
  for (const StepTensor& tensor : tensors) {
    joined.push_back(joined_rows(tensor));
    const int64_t count = joined.back().rows * words_per_row(joined.back().cols);
    blocks += count;
    for (int64_t first = 0; first < count; first += kTaskBlocks) {
      tasks.push_back({joined.size() - 1, first, std::min(count, first + kTaskBlocks)});
    }
  }
  // A thread costs as much as this many blocks.
  const int64_t worth = std::min<int64_t>(threads, 1 + blocks / (2 * kTaskBlocks));
  parallel_for(static_cast<int>(worth), static_cast<int64_t>(tasks.size()), [&](int64_t i) {
    const Task& task = tasks[static_cast<size_t>(i)];
    take(joined[task.tensor], step, task.first, task.last);
  });
}

}  // namespace

void bilinear_grads(const std::vector<StepTensor>& tensors, Dtype dtype, Dtype grad, int threads, const std::string& force) {
  with_step_types(dtype, grad, [&](auto c, auto g) {
    run<decltype(c), decltype(g)>(tensors, BilinearGrads<decltype(c)>{}, threads, force);
  });
}

void bilevel_update(const std::vector<StepTensor>& tensors, const BilevelOptions& options, Dtype dtype, Dtype grad, int threads,
                    const std::string& force) {
  with_step_types(dtype, grad, [&](auto c, auto g) {
    run<decltype(c), decltype(g)>(tensors, BilevelUpdate<decltype(c)>(options), threads, force);
  });
}

void masked_sgd(const std::vector<StepTensor>& tensors, const SgdOptions& options, Dtype dtype, Dtype grad, int threads,
                const std::string& force) {
  with_step_types(dtype, grad, [&](auto c, auto g) {
    run<decltype(c), decltype(g)>(tensors, MaskedSgd<decltype(c)>(options), threads, force);
  });
}

void masked_adamw(const std::vector<StepTensor>& tensors, const AdamwOptions& options, Dtype dtype, Dtype grad, int threads,
                  const std::string& force) {
  with_step_types(dtype, grad, [&](auto c, auto g) {
    run<decltype(c), decltype(g)>(tensors, MaskedAdamw<decltype(c)>(options), threads, force);
  });
}

}  // namespace sparsekit
