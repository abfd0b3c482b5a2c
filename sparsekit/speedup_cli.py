# SPDX-License-Identifier: Apache-2.0
"""``sparsekit speedup``: a suite of runs, and the report of how much faster than IMP each method is as accurate."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsekit.config_cli import configurable
from sparsekit.console import ERR, OUT, Json, plain_table, print_json, reported
from sparsekit.recipe_cli import (
    BatchSize,
    DenseEpochs,
    Device,
    Epochs,
    FinetuneLr,
    ImageSize,
    Limit,
    LowerLr,
    NetworkName,
    Precision,
    Root,
    Threads,
    set_threads,
)


@configurable
def speedup(
    context: typer.Context,
    suite: Annotated[str, typer.Option(help="smoke, small, quick, match, ablate or paper.")] = "smoke",
    seeds: Annotated[int | None, typer.Option(help="How many seeds; verdicts need 5, a headline 10.")] = None,
    first_seed: Annotated[int, typer.Option(help="The first of them; seeds nobody has seen confirm a finding.")] = 0,
    methods: Annotated[str, typer.Option(help="Comma-separated, NAME or NAME@FACTOR of its epochs.")] = "",
    sparsity: Annotated[str, typer.Option(help="Comma-separated fractions removed.")] = "",
    data: Annotated[str | None, typer.Option(help="digits, cifar10, cifar100, or a folder of images.")] = None,
    network: NetworkName = None,
    limit: Limit = None,
    image_size: ImageSize = None,
    dense_epochs: DenseEpochs = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lower_lr: LowerLr = None,
    finetune_lr: FinetuneLr = None,
    precision: Precision = None,
    device: Device = None,
    threads: Threads = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for rows, report and dense networks; runs/speedup-SUITE.")
    ] = None,
    root: Root = Path(".data"),
    time_budget: Annotated[
        float | None, typer.Option(help="Seconds after which to stop; the same command goes on.")
    ] = None,
    report_only: Annotated[bool, typer.Option("--report-only", help="Run nothing, report the rows there are.")] = False,
    keep_masks: Annotated[
        bool, typer.Option("--keep-masks", help="Keep the masks of all runs, for the report.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only predict cost and time.")] = False,
    as_json: Json = False,
) -> None:
    """How much faster than IMP, as accurate and as sparse: run a suite and report; goes on where it was stopped."""
    begin = time.perf_counter()
    with reported():
        from sparsekit.benchmarks.speedup_suites import chosen_suite

        chosen = chosen_suite(context.params)
        set_threads(threads, chosen.recipe.data)
        folder = out or Path(f"runs/speedup-{suite}")
        if time_budget is not None and not time_budget > 0:
            raise ValueError(f"--time-budget: expected seconds > 0, got {time_budget}")
        if dry_run:
            _forecast(chosen, folder, root, as_json)
        else:
            deadline = begin + time_budget if time_budget else None
            whole = report_only or _run(chosen, folder, root, deadline, keep_masks)
            _report(chosen, folder, whole, as_json)


def _run(suite: Any, folder: Path, root: Path, deadline: float | None, keep_masks: bool) -> bool:
    """Do what has no row; False if the time was up before the end."""
    from sparsekit.benchmarks.compare import Workbench, compare
    from sparsekit.benchmarks.keeper import TimeIsUp
    from sparsekit.benchmarks.progress import TerminalProgress

    bench = Workbench(suite.recipe, folder, root)
    bench.keep_masks = keep_masks
    if deadline is not None:
        bench.stop.deadline = deadline
    configs = suite.configs()
    with TerminalProgress(ERR, configs, bench.epoch_images) as progress, bench.stop.installed():
        try:
            compare(configs, folder, progress, bench)
        except TimeIsUp:
            return False
    return True


def _report(suite: Any, folder: Path, whole: bool, as_json: bool) -> None:
    from sparsekit.benchmarks.compare import ROWS
    from sparsekit.benchmarks.rows import rows_so_far
    from sparsekit.benchmarks.speedup_report import speedup_json, speedup_markdown, speedup_tables, write_speedup
    from sparsekit.tensor_file import replace_text

    rows = rows_so_far(folder / ROWS)
    page = write_speedup(rows, suite, folder / "speedup.html", folder)
    replace_text(folder / "speedup.md", speedup_markdown(rows, suite))
    known = {row.get("id") for row in rows if "result" in row}
    missing = [config for config in suite.configs() if config.id not in known]
    if as_json:
        print_json(speedup_json(rows, suite))
    else:
        for table in speedup_tables(rows, suite):
            OUT.print(table)
        OUT.print(f"rows:   {folder / ROWS}\nreport: {page}", highlight=False)
    if missing:
        why = "" if whole else "the time is up; "
        total = len(suite.configs())
        ERR.print(f"{why}{len(missing)} of {total} runs have no result yet; the same command goes on", highlight=False)
    failed = {row.get("id") for row in rows if "error" in row}
    if failed & {config.id for config in missing}:
        raise typer.Exit(1)


def _forecast(suite: Any, folder: Path, root: Path, as_json: bool) -> None:
    from sparsekit.benchmarks.chains import in_chains
    from sparsekit.benchmarks.compare import ROWS, Workbench
    from sparsekit.benchmarks.forecast import forecast
    from sparsekit.benchmarks.rows import rows_so_far

    known = {row.get("id") for row in rows_so_far(folder / ROWS) if "result" in row}
    bench = Workbench(suite.recipe, folder, root)
    rows, dense = forecast(in_chains(c for c in suite.configs() if c.id not in known), bench)
    seeds = sum(not bench.dense_file(seed).exists() for seed in {row.config.seed for row in rows})
    by_method: dict[str, tuple[float, float]] = {}
    for row in rows:
        epochs, seconds = by_method.get(row.config.method, (0.0, 0.0))
        by_method[row.config.method] = epochs + row.dense_epochs, seconds + row.seconds
    total = dense * seeds + sum(seconds for _, seconds in by_method.values())
    if as_json:
        methods = {name: {"dense_epochs": e, "seconds": s} for name, (e, s) in by_method.items()}
        print_json({"dense_seconds_per_seed": dense, "seeds": seeds, "total_seconds": total, "methods": methods})
        return
    table = plain_table(f"{suite.name}: {suite.summary}", ("method",), ("dense-equivalent epochs", "predicted seconds"))
    for name, (epochs, seconds) in by_method.items():
        table.add_row(name, f"{epochs:.1f}", f"{seconds:.1f}")
    OUT.print(table)
    OUT.print(f"dense training: {dense:.1f} s for each of {seeds} seeds; all together about {total / 60:.1f} minutes")
