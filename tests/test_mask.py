# SPDX-License-Identifier: Apache-2.0
"""Mask and Masks as values."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import sparsekit as sk
from sparsekit import ops

SHAPES = [(), (0,), (5,), (3, 33), (4, 3, 3, 3), (0, 4), (4, 0)]


def dense(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_round_trip_and_counts(shape: tuple[int, ...]) -> None:
    bits = dense(shape)
    mask = sk.Mask.from_dense(bits)
    assert mask.shape == shape and torch.equal(mask.dense(), bits)
    assert mask.count() == bits.sum() and mask.numel == bits.numel()
    assert mask.sparsity == pytest.approx(1 - bits.sum().item() / bits.numel() if bits.numel() else 0)
    full = sk.Mask.full(shape)
    assert full.dense().all() and full.count() == bits.numel() and full.sparsity == 0


@given(st.sampled_from(SHAPES), st.integers(0, 50), st.integers(51, 99))
def test_algebra(shape: tuple[int, ...], one: int, two: int) -> None:
    a, b = dense(shape, one), dense(shape, two)
    p, q = sk.Mask.from_dense(a), sk.Mask.from_dense(b)
    assert (p & q) == sk.Mask.from_dense(a & b)
    assert (p | q) == sk.Mask.from_dense(a | b)
    assert (p ^ q) == sk.Mask.from_dense(a ^ b)
    assert ~p == sk.Mask.from_dense(~a)
    assert ~~p == p and (p & ~p).count() == 0 and (p | ~p) == sk.Mask.full(shape)
    assert (p == q) == torch.equal(a, b)


def test_padding_bits_stay_zero() -> None:
    mask = sk.Mask.full((2, 33))
    for other in (~mask, mask & mask, mask | ~mask, mask ^ mask, ~~mask):
        assert not (other.words[:, 1] & ~1).any()


def test_equality_needs_the_shape_too() -> None:
    assert sk.Mask.full((2, 3)) != sk.Mask.full((2, 1, 3))
    assert sk.Mask.full((2, 3)) != "mask"
    with pytest.raises(TypeError):
        hash(sk.Mask.full((2, 3)))


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        sk.Mask.full((2, 3)).shape = (3, 2)


def test_clone_is_independent() -> None:
    mask = sk.Mask.full((2, 3))
    twin = mask.clone()
    twin.words.zero_()
    assert mask.count() == 6 and twin.count() == 0


def test_repr() -> None:
    assert repr(sk.Mask.from_dense(torch.eye(2, dtype=torch.bool))) == "Mask(shape=(2, 2), kept=2, sparsity=0.5000)"


ERRORS = [
    (
        lambda: sk.Mask.from_dense(torch.ones(3)),
        TypeError,
        "pack_mask: mask: expected a bool tensor, got torch.float32",
    ),
    (
        lambda: sk.Mask(torch.zeros(2, 2, dtype=torch.int32), (2, 3)),
        ValueError,
        "Mask: words: expected shape (2, 1) for a mask of shape (2, 3), got (2, 2)",
    ),
    (
        lambda: sk.Mask(torch.zeros(2, 1, dtype=torch.int64), (2, 3)),
        TypeError,
        "Mask: words: expected dtype torch.int32, got torch.int64",
    ),
    (
        lambda: sk.Mask.full((2, 3)) & sk.Mask.full((3, 2)),
        ValueError,
        "Mask: operand: expected shape (2, 3), got (3, 2)",
    ),
    (lambda: sk.Mask.full((2, 3)) | torch.ones(2, 3), TypeError, "Mask: operand: expected a Mask, got Tensor"),
    (
        lambda: masks(a=(2, 3)).overlap(masks(b=(2, 3))),
        ValueError,
        "Masks: operand: expected the same layers, got a difference in a, b",
    ),
    (
        lambda: masks(a=(2, 3)).overlap(masks(a=(3, 2))),
        ValueError,
        "Mask: operand: expected shape (2, 3), got (3, 2)",
    ),
]


@pytest.mark.parametrize(("call", "kind", "text"), ERRORS, ids=[e[2][:40] for e in ERRORS])
def test_errors(call, kind: type, text: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value) == text


def masks(seed: int = 0, **shapes: tuple[int, ...]) -> sk.Masks:
    return sk.Masks(
        {name: sk.Mask.from_dense(dense(shape, seed + i)) for i, (name, shape) in enumerate(shapes.items())}
    )


def test_masks_is_an_ordered_mapping() -> None:
    both = masks(b=(2, 3), a=(5, 40))
    assert list(both) == ["b", "a"] and len(both) == 2 and "a" in both and both["a"].shape == (5, 40)
    assert both.numel == 206
    assert both.count() == both["a"].count() + both["b"].count()
    assert both.sparsity == pytest.approx(1 - both.count() / 206)
    assert sk.Masks({}).sparsity == 0 and sk.Masks({}).count() == 0


def test_masks_do_not_follow_the_mapping_they_came_from() -> None:
    source = {"a": sk.Mask.full((2, 2))}
    both = sk.Masks(source)
    source["b"] = sk.Mask.full((1,))
    assert list(both) == ["a"]


def test_masks_equality_and_hash() -> None:
    one, same, other = masks(a=(4, 9), b=(3,)), masks(a=(4, 9), b=(3,)), masks(seed=7, a=(4, 9), b=(3,))
    swapped = sk.Masks({"b": one["b"], "a": one["a"]})
    assert one == same == copy.deepcopy(one) and one != other and one != swapped and one != "masks"
    assert one.hash() == same.hash() and len({one.hash(), other.hash(), swapped.hash()}) == 3
    assert masks(a=(2, 6)).hash() != sk.Masks({"a": sk.Mask(masks(a=(2, 6))["a"].words, (2, 2, 3))}).hash()


def test_the_hash_never_changes() -> None:
    # Published beside results: a change of format must be noticed.
    eye = sk.Masks({"fc": sk.Mask.from_dense(torch.eye(3, 40, dtype=torch.bool))})
    assert eye.hash() == hashlib.sha256(b"fc:(3, 40):" + struct.pack("<6i", 1, 0, 2, 0, 4, 0)).hexdigest()


def test_overlap() -> None:
    one = sk.Masks({"a": sk.Mask.from_dense(torch.tensor([True, True, False, False]))})
    two = sk.Masks({"a": sk.Mask.from_dense(torch.tensor([True, False, True, False]))})
    nothing = sk.Masks({"a": sk.Mask.from_dense(torch.zeros(4, dtype=torch.bool))})
    assert one.overlap(two) == pytest.approx(1 / 3) and one.overlap(one) == 1
    assert one.overlap(nothing) == 0 and nothing.overlap(nothing) == 1
    assert one.overlap(sk.Masks({"a": ~one["a"]})) == 0


def test_overlap_of_many_layers_is_the_ratio_of_the_sums() -> None:
    shapes = {f"l{i}": shape for i, shape in enumerate(SHAPES)}
    one, two = masks(**shapes), masks(seed=40, **shapes)
    bits = [(one[name].dense(), two[name].dense()) for name in one]
    both, either = sum(int((a & b).sum()) for a, b in bits), sum(int((a | b).sum()) for a, b in bits)
    reordered = sk.Masks({name: two[name] for name in reversed(list(two))})
    assert one.overlap(two) == one.overlap(reordered) == both / either
    assert one.count() == sum(int(a.sum()) for a, _ in bits)
    assert sk.Masks({}).overlap(sk.Masks({})) == 1


def test_table() -> None:
    both = sk.Masks(
        {"conv": sk.Mask.full((40, 30, 3, 3)), "fc": sk.Mask.from_dense(torch.zeros(2, 5, dtype=torch.bool))}
    )
    assert both.table() == repr(both)
    assert [line.split() for line in both.table().splitlines()] == [
        ["layer", "shape", "kept", "of", "sparsity"],
        ["conv", "40x30x3x3", "10,800", "10,800", "0.00%"],
        ["fc", "2x5", "0", "10", "100.00%"],
        ["total", "10,800", "10,810", "0.09%"],
    ]
    assert len({len(line) for line in both.table().splitlines()}) == 1


def test_words_are_those_of_the_ops() -> None:
    bits = dense((3, 70))
    assert torch.equal(sk.Mask.from_dense(bits).words, ops.pack_mask(bits))
