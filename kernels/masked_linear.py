# SPDX-License-Identifier: Apache-2.0
"""Masked matrix products with packed bits: ``y = x z^T`` with ``z = where(m, w, 0)``, and the gradients at x and at w.

The mask is read as 32-bit words and expanded in registers, so a masked layer moves one bit more per weight than a dense
one. The two products with the weight compute the transpose of their result: the masked weight is then the first operand
of the dot, which Hopper's tensor cores take from registers; as the second one it would have to go back to shared memory.
Sums are fp32 and run in a fixed order, so results are the same in every run.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import triton
from torch import Tensor

from sparsekit.kernels.masked_linear_configs import GradientConfig, ProductConfig, kind_of, split_for
from sparsekit.kernels.masked_linear_kernels import gradient_kernel, product_kernel, sum_kernel

ACTIVATIONS = ("relu", "gelu", "silu")
_SUM_BLOCK = 1024
# Named in every launch, because Triton is about to change what it does by default.
_FUSION: dict[str, Any] = {"enable_fp_fusion": True}


def uses_tf32() -> bool:
    """Does PyTorch's setting allow fp32 products on CUDA to round their operands to tf32?"""
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def _precision(dtype: torch.dtype) -> str:
    return "tf32" if dtype == torch.float32 and uses_tf32() else "ieee"


def _processors(tensor: Tensor) -> int:
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count if tensor.is_cuda else 1


def _rows(tensor: Tensor) -> Tensor:
    """The tensor with its last dimension contiguous in memory and no row twice in the same place."""
    return tensor if tensor.stride(1) == 1 and tensor.stride(0) >= tensor.shape[1] else tensor.contiguous()


def _check(function: str, x: Tensor, weight: torch.dtype, words: Tensor, shape: tuple[int, int]) -> None:
    if kind_of(x.dtype, weight, False) is None:
        raise TypeError(f"{function}: no kernel for {x.dtype} with a weight of {weight}")
    expected = (shape[0], -(-shape[1] // 32))
    if words.dtype != torch.int32 or tuple(words.shape) != expected:
        raise ValueError(f"{function}: words: expected int32 {expected}, got {words.dtype} {tuple(words.shape)}")


def _product(
    x: Tensor,
    weight: Tensor,
    words: Tensor,
    bias: Tensor | None,
    activation: str | None,
    config: ProductConfig,
    transposed: bool,
) -> Tensor:
    """``x z^T`` [tokens, out], or ``x z`` [tokens, in] where transposed; x [tokens, depth]."""
    x, weight, words = _rows(x), _rows(weight), words.contiguous()
    (tokens, depth), features = x.shape, weight.shape[1 if transposed else 0]
    out = torch.empty(tokens, features, dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    split = split_for(config, tokens, features, depth, _processors(x))
    target = out if split == 1 else torch.empty(split, tokens, features, dtype=torch.float32, device=x.device)
    last: dict[str, Any] = {"HAS_BIAS": bias is not None, "ACTIVATION": activation or "none", "SPLIT": split}
    bias = out if bias is None else bias.contiguous()  # a pointer that is not read
    grid = (triton.cdiv(tokens, config.tokens), triton.cdiv(features, config.features), split)
    with torch.cuda.device_of(x):
        product_kernel[grid](
            *(x, weight, words, bias, target, tokens, features, depth, words.shape[1], x.stride(0), weight.stride(0)),
            TRANSPOSED=transposed,
            PRECISION=_precision(x.dtype),
            EVEN_DEPTH=depth % config.depth == 0,
            BLOCK_F=config.features,
            BLOCK_T=config.tokens,
            BLOCK_D=config.depth,
            **last,
            num_warps=config.warps,
            num_stages=config.stages,
            **_FUSION,
        )
        if split > 1:
            blocks = (triton.cdiv(out.numel(), _SUM_BLOCK),)
            sum_kernel[blocks](target, bias, out, out.numel(), features, **last, BLOCK=_SUM_BLOCK, **_FUSION)
    return out


def masked_linear(
    x: Tensor,
    weight: Tensor,
    words: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    *,
    config: ProductConfig,
) -> Tensor:
    """``activation(x where(m, weight, 0)^T + bias)``.

    Args:
        x: [tokens, in] fp32, bf16 or fp16, any strides.
        weight: [out, in], the dtype of x, or fp32 (cast to that of x in registers), any strides.
        words: int32 [out, ceil(in/32)], the packed mask m; bits beyond ``in`` are not used.
        bias: [out] or None.
        activation: None, "relu", "gelu" (the exact one) or "silu", applied to the fp32 sums.
        config: tiles.

    Returns:
        [tokens, out] in the dtype of x.

    Raises:
        TypeError, ValueError: dtypes without a kernel, words of another shape, an unknown activation.
    """
    _check("masked_linear", x, weight.dtype, words, (weight.shape[0], weight.shape[1]))
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(f"masked_linear: activation: expected None or one of {ACTIVATIONS}, got {activation!r}")
    return _product(x, weight, words, bias, activation, config, False)


def masked_linear_dx(dy: Tensor, weight: Tensor, words: Tensor, *, config: ProductConfig) -> Tensor:
    """``dy where(m, weight, 0)``: dy [tokens, out] -> [tokens, in] in the dtype of dy; else as masked_linear."""
    _check("masked_linear_dx", dy, weight.dtype, words, (weight.shape[0], weight.shape[1]))
    return _product(dy, weight, words, None, None, config, True)


def masked_linear_dw(
    dy: Tensor,
    x: Tensor,
    words: Tensor,
    want: Literal["masked", "dense", "both"] = "masked",
    *,
    dtype: torch.dtype | None = None,
    config: GradientConfig,
) -> tuple[Tensor, Tensor]:
    """``where(m, dz, 0)``, ``dz`` or both from one accumulator, with ``dz = dy^T x``.

    Args:
        dy: [tokens, out] fp32, bf16 or fp16, any strides.
        x: [tokens, in], the dtype of dy.
        words: int32 [out, ceil(in/32)], the packed mask m.
        want: which of the two.
        dtype: of the results, that of x or fp32; None for that of x.
        config: tiles.

    Returns:
        (masked, dense), each [out, in], or without elements where it is not wanted.

    Raises:
        TypeError, ValueError: as masked_linear.
    """
    shape, dtype = (dy.shape[1], x.shape[1]), dtype or x.dtype
    _check("masked_linear_dw", x, dtype, words, shape)
    if want not in ("masked", "dense", "both"):
        raise ValueError(f"masked_linear_dw: want: expected 'masked', 'dense' or 'both', got {want!r}")
    dy, x, words = _rows(dy), _rows(x), words.contiguous()
    masked, dense = (
        torch.empty(shape if wanted else 0, dtype=dtype, device=x.device)
        for wanted in (want != "dense", want != "masked")
    )
    if shape[0] and shape[1]:
        grid = (triton.cdiv(shape[0], config.out), triton.cdiv(shape[1], config.inputs))
        with torch.cuda.device_of(x):
            gradient_kernel[grid](
                *(dy, x, words, masked, dense, len(x), *shape, words.shape[1], dy.stride(0), x.stride(0)),
                MASKED=want != "dense",
                DENSE=want != "masked",
                PRECISION=_precision(x.dtype),
                BLOCK_O=config.out,
                BLOCK_I=config.inputs,
                BLOCK_T=config.tokens,
                num_warps=config.warps,
                num_stages=config.stages,
                **_FUSION,
            )
    return masked, dense
