# SPDX-License-Identifier: Apache-2.0
"""The benchmark of a pruner's bookkeeping on a tiny network: rows, and no time for a step that trains otherwise."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from sparsekit.benchmarks import bench_overhead, timing


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(name: str, *, classes: int, channels: int, image_size: int, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(classes))

    def built(*args: Any, **kwargs: Any) -> nn.Module:
        model = build(*args, **kwargs)
        model(torch.zeros(2, 3, 8, 8))
        return model

    monkeypatch.setattr(bench_overhead, "build_network", built)
    monkeypatch.setattr(bench_overhead, "SETTINGS", (bench_overhead.Setting("tiny", 4, size=8),))
    real = timing._time_all
    monkeypatch.setattr(timing, "_time_all", lambda *a: real(*a[:-2], 0, 0.0))


@pytest.mark.usefixtures("tiny")
def test_rows() -> None:
    rows = list(bench_overhead.run(2))
    assert [row["provider"] for row in rows] == [
        "bare step",
        "Pruner.step",
        "Pruner.step, JSONL every 100",
        "bare step + Gradual every 100",
    ]
    for row in rows:
        assert json.loads(json.dumps(row, allow_nan=False)) == row
        assert (row["bench"], row["problem"], row["baseline"]) == ("overhead", "tiny b4", "bare step")
        assert row["overhead"] == pytest.approx(1 / row["ratio"] - 1)
    assert rows[0]["overhead"] == 0.0


@pytest.mark.usefixtures("tiny")
def test_a_step_that_trains_otherwise_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_time_all", lambda *a: pytest.fail("timed"))
    bare = bench_overhead._bare

    def wrong(model: nn.Module, batch: Any) -> Any:
        with torch.no_grad():
            model[0].weight.mul_(1.5)
        return bare(model, batch)

    monkeypatch.setattr(bench_overhead, "_gradual", wrong)
    with pytest.raises(ValueError, match=r"bench_overhead: bare step \+ Gradual every 100: expected losses \["):
        list(bench_overhead.run(1))
