// SPDX-License-Identifier: Apache-2.0
// The Python module sparsekit._C: pointers, sizes and codes in, exceptions out. It knows nothing of torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>

#include "lanes.h"
#include "mask_cpu.h"
#include "mask_cuda.h"
#include "topk_mask.h"

namespace py = pybind11;
using namespace sparsekit;
using Pointers = std::vector<uintptr_t>;
using Sizes = std::vector<int64_t>;

namespace {

constexpr const char* kDoc = R"(Compiled kernels on raw memory.

Pointers are integers from Tensor.data_ptr(). A mask [rows, cols] is packed in int32 words [rows, ceil(cols / 32)]: bit i
(least significant first) of word j is column 32 * j + i, padding bits are zero. Memory is contiguous in logical order
unless `spatial` says otherwise. The interpreter lock is released. Bad arguments raise ValueError, device errors RuntimeError.

has_cuda: bool                  the CUDA functions are built in (a device may still be missing)
dtypes: dict[str, int]          codes of "float32", "float64", "bfloat16", "float16"
cpu_features() -> list[str]     instruction paths of this processor, worst first; `force` takes one of them

pack_mask(mask, words, rows, cols, threads=1)
unpack_mask(words, mask, rows, cols, threads=1)
popcount(words, count, threads=1) -> int
mask_weights(weights, words, outs, rows, cols, itemsize, spatial=[], threads=1, force="")
topk_mask(scores, words, rows, cols, kept, dtype, key="magnitude", nan="error", threads=1, force="") -> int
topk_mask_rows(scores, words, rows, cols, kept, dtype, key="magnitude", nan="error", threads=1, force="") -> int

cuda_pack_mask(mask, words, rows, cols, device, stream)
cuda_unpack_mask(words, mask, rows, cols, device, stream)
cuda_popcount(words, count, out, device, stream)
cuda_mask_weights(weights, words, outs, rows, cols, dtype, out_dtype, spatial, device, stream)

Arguments in the plural are lists with one entry per tensor. topk_mask makes one selection of `kept` elements over all
tensors, topk_mask_rows one in each row; both return the number of NaN. key: "value" or "magnitude"; nan: "error" (counted,
then like "drop"), "drop" (never kept), "keep" (largest). Ties: the first in (tensor, flat index) order are kept.
spatial[i] > 1: weight and out are channels-last with that many spatial positions; an empty list means 1 everywhere.)";

void require(bool holds, const std::string& message) {
  if (!holds) throw std::invalid_argument(message);
}

void require_sizes(const char* function, int64_t rows, int64_t cols) {
  require(rows >= 0 && cols >= 0, std::string(function) + ": rows, cols: expected sizes >= 0, got " + std::to_string(rows) +
                                      ", " + std::to_string(cols));
}

void require_length(const char* function, const char* argument, size_t got, size_t expected) {
  require(got == expected, std::string(function) + ": " + argument + ": expected " + std::to_string(expected) +
                               " entries, got " + std::to_string(got));
}

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

template <class T>
T named(const char* argument, const std::map<std::string, T>& values, const std::string& name) {
  const auto found = values.find(name);
  std::string known;
  for (const auto& value : values) known += (known.empty() ? "" : ", ") + value.first;
  require(found != values.end(), std::string("topk_mask: ") + argument + ": expected one of " + known + ", got " + name);
  return found->second;
}

SelectOptions options_of(int dtype, const std::string& key, const std::string& nan, int threads, const std::string& force) {
  static const std::map<std::string, KeyKind> keys = {{"value", KeyKind::kValue}, {"magnitude", KeyKind::kMagnitude}};
  static const std::map<std::string, NanPolicy> policies = {
      {"error", NanPolicy::kError}, {"drop", NanPolicy::kDrop}, {"keep", NanPolicy::kKeep}};
  return {dtype_of(dtype), named("key", keys, key), named("nan", policies, nan), threads, force};
}

