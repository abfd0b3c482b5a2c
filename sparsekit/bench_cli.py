# SPDX-License-Identifier: Apache-2.0
"""The commands under ``sparsekit bench``: kernel benchmarks on the user's own machine."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from sparsekit.console import ERR, OUT, Json, print_json, reported

bench_app = typer.Typer(no_args_is_help=True, help="Time kernels on this machine, each checked before it is timed.")


@bench_app.callback()
def bench() -> None:
    """Time kernels on this machine, each checked before it is timed."""


@bench_app.command()
def topk(
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    out: Annotated[Path, typer.Option(help="JSONL file that rows are added to.")] = Path("runs/bench.jsonl"),
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
        from sparsekit.benchmarks.topk_problems import choose_problems

        bench_rows.check_options(repeats, device, out)
        rows = _measure(choose_problems(device, full=full, large=large, only=only), repeats, device, out)
        if as_json:
            print_json(rows)
        else:
            OUT.print(_table(rows, "top-k masks", "; †: keeps all ties, so more than asked"))
            OUT.print(f"rows: {out}", highlight=False)


@bench_app.command()
def bilevel(
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    out: Annotated[Path, typer.Option(help="JSONL file that rows are added to.")] = Path("runs/bench.jsonl"),
    repeats: Annotated[int, typer.Option(help="Rounds.")] = 10,
    only: Annotated[str, typer.Option(help="Glob on names of problems, such as 'resnet50 *'.")] = "*",
    as_json: Json = False,
) -> None:
    """Time masked weights, both gradients, BiP's update and masked optimizer steps of whole networks."""
    with reported("finished rows are kept"):
        from sparsekit.benchmarks import bench_bilevel, bench_rows
        from sparsekit.benchmarks.rows import append_row

        bench_rows.check_options(repeats, device, out)
        rows = []
        for row in bench_bilevel.run(repeats, device, only):
            append_row(out, row)
            rows.append(row)
        if not rows:
            raise ValueError(f"--only: expected a glob that matches a problem, got {only!r}")
        if as_json:
            print_json(rows)
        else:
            OUT.print(_table(rows, "ops on whole networks"))
            OUT.print(f"rows: {out}", highlight=False)


Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Out = Annotated[Path, typer.Option(help="JSONL file that rows are added to.")]
Repeats = Annotated[int, typer.Option(help="Interleaved rounds.")]
Compiled = Annotated[bool, typer.Option("--compiled", help="Also torch.compile of the baseline; takes long.")]
ROWS = Path("runs/bench.jsonl")


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
        from sparsekit.benchmarks.rows import append_row

        repeats, device, out = settings
        bench_rows.check_options(repeats, device, out)
        rows = []
        for row in importlib.import_module(f"sparsekit.benchmarks.{program}").run(repeats, device, **options):
            append_row(out, row)
            rows.append(row)
            if row["provider"] == row["baseline"]:
                ERR.print(row["problem"], highlight=False)
        if as_json:
            print_json(rows)
        else:
            OUT.print(_ratios(rows))
            OUT.print(f"rows: {out}", highlight=False)


def _ratios(rows: list[dict[str, Any]]) -> Table:
    from sparsekit.benchmarks.reporting.wording import seconds_text, times

    table = Table(title=rows[0]["bench"], caption="ratio: time of a problem's first provider over own time")
    table.add_column("problem, provider")
    for name in ("median", "ratio"):
        table.add_column(name, justify="right")
    for row in rows:
        if row["provider"] == row["baseline"]:
            table.add_section()
            table.add_row(row["problem"])
        table.add_row(f"  {row['provider']}", seconds_text(row["median_s"]), times(row["ratio"]))
    return table


def _measure(problems: list[Any], repeats: int, device: str, out: Path) -> list[dict[str, Any]]:
    from sparsekit.benchmarks.bench_topk_mask import measure
    from sparsekit.benchmarks.rows import append_row

    rows = []
    for number, problem in enumerate(problems, 1):
        ERR.print(f"{number}/{len(problems)} {problem.name}", highlight=False)
        for row in measure(problem, repeats, device):
            append_row(out, row)
            rows.append(row)
    return rows


def _table(rows: list[dict[str, Any]], title: str, note: str = "") -> Table:
    from sparsekit.benchmarks.reporting.wording import seconds_text, times

    caption = "ratio: time of a problem's first provider over own time; times the copy: own time over the copy's"
    table = Table(title=title, caption=caption + note)
    table.add_column("problem, provider")
    for name in ("median", "ratio", "times the copy"):
        table.add_column(name, justify="right")
    for row in rows:
        if row["provider"] == row["baseline"]:
            table.add_section()
            table.add_row(row["problem"])
        name = f"  {row['provider']}" + (" †" if "note" in row else "")
        table.add_row(name, seconds_text(row["median_s"]), times(row["ratio"]), times(row["floor_ratio"]))
    return table
