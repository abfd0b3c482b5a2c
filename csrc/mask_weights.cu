// SPDX-License-Identifier: Apache-2.0
// Packed masks on a CUDA device: packing, unpacking, counting, and where(mask, weight, 0) for a list of tensors.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "device.cuh"
#include "mask_cuda.h"
#include "pack_bits.h"

namespace sparsekit::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 20;  // beyond it the grid strides
constexpr int kTensorsPerLaunch = 72;    // the table must fit in the 4 KiB of kernel arguments

unsigned blocks_for(int64_t threads) {
  return static_cast<unsigned>(std::max<int64_t>(1, std::min(kMaxBlocks, (threads + kThreads - 1) / kThreads)));
}

// One warp per word, one lane per element.
__global__ void pack_kernel(const uint8_t* mask, uint32_t* words, int64_t rows, int64_t cols) {
  const int64_t per_row = words_per_row(cols), total = rows * per_row;
  const int lane = threadIdx.x & 31;
  for (int64_t word = thread_index() >> 5; word < total; word += thread_count() >> 5) {
    const int64_t row = divide(word, per_row), col = (word - row * per_row) * kWordBits + lane;
    const uint32_t bits = __ballot_sync(~0u, col < cols && mask[row * cols + col] != 0);
    if (lane == 0) words[word] = bits;
  }
}

__global__ void unpack_kernel(const uint32_t* words, uint8_t* mask, int64_t rows, int64_t cols) {
  const int64_t per_row = words_per_row(cols);
  for (int64_t at = thread_index(); at < rows * cols; at += thread_count()) {
    const int64_t row = divide(at, cols), col = at - row * cols;
    mask[at] = test_bit(words[row * per_row + word_of(col)], bit_of(col)) ? 1 : 0;
  }
}

__global__ void popcount_kernel(const uint32_t* words, int64_t count, unsigned long long* total) {
  unsigned long long bits = 0;
  for (int64_t i = thread_index(); i < count; i += thread_count()) bits += __popc(words[i]);
  for (int offset = 16; offset > 0; offset /= 2) bits += __shfl_down_sync(~0u, bits, offset);
  if ((threadIdx.x & 31) == 0 && bits != 0) atomicAdd(total, bits);
}

struct Table {
  MaskedTensor tensors[kTensorsPerLaunch];
  int64_t first_block[kTensorsPerLaunch + 1];
  int count;
};
static_assert(sizeof(Table) <= 4096, "the arguments of a kernel have to fit");

template <class T>
struct Cast {
  __device__ static T of(T value) { return value; }
};
struct ToBFloat16 {
  __device__ static __nv_bfloat16 of(float value) { return __float2bfloat16_rn(value); }
};
struct ToHalf {
  __device__ static __half of(float value) { return __float2half_rn(value); }
};

// Each thread handles kWidth consecutive elements of one row.
template <class In, class Out, class Convert, int kWidth>
__global__ void mask_weights_kernel(const __grid_constant__ Table table) {
  struct alignas(sizeof(In) * kWidth) InPack { In items[kWidth]; };
  struct alignas(sizeof(Out) * kWidth) OutPack { Out items[kWidth]; };
  int index = 0;
  for (int high = table.count; high - index > 1;) {
    const int middle = (index + high) / 2;
    if (table.first_block[middle] <= blockIdx.x) index = middle;
    else high = middle;
  }
  const MaskedTensor& tensor = table.tensors[index];
  const int64_t at = ((blockIdx.x - table.first_block[index]) * kThreads + threadIdx.x) * kWidth;
  if (at >= tensor.rows * tensor.cols) return;
  const int64_t row = tensor.rows == 1 ? 0 : divide(at, tensor.cols), in_row = at - row * tensor.cols;
  const int64_t channels = tensor.spatial == 1 ? tensor.cols : divide(tensor.cols, tensor.spatial);
  int64_t position = tensor.spatial == 1 ? 0 : divide(in_row, channels), channel = in_row - position * channels;
  const uint32_t* const words = tensor.words + row * words_per_row(tensor.cols);
  const InPack in = *reinterpret_cast<const InPack*>(static_cast<const In*>(tensor.weight) + at);
  OutPack out;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    const int64_t col = channel * tensor.spatial + position;
    out.items[i] = test_bit(words[word_of(col)], bit_of(col)) ? Convert::of(in.items[i]) : Out(0);
    if (++channel == channels) {
      channel = 0;
      ++position;
    }
  }
  *reinterpret_cast<OutPack*>(static_cast<Out*>(tensor.out) + at) = out;
}

