# SPDX-License-Identifier: Apache-2.0
"""Tables as markdown text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

EMPTY = "No rows have been recorded yet, so nothing is claimed.\n"
"""What stands where a table would."""


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]], sides: str) -> str:
    """A table; `sides` holds l or r for each column."""
    rule = ["---:" if side == "r" else "---" for _, side in zip(header, sides, strict=True)]
    escaped = ([str(part).replace("|", "\\|") for part in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in (header, rule, *escaped))
