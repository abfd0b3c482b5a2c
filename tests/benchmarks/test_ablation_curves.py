# SPDX-License-Identifier: Apache-2.0
"""Sweeps of BiP's constants: the runs that are made, the points, and the page."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from sparsekit.benchmarks import ablation_curves
from sparsekit.benchmarks.ablation_curves import SWEEPS, curves_figure, main, methods, points
from sparsekit.benchmarks.builders import Start
from sparsekit.benchmarks.engine import Workbench
from sparsekit.benchmarks.masking import sparsify_for
from sparsekit.benchmarks.methods import METHODS
from sparsekit.benchmarks.recipe import Recipe
from sparsekit.benchmarks.rows import Row, read_rows
from sparsekit.benchmarks.speedup_suites import SUITES

pytest.importorskip("sklearn")
TINY = ["--network", "mlp", "--limit", "32", "--dense-epochs", "1", "--epochs", "1", "--batch-size", "16"]


def test_the_methods_have_the_values_that_the_axes_say(tmp_path: Path) -> None:
    recipe = Recipe(network="mlp", limit=32, batch_size=16)
    bench = Workbench(recipe, tmp_path)
    for sweep in SWEEPS:
        assert [value for value, _ in sweep.methods] == sorted(value for value, _ in sweep.methods)
        for value, method in sweep.methods:
            model = bench.network(0)
            sparsify_for(model, recipe)
            start = Start(model, bench.loss, {}, 0.5, recipe, 2, 32)
            pruner: Any = METHODS[method].build(start)
            rate = pruner.lower.param_groups[0]["lr"]
            assert (pruner.gamma if sweep.name == "gamma" else rate / recipe.lr) == pytest.approx(value)


def test_a_sweep_from_start_to_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*TINY, "--out", str(tmp_path), "--seeds", "2", "--sparsity", "0.5", "0.6", "0.7"]
    assert main(words) == 0
    rows = read_rows(tmp_path / "rows.jsonl")
    assert len(rows) == 6 * 3 * 2 and {row["method"] for row in rows} == set(methods())
    page = (tmp_path / "curves.html").read_text()
    assert (
        page.count("<svg") == 1 and "∞" in page and "bip-alpha0.01" in page and page.count('<tr><th scope="row">') == 7
    )
    assert main([*words, "--report-only"]) == 0 and main(words) == 0
    assert read_rows(tmp_path / "rows.jsonl") == rows
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "curves.html")] * 3


def row(method: str, seed: int, accuracy: float, sparsity: float = 0.9, **changes: Any) -> Row:
    shared = {"kind": "compare", "method": method, "sparsity": sparsity, "seed": seed, "config": {"network": "mlp"}}
    return shared | {"result": {"test_accuracy": accuracy}, "environment": {}} | changes


def test_points_are_means_over_seeds_of_what_has_finished() -> None:
    rows = [row("bip", 0, 0.8), row("bip", 1, 0.9), row("bip-inf", 0, 0.5), row("imp", 0, 0.1)]
    rows += [row("bip", 0, 0.7), {k: v for k, v in row("bip-gamma10", 0, 0.3).items() if k != "result"}]
    found = points(rows)
    assert [(p.sweep, p.value, p.accuracy.n) for p in found] == [
        ("gamma", 1.0, 2),
        ("gamma", math.inf, 1),
        ("alpha", 1.0, 2),
    ]
    assert found[0].accuracy.mean == pytest.approx(0.8) and found[1].accuracy.interval is None
    with pytest.raises(ValueError, match="expected runs of one recipe, got 2"):
        points([*rows, row("bip", 2, 0.8, config={"network": "convnet"})])


def test_the_figure_has_a_line_for_each_sparsity() -> None:
    rows = [row(m, s, 0.9 + 0.01 * s, level) for m in methods() for s in (0, 1) for level in (0.9, 0.95, 0.98)]
    text = curves_figure(points(rows), "c")
    for words in ("90", "95", "98", "∞", "γ", "factor of the lower rate"):
        assert f">{words}" in text, words
    assert {f"var(--series-{i})" for i in range(3)} <= set(re.findall(r"var\(--series-\d\)", text))


def test_where_the_points_are() -> None:
    values = {method: 0.5 + 0.05 * i for i, method in enumerate(methods())}
    rows = [
        row(m, s, values[m] + change * s, level)
        for m in values
        for s in (0, 1)
        for level, change in ((0.9, 0), (0.95, 0.1))
    ]
    found = points(rows)
    for sweep, places in zip(SWEEPS, ([-1, 0, 1, 2], [-2, -1, 0]), strict=True):
        axes: Any = Figure().subplots()
        ablation_curves._panel(axes, sweep, [point for point in found if point.sweep == sweep.name])
        assert axes.get_xticks().tolist() == places  # infinity one step of ten beyond the largest
        assert [text.get_text() for text in axes.get_xticklabels()][-1] == ("∞" if sweep.name == "gamma" else "1")
        first, second = axes.get_lines()
        own = [100 * values[method] for _, method in sweep.methods]
        assert first.get_xdata().tolist() == second.get_xdata().tolist() == places
        assert first.get_ydata().tolist() == pytest.approx(own)
        assert second.get_ydata().tolist() == pytest.approx([y + 5 for y in own])
        bands = [c.get_datalim(axes.transData) for c in axes.collections]
        assert [round(band.height) for band in bands] == [
            round(max(own) - min(own)),
            round(max(own) - min(own) + 127.06),
        ]


def test_accuracies_stay_within_what_there_is() -> None:
    rows = [row(m, s, 0.5 * s + 0.5, 0.9) for m in methods() for s in (0, 1)]
    labels = [float(text) for text in re.findall(r">([\d.]+)</text>", curves_figure(points(rows), "c"))]
    assert labels and max(labels) <= 100


def test_the_page_has_each_mean_at_its_place(tmp_path: Path) -> None:
    values = {method: 0.5 + 0.05 * i for i, method in enumerate(methods())}
    rows = [
        row(m, 0, values[m] + plus, level, config=RECIPE) for m in values for level, plus in ((0.9, 0.0), (0.95, 0.01))
    ]
    page = ablation_curves.write_curves(rows, tmp_path / "page.html").read_text()
    found = re.findall(r"<small>(.*?)</small></th>\s*<td>([\d.]+)</td><td>1</td>\s*<td>([\d.]+)</td>", page)
    expected = [m for sweep in SWEEPS for _, m in sweep.methods]
    assert found == [(m, f"{100 * values[m]:.2f}", f"{100 * values[m] + 1:.2f}") for m in expected]


def test_the_default_sparsities_are_those_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert [round(s, 3) for s in ablation_curves._arguments([]).sparsity] == [0.866, 0.945, 0.986]


def test_failures_and_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(tmp_path), "--report-only"]) == 2
    assert "error: read_rows: path: expected a file or folder" in capsys.readouterr().err
    assert main([*TINY, "--out", str(tmp_path), "--seeds", "0"]) == 2
    monkeypatch.setattr(ablation_curves, "compare", lambda *a, **b: [{"error": "no luck"}])
    (tmp_path / "rows.jsonl").write_text("")
    assert main([*TINY, "--out", str(tmp_path), "--seeds", "1"]) == 2
    assert "expected finished runs of the sweeps, got none" in capsys.readouterr().err
    monkeypatch.setattr(ablation_curves, "read_rows", lambda path: [row("bip", 0, 0.5, config=RECIPE)])
    assert main([*TINY, "--out", str(tmp_path), "--seeds", "1"]) == 1


def test_the_recipe_of_a_suite() -> None:
    def recipe(*words: str) -> Recipe:
        return ablation_curves._recipe(ablation_curves._arguments(words))

    small = SUITES["small"].recipe
    assert recipe("--suite", "small", "--epochs", "2") == replace(small, epochs=2)
    assert recipe() == Recipe(epochs=8) and recipe("--image-size", "16", "--data", "cifar10").image_size == 16


RECIPE = {"network": "mlp", "data": "digits", "epochs": 1, "dense_epochs": 1}
