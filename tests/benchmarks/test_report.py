# SPDX-License-Identifier: Apache-2.0
"""The report: exact numbers, honest about what is missing, slower or worse; a page that needs nothing else."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest
from comparison_rows import CONFIG, ENVIRONMENT, comparison, failed, row
from pages import stands_alone
from rich.console import Console

from sparsekit.benchmarks.report import as_json, render_table, speedup, summarise, write_report
from sparsekit.benchmarks.reporting.findings import cautions, digest, findings, title
from sparsekit.benchmarks.reporting.wording import label, number, points, seconds_text, sparsity_text, times


def page(tmp_path: Path, rows: list[dict[str, Any]]) -> str:
    return write_report(rows, tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def printed(rows: list[dict[str, Any]], width: int = 140) -> str:
    console = Console(file=io.StringIO(), width=width)
    for table in render_table(rows):
        console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_speedup_by_hand() -> None:
    """IMP: 40 x 1 x 0.5 + 1 = 21 s; BiP: 10 x 2 x 0.6 + 2 = 14 s; 5 s of pretraining on both sides."""
    found = speedup([row("imp"), row("bip")], "bip", sparsity=0.9)
    assert found is not None and found.checkpoint.seconds and found.pretraining.seconds and found.checkpoint.work
    assert found.checkpoint.seconds.value == pytest.approx(21 / 14)
    assert found.pretraining.seconds.value == pytest.approx(26 / 19)
    assert found.checkpoint.work.value == pytest.approx(40 / 20)
    assert found.pretraining.work and found.pretraining.work.value == pytest.approx(50 / 30)
    assert found.checkpoint.seconds.interval is None
    assert found.factors is not None
    expected = (40 / 10, 1 / 2, 0.5 / 0.6, (21 / 20) / (14 / 12))
    f = found.factors
    assert (f.epochs, f.passes_per_step, f.time_per_pass, f.selection) == pytest.approx(expected)


@pytest.mark.parametrize("method", ["bip", "omp", "slow"])
def test_four_factors_multiply_to_the_total(method: str) -> None:
    found = speedup(comparison(("imp", method), seeds=7), method, sparsity=0.9)
    assert found is not None and found.factors and found.checkpoint.seconds
    assert found.factors.product == pytest.approx(found.checkpoint.seconds.value, rel=1e-12)
    assert found.seeds == tuple(range(7))
    interval = found.checkpoint.seconds.interval
    assert interval is not None and interval.low <= found.checkpoint.seconds.value <= interval.high


def test_speedup_pairs_by_seed_and_machine() -> None:
    other = ENVIRONMENT | {"cpu": {"model": "another", "cores": 2, "threads": 1}}
    later = ENVIRONMENT | {"timestamp": "2026-11-22T03:00:00+00:00"}
    rows = [row("imp", seed=0), row("imp", seed=1), row("imp", seed=2), row("bip", seed=1, environment=later)]
    found = speedup([*rows, row("bip", seed=2, environment=other), row("bip", seed=3)], "bip", sparsity=0.9)
    assert found is not None and found.seeds == (1,)


def test_speedup_without_a_pair_is_none() -> None:
    assert speedup([row("imp", seed=0), row("bip", seed=1)], "bip", sparsity=0.9) is None
    assert speedup(comparison(), "bip", sparsity=0.5) is None
    assert speedup(comparison(), "bip", "gmp", sparsity=0.9) is None


def test_speedup_refuses_two_recipes() -> None:
    rows = [row("imp"), row("bip", config=CONFIG | {"lr": 0.5})]
    with pytest.raises(ValueError, match="speedup: rows: expected one recipe, got 2"):
        speedup(rows, "bip", sparsity=0.9)


def test_no_factors_where_nothing_was_trained() -> None:
    free = row("omp")
    free["cost"] = free["cost"] | {"steps": 0, "epochs": 0, "dense_epochs": 0, "seconds": 0.1, "selection_seconds": 0.1}
    found = speedup([row("imp"), free], "omp", sparsity=0.9)
    assert found is not None and found.factors is None and found.checkpoint.work is None
    assert found.checkpoint.seconds is not None


def test_summary_cells() -> None:
    group = summarise(comparison(sparsities=(0.9, 0.5))).groups[0]
    assert group.methods == ("imp", "bip", "omp") and group.sparsities == (0.5, 0.9)
    assert group.dense is not None and group.dense.n == 5 and group.dense.mean == pytest.approx(0.972)
    baseline, cell, worse = (group.cell(method, 0.9) for method in group.methods)
    assert baseline and cell and worse
    assert (baseline.difference, baseline.verdict, baseline.before) == (None, None, None)
    assert cell.difference and cell.difference.mean == pytest.approx(-0.001, abs=5e-4)
    assert cell.verdict == "non-inferior" and cell.matched is True
    assert worse.verdict == "inferior" and worse.before and worse.before.mean == 0.5
    assert group.missing == () and cautions(group) == ()


def test_baseline_comes_first_and_can_be_chosen() -> None:
    rows = comparison(("bip", "omp", "imp"))
    assert summarise(rows).groups[0].methods == ("imp", "bip", "omp")
    assert title(summarise(rows, "omp").groups[0]) == "BiP and IMP against OMP"
    many = [row("imp"), *(row("bip") | {"method": f"bip-{i}"} for i in range(6))]
    assert title(summarise(many).groups[0]) == "6 methods against IMP"


def test_missing_runs_are_missing() -> None:
    rows = [r for r in comparison(sparsities=(0.5, 0.9)) if not (r["method"] == "bip" and r["sparsity"] == 0.9)]
    rows.remove(next(r for r in rows if r["method"] == "imp" and r["seed"] == 3 and r["sparsity"] == 0.5))
    group = summarise(rows).groups[0]
    assert group.cell("bip", 0.9) is None and group.speedup("bip", 0.9) is None
    assert ("bip", 0.9, 0) in group.missing and ("imp", 0.5, 3) in group.missing and len(group.missing) == 6
    cell, speed = group.cell("bip", 0.5), group.speedup("bip", 0.5)
    assert cell and cell.accuracy.n == 5 and cell.difference and cell.difference.n == 4
    assert cell.verdict == "inconclusive" and speed and speed.seeds == (0, 1, 2, 4)
    assert any("6 of 30 runs are missing" in text for text in cautions(group))


def test_without_baseline_nothing_is_compared(tmp_path: Path) -> None:
    rows = comparison(("bip", "omp"))
    group = summarise(rows).groups[0]
    assert group.speedups == () and all(cell.verdict is None for cell in group.cells)
    assert "nothing is compared" in findings(group)[0].cost
    assert any("No run of the baseline IMP" in text for text in cautions(group))
    assert "nothing is compared" in page(tmp_path, rows)


def test_a_later_row_replaces_an_earlier_one() -> None:
    changed = row("bip", seed=0)
    changed["result"] = changed["result"] | {"test_accuracy": 0.5}
    summary = summarise([*comparison(), changed])
    cell = summary.groups[0].cell("bip", 0.9)
    assert cell and cell.accuracy.n == 5 and cell.accuracy.mean < 0.9 and summary.superseded == 1


def test_failures_are_listed_and_escaped(tmp_path: Path) -> None:
    rows = [*comparison(), failed("omp", seed=7, error="loss <b>NaN</b> [red]"), failed("omp", seed=0)]
    first, second = summarise(rows).groups[0].failures
    assert (first.seed, first.recovered, second.recovered) == (7, False, True)
    text = page(tmp_path, rows)
    assert "loss &lt;b&gt;NaN&lt;/b&gt;" in text and "<b>NaN" not in text
    assert "loss <b>NaN</b> [red]" in printed(rows)


def test_only_failures(tmp_path: Path) -> None:
    rows = [failed("imp"), failed("bip")]
    assert "Failed runs" in page(tmp_path, rows) and "Failed runs" in printed(rows)


def test_foreign_rows_are_passed_over_and_broken_ones_refused() -> None:
    assert summarise([{"kind": "bench", "bench": "topk_mask"}]).groups == ()
    broken = row("imp")
    del broken["cost"]
    with pytest.raises(ValueError, match="read: row imp0.90: expected key 'cost', got none"):
        summarise([broken])
    with pytest.raises(ValueError, match="expected numbers, got null or text"):
        summarise([row("imp", dense={"test_accuracy": None, "epochs": 1, "seconds": 1.0})])


def test_findings_name_baseline_clocks_and_losses() -> None:
    group = summarise(comparison(("imp", "bip", "omp", "slow"))).groups[0]
    bip, omp, slow = findings(group)
    assert "given a dense checkpoint, BiP took 1.50× less time than IMP" in bip.cost
    assert "with pretraining counted on both sides it took 1.37× less time than IMP" in bip.cost
    assert "points lower" in bip.accuracy and "5 paired seeds" in bip.accuracy and "non-inferior" in bip.accuracy
    assert "less accurate by more than the margin of 0.3 points" in omp.accuracy
    assert "slow took 1.90× the time of IMP: it was slower" in slow.cost


def test_findings_over_several_sparsities() -> None:
    rows = comparison(("imp", "slow", "omp"), sparsities=(0.5, 0.9))
    slow, omp = findings(summarise(rows).groups[0])
    assert "slow was slower at 50\N{NO-BREAK SPACE}%, 90\N{NO-BREAK SPACE}% given a dense checkpoint" in slow.cost
    assert "lower at 2 of 2 sparsities" in omp.accuracy and "slower" not in omp.cost
    assert omp.cost.startswith("OMP took ") and "less time than IMP given a dense checkpoint" in omp.cost


def test_many_methods_have_a_digest(tmp_path: Path) -> None:
    rows = comparison(("imp", "bip", "omp"))
    words = "Each method in words"
    assert digest(summarise(rows).groups[0]) == () and words not in page(tmp_path, rows)
    for i in range(5):
        for other in (r for r in comparison(("bip",)) if i < 4 or r["seed"] == 0):
            own = other | {"method": f"own{i}", "id": f"{other['id']}own{i}"}
            result = other["result"]
            rows.append(own | {"result": result | {"test_accuracy": result["test_accuracy"] - 0.01 * i}})
    group = summarise(rows).groups[0]
    space = "\N{NO-BREAK SPACE}"
    (text,) = digest(group)
    means = {m: f"{100 * cell.accuracy.mean:.2f}" for m in group.methods if (cell := group.cell(m, 0.9))}
    assert text == (
        f"At 90{space}% sparsity, test accuracy in %: IMP {means['imp']}; no more than 0.3 points below IMP: "
        f"BiP ({means['bip']}), own0 ({means['own0']}); more than 0.3 points below IMP: own1 ({means['own1']}), "
        f"OMP ({means['omp']}), own2 ({means['own2']}), own3 ({means['own3']}); undecided: own4 ({means['own4']})."
    )
    html = page(tmp_path, rows)
    assert text in html and words in html
    assert as_json(rows)["groups"][0]["digest"] == [text]


def many(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The rows, and those of ``bip`` once more under so many other names."""
    own = [r for r in rows if r["method"] == "bip"]
    return rows + [r | {"method": f"own{i}", "id": f"{r['id']}own{i}"} for i in range(count) for r in own]


