# SPDX-License-Identifier: Apache-2.0
"""The benchmark of masked linear layers: every provider computes what it says, and wrong ones are never timed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from sparsekit.benchmarks import bench_masked_linear as bench
from sparsekit.benchmarks import timing
from sparsekit.benchmarks.problems import LinearProblem
from sparsekit.benchmarks.rows import read_rows
from sparsekit.cli import app

FORWARD = {bench.BOOL, bench.FLOAT, bench.DENSE, bench.PRUNE, bench.OURS}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = LinearProblem(3, 40, 50)
    found = [bench.Case(problem, dtype, train) for dtype in (torch.float32, torch.bfloat16) for train in (False, True)]
    monkeypatch.setattr(bench, "cases", lambda device: found)
    monkeypatch.setattr(bench, "CACHES", {"cpu": 3 * 40 * 50 * 4})
    real = timing._time_all
    monkeypatch.setattr(timing, "_time_all", lambda *a: real(*a[:-2], 0, 0.0))


def test_cases_of_both_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    names = {device: [case.name for case in bench.cases(device)] for device in ("cpu", "cuda")}
    assert "8x4096x4096/float32/forward" in names["cpu"] and "1024x8192x8192/bfloat16/step" in names["cuda"]
    assert all(len(set(found)) == len(found) for found in names.values())


def test_rows() -> None:
    rows = list(bench.run(2))
    assert {row["problem"] for row in rows} == {
        f"3x40x50/{dtype}/{kind}" for dtype in ("float32", "bfloat16") for kind in ("forward", "step")
    }
    for problem in {row["problem"] for row in rows}:
        providers = {row["provider"] for row in rows if row["problem"] == problem}
        assert providers == FORWARD | ({bench.CACHED} if problem.endswith("forward") else set())
    assert all(row["bench"] == "masked_linear" and row["baseline"] == bench.BOOL for row in rows)
    assert {(row["tokens"], row["outputs"], row["inputs"]) for row in rows} == {(3, 40, 50)}


@pytest.mark.parametrize("train", [False, True])
def test_weights_rotate_and_gradients_are_those_of_autograd(train: bool) -> None:
    case = bench.Case(LinearProblem(3, 40, 50), torch.float32, train)
    layers = bench.build(case, "cpu")
    assert len(layers.weights) == 3 and len({w.data_ptr() for w in layers.weights}) == 3
    ours = bench.providers(case, layers)[bench.OURS]
    results = [ours() for _ in range(4)]
    first = [torch.as_tensor(r[0] if train else r) for r in results]
    assert torch.equal(first[0], first[3]) and not torch.allclose(first[0], first[1])
    torch.testing.assert_close(first[1], 2 * first[0])
    if train:
        x, w, m = layers.x.detach().requires_grad_(), layers.weights[0].detach().requires_grad_(), layers.masks[0]
        y = x @ torch.where(m, w, 0).t()
        dx, dw = torch.autograd.grad(y.sum(), (x, w))
        torch.testing.assert_close(results[0][1], dx)
        torch.testing.assert_close(results[0][2], dw)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", sorted(FORWARD))
def test_wrong_results_are_never_timed(name: str, train: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = bench.Case(LinearProblem(3, 40, 50), torch.float32, train)
    real = bench.providers

    def wrong(*arguments: Any) -> dict[str, Callable[[], Any]]:
        functions = real(*arguments)
        right = functions[name]

        def off() -> Any:
            found = right()
            return found * 1.001 if isinstance(found, Tensor) else (*found[:-1], found[-1] * 1.001)

        return functions | {name: off}

    monkeypatch.setattr(bench, "providers", wrong)
    monkeypatch.setattr(timing, "_time_all", lambda *a: pytest.fail("timed"))
    with pytest.raises(ValueError, match="expected an error of at most"):
        bench.measure(case, 1, "cpu")


def test_the_commands(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    call = ["bench", "linear", "--repeats", "1", "--out", str(out), "--only", "*/float32/*"]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.output
    assert "3x40x50/float32/step" in result.stdout and "sparsekit" in result.stdout
    assert len(list(read_rows(out))) == len(FORWARD) * 2 + 1
    assert CliRunner().invoke(app, [*call[:-1], "nothing"]).exit_code == 2
    assert CliRunner().invoke(app, ["bench", "structured", "--repeats", "0"]).exit_code == 2
