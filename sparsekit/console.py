# SPDX-License-Identifier: Apache-2.0
"""What all commands share: where text goes, and how errors end."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

# Tables and results go to stdout; progress and errors to stderr, so that --json stays parseable.
OUT, ERR = Console(), Console(stderr=True)
PIPE_CLOSED = 141
"""Exit code when nobody reads the output any more, as of a program that SIGPIPE ends."""


def _stop_writing() -> None:
    # What Python flushes when it ends must not fail once more.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(PIPE_CLOSED)


OUT.on_broken_pipe = _stop_writing  # rich's own exits with 1, which means a failed check here

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def print_json(value: Any) -> None:
    """``value`` alone on stdout, as JSON that every parser takes: NaN and inf become null, as in rows."""
    print(json.dumps(_finite(value), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def plain_table(title: str, left: tuple[str, ...], right: tuple[str, ...], caption: str = "") -> Table:
    """A table for 80 columns: text on the left, which is folded and never cut, and numbers on the right."""
    table = Table(
        title=escape(title), caption=caption, caption_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for column in left:
        table.add_column(column, overflow="fold")
    for column in right:
        table.add_column(column, justify="right", overflow="fold")
    return table


@contextmanager
def reported(interrupted: str = "finished runs are kept, the same command goes on from there") -> Iterator[None]:
    """Bad input ends with one line on stderr and exit code 2, SIGINT with 130, SIGTERM with 143; what is written stays.

    Args:
        interrupted: what an interrupt means for the work done so far.
    """
    try:
        yield
    except BrokenPipeError:  # `| head` has read enough
        _stop_writing()
    except (ValueError, TypeError, OSError) as error:
        text = "; ".join(line.strip() for line in str(error).splitlines())
        ERR.print(f"error: {text}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt as error:
        ERR.print(f"interrupted: {interrupted}", markup=False, highlight=False, soft_wrap=True)
        # What catches SIGTERM raises an interrupt that says so.
        raise typer.Exit(128 + getattr(error, "number", signal.SIGINT)) from None
