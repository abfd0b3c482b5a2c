# SPDX-License-Identifier: Apache-2.0
"""Which methods take pruned weights back: regrown weights so far against the sparsity reached, as rows and a figure.

    #regrow(t, t') = #{i : weight i is pruned at t and kept at t'}      (Mo et al., ICML 2023)

summed over the steps of a run. SpODE's masks give weights back in every step; scores that choose among what is left never
do, in rounds as in one shot.

    python -m sparsekit.benchmarks.regrowth --out runs/regrowth.jsonl
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from sparsekit.benchmarks.engine import Workbench
from sparsekit.benchmarks.environment import environment
from sparsekit.benchmarks.methods import as_method, check_method
from sparsekit.benchmarks.one_run import PRUNE, start_of
from sparsekit.benchmarks.recipe import Recipe, RunConfig, as_json, recipe_for
from sparsekit.benchmarks.reporting.naming import name_of
from sparsekit.benchmarks.rows import Row, appended

METHODS = ("spode", "iter-spode", "iter-magnitude", "iter-snip", "iter-grasp", "iter-synflow")
COLOURS = ("#1f5fa8", "#c2571a", "#3b7d3b", "#8a4fa0", "#8c6d1f", "#5a5a5a", "#b03060", "#2a8a8a")
TICKS = (100, 80, 60, 40, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1)


def regrowth(method: str, sparsity: float, seed: int, bench: Workbench) -> Iterator[Row]:
    """Run the pruner of a method on the dense network of a seed; a row before the first step and after each that moves masks.

    Args:
        method: of METHODS of ``methods``; what follows its pruner, as fine-tuning, is left out.
        sparsity: fraction removed at the end, in [0, 1).

    Returns:
        Rows with step, sparsity (reached), kept, and regrown (weights that have come back so far, each time that one does).
    """
    check_method(method, bench.recipe)
    found = as_method(method)
    start = start_of(RunConfig(method, sparsity, seed, bench.recipe), bench, bench.dense(seed))
    bench.seed_all(seed, PRUNE)
    pruner = found.build(start)
    ode = min(bench.recipe.ode_batch, bench.epoch_images) if found.ode_batches else None
    batches = bench.batches(seed, PRUNE, ode)
    head = {"schema": 1, "kind": "regrowth", "method": method, "target": sparsity, "seed": seed}
    tail = {"config": as_json(bench.recipe), "environment": environment()}
    regrown = 0

    def row() -> Row:
        now = pruner.masks
        reached = {"step": pruner.cost.steps, "sparsity": now.sparsity, "kept": now.count(), "total": now.numel}
        return {**head, **reached, "regrown": regrown, **tail}

    yield row()
    while not pruner.done:
        moved = pruner.step(batches).read()
        regrown += int(moved["regrown"])
        if moved["flips"] or pruner.done:
            yield row()


def run(methods: Sequence[str], sparsity: float, seeds: int, recipe: Recipe, folder: Path) -> Iterator[Row]:
    """Rows of all methods and seeds under one recipe; dense networks are kept in ``folder``."""
    bench = Workbench(recipe, folder)
    for seed in range(seeds):
        for method in methods:
            yield from regrowth(method, sparsity, seed, bench)


def plot(rows: Sequence[Row], path: Path) -> None:
    """The figure of some rows as a PNG: a line for each run, named at its end."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    with matplotlib.rc_context({"font.size": 10.5}):
        figure = Figure(figsize=(7.6, 4.4), layout="constrained", dpi=160)
        axes = figure.add_subplot()
        for method, colour in zip(methods, COLOURS * len(methods), strict=False):
            own = [row for row in rows if row["method"] == method]
            for i, seed in enumerate(dict.fromkeys(row["seed"] for row in own)):
                line = [(100 * row["kept"] / row["total"], row["regrown"]) for row in own if row["seed"] == seed]
                x, y = zip(*line, strict=True)
                axes.plot(x, y, color=colour, lw=1.6, alpha=0.85, label="_" if i else name_of(method))
        axes.set_xscale("log")
        axes.invert_xaxis()
        least = min(100 * row["kept"] / row["total"] for row in rows)
        axes.xaxis.set_major_locator(FixedLocator([tick for tick in TICKS if tick >= 0.8 * least]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 - value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_xlabel("sparsity reached, % (logarithm of what is kept)")
        axes.set_ylabel("weights taken back so far")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#dddddd", lw=0.6)
        axes.legend(frameon=False, loc="upper left")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the experiment, append its rows to ``--out`` and draw the figure beside it."""
    parser = argparse.ArgumentParser(description="Regrown weights against sparsity: rows and a figure.")
    parser.add_argument(
        "--out", type=Path, required=True, help="JSONL file that rows are added to; the figure ends in .png"
    )
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated methods of compare")
    parser.add_argument("--sparsity", type=float, default=0.95)
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0 .. N-1")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--network", default=None)
    for name in ("limit", "image_size", "dense_epochs", "epochs"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=None, help="as of compare")
    options: dict[str, Any] = vars(parser.parse_args(arguments))
    out, names = options["out"], [name for name in options["methods"].split(",") if name]
    if options["data"] == "digits":
        torch.set_num_threads(1)
    try:
        own = {name: options[name] for name in ("network", "limit", "image_size", "dense_epochs", "epochs")}
        recipe = recipe_for(options["data"], **own)
        for name in names:
            check_method(name, recipe)
        if options["seeds"] < 1 or not names:
            raise ValueError("--methods and --seeds: expected one method and one seed at least, got none")
        rows = list(appended(out, run(names, options["sparsity"], options["seeds"], recipe, out.parent)))
    except ValueError as error:
        parser.error(str(error))
    plot(rows, out.with_suffix(".png"))
    for name in names:
        last = [
            row["regrown"] for row in rows if row["method"] == name and row["sparsity"] >= 0.999 * options["sparsity"]
        ]
        print(f"{name:<18}{max(last, default=0):>8,} taken back")
    print(f"rows: {out}\nfigure: {out.with_suffix('.png')}")


if __name__ == "__main__":
    main()
