# SPDX-License-Identifier: Apache-2.0
"""What a comparison fixes for all its methods (Recipe), and one run of it (RunConfig) with its identity."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from sparsekit.benchmarks.curves import curve_of
from sparsekit.pruners.checks import checked_count, checked_sparsity
from sparsekit.pruners.polarisers import POLARISERS

# Smallest and largest values that make sense; far beyond, a run would not end, nor its plan fit into memory.
_COUNTS: dict[str, tuple[int, int]] = {
    "dense_epochs": (1, 10**5),
    "epochs": (1, 10**5),
    "budget_epochs": (0, 10**6),
    "batch_size": (2, 10**7),
    "dense_batch_size": (2, 10**7),
    "ode_steps": (1, 10**6),
    "ode_batch": (2, 10**7),
    "limit": (1, 10**9),
    "image_size": (1, 10**4),
}
_OPTIONAL = ("limit", "image_size", "dense_batch_size", "dense_lr", "dense_weight_decay", "lower_lr", "finetune_lr")
LARGEST_SEED, MAX_SEEDS, MAX_THREADS = 2**32 - 1, 10_000, 1024
STRUCTURES = ("unstructured", "filter", "channel")
_NUMBERS: dict[str, tuple[str, Callable[[float], bool]]] = {
    "lr": ("a finite number > 0", lambda x: 0 < x < math.inf),
    "momentum": ("a number in (0, 1)", lambda x: 0 < x < 1),
    "weight_decay": ("a finite number >= 0", lambda x: 0 <= x < math.inf),
    "imp_rate": ("a number in [0.001, 1)", lambda x: 0.001 <= x < 1),
    "mixup": ("0 or a number in [0.001, 1000]", lambda x: x == 0 or 0.001 <= x <= 1000),
    "gamma": ("a number > 0 or inf", lambda x: x > 0),
    "radius": ("a finite number >= 1", lambda x: 1 <= x < math.inf),
    "label_smoothing": ("a number in [0, 1)", lambda x: 0 <= x < 1),
    "score_momentum": ("a number in [0, 1)", lambda x: 0 <= x < 1),
}
_NUMBERS |= dict.fromkeys(("upper_lr", "dense_lr", "lower_lr", "finetune_lr"), _NUMBERS["lr"])
_NUMBERS["dense_weight_decay"] = _NUMBERS["weight_decay"]
_CURVES = ("curve", "dense_curve", "finetune_curve")
_CHOICES = {"structure": STRUCTURES, "precision": ("fp32", "bf16"), "device": ("cpu", "cuda"), "polariser": POLARISERS}


@dataclass(frozen=True)
class Recipe:
    """Everything that the methods of one comparison share; all that train take SGD with momentum.

    data: name or folder for load_data. limit: examples of each split, None for all. network: name for build_network.
    dense_epochs: of the dense training that every method starts from. epochs: of one retraining phase: a round of IMP, the
        retraining of OMP, a BiP run, the fine-tuning after SpODE and after one-shot magnitude.
    batch_size, lr, momentum, nesterov, weight_decay: of every phase that trains weights. curve: of the learning rate in a
        phase, see curve_of. label_smoothing: of the loss of every phase. mixup: alpha of the Beta distribution by which every
        training batch is mixed, those that pruners score on included (they are the same stream); 0 mixes none.
    dense_lr, dense_batch_size, dense_weight_decay: of the dense training, None for those above; dense_curve: likewise.
    lower_lr: of BiP's weights, None for lr. finetune_lr, finetune_curve: of the training that follows a pruning of trained
        weights in one go (SpODE, one-shot magnitude) and of the last training after rounds (iter-*), None for lr and curve.
    skip: globs of layers that no method prunes.
    imp_rate: fraction of the remaining weights that a round of IMP removes.
    budget_epochs: retraining epochs of budgeted IMP over all its rounds; 0 means twice ``epochs``.
    upper_lr, gamma: of BiP's scores. ode_steps, ode_batch, radius, polariser, score_momentum: of SpODE.
    structure: what is pruned together: "unstructured", or in every layer alike "filter" or "channel".
    image_size: pixels per side that images are scaled to, None for their own.
    precision: "fp32", or "bf16" for the forward passes under autocast; weights, masks and optimizers stay in fp32.
    channels_last: memory format of images and convolutions. graphs: training steps are captured as CUDA graphs.
    device: "cpu" or "cuda"; part of the identity, like all three before it, because a row holds times.
    """

    data: str = "digits"
    limit: int | None = None
    network: str = "convnet"
    dense_epochs: int = 20
    epochs: int = 6
    batch_size: int = 64
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    skip: tuple[str, ...] = ()
    imp_rate: float = 0.2
    budget_epochs: int = 0
    upper_lr: float = 0.1
    gamma: float = 1.0
    ode_steps: int = 100
    ode_batch: int = 128
    radius: float = 1.1
    structure: str = "unstructured"
    image_size: int | None = None
    precision: str = "fp32"
    channels_last: bool = False
    graphs: bool = False
    device: str = "cpu"
    nesterov: bool = True
    curve: str = "cosine"
    label_smoothing: float = 0.0
    dense_lr: float | None = None
    dense_batch_size: int | None = None
    dense_weight_decay: float | None = None
    dense_curve: str = "cosine"
    lower_lr: float | None = None
    finetune_lr: float | None = None
    finetune_curve: str | None = None
    polariser: str = "ohh"
    score_momentum: float = 0.0
    mixup: float = 0.0

    def __post_init__(self) -> None:
        for name, (least, most) in _COUNTS.items():
            if name not in _OPTIONAL or getattr(self, name) is not None:
                checked_count("Recipe", name, getattr(self, name), least, most)
        for name, (expected, fits) in _NUMBERS.items():
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not fits(value):
                raise ValueError(f"Recipe: {name}: expected {expected}, got {value!r}")
            # 1 and 1.0 are one recipe, so they must have one identity.
            object.__setattr__(self, name, float(value))
        if isinstance(self.skip, str):
            raise TypeError(f"Recipe: skip: expected a tuple of globs, got {self.skip!r}")
        object.__setattr__(self, "skip", tuple(self.skip))
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"Recipe: {name}: expected {_either(choices)}, got {getattr(self, name)!r}")
        for name in _CURVES:
            if name != "finetune_curve" or self.finetune_curve is not None:
                curve_of(getattr(self, name), name)
        for name in ("channels_last", "graphs", "nesterov"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"Recipe: {name}: expected a bool, got {getattr(self, name)!r}")
        if self.graphs and self.device != "cuda":
            raise ValueError("Recipe: graphs: expected False on a CPU, got True")

    def dense_part(self) -> Recipe:
        """The recipe of the dense training, with everything at its default that this does not depend on."""
        kept = ("data", "limit", "network", "dense_epochs", "momentum", "nesterov", "label_smoothing", "device")
        kept += ("image_size", "precision", "channels_last", "graphs", "mixup")
        own = {name: getattr(self, f"dense_{name}") for name in ("lr", "batch_size", "weight_decay")}
        own = {name: getattr(self, name) if value is None else value for name, value in own.items()}
        return Recipe(**{name: getattr(self, name) for name in kept}, **own, curve=self.dense_curve)

    def finetune_part(self) -> Recipe:
        """The recipe of training that follows a pruning in one go."""
        lr, curve = self.finetune_lr, self.finetune_curve
        return replace(self, lr=self.lr if lr is None else lr, curve=self.curve if curve is None else curve)

    def scaled(self, factor: float) -> Recipe:
        """The recipe with ``factor`` times the epochs of a phase (at least one) and of budgeted IMP."""
        own = {"epochs": self.epochs, "budget_epochs": self.budget_epochs or 2 * self.epochs}
        scaled = {name: max(1, round(factor * value)) for name, value in own.items()}
        return self if factor == 1 else replace(self, **scaled)


def _either(choices: tuple[str, ...]) -> str:
    return " or ".join(choices) if len(choices) == 2 else f"one of {', '.join(choices)}"


def split_name(name: str) -> tuple[str, float]:
    """A method's own name and the factor of its budget: "gmp@0.5" is ("gmp", 0.5), "gmp" is ("gmp", 1.0)."""
    own, at, factor = name.partition("@")
    try:
        value = float(factor) if at else 1.0
    except ValueError:
        value = 0.0
    if not 1e-3 <= value <= 1e3:
        raise ValueError(f"method: expected NAME or NAME@FACTOR, a factor in [0.001, 1000], got {name!r}")
    return own, value


