# SPDX-License-Identifier: Apache-2.0
"""The check of top-k masks accepts the one right mask and no other, with the stable sort and by proof."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from oracles import topk_oracle
from torch import Tensor

from sparsekit import ops
from sparsekit.benchmarks import topk_checks
from sparsekit.benchmarks.topk_checks import CONTRACT, COUNT, THRESHOLD, TopkCheck, is_topk

KEYS = [
    [1, 1, 1, 1, 1, 1],
    [0, 2, 2, 0, 2, 1],
    [3, 1, 2, 2, 1, 3],
    [5, 4, 3, 2, 1, 0],
    [0, 0, 0, 0, 7, 0],
    [1, torch.inf, 1, torch.inf, 0, 1],
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("keys", KEYS, ids=str)
def test_the_proof_accepts_exactly_the_oracles_mask(keys: list[float], dtype: torch.dtype) -> None:
    values = torch.tensor(keys, dtype=dtype)
    for kept in range(1, 7):
        (truth,), _ = topk_oracle([values], kept)
        for bits in product([False, True], repeat=6):
            mask = torch.tensor(bits)
            assert is_topk(values, mask, kept) == torch.equal(mask, truth), (kept, bits)


@pytest.fixture(params=["sorted", "proven"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topk_checks, "SORTED_LIMIT", 10**6 if request.param == "sorted" else 0)


SCORES = [torch.tensor([[-2.0, 1.0, 0.0], [1.0, -0.0, 2.0]]), torch.tensor([1.0, -1.0, 0.5])]
RIGHT = [torch.tensor([[True, True, False], [True, False, True]]), torch.tensor([False, False, False])]
LATER_TIE = [RIGHT[0] & (SCORES[0].abs() > 1), torch.tensor([True, True, False])]
ALL_TIES = [RIGHT[0], LATER_TIE[1]]
WRONG = [RIGHT[0] ^ torch.tensor([[True, False, False], [False, True, False]]), RIGHT[1]]


@pytest.mark.usefixtures("way")
def test_our_masks_in_every_form() -> None:
    before = [s.clone() for s in SCORES]
    check = TopkCheck(SCORES, 4)
    assert check("ours", RIGHT, CONTRACT) == 4
    assert check("ours", [ops.pack_mask(m) for m in RIGHT], CONTRACT) == 4
    assert check("ours", [ops.pack_mask(torch.cat([m.reshape(-1) for m in RIGHT]))], CONTRACT) == 4
    assert check("floats", [m.float() for m in RIGHT], COUNT) == 4
    assert all(torch.equal(a, b) for a, b in zip(SCORES, before, strict=True))
    single = TopkCheck(SCORES[1:], 2)
    assert single("ours", [torch.tensor([True, True, False])], CONTRACT) == 2
    assert torch.equal(SCORES[1], before[1])


@pytest.mark.usefixtures("way")
def test_a_choice_among_ties_is_open_to_others_alone() -> None:
    check = TopkCheck(SCORES, 4)
    check("ours", RIGHT, CONTRACT)
    assert check("topk", LATER_TIE, COUNT) == 4
    assert check("kthvalue", ALL_TIES, THRESHOLD) == 6
    assert check("kthvalue", LATER_TIE, THRESHOLD) == 4
    for masks in (LATER_TIE, ALL_TIES, WRONG):
        with pytest.raises(
            ValueError, match="bench topk: ours: expected (the masks of the stable sort|a mask that is)"
        ):
            check("ours", masks, CONTRACT)
    with pytest.raises(ValueError, match="bench topk: topk: expected 4 entries kept, got 6"):
        check("topk", ALL_TIES, COUNT)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("rule", [COUNT, THRESHOLD])
def test_others_are_held_to_the_threshold(rule: str) -> None:
    check = TopkCheck(SCORES, 4)
    check("ours", RIGHT, CONTRACT)
    with pytest.raises(ValueError, match="bench topk: other: expected other masks only among equals, got 2 wrong"):
        check("other", WRONG, rule)


@pytest.mark.parametrize("mask", [torch.full((2, 1), 1 << 3, dtype=torch.int32), torch.full((2, 3), 0.5)], ids=str)
def test_masks_that_are_none(mask: Tensor) -> None:
    check = TopkCheck(SCORES[:1], 1)
    with pytest.raises(ValueError, match="expected zero padding bits|expected a mask of zeros and ones"):
        check("other", [mask], CONTRACT)
