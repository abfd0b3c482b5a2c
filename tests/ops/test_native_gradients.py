# SPDX-License-Identifier: Apache-2.0
"""Gradients that the compiled module masks where they lie: the bits of the copy, and nobody else's memory is touched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsekit import ops
from sparsekit.ops import native, reference

pytestmark = pytest.mark.skipif(native._C is None, reason="needs the compiled module")
SHAPES = [
    (1,),
    (33,),
    (3, 1),
    (5, 31),
    (7, 64),
    (9, 100),
    (300, 257),
    (4, 3, 3, 3),
    (6, 32, 1, 1),
    (5, 7, 3),
    (3, 4, 2, 2, 3),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_masked_in_place(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    dz = torch.randn(shape, generator=generator).to(dtype)
    dz.view(-1)[::7] = torch.nan
    words = ops.pack_mask(torch.rand(shape, generator=generator) < 0.5)
    formats = [torch.contiguous_format, *([torch.channels_last] if len(shape) == 4 else [])]
    for layout in formats:
        own = dz.clone(memory_format=torch.contiguous_format).to(memory_format=layout)
        expected = reference.mask_weight(own, words, dtype)
        result = native._mask_in_place(own, words)
        assert result.data_ptr() == own.data_ptr() and result.stride() == own.stride()
        torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)
    strided = torch.stack([dz, dz], -1)[..., 0]
    torch.testing.assert_close(
        native._mask_in_place(strided, words), reference.mask_weight(dz, words, dtype), rtol=0, atol=0, equal_nan=True
    )
    assert torch.equal(strided.isnan(), dz.isnan())  # what cannot be masked in place is copied


def backward(function, *sources: Tensor) -> list[Tensor]:
    leaves = [s.clone().requires_grad_() for s in sources]
    y = function(*leaves)
    return list(torch.autograd.grad(y, leaves, torch.ones_like(y)))


def test_inputs_stay_as_they_are() -> None:
    x, weight = torch.randn(4, 40), torch.randn(24, 40)
    words, dy = ops.pack_mask(torch.rand(24, 40) < 0.5), torch.randn(4, 24)
    before = [t.clone() for t in (dy, x, weight, words)]
    for dense_grad in (False, True):
        grads = torch.ops.sparsekit.masked_linear_backward(dy, x, weight, words, [True, True, True], dense_grad)
        expected = dy.t() @ x
        mask = ops.unpack_mask(words, weight.shape)
        torch.testing.assert_close(grads[1], expected if dense_grad else torch.where(mask, expected, 0))
    assert all(torch.equal(a, b) for a, b in zip((dy, x, weight, words), before, strict=True))


def test_twice_through_one_layer_adds_up() -> None:
    x, weight = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    mask = torch.rand(weight.shape) < 0.5
    words = ops.pack_mask(mask)
    once = backward(lambda x, w: ops.masked_conv2d(x, w, words), x, weight)
    twice = backward(lambda x, w: ops.masked_conv2d(x, w, words) + ops.masked_conv2d(x, w, words), x, weight)
    for one, two in zip(once, twice, strict=True):
        torch.testing.assert_close(two, 2 * one)
    assert not twice[1][~mask].any()
