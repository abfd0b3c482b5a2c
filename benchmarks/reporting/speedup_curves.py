# SPDX-License-Identifier: Apache-2.0
"""Curves of a speed-up report: accuracy beside the paper's, time, and the sweep over budgets."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from sparsekit.benchmarks.recipe import split_name
from sparsekit.benchmarks.reporting.entries import Entry
from sparsekit.benchmarks.reporting.figures import SETTINGS, place_legend, position, quiet, svg_element
from sparsekit.benchmarks.reporting.levels import Level, Report
from sparsekit.benchmarks.reporting.naming import name_of
from sparsekit.benchmarks.reporting.palette import FAINT, INK, PAPER, VARIABLES, Style, look
from sparsekit.benchmarks.reporting.wording import number, number_plain, seconds_text, sparsity_text
from sparsekit.benchmarks.statistics import Estimate

MOST_BANDS = 8
"""More bands than these hide each other and the lines; bars alone show the intervals then."""

LEAST_WINDOW = 0.03
"""The accuracy axis spans at least this much below the best mean."""


def styles(report: Report) -> dict[str, Style]:
    """Style of every method by its own name: ink for the baseline, series colours for the others."""
    owns = list(dict.fromkeys(split_name(name)[0] for name in report.suite.methods))
    base = split_name(report.suite.baseline)[0]
    others = [own for own in owns if own not in (base, "dense")]
    found = {base: Style(INK, "o", "-"), "dense": Style(FAINT, "x", ":")}
    return found | {own: look(i) for i, own in enumerate(others)}


def colour_of(report: Report, method: str) -> str:
    """CSS variable of a method's colour in the figures."""
    return VARIABLES[styles(report)[split_name(method)[0]].colour]


def turn_of(report: Report, method: str) -> int:
    """How many methods before it have its colour."""
    return styles(report)[split_name(method)[0]].turn


def shown(report: Report) -> list[str]:
    """Methods that a curve over sparsities shows: one name for each own name, on the recipe's budget if it has that."""
    found: dict[str, str] = {}
    for name in sorted(report.suite.methods, key=lambda name: abs(np.log(split_name(name)[1]))):
        found.setdefault(split_name(name)[0], name)
    order = dict.fromkeys(split_name(name)[0] for name in report.suite.methods)
    return [found[own] for own in order if own != "dense"]


def accuracy_figure(report: Report, name: str) -> str:
    """Mean accuracy with its 95 % interval as a band against sparsity, and beside it the paper's own curves.

    Args:
        report: at least one finished run.
        name: prefix of the ids in the SVG, unique on its page.

    Returns:
        An <svg> element.
    """
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(8.8, 4.6), layout="constrained")
        if report.published:
            left, right = figure.subplots(1, 2, sharey=True)
            _paper_curves(right, report)
        else:
            left = figure.add_subplot()
        _curves(left, report, lambda entry: entry.accuracy, 100)
        left.set_ylabel("test accuracy, %")
        left.set_title("these runs" if report.published else "", color=FAINT, fontsize=10.5, loc="left")
        for line, value in _dense_lines(report):
            left.axhline(100 * value, color=FAINT, lw=1.2, ls=(0, (5, 3) if line == "dense" else (1, 2)), label=line)
        _window(left, report)
        place_legend(figure, left)
        return svg_element(figure, name, "Test accuracy against sparsity")


def _dense_lines(report: Report) -> Iterator[tuple[str, float]]:
    if report.dense:
        yield "dense", report.dense.mean
    for entry in report.continued:
        if entry.accuracy:
            yield name_of(entry.method).lower(), entry.accuracy.mean