def plain_name(name: str) -> str:
    """The one way to write a method on a budget: "gmp" for "gmp@1.0", "gmp@1.5" for "gmp@1.50"."""
    own, factor = split_name(name)
    return own if factor == 1 else f"{own}@{factor:.12g}"


@dataclass(frozen=True)
class RunConfig:
    """One run: a method at a sparsity with a seed under a recipe; ``method`` is made the ``plain_name`` of what is given."""

    method: str
    sparsity: float
    seed: int
    recipe: Recipe = Recipe()

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", plain_name(self.method))
        object.__setattr__(self, "sparsity", checked_sparsity("RunConfig", self.sparsity))
        checked_count("RunConfig", "seed", self.seed, 0, LARGEST_SEED)

    @property
    def own_recipe(self) -> Recipe:
        """The recipe on the budget that the method's name asks for."""
        return self.recipe.scaled(split_name(self.method)[1])

    @property
    def id(self) -> str:
        """12 hex digits; a setting left at its default does not enter, so a new setting renames no old run."""
        own = {"method": self.method, "sparsity": self.sparsity, "seed": self.seed}
        return identity(own | non_default(self.recipe))


def non_default(recipe: Recipe) -> dict[str, Any]:
    """Settings that differ from their defaults."""
    return {f.name: getattr(recipe, f.name) for f in fields(recipe) if getattr(recipe, f.name) != f.default}