def test_when_there_is_a_digest_and_for_what() -> None:
    rows = comparison(("imp", "bip"), sparsities=(0.5, 0.9))
    assert digest(summarise(many(rows, 5)).groups[0]) == ()  # six that a reader takes in one by one
    space = "\N{NO-BREAK SPACE}"
    found = digest(summarise(many(rows, 6)).groups[0])
    assert [text[:7] for text in found] == [f"At 50{space}%", f"At 90{space}%"]
    alone = digest(summarise(many([r for r in rows if r["method"] != "imp"], 8)).groups[0])
    assert len(alone) == 2 and all("in %: without a pair of runs with IMP: BiP (" in text for text in alone)


def test_one_seed_has_no_interval_and_no_verdict(tmp_path: Path) -> None:
    rows = comparison(seeds=1)
    group = summarise(rows).groups[0]
    cell = group.cell("bip", 0.9)
    assert cell and cell.accuracy.sd is None and cell.difference and cell.difference.interval is None
    assert cell.verdict == "inconclusive"
    assert "fewer than 5 paired seeds" in findings(group)[0].accuracy
    assert any("1 paired seed" in text for text in cautions(group))
    assert "±" not in re.sub(r"<style>.*?</style>|Mean ±", "", page(tmp_path, rows), flags=re.DOTALL)


