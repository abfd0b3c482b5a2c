// SPDX-License-Identifier: Apache-2.0
#include "bindings.h"
#include "mask_cpu.h"
#include "masked_linear.h"

namespace sparsekit {
namespace {

std::vector<MaskedTensor> masked_tensors(const Pointers& weights, const Pointers& words, const Pointers& outs,
                                         const Sizes& rows, const Sizes& cols, const Sizes& spatial) {
  const size_t count = weights.size();
  require_length("mask_weights", "words", words.size(), count);
  require_length("mask_weights", "outs", outs.size(), count);
  require_length("mask_weights", "rows", rows.size(), count);
  require_length("mask_weights", "cols", cols.size(), count);
  if (!spatial.empty()) require_length("mask_weights", "spatial", spatial.size(), count);
  std::vector<MaskedTensor> tensors;
  for (size_t i = 0; i < count; ++i) {
    require_sizes("mask_weights", rows[i], cols[i]);
    const int64_t positions = spatial.empty() ? 1 : spatial[i];
    require(positions >= 1 && cols[i] % positions == 0, "mask_weights: spatial: expected a divisor of cols " +
                                                            std::to_string(cols[i]) + ", got " + std::to_string(positions));
    tensors.push_back(
        {pointer<void>(weights[i]), pointer<uint32_t>(words[i]), pointer<void>(outs[i]), rows[i], cols[i], positions});
  }
  return tensors;
}

std::vector<MaskPair> mask_pairs(const char* function, const Pointers& before, const Pointers& after, const Sizes& sizes) {
  require_length(function, "after", after.size(), before.size());
  require_length(function, "sizes", sizes.size(), before.size());
  std::vector<MaskPair> pairs;
  for (size_t i = 0; i < before.size(); ++i) {
    require(sizes[i] >= 0, std::string(function) + ": sizes: expected sizes >= 0, got " + std::to_string(sizes[i]));
    pairs.push_back({pointer<uint32_t>(before[i]), pointer<uint32_t>(after[i]), sizes[i]});
  }
  return pairs;
}

#ifdef SPARSEKIT_CUDA
void bind_cuda(py::module_& module) {
  using namespace py::literals;
  const py::call_guard<py::gil_scoped_release> released;
  module.def("cuda_pack_mask", [](uintptr_t mask, uintptr_t words, int64_t rows, int64_t cols, int device, uintptr_t stream) {
    require_sizes("cuda_pack_mask", rows, cols);
    check(cuda::pack_mask(pointer<uint8_t>(mask), pointer<uint32_t>(words), rows, cols, device, stream));
  }, "mask"_a, "words"_a, "rows"_a, "cols"_a, "device"_a, "stream"_a, released);
  module.def("cuda_unpack_mask", [](uintptr_t words, uintptr_t mask, int64_t rows, int64_t cols, int device, uintptr_t stream) {
    require_sizes("cuda_unpack_mask", rows, cols);
    check(cuda::unpack_mask(pointer<uint32_t>(words), pointer<uint8_t>(mask), rows, cols, device, stream));
  }, "words"_a, "mask"_a, "rows"_a, "cols"_a, "device"_a, "stream"_a, released);
  module.def("cuda_popcount", [](uintptr_t words, int64_t count, uintptr_t out, int device, uintptr_t stream) {
    check(cuda::popcount(pointer<uint32_t>(words), count, pointer<int64_t>(out), device, stream));
  }, "words"_a, "count"_a, "out"_a, "device"_a, "stream"_a, released);
  module.def("cuda_mask_counts", [](const Pointers& before, const Pointers& after, const Sizes& sizes, uintptr_t counts,
                                    int device, uintptr_t stream) {
    check(cuda::mask_counts(mask_pairs("cuda_mask_counts", before, after, sizes), pointer<int64_t>(counts), device, stream));
  }, "before"_a, "after"_a, "sizes"_a, "counts"_a, "device"_a, "stream"_a, released);
  module.def("cuda_mask_weights", [](const Pointers& weights, const Pointers& words, const Pointers& outs, const Sizes& rows,
                                     const Sizes& cols, int dtype, int out_dtype, const Sizes& spatial, int device,
                                     uintptr_t stream) {
    const Dtype from = dtype_of(dtype), to = dtype_of(out_dtype);
    require(from == to || (from == Dtype::kFloat32 && itemsize(to) == 2),
            "cuda_mask_weights: out_dtype: expected dtype, or a 16-bit type for float32, got " + std::to_string(out_dtype));
    check(cuda::mask_weights(masked_tensors(weights, words, outs, rows, cols, spatial), from, to, device, stream));
  }, "weights"_a, "words"_a, "outs"_a, "rows"_a, "cols"_a, "dtype"_a, "out_dtype"_a, "spatial"_a, "device"_a, "stream"_a,
             released);
}
#endif

}  // namespace

void bind_masks(py::module_& module) {
  using namespace py::literals;
  const py::call_guard<py::gil_scoped_release> released;
  module.def("pack_mask", [](uintptr_t mask, uintptr_t words, int64_t rows, int64_t cols, int threads) {
    require_sizes("pack_mask", rows, cols);
    pack_mask(pointer<uint8_t>(mask), pointer<uint32_t>(words), rows, cols, threads);
  }, "mask"_a, "words"_a, "rows"_a, "cols"_a, "threads"_a = 1, released);
  module.def("masked_linear", [](uintptr_t x, uintptr_t weight, uintptr_t words, uintptr_t bias, uintptr_t y, int64_t tokens,
                                 int64_t rows, int64_t cols, int threads, const std::string& force) {
    require_sizes("masked_linear", rows, cols);
    require(tokens >= 0, "masked_linear: tokens: expected a size >= 0, got " + std::to_string(tokens));
    masked_linear({pointer<float>(x), pointer<float>(weight), pointer<uint32_t>(words), pointer<float>(bias), pointer<float>(y),
                   tokens, rows, cols}, threads, force);
  }, "x"_a, "weight"_a, "words"_a, "bias"_a, "y"_a, "tokens"_a, "rows"_a, "cols"_a, "threads"_a = 1, "force"_a = "", released);
  module.def("unpack_mask", [](uintptr_t words, uintptr_t mask, int64_t rows, int64_t cols, int threads) {
    require_sizes("unpack_mask", rows, cols);
    unpack_mask(pointer<uint32_t>(words), pointer<uint8_t>(mask), rows, cols, threads);
  }, "words"_a, "mask"_a, "rows"_a, "cols"_a, "threads"_a = 1, released);
  module.def("popcount", [](uintptr_t words, int64_t count, int threads) {
    return popcount(pointer<uint32_t>(words), count, threads);
  }, "words"_a, "count"_a, "threads"_a = 1, released);
  module.def("mask_counts", [](const Pointers& before, const Pointers& after, const Sizes& sizes, uintptr_t counts, int threads,
                               const std::string& force) {
    mask_counts(mask_pairs("mask_counts", before, after, sizes), pointer<int64_t>(counts), threads, force);
  }, "before"_a, "after"_a, "sizes"_a, "counts"_a, "threads"_a = 1, "force"_a = "", released);
  module.def("mask_weights", [](const Pointers& weights, const Pointers& words, const Pointers& outs, const Sizes& rows,
                                const Sizes& cols, int itemsize, const Sizes& spatial, int threads, const std::string& force) {
    mask_weights(masked_tensors(weights, words, outs, rows, cols, spatial), itemsize, threads, force);
  }, "weights"_a, "words"_a, "outs"_a, "rows"_a, "cols"_a, "itemsize"_a, "spatial"_a = Sizes{}, "threads"_a = 1, "force"_a = "",
             released);
#ifdef SPARSEKIT_CUDA
  bind_cuda(module);
#endif
}

}  // namespace sparsekit
