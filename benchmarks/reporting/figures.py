# SPDX-License-Identifier: Apache-2.0
"""Figures of a comparison as inline SVG whose colours are CSS variables, so that they follow the page's theme."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsekit.benchmarks.reporting.palette import FAINT, INK, PAPER, RULE, VARIABLES, Style, look
from sparsekit.benchmarks.reporting.summary import Cell, Group
from sparsekit.benchmarks.reporting.wording import label, number, sparsity_text
from sparsekit.benchmarks.statistics import Estimate

SETTINGS: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "sparsekit", "font.size": 10.5}

Costs = tuple[tuple[str, Callable[[Cell], Estimate], float | None], ...]


def accuracy_figure(group: Group, name: str) -> str:
    """Test accuracy against sparsity: mean, standard deviation and every seed of each method, and the dense network.

    Args:
        group: at least one finished run.
        name: prefix of the ids in the SVG, unique on its page.

    Returns:
        An <svg> element.
    """
    with matplotlib.rc_context(SETTINGS):
        single = len(group.sparsities) == 1
        figure = Figure(figsize=(8.8, 1.3 + 0.42 * len(group.methods)) if single else (8.8, 4.4), layout="constrained")
        axes = figure.add_subplot()
        if single:
            _accuracy_strip(axes, group)
        else:
            _accuracy_curves(axes, group)
            place_legend(figure, axes)
        return svg_element(figure, name, "Test accuracy of each method against sparsity")


def cost_figure(group: Group, name: str) -> str:
    """Cost after the dense checkpoint in dense-equivalent epochs and in seconds, with the pretraining beside it.

    Args:
        group: at least one finished run.
        name: prefix of the ids in the SVG, unique on its page.

    Returns:
        An <svg> element.
    """
    costs: Costs = (
        ("dense-equivalent epochs", lambda cell: cell.work, group.dense_epochs),
        ("seconds", lambda cell: cell.seconds, group.dense_seconds),
    )
    with matplotlib.rc_context(SETTINGS):
        single = len(group.sparsities) == 1
        figure = Figure(figsize=(8.8, 1.4 + 0.4 * len(group.methods)) if single else (8.8, 3.6), layout="constrained")
        panels = figure.subplots(1, 2, sharey=single)
        for axes, (words, value, pretraining) in zip(panels, costs, strict=True):
            (_cost_bars if single else _cost_curves)(axes, group, value, pretraining)
            (axes.set_xlabel if single else axes.set_ylabel)(words)
        place_legend(figure, panels[0])
        return svg_element(figure, name, "Cost of each method in dense-equivalent epochs and in seconds")


def colour(group: Group, method: str) -> str:
    """CSS variable of a method's colour in the figures, such as "--series-0"."""
    return next(VARIABLES[style.colour] for name, style in _styles(group) if name == method)


def styles(group: Group) -> dict[str, Style]:
    """Style of every method."""
    return dict(_styles(group))


def turn(group: Group, method: str) -> int:
    """How many methods before it have its colour: the page gives each turn a mark of another shape."""
    return next(style.turn for name, style in _styles(group) if name == method)


def _styles(group: Group) -> Iterator[tuple[str, Style]]:
    """Ink for the baseline, series colours for the others."""
    others = [method for method in group.methods if method != group.baseline]
    for method in group.methods:
        yield method, Style(INK, "o", "-") if method == group.baseline else look(others.index(method))


def _accuracy_curves(axes: Axes, group: Group) -> None:
    _sparsity_axis(axes, group)
    axes.set_ylabel("test accuracy, %")
    _spread_lines(axes, group, lambda cell: cell.accuracy, 100)
    for run in group.runs:
        style = next(style for name, style in _styles(group) if name == run.method)
        x = position(run.sparsity) + _dodge(group, run.method)
        axes.plot(x, 100 * run.accuracy, style.marker, color=style.colour, ms=3, alpha=0.3, mec="none", zorder=1)
    if group.dense:
        axes.axhline(100 * group.dense.mean, color=FAINT, lw=1.2, ls=(0, (5, 3)), label="dense", zorder=1)


def _accuracy_strip(axes: Axes, group: Group) -> None:
    for y, (method, style) in enumerate(_styles(group)):
        colour, marker = style.colour, style.marker
        values = [100 * run.accuracy for run in group.runs if run.method == method]
        axes.plot(values, [y] * len(values), "|", color=colour, ms=11, alpha=0.45)
        cell = group.cell(method, group.sparsities[0])
        if cell:
            error = None if cell.accuracy.sd is None else 100 * cell.accuracy.sd
            axes.errorbar(
                100 * cell.accuracy.mean, y, xerr=error, fmt=marker, color=colour, ms=7, mec=PAPER, elinewidth=1.6
            )
    _method_axis(axes, group)
    axes.set_xlabel(f"test accuracy at {sparsity_text(group.sparsities[0])} sparsity, %")
    if group.dense:
        axes.axvline(100 * group.dense.mean, color=FAINT, lw=1.2, ls=(0, (5, 3)), zorder=1)
        top = axes.get_xaxis_transform()
        axes.text(100 * group.dense.mean, 1.02, "dense", color=FAINT, ha="center", va="bottom", transform=top)


