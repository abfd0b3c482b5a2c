# SPDX-License-Identifier: Apache-2.0
"""Figures of masks: densities of layers for each method, and overlaps of methods as a heat map."""

from __future__ import annotations

import math

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from sparsekit.benchmarks.reporting.figures import SETTINGS, place_legend, quiet, svg_element
from sparsekit.benchmarks.reporting.mask_section import MaskLevel, MaskSection
from sparsekit.benchmarks.reporting.palette import FAINT, INK, PAPER, SERIES
from sparsekit.benchmarks.reporting.wording import sparsity_text


def densities_figure(section: MaskSection, name: str) -> str:
    """Kept fraction of every layer in each method's masks, a panel for each sparsity, as an <svg> element."""
    columns = min(2, len(section.levels))
    rows = math.ceil(len(section.levels) / columns)
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(8.8, 0.8 + 3.0 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes, level in zip(panels, section.levels, strict=False):
            _densities(axes, section, level)
        for axes in panels[len(section.levels) :]:
            axes.set_axis_off()
        place_legend(figure, panels[0])
        return svg_element(figure, name, "Density of each layer in the masks of each method")


def _densities(axes: Axes, section: MaskSection, level: MaskLevel) -> None:
    places = range(len(level.layers))
    axes.plot(places, _percent(level.erk), color=FAINT, lw=1.2, ls=(0, (5, 3)), label="ERK", zorder=1)
    axes.axhline(100 * level.uniform, color=FAINT, lw=1.2, ls=(0, (1, 2)), label="uniform", zorder=1)
    for cell in level.cells:
        style = section.styles[cell.method]
        drawn = {"color": style.colour, "marker": style.marker, "ls": style.line, "label": section.names[cell.method]}
        axes.plot(places, _percent(cell.densities), lw=1.6, ms=5.5, mec=PAPER, mew=0.7, zorder=3, **drawn)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    long = len(level.layers) > 8 or max(map(len, level.layers)) > 6
    every = max(1, math.ceil(len(level.layers) / 24))
    axes.set_xticks([*places][::every], [name or "(model)" for name in level.layers[::every]])
    axes.tick_params(axis="x", rotation=90 if long else 0, labelsize=8 if long else 10)
    axes.set_title(f"{sparsity_text(level.sparsity)} sparsity", color=INK, fontsize=10.5, loc="left")
    axes.set_ylabel("kept, %")
    quiet(axes, "y")


def _percent(fractions: tuple[float, ...]) -> list[float]:
    """In percent; an empty layer has no place on a logarithmic axis."""
    return [100 * x if x else math.nan for x in fractions]


def overlap_figure(section: MaskSection, name: str) -> str:
    """Intersection over union of masks below the diagonal, what chance would give above it, as an <svg> element."""
    most = max(len(level.cells) for level in section.levels)
    columns = 2 if len(section.levels) > 1 and most <= 6 else 1
    rows = math.ceil(len(section.levels) / columns)
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(8.8, rows * (1.5 + 0.42 * most)), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes, level in zip(panels, section.levels, strict=False):
            _overlaps(axes, section, level)
        for axes in panels[len(section.levels) :]:
            axes.set_axis_off()
        return svg_element(
            figure, name, "Overlap of the masks of each two methods, and the overlap to expect by chance"
        )


def _overlaps(axes: Axes, section: MaskSection, level: MaskLevel) -> None:
    methods = [cell.method for cell in level.cells]
    for (a, b), overlap in level.overlaps.items():
        first, second = methods.index(a), methods.index(b)
        for x, y, value in ((first, second, overlap.iou), (second, first, overlap.chance)):
            shade = {"facecolor": SERIES[0] if x < y else FAINT, "alpha": 0.7 * value}
            axes.add_patch(Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, lw=0, **shade))
            axes.text(x, y, f"{value:.2f}", ha="center", va="center", color=INK if x < y else FAINT, fontsize=9)
    names = [section.names[method] for method in methods]
    axes.set_xticks(range(len(methods)), names, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(methods)), names)
    axes.set_xlim(-0.5, len(methods) - 0.5)
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.set_title(f"{sparsity_text(level.sparsity)} sparsity", color=INK, fontsize=10.5, loc="left")
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0, labelcolor=INK, labelsize=9)