def test_different_budgets_are_pointed_out() -> None:
    other = row("bip")
    other["result"] = other["result"] | {"kept": 999}
    group = summarise([row("imp"), other]).groups[0]
    cell = group.cell("bip", 0.9)
    assert cell and cell.matched is False
    assert any("Kept weights" in text and "BiP" in text for text in cautions(group))


def test_recipes_are_kept_apart(tmp_path: Path) -> None:
    rows = comparison(seeds=2) + [r | {"config": CONFIG | {"lr": 0.5}} for r in comparison(seeds=2)]
    assert [group.config.get("lr") for group in summarise(rows).groups] == [None, 0.5]
    assert len(render_table(rows)) == 4
    assert "2 recipes" in page(tmp_path, rows)


@pytest.mark.parametrize("sparsities", [(0.9,), (0.5, 0.9), (0.488, 0.672, 0.738, 0.79, 0.866, 0.893)])
def test_page_stands_alone(tmp_path: Path, sparsities: tuple[float, ...]) -> None:
    text = page(tmp_path, [*comparison(sparsities=sparsities, seeds=3), failed("bip", sparsities[0], 4)])
    assert stands_alone(text)
    assert "Example &lt;9000&gt; &amp; co" in text and "How to read this" in text
    assert "BiP and OMP against IMP" in text


