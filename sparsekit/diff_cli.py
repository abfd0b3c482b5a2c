# SPDX-License-Identifier: Apache-2.0
"""``sparsekit diff``: two runs or checkpoints side by side."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from sparsekit.console import OUT, Json, plain_table, print_json, reported

if TYPE_CHECKING:
    from sparsekit.mask_diff import MaskDifference

Place = Annotated[Path, typer.Argument(help="A folder of prune, compare or sk.save, a .safetensors or a .jsonl file.")]


def diff(
    a: Place,
    b: Place,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 unless all masks are identical.")] = False,
    as_json: Json = False,
) -> None:
    """Compare two runs or checkpoints: accuracy and cost paired by seed, and the masks layer by layer."""
    with reported("nothing was written"):
        from sparsekit.benchmarks.runs import diff_runs, read_run
        from sparsekit.mask_diff import diff as diff_masks

        runs = [read_run(path) for path in (a, b)]
        files = [run.checkpoint for run in runs]
        masks = diff_masks(files[0], files[1]) if files[0] and files[1] else None
        rows = diff_runs(*runs) if all(run.finished for run in runs) else None
        if masks is None and rows is None and not (files[0] or runs[0].finished):
            raise ValueError(f"diff: a: expected masks or finished rows, got an unfinished run in {str(a)!r}")
        if masks is None and (rows is None or not rows.pairs):
            raise ValueError(f"diff: b: expected rows of a method that a has, or masks in both, got {str(b)!r}")
        same = _identical(masks, rows)
        if as_json:
            facts = {"schema": 1, "kind": "diff", "a": str(a), "b": str(b), "identical_masks": same}
            print_json(facts | {"masks": _masks_json(masks), "runs": asdict(rows) if rows else None})
        else:
            OUT.print(f"a: {a}\nb: {b}", highlight=False, soft_wrap=True)
            _show_runs(rows)
            _show_masks(masks)
            OUT.print(f"masks: {'identical' if same else 'not identical'}", highlight=False)
    if check and not same:
        raise typer.Exit(1)


def _identical(masks: MaskDifference | None, rows: Any) -> bool:
    pairs = rows.pairs if rows else ()
    return (masks is None or masks.identical) and all(pair.same_masks == len(pair.seeds) for pair in pairs)


def _masks_json(masks: MaskDifference | None) -> dict[str, Any] | None:
    if masks is None:
        return None
    layers = [asdict(x) | {"only_a": x.only_a, "only_b": x.only_b} for x in masks.layers]
    return asdict(masks) | {"layers": layers}


def _show_runs(rows: Any) -> None:
    if rows is None:
        return
    from sparsekit.benchmarks.reporting.wording import label

    caption = "Means over the n seeds that both have. accuracy: on the test set. epochs: dense-equivalent."
    columns = ("sparsity", "n", "accuracy", "seconds", "epochs", "same masks")
    table = plain_table("runs", ("", "method"), columns, caption)
    for pair in rows.pairs:
        for name, side in (("a", pair.a), ("b", pair.b)):
            cost = (f"{side.accuracy:.2%}", f"{side.seconds:.2f}", f"{side.dense_epochs:.1f}")
            same = f"{pair.same_masks} of {len(pair.seeds)}" if name == "b" else ""
            table.add_row(name, escape(label(side.method)), f"{side.sparsity:.2%}", str(len(pair.seeds)), *cost, same)
        table.add_section()
    OUT.print(table)
    for pair in rows.pairs:
        OUT.print(escape(_paired(pair)), highlight=False, soft_wrap=True)
    for name, places in (("a", rows.only_a), ("b", rows.only_b)):
        if places:
            text = ", ".join(f"{method} {sparsity:.2%}" for method, sparsity in places)
            OUT.print(f"only in {name}: {escape(text)}", highlight=False)
    for name, (x, y) in rows.settings.items():
        OUT.print(f"setting {escape(name)}: {escape(x)} in a, {escape(y)} in b", highlight=False)


def _paired(pair: Any) -> str:
    """The paired difference of accuracy with its interval and verdict, and the ratio of times."""
    from sparsekit.benchmarks.reporting.wording import label, points, points_range, times, times_range

    gain, interval = pair.difference, pair.difference.interval
    text = (
        f"{label(pair.a.method)} to {label(pair.b.method)} at {pair.b.sparsity:.2%}: b - a {points(gain.mean)} points"
    )
    if interval is not None:
        text += f" (95 %: {points_range(interval)}), {pair.verdict}"
    text += f"; time a/b {times(pair.ratio)}"
    return text + (f" (95 %: {times_range(pair.ratio_interval)})" if pair.ratio_interval else "")


def _show_masks(masks: MaskDifference | None) -> None:
    if masks is None:
        return
    caption = "IoU: weights kept by both over weights kept by either; chance: that of random masks which keep as many."
    table = plain_table(
        "masks", ("layer", "shape"), ("kept in a", "kept in b", "only in a", "only in b", "IoU", "chance"), caption
    )
    for layer in masks.layers:
        counts = [f"{n:,}" for n in (layer.kept_a, layer.kept_b, layer.only_a, layer.only_b)]
        table.add_row(
            escape(layer.name or "(model)"),
            "x".join(map(str, layer.shape)),
            *counts,
            f"{layer.iou:.4f}",
            f"{layer.chance:.4f}",
        )
    table.add_section()
    total = (masks.kept_a, masks.kept_b, masks.kept_a - masks.both, masks.kept_b - masks.both)
    table.add_row("all", "", *(f"{n:,}" for n in total), f"{masks.iou:.4f}", f"{masks.chance:.4f}")
    OUT.print(table)
    for name, missing in (("a", masks.missing_in_b), ("b", masks.missing_in_a)):
        if missing:
            OUT.print(f"layers only in {name}: {escape(', '.join(missing))}", highlight=False)
    for name, digest in (("a", masks.hash_a), ("b", masks.hash_b)):
        OUT.print(f"hash {name}: {digest}", highlight=False)
