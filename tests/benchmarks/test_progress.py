# SPDX-License-Identifier: Apache-2.0
"""Progress in a terminal, and lines where nothing can be drawn over: files, pipes, notebooks, dumb terminals."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from sparsekit.benchmarks.progress import TerminalProgress
from sparsekit.benchmarks.recipe import Recipe, RunConfig

CONFIG = RunConfig("bip", 0.9, 0, Recipe(network="mlp"))
ROW = {"result": {"test_accuracy": 0.5}, "cost": {"seconds": 1.25}}


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def drawn(console: Console) -> str:
    with TerminalProgress(console, [CONFIG], 96) as progress:
        step = progress.run(CONFIG, 4)
        for _ in range(4):
            step()
        progress.finished(CONFIG, ROW, skipped=False)
        progress.finished(CONFIG, ROW, skipped=True)
        progress.finished(CONFIG, {"error": "[bad] luck"}, skipped=False)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


LINES = (
    "done    bip          90.0%  seed 0  50.00%  in 1.2 s\n"
    "have    bip          90.0%  seed 0  50.00%\n"
    "failed  bip          90.0%  seed 0  [bad] luck\n"
)
PLAIN = {"TTY_COMPATIBLE": "", "TERM": "xterm"}


@pytest.mark.parametrize(
    "console",
    [
        lambda: Console(file=io.StringIO(), _environ=PLAIN, width=120),
        lambda: Console(file=io.StringIO(), _environ={**PLAIN, "FORCE_COLOR": "1"}, width=120, no_color=True),
        lambda: Console(file=Terminal(), _environ={**PLAIN, "TERM": "dumb"}, width=120),
    ],
    ids=["file", "forced colours in a file", "dumb"],
)
def test_lines_where_nothing_can_be_drawn_over(console) -> None:
    text = drawn(console())
    assert text == LINES


def test_lines_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=Terminal(), width=120, _environ=PLAIN, no_color=True)
    shown: list[str] = []
    monkeypatch.setattr("rich.jupyter.display", lambda segments, text: shown.append(text))
    monkeypatch.setattr(console, "is_jupyter", True)
    assert drawn(console) == ""
    assert "".join(shown) == LINES  # one display per line, and no widget that is redrawn


def test_bars_in_a_terminal() -> None:
    text = drawn(Console(file=Terminal(), width=120, _environ=PLAIN))
    assert "all runs (dense epochs)" in text and "done    bip" in text and "\x1b[" in text
