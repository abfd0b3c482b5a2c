# SPDX-License-Identifier: Apache-2.0
"""Curves as text: names stay names, pieces follow one another, and nonsense is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from sparsekit.benchmarks.curves import Pieces, curve_of
from sparsekit.pruners.checks import described
from sparsekit.pruners.learning_rate import CURVES

SPODE = "warmup:20+cosine:70:1e-4+constant:10"


def made(text: str) -> Pieces:
    curve = curve_of(text)
    assert isinstance(curve, Pieces)
    return curve


@pytest.mark.parametrize("name", CURVES)
def test_names_stay_names(name: str) -> None:
    assert curve_of(name) == name


def test_the_fine_tuning_of_spode_by_hand() -> None:
    curve = made(SPODE)
    expected = {
        0: 1 / 20,
        10: (1 / 20 + 1) / 2,
        20: 1.0,
        55: 1e-4 + (1 - 1e-4) / 2,
        89.999: 1e-4,
        90: 1e-4,
        95: 1e-4,
        100: 1e-4,
    }
    assert {epoch: curve(epoch / 100) for epoch in expected} == pytest.approx(expected, abs=1e-8)


def test_shares_need_not_add_up_to_the_phase() -> None:
    long, short = made("warmup:2+linear:6:0.5+cosine:4"), made("warmup:20+linear:60:0.5+cosine:40")
    assert [long(t / 12) for t in (2, 5, 8, 10, 12)] == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert [long(t) - short(t) for t in (0.4, 0.7, 0.9)] == pytest.approx([0, 0, 0])


def test_steps_are_pieces_that_stay() -> None:
    curve, step = made("constant:80+constant:40:0.1+constant:40:0.01"), CURVES["step"]
    assert [curve(i / 160) for i in range(160)] == [step(i / 160) for i in range(160)]


def test_one_piece_is_the_curve_of_its_name() -> None:
    for name in ("cosine", "linear", "constant"):
        curve = made(f"{name}:3")
        assert [curve(i / 7) for i in range(8)] == pytest.approx([CURVES[name](i / 7) for i in range(8)])


def test_a_short_warm_up_begins_at_most_at_one() -> None:
    assert made("warmup:0.5+cosine:9")(0) == 1.0 and made("warmup:5:2+constant:1")(1) == 2.0


def test_checkpoints_tell_curves_apart_without_an_address() -> None:
    texts = [described(curve=curve_of(text))["curve"] for text in (SPODE, SPODE, "warmup:20+cosine:70+constant:10")]
    assert texts[0] == texts[1] != texts[2] and "0x" not in (texts[0] or "")


@pytest.mark.parametrize(
    "text",
    ["sine", "", "cosine:", "cosine:0", "cosine:-1", "cosine:nan", "cosine:1:-1", "cosine:1:2:3", "constant:1:-2"]
    + ["sine:1", "warmup:x", "cosine:1++linear:1", "step:1", "cosine:inf", 3, None],
)
def test_nonsense_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="Recipe: dense_curve: expected "):
        curve_of(text, "dense_curve")
    assert math.isfinite(made("cosine:1")(0.3))
