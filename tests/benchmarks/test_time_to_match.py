# SPDX-License-Identifier: Apache-2.0
"""Reference, verdicts, time to match and savings against numbers by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
from speedup_rows import DENSE_SECONDS, GPU, RECIPE, WOBBLE, campaign, failed, row, suite

from sparsekit.benchmarks.recipe import as_json
from sparsekit.benchmarks.reporting.levels import Level, Report, Verdicts, summarise_suite

OTHER = GPU | {"gpu": {"name": "another"}}


def level_of(rows: list[dict[str, Any]], *methods: str, seeds: int = 5, **changes: Any) -> Level:
    return report_of(rows, *methods, seeds=seeds, **changes).levels[0]


def report_of(rows: list[dict[str, Any]], *methods: str, seeds: int = 5, **changes: Any) -> Report:
    return summarise_suite(rows, suite(methods, seeds=seeds, **changes))


def verdicts(level: Level, method: str) -> Verdicts:
    return next(v for v in level.verdicts if v.match.method == method)


def without(rows: list[dict[str, Any]], method: str, *seeds: int) -> list[dict[str, Any]]:
    return [r for r in rows if not (r["method"] == method and r["seed"] in seeds)]


def test_reference_is_the_most_accurate_imp_on_at_least_the_full_budget() -> None:
    found = {"imp": 0.89, "imp-budget@0.5": 0.95, "imp-budget": 0.90, "imp-budget@2": 0.91, "bip": 0.99}
    level = level_of(campaign(found), *found)
    assert level.reference is not None and level.reference.method == "imp-budget@2"
    assert [name for name, _ in level.reference.candidates] == ["imp", "imp-budget", "imp-budget@2"]
    assert dict(level.reference.candidates)["imp-budget"] == pytest.approx(0.90)
    assert (level.reference.seeds, level.reference.left_out) == ((0, 1, 2, 3, 4), ())


def test_first_of_equal_candidates_is_the_reference() -> None:
    found = {"imp-lth": 0.89, "imp": 0.89, "imp-budget": 0.89}
    level = level_of(campaign(found), *found)
    assert level.reference is not None and level.reference.method == "imp-lth"


def test_candidates_are_compared_over_the_seeds_that_all_have() -> None:
    """imp is better on average over its own seeds, but not over the three that it shares with imp-lth."""
    high = [row("imp", a, seed=s) for s, a in enumerate((0.80, 0.80, 0.80, 0.99, 0.99))]
    level = level_of([*high, *(row("imp-lth", 0.81, seed=s) for s in range(3))], "imp", "imp-lth")
    assert level.reference is not None
    assert (level.reference.method, level.reference.seeds) == ("imp-lth", (0, 1, 2))


def test_a_candidate_with_less_than_half_of_the_seeds_is_left_out_and_named() -> None:
    rows = without(campaign({"imp": 0.89, "imp-lth": 0.95}), "imp-lth", 0, 1, 2)
    level = level_of(rows, "imp", "imp-lth")
    assert level.reference is not None
    assert (level.reference.method, level.reference.left_out) == ("imp", ("imp-lth",))
    half = level_of(without(campaign({"imp": 0.89, "imp-lth": 0.95}, 6), "imp-lth", 0, 1, 2), "imp", "imp-lth", seeds=6)
    assert half.reference is not None and half.reference.method == "imp-lth"


def test_no_reference_without_imp_or_without_a_shared_seed() -> None:
    level = level_of(campaign({"bip": 0.89}), "imp", "bip")
    assert level.reference is None and level.entry("bip").judgement is not None
    assert level.entry("bip").judgement.reason == "no reference"  # pyright: ignore
    assert verdicts(level, "bip").match.status == "inconclusive"
    apart = [row("imp", 0.9, seed=0), row("imp-lth", 0.9, seed=1)]
    assert level_of(apart, "imp", "imp-lth").reference is None


def test_verdict_by_hand() -> None:
    """Differences -0.001 + wobble over five seeds: sd 0.00031623, t(0.95, 4) = 2.131847, so the bound is -0.0013015."""
    entry = level_of(campaign({"imp": 0.89, "bip": 0.889}), "imp", "bip").entry("bip")
    assert entry.judgement is not None and entry.judgement.difference is not None
    assert entry.judgement.difference.mean == pytest.approx(-0.001)
    sd = math.sqrt(sum(w * w for w in WOBBLE[:5]) / 4)
    assert sd == pytest.approx(0.000316228, rel=1e-5)
    assert entry.judgement.bound == pytest.approx(-0.001 - 2.131847 * sd / math.sqrt(5), rel=1e-5)
    assert (entry.judgement.verdict, entry.judgement.reason) == ("non-inferior", "")


@pytest.mark.parametrize(
    ("accuracy", "verdict", "reason"),
    [(0.88731, "non-inferior", ""), (0.88725, "inconclusive", "wide interval"), (0.8866, "inferior", "")],
)
def test_verdict_needs_the_bound_above_the_margin(accuracy: float, verdict: str, reason: str) -> None:
    """The bounds lie 0.0003015 to both sides of the difference, the margin at -0.003."""
    judgement = level_of(campaign({"imp": 0.89, "bip": accuracy}), "imp", "bip").entry("bip").judgement
    assert judgement is not None and (judgement.verdict, judgement.reason) == (verdict, reason)


def test_four_seeds_never_suffice() -> None:
    level = level_of(campaign({"imp": 0.5, "bip": 0.9}, seeds=4), "imp", "bip")
    match = verdicts(level, "bip").match
    assert (match.status, match.reasons, match.work) == ("inconclusive", ("few seeds",), None)
    assert verdicts(level, "imp").match.status == "inconclusive"


def test_pairs_are_by_seed() -> None:
    rows = without(without(campaign({"imp": 0.89, "bip": 0.95}, 6), "imp", 0), "bip", 1)
    judgement = level_of(rows, "imp", "bip", seeds=6).entry("bip").judgement
    assert judgement is not None and judgement.difference is not None
    assert (judgement.difference.n, judgement.reason) == (4, "few seeds")
    assert judgement.difference.mean == pytest.approx(0.06 + sum(WOBBLE[2:6]) / 4)


def test_a_method_that_keeps_more_weights_is_not_judged() -> None:
    rows = campaign({"imp": 0.89, "bip": 0.89})
    rows[3]["result"]["kept"] = 1011
    judgement = level_of(rows, "imp", "bip").entry("bip").judgement
    assert judgement is not None and (judgement.verdict, judgement.reason) == ("inconclusive", "other sparsity")
    rows[3]["result"]["kept"] = 1010
    assert verdicts(level_of(rows, "imp", "bip"), "bip").match.status == "matched"
    rows[3]["result"] |= {"kept": 900, "total": 9000}
    assert verdicts(level_of(rows, "imp", "bip"), "bip").match.reasons == ("other sparsity",)


SWEEP = {"imp": 0.89, "bip@0.25": 0.87, "bip@0.5": 0.889, "bip": 0.8895, "bip@2": 0.895}


def test_time_to_match_is_the_least_cost_that_is_non_inferior() -> None:
    level = level_of(campaign(SWEEP), *SWEEP)
    match = verdicts(level, "bip").match
    assert (match.status, match.work, match.seconds) == ("matched", "bip@0.5", "bip@0.5")
    assert match.tried == ("bip@0.25", "bip@0.5", "bip", "bip@2") and match.open == () and match.reasons == ()


def test_the_cheapest_match_counts_whatever_its_budget() -> None:
    """On the full budget bip took fewer seconds than on half of it, though more epochs."""
    rows = campaign(SWEEP)
    for r in rows:
        if r["method"] == "bip":
            r["cost"]["seconds"] = 5.0
    match = verdicts(level_of(rows, *SWEEP), "bip").match
    assert (match.work, match.seconds) == ("bip@0.5", "bip")
    for r in rows:
        if r["method"] == "bip@2":
            r["cost"]["dense_epochs"] = 1.0
    match = verdicts(level_of(rows, *SWEEP), "bip").match
    assert (match.work, match.seconds, match.open) == ("bip@2", "bip", ())


def test_of_equal_costs_the_smaller_budget_is_the_match() -> None:
    rows = campaign(SWEEP)
    for r in rows:
        if r["method"].startswith("bip"):
            r["cost"] |= {"seconds": 5.0, "dense_epochs": 3.0}
    match = verdicts(level_of(rows, *reversed(SWEEP)), "bip").match
    assert (match.work, match.seconds) == ("bip@0.5", "bip@0.5")


def test_cheaper_budgets_that_are_undecided_are_named() -> None:
    found = SWEEP | {"bip@0.25": 0.8871, "bip@0.5": 0.8871}
    match = verdicts(level_of(campaign(found), *found), "bip").match
    assert (match.work, match.open) == ("bip", ("bip@0.25", "bip@0.5"))


def test_never_only_if_every_budget_is_inferior() -> None:
    found = {"imp": 0.89, "bip": 0.8, "bip@2": 0.81}
    rows = campaign(found)
    assert verdicts(level_of(rows, *found), "bip").match.status == "never"
    missing = verdicts(level_of(rows, *found, "bip@4"), "bip").match
    assert (missing.status, missing.reasons, missing.tried) == ("inconclusive", ("no runs",), ("bip", "bip@2"))
    few = verdicts(level_of(without(rows, "bip@2", 0), *found), "bip").match
    assert (few.status, few.reasons) == ("inconclusive", ("few seeds",))


def test_savings_by_hand() -> None:
    """imp: 104 + 0.5 s; bip at half the budget: 4 x 2 x 1.1 + 1 = 9.8 s, 8 dense-equivalent epochs; 16 s before both."""
    gain = verdicts(level_of(campaign(SWEEP), *SWEEP), "bip").work
    assert gain is not None and gain.baseline is not None and gain.method == "bip@0.5"
    given, end = gain.baseline.checkpoint, gain.baseline.pretraining
    assert given.seconds and given.work and end.seconds and end.work
    assert given.seconds.value == pytest.approx(104.5 / 9.8)
    assert end.seconds.value == pytest.approx((104.5 + DENSE_SECONDS) / (9.8 + DENSE_SECONDS))
    assert (given.work.value, end.work.value) == (pytest.approx(104 / 8), pytest.approx(120 / 24))
    assert given.seconds.interval is not None and given.seconds.interval.low == pytest.approx(104.5 / 9.8)
    factors = gain.baseline.factors
    assert factors is not None and factors.product == pytest.approx(104.5 / 9.8)
    assert (factors.epochs, factors.passes_per_step) == (pytest.approx(104 / 4), pytest.approx(0.5))
    assert factors.time_per_pass == pytest.approx(1 / 1.1)
    assert gain.budgeted is None


def test_pretraining_is_charged_to_what_needs_it() -> None:
    """Random masks are trained from the initial weights: 8.1 s in all, against 104.5 + 16 s."""
    found = {"imp": 0.89, "random-erk": 0.89}
    gain = verdicts(level_of(campaign(found), *found), "random-erk").seconds
    assert gain is not None and gain.baseline is not None
    end, given = gain.baseline.pretraining, gain.baseline.checkpoint
    assert end.seconds and end.work and given.seconds
    assert end.seconds.value == pytest.approx((104.5 + DENSE_SECONDS) / 8.1)
    assert end.work.value == pytest.approx((104 + RECIPE.dense_epochs) / 8)
    assert given.seconds.value == pytest.approx(104.5 / 8.1)


def test_budgeted_imp_is_compared_at_its_own_time_to_match() -> None:
    """imp-budget at half its budget takes 8.5 s, on the full one 16.5 s, where alone it matches; bip takes 18.6 s."""
    found = {"imp": 0.89, "imp-budget@0.5": 0.88, "imp-budget": 0.889, "bip": 0.889}
    level = level_of(campaign(found), *found)
    bip, budgeted = verdicts(level, "bip").seconds, verdicts(level, "imp-budget").seconds
    assert bip and budgeted and bip.budgeted and bip.budgeted.checkpoint.seconds
    assert bip.budgeted.against == "imp-budget" and budgeted.budgeted is None
    assert bip.budgeted.checkpoint.seconds.value == pytest.approx(16.5 / 18.6)
    worse = found | {"imp-budget": 0.88}
    gain = verdicts(level_of(campaign(worse), *worse), "bip").seconds
    assert gain is not None and gain.budgeted is None and gain.baseline is not None


def test_seconds_are_compared_within_one_machine_only() -> None:
    """Seeds 0 and 1 of imp ran elsewhere: three timed pairs, five pairs of epochs, and means over the machine with most."""
    rows = campaign({"imp": 0.89, "bip": 0.89})
    for r in rows:
        if r["method"] == "imp" and r["seed"] < 2:
            r["environment"], r["cost"]["seconds"], r["dense"]["seconds"] = OTHER, 1.0, 1.0
    rows += [
        r | {"environment": OTHER, "dense": r["dense"] | {"seconds": 1.0}} for r in campaign({"omp": 0.89}, seeds=2)
    ]
    report = report_of(rows, "imp", "bip", "omp")
    saving = report.levels[0].entry("bip").saving
    assert saving is not None and saving.checkpoint.seconds is not None
    assert (saving.seeds, saving.timed) == ((0, 1, 2, 3, 4), (2, 3, 4))
    assert saving.checkpoint.seconds.value == pytest.approx(104.5 / 18.6)
    imp = report.levels[0].entry("imp")
    assert imp.checkpoint.seconds is not None and imp.accuracy is not None
    assert report.dense_seconds == DENSE_SECONDS
    assert (imp.checkpoint.seconds.n, imp.checkpoint.seconds.mean, imp.accuracy.n) == (3, pytest.approx(104.5), 5)
    assert len(report.environments) == 2


def test_a_later_date_is_the_same_machine() -> None:
    rows = campaign({"imp": 0.89, "bip": 0.89})
    rows[0]["environment"] = GPU | {"timestamp": "2027-01-01T00:00:00+00:00"}
    report = report_of(rows, "imp", "bip")
    assert len(report.environments) == 1 and report.levels[0].entry("bip").saving.timed == (0, 1, 2, 3, 4)  # pyright: ignore


def test_without_a_common_machine_there_are_epochs_but_no_seconds() -> None:
    rows = campaign({"imp": 0.89, "bip": 0.89, "omp": 0.89})
    for r in rows:
        r["environment"] = OTHER if r["method"] == "imp" else GPU
    report = report_of(rows, "imp", "bip", "omp")
    gain = verdicts(report.levels[0], "bip").seconds
    assert gain is not None and gain.baseline is not None
    assert gain.baseline.checkpoint.seconds is None and gain.baseline.factors is None
    assert gain.baseline.checkpoint.work is not None and gain.baseline.checkpoint.work.value == pytest.approx(104 / 16)
    imp = verdicts(report.levels[0], "imp")
    assert (imp.match.work, imp.match.seconds, imp.seconds) == ("imp", None, None)


def test_rows_of_other_recipes_and_runs_are_counted_and_left_out() -> None:
    rows = campaign({"imp": 0.89, "bip": 0.889})
    foreign = [
        row("bip", 0.1, config=as_json(RECIPE) | {"lr": 0.5}),
        row("bip", 0.1, config={"unheard": 1}),
        row("bip", 0.1, config=None),
    ]
    outside = [row("omp", 0.1), row("bip", 0.1, seed=5), row("bip", 0.1, sparsity=0.5), row("bip@2", 0.1)]
    repeated = row("bip", 0.889 + WOBBLE[0])
    report = report_of([*foreign, *outside, {"kind": "bench"}, *rows, repeated], "imp", "bip")
    assert (report.other_recipe, report.outside, report.superseded) == (3, 4, 1)
    assert (len(report.runs), report.wanted, report.missing) == (10, 10, ())
    accuracy = report.levels[0].entry("bip").accuracy
    assert accuracy is not None and (accuracy.n, accuracy.mean) == (5, pytest.approx(0.889))


def test_a_setting_at_its_default_may_be_absent_and_what_differs_per_run_is_no_recipe() -> None:
    config = as_json(RECIPE)
    del config["imp_rate"]
    rows = [row("imp", 0.89, config=config), row("bip", 0.89, config=as_json(RECIPE) | {"seed": 0, "method": "bip"})]
    report = report_of([*rows, row("bip", 0.89, config=config)], "imp", "bip", seeds=1)
    assert (report.other_recipe, report.superseded, len(report.runs), report.missing) == (0, 1, 2, ())


def test_missing_and_failed_runs() -> None:
    rows = without(campaign({"imp": 0.89, "bip": 0.89}), "bip", 1, 2)
    report = report_of([*rows, failed("bip", seed=1), failed("bip", seed=0)], "imp", "bip")
    assert report.missing == (("bip", 0.9, 1), ("bip", 0.9, 2))
    assert [(f.seed, f.recovered) for f in report.failures] == [(1, False), (0, True)]


def test_dense_training_is_no_contestant() -> None:
    rows = [*campaign({"imp": 0.89}), *(row("dense@2", 0.95, sparsity=0.0, seed=s) for s in range(5))]
    report = report_of(rows, "imp", "dense@2")
    assert [v.match.method for v in report.levels[0].verdicts] == ["imp"]
    (continued,) = report.continued
    assert continued.accuracy is not None and continued.accuracy.mean == pytest.approx(0.95)
    assert (continued.judgement, continued.factor, report.wanted, report.missing) == (None, 2.0, 10, ())


def test_resources_are_summed_over_what_has_them() -> None:
    rows = campaign({"imp": 0.89}, seeds=2)
    rows[0]["cost"] |= {"flops": 10.0, "peak_memory": 5, "energy": 3.0}
    rows[0]["dense"] |= {"flops": 1.0, "peak_memory": 7, "energy": None}
    rows[1]["cost"] |= {"flops": 20.0, "peak_memory": None}
    entry = report_of(rows, "imp", seeds=2).levels[0].entry("imp")
    assert (entry.checkpoint.flops, entry.checkpoint.peak_memory, entry.checkpoint.energy) == (15.0, 5.0, 3.0)
    assert (entry.end_to_end.flops, entry.end_to_end.peak_memory, entry.end_to_end.energy) == (11.0, 7.0, None)


def test_nothing_at_all() -> None:
    report = report_of([], "imp", "bip")
    assert (report.runs, report.dense, report.machine, len(report.missing)) == ((), None, None, 10)
    assert verdicts(report.levels[0], "bip").match.status == "inconclusive"
