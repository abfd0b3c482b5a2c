# SPDX-License-Identifier: Apache-2.0
"""GraSP: pruning that preserves the gradient flow (Wang, Zhang and Grosse, ICLR 2020)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit.criteria import gradient_flow
from sparsekit.gradients import Loss
from sparsekit.ops import replicas
from sparsekit.projection import Projection
from sparsekit.pruners.checks import check_plain, checked_count
from sparsekit.pruners.learning_rate import Curve
from sparsekit.pruners.optimizer_state import OptimizerFactory
from sparsekit.pruners.scored import CriterionPruning
from sparsekit.pruners.scoring import Scoring, criterion, wide


@criterion("grasp", units="sum")
def grasp(scoring: Scoring, temperature: float = 200.0, samples_per_class: int | None = None) -> dict[str, Tensor]:
    """theta * (H g), g summed over the batches and H g in a second pass over them; see GraSP."""
    if temperature > 1 and any(w.dtype == torch.float16 for w in scoring.weights.values()):
        expected = "at most 1 for float16 weights, in which H g would be rounded to zero"
        raise ValueError(f"GraSP: temperature: expected {expected}, got {temperature}")
    batches = scoring.batches if samples_per_class is None else balanced(scoring.batches, samples_per_class)
    with heated(scoring.model, temperature) as check:
        g = _sum(scoring.gradients(batch) for batch in batches)
        check()
        # Only what is kept is trained, so only that is part of the gradient flow.
        g = {name: torch.where(scoring.masks[name], h, 0) for name, h in g.items()}
        hg = _sum(scoring.curvature(batch, g) for batch in batches)
    return {name: gradient_flow(wide(w), wide(hg[name])) for name, w in scoring.weights.items()}


def _sum(terms: Iterator[dict[str, Tensor]]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for term in terms:
        total = {name: total[name] + value for name, value in term.items()} if total else term
    return total


@contextmanager
def heated(model: nn.Module, temperature: float) -> Iterator[Callable[[], None]]:
    """Within it ``model(...)`` returns its output divided by the temperature; the function given raises if it never was."""
    called = []

    def divide(module: nn.Module, arguments: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            expected = "a model that returns logits as one tensor (1 for others)"
            raise TypeError(f"GraSP: temperature: expected {expected}, got {type(output).__name__}")
        called.append(True)
        return output / temperature

    def check() -> None:
        if not called:
            expected = "a loss that calls the model itself (1 for others)"
            raise ValueError(f"GraSP: temperature: expected {expected}, got one that calls parts of it alone")

    if temperature == 1:
        yield lambda: None
        return
    hook = model.register_forward_hook(divide)
    try:
        yield check
    finally:
        hook.remove()


def balanced(batches: list[Any], samples: int) -> list[Any]:
    """Of all batches together the first so many samples of each class, in the batches that they came in.

    Args:
        batches: of (inputs, classes), tensors [n, ...] and int64 [n]; further entries are an error.
    """
    left: dict[int, int] = {}
    chosen = []
    for batch in batches:
        fits = isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)
        if not fits or batch[1].ndim != 1 or batch[1].is_floating_point() or len(batch[0]) != len(batch[1]):
            raise ValueError(
                "GraSP: samples_per_class: expected batches of (inputs, classes), got others; None takes them"
            )
        rows = []
        for row, label in enumerate(batch[1].tolist()):
            if left.setdefault(label, samples):
                left[label] -= 1
                rows.append(row)
        if rows:
            index = torch.tensor(rows, device=batch[1].device)
            chosen.append((batch[0][index.to(batch[0].device)], batch[1][index]))
    return chosen


class GraSP(CriterionPruning):
    """Removes the largest -theta * (H g): of the weights whose removal would most reduce the gradient's norm, most are kept.

    g and H are gradient and Hessian of the loss at z = m * theta, with the logits divided by a temperature. A filter or
    channel has the sum of the signed scores of its weights.

    Args:
        model, loss, sparsity, optimizer, steps, rewind_state, curve, projection: see ``CriterionPruning``. Not under
            fully_shard, where second derivatives are not to be had.
        batches: of each round, in memory at once. g is their sum, then H g is summed over them in a second pass.
        samples_per_class: of the batches drawn, the first so many samples of each class are used, or all there are; batches
            are pairs of inputs and classes then. None uses the batches as they are. The paper takes 10 of each class in all
            for CIFAR, one of each in 10 batches for Tiny-ImageNet and in 150 for ImageNet, which a loader can do as well, and
            has to in DistributedDataParallel.
        temperature: T > 0. The model's output is divided by it on its way to the loss, which is right if the model returns
            logits and the loss applies a softmax; 1 leaves all as it is, for other models, or where the loss divides.
        rounds: 1 is the paper's; more score again what is left, each time on new batches.
        batchnorm: while scoring, "train" normalises with the batch; "eval" with the running statistics.

    Metrics: round (1), flips and regrown (0), and after the first step the loss.

    Raises:
        ValueError, TypeError: see ``CriterionPruning``; weights that are DTensors; in the first step, a temperature
        with a model that returns no tensor, or that the loss does not call, or above 1 with weights in float16;
        samples_per_class with other batches.

    Source: the paper's score; the division by |sum of all scores| changes no order. The authors'
    code draws the classifier anew before it scores, here all weights are scored as they are. Cost: a batch counts as three
    passes, two of them for H g. Pruned theta: moved by weight decay alone; it is never used.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        sparsity: float,
        *,
        optimizer: OptimizerFactory | None = None,
        steps: int = 0,
        rewind_state: Mapping[str, Any] | None = None,
        batches: int = 1,
        samples_per_class: int | None = None,
        temperature: float = 200.0,
        rounds: int = 1,
        batchnorm: str = "train",
        curve: str | Curve = "cosine",
        projection: Projection | None = None,
    ) -> None:
        if samples_per_class is not None:
            checked_count("GraSP", "samples_per_class", samples_per_class)
        if isinstance(temperature, bool) or not isinstance(temperature, (int, float)):
            raise TypeError(f"GraSP: temperature: expected a finite number > 0, got {temperature!r}")
        if not 0 < temperature < math.inf:
            raise ValueError(f"GraSP: temperature: expected a finite number > 0, got {temperature!r}")
        options = {"temperature": float(temperature), "samples_per_class": samples_per_class}
        trained: dict[str, Any] = {"optimizer": optimizer, "steps": steps, "curve": curve, "rewind_state": rewind_state}
        scored: dict[str, Any] = {
            "batches": batches,
            "rounds": rounds,
            "batchnorm": batchnorm,
            "projection": projection,
        }
        super().__init__(model, loss, sparsity, "grasp", options=options, **trained, **scored)

    def _check_masks(self) -> None:
        check_plain("GraSP", self.model)
        if self.options["samples_per_class"] is not None and replicas.group_of(self.model) is not None:
            expected = "None in DistributedDataParallel, whose processes draw batches of their own"
            raise ValueError(f"GraSP: samples_per_class: expected {expected}, got {self.options['samples_per_class']}")
        super()._check_masks()
