# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels of structured masks on the emulator: bit for bit what the CPU gives, for any order of threads."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any
from unittest import mock

import pytest
import torch
from emulator import SMALL, emulated
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsekit import ops
from sparsekit.ops import structured_native
from sparsekit.ops.structured import units_of

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
NORMS = [("value", 2.0), ("magnitude", 1.0), ("magnitude", 2.0), ("magnitude", math.inf), ("magnitude", 3.0)]
SPECIAL = [-2.0, -1.0, -0.0, 0.0, 1.0, 2.0, math.nan, math.inf, -math.inf]
# Aligned rows and not, flat and tall units, several strips and chunks, more leaves than lanes, the last block part full.
CASES: list[tuple[tuple[int, ...], Any]] = [
    ((3, 1), "filter"),
    ((5, 300), "filter"),
    ((3, 301), "filter"),
    ((2, 20480), "filter"),
    ((6, 32, 3, 3), "filter"),
    ((4, 33), "channel"),
    ((70, 1100), "channel"),
    ((40, 8, 3, 3), "channel"),
    ((3, 2, 17, 19), "channel"),
    ((8300, 8), "channel"),
    ((70, 320), (40, 136)),
    ((70, 300), (40, 129)),
    ((21, 72), (4, 4)),
    ((9, 70), (4, 4)),
    ((5, 608), (3, 264)),
    ((33, 1100), (1, 16)),
    ((65,), (4, 100)),
]


