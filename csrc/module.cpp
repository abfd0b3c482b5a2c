// SPDX-License-Identifier: Apache-2.0
// The Python module sparsekit._C: pointers, sizes and codes in, exceptions out. It knows nothing of torch.
#include "bindings.h"
#include "lanes.h"

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
mask_counts(before, after, sizes, counts, threads=1, force="")
mask_weights(weights, words, outs, rows, cols, itemsize, spatial=[], threads=1, force="")
masked_linear(x, weight, words, bias, y, tokens, rows, cols, threads=1, force="")
topk_mask(scores, words, rows, cols, kept, dtype, key="magnitude", nan="error", threads=1, force="", warm=0,
          method="bracket") -> int
topk_mask_rows(scores, words, rows, cols, kept, dtype, key="magnitude", nan="error", threads=1, force="") -> int
key_histogram(scores, sizes, counts, first, shift, bins, dtype, key="magnitude", nan="error", threads=1, force="")
mask_at_threshold(scores, words, rows, cols, threshold, ties, dtype, key="magnitude", nan="error", threads=1, force="")
group_scores(scores, out, rows, cols, h, w, dtype, p=2, key="magnitude", threads=1, force="")
expand_units(units, words, rows, cols, h, w, listed, threads=1)
nm_mask(scores, words, rows, channels, spatial, n, m, dtype, key="magnitude", nan="error", threads=1, force="") -> int
transposable_nm_mask(scores, words, rows, channels, spatial, dtype, key="magnitude", nan="error", threads=1,
                     force="") -> int
bilinear_grads, bilevel_update, masked_sgd, masked_adamw(operands, grads, words, rows, cols, spatial, dtype, grad_dtype,
                                                         rates=[], numbers=[], key="", threads=1, force="")

cuda_pack_mask(mask, words, rows, cols, device, stream)
cuda_unpack_mask(words, mask, rows, cols, device, stream)
cuda_popcount(words, count, out, device, stream)
cuda_mask_counts(before, after, sizes, counts, device, stream)
cuda_mask_weights(weights, words, outs, rows, cols, dtype, out_dtype, spatial, device, stream)
cuda_topk_workspace(rows, cols, per_tensor, dtype) -> int
cuda_topk_mask(scores, words, rows, cols, kept, per_tensor, dtype, key, nan, invalid, warm, workspace, workspace_bytes,
               device, stream, method="bracket", max_blocks=0)
cuda_topk_mask_rows(scores, words, rows, cols, kept, dtype, key, nan, invalid, device, stream)
group_scores_scratch(rows, cols, h, w) -> int
cuda_group_scores(scores, out, scratch, rows, cols, h, w, dtype, p, key, device, stream)
cuda_expand_units(units, words, rows, cols, h, w, listed, device, stream)
cuda_nm_mask(scores, words, rows, channels, spatial, n, m, dtype, key, nan, invalid, device, stream)
cuda_transposable_nm_mask(scores, words, scratch, rows, channels, spatial, dtype, key, nan, invalid, device,
                          stream)
cuda_bilinear_grads, ..., cuda_masked_adamw(operands, grads, words, rows, cols, spatial, dtype, grad_dtype, rates, numbers,
                                            key, device_rates, device, stream)

Arguments in the plural are lists with one entry per tensor, except `counts`, the address of int64 [tensors, 3]: set bits of
`before`, of `after` and of both, for masks of sizes[i] words. topk_mask makes one selection of `kept` elements over all
tensors, topk_mask_rows one in each row; both return the number of NaN. key: "value" or "magnitude"; nan: "error" (counted,
then like "drop"), "drop" (never kept), "keep" (largest). Ties: the first in (tensor, flat index) order are kept.
cuda_topk_mask takes kept as a list, of one number or with per_tensor of one for each tensor; it writes the byte `invalid`
(a NaN under "error"), cuda_topk_mask_rows sets it to 1 or leaves it. max_blocks limits the grid, 0 does not.
warm: address of int64 [low, high, valid], where the next selection from similar scores looks first; read and written.
method: "bracket", or "radix" for histograms of all scores alone, which is slower.
key_histogram and mask_at_threshold work on integer keys that order the scores: k = bits of |s|, or ~k for negative values; NaN
has the lowest key, -2^(bits - 1), or with "keep" the highest but one. counts: int64 [tensors, bins], where bin b holds the keys
whose distance above `first` is in [b << shift, (b + 1) << shift). The mask has the keys above the threshold, and in tensor i the
first ties[i] equal to it. Neither `first` nor the threshold is the lowest or the highest key.
masked_linear is y = x @ where(m, weight, 0).T + bias in float32, for few rows of x; bias may be 0.
spatial[i] > 1: weight and out are channels-last with that many spatial positions; an empty list means 1 everywhere.

A unit is an h x w rectangle of the scores [rows, cols], smaller at the edges; group_scores writes the p-norm of each, or
with key "value" its sum, as float32 (float64 for float64): [ceil(rows / h), ceil(cols / w)]. expand_units takes a bit per
unit, packed as a mask of that shape or, if `listed`, as one row. nm_mask keeps the n largest of every m consecutive
channels of [rows, channels * spatial], transposable_nm_mask two in each row and column of every tile of 4 rows x 4
channels; both return the number of NaN. On a device a NaN under "error" sets the byte `invalid` to 1; scratch of
group_scores are group_scores_scratch() doubles, of transposable_nm_mask rows * channels * spatial / 16 elements of 2 bytes.

Steps take three operands for each tensor, one after the other (0: not used), of dtype float32 or float64, and its
gradient, of the same or for float32 of a 16-bit type; layout as `spatial` says. With m the mask, w a weight, g its gradient:
bilinear_grads  operands w, where(m, g, 0), w * g: the latter two are written
bilevel_update  operands scores, w, momentum; rates [lr], numbers [momentum, weight decay, 1/gamma, first], key "magnitude",
                "value" or "released"
masked_sgd      operands w, momentum, 0; rates [lr], numbers [momentum, dampening, weight decay, nesterov, first]
masked_adamw    operands w, first moment, second moment; rates [1 - lr * weight decay, step size, root of the second
                correction], numbers [beta1, beta2, eps]
device_rates: address of the rates as doubles on the device, or 0. first: the momentum starts with this step.)";

}  // namespace

PYBIND11_MODULE(_C, module) {
  using namespace pybind11::literals;
  module.doc() = kDoc;
  module.attr("dtypes") = pybind11::dict("float32"_a = 0, "float64"_a = 1, "bfloat16"_a = 2, "float16"_a = 3);
  module.def("cpu_features", &sparsekit::lane_paths);
#ifdef SPARSEKIT_CUDA
  module.attr("has_cuda") = true;
#else
  module.attr("has_cuda") = false;
#endif
  sparsekit::bind_masks(module);
  sparsekit::bind_topk(module);
  sparsekit::bind_threshold(module);
  sparsekit::bind_groups(module);
  sparsekit::bind_steps(module);
}