int64_t topk(const Pointers& scores, const Pointers& words, const Sizes& rows, const Sizes& cols, int64_t kept, int dtype,
             const std::string& key, const std::string& nan, int threads, const std::string& force) {
  const SelectOptions options = options_of(dtype, key, nan, threads, force);
  require_length("topk_mask", "words", words.size(), scores.size());
  require_length("topk_mask", "rows", rows.size(), scores.size());
  require_length("topk_mask", "cols", cols.size(), scores.size());
  std::vector<ScoreTensor> tensors;
  int64_t numel = 0;
  for (size_t i = 0; i < scores.size(); ++i) {
    require_sizes("topk_mask", rows[i], cols[i]);
    tensors.push_back({pointer<void>(scores[i]), pointer<uint32_t>(words[i]), rows[i], cols[i]});
    numel += rows[i] * cols[i];
  }
  require(0 <= kept && kept <= numel,
          "topk_mask: kept: expected 0 to " + std::to_string(numel) + ", got " + std::to_string(kept));
  return topk_mask(tensors, kept, options);
}

int64_t topk_rows(uintptr_t scores, uintptr_t words, int64_t rows, int64_t cols, int64_t kept, int dtype,
                  const std::string& key, const std::string& nan, int threads, const std::string& force) {
  const SelectOptions options = options_of(dtype, key, nan, threads, force);
  require_sizes("topk_mask_rows", rows, cols);
  require(0 <= kept && kept <= cols,
          "topk_mask_rows: kept: expected 0 to " + std::to_string(cols) + ", got " + std::to_string(kept));
  return topk_mask_rows({pointer<void>(scores), pointer<uint32_t>(words), rows, cols}, kept, options);
}

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

#ifdef SPARSEKIT_CUDA
void check(int code) {
  if (code != 0) throw std::runtime_error("CUDA error " + std::to_string(code) + ": " + cuda::error_text(code));
}

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

PYBIND11_MODULE(_C, module) {
  using namespace py::literals;
  const py::call_guard<py::gil_scoped_release> released;
  module.doc() = kDoc;
  module.attr("dtypes") = py::dict("float32"_a = 0, "float64"_a = 1, "bfloat16"_a = 2, "float16"_a = 3);
  module.def("cpu_features", &lane_paths);
  module.def("pack_mask", [](uintptr_t mask, uintptr_t words, int64_t rows, int64_t cols, int threads) {
    require_sizes("pack_mask", rows, cols);
    pack_mask(pointer<uint8_t>(mask), pointer<uint32_t>(words), rows, cols, threads);
  }, "mask"_a, "words"_a, "rows"_a, "cols"_a, "threads"_a = 1, released);
  module.def("unpack_mask", [](uintptr_t words, uintptr_t mask, int64_t rows, int64_t cols, int threads) {
    require_sizes("unpack_mask", rows, cols);
    unpack_mask(pointer<uint32_t>(words), pointer<uint8_t>(mask), rows, cols, threads);
  }, "words"_a, "mask"_a, "rows"_a, "cols"_a, "threads"_a = 1, released);
  module.def("popcount", [](uintptr_t words, int64_t count, int threads) {
    return popcount(pointer<uint32_t>(words), count, threads);
  }, "words"_a, "count"_a, "threads"_a = 1, released);
  module.def("mask_weights", [](const Pointers& weights, const Pointers& words, const Pointers& outs, const Sizes& rows,
                                const Sizes& cols, int itemsize, const Sizes& spatial, int threads, const std::string& force) {
    mask_weights(masked_tensors(weights, words, outs, rows, cols, spatial), itemsize, threads, force);
  }, "weights"_a, "words"_a, "outs"_a, "rows"_a, "cols"_a, "itemsize"_a, "spatial"_a = Sizes{}, "threads"_a = 1, "force"_a = "",
             released);
  module.def("topk_mask", &topk, "scores"_a, "words"_a, "rows"_a, "cols"_a, "kept"_a, "dtype"_a, "key"_a = "magnitude",
             "nan"_a = "error", "threads"_a = 1, "force"_a = "", released);
  module.def("topk_mask_rows", &topk_rows, "scores"_a, "words"_a, "rows"_a, "cols"_a, "kept"_a, "dtype"_a,
             "key"_a = "magnitude", "nan"_a = "error", "threads"_a = 1, "force"_a = "", released);
#ifdef SPARSEKIT_CUDA
  module.attr("has_cuda") = true;
  bind_cuda(module);
#else
  module.attr("has_cuda") = false;
#endif
}
