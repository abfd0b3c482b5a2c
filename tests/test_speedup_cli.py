# SPDX-License-Identifier: Apache-2.0
"""``sparsekit speedup``: options, going on, time budgets, reports, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sklearn")

from typer.testing import CliRunner  # noqa: E402

from sparsekit.benchmarks import readme  # noqa: E402
from sparsekit.benchmarks.recipe import RunConfig, from_json, split_name  # noqa: E402
from sparsekit.benchmarks.rows import append_row, read_rows  # noqa: E402
from sparsekit.benchmarks.speedup_suites import LADDER, RUNGS, SUITES, budgets, chosen_suite  # noqa: E402
from sparsekit.cli import app  # noqa: E402

SMALL = ["--suite", "smoke", "--network", "mlp", "--limit", "200", "--epochs", "1", "--dense-epochs", "1"]
SMALL += ["--batch-size", "50", "--methods", "imp,omp,omp@2", "--sparsity", "0.488,0.738", "--seeds", "1"]
pytestmark = pytest.mark.filterwarnings("ignore::sparsekit.CollapseWarning")


def run(*options: str) -> Any:
    return CliRunner().invoke(app, ["speedup", *options])


def test_a_suite_is_run_reported_and_not_run_again(tmp_path: Path) -> None:
    first = run(*SMALL, "--out", str(tmp_path))
    assert first.exit_code == 0, first.output
    rows = read_rows(tmp_path / "rows.jsonl")
    assert sorted((row["method"], row["sparsity"]) for row in rows) == sorted(
        (method, sparsity) for method in ("imp", "omp", "omp@2") for sparsity in LADDER[:2]
    )
    epochs = {(row["method"], row["sparsity"]): row["cost"]["dense_epochs"] for row in rows}
    assert [epochs["imp", x] for x in LADDER[:2]] == [3, 6] and epochs["omp@2", LADDER[0]] == 2
    assert all(row["cost"]["flops"] > 0 and row["cost"]["energy"] is None for row in rows)
    pages = {name: (tmp_path / name).read_text() for name in ("speedup.html", "speedup.md")}
    assert "<html" in pages["speedup.html"] and "48.8" in pages["speedup.md"]
    again = run(*SMALL, "--out", str(tmp_path), "--report-only", "--json")
    assert json.loads(again.stdout)["kind"] == "speedup" and len(read_rows(tmp_path / "rows.jsonl")) == 6
    assert run(*SMALL, "--out", str(tmp_path)).exit_code == 0 and len(read_rows(tmp_path / "rows.jsonl")) == 6


def test_a_time_budget_ends_in_time_and_goes_on(tmp_path: Path) -> None:
    cut = run(*SMALL, "--out", str(tmp_path), "--time-budget", "0.001")
    assert cut.exit_code == 0 and "6 of 6 runs have no result yet" in cut.stderr
    assert run(*SMALL, "--out", str(tmp_path)).exit_code == 0 and len(read_rows(tmp_path / "rows.jsonl")) == 6


def test_a_report_of_nothing_says_so(tmp_path: Path) -> None:
    empty = run(*SMALL, "--out", str(tmp_path), "--report-only")
    assert empty.exit_code == 0 and "6 of 6 runs have no result yet" in empty.stderr


def test_a_dry_run_counts_what_is_left(tmp_path: Path) -> None:
    found = json.loads(run(*SMALL, "--out", str(tmp_path), "--dry-run", "--json").stdout)
    assert {name: m["dense_epochs"] for name, m in found["methods"].items()} == {"imp": 6, "omp": 2, "omp@2": 4}
    assert not (tmp_path / "rows.jsonl").exists()


@pytest.mark.parametrize(
    "options, text",
    [
        (["--suite", "huge"], "speedup: suite: expected one of smoke, quick"),
        (["--methods", "imp,magic"], "method: expected one of"),
        (["--methods", "omp@x"], "method: expected NAME or NAME@FACTOR"),
        (["--methods", "omp@0"], "method: expected NAME or NAME@FACTOR"),
        (["--sparsity", "high"], "speedup: sparsity: expected comma-separated numbers, got 'high'"),
        (["--sparsity", "1.5"], "sparsity: expected"),
        (["--seeds", "0"], "speedup: seeds: expected"),
        (["--seeds", "1000000000"], "speedup: seeds: expected an int <= 10000, got 1000000000"),
        (["--methods", " , "], "speedup: methods: expected comma-separated names, got ' , '"),
        (["--time-budget", "0"], "--time-budget: expected seconds > 0, got 0.0"),
        (["--precision", "fp8"], "Recipe: precision: expected fp32 or bf16, got 'fp8'"),
    ],
)
def test_refusals(options: list[str], text: str, tmp_path: Path) -> None:
    refused = run("--network", "mlp", "--limit", "200", "--out", str(tmp_path), *options)
    assert refused.exit_code == 2 and text in refused.stderr.replace("\n", " "), refused.stderr


def test_missing_data_names_the_command_that_fetches_it(tmp_path: Path) -> None:
    refused = run("--suite", "quick", "--device", "cpu", "--root", str(tmp_path), "--out", str(tmp_path / "out"))
    assert refused.exit_code == 2 and "download=True" in refused.stderr


def test_every_suite_can_be_built() -> None:
    for name, suite in SUITES.items():
        configs = suite.configs()
        assert len(set(configs)) == len(configs) == len({config.id for config in configs}), name
        assert chosen_suite({"suite": name, "device": "cpu"}).recipe.precision == "fp32"
        own = chosen_suite({"suite": name, "device": "cpu", "finetune_lr": 0.01, "lower_lr": None}).recipe
        assert (own.finetune_lr, own.lower_lr) == (0.01, None)
        fast = chosen_suite({"suite": name, "device": "cuda"}).recipe
        assert (fast.precision, fast.channels_last, fast.graphs) == ("bf16", True, True)


def test_budgets_by_name() -> None:
    assert budgets(["a", "b"], [0.5, 1, 2]) == ("a@0.5", "a", "a@2", "b@0.5", "b", "b@2")


def test_one_budget_has_one_name_and_one_sparsity_one_level() -> None:
    given = {"suite": "smoke", "methods": "gmp@1.50,gmp@1,gmp,gmp@1.5,omp@0.750", "sparsity": "0.488,0.4880,0.5,0.5"}
    suite = chosen_suite(given)
    assert suite.methods == ("gmp@1.5", "gmp", "omp@0.75") and suite.sparsities == (LADDER[0], 0.5)
    assert RunConfig("gmp@1.0", 0.5, 0).id == RunConfig("gmp", 0.5, 0).id
    assert RunConfig("gmp@1.500", 0.5, 0).method == "gmp@1.5"


@pytest.mark.parametrize("written, rounds", [("0.488", 3), ("0.986", 19), ("0.998", 28), ("0.999", 31)])
def test_a_rounded_rung_is_the_nearest_one(written: str, rounds: int) -> None:
    assert chosen_suite({"suite": "smoke", "sparsity": written}).sparsities == (RUNGS[rounds - 1],)
    assert RUNGS[rounds - 1] == pytest.approx(1 - 0.8**rounds)


def test_a_sparsity_between_rungs_is_what_it_says() -> None:
    assert chosen_suite({"suite": "smoke", "sparsity": "0.9,0.9451"}).sparsities == (0.9, 0.9451)


@pytest.mark.parametrize("name", ["small", "match"])
def test_sweeps_try_budgets_between_half_and_twice(name: str) -> None:
    tried: dict[str, set[float]] = {}
    for method in SUITES[name].methods:
        own, factor = split_name(method)
        tried.setdefault(own, set()).add(factor)
    for own in ("imp-budget", "gmp", "dpf", "bip", "bip-1pass"):
        assert {0.5, 0.75, 1.0, 1.5, 2.0} <= tried[own], own


def test_committed_rows_keep_their_identity() -> None:
    rows = [row for row in read_rows(readme.RESULTS) if row.get("kind") == "compare"]
    assert len(rows) > 700
    for row in rows:
        config = RunConfig(row["method"], row["sparsity"], row["seed"], from_json(row["config"]))
        assert config.id == row["id"] and config.method == row["method"]


def test_a_budget_between_one_and_two_is_run_and_reported(tmp_path: Path) -> None:
    options = [*SMALL[:-6], "--epochs", "4", "--methods", "imp,gmp@1.5,imp-budget@1.5", "--sparsity", "0.488"]
    assert run(*options, "--seeds", "1", "--out", str(tmp_path)).exit_code == 0
    epochs = {row["method"]: row["cost"]["dense_epochs"] for row in read_rows(tmp_path / "rows.jsonl")}
    assert epochs == {"imp": 12, "gmp@1.5": 6, "imp-budget@1.5": 12}
    assert "GMP, 1.5× budget" in (tmp_path / "speedup.md").read_text()


def test_rows_of_other_making_in_the_folder_are_passed_over(tmp_path: Path) -> None:
    append_row(tmp_path / "rows.jsonl", {"kind": "topk", "result": {"seconds": 1.0}})
    append_row(tmp_path / "rows.jsonl", {"kind": "topk", "error": "no GPU"})
    for extra in ((), ("--report-only",), ("--dry-run",)):
        assert run(*SMALL, "--out", str(tmp_path), *extra).exit_code == 0, extra


def test_a_dry_run_does_not_count_dense_networks_that_exist(tmp_path: Path) -> None:
    assert run(*SMALL, "--out", str(tmp_path)).exit_code == 0
    (tmp_path / "rows.jsonl").unlink()
    found = json.loads(run(*SMALL, "--out", str(tmp_path), "--dry-run", "--json", "--seeds", "2").stdout)
    assert found["seeds"] == 1


def test_seeds_can_begin_where_nobody_has_looked(tmp_path: Path) -> None:
    chosen = chosen_suite({"suite": "smoke", "first_seed": 7, "seeds": 2, "methods": "omp"})
    assert {config.seed for config in chosen.configs()} == {7, 8}
    result = run("--suite", "smoke", "--first-seed", "-1", "--out", str(tmp_path))
    assert result.exit_code and "first_seed: expected an int >= 0, got -1" in result.stderr