def _paper_curves(axes: Axes, report: Report) -> None:
    assert report.published is not None
    for method, points in report.published.curves.items():
        style = styles(report).get(method, Style(FAINT, ".", "-"))
        x, y = [position(s) for s, _ in points], [100 * a for _, a in points]
        axes.plot(x, y, color=style.colour, lw=1.5, marker=style.marker, ms=4, mec=PAPER, mew=0.6)
        axes.annotate(
            name_of(method), (x[-1], y[-1]), (5, 0), textcoords="offset points", va="center", color=style.colour
        )
    axes.axhline(100 * report.published.dense, color=FAINT, lw=1.2, ls=(0, (5, 3)))
    ticks = [s for s, _ in max(report.published.curves.values(), key=len)][1::2]
    axes.set_xticks([position(s) for s in ticks], [f"{100 * s:.0f}" for s in ticks])
    axes.set_xlabel("sparsity, %")
    axes.set_title("the paper, read off its figure", color=FAINT, fontsize=10.5, loc="left")
    axes.margins(x=0.12)
    quiet(axes, "y")


def _floor(report: Report) -> float:
    """Where the accuracy axis ends: a collapsed method must not flatten all others."""
    entries = [level.entry(method) for method in shown(report) for level in report.levels]
    means = [entry.accuracy.mean for entry in entries if entry.accuracy] or [1.0]
    best = max([*means, *(value for _, value in _dense_lines(report))])
    return best - max(LEAST_WINDOW, 2.0 * (best - float(np.quantile(means, 0.15))))


def _window(axes: Axes, report: Report) -> None:
    """Ends the accuracy axis where only collapsed methods would be, and where no accuracy can be."""
    axes.set_ylim(top=min(axes.get_ylim()[1], 100.5))
    if collapsed(report):
        axes.set_ylim(bottom=100 * _floor(report))


def collapsed(report: Report) -> tuple[str, ...]:
    """Methods some of whose means lie below the frame of the accuracy figure."""
    entries, floor = [level.entry(method) for method in shown(report) for level in report.levels], _floor(report)
    return tuple(dict.fromkeys(name_of(e.method) for e in entries if e.accuracy and e.accuracy.mean < floor))


def time_figure(report: Report, name: str) -> str:
    """Mean time of one run on both clocks against sparsity; dense-equivalent epochs where nothing was timed."""
    kind = "seconds" if any(e.checkpoint.seconds for level in report.levels for e in level.entries) else "work"
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(8.8, 4.2), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        clocks = (("checkpoint", "given a dense checkpoint"), ("end_to_end", "end to end"))
        for axes, (clock, title) in zip(panels, clocks, strict=True):
            _curves(axes, report, lambda entry, clock=clock: getattr(getattr(entry, clock), kind), 1)
            axes.set_title(title, color=FAINT, fontsize=10.5, loc="left")
            _log_axis(axes, "y", seconds_text if kind == "seconds" else number)
        panels[0].set_ylabel("time" if kind == "seconds" else "dense-equivalent epochs")
        place_legend(figure, panels[0])
        return svg_element(figure, name, "Time of each method against sparsity on both clocks")


def _curves(axes: Axes, report: Report, value: Callable[[Entry], Estimate | None], scale: float) -> None:
    """One line of means per method with its interval as a band; a sparsity without runs is a gap."""
    names, looks = shown(report), styles(report)
    places = [position(level.sparsity) for level in report.levels]
    gap = min((b - a for a, b in zip(places, places[1:], strict=False)), default=1.0)
    for i, method in enumerate(names):
        style = looks[split_name(method)[0]]
        found = [value(level.entry(method)) for level in report.levels]
        # With one sparsity only, the marks would lie on each other.
        x = np.array(places) + (
            0.0 if len(places) > 1 else gap * 0.8 * (i / (len(names) - 1) - 0.5 if len(names) > 1 else 0.0)
        )
        y = np.array([scale * e.mean if e else np.nan for e in found])
        low, high = (
            np.array([scale * getattr(e.interval, side) if e and e.interval else np.nan for e in found])
            for side in ("low", "high")
        )
        drawn = {
            "color": style.colour,
            "ls": style.line,
            "marker": style.marker,
            "mec": PAPER,
            "label": name_of(method),
        }
        axes.plot(x, y, lw=1.7, ms=6, mew=0.8, zorder=3, **drawn)
        if len(names) <= MOST_BANDS:
            axes.fill_between(x, low, high, color=style.colour, alpha=0.13, lw=0, zorder=2)
        axes.vlines(x, low, high, color=style.colour, lw=1.1, alpha=0.6, zorder=2)
    axes.set_xticks(places, [sparsity_text(level.sparsity).split()[0] for level in report.levels])
    axes.set_xlabel("sparsity, %")
    quiet(axes, "y")


