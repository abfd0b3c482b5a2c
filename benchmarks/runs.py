# SPDX-License-Identifier: Apache-2.0
"""What lies in the folder of a run: rows, a checkpoint, or both; and two of them compared."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsekit.benchmarks.recipe import RunConfig
from sparsekit.benchmarks.rows import Row, read_rows
from sparsekit.benchmarks.run_folder import FILE as RUN
from sparsekit.benchmarks.run_folder import RunFile
from sparsekit.benchmarks.statistics import (
    Estimate,
    Interval,
    Verdict,
    noninferiority,
    paired_difference,
    ratio_interval,
)
from sparsekit.io import FILE

ROWS = "rows.jsonl"
_NEEDED = {
    "result": ("kept", "total", "sparsity", "mask_hash", "test_accuracy"),
    "cost": ("seconds", "dense_epochs"),
}

Place = tuple[str, float]
"""(method, sparsity)"""


@dataclass(frozen=True)
class Run:
    """path: what was asked for. checkpoint: the file with the masks, or None. rows: finished and failed runs of kind
    "compare", of each run the last one. unfinished: a run of prune that has begun there and has not ended."""

    path: Path
    checkpoint: Path | None
    rows: tuple[Row, ...]
    unfinished: RunConfig | None = None

    @property
    def finished(self) -> list[Row]:
        """Rows with a result."""
        return [row for row in self.rows if "result" in row]

    @property
    def failed(self) -> list[Row]:
        """Rows with an error that no later attempt put right."""
        return [row for row in self.rows if "result" not in row]


def read_run(path: str | os.PathLike[str]) -> Run:
    """What lies at ``path``: a folder, a file of rows, or a checkpoint.

    Raises:
        ValueError: neither rows nor a checkpoint are there, or a row lacks what every row has.
    """
    place = Path(path)
    rows = place / ROWS if place.is_dir() else place if place.suffix == ".jsonl" else None
    checkpoint = place / FILE if place.is_dir() else place if rows is None else None
    found = tuple(_latest(rows)) if rows is not None and rows.is_file() else ()
    begun = RunFile.read(place) if place.is_dir() and (place / RUN).is_file() else None
    found += (_checked(begun.row, place / RUN),) if begun and begun.row else ()
    checkpoint = checkpoint if checkpoint is not None and checkpoint.is_file() else None
    unfinished = begun.config if begun and not begun.row else None
    if checkpoint is None and not found and unfinished is None:
        expected = f"a folder with {FILE} or rows in {ROWS}, or such a file"
        raise ValueError(f"read_run: path: expected {expected}, got {str(path)!r}")
    return Run(place, checkpoint, found, unfinished)


def _latest(path: Path) -> Iterable[Row]:
    """Of every method, sparsity and seed under one recipe the last row, a result before an error."""
    kept: dict[str, Row] = {}
    for row in read_rows(path):
        if row.get("kind") != "compare":
            continue
        _checked(row, path)
        if "result" in row or "result" not in kept.get(row["id"], {}):
            kept[row["id"]] = row
    return kept.values()


def _checked(row: Row, path: Path) -> Row:
    if missing := _missing(row):
        raise ValueError(f"read_run: {path}: expected rows with {missing}, got one without")
    return row


def _missing(row: Row) -> str | None:
    """The first of the values that everything here reads and that the row lacks."""
    wanted = [(key,) for key in ("id", "method", "sparsity", "seed", "config")]
    wanted += [(part, key) for part, keys in _NEEDED.items() for key in keys] if "result" in row else []
    for path in wanted:
        value = row
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if value is None:
            return ".".join(path)
    return None


def row_of(run: Run, mask_hash: str) -> Row | None:
    """The finished row that tells how the checkpoint of a run came about: that of its masks, or the only one."""
    own = [row for row in run.finished if mask_hash.startswith(row["result"]["mask_hash"])]
    return own[-1] if own else run.finished[0] if len(run.finished) == 1 else None


def run_problems(run: Run) -> list[str]:
    """What is wrong with the rows of a run, in words: failed runs, masks that kept another part than asked for."""
    problems = []
    for row in run.rows:
        name = f"{row['method']} at {row['sparsity']:g}, seed {row['seed']}"
        if "result" not in row:
            problems.append(f"{name}: failed: {row.get('error', 'no result')}")
        elif not row["result"]["kept"]:
            problems.append(f"{name}: keeps none of {row['result']['total']:,} weights")
        # Of filters and channels the fraction of units is asked for.
        elif not _structured(row) and abs(row["result"]["sparsity"] - row["sparsity"]) > 0.01:
            problems.append(f"{name}: {row['result']['sparsity']:.4f} of the weights are removed")
    if run.checkpoint is None and (run.path / RUN).is_file() and not run.unfinished:
        problems.append(f"{run.path}: the run has finished, but its {FILE} is gone")
    if run.unfinished:
        problems.append(f"{run.unfinished.method} has not finished: go on with `sparsekit resume {run.path}`")
    return problems


def _structured(row: Row) -> bool:
    return row["config"].get("structure", "unstructured") != "unstructured"


@dataclass(frozen=True)
class Side:
    """One side of a comparison, over the seeds that both sides have: accuracy, seconds, dense-equivalent epochs."""

    method: str
    sparsity: float
    accuracy: float
    seconds: float
    dense_epochs: float
    removed: float


@dataclass(frozen=True)
class Pair:
    """Two methods at a sparsity, or one method in two runs, over ``seeds`` that both have.

    difference: of test accuracy, b - a, paired by seed. verdict: is b inferior to a, None for too few seeds.
    ratio: seconds of a over seconds of b, with its interval. same_masks: seeds whose masks are identical.
    """

    seeds: tuple[int, ...]
    a: Side
    b: Side
    difference: Estimate
    verdict: Verdict
    ratio: float | None
    ratio_interval: Interval | None
    same_masks: int


@dataclass(frozen=True)
class RunDifference:
    """Pairs, what one side alone has, and the settings that differ as name -> (values of a, values of b)."""

    pairs: tuple[Pair, ...]
    only_a: tuple[Place, ...]
    only_b: tuple[Place, ...]
    settings: dict[str, tuple[str, str]]


def diff_runs(a: Run, b: Run) -> RunDifference:
    """Compare the finished rows of two runs, paired by seed.

    The same methods and sparsities are paired; where each side has one only, these are, whatever they are.
    """
    first, second = _cells(a.finished), _cells(b.finished)
    places = [(place, place) for place in first if place in second]
    if len(first) == len(second) == 1:
        places = [(next(iter(first)), next(iter(second)))]
    pairs = [pair for x, y in places if (pair := _pair(x, first[x], y, second[y]))]
    used_a, used_b = {x for x, _ in places}, {y for _, y in places}
    return RunDifference(
        pairs=tuple(pairs),
        only_a=tuple(place for place in first if place not in used_a),
        only_b=tuple(place for place in second if place not in used_b),
        settings=_settings(a.finished, b.finished),
    )


def _cells(rows: Sequence[Row]) -> dict[Place, dict[int, Row]]:
    """(method, sparsity) -> seed -> row; of several recipes the last."""
    cells: dict[Place, dict[int, Row]] = {}
    for row in rows:
        cells.setdefault((row["method"], row["sparsity"]), {})[row["seed"]] = row
    return cells


def _pair(place_a: Place, a: dict[int, Row], place_b: Place, b: dict[int, Row]) -> Pair | None:
    seeds = tuple(sorted(a.keys() & b.keys()))
    if not seeds:
        return None
    left, right = [a[seed] for seed in seeds], [b[seed] for seed in seeds]
    accuracy = [[row["result"]["test_accuracy"] for row in rows] for rows in (right, left)]
    seconds = [[row["cost"]["seconds"] for row in rows] for rows in (left, right)]
    timed = all(value > 0 for values in seconds for value in values)
    return Pair(
        seeds=seeds,
        a=_side(place_a, left),
        b=_side(place_b, right),
        difference=paired_difference(*accuracy),
        verdict=noninferiority([new - old for new, old in zip(*accuracy, strict=True)]),
        ratio=sum(seconds[0]) / sum(seconds[1]) if timed else None,
        ratio_interval=ratio_interval(*seconds) if timed else None,
        same_masks=sum(x["result"]["mask_hash"] == y["result"]["mask_hash"] for x, y in zip(left, right, strict=True)),
    )


def _side(place: Place, rows: Sequence[Row]) -> Side:
    def mean(part: str, key: str) -> float:
        return sum(row[part][key] for row in rows) / len(rows)

    return Side(
        *place,
        accuracy=mean("result", "test_accuracy"),
        seconds=mean("cost", "seconds"),
        dense_epochs=mean("cost", "dense_epochs"),
        removed=mean("result", "sparsity"),
    )


def _settings(a: Sequence[Row], b: Sequence[Row]) -> dict[str, tuple[str, str]]:
    names = dict.fromkeys(name for row in (*a, *b) for name in row["config"])
    texts = {
        name: tuple(", ".join(sorted({str(row["config"].get(name)) for row in rows})) for rows in (a, b))
        for name in names
    }
    return {name: (x, y) for name, (x, y) in texts.items() if x != y}
