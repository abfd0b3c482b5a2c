# SPDX-License-Identifier: Apache-2.0
"""CUDA implementations of masked_linear and its backward: which route serves a problem, and with which tiles.

"fused": the Triton kernels of sparsekit.kernels.masked_linear, which read the mask while they multiply. "hybrid": the
masked weight is formed in one pass and cuBLAS multiplies. Fused kernels serve few tokens (FUSED_TOKENS in
masked_linear_configs.py) on weights that are worth a launch of Triton's, and only once they have proven themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from sparsekit.kernels import masked_linear_configs as configs
from sparsekit.ops import autotune, proofs, schemas
from sparsekit.ops.triton_linear_problems import Problem, candidates, hardware, run, variant, wrong

Route = Literal["fused", "hybrid"]
# Entries of the smallest weight for which the fused kernels serve: what they save on a smaller one is less than what a
# launch of Triton's costs the host beyond one of PyTorch's. A model, not a measurement.
SMALLEST_WEIGHT = 1 << 21


def route(
    tokens: int,
    out: int,
    inputs: int,
    x_dtype: torch.dtype,
    weight_dtype: torch.dtype,
    capability: tuple[int, int],
    tf32: bool = False,
) -> Route:
    """Which way a masked linear layer of this size goes on a device of this compute capability, by its tokens and dtypes."""
    kind = configs.kind_of(x_dtype, weight_dtype, tf32)
    if kind is None or capability < (8, 0) or tokens == 0 or out * inputs < SMALLEST_WEIGHT:
        return "hybrid"
    return "fused" if tokens <= configs.fused_tokens(kind, capability) else "hybrid"


def _takes_fused(x: Tensor, weight: Tensor, tokens: int) -> bool:
    if x.is_neg() or weight.is_neg():  # a kernel would read the numbers without their sign
        return False
    out, inputs = weight.shape
    capability, tf32 = hardware(x.device)[0], _tf32(x.dtype)
    return route(tokens, out, inputs, x.dtype, weight.dtype, capability, tf32) == "fused"


def _tf32(dtype: torch.dtype) -> bool:
    return dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"


def _check_devices(function: str, x: Tensor, **others: Tensor | None) -> None:
    for name, other in others.items():
        if other is not None and other.device != x.device:
            raise ValueError(f"{function}: {name}: expected a tensor on {x.device} (x's), got one on {other.device}")


def _fused(name: str, problem: Problem, *operands: Tensor | None) -> Tensor | None:
    """The product of (x, dy, weight, words, bias) by a proven kernel, or None."""
    device: torch.device = operands[3].device  # pyright: ignore[reportOptionalMemberAccess]
    choices = candidates(problem, *hardware(device))

    def serves(config: Any) -> bool:
        return proofs.proven(name, device, variant(problem, config), lambda: wrong(problem, config, device))

    def runner(config: Any) -> Callable[[], object] | None:
        return (lambda: run(problem, config, *operands)) if serves(config) else None  # pyright: ignore[reportArgumentType]

    config = choices[0]
    if autotune.wanted() and len(choices) > 1:
        config = autotune.pick(f"{name} {problem.bucket()}", choices, runner, device)
    return run(problem, config, *operands) if serves(config) else None  # pyright: ignore[reportArgumentType]


def masked_linear(x: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None) -> Tensor:
    """As ops.masked_linear."""
    _check_devices("masked_linear", x, weight=weight, words=words, bias=bias)
    tokens, (out, inputs) = math.prod(x.shape[:-1]), weight.shape
    if _takes_fused(x, weight, tokens):
        problem = Problem("y", x.dtype, weight.dtype, _tf32(x.dtype), tokens, out, inputs)
        rows = x.reshape(tokens, inputs)
        y = _fused("masked_linear", problem, rows, rows, weight, words, bias)
        if y is not None:
            return y.reshape(*x.shape[:-1], out)
    return schemas._masked_linear(x, weight, words, bias)


def masked_linear_backward(
    dy: Tensor, x: Tensor, weight: Tensor, words: Tensor, needs: Sequence[bool], dense_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As the op: gradients at x, weight and bias, those without need empty; each by a proven kernel or else by cuBLAS."""
    name = "masked_linear_backward"
    _check_devices(name, x, dy=dy, weight=weight, words=words)
    tokens, (out, inputs) = math.prod(x.shape[:-1]), weight.shape
    if not _takes_fused(x, weight, tokens) or dy.dtype != x.dtype or dy.is_neg():
        return schemas.masked_linear_backward(dy, x, weight, words, needs, dense_grad)
    rows, above = x.reshape(tokens, inputs), dy.reshape(tokens, out)
    found: list[Tensor | None] = []
    for product, needed in (("dx", needs[0]), ("dense dw" if dense_grad else "dw", needs[1])):
        problem = Problem(product, x.dtype, weight.dtype, _tf32(x.dtype), tokens, out, inputs)  # pyright: ignore
        found.append(_fused(name, problem, rows, above, weight, words, None) if needed else None)
    # What no kernel gave: the bias, and all that failed its proof.
    rest = [needs[0] and found[0] is None, needs[1] and found[1] is None, needs[2]]
    dx, dw, db = schemas.masked_linear_backward(dy, x, weight, words, rest, dense_grad)
    return dx if found[0] is None else found[0].reshape(x.shape), dw if found[1] is None else found[1], db


def prove(device: torch.device) -> None:
    """Has a kernel of every kind and product prove itself on this CUDA device now, not with its first call."""
    if hardware(device)[0] < (8, 0):
        return
    narrow = [(dtype, weight) for dtype in (torch.bfloat16, torch.float16) for weight in (dtype, torch.float32)]
    for x_dtype, weight_dtype in [*narrow, (torch.float32, torch.float32)]:
        for product in ("y", "dx", "dw", "dense dw"):
            problem = Problem(product, x_dtype, weight_dtype, _tf32(x_dtype), 16, 4096, 4096)
            config = candidates(problem, *hardware(device))[0]
            name = "masked_linear" if product == "y" else "masked_linear_backward"
            proofs.proven(name, device, variant(problem, config), lambda p=problem, c=config: wrong(p, c, device))


if proofs.triton_wanted():
    for _name, _implementation in {
        "masked_linear": masked_linear,
        "masked_linear_backward": masked_linear_backward,
    }.items():
        schemas.LIBRARY.impl(_name, _implementation, "CUDA")
        proofs.FUSED.add(_name)
    proofs.PROVERS.append(prove)
