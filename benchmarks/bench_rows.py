# SPDX-License-Identifier: Apache-2.0
"""From timings to benchmark rows, and the small command line that all microbenchmarks share."""

from __future__ import annotations

import argparse
import fnmatch
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from sparsekit.benchmarks.environment import environment
from sparsekit.benchmarks.rows import appended
from sparsekit.benchmarks.timing import Timing

Bench = Callable[..., Iterable[dict[str, Any]]]
"""(repeats, device, options by name) -> rows."""

OUT = Path("runs/bench.jsonl")


def bench_rows(bench: str, problem: str, timings: Mapping[str, Timing], **facts: Any) -> list[dict[str, Any]]:
    """One row per provider; "ratio" is baseline time / own time, the median over rounds."""
    stamp = environment()
    rows = []
    for timing in timings.values():
        row = {"schema": 1, "kind": "bench", "bench": bench, "problem": problem, **facts, **timing.as_row()}
        row |= {"q20_s": timing.low, "q80_s": timing.high, "ratio": timing.speedup}
        row |= {"baseline_median_s": timings[timing.baseline].median, "environment": stamp}
        rows.append(row)
    return rows


def check_options(repeats: int, device: str, out: Path) -> None:
    """Raises ValueError unless all can be served here, before anything is timed."""
    if repeats < 1:
        raise ValueError(f"--repeats: expected an int >= 1, got {repeats}")
    if device not in ("cpu", "cuda"):
        raise ValueError(f"--device: expected cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device: expected a CUDA device, got none; see `sparsekit doctor`")
    folder = next(path for path in out.absolute().parents if path.exists())
    if out.is_dir() or not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise ValueError(f"--out: expected a file in a folder that can be written to, got {str(out)!r}")


def matching(bench: str, cases: Iterable[Any], only: str | None) -> list[Any]:
    """Cases whose ``name`` matches the glob ``only``, all for None. Raises ValueError, which names ``bench``, if none does."""
    chosen = [case for case in cases if only is None or fnmatch.fnmatch(case.name, only)]
    if not chosen:
        raise ValueError(f"{bench}: only: expected a glob that matches a case, got {only!r}")
    return chosen


def case_options(parser: argparse.ArgumentParser, example: str) -> None:
    """--only, for ``matching``, and --compiled."""
    parser.add_argument("--only", help=f"glob on names of cases, such as '{example}'")
    parser.add_argument("--compiled", action="store_true", help="torch.compile of the baseline as well; takes long")


def main(
    description: str, run: Bench, add_options: Callable[[argparse.ArgumentParser], None] = lambda parser: None
) -> None:
    """Run a benchmark, print its rows in short and append them to ``--out``.

    Args:
        description: of the program.
        run: called with (repeats, device) and by name with what ``add_options`` adds to the parser.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, help="JSONL file that rows are added to")
    parser.add_argument("--repeats", type=int, default=30, help="rounds")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    add_options(parser)
    options = vars(parser.parse_args())
    out, repeats, device = (options.pop(name) for name in ("out", "repeats", "device"))
    try:
        check_options(repeats, device, out)
    except ValueError as error:
        parser.error(str(error))
    for row in appended(out, run(repeats, device, **options)):
        times = f"{row['median_s'] * 1e3:10.3f} ms   {row['ratio']:6.2f} x {row['baseline']}"
        print(f"{row['bench']:<14}{row['problem']:<34}{row['provider']:<28}{times}")
