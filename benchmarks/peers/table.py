# SPDX-License-Identifier: Apache-2.0
"""Pruning libraries side by side: every check of ``checks`` on every library that is installed, in one run.

python -m sparsekit.benchmarks.peers --out docs/peers.md
"""

from __future__ import annotations

import argparse
import datetime
import platform
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

import sparsekit
from sparsekit.benchmarks.peers.checks import CHECKS, Check
from sparsekit.benchmarks.peers.libraries import LIBRARIES
from sparsekit.benchmarks.peers.library import Library, NotOffered

_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")  # colours of a terminal
MARKS = {True: "yes", False: "**no**", None: "n/a"}


@dataclass(frozen=True)
class Cell:
    """What became of one check. passed: None where the library does not offer or install what it is about."""

    passed: bool | None
    evidence: str


def examine(library: Library, check: Check) -> Cell:
    """Run one check; whatever it raises is the evidence of a failure."""
    if library.version == "not installed":
        return Cell(None, "not installed")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Cell(*check(library))
    except NotOffered as reason:
        return Cell(None, str(reason))
    except Exception as error:
        text = " ".join(_ESCAPES.sub("", str(error)).split()) or "no message"
        return Cell(False, f"{type(error).__name__}: {text[:110]}{'...' if len(text) > 110 else ''}")


def run(libraries: Iterable[Library] = LIBRARIES) -> dict[str, dict[str, Cell]]:
    """Title of the check -> name of the library -> what became of it."""
    libraries = tuple(libraries)
    return {(c.__doc__ or c.__name__).strip(): {lib.name: examine(lib, c) for lib in libraries} for c in CHECKS}


def page(table: dict[str, dict[str, Cell]]) -> str:
    """The Markdown page."""
    names = list(next(iter(table.values())))
    versions = {library.name: library.version for library in LIBRARIES}
    stamp = f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, CPU"
    lines = [
        "# Pruning libraries side by side",
        "",
        "Generated in one run by `python -m sparsekit.benchmarks.peers --out docs/peers.md`; every cell is a function in",
        "`benchmarks/peers/checks.py`, and each library is used as its documentation says (`benchmarks/peers/`).",
        f"{datetime.date.today():%Y-%m-%d}; {stamp}; " + ", ".join(f"{name} {versions[name]}" for name in names) + ".",
        "",
        "yes: holds. **no**: does not. n/a: not what the library is for, or not installed. Torch-Pruning takes channels out,",
        "so rows about masks are not about it. torch.ao.pruning prunes matrices alone. MultiheadAttention and weights that are",
        "tied to an embedding are skipped by name in sparsekit. NNCF needs torchao for its export, which it does not install.",
        "",
        "| check | " + " | ".join(names) + " |",
        "|---|" + "---|" * len(names),
    ]
    lines += [f"| {title} | " + " | ".join(MARKS[row[n].passed] for n in names) + " |" for title, row in table.items()]
    lines += ["", "## Evidence", ""]
    for title, row in table.items():
        lines += [f"**{title}**", "", *(f"- {n}: {MARKS[row[n].passed]}: {_quoted(row[n])}" for n in names), ""]
    return "\n".join(lines)


def _quoted(cell: Cell) -> str:
    """Angle brackets and pipes of error messages are not Markdown."""
    return cell.evidence.replace("<", "&lt;").replace("|", "\\|")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None, help="Markdown file to write; without it, the terminal")
    arguments = parser.parse_args()
    text = page(run())
    if arguments.out is None:
        print(text)
    else:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text, encoding="utf-8")
        print(f"{arguments.out}: written by sparsekit {sparsekit.__version__}")
