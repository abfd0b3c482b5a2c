# SPDX-License-Identifier: Apache-2.0
"""The three products of a masked linear layer as values: which tiles may compute one, how it is run, and its proof."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsekit.kernels import masked_linear_configs as configs
from sparsekit.ops import proofs, reference


@dataclass(frozen=True)
class Problem:
    """One product: "y" = x z^T + bias, "dx" = dy z, or "dw" = dy^T x, masked or ("dense dw") not; x [tokens, in]."""

    product: Literal["y", "dx", "dw", "dense dw"]
    x_dtype: torch.dtype
    weight_dtype: torch.dtype
    tf32: bool
    tokens: int
    out: int
    inputs: int

    @property
    def kind(self) -> str:
        """Its table in masked_linear_configs; it must have one."""
        return configs.kind_of(self.x_dtype, self.weight_dtype, self.tf32) or "fp32"

    def bucket(self) -> str:
        """Problems for which autotuning gives one answer: up to 16 tokens, 32, 64 and so on."""
        tokens = 1 << max(4, (self.tokens - 1).bit_length())
        precision = " tf32" if self.tf32 else ""
        return f"{self.product} {tokens}x{self.out}x{self.inputs} {self.x_dtype} {self.weight_dtype}{precision}"


@lru_cache(maxsize=64)
def hardware(device: torch.device) -> tuple[tuple[int, int], int]:
    """(compute capability, multiprocessors) of a CUDA device."""
    properties = torch.cuda.get_device_properties(device)
    return (properties.major, properties.minor), properties.multi_processor_count


@lru_cache(maxsize=4096)
def candidates(problem: Problem, capability: tuple[int, int], processors: int) -> tuple[Any, ...]:
    """Tiles for a problem, the table's choice first; a split of the sum is settled."""
    p = problem
    if p.product in ("dw", "dense dw"):
        gradients = configs.gradients(p.kind, capability)
        return gradients[configs.bucket(p.tokens, gradients)]
    features, depth = (p.out, p.inputs) if p.product == "y" else (p.inputs, p.out)
    products = configs.products(p.kind, capability)
    found = products[configs.bucket(p.tokens, products)]
    return tuple(replace(c, split=configs.split_for(c, p.tokens, features, depth, processors)) for c in found)


def run(
    problem: Problem, config: Any, x: Tensor, dy: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None
) -> Tensor:
    """The product by its Triton kernel; of x, dy, weight and bias only what it is made of is read."""
    from sparsekit.kernels import masked_linear as kernels

    if problem.product == "y":
        return kernels.masked_linear(x, weight, words, bias, config=config)
    if problem.product == "dx":
        return kernels.masked_linear_dx(dy, weight, words, config=config)
    want: Any = "dense" if problem.product == "dense dw" else "masked"
    found = kernels.masked_linear_dw(dy, x, words, want, dtype=problem.weight_dtype, config=config)
    return found[want == "dense"]


def variant(problem: Problem, config: Any) -> tuple[Any, ...]:
    """What decides which binary Triton makes of the kernel: problems with the same variant share a proof."""
    p = problem
    even = p.product in ("y", "dx") and (p.inputs if p.product == "y" else p.out) % config.depth == 0
    return p.product, p.x_dtype, p.weight_dtype, p.tf32, config, even, p.out % 16 == 0, p.inputs % 16 == 0


def _sample_sizes(problem: Problem, config: Any) -> tuple[int, int, int]:
    """(tokens, out, in) of a small problem of the same variant: more than one tile each way, the last one cut."""
    p = problem
    if p.product in ("dw", "dense dw"):
        return 2 * config.tokens + 1, config.out + 16 + p.out % 16, config.inputs + 16 + p.inputs % 16
    features, depth = (p.out, p.inputs) if p.product == "y" else (p.inputs, p.out)
    sizes = config.features + 16 + features % 16, 4 * config.depth * config.split + depth % config.depth
    return config.tokens + 1, *(sizes if p.product == "y" else sizes[::-1])


def wrong(problem: Problem, config: Any, device: torch.device) -> str:
    """What this kernel does wrong on a sample, on the device; empty if nothing."""
    tokens, out, inputs = _sample_sizes(problem, config)
    generator = torch.Generator().manual_seed(0)
    shapes = (tokens, inputs), (tokens, out), (out,), (out, inputs)
    x, dy, bias, values = (torch.randn(shape, generator=generator) for shape in shapes)
    mask = torch.rand(out, inputs, generator=generator) < 0.5
    x, dy, bias = (t.to(device, problem.x_dtype) for t in (x, dy, bias))
    weight = torch.where(mask, values, torch.nan).to(device, problem.weight_dtype)
    words, mask = reference.pack_mask(mask).to(device), mask.to(device)
    z = torch.where(mask, weight, 0).to(problem.x_dtype)
    got = run(problem, config, x, dy, weight, words, bias)
    peer = _by_pytorch(problem.product, x, dy, z, bias, mask)
    truth = _by_pytorch(problem.product, x.double(), dy.double(), z.double(), bias.double(), mask)
    return proofs.beyond_yardstick(got, peer.to(got.dtype), truth)


def _by_pytorch(product: str, x: Tensor, dy: Tensor, z: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    if product == "y":
        return F.linear(x, z, bias)
    if product == "dx":
        return dy @ z
    dz = dy.t() @ x
    return dz if product == "dense dw" else torch.where(mask, dz, 0)
