# SPDX-License-Identifier: Apache-2.0
"""The methods that a comparison can run, by name; a family of methods is a file of ``families``."""

from __future__ import annotations

from sparsekit.benchmarks.builders import Start, make_sgd, projection_of
from sparsekit.benchmarks.families.ablations import ABLATIONS, SWEPT
from sparsekit.benchmarks.families.bilevel import BILEVEL
from sparsekit.benchmarks.families.magnitude import MAGNITUDE
from sparsekit.benchmarks.method import Method
from sparsekit.benchmarks.recipe import Recipe, split_name

__all__ = ["ABLATIONS", "METHODS", "Method", "Start", "as_method", "check_method", "make_sgd", "projection_of"]

METHODS: dict[str, Method] = {**MAGNITUDE, **BILEVEL, **ABLATIONS, **SWEPT}


def as_method(name: str) -> Method:
    """The method called ``name``, without regard to a budget; raises ValueError listing the known ones."""
    own, _ = split_name(name)
    if own not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {name!r}")
    return METHODS[own]


def check_method(name: str, recipe: Recipe) -> None:
    """Raise ValueError for a method that is unknown, or that cannot prune what the recipe prunes together."""
    if not as_method(name).structured and recipe.structure != "unstructured":
        raise ValueError(f"structure: expected unstructured for {name}, got {recipe.structure!r}")
