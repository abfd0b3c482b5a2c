# SPDX-License-Identifier: Apache-2.0
"""``sparsekit speedup``: options, going on, time budgets, reports, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sklearn")

from typer.testing import CliRunner  # noqa: E402

from sparsekit.benchmarks.rows import read_rows  # noqa: E402
from sparsekit.benchmarks.speedup_suites import LADDER, SUITES, budgets, chosen_suite  # noqa: E402
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
