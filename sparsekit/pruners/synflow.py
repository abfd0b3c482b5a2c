# SPDX-License-Identifier: Apache-2.0
"""SynFlow: pruning by synaptic flow, without data (Tanaka, Kunin, Yamins and Ganguli, NeurIPS 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sparsekit.criteria import synaptic_flow
from sparsekit.gradients import Loss
from sparsekit.nn import effective_weights
from sparsekit.ops import replicas
from sparsekit.projection import Projection
from sparsekit.pruners.checks import check_plain, checked_count
from sparsekit.pruners.cost import first_of
from sparsekit.pruners.learning_rate import Curve
from sparsekit.pruners.optimizer_state import OptimizerFactory
from sparsekit.pruners.scored import CriterionPruning
from sparsekit.pruners.scoring import Scoring, criterion


@criterion("synflow", shared=True, rounds=100, units="sum", batchnorm="eval")
def synflow(scoring: Scoring, input_shape: Sequence[int] | None = None, double: bool = True) -> dict[str, Tensor]:
    """|theta * dR/dtheta| of the network with absolute parameters and buffers, R its output for ones, summed; see SynFlow."""
    first = first_of(scoring.batches)
    if input_shape is None and not (isinstance(first, Tensor) and first.is_floating_point() and first.ndim):
        got = first.dtype if isinstance(first, Tensor) else type(first).__name__
        raise ValueError(f"SynFlow: input_shape: expected it, or batches that begin with real inputs, got {got}")
    shape = tuple(first.shape[1:] if input_shape is None else input_shape)
    some = next(iter(scoring.weights.values()))
    dtype = torch.float64 if double else some.dtype
    z = {n: w.abs().to(dtype).requires_grad_() for n, w in scoring.weights.items()}
    network = replicas.bare(scoring.model)
    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    state = {n: t.detach().abs().to(dtype) for n, t in state.items() if t.is_floating_point()}
    with torch.enable_grad(), effective_weights(scoring.model, z):
        out = functional_call(network, state, (torch.ones((1, *shape), dtype=dtype, device=some.device),))
        if not isinstance(out, Tensor):
            raise TypeError(f"SynFlow: model: expected one tensor as its output, got {type(out).__name__}")
        dr = torch.autograd.grad(out.sum(), list(z.values()), allow_unused=True)
    scoring.count(1)
    return {
        name: torch.zeros_like(w) if slope is None else synaptic_flow(w.detach(), slope)
        for (name, w), slope in zip(z.items(), dr, strict=True)
    }


class SynFlow(CriterionPruning):
    """Keeps the largest |theta * dR/dtheta|, R = sum of the outputs of the absolute network for an input of ones.

    The absolute network has |.| in place of all parameters and buffers. In round t = 1..n the density falls to k^(t/n) and
    what is left is scored again. A filter or channel has the sum of the scores of its weights.

    Args:
        model, loss, sparsity, optimizer, steps, rewind_state, curve, projection: see ``CriterionPruning``. Not under
            fully_shard. The loss is for the training alone; scores use no data.
        input_shape: of one input, without the batch dimension. None takes it from a batch, whose first tensor it is; the
            numbers in it do not count.
        rounds: n; 100 is the paper's.
        batchnorm: "eval" normalises with the running statistics, as the paper's code does; then BatchNorm is linear, and the
            scores of a layer sum up to those of the next (but for biases), which is what keeps layers from collapsing.
            "train" normalises that one input with its own statistics, as the released code of SpODE (PSO) does; it loses
            layers and is here to show that.
        double: score in float64, so that a deep network does not overflow; False takes the weights' own precision.

    Metrics: round (1), flips and regrown (0), and after the first step the loss.

    Raises:
        ValueError, TypeError: see ``CriterionPruning``; in the first step, inputs that are not real numbers, outputs that
        are no tensor, and sums that overflow.

    Source: the paper's score and rounds. LayerNorm and other norms of the input itself do what "train" does. Cost: a
    round counts as one pass of one sample. Pruned theta: moved by weight decay alone; it is never used.
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
        input_shape: Sequence[int] | None = None,
        rounds: int = 100,
        batchnorm: str = "eval",
        double: bool = True,
        curve: str | Curve = "cosine",
        projection: Projection | None = None,
    ) -> None:
        shape = None if input_shape is None else _checked_shape(input_shape)
        if not isinstance(double, bool):
            raise TypeError(f"SynFlow: double: expected a bool, got {double!r}")
        self._shaped = shape is not None
        trained: dict[str, Any] = {"optimizer": optimizer, "steps": steps, "curve": curve, "rewind_state": rewind_state}
        scored: dict[str, Any] = {"rounds": rounds, "batchnorm": batchnorm, "projection": projection}
        options = {"input_shape": shape, "double": double}
        super().__init__(model, loss, sparsity, "synflow", options=options, **trained, **scored)

    def _wanted(self, index: int) -> int:
        return 0 if index == 0 and self._shaped else 1

    def _check_masks(self) -> None:
        check_plain("SynFlow", self.model)
        super()._check_masks()


def _checked_shape(shape: Any) -> tuple[int, ...]:
    if isinstance(shape, str) or not isinstance(shape, Sequence):
        raise TypeError(f"SynFlow: input_shape: expected dimensions without the batch, got {shape!r}")
    return tuple(checked_count("SynFlow", "input_shape", size) for size in shape)
