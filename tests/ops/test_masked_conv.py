# SPDX-License-Identifier: Apache-2.0
"""masked_conv1d, 2d and 3d with every option of the torch layers, within the yardstick."""

from __future__ import annotations

import warnings

import pytest
import torch
from oracles import DenseMasked, assert_within_yardstick
from torch import Tensor, nn

from sparsekit import ops

LAYERS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
MASKED = {1: ops.masked_conv1d, 2: ops.masked_conv2d, 3: ops.masked_conv3d}
SPATIAL = {1: (13,), 2: (9, 7), 3: (6, 5, 7)}

# (in, out, kernel, options of the layer)
CASES = {
    "plain": (3, 5, 3, {}),
    "1x1": (4, 6, 1, {}),
    "no bias": (3, 5, 3, {"bias": False}),
    "stride": (3, 5, 3, {"stride": 2}),
    "padding": (3, 5, 3, {"padding": 1}),
    "padding wider than the kernel": (2, 3, 2, {"padding": 3}),
    "dilation": (3, 4, 2, {"dilation": 3, "padding": 2}),
    "stride, padding, dilation": (4, 6, 3, {"stride": 3, "padding": 4, "dilation": 2}),
    "same, odd kernel": (3, 4, 3, {"padding": "same"}),
    "same, even kernel": (3, 4, 2, {"padding": "same"}),
    "same, even kernel, dilated": (3, 4, 4, {"padding": "same", "dilation": 1}),
    "same, dilation": (3, 4, 2, {"padding": "same", "dilation": 3}),
    "valid": (3, 4, 3, {"padding": "valid", "stride": 2}),
    "groups": (6, 9, 3, {"groups": 3, "padding": 1}),
    "depthwise": (4, 4, 3, {"groups": 4, "padding": 1, "stride": 2}),
    "depthwise with multiplier": (3, 6, 3, {"groups": 3}),
    "reflect": (3, 4, 3, {"padding": 2, "padding_mode": "reflect"}),
    "replicate": (3, 4, 3, {"padding": 3, "padding_mode": "replicate", "stride": 2}),
    "circular": (3, 4, 3, {"padding": 1, "padding_mode": "circular", "dilation": 1}),
    "circular, same, even": (3, 4, 2, {"padding": "same", "padding_mode": "circular"}),
    "reflect, same, even, dilated": (2, 4, 2, {"padding": "same", "padding_mode": "reflect", "dilation": 3}),
    "more than one word": (37, 3, 3, {"padding": 1}),
}
# Options that differ by dimension.
UNEVEN = {
    1: {"stride": (2,), "padding": (3,), "dilation": (2,)},
    2: {"kernel": (2, 3), "stride": (2, 1), "padding": (0, 3), "dilation": (1, 2)},
    3: {"kernel": (1, 2, 3), "stride": (1, 2, 1), "padding": (2, 0, 1), "dilation": (2, 1, 1)},
}


def arguments(layer: nn.Module) -> dict:
    """The options of a torch convolution as arguments of the functional form."""
    names = ("stride", "padding", "dilation", "groups", "padding_mode")
    return {name: getattr(layer, name) for name in names}


def tensors(
    layer: nn.Module, x_shape: tuple[int, ...], dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(x_shape, generator=generator).to(dtype)
    weight = torch.randn(layer.weight.shape, generator=generator).to(dtype)
    mask = torch.rand(weight.shape, generator=generator) < 0.5
    bias = None if layer.bias is None else torch.randn(layer.bias.shape, generator=generator).to(dtype)
    return x, weight, mask, bias


def derivatives(function, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight, bias) if t is not None]
    y = function(*leaves) if bias is not None else function(*leaves, None)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(9)).to(y.dtype)
    return (y.detach(), *torch.autograd.grad(y, leaves, dy))


