# SPDX-License-Identifier: Apache-2.0
"""Folders of runs and their comparison, on rows made by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

pytest.importorskip("scipy")

import sparsekit as sk  # noqa: E402
from sparsekit.benchmarks.recipe import RunConfig, recipe_for  # noqa: E402
from sparsekit.benchmarks.rows import append_row  # noqa: E402
from sparsekit.benchmarks.run_folder import RunFile, check_free  # noqa: E402
from sparsekit.benchmarks.runs import diff_runs, read_run, run_problems  # noqa: E402
from sparsekit.benchmarks.statistics import paired_difference  # noqa: E402


def row(method: str = "bip", sparsity: float = 0.9, seed: int = 0, **changes: Any) -> dict[str, Any]:
    result = {"kept": 100, "total": 1000, "sparsity": 0.9, "mask_hash": f"{method}{seed}", "test_accuracy": 0.8}
    cost = {"seconds": 2.0, "dense_epochs": 6.0}
    head = {
        "kind": "compare",
        "id": f"{method}-{sparsity}-{seed}",
        "method": method,
        "sparsity": sparsity,
        "seed": seed,
    }
    return head | {
        "config": {"epochs": changes.pop("epochs", 6)},
        "result": result | {key: value for key, value in changes.items() if key in result},
        "cost": cost | {key: value for key, value in changes.items() if key in cost},
    }


def failed(seed: int = 0, error: str = "no luck") -> dict[str, Any]:
    kept = {key: value for key, value in row(seed=seed).items() if key not in ("result", "cost")}
    return kept | {"error": error}


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    for one in rows:
        append_row(folder / "rows.jsonl", one)
    return folder


def test_the_last_row_counts_and_a_result_outlives_a_failure(tmp_path: Path) -> None:
    rows = [row(test_accuracy=0.7), row(test_accuracy=0.75), failed(), failed(seed=1), {"kind": "topk"}]
    run = read_run(write(tmp_path, *rows))
    assert [one["result"]["test_accuracy"] for one in run.finished] == [0.75]
    assert [one["seed"] for one in run.failed] == [1] and run.checkpoint is None
    assert read_run(tmp_path / "rows.jsonl").rows == run.rows


def test_checkpoint_and_rows_in_one_folder(tmp_path: Path) -> None:
    model = nn.Linear(4, 4)
    sk.sparsify(model)
    sk.save(model, tmp_path)
    run = read_run(tmp_path)
    assert run.checkpoint == tmp_path / "model.safetensors" and run.rows == ()
    assert read_run(write(tmp_path, row())).rows and read_run(tmp_path).checkpoint
    assert read_run(tmp_path / "model.safetensors").checkpoint == tmp_path / "model.safetensors"


def test_the_folder_of_prune_has_its_row_once_it_has_finished(tmp_path: Path) -> None:
    begun = RunFile(RunConfig("bip", 0.9, 0), None, ".data")
    begun.write(tmp_path)
    run = read_run(tmp_path)
    assert run.rows == () and run.unfinished == begun.config
    assert run_problems(run) == [f"bip has not finished: go on with `sparsekit resume {tmp_path}`"]
    replace(begun, row=row()).write(tmp_path)
    assert run_problems(read_run(tmp_path)) == [f"{tmp_path}: the run has finished, but its model.safetensors is gone"]
    (tmp_path / "model.safetensors").touch()
    run = read_run(tmp_path)
    assert run.rows == (row(),) and run.unfinished is None and run_problems(run) == []
    replace(begun, row={"id": "x"}).write(tmp_path)
    with pytest.raises(ValueError, match="run.json: expected rows with method, got one without"):
        read_run(tmp_path)


@pytest.mark.parametrize("name", ["nothing", "empty", "nothing.jsonl", "empty/model.safetensors"])
def test_places_without_a_run(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="read_run: path: expected a folder with model.safetensors or rows"):
        read_run(tmp_path / name)


@pytest.mark.parametrize("lost", ["config", "id", "result.kept", "cost", "cost.seconds"])
def test_rows_that_lack_something(tmp_path: Path, lost: str) -> None:
    broken, (first, _, second) = row(), lost.partition(".")
    part = broken[first] if second else broken
    del part[second or first]
    with pytest.raises(ValueError, match=f"expected rows with {lost}.*, got one without"):
        read_run(write(tmp_path, broken))


def test_problems(tmp_path: Path) -> None:
    rows = [row(), failed(1), row(seed=2, kept=0, sparsity=0.9), row(seed=3) | {"sparsity": 0.5}]
    assert run_problems(read_run(write(tmp_path, *rows))) == [
        "bip at 0.9, seed 1: failed: no luck",
        "bip at 0.9, seed 2: keeps none of 1,000 weights",
        "bip at 0.5, seed 3: 0.9000 of the weights are removed",
    ]


def test_of_structured_runs_the_fraction_of_weights_is_not_held_against_them(tmp_path: Path) -> None:
    one = row(seed=3) | {"sparsity": 0.5}
    one["config"]["structure"] = "filter"
    assert run_problems(read_run(write(tmp_path, one))) == []


def test_the_same_methods_are_paired_over_shared_seeds(tmp_path: Path) -> None:
    old, new = [0.80, 0.81, 0.79, 0.5], [0.82, 0.80, 0.81]
    a = write(tmp_path / "a", *(row(seed=i, test_accuracy=x, seconds=2.0 + i) for i, x in enumerate(old)), row("imp"))
    rows = (row(seed=i, test_accuracy=x, seconds=1.0, dense_epochs=3.0) for i, x in enumerate(new))
    b = write(tmp_path / "b", *rows, row("omp", epochs=9))
    found = diff_runs(read_run(a), read_run(b))
    (pair,) = found.pairs
    assert pair.seeds == (0, 1, 2) and pair.same_masks == 3
    assert pair.difference == paired_difference(new, old[:3]) and pair.difference.mean > 0
    assert pair.ratio == pytest.approx(9 / 3) and pair.ratio_interval is not None
    assert (pair.a.accuracy, pair.b.dense_epochs) == (pytest.approx(0.8), 3.0)
    assert pair.verdict == "inconclusive"  # three pairs are too few for one
    assert (found.only_a, found.only_b) == ((("imp", 0.9),), (("omp", 0.9),))
    assert found.settings == {"epochs": ("6", "6, 9")}


def test_enough_seeds_give_a_verdict(tmp_path: Path) -> None:
    a = write(tmp_path / "a", *(row(seed=i, test_accuracy=0.8 + i / 1000) for i in range(5)))
    b = write(tmp_path / "b", *(row(seed=i, test_accuracy=0.7 + i / 1000) for i in range(5)))
    assert diff_runs(read_run(a), read_run(b)).pairs[0].verdict == "inferior"
    assert diff_runs(read_run(b), read_run(a)).pairs[0].verdict == "non-inferior"


def test_two_runs_of_one_method_each_are_paired_whatever_they_are(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", row("imp", mask_hash="x")), write(tmp_path / "b", row("bip", seconds=0.0))
    (pair,) = diff_runs(read_run(a), read_run(b)).pairs
    assert (pair.a.method, pair.b.method, pair.same_masks) == ("imp", "bip", 0)
    assert pair.difference.interval is None and pair.ratio is None  # one seed; a time of zero


def test_no_shared_seed_is_no_pair(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", row(seed=0)), write(tmp_path / "b", row(seed=1))
    assert diff_runs(read_run(a), read_run(b)).pairs == ()


def test_a_file_in_place_of_the_folder_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="prune: out: expected a folder, got the file"):
        check_free(tmp_path / "file", RunFile(RunConfig("bip", 0.5, 0, recipe_for("digits")), None, ".data", None))


def test_a_finished_run_of_other_options_is_not_overwritten(tmp_path: Path) -> None:
    config = RunConfig("bip", 0.5, 0, recipe_for("digits"))
    run = RunFile(config, None, ".data", None)
    replace(run, row={"id": "x"}).write(tmp_path)
    check_free(tmp_path, run)
    with pytest.raises(ValueError, match="expected a folder without a run of other options, got a finished one"):
        check_free(tmp_path, replace(run, config=replace(config, seed=1)))
