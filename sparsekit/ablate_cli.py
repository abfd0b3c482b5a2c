# SPDX-License-Identifier: Apache-2.0
"""``sparsekit ablate``: is the mask of a pruned run worth anything beyond its numbers?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from sparsekit.console import ERR, OUT, Json, plain_table, print_json, reported
from sparsekit.recipe_cli import Every, Threads, checked_every, parsed_list, set_threads


def ablate(
    folder: Annotated[Path, typer.Argument(help="A folder of prune, whose run is finished; it is only read.")],
    seeds: Annotated[int, typer.Option(help="Seeds of batches and draws; answers need 5.")] = 5,
    variants: Annotated[
        str,
        typer.Option(help="Comma-separated: shuffled, random, random-erk, random-uniform, inverted, reinit, rewound."),
    ] = "shuffled,random,random-erk,inverted,reinit",
    out: Annotated[Path | None, typer.Option(help="Folder for rows and report; FOLDER-ablate.")] = None,
    threads: Threads = None,
    root: Annotated[Path | None, typer.Option(help="Where data sets lie; by default where prune found them.")] = None,
    checkpoint_every: Every = 60.0,
    as_json: Json = False,
) -> None:
    """Train the mask of a run beside shuffled, random and inverted masks and with new weights, and say what matters.

    All variants begin with the dense network of the run and have its recipe's epochs; each seed compares them in pairs.
    """
    with reported():
        from sparsekit.benchmarks.ablation import ROWS, open_ticket
        from sparsekit.benchmarks.ablation import ablate as train
        from sparsekit.benchmarks.ablation_report import write_ablation

        place = folder.resolve().parent / f"{folder.resolve().name}-ablate" if out is None else out
        ticket, bench = open_ticket(folder, place, root, checked_every(checkpoint_every))
        set_threads(ticket.run.threads if threads is None else threads, ticket.run.config.recipe.data)
        with bench.stop.installed():
            rows = train(ticket, bench, parsed_list("--variants", variants, str), seeds, _tell)
        if not rows:
            raise ValueError(
                f"ablate: out: expected work to do in {str(place)!r}, got another process that is at all of it"
            )
        page = write_ablation(rows, place / "report.html")
        _show(rows, as_json)
        if not as_json:
            OUT.print(f"rows:   {place / ROWS}\nreport: {page}", highlight=False, soft_wrap=True)
    if any("error" in row for row in rows):
        raise typer.Exit(1)


def _tell(row: dict[str, Any], known: bool) -> None:
    label = f"{row['variant']:<14} seed {row['seed']}"
    if "error" in row:
        ERR.print(f"[red]failed[/red]  {label}  {escape(row['error'])}", highlight=False)
        return
    cost = "" if known else f"  in {row['cost']['seconds']:.1f} s"
    ERR.print(f"{'have' if known else 'done'}    {label}  {row['result']['test_accuracy']:.2%}{cost}", highlight=False)


def _show(rows: list[dict[str, Any]], as_json: bool) -> None:
    from sparsekit.benchmarks.ablation_report import SCOPE, ablation_json, ablation_title
    from sparsekit.benchmarks.reporting.ablation import summarise_ablation
    from sparsekit.benchmarks.reporting.wording import MISSING, points, points_range, spread

    if as_json:
        print_json(ablation_json(rows))
        return
    found = summarise_ablation(rows)
    caption = f"Mean ± sd over n seeds. Difference to the control: paired, 95 % t interval. {SCOPE}"
    columns = ("accuracy, %", "n", "difference, points", "overlap")
    table = plain_table(ablation_title(found), ("variant",), columns, caption)
    for line in found.lines:
        against = points(line.difference.mean) if line.difference else ""
        if line.difference and line.difference.interval:
            against += f" ({points_range(line.difference.interval)})"
        seeds = str(line.accuracy.n if line.accuracy else 0) + (f", {len(line.failed)} failed" if line.failed else "")
        overlap = MISSING if line.overlap is None else f"{line.overlap:.2f}"
        table.add_row(line.variant, spread(line.accuracy), seeds, against, overlap)
    OUT.print(table)
    for answer in found.answers:
        OUT.print(escape(answer.sentence), highlight=False, soft_wrap=True)
