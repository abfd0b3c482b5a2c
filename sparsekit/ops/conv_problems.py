# SPDX-License-Identifier: Apache-2.0
"""The three products of a masked convolution as values: which tiles compute one, how it is run, and its proof."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from sparsekit.kernels import masked_conv2d_configs as configs
from sparsekit.kernels.masked_conv2d_configs import Shape
from sparsekit.kernels.masked_linear_configs import kind_of
from sparsekit.ops import formulas, proofs, reference

Product = Literal["y", "dx", "dw", "dense dw"]


@dataclass(frozen=True)
class Problem:
    """One product: y, the gradient at x, or that at the weight, masked or ("dense dw") not."""

    product: Product
    x_dtype: torch.dtype
    weight_dtype: torch.dtype
    tf32: bool
    shape: Shape

    @property
    def kind(self) -> str | None:
        """Its table in masked_conv2d_configs, or None if there is none."""
        return kind_of(self.x_dtype, self.weight_dtype, self.tf32)

    @property
    def sides(self) -> tuple[int, int, int]:
        """(pixels of y, input channels, output channels), the channels of a group."""
        s = self.shape
        return s.batch * _area(output_size(s)), s.inputs // s.groups, s.outputs // s.groups


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def output_size(s: Shape) -> tuple[int, int]:
    """Height and width of y."""
    sides = zip(s.size, s.kernel, s.stride, s.padding, s.dilation, strict=True)
    h, w = ((n + 2 * p - d * (k - 1) - 1) // step + 1 for n, k, step, p, d in sides)
    return h, w


@lru_cache(maxsize=4096)
def tiles_for(problem: Problem, capability: tuple[int, int], processors: int) -> Any:
    """The table's tiles for a problem that has a kind; the split of the sum is settled."""
    s, kind, (pixels, inputs, outputs), taps = problem.shape, problem.kind, problem.sides, _area(problem.shape.kernel)
    assert kind is not None
    if problem.product in ("dw", "dense dw"):
        found = configs.gradient_tiles(kind, capability, outputs, inputs)
        return configs.settle_gradient(found, pixels, outputs, inputs, taps, s.groups, processors)
    if problem.product == "dx":
        pixels, inputs, outputs = s.batch * _area(s.size), outputs, inputs
    found = configs.product_tiles(kind, capability, outputs, inputs)
    return configs.settle_product(found, pixels, outputs, inputs, taps, s.groups, processors)


def run(
    problem: Problem, tiles: Any, x: Tensor, dy: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None
) -> Tensor:
    """The product by its Triton kernel; of x, dy, weight and bias only what it is made of is read."""
    from sparsekit.kernels import masked_conv2d as kernels

    s = problem.shape
    geometry = kernels.Geometry(s.stride, s.padding, s.dilation, s.groups)
    if problem.product == "y":
        return kernels.masked_conv2d(x, weight, words, bias, geometry, tiles=tiles)
    if problem.product == "dx":
        return kernels.masked_conv2d_dx(dy, weight, words, s.size, geometry, tiles=tiles)
    want: Any = "dense" if problem.product == "dense dw" else "masked"
    found = kernels.masked_conv2d_dw(dy, x, words, weight, want, geometry, tiles=tiles)
    return found[want == "dense"]


def variant(problem: Problem, tiles: Any) -> tuple[Any, ...]:
    """What decides which binary Triton makes of the kernel: problems with the same variant share a proof."""
    s, (_, inputs, outputs) = problem.shape, problem.sides
    # Small counts of channels are exact, because a 1 is a constant to Triton and few channels take other steps.
    channels = tuple(n if n < 128 else (n % 128, s.kernel) for n in (inputs, outputs))
    dtypes = problem.x_dtype, problem.weight_dtype, problem.tf32
    return problem.product, *dtypes, tiles, s.kernel, s.stride, channels, min(s.groups, 2)


def _sample(problem: Problem) -> Shape:
    """A small shape of the same variant: some tiles each way where the problem has them, the last one cut."""
    s, groups = problem.shape, min(problem.shape.groups, 2)
    inputs, outputs = (n if n < 128 else 128 + n % 128 for n in problem.sides[1:])
    size = tuple(
        min(n, d * (k - 1) + 12 * t) for n, k, t, d in zip(s.size, s.kernel, s.stride, s.dilation, strict=True)
    )
    return replace(s, batch=min(s.batch, 3), inputs=inputs * groups, outputs=outputs * groups, size=size, groups=groups)


def wrong(problem: Problem, tiles: Any, device: torch.device) -> str:
    """What this kernel does wrong on a sample, on the device; empty if nothing."""
    sample = replace(problem, shape=_sample(problem))
    s, generator = sample.shape, torch.Generator().manual_seed(0)
    weight_shape = s.outputs, s.inputs // s.groups, *s.kernel
    shapes = (s.batch, s.inputs, *s.size), (s.batch, s.outputs, *output_size(s)), (s.outputs,), weight_shape
    x, dy, bias, values = (torch.randn(shape, generator=generator) for shape in shapes)
    mask = torch.rand(weight_shape, generator=generator) < 0.5
    x, dy = (t.to(device, problem.x_dtype, memory_format=torch.channels_last) for t in (x, dy))
    bias, weight = (
        bias.to(device, problem.x_dtype),
        torch.where(mask, values, torch.nan).to(device, problem.weight_dtype),
    )
    words, mask = reference.pack_mask(mask).to(device), mask.to(device)
    z = torch.where(mask, weight, 0).to(problem.x_dtype)
    got = run(sample, tiles, x, dy, weight, words, bias)
    peer = _by_pytorch(sample, x, dy, z, bias, mask)
    truth = _by_pytorch(sample, x.double(), dy.double(), z.double(), bias.double(), mask)
    return proofs.beyond_yardstick(got, peer.to(got.dtype), truth)


def geometry_of(s: Shape) -> tuple[list[int], list[int], list[int], int]:
    """stride, padding, dilation and groups as the formulas take them."""
    return list(s.stride), list(s.padding), list(s.dilation), s.groups


def _by_pytorch(problem: Problem, x: Tensor, dy: Tensor, z: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    geometry = geometry_of(problem.shape)
    if problem.product == "y":
        return formulas.conv(x, z, bias, *geometry)
    at_x = problem.product == "dx"
    dx, dz, _ = formulas.conv_backward(dy, x, z, *geometry, [at_x, not at_x, False])
    if at_x:
        return dx
    return dz if problem.product == "dense dw" else torch.where(mask, dz, 0)
