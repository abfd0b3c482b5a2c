# SPDX-License-Identifier: Apache-2.0
"""The suites of ``sparsekit speedup``: which methods, budgets, sparsities and seeds under which recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Any

import torch

from sparsekit.benchmarks.methods import ABLATIONS, as_method
from sparsekit.benchmarks.recipe import MAX_SEEDS, Recipe, RunConfig, plain_name, recipe_for, split_name
from sparsekit.pruners.checks import checked_count

ROUNDS = (3, 6, 9, 13)
RUNGS = tuple(float(1 - Fraction(4, 5) ** rounds) for rounds in range(1, 41))
LADDER = tuple(RUNGS[rounds - 1] for rounds in ROUNDS)
"""48.8, 73.8, 86.6 and 94.5 %: what rounds of iterative magnitude pruning at 20 % pass through, so one chain serves all."""

MATCHED_BUDGETS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""A time to match is only as fine as the budgets tried, so they lie closest where methods have been found to match."""


@dataclass(frozen=True)
class Suite:
    """What one report is made of.

    name, summary: for people. recipe: shared by all runs. methods: names, with "@factor" where a method runs on another
    budget than the recipe's epochs. sparsities: fractions removed. seeds: how many, paired over the methods, from
    ``first_seed`` on. baseline: the method that cost is compared with.
    """

    name: str
    summary: str
    recipe: Recipe
    methods: tuple[str, ...]
    sparsities: tuple[float, ...]
    seeds: int
    baseline: str = "imp"
    first_seed: int = 0

    def __post_init__(self) -> None:
        # Two ways to write one budget, or a sparsity given twice, are one run and one line of the report.
        object.__setattr__(self, "methods", tuple(dict.fromkeys(plain_name(name) for name in self.methods)))
        object.__setattr__(self, "sparsities", tuple(dict.fromkeys(self.sparsities)))

    def configs(self) -> list[RunConfig]:
        """All runs; those of one seed and method follow each other by rising sparsity, as chains continue one another."""
        runs = [
            RunConfig(method, sparsity, seed, self.recipe)
            for seed in range(self.first_seed, self.first_seed + self.seeds)
            for method in self.methods
            for sparsity in self.levels(method)
        ]
        return list(dict.fromkeys(runs))

    def levels(self, method: str) -> tuple[float, ...]:
        """Sparsities at which a method runs: dense training knows one only, 0."""
        return (0.0,) if split_name(method)[0] == "dense" else tuple(sorted(self.sparsities))


def budgets(methods: Iterable[str], factors: Iterable[float]) -> tuple[str, ...]:
    """Every method on every budget, "name" for the factor 1 and "name@factor" for another."""
    levels = list(factors)
    return tuple(name if factor == 1 else f"{name}@{factor:g}" for name in methods for factor in levels)


_DIGITS = Recipe(dense_epochs=20, epochs=8)
_QUICK = recipe_for("cifar10", dense_epochs=16, epochs=8, lr=0.1)
_EVERY = ("imp", "imp-lth", "imp-budget", "omp", "gmp", "dpf", "random-erk", "bip", "bip-cubic", "bip-1pass", "spode")

_SMALL = recipe_for(
    "cifar10", network="resnet8", limit=4000, image_size=16, dense_epochs=12, epochs=6, lr=0.05, ode_batch=256
)
_SMALL_METHODS = (
    *("imp", "omp", "dense@2", "spode", "bip-cubic"),
    *budgets(("imp-budget", "gmp", "dpf", "bip-1pass"), (*MATCHED_BUDGETS, 3, 4)),
    *budgets(("bip",), MATCHED_BUDGETS[1:]),
)
_ABLATED = ("imp", "bip", "bip-finetune", "bip-cubic", "bip-1pass", "spode-bip", *ABLATIONS)
_PAPER = recipe_for("cifar10", dense_epochs=160, epochs=160, lr=0.1)
"""160 epochs per round of IMP to 100 of BiP, SpODE's fine-tuning and the other single runs."""

SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            "smoke",
            "digits on a CPU, minutes",
            _DIGITS,
            (*_EVERY, "bip-released", "spode-bip", "dense@13"),
            (*LADDER, RUNGS[18]),
            5,
        ),
        Suite(
            "quick",
            "CIFAR-10, ResNet-20, 8 epochs per phase",
            _QUICK,
            ("dense", "imp", "imp-budget", "omp", "gmp", "bip", "bip-1pass", "spode"),
            LADDER,
            3,
        ),
        Suite(
            "small",
            "4,000 images of CIFAR-10 at 16 pixels, ResNet-8, an hour and a half on a CPU",
            _SMALL,
            _SMALL_METHODS,
            LADDER[3:],
            5,
        ),
        Suite(
            "match",
            "least cost at which each method is as accurate as the best IMP",
            _QUICK,
            ("imp", *budgets(("imp-budget", "gmp", "dpf", "bip", "bip-1pass", "spode"), MATCHED_BUDGETS)),
            LADDER[3:],
            10,
        ),
        Suite("ablate", "what of BiP does the work", _QUICK, _ABLATED, LADDER[2:], 5),
        Suite(
            "paper",
            "the papers' schedules: ResNet-20, with --network resnet18 or vgg16mlp; hours to days",
            _PAPER,
            (
                "dense",
                "imp-lth",
                "imp",
                "omp",
                *budgets(("gmp", "bip", "bip-released", "bip-1pass", "spode"), (0.625,)),
            ),
            LADDER,
            3,
        ),
    )
}


def as_suite(name: str) -> Suite:
    """The suite called ``name``; raises ValueError listing the known ones."""
    if name not in SUITES:
        raise ValueError(f"speedup: suite: expected one of {', '.join(SUITES)}, got {name!r}")
    return SUITES[name]


def chosen_suite(options: Mapping[str, Any]) -> Suite:
    """The suite that a command's options describe; what is not given stays as the suite has it.

    Args:
        options: suite, and perhaps seeds, first_seed, methods and sparsity (comma-separated) and settings of the recipe.
            Without a device it is the GPU if there is one, on which the passes run in bf16, channels last, as graphs.

    Raises:
        ValueError, TypeError: an unknown suite or method, or a value out of range.
    """
    suite = as_suite(options["suite"])
    device = options.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
    fast = {"precision": "bf16", "channels_last": True, "graphs": True} if device == "cuda" else {}
    names = {field.name for field in fields(Recipe)}
    given = {key: value for key, value in options.items() if key in names and value not in (None, "", ())}
    changes: dict[str, Any] = {"recipe": replace(suite.recipe, **(fast | given | {"device": device}))}
    if options.get("methods"):
        changes["methods"] = tuple(part.strip() for part in options["methods"].split(",") if part.strip())
        if not changes["methods"]:
            raise ValueError(f"speedup: methods: expected comma-separated names, got {options['methods']!r}")
        for method in changes["methods"]:
            as_method(method)
    if options.get("sparsity"):
        try:
            levels = tuple(float(part) for part in options["sparsity"].split(","))
        except ValueError:
            expected = f"comma-separated numbers, got {options['sparsity']!r}"
            raise ValueError(f"speedup: sparsity: expected {expected}") from None
        changes["sparsities"] = tuple(_rung(x) for x in levels)
    if options.get("seeds") is not None:
        changes["seeds"] = checked_count("speedup", "seeds", options["seeds"], most=MAX_SEEDS)
    if options.get("first_seed") is not None:
        changes["first_seed"] = checked_count("speedup", "first_seed", options["first_seed"], 0, most=MAX_SEEDS)
    return replace(suite, **changes)


def _rung(sparsity: float) -> float:
    """The nearest rung that is rounded to ``sparsity`` as in the papers' tables, so that chains serve it; else itself."""
    rounded = [rung for rung in RUNGS if round(rung, 3) == sparsity]
    return min(rounded, key=lambda rung: abs(rung - sparsity), default=sparsity)
