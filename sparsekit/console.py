# SPDX-License-Identifier: Apache-2.0
"""What all commands share: where text goes, and how errors end."""

from __future__ import annotations

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
    """Bad input ends with one line on stderr and exit code 2, an interrupt with 130; rows written so far stay.

    Args:
        interrupted: what an interrupt means for the work done so far.
    """
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        text = "; ".join(line.strip() for line in str(error).splitlines())
        ERR.print(f"error: {text}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        ERR.print(f"interrupted: {interrupted}")
        raise typer.Exit(130) from None
