# SPDX-License-Identifier: Apache-2.0
"""Tables of kernel benchmarks from their rows: one line for each provider, or for top-k masks one for each problem."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sparsekit.benchmarks.reporting.markdown import EMPTY, markdown
from sparsekit.benchmarks.reporting.origin import describe_environment
from sparsekit.benchmarks.reporting.runs import VOLATILE_KEYS
from sparsekit.benchmarks.reporting.wording import MISSING, seconds_text, times
from sparsekit.benchmarks.rows import Row
from sparsekit.benchmarks.topk_providers import FLOOR, PACKED

IDENTITY = ("bench", "problem", "provider", "baseline")
"""Keys of a kernel row that say what was timed; of equal ones on one machine the last row counts."""


def kernel_table(rows: Iterable[Row]) -> str:
    """Markdown tables of the kernel benchmarks, one for each machine; EMPTY without rows.

    Rows of a baseline against itself are left out, and those that topk_table shows.
    """
    shown = (row for row in rows if not _is_topk(row) and row.get("provider") != row.get("baseline"))
    return "\n".join(_machine(found) for found in _machines(shown)) or EMPTY


def topk_table(rows: Iterable[Row]) -> str:
    """Markdown tables of the top-k masks, one for each machine: a line for each problem; EMPTY without rows.

    Rows from before problems named their contents are left to kernel_table.
    """
    return "\n".join(filter(None, map(_topk_machine, _machines(row for row in rows if _is_topk(row))))) or EMPTY


def _is_topk(row: Row) -> bool:
    return row.get("bench") == "topk_mask" and "contents" in row


def _machines(rows: Iterable[Row]) -> list[list[Row]]:
    """The rows that count, by machine."""
    machines: dict[str, dict[tuple[str, ...], Row]] = {}
    for row in rows:
        if row.get("kind") == "bench":
            environment = {k: v for k, v in row.get("environment", {}).items() if k not in VOLATILE_KEYS}
            found = machines.setdefault(json.dumps(environment, sort_keys=True), {})
            found[tuple(str(row[key]) for key in IDENTITY)] = row
    return [list(found.values()) for found in machines.values()]


def _legend(rows: Sequence[Row]) -> str:
    origin = describe_environment([row.get("environment", {}) for row in rows])
    return "; ".join(f"{name} {value}" for name, value in origin)


def _ratio(ratio: float) -> str:
    return times(ratio) + (" (slower)" if ratio < 1 else "")


def _machine(rows: list[Row]) -> str:
    header = ("kernel", "problem", "provider", "median", "20 to 80 %", "eager call", "against", "its median", "ratio")
    lines = []
    for row in rows:
        durations = [
            seconds_text(row.get(key)) for key in ("median_s", "q20_s", "q80_s", "eager_s", "baseline_median_s")
        ]
        median, low, high, eager, baseline = durations
        lines.append(
            (
                *(str(row[key]) for key in ("bench", "problem", "provider")),
                median,
                f"{low} to {high}",
                eager,
                str(row["baseline"]),
                baseline,
                _ratio(row["ratio"]),
            )
        )
    return (
        f"{markdown(header, lines, 'lllrrrlrr')}\nRatio: baseline time over own time, side by side. {_legend(rows)}.\n"
    )


def _topk_machine(rows: list[Row]) -> str:
    """The table of one machine; empty if nothing of ours was timed there."""
    problems: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        problems.setdefault((row["problem"], row["baseline"]), {})[row["provider"]] = row
    problems = {key: found for key, found in problems.items() if PACKED in found}
    if not problems:
        return ""
    # In the order in which providers first appear; the copy is a column of its own.
    others = list(dict.fromkeys(name for found in problems.values() for name in found))
    others = [name for name in others if name not in (PACKED, FLOOR)]
    header = ("scores", "kept", "packed masks", "times the copy", *(f"against {name}" for name in others))
    lines = [_topk_line(found, others) for found in problems.values()]
    text = (
        "Scores: number of entries or list of tensors, dtype, contents. Times the copy: time over that of a copy that moves "
        "as many bytes as reading every score once and writing one bit for each. Against: the other's time over that of "
        "packed masks, by their ratios to the baseline of their process. †: keeps more than asked, as it keeps all ties."
    )
    return f"{markdown(header, lines, 'lr' + 'r' * (2 + len(others)))}\n{text} {_legend(rows)}.\n"


def _topk_line(found: Mapping[str, Row], others: Sequence[str]) -> Iterator[str]:
    own = found[PACKED]
    subject, dtype, contents, kept = str(own["problem"]).rsplit("/", 3)
    yield f"{subject} {dtype} {contents}"
    yield kept
    yield seconds_text(own["median_s"])
    yield times(own.get("floor_ratio"))
    for name in others:
        yield _against(own, found.get(name))


def _against(own: Mapping[str, Any], other: Row | None) -> str:
    if other is None:
        return MISSING
    return _ratio(own["ratio"] / other["ratio"]) + (" †" if other.get("note") else "")
