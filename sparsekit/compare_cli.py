# SPDX-License-Identifier: Apache-2.0
"""``sparsekit compare``: methods at equal sparsity from the same dense networks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from sparsekit.config_cli import configurable
from sparsekit.console import ERR, OUT, Json, print_json, reported
from sparsekit.recipe_cli import Root, parsed_list, recipe_of, takes_recipe


@configurable
@takes_recipe
def compare(
    context: typer.Context,
    methods: Annotated[
        str, typer.Option(help="Comma-separated methods; module:name of your own.")
    ] = "imp,omp,bip,spode",
    sparsity: Annotated[str, typer.Option(help="Comma-separated fractions removed.")] = "0.893,0.945,0.972",
    seeds: Annotated[int, typer.Option(help="Seeds 0 .. N-1, each with its own dense network.")] = 3,
    out: Annotated[Path, typer.Option(help="Folder for rows, report and dense networks.")] = Path("runs/compare"),
    root: Root = Path(".data"),
    keep_masks: Annotated[
        bool, typer.Option("--keep-masks", help="Keep the masks of all runs, for the report.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only predict cost and time.")] = False,
    as_json: Json = False,
) -> None:
    """Compare pruning methods at equal sparsity from the same dense networks, and report cost and speed-up over IMP."""
    with reported():
        from sparsekit.benchmarks import compare as job

        recipe = recipe_of(context.params)
        configs = job.grid(
            parsed_list("--methods", methods, str), parsed_list("--sparsity", sparsity, float), seeds, recipe
        )
        bench = job.Workbench(recipe, out, root)
        bench.keep_masks = keep_masks
        if dry_run:
            _show_forecast(configs, bench, as_json)
        else:
            _run(configs, bench, out, as_json)


def _run(configs: list[Any], bench: Any, out: Path, as_json: bool) -> None:
    from sparsekit.benchmarks.compare import compare as run_all
    from sparsekit.benchmarks.progress import TerminalProgress

    with TerminalProgress(ERR, configs, bench.epoch_images) as progress, bench.stop.installed():
        rows = run_all(configs, out, progress, bench)
    _show(rows, out, as_json)
    if any("error" in row for row in rows):
        raise typer.Exit(1)


def _show(rows: list[dict[str, Any]], out: Path, as_json: bool) -> None:
    from sparsekit.benchmarks.report import render_table, write_report

    report = write_report(rows, out / "report.html", masks=out) if any("result" in row for row in rows) else None
    if as_json:
        print_json(rows)
        return
    for table in render_table(rows):
        OUT.print(table)
    OUT.print(f"rows:   {out / 'rows.jsonl'}\nreport: {report or 'none, as no run has finished'}", highlight=False)


def _show_forecast(configs: list[Any], bench: Any, as_json: bool) -> None:
    from sparsekit.benchmarks.forecast import forecast

    rows, dense = forecast(configs, bench)
    seeds = len({row.config.seed for row in rows})
    total = dense * seeds + sum(row.seconds for row in rows)
    if as_json:
        runs = [
            {"method": r.config.method, "sparsity": r.config.sparsity, "seed": r.config.seed}
            | {"dense_epochs": r.dense_epochs, "seconds": r.seconds}
            for r in rows
        ]
        print_json({"dense_seconds_per_seed": dense, "total_seconds": total, "runs": runs})
        return
    table = Table("method", "sparsity", "seed", "dense-equivalent epochs", "predicted seconds", title="dry run")
    for r in rows:
        c = r.config
        table.add_row(c.method, f"{c.sparsity:.1%}", str(c.seed), f"{r.dense_epochs:.1f}", f"{r.seconds:.1f}")
    OUT.print(table)
    OUT.print(f"dense training: {dense:.1f} s for each of {seeds} seeds; all together about {total / 60:.1f} minutes")