def check(
    n: int, layer: nn.Module, x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, dense: bool = False
) -> tuple:
    words, plain = ops.pack_mask(mask), DenseMasked(layer)

    def fused(x, w, b):
        return MASKED[n](x, w, words, b, **arguments(layer), dense_grad=dense)

    def peer(x, w, b):
        if dense:
            w, keep = w + (torch.where(mask, w, 0) - w).detach(), torch.ones_like(mask)
            return plain(x, w, keep, b)
        return plain(x, w, mask, b)

    poisoned = weight.clone().masked_fill_(~mask, torch.inf)
    got = derivatives(fused, x, poisoned, bias)
    same_dtype = derivatives(peer, x, weight, bias)
    truth = derivatives(peer, x.double(), weight.double(), None if bias is None else bias.double())
    for g, p, t in zip(got, same_dtype, truth, strict=True):
        assert_within_yardstick(g, p, t)
    if not dense:
        assert not got[2][~mask].any()
    return got


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_options(n: int, name: str) -> None:
    channels, out, kernel, options = CASES[name]
    layer = LAYERS[n](channels, out, kernel, **options)
    check(n, layer, *tensors(layer, (2, channels, *SPATIAL[n]), torch.float32))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_options_by_dimension(n: int) -> None:
    options = dict(UNEVEN[n])
    layer = LAYERS[n](3, 4, options.pop("kernel", 3), **options)
    check(n, layer, *tensors(layer, (2, 3, *SPATIAL[n]), torch.float32))


@pytest.mark.parametrize("dense", [False, True], ids=["masked", "dense_grad"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_dtypes(n: int, dtype: torch.dtype, dense: bool) -> None:
    layer = LAYERS[n](6, 8, 3, stride=2, padding=1, groups=2)
    check(n, layer, *tensors(layer, (2, 6, *SPATIAL[n]), dtype), dense)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_dense_gradient_reaches_pruned_entries(n: int) -> None:
    layer = LAYERS[n](3, 4, 3, padding=1)
    x, weight, mask, bias = tensors(layer, (2, 3, *SPATIAL[n]), torch.float32)
    got = check(n, layer, x, weight, mask, bias, dense=True)
    assert got[2][~mask].ne(0).all()


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("padding", [1, "same"])
def test_unbatched(n: int, padding: int | str) -> None:
    layer = LAYERS[n](3, 4, 2, padding=padding)
    got = check(n, layer, *tensors(layer, (3, *SPATIAL[n]), torch.float32))
    assert got[0].ndim == n + 1


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"padding": "same"}, {"padding": 1, "padding_mode": "circular"}], ids=str)
def test_empty_batch(n: int, options: dict) -> None:
    layer = LAYERS[n](3, 4, 2, **options)
    got = check(n, layer, *tensors(layer, (0, 3, *SPATIAL[n]), torch.float32))
    assert got[0].shape[0] == 0 and not got[2].any() and not got[3].any()


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("which", ["x", "weight", "both"])
def test_channels_last(groups: int, which: str) -> None:
    layer = nn.Conv2d(8, 16, 3, padding=1, groups=groups)
    x, weight, mask, bias = tensors(layer, (2, 8, 9, 7), torch.float32)
    if which != "weight":
        x = x.to(memory_format=torch.channels_last)
    if which != "x":
        weight = weight.to(memory_format=torch.channels_last)
    check(2, layer, x, weight, mask, bias)
    got = ops.masked_conv2d(x, weight, ops.pack_mask(mask), bias, padding=1, groups=groups)
    assert got.stride() == DenseMasked(layer)(x, weight, mask, bias).stride()


def test_strided_and_expanded_inputs() -> None:
    layer = nn.Conv2d(4, 6, 3)
    x, weight, mask, bias = tensors(layer, (4, 8, 12, 11), torch.float32)
    for view in (x[:, ::2], x[:1, :4].expand(3, 4, 12, 11), x[:, :4].transpose(2, 3)):
        check(2, layer, view, weight, mask, bias)


def test_positional_arguments_are_those_of_f_conv2d() -> None:
    x, weight, mask, bias = tensors(nn.Conv2d(4, 6, 3, groups=2), (2, 4, 9, 9), torch.float32)
    got = ops.masked_conv2d(x, weight, ops.pack_mask(mask), bias, (2, 1), (1, 0), 2, 2)
    peer = nn.functional.conv2d(x, torch.where(mask, weight, 0), bias, (2, 1), (1, 0), 2, 2)
    torch.testing.assert_close(got, peer)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_only_what_needs_a_gradient_gets_one(which: int) -> None:
    layer = nn.Conv2d(3, 4, 3)
    x, weight, mask, bias = tensors(layer, (2, 3, 6, 6), torch.float32)
    leaves = [x, weight, bias]
    leaves[which].requires_grad_()
    ops.masked_conv2d(x, weight, ops.pack_mask(mask), bias).sum().backward()
    assert [t.grad is not None for t in leaves] == [i == which for i in range(3)]


def test_same_padding_does_not_warn() -> None:
    layer = nn.Conv2d(3, 4, 2)
    x, weight, mask, bias = tensors(layer, (1, 3, 5, 5), torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ops.masked_conv2d(x, weight, ops.pack_mask(mask), bias, padding="same")
