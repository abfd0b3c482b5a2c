# SPDX-License-Identifier: Apache-2.0
"""What serves a masked layer on a given input, in words; and what the dispatch goes by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparsekit.kernels import masked_conv2d_configs, masked_linear_configs
from sparsekit.ops import autotune, conv_routes, proofs, serving, triton_linear
from sparsekit.ops.layers import compute_dtype
from sparsekit.ops.triton_linear_problems import hardware

FUSED, PLAIN = "Triton, masked in registers", "masked weight, then {}"
FEW = "compiled, masked while read"


def layer_route(x: Tensor, weight: Tensor, geometry: Sequence[Any] = (), *, transposed: bool = False) -> str:
    """What serves the forward pass of a masked layer, in words.

    Args:
        x: the input.
        weight: [out, in], or that of a convolution.
        geometry: stride, padding, dilation and groups of a convolution.
        transposed: is the weight [in, out]? No kernel serves such a layer.
    """
    if transposed:
        return PLAIN.format("PyTorch")
    if x.is_cuda and proofs.triton_wanted() and weight.ndim in (2, 4):
        return _on_cuda(x, weight, geometry)
    if x.device.type == "cpu" and weight.ndim == 2 and _reads_masked(x, weight):
        return FEW
    return PLAIN.format({"cuda": "cuDNN" if weight.ndim > 2 else "cuBLAS"}.get(x.device.type, "PyTorch"))


def _reads_masked(x: Tensor, weight: Tensor) -> bool:
    if not serving.native_info()["built"] or compute_dtype(x, weight) != torch.float32:
        return False
    from sparsekit.ops import native

    return native.reads_masked(x, weight)


def _on_cuda(x: Tensor, weight: Tensor, geometry: Sequence[Any]) -> str:
    dtype, (capability, _) = compute_dtype(x, weight) or x.dtype, hardware(x.device)
    if weight.ndim == 2:
        (out, inputs), tokens, tf32 = weight.shape, math.prod(x.shape[:-1]), triton_linear._tf32(dtype)
        chosen: str = triton_linear.route(tokens, out, inputs, dtype, weight.dtype, capability, tf32)
        return FUSED if chosen == "fused" else PLAIN.format("cuBLAS")
    problem = conv_routes._problem("y", torch.empty(x.shape, dtype=dtype, device="meta"), weight, geometry)
    last = x.is_contiguous(memory_format=torch.channels_last)
    chosen = conv_routes.route(problem, capability, channels_last=last)
    return {"fused": FUSED, "pointwise": f"{FUSED}, on pixels"}.get(chosen, PLAIN.format("cuDNN"))


def dispatch() -> dict[str, str]:
    """What the choice of a kernel on CUDA goes by: the tables, the environment, and the file of tuned choices."""
    tokens = {kind: masked_linear_configs.fused_tokens(kind, (9, 0)) for kind in ("narrow", "masters", "tf32", "fp32")}
    shapes = len({key[3] for key in masked_conv2d_configs.WINNERS})
    tuned = f"{autotune.cache_file()}: {sum(map(len, autotune.load().values()))} choices"
    return {
        "Triton kernels": "on" if proofs.triton_wanted() else "off, or no Triton (SPARSEKIT_KERNELS)",
        "masked_linear": f"Triton up to so many tokens on Hopper: {', '.join(f'{k} {n}' for k, n in tokens.items())}",
        "masked_conv2d": f"Triton for {shapes} measured shapes, cuDNN on the masked weight for all others",
        "autotuning": f"{'on' if autotune.wanted() else 'off'} (SPARSEKIT_AUTOTUNE=1); {tuned}",
    }
