# SPDX-License-Identifier: Apache-2.0
"""What all commands share: where text goes, and how errors end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console

# Tables and results go to stdout; progress and errors to stderr, so that --json stays parseable.
OUT, ERR = Console(), Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


@contextmanager
def reported(interrupted: str = "finished runs are kept, the same command goes on from there") -> Iterator[None]:
    """Bad input ends with one line on stderr and exit code 2, SIGINT with 130, SIGTERM with 143; what is written stays.

    Args:
        interrupted: what an interrupt means for the work done so far.
    """
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        text = "; ".join(line.strip() for line in str(error).splitlines())
        ERR.print(f"error: {text}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt as error:
        ERR.print(f"interrupted: {interrupted}", markup=False, highlight=False, soft_wrap=True)
        # What catches SIGTERM raises an interrupt that says so.
        raise typer.Exit(128 + getattr(error, "number", signal.SIGINT)) from None
