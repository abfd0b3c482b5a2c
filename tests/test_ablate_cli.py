# SPDX-License-Identifier: Apache-2.0
"""``sparsekit ablate``: table, sentences, JSON, exit codes, and where the rows go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sparsekit.benchmarks.ablation_variants import VARIANTS
from sparsekit.cli import app

pytest.importorskip("sklearn")
TINY = ["--network", "mlp", "--limit", "32", "--dense-epochs", "1", "--epochs", "1", "--batch-size", "16"]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("run") / "omp"
    assert run("prune", *TINY, "--method", "omp", "--sparsity", "0.8", "--out", str(place)).exit_code == 0
    return place


def test_table_sentences_and_files_beside_the_folder(folder: Path) -> None:
    names = sorted(path.name for path in folder.rglob("*"))
    result = run("ablate", str(folder), "--seeds", "2")
    assert result.exit_code == 0, result.output
    for name in ("control", "shuffled", "random", "random-erk", "inverted", "reinit"):
        assert f"\n {name} " in result.stdout and f"done    {name:<14} seed 1" in result.stderr
    assert "OMP at 80\N{NO-BREAK SPACE}% sparsity, seed 0: mlp on digits" in result.stdout
    assert "the choice of weights matters beyond the densities of layers: not shown" in result.stdout
    assert max(map(len, result.stdout.split("the choice")[0].splitlines())) <= 80
    assert sorted(path.name for path in folder.rglob("*")) == names
    beside = folder.with_name("omp-ablate")
    assert {path.name for path in beside.iterdir()} >= {"rows.jsonl", "report.html"}
    again = run("ablate", str(folder), "--seeds", "2", "--json")
    assert again.exit_code == 0 and again.stderr.count("have ") == 12
    values = json.loads(again.stdout)
    assert (values["schema"], values["kind"], len(values["rows"])) == (1, "ablation", 12)
    assert [answer["verdict"] for answer in values["answers"]] == ["not shown"] * 3


def test_failures_end_with_1(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(ticket: Any, seed: int) -> Any:
        raise ValueError("no luck")

    monkeypatch.setitem(VARIANTS, "shuffled", type(VARIANTS["control"])("a test", fail))
    options = ("--seeds", "1", "--variants", "shuffled", "--out", str(tmp_path))
    result = run("ablate", str(folder), *options)
    assert result.exit_code == 1 and "failed  shuffled       seed 0  no luck" in result.stderr
    assert "0, 1 failed" in result.stdout and (tmp_path / "report.html").is_file()


@pytest.mark.parametrize(
    "options, text",
    [
        (["--variants", "x"], "ablate: variants: expected some of control,"),
        (["--seeds", "0"], "ablate: seeds: expected an int >= 1, got 0"),
        (["--checkpoint-every", "-1"], "--checkpoint-every: expected seconds >= 0, got -1"),
        (["--threads", "0"], "--threads: expected an int >= 1, got 0"),
    ],
)
def test_bad_options_end_with_2(folder: Path, tmp_path: Path, options: list[str], text: str) -> None:
    result = run("ablate", str(folder), "--out", str(tmp_path), *options)
    assert result.exit_code == 2 and text in result.stderr and not (tmp_path / "rows.jsonl").exists()


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    result = run("ablate", str(tmp_path))
    assert result.exit_code == 2 and "ablate: folder: expected a folder of prune, with run.json" in result.stderr
    assert list(tmp_path.parent.glob(f"{tmp_path.name}-ablate")) == []
