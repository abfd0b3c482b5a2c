# SPDX-License-Identifier: Apache-2.0
"""``sparsekit inspect``: what is in a checkpoint or in the rows of a run, and whether it is sound."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from sparsekit.console import OUT, Json, plain_table, print_json, reported

if TYPE_CHECKING:
    from sparsekit.inspection import Inspection
    from sparsekit.mask import Masks

COLUMNS = ("kept", "sparsity", "dead", "dense", "packed")
CAPTION = (
    "pattern: empty where none is seen. sparsity: the fraction removed. dead: output, input units that no kept weight "
    "connects. dense: size as stored; packed: kept values and the bits of the mask."
)


def inspect(
    path: Annotated[
        Path, typer.Argument(help="A folder of prune, compare or sk.save, a .safetensors or a .jsonl file.")
    ],
    layers: Annotated[str, typer.Option(help="Glob on layer names, such as 'layer1.*'.")] = "*",
    no_paths: Annotated[
        bool, typer.Option("--no-paths", help="Do not trace which weights connect input and output.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 if anything is wrong.")] = False,
    as_json: Json = False,
) -> None:
    """Show the layers and masks of a checkpoint and the rows of a run, and say what is wrong with them."""
    with reported("nothing was written"):
        from sparsekit.benchmarks.runs import read_run, run_problems
        from sparsekit.inspection import inspect as look

        run = read_run(path)
        found = look(run.checkpoint, layers) if run.checkpoint else None
        effective, why = _traced(run, found) if found and not no_paths else (None, "not asked for")
        if effective is not None and run.checkpoint:
            found = look(run.checkpoint, layers, effective)
        if found is None and layers != "*":
            raise ValueError(f"--layers: expected a checkpoint with layers, got rows alone in {str(path)!r}")
        problems = [*(found.problems if found else ()), *run_problems(run)]
        if as_json:
            facts = {"schema": 1, "kind": "inspection", "path": str(path), "ok": not problems, "problems": problems}
            print_json(facts | {"checkpoint": asdict(found) if found else None, "rows": run.rows})
        else:
            _show(path, found, run, problems, why)
    if check and problems:
        raise typer.Exit(1)


def _traced(run: Any, found: Inspection) -> tuple[Masks | None, str]:
    """Effective masks of the checkpoint, or the reason why there are none."""
    from sparsekit.benchmarks.run_folder import FILE, RunFile
    from sparsekit.benchmarks.run_network import network_of
    from sparsekit.benchmarks.runs import row_of
    from sparsekit.effective import effective_masks
    from sparsekit.io import load

    row = row_of(run, found.mask_hash)
    if row is None:
        return None, "no row says which network it is"
    try:
        root = RunFile.read(run.path).root if (run.path / FILE).is_file() else ".data"
        model, image = network_of(row["config"], root)
        return effective_masks(load(model, run.checkpoint, masks="infer" if found.inferred else "stored"), image), ""
    # A look into a file must not fail for what is only said besides.
    except (ValueError, RuntimeError, TypeError, OSError) as error:
        return None, str(error)


def _show(path: Path, found: Inspection | None, run: Any, problems: list[str], why: str) -> None:
    if found:
        _show_layers(path, found)
        _show_paths(found, why)
    if run.rows:
        _show_rows(path, run.rows)
    for problem in problems:
        OUT.print(f"[red]wrong:[/red] {escape(problem)}", highlight=False)
    if not problems:
        OUT.print("sound: nothing wrong was found", highlight=False)


def _show_layers(path: Path, found: Inspection) -> None:
    table = plain_table(str(path), ("layer", "shape", "pattern"), COLUMNS, CAPTION)
    for layer in found.layers:
        dead = f"{layer.dead_outputs},{layer.dead_inputs}" if layer.dead_outputs or layer.dead_inputs else ""
        table.add_row(
            escape(layer.name or "(model)"),
            "x".join(map(str, layer.shape)),
            "" if layer.pattern == "unstructured" else layer.pattern,
            f"{layer.kept:,}",
            f"{layer.sparsity:.2%}",
            dead,
            _size(layer.dense_bytes),
            _size(layer.packed_bytes),
        )
    OUT.print(table)
    for line in _totals(found):
        OUT.print(line, highlight=False, soft_wrap=True)


def _show_paths(found: Inspection, why: str) -> None:
    """Densities beside those that allocations would give, and what connects the input with the output."""
    traced, columns = found.effective is not None, ("density", "ERK", "effective", "cut")
    caption = f"ERK: density if ERK divided the same total; uniform: {1 - found.sparsity:.2%} everywhere."
    if traced:
        caption += (
            " effective: density of weights on a path from input to output. cut: output, input units without one."
        )
    table = plain_table("densities", ("layer",), columns if traced else columns[:2], caption)
    for x in found.layers:
        shares = [f"{n / x.total:.2%}" if x.total else "" for n in (x.kept, x.erk, x.effective) if n is not None]
        cut = [f"{x.cut_outputs},{x.cut_inputs}" if x.cut_outputs or x.cut_inputs else ""] if traced else []
        table.add_row(escape(x.name or "(model)"), *shares, *cut)
    OUT.print(table)
    if found.effective is None:
        OUT.print(f"paths:   not traced: {escape(why)}", highlight=False, soft_wrap=True)
    elif found.total:
        idle, sparsity = found.kept - found.effective, 1 - found.effective / found.total
        text = f"{idle:,} kept weights are on no path from input to output; effective sparsity {sparsity:.4%}"
        OUT.print(f"paths:   {text}", highlight=False, soft_wrap=True)


def _totals(found: Inspection) -> list[str]:
    types = ", ".join(dict.fromkeys(layer.dtype for layer in found.layers))
    file = f"file {_size(found.file_bytes)}, " if found.file_bytes is not None else ""
    lines = [
        f"kept:    {found.kept:,} of {found.total:,} weights, sparsity {found.sparsity:.4%}, {types}",
        f"size:    {file}tensors {_size(found.dense_bytes)} dense, {_size(found.packed_bytes)} packed",
        f"masks:   {found.mask_hash}",
    ]
    if found.inferred:
        lines.append("         (no masks are stored: zeros count as pruned)")
    return [*lines, f"revived: {_revived(found)}"]


def _revived(found: Inspection) -> str:
    if not found.revived:
        return "no pruned weight holds a value"
    if any("without the mask" in problem for problem in found.problems):
        return f"{found.revived:,} pruned weights hold a value, and something reads them without the mask"
    return f"{found.revived:,} pruned weights hold a value; harmless, no masked layer reads them"


def _show_rows(path: Path, rows: tuple[dict[str, Any], ...]) -> None:
    caption = "epochs: dense-equivalent, of the whole run. The hash is the beginning of the masks' hash."
    numbers = ("sparsity", "seed", "accuracy", "dense", "epochs", "seconds")
    table = plain_table(f"runs in {path}", ("method",), (*numbers, "mask hash"), caption)
    for row in rows:
        head = (escape(row["method"]), f"{row['sparsity']:.2%}", str(row["seed"]))
        if "result" not in row:
            table.add_row(*head, "failed")
            continue
        result, cost = row["result"], row["cost"]
        dense = row.get("dense", {}).get("test_accuracy")
        accuracies = [f"{value:.2%}" if value is not None else "" for value in (result["test_accuracy"], dense)]
        costs = (f"{cost['dense_epochs']:.1f}", f"{cost['seconds']:.1f}")
        table.add_row(*head, *accuracies, *costs, result["mask_hash"][:8])
    OUT.print(table)


def _size(count: int) -> str:
    """Bytes in the unit that suits them, powers of 1024."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.{0 if unit == 'B' or size >= 100 else 1}f}\N{NO-BREAK SPACE}{unit}"
        size /= 1024
    raise AssertionError(count)