def _log_axis(axes: Axes, which: str, words: Callable[[float], str]) -> None:
    """A logarithmic axis with at most 9 labels in words."""
    (axes.set_yscale if which == "y" else axes.set_xscale)("log")
    axis = axes.yaxis if which == "y" else axes.xaxis
    low, high = axes.get_ylim() if which == "y" else axes.get_xlim()
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    inside = [tick for tick in ticks if low <= tick <= high]
    axis.set_major_locator(FixedLocator(inside[:: max(1, math.ceil(len(inside) / 9))]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: re.sub(r"\.0+(?!\d)", "", words(value))))
    quiet(axes, "y" if which == "y" else "x")
    axes.tick_params(which="both", length=0)


def match_figure(report: Report, level: Level, name: str) -> str:
    """Difference in accuracy to the best IMP variant against the cost of a run, one mark for each budget."""
    timed = any(entry.checkpoint.seconds for entry in level.entries)
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(8.8, 4.4), layout="constrained")
        axes = figure.add_subplot()
        for own, style in styles(report).items():
            _sweep(axes, own, style, sorted((e for e in level.entries if e.own == own), key=lambda e: e.factor), timed)
        axes.axhline(0, color=FAINT, lw=1)
        axes.axhline(-100 * report.margin, color=FAINT, lw=1.2, ls=(0, (5, 3)))
        edge, margin = axes.get_yaxis_transform(), f"margin, {number_plain(100 * report.margin)} points"
        axes.text(0.008, -100 * report.margin, margin, transform=edge, ha="left", va="bottom", color=FAINT, fontsize=9)
        axes.set_ylabel("difference in accuracy, points")
        _log_axis(axes, "x", seconds_text if timed else number)
        axes.set_xlabel(
            "time given a dense checkpoint" if timed else "dense-equivalent epochs given a dense checkpoint"
        )
        means = [
            entry.judgement.difference.mean for entry in level.entries if entry.judgement and entry.judgement.difference
        ]
        lowest = 2.0 * float(np.quantile(means, 0.15)) if means else 0.0
        axes.set_ylim(bottom=max(axes.get_ylim()[0], 100 * min(lowest, -LEAST_WINDOW)))
        place_legend(figure, axes)
        return svg_element(figure, name, "Accuracy against cost for every budget")


def _sweep(axes: Axes, own: str, style: Style, entries: list[Entry], timed: bool) -> None:
    points = []
    for entry in entries:
        cost = entry.checkpoint.seconds if timed else entry.checkpoint.work
        if entry.judgement and entry.judgement.difference and cost:
            points.append((cost.mean, entry.judgement.difference, entry.judgement.verdict == "non-inferior"))
    if not points:
        return
    x, y = [cost for cost, _, _ in points], [100 * difference.mean for _, difference, _ in points]
    axes.plot(
        x, y, color=style.colour, lw=1.4, ls=style.line, label=name_of(own), marker=style.marker, ms=6.5, zorder=2
    )
    for cost, difference, good in points:
        if difference.interval:
            axes.vlines(cost, 100 * difference.interval.low, 100 * difference.interval.high, color=style.colour, lw=1.2)
        face = style.colour if good else PAPER
        axes.plot(cost, 100 * difference.mean, style.marker, mfc=face, mec=style.colour, mew=1.4, ms=6.5, zorder=3)
