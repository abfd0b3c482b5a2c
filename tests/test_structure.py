# SPDX-License-Identifier: Apache-2.0
"""Patterns read off masks: whatever a projection makes is named, and nothing is read into random masks."""

from __future__ import annotations

import pytest
import torch

from sparsekit.projection import Projection
from sparsekit.structure import dead_units, structure_of


@pytest.mark.parametrize("shape", [(32, 64), (32, 16, 3, 3), (32, 16, 5)])
@pytest.mark.parametrize("pattern", ["filter", "channel", "2:4", "1:4", "3:8", "2:4-transposable", "block4x4"])
def test_a_projected_mask_is_named_after_its_pattern(pattern: str, shape: tuple[int, ...]) -> None:
    sparsity = {"1:4": 0.75, "3:8": 0.625}.get(pattern, 0.5)
    kept = Projection(pattern)({"w": torch.randn(shape)}, sparsity).masks["w"].dense()
    assert structure_of(kept) == pattern


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("shape", [(32, 64), (16, 8, 3, 3), (100,), (9, 15)])
def test_single_weights_are_unstructured(shape: tuple[int, ...], sparsity: float) -> None:
    assert structure_of(Projection()({"w": torch.randn(shape)}, sparsity).masks["w"].dense()) == "unstructured"


def test_all_and_nothing() -> None:
    assert structure_of(torch.ones(4, 4, dtype=torch.bool)) == "dense"
    assert structure_of(torch.zeros(4, 4, dtype=torch.bool)) == "empty"


def test_filters_and_channels_together() -> None:
    kept = torch.ones(8, 6, 3, 3, dtype=torch.bool)
    kept[[1, 4]] = False
    assert structure_of(kept) == "filter"
    kept[:, 2] = False
    assert structure_of(kept) == "filter+channel"
    kept[0, 0, 0, 0] = False
    assert structure_of(kept) == "unstructured"


def test_the_largest_block_wins() -> None:
    blocks = torch.rand(4, 4) < 0.5
    blocks[0, 0], blocks[0, 1], blocks[1, 0] = True, False, True
    assert structure_of(blocks.repeat_interleave(8, 0).repeat_interleave(4, 1)) == "block8x4"


def test_one_of_two_is_two_of_four() -> None:
    kept = Projection("1:2")({"w": torch.randn(8, 16)}, 0.5).masks["w"].dense()
    assert structure_of(kept) == "2:4"
    assert structure_of(kept[:, :14]) == "1:2"


def test_few_groups_prove_nothing() -> None:
    kept = torch.tensor([[True, False, True, False], [False, True, True, False]])
    assert structure_of(kept) == "unstructured"
    assert structure_of(kept.repeat(2, 1)) == "1:2"


def test_dead_units() -> None:
    kept = torch.ones(5, 4, 3, dtype=torch.bool)
    assert dead_units(kept) == (0, 0)
    kept[1], kept[:, 3], kept[:, 0] = False, False, False
    assert dead_units(kept) == (1, 2)
    kept[0, 0, 2] = True
    assert dead_units(kept) == (1, 1)
    assert dead_units(torch.zeros(5, 4, dtype=torch.bool)) == (5, 4)
    assert dead_units(torch.zeros(7, dtype=torch.bool)) == (0, 0)