def _cost_curves(axes: Axes, group: Group, value: Callable[[Cell], Estimate], pretraining: float | None) -> None:
    _sparsity_axis(axes, group)
    if len(group.sparsities) > 5:
        axes.tick_params(axis="x", rotation=50)
    _spread_lines(axes, group, value, 1)
    if pretraining is not None:
        axes.axhline(pretraining, color=FAINT, lw=1.2, ls=(0, (1, 2)), label="dense pretraining", zorder=1)
    axes.set_ylim(bottom=0)


def _cost_bars(axes: Axes, group: Group, value: Callable[[Cell], Estimate], pretraining: float | None) -> None:
    before = pretraining or 0.0
    for y, (method, style) in enumerate(_styles(group)):
        cell = group.cell(method, group.sparsities[0])
        if cell:
            cost = value(cell)
            axes.barh(y, before, height=0.5, color=RULE, label="" if y else "dense pretraining")
            axes.barh(y, cost.mean, left=before, height=0.5, color=style.colour)
            axes.annotate(
                number(cost.mean), (before + cost.mean, y), (5, 0), textcoords="offset points", va="center", color=INK
            )
    axes.margins(x=0.16)
    axes.set_xlim(left=0)
    _method_axis(axes, group)


def _spread_lines(axes: Axes, group: Group, value: Callable[[Cell], Estimate], scale: float) -> None:
    """One line of means with standard deviations per method; a sparsity without runs is a gap."""
    for method, style in _styles(group):
        cells = [group.cell(method, sparsity) for sparsity in group.sparsities]
        found = [value(cell) if cell else None for cell in cells]
        x = np.array([position(s) for s in group.sparsities]) + _dodge(group, method)
        y = np.array([scale * e.mean if e else np.nan for e in found])
        sd = np.array([scale * (e.sd or 0.0) if e else np.nan for e in found])
        drawn = {"color": style.colour, "ls": style.line, "marker": style.marker, "label": label(method)}
        axes.plot(x, y, lw=1.8, ms=6.5, mec=PAPER, mew=0.8, zorder=3, **drawn)
        axes.vlines(x, y - sd, y + sd, color=style.colour, lw=1.4, zorder=2)


def position(sparsity: float) -> float:
    """Halvings of the remaining weights: equal steps for equal shares removed."""
    return -float(np.log2(1 - sparsity))


def _dodge(group: Group, method: str) -> float:
    """Sideways shift that keeps the error bars of the methods apart."""
    places = [position(sparsity) for sparsity in group.sparsities]
    gap = min((b - a for a, b in zip(places, places[1:], strict=False)), default=1.0)
    return (
        min(0.045, 0.2 / len(group.methods))
        * min(gap, 0.6)
        * (group.methods.index(method) - (len(group.methods) - 1) / 2)
    )


def _sparsity_axis(axes: Axes, group: Group) -> None:
    places = [position(sparsity) for sparsity in group.sparsities]
    axes.set_xticks(places, [sparsity_text(s).split()[0] for s in group.sparsities])
    axes.set_xlabel("sparsity, %")
    quiet(axes, "y")


def _method_axis(axes: Axes, group: Group) -> None:
    axes.set_yticks(range(len(group.methods)), [label(method) for method in group.methods])
    axes.set_ylim(len(group.methods) - 0.5, -0.5)
    quiet(axes, "x")


def quiet(axes: Axes, along: str) -> None:
    """Grid lines along one axis, no frame but a base line."""
    axes.set_axisbelow(True)
    axes.grid(axis="y" if along == "y" else "x", color=RULE, lw=0.8)
    for side, spine in axes.spines.items():
        spine.set_visible(side == ("bottom" if along == "y" else "left"))
        spine.set_color(FAINT)
    axes.tick_params(color=FAINT, labelcolor=INK, length=0)
    for text in (axes.xaxis.label, axes.yaxis.label):
        text.set_color(FAINT)


def place_legend(figure: Figure, axes: Axes) -> None:
    """The legend of one panel above the figure."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = len(labels) if len(labels) <= 5 else 4
        figure.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False, labelcolor=INK)


def svg_element(figure: Figure, name: str, description: str) -> str:
    """The figure as one <svg> element without fixed size, metadata or foreign ids."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    for stand_in, variable in VARIABLES.items():
        text = text.replace(stand_in, f"var({variable})")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(#|href="#)', rf"\1{name}-", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{description}"', 1)
