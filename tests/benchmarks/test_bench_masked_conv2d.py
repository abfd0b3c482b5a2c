# SPDX-License-Identifier: Apache-2.0
"""The benchmark of masked convolutions: every provider computes what it says, and wrong ones are never timed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from sparsekit.benchmarks import bench_masked_conv2d as bench
from sparsekit.benchmarks import timing
from sparsekit.benchmarks.problems import ConvProblem, resnet18_convs, resnet50_convs
from sparsekit.benchmarks.rows import read_rows
from sparsekit.cli import app
from sparsekit.nn import compacted

ALWAYS = {bench.BOOL, bench.FLOAT, bench.DENSE, bench.PRUNE, bench.OURS}
FP32, BF16 = torch.float32, torch.bfloat16


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = ConvProblem(8, 9, 7, stride=2), ConvProblem(6, 8, 5, kernel=1)
    found = [
        bench.Case(p, 2, 0.5, filters, dtype, train)
        for p, dtype in zip(problems, (FP32, BF16), strict=True)
        for filters in (False, True)
        for train in (False, True)
    ]
    monkeypatch.setattr(bench, "cases", lambda device: found)
    monkeypatch.setitem(compacted.LEAST_PRODUCTS, "cpu", 1)
    real = timing._time_all
    monkeypatch.setattr(timing, "_time_all", lambda *a: real(*a[:-2], 0, 0.0))


def test_cases_of_both_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    found = {device: bench.cases(device) for device in ("cpu", "cuda")}
    names = {device: [case.name for case in cases] for device, cases in found.items()}
    assert "8x256x14-256k3s1/0.9 weights/float32/forward" in names["cpu"]
    assert "128x512x7-512k3s1/0.75 filters/bfloat16/step" in names["cuda"]
    # Every different convolution of both networks, each at every batch.
    assert {case.problem for case in found["cuda"]} == {*resnet18_convs(), *resnet50_convs()}
    assert all(len(set(given)) == len(given) for given in names.values())


def test_rows() -> None:
    rows = list(bench.run(2))
    assert len({row["problem"] for row in rows}) == 8
    for problem in {row["problem"] for row in rows}:
        found = {row["provider"] for row in rows if row["problem"] == problem}
        wanted = ALWAYS | ({bench.CACHED} if problem.endswith("forward") else set())
        assert found == wanted | ({bench.COMPACT} if "filters" in problem else set())
    assert all(row["bench"] == "masked_conv2d" and row["baseline"] == bench.BOOL for row in rows)


@pytest.mark.parametrize("train", [False, True])
def test_a_wrong_provider_is_never_timed(train: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = bench.Case(ConvProblem(8, 9, 7), 2, 0.5, True, FP32, train)
    layer = bench.build(case, "cpu")
    check, functions = bench.make_check(case, layer), bench.providers(case, layer)
    expected = functions[bench.BOOL]()
    for name, function in functions.items():
        check(name, function(), expected)
    wrong = functions[bench.DENSE]()
    with pytest.raises(ValueError, match="bench_masked_conv2d: .*: sparsekit: expected an error of at most"):
        check(bench.OURS, wrong, expected)


def test_command(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    result = CliRunner().invoke(app, ["bench", "conv", "--repeats", "2", "--only", "*weights*", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert len(read_rows(out)) == 4 * 5 + 2 and "sparsekit" in result.output
    assert CliRunner().invoke(app, ["bench", "conv", "--only", "nothing", "--out", str(out)]).exit_code == 2
