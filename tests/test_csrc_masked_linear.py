# SPDX-License-Identifier: Apache-2.0
"""The masked product for few tokens on a CPU, on every instruction path, against float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from sparsekit import ops
from sparsekit.ops import native

_C = native._C
pytestmark = pytest.mark.skipif(_C is None, reason="needs the compiled module")
PATHS = _C.cpu_features() if _C is not None else []


def problem(tokens: int, rows: int, cols: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, mask, bias; the weight is poisoned where the mask is zero."""
    generator = torch.Generator().manual_seed(seed)
    x, weight = (torch.randn(n, cols, generator=generator) for n in (tokens, rows))
    mask = torch.rand(rows, cols, generator=generator) < 0.5
    poison = torch.tensor([math.nan, math.inf, -math.inf, 1e30])[torch.randint(4, (rows, cols), generator=generator)]
    return x, torch.where(mask, weight, poison), mask, torch.randn(rows, generator=generator)


def compiled(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, threads: int = 1, force: str = "") -> Tensor:
    words, y = ops.pack_mask(mask), torch.full((len(x), len(weight)), math.nan)
    pointers = [0 if t is None else t.data_ptr() for t in (x, weight, words, bias, y)]
    _C.masked_linear(*pointers, len(x), *weight.shape, threads, force)
    return y


def assert_as_good_as_torch(y: Tensor, x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> None:
    z = torch.where(mask, weight, 0.0)
    exact = F.linear(x.double(), z.double(), None if bias is None else bias.double())
    theirs, ours = (F.linear(x, z, bias) - exact).abs(), (y - exact).abs()
    assert ours.max() <= 2 * theirs.max() + 1e-6 * exact.abs().max()
    assert ours.square().mean().sqrt() <= 1.1 * theirs.square().mean().sqrt() + 1e-7 * exact.square().mean().sqrt()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 6, 7, 8, 9, 17])
def test_every_tile(tokens: int, path: str) -> None:
    for rows, cols in ((1, 1), (2, 31), (3, 32), (17, 33), (33, 47), (16, 512), (5, 1009)):
        x, weight, mask, bias = problem(tokens, rows, cols)
        for b in (None, bias):
            y = compiled(x, weight, mask, b, force=path)
            assert_as_good_as_torch(y, x, weight, mask, b)
            assert torch.equal(compiled(x, weight, mask, b, threads=3, force=path), y)


@pytest.mark.parametrize("path", PATHS)
def test_large_sums_are_as_exact_as_those_of_torch(path: str) -> None:
    x, weight, mask, bias = problem(5, 64, 20_000)
    y = compiled(x, weight, mask, bias, force=path)
    exact = F.linear(x.double(), torch.where(mask, weight, 0.0).double(), bias.double())
    theirs = F.linear(x, torch.where(mask, weight, 0.0), bias) - exact
    assert (y - exact).abs().max() <= 2 * theirs.abs().max()


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 40),
    rows=st.integers(1, 40),
    cols=st.integers(1, 200),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_any_shape(tokens: int, rows: int, cols: int, seed: int, data: st.DataObject) -> None:
    x, weight, mask, bias = problem(tokens, rows, cols, seed)
    y = compiled(x, weight, mask, bias, force=data.draw(st.sampled_from(PATHS)))
    assert_as_good_as_torch(y, x, weight, mask, bias)


def test_nothing_is_read_past_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    # NaN behind x would spread if a tail read it.
    store = torch.full((3 * 37 + 64,), math.nan)
    x = store[: 3 * 37].view(3, 37)
    _, weight, mask, bias = problem(3, 9, 37)
    x.copy_(torch.randn(3, 37))
    for path in PATHS:
        assert_as_good_as_torch(compiled(x, weight, mask, bias, force=path), x, weight, mask, bias)


@pytest.mark.parametrize("least", [0, 1 << 22])
def test_the_op_takes_it_for_few_tokens(least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "FEW_TOKENS", {1 << 22: 32, 0: 4})
    calls: list[int] = []
    real = _C.masked_linear

    class Counted:
        def __getattr__(self, name: str):
            return getattr(_C, name)

        def masked_linear(self, *arguments) -> None:
            calls.append(arguments[5])
            real(*arguments)

    monkeypatch.setattr(native, "_C", Counted())
    rows, cols = (2048, 2048) if least else (24, 40)
    most = native.FEW_TOKENS[least]
    for shape in ((cols,), (most, cols), (most + 1, cols), (2, most // 2, cols), (0, cols)):
        x, weight, mask, bias = problem(math.prod(shape[:-1]), rows, cols)
        y = ops.masked_linear(x.view(shape), weight, ops.pack_mask(mask), bias)
        assert y.shape == (*shape[:-1], rows)
        if y.numel():
            assert_as_good_as_torch(y.view(-1, rows), x, weight, mask, bias)
    assert calls == [1, most, most]


def test_strides_and_kinds_that_it_does_not_take() -> None:
    x, weight, mask, bias = problem(3, 40, 40)
    words = ops.pack_mask(mask)
    expected = ops.masked_linear(x, weight, words, bias)
    strided = torch.randn(3, 80)[:, ::2].copy_(x)
    torch.testing.assert_close(ops.masked_linear(strided, weight, words, bias), expected)
    transposed = weight.t().contiguous().t()
    torch.testing.assert_close(ops.masked_linear(x, transposed, words, bias), expected)
    for dtype, tolerance in ((torch.float64, 1e-5), (torch.bfloat16, 0.3)):
        y = ops.masked_linear(x.to(dtype), weight.to(dtype), words, bias.to(dtype))
        assert y.dtype == dtype and (y - expected).abs().max() < tolerance
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.masked_linear(x, weight, words, bias).dtype == torch.bfloat16
    negated = torch._neg_view(x)
    torch.testing.assert_close(
        ops.masked_linear(negated, weight, words, bias), ops.masked_linear(-x, weight, words, bias)
    )


def test_bad_sizes() -> None:
    with pytest.raises(ValueError, match="masked_linear: tokens: expected a size >= 0, got -1"):
        _C.masked_linear(0, 0, 0, 0, 0, -1, 1, 1)
    with pytest.raises(ValueError, match="masked_linear: rows, cols: expected sizes >= 0"):
        _C.masked_linear(0, 0, 0, 0, 0, 1, -1, 1)
