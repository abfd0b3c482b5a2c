# SPDX-License-Identifier: Apache-2.0
"""Bars of a speed-up report: what is saved at equal accuracy with its interval, and the four factors of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import astuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsekit.benchmarks.recipe import split_name
from sparsekit.benchmarks.reporting.figures import SETTINGS, place_legend, quiet, svg_element
from sparsekit.benchmarks.reporting.levels import Level, Report, Verdicts
from sparsekit.benchmarks.reporting.match import Saving
from sparsekit.benchmarks.reporting.naming import name_of
from sparsekit.benchmarks.reporting.palette import FAINT, INK, PAPER, SERIES
from sparsekit.benchmarks.reporting.speedup import Clock
from sparsekit.benchmarks.reporting.speedup_curves import shown
from sparsekit.benchmarks.reporting.wording import TIMES, sparsity_text

FACTORS = ("epochs", "passes per step", "time per pass", "selection")

TICKS = (1e-6, 1e-3, 0.01, 0.1, 0.25, 0.5, 2.0, 4.0, 10.0, 100.0, 1e3, 1e4, 1e6, 1e9, 1e12)


def shown_saving(report: Report, level: Level, verdicts: Verdicts) -> Saving | None:
    """What a method saves: at its time to match, or where it does not match on the recipe's budget."""
    gain = verdicts.seconds or verdicts.work
    if gain:
        return gain.baseline
    name = next((name for name in shown(report) if split_name(name)[0] == verdicts.match.method), None)
    return level.entry(name).saving if name else None


def compared(report: Report) -> list[str]:
    """Own names of the methods that the bars show: all but the baseline."""
    owns = dict.fromkeys(split_name(name)[0] for name in report.suite.methods)
    return [own for own in owns if own not in (split_name(report.suite.baseline)[0], "dense")]


def gain_figure(report: Report, name: str) -> str:
    """Cost of the baseline over that of each method, with intervals, on both clocks, a panel for each sparsity.

    Args:
        report: at least one method besides the baseline.
        name: prefix of the ids in the SVG, unique on its page.

    Returns:
        An <svg> element.
    """
    return _panels(report, name, "Cost of the baseline over the cost of each method", _gains)


def factors_figure(report: Report, name: str) -> str:
    """The four factors of each ratio as bars that add up on a logarithmic axis, a panel for each sparsity."""
    return _panels(report, name, "The four factors of each ratio of times", _factor_bars)


def _panels(report: Report, name: str, words: str, draw: Callable[[Axes, Report, Level, list[str]], None]) -> str:
    owns = compared(report)
    columns = min(4, len(report.levels))
    lines = math.ceil(len(report.levels) / columns)
    with matplotlib.rc_context(SETTINGS):
        height = lines * (0.85 + 0.3 * len(owns)) + 0.5
        figure = Figure(figsize=(8.8, height), layout="constrained")
        panels = figure.subplots(lines, columns, sharey=True, sharex=True, squeeze=False).flatten()
        for axes, level in zip(panels, report.levels, strict=False):
            draw(axes, report, level, owns)
            axes.axvline(0, color=FAINT, lw=1, zorder=1)
            axes.set_title(f"{sparsity_text(level.sparsity)} sparsity", color=INK, fontsize=10.5, loc="left")
            quiet(axes, "x")
        for axes in panels[len(report.levels) :]:
            axes.set_axis_off()
        panels[0].set_yticks(range(len(owns)), [name_of(own) for own in owns])
        panels[0].set_ylim(len(owns) - 0.5, -0.5)
        _ticks(panels[0], columns)
        place_legend(figure, panels[0])
        return svg_element(figure, name, words)


def _ticks(axes: Axes, columns: int) -> None:
    """Ratios as labels of the logarithms on the axis."""
    axes.margins(x=0.1)
    low, high = axes.get_xlim()
    low, high = min(low, -0.8), max(high, 0.8)
    axes.set_xlim(low, high)
    apart, inside = (high - low) * columns / 20, [1.0]
    for tick in sorted(TICKS, key=lambda tick: abs(math.log(tick))):
        if low <= math.log(tick) <= high and all(abs(math.log(tick / other)) >= apart for other in inside):
            inside.append(tick)
    axes.set_xticks([math.log(tick) for tick in inside], [f"{tick:g}{TIMES}" for tick in inside])


def _gains(axes: Axes, report: Report, level: Level, owns: list[str]) -> None:
    for verdicts in level.verdicts:
        if verdicts.match.method not in owns:
            continue
        y = owns.index(verdicts.match.method)
        saving, good = shown_saving(report, level, verdicts), verdicts.match.status == "matched"
        if saving is None:
            axes.text(0, y, "  no pair", va="center", color=FAINT, fontsize=9)
            continue
        for clock, marker, shift in ((saving.checkpoint, "o", -0.13), (saving.pretraining, "D", 0.13)):
            _gain(axes, clock, y + shift, marker, good)
    for marker, words in (("o", "given a dense checkpoint"), ("D", "end to end")):
        axes.plot([], [], marker, color=INK, label=words)
    axes.plot([], [], "o", mfc=PAPER, mec=FAINT, label="accuracy not shown to match")


def _gain(axes: Axes, clock: Clock, y: float, marker: str, good: bool) -> None:
    """One ratio with its interval, hollow where the accuracy does not match."""
    ratio = clock.seconds or clock.work
    if ratio is None:
        return
    colour = INK if good else FAINT
    if ratio.interval:
        axes.hlines(y, math.log(ratio.interval.low), math.log(ratio.interval.high), color=colour, lw=1.6, zorder=2)
    axes.plot(math.log(ratio.value), y, marker, mfc=colour if good else PAPER, mec=colour, ms=5.5, zorder=3)


def _factor_bars(axes: Axes, report: Report, level: Level, owns: list[str]) -> None:
    for verdicts in level.verdicts:
        if verdicts.match.method not in owns:
            continue
        y, saving = owns.index(verdicts.match.method), shown_saving(report, level, verdicts)
        if saving is None or saving.factors is None:
            axes.text(0, y, "  no pair", va="center", color=FAINT, fontsize=9)
            continue
        _stack(axes, y, [math.log(value) for value in astuple(saving.factors)])
    for i, words in enumerate(FACTORS):
        axes.barh([0], [0], color=SERIES[i], label=words)
    axes.plot([], [], "|", color=INK, ms=11, mew=2, label="product")


def _stack(axes: Axes, y: float, parts: Sequence[float]) -> None:
    """Parts above 1 go right and those below go left of it; a mark where they end up together."""
    right = left = 0.0
    for i, part in enumerate(parts):
        start = right if part > 0 else left
        axes.barh(y, part, left=start, height=0.55, color=SERIES[i], ec=PAPER, lw=0.5, zorder=2)
        right, left = right + max(part, 0.0), left + min(part, 0.0)
    axes.plot(sum(parts), y, "|", color=PAPER, ms=15, mew=4, zorder=3)
    axes.plot(sum(parts), y, "|", color=INK, ms=13, mew=2, zorder=4)
