# SPDX-License-Identifier: Apache-2.0
"""Colours, markers and lines of figures, and which method has which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

INK, FAINT, RULE, PAPER = "#010101", "#010102", "#010103", "#010104"
SERIES = tuple(f"#0102{i:02x}" for i in range(8))
"""Stand-ins that no figure holds by chance; in the SVG text they become the CSS variables of VARIABLES."""

VARIABLES = {
    INK: "--ink",
    FAINT: "--faint",
    RULE: "--rule",
    PAPER: "--paper",
    **{colour: f"--series-{i}" for i, colour in enumerate(SERIES)},
}

MARKERS = ("s", "^", "D", "v", "p", "<", "h", ">")
LINES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))


@dataclass(frozen=True)
class Style:
    """Colour, marker and line of a method. turn: how many methods before it have the colour."""

    colour: str
    marker: str
    line: Any
    turn: int = 0


def look(i: int) -> Style:
    """Style of the i-th method besides the baseline: 32 of them differ in colour or line, and 64 in colour or marker."""
    turn = i // len(SERIES)
    marker = MARKERS[(i + 3 * turn) % len(MARKERS)]
    return Style(SERIES[i % len(SERIES)], marker, LINES[turn % len(LINES)], turn)
