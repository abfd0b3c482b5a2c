# SPDX-License-Identifier: Apache-2.0
"""The speed-up report: sentences that say no more than the numbers, what is missing by name, a page that needs nothing else."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from pages import Page, stands_alone
from rich.console import Console
from speedup_rows import GPU, RECIPE, campaign, failed, row, suite

from sparsekit.benchmarks.methods import METHODS
from sparsekit.benchmarks.recipe import Recipe
from sparsekit.benchmarks.reporting.caveats import cautions, gaps
from sparsekit.benchmarks.reporting.claims import headline, sentence, stamp_line
from sparsekit.benchmarks.reporting.levels import Report, summarise_suite
from sparsekit.benchmarks.reporting.naming import amount, bracket, factor, hardware, listed, name_of, setting
from sparsekit.benchmarks.reporting.paper import compressed, published, schedule
from sparsekit.benchmarks.reporting.speedup_curves import accuracy_figure, collapsed, match_figure, styles
from sparsekit.benchmarks.reporting.speedup_lines import notes, verdict_lines
from sparsekit.benchmarks.speedup_report import speedup_json, speedup_markdown, speedup_tables, write_speedup
from sparsekit.benchmarks.speedup_suites import Suite
from sparsekit.benchmarks.statistics import Interval

Rows = list[dict[str, Any]]

FULL = {"imp": 0.89, "imp-budget": 0.889, "bip": 0.88, "bip-1pass": 0.8895, "omp": 0.87}


def plain(text: str) -> str:
    return text.replace("\xa0", " ")


def said(rows: Rows, asked: Suite) -> tuple[Report, str]:
    report = summarise_suite(rows, asked)
    return report, plain(headline(report, report.levels[0]))


def page(tmp_path: Path, rows: Rows, asked: Suite) -> str:
    return write_speedup(rows, asked, tmp_path / "out" / "speedup.html").read_text(encoding="utf-8")


def printed(rows: Rows, asked: Suite, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    for table in speedup_tables(rows, asked):
        console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def resources(rows: Rows) -> Rows:
    for r in rows:
        r["cost"] |= {"flops": 2e15, "peak_memory": 3e9, "energy": 4000.0}
        r["dense"] |= {"flops": 1e15, "peak_memory": 1e9, "energy": 1000.0}
    return rows


def test_headline_names_baseline_margin_seeds_both_clocks_and_budgeted_imp() -> None:
    """bip-1pass: 8 x 1.2 + 1 = 10.6 s against 104.5 s and 16.5 s; 16 s of pretraining: 120.5 / 26.6 = 4.53."""
    report, text = said(campaign(FULL, seeds=10), suite(FULL, seeds=10))
    assert text == (
        "At 90 % sparsity BiP (one pass) matches IMP, the best IMP variant, within 0.3 points (one-sided 95 %, "
        "10 paired seeds) at 9.86× less time than IMP given a dense checkpoint, 4.53× end to end; IMP (budgeted) does so "
        "at 6.33×, in 1.56× the time of BiP (one pass)."
    )
    assert stamp_line(report) == "CIFAR-10, ResNet-20, compressed schedule, NVIDIA H200 (driver 580.65)."
    assert gaps(report) == ("Not measured in these runs: training FLOPs, peak memory and energy.",)


def test_fewer_than_ten_seeds_are_preliminary() -> None:
    report, text = said(campaign(FULL), suite(FULL))
    assert "5 paired seeds; preliminary, below 10)" in text
    assert "Down to 5 paired seeds; below 10 a result is preliminary." in gaps(report)


def test_the_fastest_of_several_that_match_is_named_as_such() -> None:
    found = FULL | {"bip": 0.8895}
    _, text = said(campaign(found, 10), suite(found, seeds=10))
    assert "BiP (one pass) matches" in text and text.endswith("It is the fastest of 2 methods that match.")


def test_a_match_that_saves_nothing_is_no_speedup() -> None:
    """On twenty times its budget bip takes 20 x 8 x 2 x 1.1 + 1 = 353 s, imp 104.5 s."""
    found = {"imp": 0.89, "bip@20": 0.8895}
    _, text = said(campaign(found, 10), suite(found, seeds=10))
    assert "less time" not in text
    assert (
        "but without a clear saving: the time of IMP over its own is 0.30× given a dense checkpoint and 0.33×" in text
    )


def test_a_saving_whose_interval_holds_one_is_not_claimed() -> None:
    rows = campaign({"imp": 0.89, "bip": 0.89}, 10)
    for r in rows:
        if r["method"] == "bip":
            r["cost"]["seconds"] = 30.0 if r["seed"] % 2 else 175.0
    _, text = said(rows, suite(("imp", "bip"), seeds=10))
    assert "without a clear saving" in text and "less time" not in text


def test_a_saving_on_one_clock_alone_is_not_claimed() -> None:
    """104.5 s against 18.6 s, but with a pretraining of 500 s instead of 16 s: 120.5 / 518.6 = 0.23."""
    rows = campaign({"imp": 0.89, "bip": 0.89}, 10)
    for r in rows:
        r["dense"]["seconds"] = 500.0 if r["method"] == "bip" else 16.0
    _, text = said(rows, suite(("imp", "bip"), seeds=10))
    assert (
        "without a clear saving: the time of IMP over its own is 5.62× given a dense checkpoint and 0.23× end" in text
    )


def test_no_match_tells_never_from_inconclusive() -> None:
    found = {"imp": 0.89, "bip": 0.88, "omp": 0.8871, "gmp": 0.8871}
    report, text = said(campaign(found), suite((*found, "spode")))
    assert text == (
        "At 90 % sparsity no method is shown to match IMP, the best IMP variant, within 0.3 points: BiP never does on the "
        "budgets tried; OMP, GMP and SpODE are inconclusive (interval of the difference too wide; a budget has no "
        "finished run)."
    )
    level = report.levels[0]
    words = {v.match.method: plain(sentence(report, level, v)) for v in level.verdicts}
    assert words["bip"] == (
        "At 90 % sparsity BiP never matches IMP, the best IMP variant, within 0.3 points: less accurate on every budget "
        "tried (1×)."
    )
    assert words["spode"] == (
        "At 90 % sparsity it is inconclusive whether SpODE matches the best IMP variant: a budget has no finished run."
    )
    assert words["imp"] == "At 90 % sparsity IMP is itself the most accurate IMP variant, the baseline of the costs."


def test_one_seed_claims_nothing() -> None:
    report, text = said(campaign(FULL, 1), suite(FULL, seeds=1))
    assert "no method is shown to match" in text and "fewer than 5 paired seeds" in text
    assert "Down to 1 paired seed; a verdict needs 5, a headline 10." in gaps(report)
    assert "less time" not in speedup_markdown(campaign(FULL, 1), suite(FULL, seeds=1))


def test_without_imp_nothing_is_judged(tmp_path: Path) -> None:
    rows = campaign({"bip": 0.89, "omp": 0.87})
    report, text = said(rows, suite(("imp", "bip", "omp")))
    assert text.startswith("At 90 % sparsity nothing is judged: no IMP variant")
    assert "The baseline IMP has no finished run at 90 %: no saving is known there." in map(plain, gaps(report))
    assert "5 of 15 runs have not finished: 5 of IMP." in gaps(report)
    assert "nothing is judged" in page(tmp_path, rows, suite(("imp", "bip", "omp")))
    page(tmp_path, rows, suite(("bip", "omp")))


def test_without_the_baseline_there_is_a_verdict_but_no_saving() -> None:
    found = {"imp-budget": 0.89, "bip": 0.89}
    report, text = said(campaign(found), suite(("imp", *found)))
    assert "BiP matches IMP (budgeted)" in text
    assert "without a finished run of IMP on a shared seed it is unknown what that saves" in text
    line = next(line for line in verdict_lines(report, report.levels[0]) if line.method == "imp")
    assert (line.given, line.accuracy) == ("–", "–")


def test_a_level_without_runs() -> None:
    report = summarise_suite(campaign(FULL), suite(FULL, sparsities=(0.9, 0.95)))
    assert plain(headline(report, report.levels[1])) == "At 95 % sparsity no run has finished: nothing is known."


def test_epochs_stand_in_where_nothing_was_timed_on_one_machine() -> None:
    rows = campaign({"imp": 0.89, "bip": 0.89})
    for r in rows:
        r["environment"] = GPU | {"gpu": {"name": r["method"]}}
    report, text = said(rows, suite(("imp", "bip")))
    assert "at 6.50× less dense-equivalent epochs than IMP given a dense checkpoint, 3.75× end to end" in text
    assert "no pair was timed on one machine" in text
    assert any("2 environments" in words for words in cautions(report))


def test_cautions_are_measured() -> None:
    found = {"imp": 0.89, "imp-budget": 0.895, "bip@0.5": 0.8921, "bip": 0.8945}
    rows = campaign(found)
    rows[0]["environment"] = GPU | {"git": {"commit": "def5678", "dirty": False}}
    report = summarise_suite([*rows, rows[1], row("omp", 0.5), row("bip", 0.5, config={})], suite(found))
    text = "\n".join(map(plain, cautions(report)))
    assert "16 dense epochs and 8 for each phase. The paper's is 200 dense epochs, 160 for each round of IMP" in text
    assert "The runs come from 2 states of the source code." in text
    assert "At 90 % BiP may match on less than the budget found: 0.5× is undecided." in text
    assert "On one budget only, so that their time to match is not searched for: IMP, IMP (budgeted)." in text
    assert "IMP, is itself less accurate than the best IMP variant by more than 0.3 points at 90 %." in text
    assert "1 row left out, of runs that were repeated later." in text and "1 row of another recipe left out." in text
    assert "1 row left out, of runs that the suite made-up does not have." in text


def test_the_steps_of_a_small_test_set_are_said() -> None:
    """Accuracies on 360 images, and the same difference for every seed."""
    found = {"imp": 350, "bip": 350, "omp": 349}
    rows = [row(m, (n + seed % 3) / 360, seed=seed) for m, n in found.items() for seed in range(5)]
    text = "\n".join(map(plain, cautions(summarise_suite(rows, suite(found)))))
    assert "Accuracies are multiples of 1/360" in text and "0.3 points is worth 1.08 of them." in text
    assert "has no width, for BiP at 90 % and OMP at 90 %." in text
    fine = "\n".join(cautions(summarise_suite(campaign(FULL | {"imp": 0.8899}), suite(FULL))))
    assert "multiples" not in fine and "no width, for BiP" not in fine


def test_few_accuracies_tell_nothing_about_the_size_of_the_test_set() -> None:
    """Three values may be tenths by chance; four hardly are, and a fifth that is none settles it."""
    rows = [row("imp", a, seed=seed) for seed, a in enumerate((0.5, 0.6, 0.7))]
    assert not any("multiples" in text for text in cautions(summarise_suite(rows, suite(("imp",)))))
    more = [*rows, row("imp", 0.8, seed=3)]
    assert any("multiples of 1/10," in text for text in cautions(summarise_suite(more, suite(("imp",)))))
    odd = [*more, row("imp", 0.8123, seed=4)]
    assert not any("multiples" in text for text in cautions(summarise_suite(odd, suite(("imp",)))))


def test_a_candidate_that_is_left_out_is_named() -> None:
    rows = [r for r in campaign(FULL) if r["method"] != "imp-budget" or r["seed"] == 0]
    report = summarise_suite(rows, suite(FULL))
    assert any("too few seeds of IMP (budgeted) finished to be a candidate" in text for text in gaps(report))


def test_a_failure_that_another_attempt_made_good_is_not_missing() -> None:
    rows = [r for r in campaign(FULL) if (r["method"], r["seed"]) != ("omp", 3)]
    report = summarise_suite([*rows, failed("omp", seed=3), failed("omp", seed=3), failed("bip", seed=0)], suite(FULL))
    assert gaps(report)[:2] == (
        "1 of 25 runs have not finished: 1 of OMP.",
        "1 run among them failed; each is listed with its reason below.",
    )
    bip, omp = (report.levels[0].entry(method) for method in ("bip", "omp"))
    assert (notes(report, bip), notes(report, omp)) == ((), ("seed 3 failed: loss is not finite",) * 2)


def test_no_gpu_is_said() -> None:
    rows = [r | {"environment": GPU | {"gpu": None}} for r in campaign(FULL)]
    report, _ = said(rows, suite(FULL))
    assert "No GPU: the times are those of a CPU and say nothing about one." in gaps(report)
    assert stamp_line(report).endswith("Example 9000, 8 threads, no GPU.")


@pytest.mark.parametrize("sparsities", [(0.9,), (0.488, 0.7379, 0.8658, 0.945)])
def test_page_stands_alone(tmp_path: Path, sparsities: tuple[float, ...]) -> None:
    names = (*FULL, "dense", "bip@0.5")
    rows = [r for s in sparsities for r in campaign(FULL | {"bip@0.5": 0.87}, sparsity=s)]
    rows += [row("dense", 0.9, sparsity=0.0, seed=s) for s in range(4)]
    text = page(tmp_path, [*rows, failed("dense", 0.0, 4, "loss <b>nan</b>")], suite(names, sparsities))
    assert stands_alone(text)
    assert "loss &lt;b&gt;nan&lt;/b&gt;" in text and "<b>nan" not in text
    for words in (
        "This report is incomplete",
        "Read with care",
        "The reference is favoured",
        "Failed runs",
        "Where it comes from",
    ):
        assert words in text


def test_figures_are_svg_in_theme_colours(tmp_path: Path) -> None:
    names = (*FULL, "bip@0.5")
    text = page(tmp_path, campaign(FULL | {"bip@0.5": 0.87}), suite(names))
    figures = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(figures) == 5
    for figure in figures:
        root = ElementTree.fromstring(figure)
        assert root.get("role") == "img" and root.get("viewBox") and root.get("width") is None
        assert set(re.findall(r"#[0-9a-f]{6}", figure)) <= {"#000000"}
    assert "the paper, read off its figure" in text and "no published curve" not in text


def test_page_is_deterministic_and_replaces_the_old_one(tmp_path: Path) -> None:
    first = page(tmp_path, campaign(FULL), suite(FULL))
    assert page(tmp_path, [], suite(FULL)) != first
    assert page(tmp_path, campaign(FULL), suite(FULL)) == first
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["speedup.html"]


@pytest.mark.parametrize("rows", [[], [failed("imp"), failed("bip")], [row("bip", 0.5)], [row("imp", 0.5)]])
def test_almost_nothing_makes_a_page(tmp_path: Path, rows: Rows) -> None:
    asked = suite(("imp", "bip", "imp-budget"))
    text = page(tmp_path, rows, asked)
    assert not Page(text).open and "This report is incomplete" in text
    assert f"{15 - len([r for r in rows if 'error' not in r])} of 15 runs have not finished" in text
    json.dumps(speedup_json(rows, asked), allow_nan=False)
    assert ("Failed runs" in text) == ("Failed runs" in printed(rows, asked)) == any("error" in r for r in rows)


def test_huge_and_tiny_values_make_a_page(tmp_path: Path) -> None:
    rows = resources(campaign(FULL, 10))
    for r in rows:
        size = {"imp": 1e9, "omp": 1e-9}.get(r["method"], 1.0)
        r["cost"] |= {key: r["cost"][key] * size for key in ("seconds", "selection_seconds")}
        r["cost"]["flops"] = 1e24 * size
    text = page(tmp_path, rows, suite(FULL, seeds=10))
    assert "1.23e+19" not in text and not Page(text).open
    assert "e+" in text and "nan" not in text.lower().replace("finance", "")


def test_no_published_curve_is_said(tmp_path: Path) -> None:
    recipe = Recipe(dense_epochs=20, epochs=8)
    rows = [
        r | {"config": json.loads(json.dumps(speedup_json([], suite(FULL, recipe=recipe))["suite"]["recipe"]))}
        for r in campaign(FULL)
    ]
    text = page(tmp_path, rows, suite(FULL, recipe=recipe))
    assert "no published curve for this setting" in text.replace("\n", " ") and "the paper, read off" not in text


def test_resources_are_shown_where_they_were_measured(tmp_path: Path) -> None:
    rows, asked = resources(campaign(FULL, 10)), suite(FULL, seeds=10)
    assert gaps(summarise_suite(rows, asked)) == ()
    text = plain(page(tmp_path, rows, asked))
    for words in ("2.00 PFLOP", "3.00 PFLOP", "3.00 GB", "4.00 kJ", "5.00 kJ"):
        assert words in text
    assert "This report is incomplete" not in text


def test_markdown() -> None:
    text = plain(speedup_markdown(campaign(FULL), suite(FULL)))
    lines = [line for line in text.splitlines() if line.startswith("| 90 %")]
    assert len(lines) == 5
    assert lines[0] == "| 90 % | IMP | 89.00 ± 0.00 | 5 of 5 | best IMP | 104 s | baseline | baseline | 0.16× |"
    assert lines[2].split(" | ")[5:] == ["never", "(5.62×)", "(3.48×)", "– |"]
    assert lines[3].split(" | ")[5:] == ["10.6 s", "9.86×", "4.53×", "1.56× |"]
    assert text.startswith("- At 90 % sparsity BiP (one pass) matches") and "NVIDIA H200" in text
    assert speedup_markdown([], suite(FULL)) == "No rows have been recorded yet, so nothing is claimed.\n"
    assert speedup_markdown([failed("imp")], suite(FULL)).startswith("No run has finished, so nothing is claimed.")


@pytest.mark.parametrize("width", [60, 200])
def test_terminal_tables(width: int) -> None:
    text = printed([*campaign(FULL), failed("gmp", error="loss [red] nan")], suite((*FULL, "gmp")), width)
    assert "9.86×" in text
    if width == 200:
        assert (
            "loss [red] nan" in text and "non-inferior" in text and "5 of 30 runs have not finished: 5 of GMP." in text
        )
        assert "13.0× 0.50× 0.91× 0.95×" in text and "seed 0 failed" in text


def test_json_is_plain_and_complete() -> None:
    found = json.loads(json.dumps(speedup_json([*campaign(FULL), failed("omp")], suite(FULL)), allow_nan=False))
    (level,) = found["levels"]
    assert level["reference"]["method"] == "imp" and "BiP (one pass) matches" in level["headline"]
    match = next(v for v in level["verdicts"] if v["match"]["method"] == "bip-1pass")
    assert match["seconds"]["baseline"]["checkpoint"]["seconds"]["value"] == pytest.approx(104.5 / 10.6)
    assert match["seconds"]["budgeted"]["checkpoint"]["seconds"]["value"] == pytest.approx(16.5 / 10.6)
    assert (found["wanted"], len(found["runs"]), found["suite"]["recipe"]["network"]) == (25, 25, "resnet20")
    assert found["failures"][0]["error"] == "loss is not finite" and found["gaps"] and found["cautions"]
    assert found["published"]["curves"]["bip"][0] == [0.2, 0.9236]


def test_broken_row_is_refused() -> None:
    broken = row("imp", 0.9)
    del broken["cost"]
    with pytest.raises(ValueError, match="expected key 'cost', got none"):
        speedup_json([broken], suite(FULL))


def test_published_curves() -> None:
    """Table 1 of the paper states some of the values that its figure shows."""
    curves = {n: published(replace(RECIPE, network=n)) for n in ("resnet18", "resnet20", "vgg16mlp")}
    stated = {
        ("resnet18", "imp", 0.866): 0.9477,
        ("resnet18", "bip", 0.893): 0.9479,
        ("resnet18", "omp", 0.488): 0.9480,
        ("resnet20", "imp", 0.738): 0.9215,
        ("resnet20", "bip", 0.672): 0.9214,
        ("vgg16mlp", "imp", 0.893): 0.9368,
        ("vgg16mlp", "omp", 0.20): 0.9379,
    }
    for (network, method, sparsity), accuracy in stated.items():
        found = curves[network]
        assert found is not None and {"bip", "imp", "omp", "hydra-global", "grasp"} <= set(found.curves)
        assert dict(found.curves[method])[sparsity] == pytest.approx(accuracy, abs=6e-4)
    assert published(replace(RECIPE, data="folder/CIFAR-10")) is not None
    for change in ({"data": "digits"}, {"limit": 100}, {"structure": "filter"}, {"network": "resnet34"}):
        assert published(replace(RECIPE, **change)) is None
    assert schedule().dense_epochs == 200 and compressed(RECIPE)
    assert not compressed(replace(RECIPE, dense_epochs=200, epochs=160))
    assert compressed(replace(RECIPE, dense_epochs=200, epochs=100))
    assert compressed(replace(RECIPE, dense_epochs=199, epochs=160))


def test_a_collapsed_method_leaves_the_frame_and_is_named() -> None:
    found = FULL | {"gmp": 0.888, "spode": 0.886, "imp-lth": 0.889, "dense": 0.9}
    rows = campaign({m: a for m, a in found.items() if m != "dense"} | {"omp": 0.1})
    report = summarise_suite(rows, suite(found))
    assert collapsed(report) == ("OMP",)
    ticks = [float(tick) for tick in re.findall(r">(\d\d(?:\.\d)?)</text>", accuracy_figure(report, "a"))]
    assert 20.0 not in ticks and 88.0 in ticks
    assert collapsed(summarise_suite(campaign(FULL), suite(FULL))) == ()


def test_marks_of_a_sweep_are_filled_where_they_match() -> None:
    found = {"imp": 0.89, "bip@0.5": 0.80, "bip": 0.89, "bip@2": 0.89}
    report = summarise_suite(campaign(found), suite(found))
    figure = match_figure(report, report.levels[0], "m")
    assert len(re.findall(r"<use [^>]*fill: var\(--paper\)", figure)) == 1


def test_wording() -> None:
    assert [name_of(m) for m in ("bip-1pass@0.5", "imp", "gmp@2", "mine")] == [
        "BiP (one pass), 0.5× budget",
        "IMP",
        "GMP, 2× budget",
        "mine",
    ]
    assert [plain(amount(x, "B")) for x in (None, 12.0, 3.2e9, 0.0)] == ["–", "12.0 B", "3.20 GB", "0.00 B"]
    assert [factor(x) for x in (0.123, 9.999, 12.34, 1.5e12)] == ["0.12", "10.00", "12.3", "1.50e+12"]
    assert (bracket(None), bracket(Interval(2.0, 2.0)), bracket(Interval(2.9, 13.04))) == ("", "", " [2.90, 13.0]")
    assert [listed(x) for x in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["–", "a", "a and b", "a, b and c"]
    assert setting(replace(RECIPE, network="vgg16mlp", data="x/y")) == "x/y, VGG-16mlp"
    assert hardware([]) == "unknown hardware" and hardware([{}, {}]) == "unknown hardware"


def test_imp_alone_is_compared_with_nothing() -> None:
    asked = suite(("imp", "imp-budget"))
    _, text = said(campaign({"imp": 0.9, "imp-budget": 0.89}), asked)
    expected = "only variants of IMP were asked for, the most accurate of which is IMP: nothing is compared."
    assert text == f"At 90 % sparsity {expected}"


def test_lists_of_names_with_commas_can_be_told_apart() -> None:
    assert listed(["IMP", "GMP", "BiP"]) == "IMP, GMP and BiP" and listed(["IMP"]) == "IMP"
    assert listed(["IMP, 0.5× budget", "GMP", "BiP"]) == "IMP, 0.5× budget; GMP; and BiP"


def test_marks_alone_tell_methods_apart() -> None:
    """At a single sparsity there are no lines; ink and faint are the baseline's and dense training's."""
    looks = styles(summarise_suite([], suite(tuple(METHODS)))).items()
    marks = [(style.colour, style.marker) for own, style in looks]
    assert len(marks) == len(METHODS) == len(set(marks))


def test_the_page_says_what_the_end_to_end_clock_counts(tmp_path: Path) -> None:
    """Random masks do not start from the dense network, so that its cost is not theirs."""
    found = {"imp": 0.89, "random-erk": 0.89}
    report = summarise_suite(campaign(found), suite(tuple(found)))
    costs = {entry.own: entry for entry in report.levels[0].entries}
    dense = {own: e.end_to_end.seconds.mean - e.checkpoint.seconds.mean for own, e in costs.items()}  # pyright: ignore
    assert dense == {"imp": pytest.approx(16.0), "random-erk": 0.0}
    text = " ".join(page(tmp_path, campaign(found), suite(tuple(found))).split())
    assert "its cost is added to every method that starts from it" in text and "could do without" not in text


def test_seconds_outside_of_the_clocks_are_told() -> None:
    rows = campaign({"imp": 0.89, "bip": 0.89})
    report = summarise_suite(rows, suite(("imp", "bip")))
    assert not any("Outside of the clocks" in text for text in cautions(report))
    assert all(entry.outside == {} for entry in report.levels[0].entries)
    for r in rows:
        captures = 13.0 if r["method"] == "imp" else 1.0
        r["cost"] |= {"warm_up_seconds": 0.5, "capture_seconds": captures, "evaluation_seconds": 0.0}
    report = summarise_suite(rows, suite(("imp", "bip")))
    (text,) = (plain(text) for text in cautions(report) if "Outside of the clocks" in text)
    assert "over all 10 runs: warm-up 5.00 s and capture of graphs 70.0 s" in text
    means = {entry.method: entry.outside["capture_seconds"] for entry in report.levels[0].entries}
    assert means == {"imp": 13.0, "bip": 1.0}
    found = speedup_json(rows, suite(("imp", "bip")))
    assert found["levels"][0]["entries"][0]["outside"]["warm_up_seconds"] == 0.5
