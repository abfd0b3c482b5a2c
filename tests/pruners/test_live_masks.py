# SPDX-License-Identifier: Apache-2.0
"""An error never leaves half a mask: the live masks change all together, after everything that can fail."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsekit as sk
from sparsekit import ops
from sparsekit.patterns import Filter
from sparsekit.projection import Projection
from sparsekit.pruners.base import BasePruner

PROJECTIONS = {
    "global": (Projection(), 0.6),
    "uniform": (Projection(allocation="uniform"), 0.6),
    "floor": (Projection(allocation=sk.Global(min_keep=2)), 0.6),
    "filter": (Projection("filter"), 0.5),
    "2:4": (Projection("2:4"), 0.5),
}
CALLED = (
    "topk_mask",
    "pack_mask",
    "unpack_mask",
    "popcount",
    "mask_counts",
    "group_scores",
    "expand_units",
    "nm_mask",
)


class Magnitude(BasePruner):
    """One projection of what it was given."""

    def __init__(self, projection: Projection, sparsity: float) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
        model[3].weight = model[1].weight
        sk.sparsify(model)
        super().__init__(model, lambda *_: torch.zeros(()), sparsity, projection)
        generator = torch.Generator().manual_seed(1)
        shapes = {name: layer.weight.shape for name, layer in self.layers.items()}
        bits = {name: torch.rand(shape, generator=generator) < 0.5 for name, shape in shapes.items()}
        sk.set_masks(model, {name: sk.Mask.from_dense(mask) for name, mask in bits.items()})

    def project(self, scores: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The masks of ``scores``, by default of the weights."""
        return self._project(scores or self.weights, self.sparsity)

    def live(self) -> list[Tensor]:
        """Copies of the words of every layer, twins too."""
        return [module.mask_words.clone() for module in self.model if isinstance(module, sk.MaskedLayer)]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def failing(function: Callable[..., Any], call: int, calls: list[None]) -> Callable[..., Any]:
    """The function, whose ``call``-th call raises after its work is done."""

    def wrapped(*arguments: Any, **options: Any) -> Any:
        result = function(*arguments, **options)
        calls.append(None)
        if len(calls) == call:
            raise RuntimeError("out of memory")
        return result

    return wrapped


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_a_failing_op_leaves_every_mask(kind: str) -> None:
    before, failures = Magnitude(*PROJECTIONS[kind]).live(), 0
    for name in CALLED:
        for call in range(1, 20):
            pruner = Magnitude(*PROJECTIONS[kind])
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(ops, name, failing(getattr(ops, name), call, []))
                try:
                    pruner.project()
                except RuntimeError:
                    failures += 1
                    assert equal(pruner.live(), before), (name, call)
                else:
                    break  # there is no such call
    # A selection and the counts of what it changed; units also have their scores and masks, for each of the three weights.
    assert failures >= (8 if kind == "filter" else 2)
    pruner = Magnitude(*PROJECTIONS[kind])
    moved, after = pruner.project(), pruner.live()
    assert not equal(after, before) and int(moved["flips"]) == sum(
        int(ops.popcount(a ^ b)) for a, b in zip(after[:3], before[:3], strict=True)
    )
    assert torch.equal(after[1], after[3])


@pytest.mark.parametrize("kind", PROJECTIONS)
@pytest.mark.parametrize("layer", ["0", "1", "2"])
def test_nan_in_any_layer_leaves_every_mask(kind: str, layer: str) -> None:
    pruner = Magnitude(*PROJECTIONS[kind])
    before, scores = pruner.live(), {name: w.clone() for name, w in pruner.weights.items()}
    scores[layer].view(-1)[-1] = math.nan
    with pytest.raises(ValueError, match="Magnitude: scores: expected numbers, got NaN"):
        pruner.project(scores)
    assert equal(pruner.live(), before)


class Flat(Filter):
    """A pattern that expands the last layer to a shape of its own, to which the live words could be broadcast."""

    def expand(self, mask: Tensor, shape: tuple[int, ...]) -> Tensor:
        full = super().expand(mask, shape)
        return full if len(shape) == 4 else full[:1]


def test_a_mask_that_does_not_fit_leaves_every_mask() -> None:
    pruner = Magnitude(Projection(Flat()), 0.5)
    before = pruner.live()
    with pytest.raises(ValueError, match=r"Magnitude: projection: expected a mask of shape \(8, 8\) for layer `1`"):
        pruner.project()
    assert equal(pruner.live(), before)


@pytest.mark.gpu
def test_nan_on_a_device_leaves_every_mask_and_shows_when_read() -> None:
    pruner = Magnitude(Projection(), 0.6)
    pruner.model.cuda()
    before, scores = pruner.live(), {name: w.clone() for name, w in pruner.weights.items()}
    scores["2"][0, 0] = math.nan
    moved = pruner.project(scores)
    assert equal(pruner.live(), before) and moved["flips"].item() == 0 == moved["regrown"].item()
    with pytest.raises(ValueError, match="Magnitude: scores: expected numbers, got NaN"):
        sk.Metrics(moved, pruner._problems).read()


def test_a_model_may_move_after_its_pruner_was_made() -> None:
    pruner = Magnitude(*PROJECTIONS["uniform"])
    pruner.model.to("meta")
    pruner.project()
    assert all(words.device.type == "meta" for words in pruner.live())
