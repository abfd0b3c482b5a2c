// SPDX-License-Identifier: Apache-2.0
// Exact top-k masks on a CUDA device: a kernel that fills the workspace, and one whose blocks go through rounds together.
#include <cooperative_groups.h>

#include <atomic>
#include <type_traits>

#include "topk_decide.cuh"
#include "topk_mask_cuda.h"

namespace sparsekit::cuda {
namespace {

// Kernel arguments may take 32 KB from CUDA 12.1 on.
#if defined(CUDART_VERSION) && CUDART_VERSION >= 12010
constexpr int kTensorsPerLaunch = 440;
#else
constexpr int kTensorsPerLaunch = 52;
#endif

struct Filled {
  TensorEntry tensors[kTensorsPerLaunch];
  int64_t kept[kTensorsPerLaunch];
  int64_t first;  // number of the first of these tensors
  int count;
};

// The only segment of a global selection; numel < 0 if every tensor is a segment.
struct Whole {
  int64_t numel, kept, active;
};

// Writes the table of tensors, clears the bins, and starts the segments.
template <class U>
__global__ void fill_kernel(const __grid_constant__ Workspace<U> w, const __grid_constant__ Filled filled, Whole whole) {
  const int64_t thread = thread_index();
  if (filled.first == 0) {
    for (int64_t bin = thread; bin < w.segment_count * 2 * kTopkBins; bin += thread_count()) w.bins[bin] = 0;
    if (thread == 0) {
      w.control->active = static_cast<Counter>(whole.active);
      *w.invalid = 0;
      if (whole.numel >= 0) {
        Segment<U>& segment = w.segments[0];
        segment.first_tile = segment.first_tensor = segment.first_candidate = 0;
        segment.tiles = w.tile_count;
        segment.tensors = w.tensor_count;
        begin_segment(segment, whole.numel, whole.kept, w, 0);
      }
    }
  }
  for (int64_t i = thread; i < filled.count; i += thread_count()) {
    const TensorEntry& tensor = filled.tensors[i];
    w.tensors[filled.first + i] = tensor;
    if (whole.numel >= 0) continue;
    Segment<U>& segment = w.segments[tensor.segment];
    const int64_t words = tensor.rows * words_per_row(tensor.cols);
    segment.first_tile = tensor.first_tile;
    segment.tiles = (words + kTileWords - 1) / kTileWords;
    segment.first_tensor = filled.first + i;
    segment.tensors = 1;
    segment.first_candidate = tensor.first_candidate;
    begin_segment(segment, tensor.rows * tensor.cols, filled.kept[i], w, tensor.segment);
  }
}

template <class U, bool kMagnitude>
__global__ void __launch_bounds__(kTopkThreads, sizeof(U) == 8 ? 2 : 3) topk_kernel(const __grid_constant__ Workspace<U> w) {
  SPARSEKIT_SHARED(Shared<U>, shared);
  const auto grid = cooperative_groups::this_grid();
  for (int bin = static_cast<int>(threadIdx.x); bin < kTopkBins; bin += kTopkThreads) shared.bins[bin] = 0;
  if (threadIdx.x == 0) shared.segment = -1;
  __syncthreads();
  while (*static_cast<volatile Counter*>(&w.control->active) != 0) {
    sample_pass<kMagnitude>(shared, w);
    for (int64_t tile = blockIdx.x; tile < w.tile_count; tile += gridDim.x) {
      const TensorEntry& tensor = tensor_of(w.tensors, w.tensor_count, tile);
      const Phase phase = w.segments[tensor.segment].phase;
      if (phase == Phase::kScan) scan_tile<kMagnitude>(shared, w, tensor, tile);
      else if (phase == Phase::kBins) bins_tile<kMagnitude>(shared, w, tensor, tile);
      else if (phase == Phase::kTies) ties_tile<kMagnitude>(w, tensor, tile);
    }
    flush_bins(shared, w, false);
    candidates_pass(w);
    boundaries_pass(shared, w);
    grid.sync();
    for (int64_t s = blockIdx.x; s < w.segment_count; s += gridDim.x) decide(shared, w, s);
    grid.sync();
  }
}

int64_t aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }

// Hands out memory of the workspace; from a null pointer it only counts.
class Arena {
 public:
  explicit Arena(void* start) : start_(static_cast<char*>(start)) {}
  template <class T>
  T* take(int64_t count) {
    T* const result = start_ ? reinterpret_cast<T*>(start_ + used_) : nullptr;
    used_ += aligned(count * static_cast<int64_t>(sizeof(T)));
    return result;
  }
  int64_t used() const { return used_; }

 private:
  char* start_;
  int64_t used_ = 0;
};

// The tensors as the kernels see them, and the sizes of the workspace.
struct Plan {
  std::vector<TensorEntry> tensors;
  std::vector<int64_t> kept;
  int64_t numel = 0, tiles = 0, candidates = 0, segments = 0, active = 0;

