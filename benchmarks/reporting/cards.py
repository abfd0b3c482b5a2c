# SPDX-License-Identifier: Apache-2.0
"""The numbers on the page of a method: the papers' own, and what our rows say."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from sparsekit.benchmarks.reporting.markdown import EMPTY, markdown
from sparsekit.benchmarks.reporting.origin import describe_environment
from sparsekit.benchmarks.reporting.summary import Cell, Group, summarise
from sparsekit.benchmarks.reporting.wording import (
    MISSING,
    points,
    points_range,
    sparsity_text,
    spread,
)
from sparsekit.benchmarks.rows import Row

PUBLISHED = Path(__file__).parents[1] / "published"
NOTHING = "Neither of the two papers has numbers of this method in this form.\n"
_NAMES = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "tinyimagenet": "Tiny-ImageNet",
    "tinyimagenetbip": "Tiny-ImageNet",
    "imagenet": "ImageNet",
    "imagenetspode": "ImageNet",
}


def paper_table(method: str) -> str:
    """Markdown: the published accuracies of ``method`` by data set, network and sparsity; NOTHING if there are none."""
    parts = [
        _of_paper(json.loads(path.read_text(encoding="utf-8")), method) for path in sorted(PUBLISHED.glob("*.json"))
    ]
    return "\n".join(part for part in parts if part) or NOTHING


def our_table(rows: Iterable[Row], method: str) -> str:
    """Markdown: the accuracies of ``method`` in all rows, one line for each recipe and sparsity; EMPTY without rows.

    Runs with a budget of their own (``gmp@2``) stand in docs/results.md alone.
    """
    groups = [group for group in summarise(rows).groups if method in group.methods]
    lines = [line for group in groups for line in _of_ours(group, method)]
    if not lines:
        return EMPTY
    header = ("network, data, epochs", "sparsity", "test accuracy, %", "n", "difference to imp, points", "machine")
    return markdown(header, lines, "lrrrrl")


def _of_paper(found: Mapping[str, Any], method: str) -> str:
    """One table for each list of sparsities, as papers do not agree on them."""
    tables: dict[tuple[float, ...], list[tuple[str, ...]]] = {}
    for setting in found["settings"]:
        values = setting["curves"].get(method)
        if values is None:
            continue
        structure = setting.get("structure", "unstructured")
        what = f"{setting['network']}, {_NAMES[setting['data']]}" + (
            "" if structure == "unstructured" else f", {structure}s"
        )
        column = (what, f"{100 * setting['dense']:.2f}", *(MISSING if v is None else f"{100 * v:.2f}" for v in values))
        tables.setdefault(tuple(setting.get("sparsities") or found["sparsities"]), []).append(column)
    if not tables:
        return ""
    made = []
    for sparsities, columns in tables.items():
        header, *lines = zip(("sparsity", "dense", *map(sparsity_text, sparsities)), *columns, strict=True)
        made.append(markdown(header, lines, "r" * len(header)))
    return "\n".join(made) + f"\nTest accuracy in %, from: {found['source']}; {found['method']}.\n"


def _of_ours(group: Group, method: str) -> Iterator[tuple[str, ...]]:
    machine = ", ".join(v for n, v in describe_environment(_environments(group, method)) if n in ("GPU", "CPU"))
    for sparsity in group.sparsities:
        cell = group.cell(method, sparsity)
        if cell is not None:
            yield (
                _setting(group.config),
                sparsity_text(sparsity),
                spread(cell.accuracy),
                str(cell.accuracy.n),
                _gap(cell),
                machine,
            )


def _environments(group: Group, method: str) -> Sequence[Mapping[str, Any]]:
    return [run.environment for run in group.runs if run.method == method]


def _setting(config: Mapping[str, Any]) -> str:
    size = f" at {config['image_size']} px" if config.get("image_size") else ""
    images = f", {config['limit']:,} images" if config.get("limit") else ""
    structure = config.get("structure", "unstructured")
    what = "" if structure == "unstructured" else f", {structure}s"
    epochs = f"{config['dense_epochs']} dense + {config['epochs']}"
    return f"{config['network']}, {PurePath(str(config['data'])).name}{size}{images}{what}, {epochs}"


def _gap(cell: Cell) -> str:
    difference = cell.difference
    if difference is None:
        return MISSING
    interval = f" ({points_range(difference.interval)})" if difference.interval else ""
    return points(difference.mean) + interval
