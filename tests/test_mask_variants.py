# SPDX-License-Identifier: Apache-2.0
"""Shuffled, random and inverted masks: exact numbers, units that stay whole, and draws that are even."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sparsekit as sk
from sparsekit.mask_variants import UNITS


def given() -> dict[str, sk.Mask]:
    generator = torch.Generator().manual_seed(3)
    shapes = {"conv": (6, 4, 3, 3), "fc": (5, 33), "bare": (7, 1)}
    return {n: sk.Mask.from_dense(torch.rand(s, generator=generator) < 0.3) for n, s in shapes.items()}


def whole(units: str) -> dict[str, sk.Mask]:
    """Masks of whole filters or channels."""
    rows = torch.tensor([True, False, False, True, False, False])[:, None, None, None].expand(6, 4, 2, 2)
    return {"conv": sk.Mask.from_dense((rows if units == "filter" else rows.transpose(0, 1)).contiguous())}


def bits(masks: dict[str, sk.Mask] | sk.Masks) -> dict[str, list[bool]]:
    return {name: mask.dense().flatten().tolist() for name, mask in masks.items()}


@pytest.mark.parametrize("units", UNITS)
def test_shuffled_permutes_units_within_layers(units: str) -> None:
    masks = given()
    found = sk.shuffled(masks, 5, units)
    assert list(found) == list(masks) and found == sk.shuffled(masks, 5, units) != sk.shuffled(masks, 6, units)
    for name, mask in masks.items():
        old, new = mask.dense(), found[name].dense()
        assert new.shape == old.shape
        if units == "unstructured":
            assert found[name].count() == mask.count() and found[name] != mask
            continue
        dim = 0 if units == "filter" else 1
        rows = [sorted(x.flatten().tolist() for x in side.unbind(dim)) for side in (old, new)]
        assert rows[0] == rows[1]


def test_shuffled_is_the_permutation_of_torch() -> None:
    mask = sk.Mask.from_dense(torch.arange(12).reshape(3, 4) < 5)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(9))
    assert bits(sk.shuffled({"a": mask}, 9)) == {"a": (order < 5).tolist()}


@pytest.mark.parametrize("units", UNITS)
def test_random_keeps_as_many_units_of_every_layer(units: str) -> None:
    masks = given() if units == "unstructured" else whole(units)
    found = sk.random_like(masks, 1, units=units)
    assert {n: m.count() for n, m in found.items()} == {n: m.count() for n, m in masks.items()}
    assert found == sk.random_like(masks, 1, units=units) and found != sk.Masks(masks)
    if units != "unstructured":
        assert sk.random_like(masks, 2, units=units)["conv"] != found["conv"]
        (mask,) = found.values()
        kept = mask.dense().transpose(0, 0 if units == "filter" else 1).flatten(1)
        assert torch.equal(kept.any(1), kept.all(1)) and int(kept.any(1).sum()) == 2


def test_random_divides_the_same_total_by_an_allocation() -> None:
    masks = given()
    total = sum(mask.count() for mask in masks.values())
    shapes = {name: mask.shape for name, mask in masks.items()}
    sizes = {name: mask.numel for name, mask in masks.items()}
    erk = sk.random_like(masks, 0, "erk")
    # The sparsity as a decimal string is another way to the same budget.
    expected = sk.ERK()(shapes, sizes, str(1 - total / sum(sizes.values())))
    assert {name: mask.count() for name, mask in erk.items()} == expected and sum(expected.values()) == total
    even = sk.random_like(masks, 0, sk.Uniform())
    share = total / sum(sizes.values())
    assert all(abs(mask.count() - share * mask.numel) <= 0.5 for mask in even.values())
    own = sk.random_like(masks, 0, {"conv": 0.9, "*": 0.5})
    assert {n: m.count() for n, m in own.items()} == {"conv": 22, "fc": 82, "bare": 3}


@pytest.mark.parametrize("draw", [sk.shuffled, sk.random_like])
def test_every_set_is_equally_likely(draw: object) -> None:
    mask = {"a": sk.Mask.from_dense(torch.tensor([[True, True, False, False]]))}
    counts: dict[str, int] = {}
    for seed in range(1200):
        key = str(draw(mask, seed)["a"].dense().int().tolist())  # pyright: ignore[reportCallIssue]
        counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 6
    # 200 each, standard deviation 13.
    assert all(140 < count < 260 for count in counts.values()), counts


def test_inverted_takes_the_smallest_of_what_is_removed() -> None:
    weight = torch.tensor([[0.5, -0.1, 3.0, 0.2], [-0.3, 0.4, 0.1, -2.0]])
    kept = torch.tensor([[True, True, False, False], [False, False, False, True]])
    found = sk.inverted_choice({"a": sk.Mask.from_dense(kept)}, {"a": weight})["a"].dense()
    # Of the removed 3.0, 0.2, -0.3, 0.4, 0.1 the three smallest.
    assert found.tolist() == [[False, False, False, True], [True, False, True, False]]


def test_inverted_falls_back_on_kept_weights_and_breaks_ties_by_index() -> None:
    weight = torch.tensor([[4.0, 3.0, 1.0, 2.0]])
    kept = torch.tensor([[True, True, True, False]])
    found = sk.inverted_choice({"a": sk.Mask.from_dense(kept)}, {"a": weight})["a"].dense()
    assert found.tolist() == [[False, True, True, True]]
    tied = sk.inverted_choice({"a": sk.Mask.from_dense(kept[:, [3, 3, 0, 3]])}, {"a": torch.ones(1, 4)})["a"].dense()
    assert tied.tolist() == [[True, False, False, False]]


@pytest.mark.parametrize("units, dim", [("filter", 0), ("channel", 1)])
def test_inverted_units_are_ranked_by_their_norm(units: str, dim: int) -> None:
    masks = whole(units)
    norms = torch.tensor([1.0, 6.0, 2.0, 9.0, 5.0, 3.0])
    shape = [1, 1, 1, 1]
    shape[dim] = 6
    weight = norms.reshape(shape).expand(masks["conv"].shape).contiguous()
    found = sk.inverted_choice(masks, {"conv": weight}, units)["conv"].dense()
    alive = found.transpose(0, dim).flatten(1)
    assert torch.equal(alive.any(1), alive.all(1))
    assert alive.any(1).nonzero().flatten().tolist() == [2, 5]


def test_magnitude_masks_are_inverted_exactly() -> None:
    weight = torch.randn(8, 9)
    mask = sk.topk_mask([weight], 30)[0][0]
    found = sk.inverted_choice({"a": sk.Mask(mask, (8, 9))}, {"a": weight})["a"].dense()
    expected: Tensor = torch.zeros(72, dtype=torch.bool)
    expected[weight.abs().flatten().argsort()[:30]] = True
    assert torch.equal(found.flatten(), expected)


def test_masks_may_be_snapshots_of_models_and_are_taken_back() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
    sk.sparsify(model)
    sk.set_masks(model, sk.random_like(sk.masks(model), 0, {"*": 0.5}))
    before = sk.masks(model)
    sk.set_masks(model, sk.shuffled(before, 1))
    assert {n: m.count() for n, m in sk.masks(model).items()} == {"0": 32, "1": 8} and sk.masks(model) != before


def test_vectors_have_no_filters() -> None:
    with pytest.raises(ValueError, match=r"shuffled: masks\['a'\]: expected two dimensions for filter"):
        sk.shuffled({"a": sk.Mask.full((4,))}, 0, "filter")