  Plan(const std::vector<ScoreTensor>& scores, const std::vector<int64_t>& budgets, bool per_tensor) {
    for (size_t i = 0; i < scores.size(); ++i) {
      const ScoreTensor& s = scores[i];
      const bool flat = s.cols % kWordBits == 0 || s.rows == 1;
      TensorEntry entry{s.scores, s.words, flat ? 1 : s.rows, flat ? s.numel() : s.cols, tiles, per_tensor ? 0 : numel,
                        per_tensor ? static_cast<int64_t>(i) : 0, candidates};
      numel += s.numel();
      if (s.numel() == 0 && !per_tensor) continue;
      tensors.push_back(entry);
      kept.push_back(per_tensor ? budgets[i] : 0);
      if (s.numel() > 0) tiles += (entry.rows * words_per_row(entry.cols) + kTileWords - 1) / kTileWords;
      if (per_tensor) candidates += s.numel() / kCollectShare + kSlack;
      active += per_tensor && s.numel() > 0;
    }
    segments = per_tensor ? static_cast<int64_t>(scores.size()) : 1;
    if (!per_tensor) {
      candidates = numel / kCollectShare + kSlack;
      active = numel > 0;
    }
  }
};

template <class U>
Workspace<U> lay_out(const Plan& plan, const SelectOptions& options, void* memory, int64_t* bytes) {
  Arena arena(memory);
  Workspace<U> w{nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr,
                 KeySpec<U>(options.dtype, options.key, options.nan), 0, 0, 0, false, false, false};
  w.control = arena.take<Control>(1);
  w.segments = arena.take<Segment<U>>(plan.segments);
  w.tensors = arena.take<TensorEntry>(static_cast<int64_t>(plan.tensors.size()));
  w.tiles = arena.take<TileCounts>(plan.tiles);
  w.bins = arena.take<Counter>(plan.segments * 2 * kTopkBins);
  w.gathered = arena.take<Gathered>(plan.segments * kGathered);
  w.candidates = arena.take<Candidate<U>>(plan.candidates);
  w.segment_count = plan.segments;
  w.tensor_count = static_cast<int64_t>(plan.tensors.size());
  w.tile_count = plan.tiles;
  w.report_nan = options.nan == NanPolicy::kError;
  w.keep_nan = options.nan == NanPolicy::kKeep;
  w.radix = options.method == Method::kRadix;
  *bytes = arena.used();
  return w;
}

// The most blocks that the device runs at once, or an error code below 0.
template <class Kernel>
int64_t resident_blocks(Kernel kernel, int device) {
  int processors = 0, each = 0, cooperative = 0;
  cudaError_t code = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (code == cudaSuccess) code = cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device);
  if (code == cudaSuccess && cooperative == 0) code = cudaErrorNotSupported;
  if (code == cudaSuccess) code = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, kTopkThreads, 0);
  if (code == cudaSuccess && processors * each == 0) code = cudaErrorInvalidValue;
  return code == cudaSuccess ? int64_t{processors} * each : -static_cast<int64_t>(code);
}

template <class U>
cudaError_t fill(const Workspace<U>& w, const Plan& plan, int64_t kept, bool per_tensor, uintptr_t stream) {
  const Whole whole{per_tensor ? -1 : plan.numel, kept, plan.active};
  size_t next = 0;
  do {
    static thread_local Filled filled;
    filled.first = static_cast<int64_t>(next);
    filled.count = 0;
    for (; next < plan.tensors.size() && filled.count < kTensorsPerLaunch; ++next, ++filled.count) {
      filled.tensors[filled.count] = plan.tensors[next];
      filled.kept[filled.count] = plan.kept[next];
    }
    const int64_t blocks = std::min<int64_t>(128, 1 + w.segment_count * 2 * kTopkBins / 2048);
    const cudaError_t code = launch(&fill_kernel<U>, blocks, 256, stream, false, w, filled, whole);
    if (code != cudaSuccess) return code;
  } while (next < plan.tensors.size());
  return cudaSuccess;
}

template <class U, bool kMagnitude>
int select(const Plan& plan, int64_t kept, bool per_tensor, const SelectOptions& options, const TopkOutputs& outputs,
           int64_t max_blocks, int device, uintptr_t stream) {
  int64_t bytes = 0;
  Workspace<U> w = lay_out<U>(plan, options, outputs.workspace, &bytes);
  if (bytes > outputs.workspace_bytes) return cudaErrorInvalidValue;
  w.invalid = outputs.invalid;
  w.warm = outputs.warm;
  // Asking the driver takes longer than the launch, and the answer never changes.
  static std::atomic<int64_t> known[64];
  std::atomic<int64_t>& resident = known[device % 64];
  if (resident <= 0) resident = resident_blocks(&topk_kernel<U, kMagnitude>, device);
  if (resident <= 0) return static_cast<int>(-resident);
  int64_t blocks = std::max<int64_t>(1, std::min<int64_t>(resident, std::max(plan.tiles, plan.segments)));
  if (max_blocks > 0) blocks = std::min(blocks, max_blocks);
  const cudaError_t code = fill(w, plan, kept, per_tensor, stream);
  if (code != cudaSuccess) return code;
  return launch(&topk_kernel<U, kMagnitude>, blocks, kTopkThreads, stream, true, w);
}

}  // namespace

int64_t topk_workspace(const std::vector<ScoreTensor>& scores, bool per_tensor, Dtype dtype) {
  const Plan plan(scores, std::vector<int64_t>(scores.size()), per_tensor);
  const SelectOptions options{dtype, KeyKind::kValue, NanPolicy::kDrop, 1, ""};
  return for_width(dtype, [&](auto bits) {
    int64_t bytes = 0;
    lay_out<decltype(bits)>(plan, options, nullptr, &bytes);
    return bytes;
  });
}

int topk_mask(const std::vector<ScoreTensor>& scores, const std::vector<int64_t>& kept, bool per_tensor,
              const SelectOptions& options, const TopkOutputs& outputs, int64_t max_blocks, int device, uintptr_t stream) {
  const DeviceGuard guard(device);
  if (guard.code() != cudaSuccess) return guard.code();
  const Plan plan(scores, kept, per_tensor);
  const int64_t budget = per_tensor ? 0 : kept[0];
  return for_width(options.dtype, [&](auto bits) {
    using U = decltype(bits);
    const auto run = options.key == KeyKind::kMagnitude ? &select<U, true> : &select<U, false>;
    return run(plan, budget, per_tensor, options, outputs, max_blocks, device, stream);
  });
}

}  // namespace sparsekit::cuda
