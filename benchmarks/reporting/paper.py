# SPDX-License-Identifier: Apache-2.0
"""What the paper published for a setting: its own curves, read off a figure, and its schedule."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from sparsekit.benchmarks.recipe import Recipe

PUBLISHED = Path(__file__).parents[1] / "published" / "bip2022.json"


@dataclass(frozen=True)
class Published:
    """The published curves of one network on one data set.

    Args:
        source, method: where the numbers come from and how they were got.
        dense: accuracy of the dense network, in [0, 1].
        curves: for each method (sparsity, accuracy) by rising sparsity, both in [0, 1]; hidden markers left out.
    """

    source: str
    method: str
    dense: float
    curves: Mapping[str, tuple[tuple[float, float], ...]]


@dataclass(frozen=True)
class Schedule:
    """Epochs of the paper on CIFAR: of the dense training, of each round of IMP, of one BiP run; and where they are said."""

    dense_epochs: int
    imp_epochs: int
    bip_epochs: int
    source: str


def data_name(recipe: Recipe) -> str:
    """Name of the data set without its folder, in small letters without "-", "_" and the variant: "cifar10"."""
    name = PurePath(recipe.data).name.lower()
    return name.removesuffix("-full").removesuffix("-bip").replace("-", "").replace("_", "")


def published(recipe: Recipe) -> Published | None:
    """The paper's curves for the network and the data of a recipe, or None if it has none.

    None too where only part of the images is used, or filters or channels are pruned: that is another setting.
    """
    if recipe.limit is not None or recipe.structure != "unstructured":
        return None
    found = _read()
    for setting in found["settings"]:
        if (setting["data"], setting["network"]) == (data_name(recipe), recipe.network):
            curves = {
                method: tuple((s, a) for s, a in zip(found["sparsities"], values, strict=True) if a is not None)
                for method, values in setting["curves"].items()
            }
            return Published(found["source"], found["method"], setting["dense"], curves)
    return None


def schedule() -> Schedule:
    """The paper's schedule on CIFAR."""
    found = _read()
    return Schedule(**found["schedule"], source=found["schedule_source"])


def compressed(recipe: Recipe) -> bool:
    """Whether a recipe trains for fewer epochs than the paper in any phase."""
    paper = schedule()
    return recipe.dense_epochs < paper.dense_epochs or recipe.epochs < max(paper.imp_epochs, paper.bip_epochs)


def _read() -> dict:
    return json.loads(PUBLISHED.read_text(encoding="utf-8"))
