# SPDX-License-Identifier: Apache-2.0
"""The commands under ``sparsekit bench``: kernel benchmarks on the user's own machine."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from sparsekit.console import ERR, OUT, Json, print_json, reported

Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Out = Annotated[Path, typer.Option(help="JSONL file that rows are added to.")]
Repeats = Annotated[int, typer.Option(help="Interleaved rounds.")]
Compiled = Annotated[bool, typer.Option("--compiled", help="Also torch.compile of the baseline; takes long.")]
ROWS = Path("runs/bench.jsonl")

bench_app = typer.Typer(no_args_is_help=True, help="Time kernels on this machine, each checked before it is timed.")


@bench_app.callback()
def bench() -> None:
    """Time kernels on this machine, each checked before it is timed."""


@bench_app.command()
def topk(
    device: Device = "cpu",
    out: Out = ROWS,
    repeats: Annotated[int, typer.Option(help="Rounds; what takes over a second gets at most 3.")] = 10,
    full: Annotated[bool, typer.Option("--full", help="All sizes, contents and counts, not the quick set.")] = False,
    large: Annotated[
        bool, typer.Option("--large", help="The full set, on a CPU too with more than 1e8 entries.")
    ] = False,
    only: Annotated[str | None, typer.Option(help="Glob on names of problems, such as '1e7/*/20%'.")] = None,
    as_json: Json = False,
) -> None:
    """Time the exact top-k mask against kthvalue, topk, sort, partition and a copy of the same bytes."""
    with reported("finished rows are kept"):
        from sparsekit.benchmarks import bench_rows
        from sparsekit.benchmarks.bench_topk_mask import measure
        from sparsekit.benchmarks.rows import appended
        from sparsekit.benchmarks.topk_problems import choose_problems

        bench_rows.check_options(repeats, device, out)
        problems, rows = choose_problems(device, full=full, large=large, only=only), []
        for number, problem in enumerate(problems, 1):
            ERR.print(f"{number}/{len(problems)} {problem.name}", highlight=False)
            rows += appended(out, measure(problem, repeats, device))
        _show(rows, out, as_json, "top-k masks", "; †: keeps all ties, so more than asked")


@bench_app.command()
def bilevel(
    device: Device = "cpu",
    out: Out = ROWS,
    repeats: Annotated[int, typer.Option(help="Rounds.")] = 10,
    only: Annotated[str, typer.Option(help="Glob on names of problems, such as 'resnet50 *'.")] = "*",
    as_json: Json = False,
) -> None:
    """Time masked weights, both gradients, BiP's update and masked optimizer steps of whole networks."""
    with reported("finished rows are kept"):
        from sparsekit.benchmarks import bench_bilevel, bench_rows
        from sparsekit.benchmarks.rows import appended

        bench_rows.check_options(repeats, device, out)
        rows = list(appended(out, bench_bilevel.run(repeats, device, only)))
        if not rows:
            raise ValueError(f"--only: expected a glob that matches a problem, got {only!r}")
        _show(rows, out, as_json, "ops on whole networks")


@bench_app.command()
def linear(
    device: Device = "cpu",
    out: Out = ROWS,
    repeats: Repeats = 30,
    only: Annotated[str | None, typer.Option(help="Glob on names of cases, such as '8x4096x4096/*'.")] = None,
    compiled: Compiled = False,
    as_json: Json = False,
) -> None:
    """Time masked linear layers against dense ones and masks by PyTorch, forward and as a training step."""
    _run("bench_masked_linear", (repeats, device, out), as_json, only=only, compiled=compiled)


@bench_app.command()
def conv(
    device: Device = "cpu",
    out: Out = ROWS,
    repeats: Repeats = 30,
    only: Annotated[str | None, typer.Option(help="Glob on names of cases, such as '8x256x14-256k3s1/*'.")] = None,
    compiled: Compiled = False,
    as_json: Json = False,
) -> None:
    """Time masked convolutions against dense ones and masks by PyTorch, forward and as a training step."""
    _run("bench_masked_conv2d", (repeats, device, out), as_json, only=only, compiled=compiled)


@bench_app.command()
def structured(device: Device = "cpu", out: Out = ROWS, repeats: Repeats = 30, as_json: Json = False) -> None:
    """Time masks of filters, channels and n:m against chains of PyTorch calls."""
    _run("bench_structured", (repeats, device, out), as_json)


@bench_app.command()
def compact(
    device: Device = "cpu",
    out: Out = ROWS,
    repeats: Repeats = 30,
    only: Annotated[str, typer.Option(help="Glob on names of settings, such as 'resnet20 *'.")] = "*",
    as_json: Json = False,
) -> None:
    """Time networks with half and more of their filters masked, before and after channel surgery."""
    _run("bench_compact", (repeats, device, out), as_json, only=only)


def _run(program: str, settings: tuple[int, str, Path], as_json: bool, **options: Any) -> None:
    """One of the programs benchmarks/bench_*.py: its rows go to the file as they come, then to the terminal."""
    with reported("finished rows are kept"):
        from sparsekit.benchmarks import bench_rows
        from sparsekit.benchmarks.rows import appended

        repeats, device, out = settings
        bench_rows.check_options(repeats, device, out)
        rows = []
        found = importlib.import_module(f"sparsekit.benchmarks.{program}").run(repeats, device, **options)
        for row in appended(out, found):
            rows.append(row)
            if row["provider"] == row["baseline"]:
                ERR.print(row["problem"], highlight=False)
        _show(rows, out, as_json)


def _show(rows: list[dict[str, Any]], out: Path, as_json: bool, title: str = "", note: str = "") -> None:
    """The rows as JSON, or as a table; with the ratio to a copy of the same bytes where they have one."""
    from sparsekit.benchmarks.reporting.wording import seconds_text, times

    if as_json:
        print_json(rows)
        return
    copied = "floor_ratio" in rows[0]
    caption = "ratio: time of a problem's first provider over own time"
    caption += "; times the copy: own time over the copy's" if copied else ""
    table = Table(title=title or rows[0]["bench"], caption=caption + note)
    table.add_column("problem, provider")
    for name in ("median", "ratio", *(["times the copy"] if copied else [])):
        table.add_column(name, justify="right")
    for row in rows:
        if row["provider"] == row["baseline"]:
            table.add_section()
            table.add_row(row["problem"])
        name = f"  {row['provider']}" + (" †" if "note" in row else "")
        last = [times(row["floor_ratio"])] if copied else []
        table.add_row(name, seconds_text(row["median_s"]), times(row["ratio"]), *last)
    OUT.print(table)
    OUT.print(f"rows: {out}", highlight=False)
