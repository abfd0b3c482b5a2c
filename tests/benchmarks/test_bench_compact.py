# SPDX-License-Identifier: Apache-2.0
"""Channel surgery, timed: its rows, their facts and their table."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("torch_pruning")

from sparsekit.benchmarks import bench_compact, timing  # noqa: E402
from sparsekit.benchmarks.bench_compact import Setting, pruned  # noqa: E402
from sparsekit.benchmarks.reporting.compact import compact_table  # noqa: E402
from sparsekit.benchmarks.reporting.markdown import EMPTY  # noqa: E402
from sparsekit.nn import masked_layers, masks  # noqa: E402

TINY = tuple(Setting("resnet8", 4, 0.5, masks, size=16) for masks in bench_compact.MASKS)


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    monkeypatch.setattr(bench_compact, "SETTINGS", TINY)
    return list(bench_compact.run(2))


def test_rows_and_their_facts(rows: list[dict[str, Any]]) -> None:
    assert [(row["problem"], row["provider"]) for row in rows] == [
        (f"resnet8 b4 50% {masks}", provider)
        for masks in ("filter", "coupled")
        for provider in (bench_compact.MASKED, bench_compact.ZEROS, bench_compact.SMALL)
    ]
    filters = 16 + 2 * 16 + 2 * 32 + 2 * 64
    for row in rows:
        assert (row["bench"], row["baseline"], row["asked"]) == ("compact", bench_compact.MASKED, filters // 2)
        assert row["filters"] == filters + 10 and row["difference"] <= 1e-5 and row["median_s"] > 0
    plain, coupled = rows[0], rows[3]
    assert 0 < plain["removed"] < coupled["removed"] == filters // 2
    assert coupled["parameters"][1] < plain["parameters"][1] < plain["parameters"][0] == coupled["parameters"][0]
    assert coupled["flops"][1] < plain["flops"][1] < plain["flops"][0] == coupled["flops"][0]


@pytest.mark.parametrize("setting", TINY, ids=lambda setting: setting.masks)
def test_what_is_pruned(setting: Setting) -> None:
    model, x = pruned(setting)
    assert x.shape == (4, 3, 16, 16) and not model.training
    assert len(masked_layers(model)) == 7  # the classifier is not
    for name, mask in masks(model).items():
        filters = mask.dense().flatten(1)
        assert torch.equal(filters.any(1), filters.all(1)), name
        assert int(filters.any(1).sum()) == len(filters) // 2, name


def test_only_some_and_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_compact, "SETTINGS", TINY)
    assert {row["masks"] for row in bench_compact.run(1, only="*coupled")} == {"coupled"}
    with pytest.raises(ValueError, match="bench_compact: only: expected a glob on 'resnet8 b4 50% filter'"):
        list(bench_compact.run(1, only="no such"))


def test_outputs_that_differ_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_compact, "SETTINGS", TINY[1:])
    monkeypatch.setattr(timing, "_time_all", lambda *a: pytest.fail("timed"))
    real = bench_compact.compact

    def wrong(*arguments: Any, **options: Any) -> Any:
        small, report = real(*arguments, **options)
        with torch.no_grad():
            list(small.parameters())[-1].add_(1e-2)
        return small, report

    monkeypatch.setattr(bench_compact, "compact", wrong)
    with pytest.raises(ValueError, match="bench_compact: compact: expected outputs within 1e-05, got a difference"):
        list(bench_compact.run(1))


def test_what_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_compact, "SETTINGS", TINY[1:])
    seen: dict[str, Any] = {}
    forward, surgery = bench_compact._forward, bench_compact.compact

    def told(model: nn.Module, x: torch.Tensor) -> Any:
        call = forward(model, x)
        return lambda: (model, call())

    def timed(passes: dict[str, Any], **options: Any) -> dict[str, Any]:
        seen.update({name: call() for name, call in passes.items()})
        return {}

    monkeypatch.setattr(bench_compact, "_forward", told)
    monkeypatch.setattr(bench_compact, "compare_times", timed)
    reports: list[Any] = []
    monkeypatch.setattr(bench_compact, "compact", lambda *a: reports.append(surgery(*a)) or reports[0])
    assert list(bench_compact.run(1)) == []
    (_, report), numel = reports[0], lambda model: sum(p.numel() for p in model.parameters())
    models = {name: model for name, (model, _) in seen.items()}
    assert [len(masked_layers(model)) for model in models.values()] == [7, 0, 0]
    assert [numel(model) for model in models.values()] == [report.parameters[0], *report.parameters]
    for model, y in seen.values():
        assert y.shape == (4, 10) and not y.requires_grad and not any(m.training for m in model.modules())
    assert bench_compact.facts(replace(report, difference=0.25))["difference"] == 0.25


def test_how_alike_outputs_have_to_be() -> None:
    large = torch.tensor([100.0, -300.0])
    bench_compact._alike("x", large + 0.002, large)
    bench_compact._alike("x", large * 0 + 5e-6, large * 0)
    for own, expected in (
        (large + 0.01, large),
        (large - 0.01, large),
        (large * 0 + 2e-5, large * 0),
        (large * math.nan, large),
    ):
        with pytest.raises(ValueError, match="bench_compact: x: expected outputs within 1e-05, got a difference of"):
            bench_compact._alike("x", own, expected)


def test_the_table(rows: list[dict[str, Any]]) -> None:
    by_hand = [row | {"median_s": 2e-3, "ratio": 1.0} for row in rows]
    for row in by_hand[2::3]:
        row |= {"median_s": 4e-3, "ratio": 0.5, "flops": [3 * 10**9, 10**6], "parameters": [1234, 567]}
    text = compact_table([*rows, *by_hand]).replace("\N{NO-BREAK SPACE}", " ")
    assert (
        "| resnet8, batch 4 | 50 %, coupled | 120 | 120 | 1,234 → 567 | 3,000 M → 1 M | 2.00 ms | 4.00 ms | 0.50× (slower) |"
        in text
    )
    assert text.count("resnet8") == 2 and "CPU" in text
    assert "| --- | --- | ---: |" in text
    assert compact_table(row | {"bench": "structured"} for row in rows) == EMPTY
    even = compact_table([row | {"ratio": 1.0} for row in rows])
    assert "1.00×" in even and "slower" not in even
    assert compact_table(row for row in rows if row["provider"] != "compact") == EMPTY
