# SPDX-License-Identifier: Apache-2.0
"""RigL and SET: sparse training from random masks that are rewired on the way."""

from __future__ import annotations

from collections.abc import Callable

from sparsekit.allocation import ERK
from sparsekit.benchmarks.builders import Start, trained_with
from sparsekit.benchmarks.method import Method, phase_epochs, phase_steps
from sparsekit.projection import Projection
from sparsekit.pruners import SET, RigL
from sparsekit.pruners.base import BasePruner

REWIRINGS = 250
"""Rewirings of a run before masks stay, as in the source: 25,000 of 32,000 steps, one every 100."""

LEAST = 8
"""Steps from one rewiring to the next at least, so that short runs train in between."""


def rewired(kind: type[RigL] | type[SET]) -> Callable[[Start], BasePruner]:
    """RigL or SET over one phase, from the weights before training, with the source's masks, share and end."""

    def build(start: Start) -> BasePruner:
        every = max(LEAST, round(0.75 * start.steps / REWIRINGS))
        own = {"steps": start.steps, "every": every, "rewind_state": start.init}
        return trained_with(kind, start, projection=Projection(allocation=ERK()), **own)

    return build


REGROWTH: dict[str, Method] = {
    "rigl": Method(
        rewired(RigL),
        phase_epochs(1),
        phase_steps,
        pretrained=False,
        structured=False,
        summary="sparse from init, small weights give way to large gradients",
    ),
    "set": Method(
        rewired(SET),
        phase_epochs(1),
        phase_steps,
        pretrained=False,
        structured=False,
        summary="sparse from init, small weights give way to random ones",
    ),
}
