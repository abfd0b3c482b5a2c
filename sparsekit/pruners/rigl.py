# SPDX-License-Identifier: Apache-2.0
"""RigL: rigging the lottery (Evci, Gale, Menick, Castro, Elsen, ICML 2020). See ``rewiring`` for what it shares with SET.

A step that rewires takes in, in every layer, the weights of the largest |h|, h = dl/dz being the dense gradient at
z = m * theta on the step's batch, and takes no optimizer step: algorithm 1 of the paper does one or the other.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sparsekit.pruners.rewiring import Rewiring


class RigL(Rewiring):
    """Sparse training in which weights of small size give way to those of large gradient.

    Args:
        model: sparsified, masks full.
        loss: (model, batch) -> scalar.
        sparsity: fraction removed, in [0, 1), at all times.
        optimizer: list of trainable parameters -> fresh optimizer; there is one for the whole run.
        steps: training steps, each on one batch, those that rewire included.
        every: steps from one rewiring to the next, >= 2; the first is step ``every``. Source: 100 of 32,000.
        until: fraction of the steps after which masks stay, in (0, 1]. Source: 25,000 of 32,000 steps.
        alpha: share of the kept weights that would be replaced at step 0, in (0, 1]. Source: 0.3.
        decay: of that share: "cosine" (source) to zero at ``until``, or "constant".
        rewind_state: state_dict of the plain or sparsified model to train from, usually as initialised; None trains the
            weights that the model has.
        seed: of the first masks, in [0, 2**31).
        curve: learning-rate curve over all steps ("constant", "cosine", "linear", "step" or callable).
        projection: unstructured, with an allocation per layer; ERK by default. Without group.

    Metrics: loss, fraction (share replaced in this step, mostly 0), flips and regrown (mask entries that changed or came
    back).

    Raises:
        ValueError, TypeError: arguments out of range or of a wrong kind; nothing to prune; DTensors.

    Pruned theta: moved by weight decay and momentum alone and never used; one that comes back begins at 0, as do the
    entries of its optimizer state. As in the paper, what is just dropped competes with what was pruned; like the authors'
    code, a weight that is dropped and taken back in one rewiring keeps its value. k is rounded down. BatchNorm statistics
    move in the pass of a rewiring as in any other. Gradients that are not finite are an error, and leave the masks alone.
    The source trains convolutions but the first by ERK; which layers are masked is decided by ``sparsify`` here.
    """

    least_every = 2

    def _work(self, index: int, drawn: list[Any]) -> dict[str, Tensor]:
        if not self.fraction:
            return super()._work(index, drawn)
        found = self._on_device("gradients", None, drawn, self._dense_pass)
        return {"loss": found["loss"], **self._rewire({name: found[f"dz {name}"].abs() for name in self.layers})}

    def _dense_pass(self, drawn: list[Any]) -> dict[str, Tensor]:
        dz = self._dense_gradients(drawn[0])
        return {"loss": self._loss_value, **{f"dz {name}": value for name, value in dz.items()}}
