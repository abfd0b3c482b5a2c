# SPDX-License-Identifier: Apache-2.0
"""masked_linear against float64 truth, with PyTorch's own masked linear of the same dtype as the yardstick."""

from __future__ import annotations

import pytest
import torch
from oracles import DenseMasked, assert_within_yardstick
from torch import Tensor, nn

from sparsekit import ops

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SHAPES = [((4, 7), 5), ((33,), 6), ((2, 3, 65), 31), ((1, 1), 1), ((64, 96), 32)]
SHAPES += [((0, 8), 4), ((3, 0, 8), 4), ((5, 0), 3), ((5, 4), 0)]


def case(shape: tuple[int, ...], out: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(shape, generator=generator), torch.randn(out, shape[-1], generator=generator)
    mask, bias = torch.rand(out, shape[-1], generator=generator) < 0.4, torch.randn(out, generator=generator)
    return x.to(dtype), weight.to(dtype), mask, bias.to(dtype)


def derivatives(function, x: Tensor, weight: Tensor, bias: Tensor | None, dy: Tensor) -> tuple[Tensor, ...]:
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight, bias) if t is not None]
    y = function(*leaves) if bias is not None else function(*leaves, None)
    return (y.detach(), *torch.autograd.grad(y, leaves, dy))


@pytest.mark.parametrize("dense", [False, True], ids=["masked", "dense_grad"])
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "out"), SHAPES, ids=str)
def test_within_the_yardstick(shape, out, dtype, with_bias, dense) -> None:
    x, weight, mask, bias = case(shape, out, dtype)
    bias = bias if with_bias else None
    dy = torch.randn(*shape[:-1], out, generator=torch.Generator().manual_seed(9)).to(dtype)
    words = ops.pack_mask(mask)

    def fused(x, w, b):
        return ops.masked_linear(x, w, words, b, dense_grad=dense)

    def plain(x, w, b):
        if dense:  # the gradient at z, delivered to the weight
            w = w + (torch.where(mask, w, 0) - w).detach()
            return nn.functional.linear(x, w, b)
        return DenseMasked(nn.Linear(1, 1))(x, w, mask, b)

    poisoned = torch.where(mask, weight, torch.tensor(torch.nan, dtype=dtype))
    got = derivatives(fused, x, poisoned, bias, dy)
    peer = derivatives(plain, x, weight, bias, dy)
    wide = [None if t is None else t.double() for t in (x, weight, bias, dy)]
    truth = derivatives(plain, *wide)
    for g, p, t in zip(got, peer, truth, strict=True):
        assert_within_yardstick(g, p, t)
    if not dense:
        assert not got[2][~mask].any()


def test_strided_input_and_gradient() -> None:
    x, weight, mask, bias = case((12, 40), 9, torch.float32)
    words, dense = ops.pack_mask(mask), DenseMasked(nn.Linear(1, 1))
    for view in (x[::2, ::4], x.t().contiguous().t(), x[:1].expand(5, 40), x.view(12, 4, 10).transpose(0, 1)):
        cols = view.shape[-1]
        w, m, wrd = weight[:, :cols], mask[:, :cols], ops.pack_mask(mask[:, :cols])
        dy = torch.ones((), dtype=torch.float32).expand(*view.shape[:-1], 9)
        got = derivatives(lambda a, b, c, wrd=wrd: ops.masked_linear(a, b, wrd, c), view, w, bias, dy)
        peer = derivatives(lambda a, b, c, m=m: dense(a, b, m, c), view, w, bias, dy)
        for g, p in zip(got, peer, strict=True):
            torch.testing.assert_close(g, p)
    transposed = weight.t().contiguous().t()
    torch.testing.assert_close(ops.masked_linear(x, transposed, words, bias), dense(x, weight, mask, bias))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_only_what_needs_a_gradient_gets_one(which: int) -> None:
    x, weight, mask, bias = case((4, 7), 5, torch.float32)
    leaves = [x, weight, bias]
    leaves[which].requires_grad_()
    ops.masked_linear(x, weight, ops.pack_mask(mask), bias).sum().backward()
    assert [t.grad is not None for t in leaves] == [i == which for i in range(3)]
    assert leaves[which].grad.shape == leaves[which].shape


def test_empty_and_full_masks() -> None:
    x, weight, mask, bias = case((4, 7), 5, torch.float32)
    nothing, everything = torch.zeros_like(mask), torch.ones_like(mask)
    poison = torch.full_like(weight, torch.nan)
    assert torch.equal(ops.masked_linear(x, poison, ops.pack_mask(nothing), bias), bias.expand(4, 5))
    torch.testing.assert_close(
        ops.masked_linear(x, weight, ops.pack_mask(everything), bias), nn.functional.linear(x, weight, bias)
    )


def test_words_changed_between_forward_and_backward_are_noticed() -> None:
    x, weight, mask, bias = case((4, 7), 5, torch.float32)
    words = ops.pack_mask(mask)
    y = ops.masked_linear(x.requires_grad_(), weight.requires_grad_(), words, bias)
    words.copy_(ops.pack_mask(~mask))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
