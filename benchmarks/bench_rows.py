# SPDX-License-Identifier: Apache-2.0
"""From timings to benchmark rows, and the small command line that all microbenchmarks share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from sparsekit.benchmarks.environment import environment
from sparsekit.benchmarks.rows import append_row
from sparsekit.benchmarks.timing import Timing

Bench = Callable[[int, str], Iterable[dict[str, Any]]]


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


def main(description: str, run: Bench) -> None:
    """Run a benchmark, print its rows in short and append them to ``--out``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=Path("runs/bench.jsonl"), help="JSONL file that rows are added to")
    parser.add_argument("--repeats", type=int, default=30, help="rounds")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        parser.error(f"--repeats: expected an int >= 1, got {arguments.repeats}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: expected a CUDA device, got none; see `sparsekit doctor`")
    for row in run(arguments.repeats, arguments.device):
        append_row(arguments.out, row)
        times = f"{row['median_s'] * 1e3:10.3f} ms   {row['ratio']:6.2f} x {row['baseline']}"
        print(f"{row['bench']:<14}{row['problem']:<24}{row['provider']:<28}{times}")
