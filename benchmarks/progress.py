# SPDX-License-Identifier: Apache-2.0
"""Progress of a comparison in a terminal: method > sparsity > seed > epoch, with the time left overall and for the run."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sparsekit.benchmarks.methods import as_method
from sparsekit.benchmarks.recipe import RunConfig
from sparsekit.benchmarks.rows import Row
from sparsekit.benchmarks.training import OnStep


def _redraws(console: Console) -> bool:
    """Can it draw over what it has drawn? Files, pipes, notebooks and dumb terminals cannot, or fill with bars."""
    # A file with FORCE_COLOR set calls itself a terminal.
    drawn_over = console.is_terminal and console.file.isatty()
    return drawn_over and not (console.is_dumb_terminal or console.is_jupyter)


class TerminalProgress:
    """Two bars on ``console`` (one for all runs, weighed by their passes, one for the steps of the present one).

    On a console that cannot redraw (no terminal, a notebook, TERM=dumb) a line per finished run is printed instead.
    """

    def __init__(self, console: Console, configs: Sequence[RunConfig], images: int) -> None:
        self._console = console
        self._weights = {c.id: as_method(c.method).passes(c.own_recipe, c.sparsity, images) for c in configs}
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not _redraws(console),
        )
        self._all = self._bars.add_task("all runs (dense epochs)", total=round(sum(self._weights.values())))
        self._one: TaskID = self._bars.add_task("", total=1)

    def __enter__(self) -> TerminalProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def _begin(self, title: str, steps: int, epochs: int) -> OnStep:
        per_epoch, stride = max(1, steps // max(1, epochs)), max(1, steps // 100)
        self._bars.reset(self._one, total=steps, description=title)
        done = 0

        def on_step() -> None:
            nonlocal done
            done += 1
            if done % stride == 0 or done == steps:
                text = f"{title} > epoch {min(epochs, -(-done // per_epoch))}/{epochs}"
                self._bars.update(self._one, completed=done, description=text)

        return on_step

    def dense(self, seed: int, steps: int) -> OnStep:
        """See compare.Progress."""
        return self._begin(f"dense > seed {seed}", steps, 1)

    def run(self, config: RunConfig, steps: int) -> OnStep:
        """See compare.Progress."""
        epochs = max(1, round(self._weights.get(config.id, 1)))
        return self._begin(f"{config.method} > {config.sparsity:.1%} > seed {config.seed}", steps, epochs)

    def finished(self, config: RunConfig, row: Row, skipped: bool) -> None:
        """See compare.Progress."""
        self._bars.advance(self._all, round(self._weights.get(config.id, 0)))
        label = f"{config.method:<12} {config.sparsity:.1%}  seed {config.seed}"
        if "error" in row:
            self._console.print(f"[red]failed[/red]  {label}  {escape(row['error'])}", highlight=False)
        elif skipped:
            self._console.print(f"have    {label}  {row['result']['test_accuracy']:.2%}", highlight=False)
        else:
            text = f"{row['result']['test_accuracy']:.2%}  in {row['cost']['seconds']:.1f} s"
            self._console.print(f"done    {label}  {text}", highlight=False)