def random(shape: Sequence[int], dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.pow(10.0, torch.randint(-4, 5, tuple(shape), generator=generator))
    return (torch.randn(tuple(shape), generator=generator) * spread).to(dtype)


def crowded(shape: Sequence[int], dtype: torch.dtype, seed: int, special: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.tensor(SPECIAL if special else SPECIAL[:6])
    return values[torch.randint(len(values), tuple(shape), generator=generator)].to(dtype)


def shifted(x: Tensor) -> Tensor:
    """The same values at an address that no wide access may read."""
    return torch.cat([x.new_zeros(1), x.reshape(-1)])[1:].view(x.shape)


def bits(x: Tensor) -> Tensor:
    return x.view(torch.int64 if x.dtype == torch.float64 else torch.int32)


def kernel(name: str, *arguments: Any, flags: Sequence[str] = ()) -> Any:
    """The CUDA implementation of an op with emulated kernels, to which a CPU tensor is device memory."""
    with mock.patch.multiple(structured_native, _C=emulated(*flags)):
        return structured_native.CUDA_IMPLEMENTATIONS[name](*arguments)


@pytest.fixture(params=[0, 1, 2])
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another order of threads and blocks, on another number of processors."""
    monkeypatch.setenv("EMULATOR_SEED", str(request.param))
    monkeypatch.setenv("EMULATOR_PROCESSORS", str(1 + 2 * request.param))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("shape", "groups"), CASES, ids=str)
def test_group_scores(shape: tuple[int, ...], groups: Any, dtype: torch.dtype) -> None:
    _, grid, unit = units_of("test", shape, groups)
    clean, spoiled = random(shape, dtype, 1), random(shape, dtype, 1)
    spoiled.view(-1)[spoiled.numel() // 2] = math.nan
    for scores, (key, p) in itertools.product((clean, spoiled), NORMS):
        expected = torch.ops.sparsekit.group_scores(scores, grid, unit, p, key)
        assert torch.equal(bits(kernel("group_scores", scores, grid, unit, p, key)), bits(expected))
    for key, p in NORMS[:2]:
        expected = torch.ops.sparsekit.group_scores(clean, grid, unit, p, key)
        assert torch.equal(bits(kernel("group_scores", shifted(clean), grid, unit, p, key)), bits(expected))


@pytest.mark.usefixtures("order")
def test_group_scores_in_any_order() -> None:
    for shape, groups in CASES:
        if math.prod(shape) > 30000:
            continue
        _, grid, unit = units_of("test", shape, groups)
        scores = random(shape, torch.float32, 2)
        expected = torch.ops.sparsekit.group_scores(scores, grid, unit, 2.0, "magnitude")
        assert torch.equal(bits(kernel("group_scores", scores, grid, unit, 2.0, "magnitude")), bits(expected))


def test_more_parts_than_a_grid_has_blocks() -> None:
    """SMALL has three blocks at most."""
    for shape, groups in CASES:
        _, grid, unit = units_of("test", shape, groups)
        scores = random(shape, torch.float16, 3)
        expected = torch.ops.sparsekit.group_scores(scores, grid, unit, 2.0, "magnitude")
        for aligned in (scores, shifted(scores)):
            got = kernel("group_scores", aligned, grid, unit, 2.0, "magnitude", flags=SMALL)
            assert torch.equal(bits(got), bits(expected))


def test_padding_bits_of_units_stay_behind() -> None:
    for units, shape, grid, unit in (((3, 1), (3, 5), (3, 5), (1, 1)), ((1, 1), (3, 5), (1, 5), (3, 1))):
        words = torch.full(units, -1, dtype=torch.int32)
        for got in (
            kernel("expand_units", words, shape, grid, unit),
            torch.ops.sparsekit.expand_units(words, shape, grid, unit),
        ):
            assert torch.equal(got, ops.pack_mask(torch.ones(shape, dtype=torch.bool)))


shapes = st.one_of(
    st.tuples(st.integers(1, 9), st.sampled_from([1, 5, 31, 32, 33, 64, 100, 257])),
    st.tuples(st.integers(1, 40), st.integers(1, 12), st.integers(1, 4), st.integers(1, 4)),
)
blocks = st.tuples(st.sampled_from([1, 2, 3, 4, 8, 50]), st.sampled_from([1, 2, 3, 4, 7, 16, 31, 32, 33, 64, 500]))


@settings(max_examples=60)
@given(shape=shapes, groups=st.one_of(st.sampled_from(["filter", "channel"]), blocks), seed=st.integers(0, 10**6))
def test_expand_units(shape: tuple[int, ...], groups: Any, seed: int) -> None:
    unit_shape, grid, unit = units_of("test", shape, groups)
    words = ops.pack_mask(torch.rand(unit_shape, generator=torch.Generator().manual_seed(seed)) < 0.5)
    expected = ops.expand_units(words, shape, groups)
    assert torch.equal(kernel("expand_units", words, shape, grid, unit), expected)


def check_masks(name: str, scores: list[Tensor], *sizes: int, key: str, nan: str) -> None:
    words, invalid = kernel(name, scores, *sizes, key, nan)
    expected, flag = getattr(ops, name)(scores, *sizes, key=key, nan=nan)
    assert all(torch.equal(w, e) for w, e in zip(words, expected, strict=True))
    assert bool(invalid) == bool(flag) and invalid.shape == ()


@pytest.mark.parametrize("nan", ["error", "drop", "keep"])
@pytest.mark.parametrize("key", ["value", "magnitude"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_nm_mask(dtype: torch.dtype, key: str, nan: str) -> None:
    for seed, (n, m, rows, groups, spatial) in enumerate(
        [(2, 4, 5, 25, 1), (1, 4, 3, 8, 1), (4, 8, 3, 10, 1), (2, 4, 3, 5, 9), (3, 7, 2, 6, 5), (16, 64, 2, 2, 1)]
    ):
        shape = (rows, groups * m, spatial)
        scores = [crowded(shape, dtype, seed), random(shape, dtype, seed)]
        check_masks("nm_mask", scores, n, m, key=key, nan=nan)
        check_masks("nm_mask", [shifted(scores[1])], n, m, key=key, nan=nan)
        check_masks("nm_mask", [crowded(shape, dtype, seed, special=False)], n, m, key=key, nan=nan)


@pytest.mark.parametrize("nan", ["error", "drop", "keep"])
@pytest.mark.parametrize("key", ["value", "magnitude"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_transposable_nm_mask(dtype: torch.dtype, key: str, nan: str) -> None:
    for seed, shape in enumerate([(4, 4), (8, 36), (4, 260), (8, 12, 3, 3), (4, 8, 5)]):
        scores = [crowded(shape, dtype, seed), random(shape, dtype, seed)]
        check_masks("transposable_nm_mask", scores, key=key, nan=nan)
        check_masks("transposable_nm_mask", [shifted(scores[1])], key=key, nan=nan)
        check_masks("transposable_nm_mask", [crowded(shape, dtype, seed, special=False)], key=key, nan=nan)


@pytest.mark.usefixtures("order")
def test_masks_in_any_order() -> None:
    check_masks("nm_mask", [random((9, 260), torch.float32, 3)], 2, 4, key="value", nan="error")
    check_masks("nm_mask", [random((9, 20, 3), torch.float16, 3)], 2, 5, key="value", nan="error")
    check_masks("transposable_nm_mask", [random((8, 12, 3), torch.float32, 3)], key="value", nan="error")


def test_an_invalid_mask_stays_invalid_whatever_follows() -> None:
    bad, good = torch.full((4, 8), math.nan), torch.ones(4, 8)
    for name, sizes in (("nm_mask", (2, 4)), ("transposable_nm_mask", ())):
        for scores in ([bad, good], [good, bad]):
            assert bool(kernel(name, scores, *sizes, "magnitude", "error")[1])
        assert not bool(kernel(name, [bad, good], *sizes, "magnitude", "drop")[1])


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (4, 4, 0)], ids=str)
def test_empty_weights(shape: tuple[int, ...]) -> None:
    scores = torch.zeros(shape)
    for groups in ("filter", "channel", (3, 3)):
        _, grid, unit = units_of("test", shape, groups)
        assert torch.equal(kernel("group_scores", scores, grid, unit, 2.0, "magnitude"), torch.zeros(grid))
        words = ops.pack_mask(torch.ones(grid, dtype=torch.bool))
        assert kernel("expand_units", words, shape, grid, unit).shape == ops.words_shape(shape)
    assert kernel("nm_mask", [scores], 2, 4, "value", "error")[0][0].shape == ops.words_shape(shape)
    assert kernel("transposable_nm_mask", [scores], "value", "error")[0][0].shape == ops.words_shape(shape)


def test_groups_too_long_for_the_module() -> None:
    scores = random((1, 32768), torch.float32, 4)
    words, _ = kernel("nm_mask", [scores], 40, 32768, "magnitude", "error")
    assert torch.equal(words[0], ops.topk_mask([scores], 40).masks[0])
