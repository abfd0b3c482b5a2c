# SPDX-License-Identifier: Apache-2.0
"""The suites of pytest-benchmark: every case is a test, and each puts its ratio where the reports find it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparsekit.benchmarks import bench_bilevel, bench_masked_conv2d, bench_masked_linear, suites
from sparsekit.benchmarks.problems import ConvProblem, LinearProblem


def fixture() -> Any:
    """pytest-benchmark's own when it is disabled."""
    return SimpleNamespace(disabled=True, extra_info={}, pedantic=lambda target, **options: target())


def generated(test: Any) -> list[str]:
    found: list[str] = []
    metafunc = SimpleNamespace(function=test, parametrize=lambda name, cases, ids: found.extend(ids))
    suites.pytest_generate_tests(metafunc)
    return found


def test_every_case_is_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert generated(suites.test_masked_linear) == [case.name for case in bench_masked_linear.cases("cpu")]
    assert generated(suites.test_masked_conv2d) == [case.name for case in bench_masked_conv2d.cases("cpu")]
    assert "resnet50 bilevel_update" in generated(suites.test_bilevel)


def test_ratios_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(bench_masked_linear, "CACHES", {"cpu": 8000})
    monkeypatch.setitem(suites.NETWORK_SHAPES, "resnet18", ((3, 4), (5, 2, 3, 3)))
    linear = bench_masked_linear.Case(LinearProblem(3, 40, 50), torch.float32, True)
    conv = bench_masked_conv2d.Case(ConvProblem(8, 9, 7), 2, 0.5, True, torch.float32, True)
    for test, case in (
        (suites.test_masked_linear, linear),
        (suites.test_masked_conv2d, conv),
        *((suites.test_bilevel, ("resnet18", step)) for step in bench_bilevel.CASES),
    ):
        benchmark = fixture()
        test(benchmark, case)
        assert benchmark.extra_info["provider"] == "sparsekit" and benchmark.extra_info["speedup"] > 0