def test_figures_are_svg_in_theme_colours(tmp_path: Path) -> None:
    figures = re.findall(r"<svg.*?</svg>", page(tmp_path, comparison(sparsities=(0.5, 0.9))), flags=re.DOTALL)
    assert len(figures) == 2
    for figure in figures:
        root = ElementTree.fromstring(figure)
        assert root.get("role") == "img" and root.get("viewBox") and root.get("width") is None
        assert set(re.findall(r"#[0-9a-f]{6}", figure)) <= {"#000000"}
        assert "var(--series-0)" in figure and "var(--ink)" in figure
    assert "BiP" in figures[0] and "dense pretraining" in figures[1]


def test_report_is_deterministic_and_leaves_matplotlib_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    before = matplotlib.rcParams.copy()
    assert page(tmp_path, comparison()) == page(tmp_path, comparison())
    assert matplotlib.rcParams.copy() == before
    assert "matplotlib.pyplot" not in sys.modules


def test_empty_report(tmp_path: Path) -> None:
    assert "no run of a comparison" in page(tmp_path, [])
    assert render_table([]) == [] and as_json([])["groups"] == []


def test_json_is_plain() -> None:
    rows = [*comparison(), failed("omp", seed=9)]
    found = json.loads(json.dumps(as_json(rows), allow_nan=False))
    (group,) = found["groups"]
    assert group["baseline"] == "imp" and len(group["runs"]) == 15
    speed = next(s for s in group["speedups"] if s["method"] == "bip")
    assert speed["checkpoint"]["seconds"]["value"] == pytest.approx((21 + 0.02) / (14 + 0.02))
    assert group["failures"][0]["error"] == "diverged" and group["findings"][0]["method"] == "bip"


@pytest.mark.parametrize("width", [60, 80, 160])
def test_terminal_tables(width: int) -> None:
    text = printed(comparison(), width)
    assert "BiP" in text and "1.50×" in text
    if width == 160:
        assert "non-inferior" in text and "inferior" in text and "4.00 0.50 0.83 0.90" in text


def test_wording() -> None:
    assert [label(m) for m in ("bip", "imp-budget", "oneshot", "mine")] == [
        "BiP",
        "IMP-budget",
        "One-shot magnitude",
        "mine",
    ]
    assert [points(x) for x in (0.0021, -0.0021, 0.0, -1e-6, None)] == [
        "+0.21",
        "\N{MINUS SIGN}0.21",
        "0.00",
        "0.00",
        "–",
    ]
    assert [sparsity_text(s).replace("\xa0", " ") for s in (0.893, 0.9, 0.73786, 0.0)] == [
        "89.3 %",
        "90 %",
        "73.8 %",
        "0 %",
    ]
    assert [number(x) for x in (0.0, 0.0123, 1.5, 128.0, 15000.0)] == ["0.00", "0.0123", "1.50", "128", "15000"]
    assert [times(x) for x in (0.521, 2.0, 12.345, None)] == ["0.52×", "2.00×", "12.3×", "–"]
    durations = (5e-6, 0.0123, 1.5, 119.0, 120.0, 7200.0)
    assert [seconds_text(s).replace("\xa0", " ") for s in durations] == [
        "5.00 µs",
        "12.3 ms",
        "1.50 s",
        "119 s",
        "2.00 min",
        "2.00 h",
    ]


def test_dense_training_is_a_line_at_no_sparsity_but_0(tmp_path: Path) -> None:
    """And nothing else is missing there, nor dense training elsewhere."""
    rows = [*comparison(seeds=2), *(row("imp", 0.0, n) | {"method": "dense", "id": f"dense{n}"} for n in range(2))]
    (group,) = summarise(rows).groups
    assert group.missing == () and group.methods_at(0.0) == ("dense",) and "dense" not in group.methods_at(0.9)
    text = printed(rows, 200)
    assert text.count("Dense (continued)") == 3  # the title, and one line in each table
    assert "missing" not in " ".join(cautions(group))
    assert page(tmp_path, rows).count("Dense (continued)</th>") <= 2


def test_names_with_budgets() -> None:
    assert label("gmp@1.5") == "GMP, 1.5× budget" and label("imp-budget@0.75") == "IMP-budget, 0.75× budget"
    assert label("dense") == "Dense (continued)"