def identity(values: dict[str, Any]) -> str:
    """12 hex digits that identify ``values``."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


_LATER = ("structure", "precision", "channels_last", "graphs", "nesterov", "label_smoothing", "mixup", "polariser")
_LATER += ("score_momentum", *(name for name in _OPTIONAL if name != "limit"), *_CURVES)


def as_json(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON values, which know no inf."""
    values = asdict(recipe) | {"skip": list(recipe.skip)}
    for name in _LATER:
        # Rows of before there were these settings stay comparable with new ones.
        if values[name] == getattr(Recipe, name):
            del values[name]
    return {name: str(value) if value == math.inf else value for name, value in values.items()}


def from_json(values: Any) -> Recipe:
    """The recipe of ``as_json``. Raises ValueError or TypeError if it is none."""
    known = {field.name for field in fields(Recipe)}
    if not isinstance(values, dict) or not values.keys() <= known:
        got = sorted(values.keys() - known)[:3] if isinstance(values, dict) else type(values).__name__
        raise ValueError(f"Recipe: expected settings by name, got {got}")
    changes = {name: math.inf if value == "inf" else value for name, value in values.items()}
    if not isinstance(changes.get("skip", []), list) or not all(isinstance(x, str) for x in changes.get("skip", [])):
        raise ValueError(f"Recipe: skip: expected a list of globs, got {changes['skip']!r}")
    for name in ("data", "network"):
        if not isinstance(changes.get(name, ""), str):
            raise ValueError(f"Recipe: {name}: expected a name, got {changes[name]!r}")
    return Recipe(**changes)


def recipe_for(data: str, **changes: Any) -> Recipe:
    """Defaults for a data set (digits: a demo of minutes on a CPU; images: the compressed CIFAR schedule), then changes."""
    images = Recipe(data=data, network="resnet20", epochs=20, batch_size=128, lr=0.1, ode_batch=512)
    return replace(
        Recipe() if data == "digits" else images,
        **{name: value for name, value in changes.items() if value is not None},
    )
