// SPDX-License-Identifier: Apache-2.0
// Steps on a CUDA device: every tensor of a list in one launch, up to kTensorsPerLaunch of them.
#include "steps.h"

#include "device.cuh"
#include "group_order.h"
#include "step_math.h"

namespace sparsekit::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTensorsPerLaunch = 56;
constexpr size_t kArgumentBytes = 4096;  // of a kernel; every driver has as many

struct Table {
  StepTensor tensors[kTensorsPerLaunch];
  uint32_t first_block[kTensorsPerLaunch + 1];
  int count;
};

template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth) Pack {
  T items[kWidth];
};

// Each thread handles kWidth entries that lie behind each other in one row.
template <class C, class G, class Step, int kWidth>
__global__ void __launch_bounds__(kThreads) step_kernel(const __grid_constant__ Table table,
                                                        const __grid_constant__ Step given) {
  int index = 0;
  for (int high = table.count; high - index > 1;) {
    const int middle = (index + high) / 2;
    if (table.first_block[middle] <= blockIdx.x) index = middle;
    else high = middle;
  }
  const StepTensor& tensor = table.tensors[index];
  const int64_t at = (static_cast<int64_t>(blockIdx.x - table.first_block[index]) * kThreads + threadIdx.x) * kWidth;
  if (at >= tensor.rows * tensor.cols) return;
  const int64_t row = tensor.rows == 1 ? 0 : divide(at, tensor.cols);
  const uint32_t bits = active_bits(tensor, row, at - row * tensor.cols, kWidth);
  Step step = given;
  step.resolve();
  // Read by this thread before it writes them, and by no other.
  Pack<C, kWidth> values[kOperands] = {};
#pragma unroll
  for (int r = 0; r < kOperands; ++r) {
    if (step.reads() >> r & 1u) {
      values[r] = *reinterpret_cast<const Pack<C, kWidth>*>(in_device_memory(static_cast<const C*>(tensor.operands[r])) + at);
    }
  }
  const auto grads = *reinterpret_cast<const Pack<G, kWidth>*>(in_device_memory(static_cast<const G*>(tensor.grad)) + at);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    C own[kOperands] = {values[0].items[i], values[1].items[i], values[2].items[i]};
    step((bits >> i & 1u) != 0, step_math::widened(grads.items[i]), own);
#pragma unroll
    for (int r = 0; r < kOperands; ++r) values[r].items[i] = own[r];
  }
#pragma unroll
  for (int r = 0; r < kOperands; ++r) {
    if (step.writes() >> r & 1u) {
      *reinterpret_cast<Pack<C, kWidth>*>(in_device_memory(static_cast<C*>(tensor.operands[r])) + at) = values[r];
    }
  }
}

template <class C, class G, class Step, int kWidth>
cudaError_t launch_tables(const std::vector<StepTensor>& tensors, const Step& step, uintptr_t stream) {
  static_assert(sizeof(Table) + sizeof(Step) <= kArgumentBytes, "the arguments of a kernel have to fit");
  for (size_t next = 0; next < tensors.size();) {
    Table table{};
    for (; next < tensors.size() && table.count < kTensorsPerLaunch; ++next) {
      const int64_t blocks = ceil_divide(tensors[next].rows * tensors[next].cols / kWidth, kThreads);
      if (table.first_block[table.count] + blocks > INT32_MAX) break;  // the grid is full
      table.tensors[table.count] = tensors[next];
      table.first_block[table.count + 1] = table.first_block[table.count] + static_cast<uint32_t>(blocks);
      ++table.count;
    }
    if (table.count == 0) return cudaErrorInvalidValue;
    const uint32_t blocks = table.first_block[table.count];
    const cudaError_t code = launch(&step_kernel<C, G, Step, kWidth>, blocks, kThreads, stream, false, table, step);
    if (code != cudaSuccess) return code;
  }
  return cudaSuccess;
}

bool aligned(const void* pointer, size_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

// Wide accesses where rows and pointers allow them, single entries elsewhere.
template <class C, class G, class Step>
cudaError_t launch_all(const std::vector<StepTensor>& tensors, const Step& step, int device, uintptr_t stream) {
  const DeviceGuard guard(device);
  if (guard.code() != cudaSuccess) return guard.code();
  constexpr int kWidth = 16 / sizeof(C);
  std::vector<StepTensor> wide, narrow;
  for (const StepTensor& given : tensors) {
    const StepTensor tensor = joined_rows(given);
    if (tensor.rows * tensor.cols == 0) continue;
    bool fits = tensor.cols % kWidth == 0 && aligned(tensor.grad, kWidth * sizeof(G));
    for (const void* operand : tensor.operands) fits = fits && aligned(operand, 16);
    (fits ? wide : narrow).push_back(tensor);
  }
  const cudaError_t code = launch_tables<C, G, Step, kWidth>(wide, step, stream);
  return code != cudaSuccess ? code : launch_tables<C, G, Step, 1>(narrow, step, stream);
}

}  // namespace

int bilinear_grads(const std::vector<StepTensor>& tensors, Dtype dtype, Dtype grad, int device, uintptr_t stream) {
  return with_step_types(dtype, grad, [&](auto c, auto g) {
    return launch_all<decltype(c), decltype(g)>(tensors, BilinearGrads<decltype(c)>{}, device, stream);
  });
}

int bilevel_update(const std::vector<StepTensor>& tensors, const BilevelOptions& options, Dtype dtype, Dtype grad, int device,
                   uintptr_t stream) {
  return with_step_types(dtype, grad, [&](auto c, auto g) {
    return launch_all<decltype(c), decltype(g)>(tensors, BilevelUpdate<decltype(c)>(options), device, stream);
  });
}

int masked_sgd(const std::vector<StepTensor>& tensors, const SgdOptions& options, Dtype dtype, Dtype grad, int device,
               uintptr_t stream) {
  return with_step_types(dtype, grad, [&](auto c, auto g) {
    return launch_all<decltype(c), decltype(g)>(tensors, MaskedSgd<decltype(c)>(options), device, stream);
  });
}

int masked_adamw(const std::vector<StepTensor>& tensors, const AdamwOptions& options, Dtype dtype, Dtype grad, int device,
                 uintptr_t stream) {
  return with_step_types(dtype, grad, [&](auto c, auto g) {
    return launch_all<decltype(c), decltype(g)>(tensors, MaskedAdamw<decltype(c)>(options), device, stream);
  });
}

}  // namespace sparsekit::cuda