template <class In, class Out, class Convert, int kWidth>
cudaError_t launch_tables(const std::vector<MaskedTensor>& tensors, uintptr_t stream) {
  for (size_t next = 0; next < tensors.size();) {
    Table table{};
    for (; next < tensors.size() && table.count < kTensorsPerLaunch; ++next) {
      const int64_t numel = tensors[next].rows * tensors[next].cols;
      if (numel == 0) continue;
      const int64_t blocks = (numel / kWidth + kThreads - 1) / kThreads;
      table.tensors[table.count] = tensors[next];
      table.first_block[table.count + 1] = table.first_block[table.count] + blocks;
      ++table.count;
    }
    if (table.count == 0) break;
    const unsigned blocks = static_cast<unsigned>(table.first_block[table.count]);
    const cudaError_t code = launch(&mask_weights_kernel<In, Out, Convert, kWidth>, blocks, kThreads, stream, false, table);
    if (code != cudaSuccess) return code;
  }
  return cudaSuccess;
}

bool aligned(const void* pointer, size_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

// Wide accesses where rows and pointers allow them, single elements elsewhere.
template <class In, class Out, class Convert>
cudaError_t launch_all(const std::vector<MaskedTensor>& tensors, uintptr_t stream) {
  constexpr int kWidth = 16 / sizeof(In);
  std::vector<MaskedTensor> wide, narrow;
  for (MaskedTensor tensor : tensors) {
    // Rows without padding bits follow each other like one row.
    if (tensor.spatial == 1 && tensor.cols % kWordBits == 0) {
      tensor.cols *= tensor.rows;
      tensor.rows = 1;
    }
    const bool fits = tensor.cols % kWidth == 0 && aligned(tensor.weight, 16) && aligned(tensor.out, kWidth * sizeof(Out));
    (fits ? wide : narrow).push_back(tensor);
  }
  const cudaError_t code = launch_tables<In, Out, Convert, kWidth>(wide, stream);
  return code != cudaSuccess ? code : launch_tables<In, Out, Convert, 1>(narrow, stream);
}

}  // namespace

int pack_mask(const uint8_t* mask, uint32_t* words, int64_t rows, int64_t cols, int device, uintptr_t stream) {
  const DeviceGuard guard(device);
  if (guard.code() != cudaSuccess || rows * cols == 0) return guard.code();
  const int64_t threads = rows * words_per_row(cols) * kWordBits;
  return launch(&pack_kernel, blocks_for(threads), kThreads, stream, false, mask, words, rows, cols);
}

int unpack_mask(const uint32_t* words, uint8_t* mask, int64_t rows, int64_t cols, int device, uintptr_t stream) {
  const DeviceGuard guard(device);
  if (guard.code() != cudaSuccess || rows * cols == 0) return guard.code();
  return launch(&unpack_kernel, blocks_for(rows * cols), kThreads, stream, false, words, mask, rows, cols);
}

int popcount(const uint32_t* words, int64_t count, int64_t* total, int device, uintptr_t stream) {
  const DeviceGuard guard(device);
  if (guard.code() != cudaSuccess) return guard.code();
  const cudaError_t code = cudaMemsetAsync(total, 0, sizeof(int64_t), reinterpret_cast<cudaStream_t>(stream));
  if (code != cudaSuccess || count == 0) return code;
  const unsigned blocks = std::min(1024u, blocks_for(count));
  return launch(&popcount_kernel, blocks, kThreads, stream, false, words, count, reinterpret_cast<unsigned long long*>(total));
}

int mask_weights(const std::vector<MaskedTensor>& tensors, Dtype dtype, Dtype out_dtype, int device, uintptr_t stream) {
  const DeviceGuard guard(device);
  if (guard.code() != cudaSuccess) return guard.code();
  if (dtype != out_dtype) {
    return out_dtype == Dtype::kBFloat16 ? launch_all<float, __nv_bfloat16, ToBFloat16>(tensors, stream)
                                         : launch_all<float, __half, ToHalf>(tensors, stream);
  }
  switch (itemsize(dtype)) {
    case 2: return launch_all<uint16_t, uint16_t, Cast<uint16_t>>(tensors, stream);
    case 4: return launch_all<uint32_t, uint32_t, Cast<uint32_t>>(tensors, stream);
    default: return launch_all<uint64_t, uint64_t, Cast<uint64_t>>(tensors, stream);
  }
}

std::string error_text(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }

}  // namespace sparsekit::cuda
