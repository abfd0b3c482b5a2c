# SPDX-License-Identifier: Apache-2.0
"""What an ablation changes of a pruned run: its masks, or the weights that they are trained from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from sparsekit.benchmarks.run_folder import RunFile
from sparsekit.mask import Masks
from sparsekit.mask_variants import inverted_choice, random_like, shuffled

CONTROL = "control"


def drawn(purpose: str, seed: int) -> int:
    """A seed of its own for each purpose, in 32 bits: PyTorch's CPU generator does not look at more."""
    return int.from_bytes(hashlib.sha256(f"{purpose} {seed}".encode()).digest()[:4], "big")


@dataclass(frozen=True)
class Ticket:
    """What a folder of ``sparsekit prune`` holds: the run, its masks, and the dense network it began with.

    init: the initialisation of that network; None where its weights were given, which came from elsewhere.
    """

    folder: Path
    run: RunFile
    masks: Masks
    init: dict[str, Tensor] | None
    state: dict[str, Tensor]

    @property
    def units(self) -> str:
        """What was pruned together."""
        return self.run.config.recipe.structure


@dataclass(frozen=True)
class Variant:
    """One thing changed: ``masks`` (ticket, seed) or the ``state`` (ticket, fresh network) to begin with."""

    summary: str
    masks: Callable[[Ticket, int], Masks] = lambda ticket, seed: ticket.masks
    state: Callable[[Ticket, Callable[[], nn.Module]], dict[str, Tensor]] = lambda ticket, fresh: ticket.state


def rewound(ticket: Ticket, fresh: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """The initialisation that the run's dense network had. Raises ValueError where its weights were given."""
    if ticket.init is None:
        raise ValueError(
            "ablate: variants: expected a run that trained its dense network for rewound, got given weights"
        )
    return ticket.init


def _weights(ticket: Ticket) -> dict[str, Tensor]:
    return {name: ticket.state[f"{name}.weight" if name else "weight"] for name in ticket.masks}


VARIANTS: dict[str, Variant] = {
    CONTROL: Variant("the mask as it is"),
    "shuffled": Variant(
        "each layer's mask shuffled: the same densities", lambda t, seed: shuffled(t.masks, seed, t.units)
    ),
    "random": Variant(
        "random masks of the same densities: shuffled once more, from other random numbers",
        lambda t, seed: random_like(t.masks, drawn("random", seed), units=t.units),
    ),
    "random-erk": Variant(
        "random masks with densities by ERK", lambda t, seed: random_like(t.masks, drawn("erk", seed), "erk", t.units)
    ),
    "random-uniform": Variant(
        "random masks of one density", lambda t, seed: random_like(t.masks, drawn("uniform", seed), "uniform", t.units)
    ),
    "inverted": Variant(
        "what the mask removes, smallest weights first: the same densities",
        lambda t, seed: inverted_choice(t.masks, _weights(t), t.units),
    ),
    "reinit": Variant(
        "the mask, weights initialised anew",
        state=lambda t, fresh: {k: v.clone() for k, v in fresh().state_dict().items()},
    ),
    "rewound": Variant("the mask, weights as they were before the dense training", state=rewound),
}
DEFAULT = ("control", "shuffled", "random", "random-erk", "inverted", "reinit")
