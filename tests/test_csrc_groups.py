# SPDX-License-Identifier: Apache-2.0
"""Compiled structured masks: what their raw functions refuse, and that nothing is written then."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from sparsekit import _C

SCORES, OUT = torch.ones(8, 8), torch.full((8,), 7.0)
WORDS = torch.full((8, 1), 7, dtype=torch.int32)
S, U, W = SCORES.data_ptr(), OUT.data_ptr(), WORDS.data_ptr()

REFUSED: list[tuple[Callable[[], object], str]] = [
    (
        lambda: _C.group_scores(S, U, 8, 8, 0, 1, 0),
        "group_scores: rows, cols, h, w: expected sizes >= 1, got 8, 8, 0, 1",
    ),
    (
        lambda: _C.group_scores(S, U, 0, 8, 1, 1, 0),
        "group_scores: rows, cols, h, w: expected sizes >= 1, got 0, 8, 1, 1",
    ),
    (lambda: _C.group_scores(S, U, 8, 8, 1, 8, 4), "dtype: expected a code of _C.dtypes, got 4"),
    (lambda: _C.group_scores(S, U, 8, 8, 1, 8, 0, p=0.0), "group_scores: p: expected a number > 0 or inf, got 0.0"),
    (
        lambda: _C.group_scores(S, U, 8, 8, 1, 8, 0, p=math.nan),
        "group_scores: p: expected a number > 0 or inf, got nan",
    ),
    (
        lambda: _C.group_scores(S, U, 8, 8, 1, 8, 0, key="abs"),
        "group_scores: key: expected one of magnitude, value, got",
    ),
    (lambda: _C.group_scores(S, U, 8, 8, 1, 8, 0, force="mmx"), "force: expected one of scalar.*, got mmx"),
    (lambda: _C.expand_units(S, W, 8, 8, 1, -1, True), "expand_units: rows, cols, h, w: expected sizes >= 1, got"),
    (lambda: _C.nm_mask(S, W, 8, 8, 1, 3, 2, 0), "nm_mask: n, m: expected 1 <= n <= m <= 32767, got 3, 2"),
    (lambda: _C.nm_mask(S, W, 8, 8, 1, 0, 2, 0), "nm_mask: n, m: expected 1 <= n <= m <= 32767, got 0, 2"),
    (lambda: _C.nm_mask(S, W, 8, 0, 1, 1, 40000, 0), "nm_mask: n, m: expected 1 <= n <= m <= 32767, got 1, 40000"),
    (lambda: _C.nm_mask(S, W, 8, 8, 1, 1, 3, 0), "nm_mask: channels: expected a multiple of 3, got 8"),
    (
        lambda: _C.nm_mask(S, W, 8, 8, 0, 1, 2, 0),
        "nm_mask: rows, channels, spatial: expected sizes >= 0, >= 0, >= 1, got",
    ),
    (lambda: _C.nm_mask(S, W, 8, 8, 1, 1, 2, 0, nan="no"), "nm_mask: nan: expected one of drop, error, keep, got no"),
    (
        lambda: _C.transposable_nm_mask(S, W, 6, 8, 1, 0),
        "transposable_nm_mask: rows, channels: expected multiples of 4, got 6, 8",
    ),
    (
        lambda: _C.transposable_nm_mask(S, W, 8, 6, 1, 0),
        "transposable_nm_mask: rows, channels: expected multiples of 4, got 8, 6",
    ),
    (
        lambda: _C.transposable_nm_mask(S, W, -4, 8, 1, 0),
        "transposable_nm_mask: rows, channels, spatial: expected sizes",
    ),
]


@pytest.mark.parametrize(("call", "text"), REFUSED, ids=[text[:50] for _, text in REFUSED])
def test_bad_arguments_are_named_and_nothing_is_written(call: Callable[[], object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call()
    assert (OUT == 7).all() and (WORDS == 7).all()


def test_a_unit_larger_than_the_scores_is_all_of_them() -> None:
    for h, w in ((8, 8), (100, 8), (8, 1000), (10**12, 10**12)):
        out, words = torch.zeros(1), torch.zeros(8, 1, dtype=torch.int32)
        _C.group_scores(S, out.data_ptr(), 8, 8, h, w, 0, p=1.0)
        assert out.item() == 64
        unit = torch.tensor([1], dtype=torch.int32)
        for listed in (False, True):
            _C.expand_units(unit.data_ptr(), words.zero_().data_ptr(), 8, 8, h, w, listed)
            assert (words == 255).all()
