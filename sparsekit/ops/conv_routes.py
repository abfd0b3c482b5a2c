# SPDX-License-Identifier: Apache-2.0
"""CUDA implementations of masked_conv2d and its backward: which route serves a problem.

"hybrid": the masked weight is formed in one pass, cuDNN convolves, and the gradient at the weight is masked in place.
"pointwise": a 1x1 convolution of a channels_last batch is masked_linear on its pixels, where a fused kernel serves that.
"fused": the Triton kernels of sparsekit.kernels.masked_conv2d, where WINNERS of masked_conv2d_configs names the shape, or
autotuning finds them faster, and the kernel has proven itself on the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sparsekit.kernels import masked_conv2d_configs as configs
from sparsekit.kernels.masked_conv2d_configs import Shape
from sparsekit.ops import autotune, conv_problems, proofs, schemas, triton_linear
from sparsekit.ops.conv_problems import Problem, Product
from sparsekit.ops.triton_linear_problems import hardware

Route = Literal["pointwise", "fused", "hybrid"]


@dataclass(frozen=True)
class Library:
    """The choice of autotuning that is no tile of ours: the hybrid route."""

    name: str = "cuDNN"


def route(problem: Problem, capability: tuple[int, int], *, channels_last: bool = True) -> Route:
    """Which way a product of a masked convolution goes on a device of this compute capability.

    Args:
        problem: the product.
        capability: (major, minor).
        channels_last: of the input; others go to cuDNN.
    """
    s = problem.shape
    if not fusible(problem, capability, channels_last):
        return "hybrid"
    pixels, inputs, outputs = problem.sides
    if s.kernel == (1, 1) and s.padding == (0, 0) and s.groups == 1:
        tf32 = problem.x_dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
        dtypes = problem.x_dtype, problem.weight_dtype
        if triton_linear.route(pixels, outputs, inputs, *dtypes, capability, tf32) == "fused":
            return "pointwise"
    product = "dw" if problem.product == "dense dw" else problem.product
    return "fused" if configs.winner(product, str(problem.kind), capability, s) == "fused" else "hybrid"


def fusible(problem: Problem, capability: tuple[int, int], channels_last: bool) -> bool:
    """Is there a Triton kernel for this product at all?"""
    return problem.kind is not None and channels_last and capability >= (8, 0) and problem.shape.batch > 0


def _channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def _shape(x: Tensor, weight: Tensor, geometry: Sequence) -> Shape:
    stride, padding, dilation, groups = geometry
    (batch, inputs, *size), (outputs, _, *kernel) = x.shape, weight.shape
    pairs = (tuple(values) for values in (size, kernel, stride, padding, dilation))
    return Shape(batch, inputs, outputs, *pairs, groups)  # pyright: ignore[reportArgumentType]


def _problem(product: Product, x: Tensor, weight: Tensor, geometry: Sequence) -> Problem:
    setting = torch.backends.cudnn.conv.fp32_precision  # pyright: ignore[reportAttributeAccessIssue]
    tf32 = x.dtype == torch.float32 and setting == "tf32"
    return Problem(product, x.dtype, weight.dtype, tf32, _shape(x, weight, geometry))


def _chosen(problem: Problem, *tensors: Tensor) -> Route:
    # A kernel would read negated tensors without their sign.
    if any(t.is_neg() for t in tensors):
        return "hybrid"
    capability, channels_last = hardware(tensors[0].device)[0], _channels_last(tensors[0])
    chosen = route(problem, capability, channels_last=channels_last)
    tuned = chosen == "hybrid" and autotune.wanted() and fusible(problem, capability, channels_last)
    return "fused" if tuned else chosen


def _fused(name: str, problem: Problem, plain: Callable[[], Tensor], *operands: Tensor | None) -> Tensor | None:
    """The product of (x, dy, weight, words, bias) by a proven kernel, or None where ``plain`` should serve."""
    device: torch.device = operands[3].device  # pyright: ignore[reportOptionalMemberAccess]
    tiles = conv_problems.tiles_for(problem, *hardware(device))

    def runner(choice: Any) -> Callable[[], object] | None:
        if isinstance(choice, Library):
            return plain
        return (lambda: conv_problems.run(problem, tiles, *operands)) if serves() else None  # pyright: ignore

    def serves() -> bool:
        wrong = lambda: conv_problems.wrong(problem, tiles, device)  # noqa: E731
        return proofs.proven(name, device, conv_problems.variant(problem, tiles), wrong)

    chosen = route(problem, hardware(device)[0])
    if autotune.wanted():
        order = (tiles, Library()) if chosen == "fused" else (Library(), tiles)
        choice = autotune.pick(f"{name} {problem}", order, runner, device)
    else:
        choice = tiles if chosen == "fused" else Library()
    found = None if isinstance(choice, Library) else runner(choice)
    return None if found is None else found()  # pyright: ignore[reportReturnType]


def _pixels(x: Tensor, stride: Sequence[int] = (1, 1)) -> Tensor:
    """[N * H * W, C] of a channels_last batch, a view where every pixel is taken."""
    x = x[:, :, :: stride[0], :: stride[1]].permute(0, 2, 3, 1)
    return x.reshape(math.prod(x.shape[:3]), x.shape[3])


def _image(rows: Tensor, like: Sequence[int]) -> Tensor:
    """Pixels as a channels_last view [N, C, H, W], of which ``like`` has N, H and W."""
    return rows.view(like[0], like[2], like[3], rows.shape[1]).permute(0, 3, 1, 2)


def masked_conv2d(x: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None, *geometry) -> Tensor:
    """As the op."""
    triton_linear._check_devices("masked_conv2d", x, weight=weight, words=words, bias=bias)
    plain = lambda: schemas._masked_conv(x, weight, words, bias, *geometry)  # noqa: E731
    problem = _problem("y", x, weight, geometry)
    chosen = _chosen(problem, x, weight)
    if chosen == "pointwise":
        rows = torch.ops.sparsekit.masked_linear(_pixels(x, geometry[0]), weight.flatten(1), words, bias)
        return _image(rows, (x.shape[0], 0, *conv_problems.output_size(problem.shape)))
    y = _fused("masked_conv2d", problem, plain, x, x, weight, words, bias) if chosen == "fused" else None
    return plain() if y is None else y


def _pointwise_backward(
    dy: Tensor, x: Tensor, weight: Tensor, words: Tensor, stride: Sequence[int], needs: Sequence[bool], dense: bool
) -> tuple[Tensor, Tensor, Tensor]:
    operands = _pixels(dy.contiguous(memory_format=torch.channels_last)), _pixels(x, stride), weight.flatten(1), words
    dx, dw, db = torch.ops.sparsekit.masked_linear_backward(*operands, list(needs), dense)
    if needs[0]:
        small = _image(dx, dy.shape)
        strided = tuple(stride) != (1, 1)
        dx = torch.zeros_like(x) if strided else small
        if strided:
            dx[:, :, :: stride[0], :: stride[1]] = small
    return dx, dw.view_as(weight) if needs[1] else dw, db


def masked_conv2d_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    words: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    needs: Sequence[bool],
    dense_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As the op: each gradient by the route of its own, except that pointwise holds for all."""
    name, geometry = "masked_conv2d_backward", (stride, padding, dilation, groups)
    triton_linear._check_devices(name, x, dy=dy, weight=weight, words=words)
    found: list[Tensor | None] = [None, None]
    products: tuple[Product, Product] = "dx", "dense dw" if dense_grad else "dw"
    for place, product in enumerate(products):
        if not needs[place] or dy.dtype != x.dtype:
            continue
        problem = _problem(product, x, weight, geometry)
        chosen = _chosen(problem, x, weight, dy)
        if chosen == "pointwise":
            return _pointwise_backward(dy, x, weight, words, stride, needs, dense_grad)
        if chosen == "fused":
            alone = [place == 0, place == 1, False]
            plain = lambda n=alone: schemas.masked_conv_backward(dy, x, weight, words, *geometry, n, dense_grad)  # noqa: E731
            found[place] = _fused(name, problem, plain, x, dy, weight, words, None)  # pyright: ignore[reportArgumentType]
    # What no kernel gave: the bias, and all that failed its proof or has no row.
    rest = [needs[0] and found[0] is None, needs[1] and found[1] is None, needs[2]]
    others = schemas.masked_conv_backward(dy, x, weight, words, *geometry, rest, dense_grad)
    dx, dw, db = (others[i] if i == 2 or found[i] is None else found[i] for i in range(3))
    return dx, dw, db  # pyright: ignore[reportReturnType]


def prove(device: torch.device) -> None:
    """Has the kernels of all winners prove themselves on this CUDA device now, not with the first call."""
    for product, kind, capability, shape in configs.WINNERS:
        if hardware(device)[0] == capability:
            types = {"narrow": (torch.bfloat16,) * 2, "masters": (torch.bfloat16, torch.float32)}
            problem = Problem(product, *types.get(kind, (torch.float32,) * 2), kind == "tf32", shape)  # pyright: ignore
            name = "masked_conv2d" if product == "y" else "masked_conv2d_backward"
            tiles = conv_problems.tiles_for(problem, *hardware(device))
            wrong = lambda p=problem, t=tiles: conv_problems.wrong(p, t, device)  # noqa: E731
            proofs.proven(name, device, conv_problems.variant(problem, tiles), wrong)


if proofs.triton_wanted():
    schemas.LIBRARY.impl("masked_conv2d", masked_conv2d, "CUDA")
    schemas.LIBRARY.impl("masked_conv2d_backward", masked_conv2d_backward, "CUDA")
    if configs.WINNERS:
        proofs.FUSED.update(("masked_conv2d", "masked_conv2d_backward"))
    proofs.PROVERS.append(prove)
