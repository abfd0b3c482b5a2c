# SPDX-License-Identifier: Apache-2.0
"""Is a mask worth anything beyond its numbers? Variants of it, trained from one starting point on one budget.

The test of Frankle et al., "Pruning neural networks at initialization: why are we missing the mark?", ICLR 2021. All
variants of one seed see the same batches, so they are compared in pairs; their rows go to a folder of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from sparsekit.benchmarks.ablation_variants import CONTROL, DEFAULT, VARIANTS, Ticket, drawn, rewound
from sparsekit.benchmarks.claims import Claims
from sparsekit.benchmarks.dense_file import dense_name, read_dense
from sparsekit.benchmarks.engine import ADOPTED, Workbench
from sparsekit.benchmarks.environment import environment
from sparsekit.benchmarks.keeper import EVERY, Keeper
from sparsekit.benchmarks.masking import sparsify_for
from sparsekit.benchmarks.meter import Meter
from sparsekit.benchmarks.one_run import FINETUNE, counted
from sparsekit.benchmarks.recipe import LARGEST_SEED, MAX_SEEDS, as_json, identity
from sparsekit.benchmarks.rows import Row, append_row, rows_so_far
from sparsekit.benchmarks.run_folder import FILE as RUN
from sparsekit.benchmarks.run_folder import RunFile
from sparsekit.benchmarks.spent import Spent
from sparsekit.benchmarks.training import OnStep, ignore
from sparsekit.inspection import read_masks
from sparsekit.io import FILE
from sparsekit.nn import masks, set_masks
from sparsekit.pruners.checks import checked_count

ROWS = "rows.jsonl"


def open_ticket(
    folder: str | Path, out: str | Path, root: str | Path | None = None, every: float = EVERY
) -> tuple[Ticket, Workbench]:
    """What a folder of ``sparsekit prune`` holds, and a workbench in ``out`` for its variants; the folder is only read.

    Args:
        folder: of a finished run whose dense network is still there.
        out: where rows go; neither the folder nor within it.
        root: where data sets lie; None takes what the run was given.
        every: seconds between the checkpoints of what is unfinished.

    Raises:
        ValueError: another folder, an unfinished run, masks or weights that are not there or do not fit.
    """
    folder, out = Path(folder), Path(out)
    if not (folder / RUN).is_file():
        raise ValueError(f"ablate: folder: expected a folder of prune, with {RUN}, got {str(folder)!r}")
    run = RunFile.read(folder, "ablate")
    if run.row is None or not (folder / FILE).is_file():
        ways = f"go on with `sparsekit resume {folder}`" if run.row is None else "prune again"
        raise ValueError(f"ablate: folder: expected a finished run with its {FILE}, got none; {ways}")
    if out.resolve() == folder.resolve() or folder.resolve() in out.resolve().parents:
        raise ValueError(f"ablate: out: expected a folder outside of {str(folder)!r}, got {str(out)!r}")
    bench = Workbench(run.config.recipe, out, run.root if root is None else root, every)
    seed, given = run.config.seed, run.weights is not None
    network = bench.network(seed)
    file = folder / "dense" / (ADOPTED if given else dense_name(bench.recipe, seed))
    if not file.is_file():
        raise ValueError(f"ablate: folder: expected the dense network that the run began with in {file}, got none")
    state, _ = read_dense(file, network)
    init = None if given else {name: value.clone() for name, value in network.state_dict().items()}
    return Ticket(folder, run, read_masks(folder), init, state), bench


def ablate(
    ticket: Ticket,
    bench: Workbench,
    variants: Sequence[str] = DEFAULT,
    seeds: int = 5,
    on_row: Callable[[Row, bool], None] = lambda row, known: None,
    on_step: OnStep = ignore,
) -> list[Row]:
    """Train every variant with every seed; what has a finished row in ``bench.out`` is not done again.

    Args:
        variants: names among VARIANTS; the control is always among them.
        seeds: of batches and draws, from the run's own on; with its own the control trains on the batches that the run's
            fine-tuning had.
        on_row: gets every row, and whether it was known before. on_step: called after every training step.

    Returns:
        The rows, seed by seed. A variant that fails leaves a row with "error" and is tried again next time; what another
        process is at in the same folder is missing.

    Raises:
        ValueError: unknown variants, no seed, or ``rewound`` for a run whose weights were given.
    """
    names = list(dict.fromkeys((CONTROL, *variants)))
    if unknown := [name for name in names if name not in VARIANTS]:
        raise ValueError(f"ablate: variants: expected some of {', '.join(VARIANTS)}, got {unknown[0]!r}")
    if "rewound" in names:
        rewound(ticket, lambda: bench.network(0))
    first = ticket.run.config.seed
    checked_count("ablate", "seeds", seeds, most=min(MAX_SEEDS, LARGEST_SEED - first))
    rows = []
    with closing(Claims(bench.out)) as claims:
        for seed in range(first, first + seeds):
            for name in names:
                with claims.mine(_head(ticket, name, seed)["id"]) as mine:
                    if mine:
                        rows.append(_done(ticket, bench, name, seed, on_row, on_step))
    return rows


def _done(
    ticket: Ticket, bench: Workbench, name: str, seed: int, on_row: Callable[[Row, bool], None], on_step: OnStep
) -> Row:
    """The row of a variant: the one on disk, or that of a run made now."""
    head, file = _head(ticket, name, seed), bench.out / ROWS
    known = [row for row in rows_so_far(file) if row.get("id") == head["id"] and "result" in row]
    if known:
        on_row(known[-1], True)
        return known[-1]
    identity_of = {key: head[key] for key in ("id", "variant", "seed")}
    keeper = bench.keeper(bench.out / "unfinished" / f"{head['id']}.safetensors", identity_of)
    try:
        row = head | _trained(ticket, bench, name, seed, keeper, on_step) | {"environment": environment()}
    except (ValueError, RuntimeError) as error:  # as in a comparison
        row = head | {"error": str(error), "environment": environment()}
    append_row(file, row)
    if "result" in row:
        keeper.remove()
    on_row(row, False)
    return row


def _trained(ticket: Ticket, bench: Workbench, name: str, seed: int, keeper: Keeper, on_step: OnStep) -> dict[str, Any]:
    recipe, variant = ticket.run.config.own_recipe, VARIANTS[name]
    model = bench.network(seed)
    model.load_state_dict(variant.state(ticket, lambda: bench.network(drawn("reinit", seed))))
    sparsify_for(model, bench.recipe)
    set_masks(model, variant.masks(ticket, seed))
    before = bench.accuracy(model, "test")
    bench.warm_up()
    meter, spent = Meter(recipe.device, whole=not keeper.begun()), Spent()
    steps = recipe.epochs * bench.steps_per_epoch
    spent.add_training(steps, recipe.batch_size, *bench.fit(model, seed, FINETUNE, steps, keeper, on_step))
    measured, final = meter.row(), masks(model)
    result = {
        **counted(final),
        "overlap": final.overlap(ticket.masks),
        "val_accuracy": bench.accuracy(model, "val"),
        "test_accuracy": bench.accuracy(model, "test"),
        "test_accuracy_before": before,
    }
    return {"result": result, "cost": spent.row(bench.epoch_images, bench.flops) | measured}


def _head(ticket: Ticket, name: str, seed: int) -> Row:
    """What the row of a variant begins with; its id depends on all that decides its result."""
    run = ticket.run
    assert run.row is not None
    source = {
        "id": run.config.id,
        "method": run.config.method,
        "sparsity": run.config.sparsity,
        "seed": run.config.seed,
    }
    source |= {"mask_hash": ticket.masks.hash()[:16], "weights": run.weights}
    values = {"kind": "ablate", "variant": name, "seed": seed, "run": source}
    source = source | {"test_accuracy": run.row["result"]["test_accuracy"]}
    return {
        "schema": 1,
        "id": identity(values),
        **values,
        "run": source,
        "config": as_json(run.config.recipe),
    }
