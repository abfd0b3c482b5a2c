# SPDX-License-Identifier: Apache-2.0
"""SET: sparse evolutionary training (Mocanu et al., Nature Communications 2018). See ``rewiring`` for what it shares with
RigL: here the weights to take in are drawn at random, all that do not stay being equally likely.
"""

from __future__ import annotations

import hashlib
from typing import Any

from torch import Tensor

from sparsekit.pruners.rewiring import Rewiring
from sparsekit.pruners.scoring import random_scores


class SET(Rewiring):
    """Sparse training in which weights of small size give way to random ones.

    Args:
        model: sparsified, masks full.
        loss: (model, batch) -> scalar.
        sparsity: fraction removed, in [0, 1), at all times.
        optimizer: list of trainable parameters -> fresh optimizer; there is one for the whole run.
        steps: training steps, each on one batch.
        every: steps from one rewiring to the next, >= 1; the first is before step ``every``. Source: once an epoch.
        until: fraction of the steps after which masks stay, in (0, 1].
        alpha: share of the kept weights that would be replaced at step 0, in (0, 1]. Source: 0.3.
        decay: of that share: "cosine" to zero at ``until``, or "constant" (source, with ``until=1``).
        rewind_state: state_dict of the plain or sparsified model to train from, usually as initialised; None trains the
            weights that the model has.
        seed: of the first masks and of all drawings, in [0, 2**31).
        curve: learning-rate curve over all steps ("constant", "cosine", "linear", "step" or callable).
        projection: unstructured, with an allocation per layer; ERK by default. Without group.

    Metrics: loss, fraction (share replaced before this step, mostly 0), flips and regrown (mask entries that changed or
    came back).

    Raises:
        ValueError, TypeError: arguments out of range or of a wrong kind; nothing to prune; DTensors.

    Drawing needs no gradient, so every step trains, those that begin with a rewiring included. The defaults are those under
    which RigL's paper compares the two. The source removes the smallest positive and the largest negative weights, a share
    of either sign; here, as in RigL's paper, the smallest |theta|. It gives new weights random values; here they begin at
    0. Drawings come from a CPU generator that depends on seed and step alone. Pruned theta: as of ``RigL``.
    """

    def _begin(self, index: int, drawn: list[Any]) -> dict[str, Tensor]:
        if not self.fraction:
            return {}
        # Mixed into 32 bits, since a CPU generator looks at no more of its seed.
        mixed = hashlib.sha256(f"{self.seed} {self._step}".encode()).digest()
        return self._rewire(random_scores(self.weights, int.from_bytes(mixed[:4], "big")))
