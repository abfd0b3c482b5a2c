# SPDX-License-Identifier: Apache-2.0
"""What SynFlow leaves of each layer of a freshly initialised network: as its paper scores, and as SpODE's released code does.

    python -m sparsekit.benchmarks.collapse --out runs/collapse.jsonl

A layer without a single weight cuts the network in two, so that it cannot do better than chance whatever the training. The
comparison of SpODE (PSO) prints 0.50 %, chance on 200 classes, for SynFlow on VGG-19 at every sparsity. No data is needed.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from sparsekit.benchmarks.environment import environment
from sparsekit.benchmarks.networks import build_network
from sparsekit.benchmarks.reporting.markdown import EMPTY, markdown
from sparsekit.benchmarks.reporting.naming import name_of
from sparsekit.benchmarks.reporting.wording import sparsity_text
from sparsekit.benchmarks.rows import Row, appended
from sparsekit.nn import sparsify
from sparsekit.pruners import SynFlow
from sparsekit.pruners.checks import checked_count, checked_sparsity
from sparsekit.pruners.metrics import CollapseWarning

VARIANTS: dict[str, dict[str, Any]] = {
    "synflow": {},
    "synflow-released": {"batchnorm": "train", "double": False},
}
"""Options of ``sk.SynFlow`` behind each method."""

SPARSITIES = (0.9, 0.93, 0.95, 0.965, 0.98)
"""Of SpODE's tables of Tiny-ImageNet."""


def layers_left(method: str, sparsity: float, seed: int, network: str, classes: int, size: int, rounds: int) -> Row:
    """One row: of each masked layer its name, its weights and how many of them SynFlow keeps.

    Args:
        method: a key of VARIANTS.
        sparsity: fraction removed, in [0, 1).
        seed: of the initialisation. network: for ``build_network``, with ``classes`` and images of ``size`` pixels per side.
        rounds: of SynFlow; 100 are its paper's.
    """
    model = build_network(network, classes=classes, channels=3, image_size=size, seed=seed)
    sparsify(model)
    pruner = SynFlow(model, _no_loss, sparsity, rounds=rounds, input_shape=(3, size, size), **VARIANTS[method])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)  # it is what the rows are about
        pruner.step(iter([]))
    layers = [[name, mask.numel, mask.count()] for name, mask in pruner.masks.items()]
    of = {"network": network, "classes": classes, "image_size": size, "rounds": rounds}
    head = {"schema": 1, "kind": "collapse", "method": method, "sparsity": sparsity, "seed": seed}
    return {**head, **of, "layers": layers, "environment": environment()}


def _no_loss(model: nn.Module, batch: Any) -> NoReturn:
    raise RuntimeError("collapse: expected scores without data, got a batch")


def run(methods: Sequence[str], sparsities: Sequence[float], seeds: int, **setting: Any) -> Iterator[Row]:
    """Rows of all methods, sparsities and seeds 0 .. seeds - 1; ``setting`` is the rest of ``layers_left``."""
    for seed in range(seeds):
        for sparsity in sparsities:
            for method in methods:
                yield layers_left(method, sparsity, seed, **setting)


def collapse_table(rows: Iterable[Row]) -> str:
    """Markdown: of each network, sparsity and method how many layers are lost, and the share kept of the sparsest; or EMPTY."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row.get("kind") == "collapse":
            names = ("network", "classes", "image_size", "rounds", "sparsity", "method")
            found.setdefault(tuple(row[name] for name in names), []).append(row)
    if not found:
        return EMPTY
    header = ("network", "sparsity", "method", "n", "layers lost", "of", "kept of the sparsest layer, %")
    lines = [_line(key, own) for key, own in sorted(found.items())]
    return markdown(header, lines, "lrlrrrr")


def _line(key: tuple[Any, ...], rows: Sequence[Row]) -> tuple[str, ...]:
    network, classes, size, rounds, sparsity, method = key
    lost = [sum(not kept for _, _, kept in row["layers"]) for row in rows]
    least = [100 * min(kept / total for _, total, kept in row["layers"]) for row in rows]
    what = f"{network}, {classes} classes, {size} px, {rounds} rounds"
    low, high = (f"{float(f'{share:.2g}'):g}" for share in (min(least), max(least)))  # never 1e+02
    worst = low + ("" if low == high else f" to {high}")
    counts = f"{min(lost)}" + ("" if min(lost) == max(lost) else f" to {max(lost)}")
    return what, sparsity_text(sparsity), name_of(method), str(len(rows)), counts, str(len(rows[0]["layers"])), worst


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the experiment, append its rows to ``--out`` and print their table."""
    parser = argparse.ArgumentParser(description="Layers that SynFlow leaves, in two variants: rows and a table.")
    parser.add_argument("--out", type=Path, required=True, help="JSONL file that rows are added to")
    parser.add_argument("--methods", nargs="+", choices=tuple(VARIANTS), default=tuple(VARIANTS))
    parser.add_argument("--sparsity", type=float, nargs="+", default=SPARSITIES, help="fractions removed")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 .. N-1, each with its own initial weights")
    parser.add_argument("--network", default="vgg19")
    for name, default in (("classes", 200), ("size", 64), ("rounds", 100), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args(arguments)
    try:
        counts = {name: checked_count("collapse", name, getattr(given, name)) for name in ("classes", "size", "rounds")}
        seeds = checked_count("collapse", "seeds", given.seeds)
        sparsities = [checked_sparsity("collapse", value) for value in given.sparsity]
        torch.set_num_threads(checked_count("collapse", "threads", given.threads, 1, 1024))
        rows = list(appended(given.out, run(given.methods, sparsities, seeds, network=given.network, **counts)))
    except ValueError as error:
        parser.error(str(error))
    print(f"{collapse_table(rows)}rows: {given.out}")


if __name__ == "__main__":
    main()
