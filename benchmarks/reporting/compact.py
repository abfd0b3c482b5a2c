# SPDX-License-Identifier: Apache-2.0
"""The table of channel surgery: what was asked for, what went, and what the small model takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sparsekit.benchmarks.reporting.markdown import EMPTY, markdown
from sparsekit.benchmarks.reporting.origin import describe_environment
from sparsekit.benchmarks.reporting.wording import seconds_text, times
from sparsekit.benchmarks.rows import Row

PROVIDERS = ("masked model", "compact")
HEADER = ("network", "masks", "asked", "removed", "parameters", "FLOPs of two images", "masked", "small", "ratio")


def compact_table(rows: Iterable[Row]) -> str:
    """Markdown: one line for each problem of the bench "compact" that has both of PROVIDERS, its last rows; EMPTY without."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row.get("bench") == "compact":
            found.setdefault(row["problem"], {})[row["provider"]] = row
    full = [own for own in found.values() if all(name in own for name in PROVIDERS)]
    if not full:
        return EMPTY
    origin = describe_environment([row["environment"] for own in full for row in own.values()])
    lines = [_line(own) for own in full]
    legend = (
        "Asked, removed: filters. Masked, small: a forward pass of the batch by the masked model and by the small one, "
        f"side by side; ratio: the first over the second. {'; '.join(f'{name} {value}' for name, value in origin)}."
    )
    return f"{markdown(HEADER, lines, 'llrrrrrrr')}\n{legend}\n"


def _line(own: Mapping[str, Row]) -> tuple[str, ...]:
    masked, small = (own[name] for name in PROVIDERS)
    return (
        f"{small['network']}, batch {small['batch']}",
        f"{100 * small['sparsity']:g} %, {small['masks']}",
        f"{small['asked']:,}",
        f"{small['removed']:,}",
        _change(small["parameters"], 1, ""),
        _change(small["flops"], 10**6, " M"),
        seconds_text(masked["median_s"]),
        seconds_text(small["median_s"]),
        times(small["ratio"]) + (" (slower)" if small["ratio"] < 1 else ""),
    )


def _change(pair: Any, unit: int, name: str) -> str:
    before, after = (f"{round(value / unit):,}{name}" for value in pair)
    return f"{before} → {after}"
