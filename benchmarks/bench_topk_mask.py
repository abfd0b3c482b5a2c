# SPDX-License-Identifier: Apache-2.0
"""Top-k masks against the idioms that people use and against a copy of the same bytes, all checked before they are timed.

python -m sparsekit.benchmarks.bench_topk_mask --out rows.jsonl [--device cuda] [--full] [--only GLOB]

Every row says how many times a copy that moves the same bytes would fit into its time ("floor_ratio", in the same process).
What takes over a second is timed in 3 rounds, and where a tensor has more than 1e8 entries left out unless it is ours.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from sparsekit.benchmarks.bench_rows import bench_rows, main
from sparsekit.benchmarks.timing import Timing, compare_times
from sparsekit.benchmarks.topk_checks import TopkCheck
from sparsekit.benchmarks.topk_problems import LARGEST, TopkProblem, choose_problems
from sparsekit.benchmarks.topk_providers import FLOOR, PACKED, Provider, providers

BENCH = "topk_mask"
REPEATS = 10
SLOW_S, SLOW_ROUNDS = 1.0, 3
PROBE = 10**7
"""Entries of the sample from which the time on more than LARGEST of them is foretold."""
NOT_EXACT = "not exact under ties"


@dataclass(frozen=True)
class Entry:
    """A provider that has passed its check.

    Args:
        function: what is timed.
        seconds: wall time of the checked call.
        kept: entries that its masks keep; None for the copy.
    """

    function: Callable[[], Any]
    seconds: float
    kept: int | None

    @property
    def slow(self) -> bool:
        """Does a call take over SLOW_S?"""
        return self.seconds > SLOW_S


def run(
    repeats: int, device: str = "cpu", *, full: bool = False, large: bool = False, only: str | None = None
) -> Iterator[dict[str, Any]]:
    """Rows of the chosen problems on ``device`` ("cpu" or "cuda"); see choose_problems."""
    for problem in choose_problems(device, full=full, large=large, only=only):
        yield from measure(problem, repeats, device)


def measure(problem: TopkProblem, repeats: int, device: str) -> list[dict[str, Any]]:
    """Rows of one problem, one for each provider.

    Raises:
        ValueError: a mask is wrong; nothing has been timed then.
    """
    scores = problem.scores(device)
    chosen = _affordable(list(providers(problem, device)), scores, problem)
    entries = _checked(chosen, scores, problem.kept, device)
    timings = _timed(entries, repeats, device)
    floor = timings[FLOOR].median
    facts = {"n": problem.numel, "tensors": len(scores), "dtype": problem.dtype, "contents": problem.contents}
    facts |= {"kept_fraction": problem.kept_fraction, "kept": problem.kept, "torch": str(torch.__version__)}
    rows = []
    for row in bench_rows(BENCH, problem.name, timings, **facts, device=device):
        found = entries[row["provider"]].kept
        row["floor_ratio"] = row["median_s"] / floor
        if found is not None:
            row["kept_found"] = found
            if found != problem.kept:
                row["note"] = NOT_EXACT
        rows.append(row)
    return rows


def _affordable(candidates: list[Provider], scores: list[Tensor], problem: TopkProblem) -> list[Provider]:
    """All candidates, but of very large problems only those that will not take over SLOW_S, ours and the copy."""
    if problem.numel <= LARGEST:
        return candidates
    sample = [scores[0].reshape(-1)[:PROBE]]
    share = sample[0].numel() / problem.numel
    kept = max(1, round(problem.kept * share))

    def fits(provider: Provider) -> bool:
        if provider.ours or provider.rule is None:
            return True
        function = provider.prepare(sample, kept)
        function()
        return _seconds(function, sample[0].device)[0] <= SLOW_S * share

    return [provider for provider in candidates if fits(provider)]


def _checked(chosen: Sequence[Provider], scores: list[Tensor], kept: int, device: str) -> dict[str, Entry]:
    """Every provider's function with its result checked, in the order given. Ours come first: they fix the threshold."""
    check = TopkCheck(scores, kept)
    found: dict[str, Entry] = {}
    for provider in sorted(chosen, key=lambda p: p.name != PACKED):
        function = provider.prepare(scores, kept)
        seconds, masks = _seconds(function, torch.device(device))
        count = None if provider.rule is None else check(provider.name, masks, provider.rule)
        found[provider.name] = Entry(function, seconds, count)
    return {provider.name: found[provider.name] for provider in chosen}


def _seconds(function: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Wall time of one call, to its end on the device, and its result."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = perf_counter()
    result = function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter() - start, result


def _timed(entries: dict[str, Entry], repeats: int, device: str) -> dict[str, Timing]:
    """Timings of all entries against the first; the slow ones in a group of their own, with few rounds, beside it."""
    baseline = next(iter(entries))
    slow = [name for name, entry in entries.items() if entry.slow]
    fast = [name for name in entries if name not in slow]
    if entries[baseline].slow:
        slow, fast, repeats = [], list(entries), min(repeats, SLOW_ROUNDS)
    groups = [(fast, repeats), ([baseline, *slow], min(repeats, SLOW_ROUNDS))]
    timings: dict[str, Timing] = {}
    for names, rounds in groups if slow else groups[:1]:
        functions = {name: entries[name].function for name in names}
        # Checked above, all of them, and so warm; a second check would cost seconds for each slow one.
        made = compare_times(functions, repeats=rounds, warmup=0, device=device, check=None)
        timings |= {name: timing for name, timing in made.items() if name not in timings}
    return {name: timings[name] for name in entries}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark beside those that all share."""
    parser.set_defaults(repeats=REPEATS)
    parser.add_argument("--full", action="store_true", help="all sizes, contents and counts, not the quick set")
    parser.add_argument("--large", action="store_true", help="the full set, on a CPU too with more than 1e8 entries")
    parser.add_argument("--only", help="glob on names of problems, such as '1e7/*/20%%'")


if __name__ == "__main__":
    main(__doc__ or "", run, add_options)
