# SPDX-License-Identifier: Apache-2.0
"""``sparsekit bench topk`` on tiny problems: what it writes, what it prints where, and how it fails."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

typer_testing = pytest.importorskip("typer.testing")

import command_line  # noqa: E402
import tiny_topk  # noqa: E402

from sparsekit import cli  # noqa: E402
from sparsekit.benchmarks import bench_bilevel, bench_topk_mask  # noqa: E402
from sparsekit.benchmarks.rows import read_rows  # noqa: E402


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_topk.shrink(monkeypatch)


run = partial(command_line.run, "bench", "topk")


def test_a_table_on_stdout_progress_on_stderr_rows_in_the_file(tmp_path: Path) -> None:
    out = tmp_path / "new" / "rows.jsonl"
    result = run("--repeats", "2", "--out", str(out))
    assert result.exit_code == 0, result.output
    rows = read_rows(out)
    assert list(dict.fromkeys(row["problem"] for row in rows)) == tiny_topk.QUICK_NAMES
    assert {row["rounds"] for row in rows} == {2}
    assert result.stderr.splitlines() == [f"{i}/4 {name}" for i, name in enumerate(tiny_topk.QUICK_NAMES, 1)]
    for problem in tiny_topk.QUICK_NAMES:
        assert result.stdout.count(f" {problem} ") == 1  # a heading, never cut short
    for row in rows:
        assert row["provider"] in result.stdout
    assert "median" in result.stdout and "kthvalue + compare †" in result.stdout
    assert str(out) in result.stdout.replace("\n", "")
    run("--repeats", "2", "--out", str(out))
    assert len(read_rows(out)) == 2 * len(rows)


def test_json_alone_on_stdout(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    result = run("--json", "--only", "small/*", "--repeats", "1", "--out", str(out))
    rows = json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (
        result.exit_code == 0
        and rows == read_rows(out)
        and {row["problem"] for row in rows} == {"small/float32/normal/50%"}
    )


def test_full_has_more(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    only = ["--only", "8/bfloat16/zeros/*", "--repeats", "1", "--out", str(out)]
    assert run(*only).exit_code == 2
    assert run(*only, "--full").exit_code == 0 and len({row["problem"] for row in read_rows(out)}) == 5


def test_the_default_file_is_under_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("--only", "8/*", "--repeats", "1").exit_code == 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["bench.jsonl"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "nothing*"], "bench topk: only: expected a glob that matches a problem of the quick set on cpu"),
        (["--repeats", "0"], "--repeats: expected an int >= 1, got 0"),
        (["--device", "tpu"], "--device: expected cpu or cuda, got 'tpu'"),
        (["--device", "cuda"], "--device: expected a CUDA device, got none; see `sparsekit doctor`"),
        (["--out", "."], "--out: expected a file in a folder that can be written to, got '.'"),
        (["--out", "/dev/null/x/rows.jsonl"], "--out: expected a file in a folder that can be written to, got"),
    ],
)
def test_bad_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(bench_topk_mask, "measure", lambda *a: pytest.fail("measured"))
    result = run("--out", str(tmp_path / "new" / "rows.jsonl"), *options)
    assert result.exit_code == 2 and result.stdout == "" and len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: ") and message in result.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [["--repeats", "many"], ["--nonsense"], ["more"]])
def test_what_cannot_be_parsed(options: list[str]) -> None:
    result = run(*options)
    assert result.exit_code == 2 and result.stdout == ""


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (KeyboardInterrupt(), 130, "interrupted: finished rows are kept"),
        (
            ValueError("bench topk: x: expected the masks of the stable sort, got others"),
            2,
            "error: bench topk: x: expected",
        ),
    ],
)
def test_rows_of_finished_problems_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, text: str
) -> None:
    real, out = bench_topk_mask.measure, tmp_path / "rows.jsonl"

    def measure(problem: Any, repeats: int, device: str) -> list[dict[str, Any]]:
        if problem.subject == "100":
            raise error
        return real(problem, repeats, device)

    monkeypatch.setattr(bench_topk_mask, "measure", measure)
    result = run("--repeats", "1", "--out", str(out))
    assert result.exit_code == code and text in result.stderr and result.stdout == ""
    assert {row["problem"] for row in read_rows(out)} == {tiny_topk.QUICK_NAMES[0]}


def test_help() -> None:
    result = typer_testing.CliRunner().invoke(cli.app, ["bench", "--help"])
    assert result.exit_code == 0 and "topk" in result.stdout
    result = typer_testing.CliRunner().invoke(cli.app, ["--help"])
    assert "bench" in result.stdout


def test_bench_bilevel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_bilevel, "NETWORK_SHAPES", {"resnet18": ((8, 3, 3, 3),), "resnet50": ((5, 7),)})
    out = tmp_path / "rows.jsonl"

    def bilevel(*arguments: str) -> Any:
        options = ["bench", "bilevel", "--repeats", "2", "--out", str(out), *arguments]
        return typer_testing.CliRunner().invoke(cli.app, options)

    result = bilevel("--only", "resnet50 masked_*")
    assert result.exit_code == 0, result.output
    assert {row["problem"] for row in read_rows(out)} == {"resnet50 masked_sgd", "resnet50 masked_adamw"}
    assert "fused AdamW + masks" in result.stdout and str(out) in result.stdout.replace("\n", "")
    assert {row["bench"] for row in json.loads(bilevel("--only", "resnet18 bil*", "--json").stdout)} == {"bilevel"}
    result = bilevel("--only", "nothing")
    assert result.exit_code != 0 and "--only: expected a glob that matches a problem" in result.stderr
