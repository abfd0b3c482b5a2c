# SPDX-License-Identifier: Apache-2.0
"""The microbenchmarks on tiny problems: rows as the readers expect them, and no wrong provider is ever timed."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsekit.benchmarks import bench_bilevel, bench_rows, bench_step, bench_structured, timing
from sparsekit.benchmarks.rows import read_rows

NUMBERS = {
    "median_s",
    "low_s",
    "high_s",
    "q20_s",
    "q80_s",
    "eager_s",
    "baseline_median_s",
    "ratio",
    "speedup",
    "speedup_low",
    "speedup_high",
}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Problems that take milliseconds."""

    def build(name: str, *, classes: int, channels: int, image_size: int, seed: int) -> nn.Module:
        assert (name, channels, image_size) == ("resnet20", 3, 32)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(
                nn.AvgPool2d(8), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, classes)
            )

    monkeypatch.setattr(bench_step, "build_network", build)
    monkeypatch.setattr(bench_step, "SETTINGS", {"cpu": (bench_step.Setting("resnet20", batch=4),)})
    networks = {"tiny": ((4, 3, 1, 1), (16, 32), (8, 16, 3, 3)), "resnet50": ((64, 64, 3, 3),)}
    monkeypatch.setattr(bench_structured, "NETWORK_SHAPES", networks)
    monkeypatch.setattr(bench_structured, "NETWORKS", ("tiny",))
    monkeypatch.setattr(bench_bilevel, "NETWORK_SHAPES", networks)
    monkeypatch.setattr(bench_bilevel, "NETWORKS", ("tiny",))
    real = timing._time_all
    monkeypatch.setattr(timing, "_time_all", lambda *a: real(*a[:-2], 0, 0.0))  # no warming up, one call in a block


def check_rows(rows: list[dict[str, Any]], bench: str, problems: set[str], baseline: str, providers: set[str]) -> None:
    assert {row["problem"] for row in rows} == problems
    for row in rows:
        assert json.loads(json.dumps(row, allow_nan=False)) == row
        assert (row["schema"], row["kind"], row["bench"], row["rounds"]) == (1, "bench", bench, 2)
        assert row["baseline"] == baseline and row["provider"] in providers
        assert all(row[name] > 0 for name in NUMBERS) and row["calls"] >= 1
        assert row["low_s"] == row["q20_s"] <= row["median_s"] <= row["q80_s"] == row["high_s"]
        assert row["ratio"] == row["speedup"] and row["environment"]["torch"] == str(torch.__version__)
        if row["provider"] == baseline:
            assert row["ratio"] == 1.0 and row["baseline_median_s"] == row["median_s"]
    for problem in problems:
        assert {row["provider"] for row in rows if row["problem"] == problem} == providers


@pytest.mark.usefixtures("tiny")
def test_rows_of_structured_masks() -> None:
    rows = list(bench_structured.run(2))
    chains = {pattern: {"norm + topk + index_put", "norm + sort + index_put"} for pattern in ("filter", "channel")}
    chains |= {"2:4": {"view + topk + scatter"}, "8:16": {"view + topk + scatter"}}
    chains |= {"2:4-transposable": {"matmul + argmax"}}
    assert {row["problem"] for row in rows} == {f"tiny {pattern}" for pattern in chains}
    for pattern, others in chains.items():
        own = [row for row in rows if row["problem"] == f"tiny {pattern}"]
        baseline = own[0]["provider"]
        check_rows(own, "structured", {f"tiny {pattern}"}, baseline, others | {"sparsekit"})
        assert baseline in others and {row["tensors"] for row in own} == {3 if ":" not in pattern else 2}


@pytest.mark.usefixtures("tiny")
def test_rows_of_ops_on_all_layers() -> None:
    rows = list(bench_bilevel.run(2))
    others = {
        "mask_weights": ("cast", {"cast one by one", "mul + cast"}),
        "bilinear_grads": ("foreach", set()),
        "bilevel_update": ("foreach", {"layer by layer"}),
        "masked_sgd": ("fused SGD + masks", {"fused SGD, dense"}),
        "masked_adamw": ("fused AdamW + masks", {"fused AdamW, dense"}),
    }
    assert set(others) == set(bench_bilevel.CASES)
    for case, (baseline, chains) in others.items():
        own = [row for row in rows if row["problem"] == f"tiny {case}"]
        check_rows(own, "bilevel", {f"tiny {case}"}, baseline, {baseline, "sparsekit", bench_bilevel.FLOOR} | chains)
        assert {(row["n"], row["tensors"]) for row in own} == {(12 + 512 + 1152, 3)}
        assert all(row["floor_ratio"] > 0 for row in own)
    assert {row["problem"] for row in bench_bilevel.run(2, only="*sgd")} == {"tiny masked_sgd"}


@pytest.mark.parametrize("case", bench_bilevel.CASES)
@pytest.mark.usefixtures("tiny")
def test_wrong_ops_on_all_layers_are_refused(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.setattr(timing, "_time_all", lambda *a: pytest.fail("timed"))
    real = bench_bilevel.CASES[case]
    for name in real(bench_bilevel.layers_of(((2, 3),), "cpu")):
        if name == bench_bilevel.FLOOR:
            continue

        def wrong(x: Any, name: str = name) -> dict[str, Any]:
            functions = real(x)
            function = functions[name]
            return functions | {name: lambda: [t + 1e-2 for t in function()]}

        monkeypatch.setitem(bench_bilevel.CASES, case, wrong)
        with pytest.raises(ValueError, match=f"bench_bilevel: {re.escape(name)}: expected what the oracle of {case}"):
            list(bench_bilevel.run(2, only=f"tiny {case}"))


@pytest.mark.usefixtures("tiny")
def test_rows_of_training_steps() -> None:
    rows = list(bench_step.run(2))
    steps, iterations = [r for r in rows if r["bench"] == "step"], [r for r in rows if r["bench"] == "bip iteration"]
    assert len(rows) == len(steps) + len(iterations)
    problem = {"resnet20 b4 0.9"}
    names = {"dense step", "masked step", "masked step, prepared_weights", "torch.nn.utils.prune step"}
    check_rows(steps, "step", problem, "dense step", names)
    check_rows(iterations, "bip iteration", problem, "masked step", {"masked step", "dense step", "BiP iteration"})


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (bench_step, bench_structured):
        monkeypatch.setattr(module, "bench_rows", lambda *a, **k: pytest.fail("made a row"))
    monkeypatch.setattr(timing, "_time_all", lambda *a: pytest.fail("timed"))


def spoiled(masks: list[Tensor], other: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """The masks with the words of the last one in another order."""
    return [*masks[:-1], other(masks[-1])]


@pytest.mark.parametrize("pattern", ["filter", "channel", "2:4", "8:16", "2:4-transposable"])
@pytest.mark.usefixtures("tiny", "untimed")
def test_structured_masks_of_wrong_units_are_refused(monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    real = bench_structured.providers
    monkeypatch.setattr(bench_structured, "PATTERNS", (pattern,))
    # As many weights, but others: rows change places, or units do.
    for other in (lambda w: w.roll(4, 0), lambda w: w.roll(1, 0), torch.bitwise_not):
        for name in real([torch.ones(8, 16)], pattern):

            def wrong(scores: list[Tensor], p: str, name: str = name, other: Callable = other) -> dict[str, Any]:
                functions = real(scores, p)
                function = functions[name]
                return functions | {name: lambda: spoiled(function(), other)}

            if pattern == "channel" and other is not torch.bitwise_not:
                continue  # all rows of its masks are the same
            monkeypatch.setattr(bench_structured, "providers", wrong)
            with pytest.raises(ValueError, match=f"bench_structured: {re.escape(name)}: expected the {pattern} masks"):
                list(bench_structured.run(2))


@pytest.mark.usefixtures("tiny", "untimed")
def test_steps_of_different_networks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def unmasked(model: nn.Module) -> dict[str, Tensor]:
        return {name: value for name, value in model.state_dict().items() if not name.endswith("mask_words")}

    monkeypatch.setattr(bench_step, "dense_state_dict", unmasked)
    with pytest.raises(ValueError, match="bench_step: masked: expected loss"):
        list(bench_step.run(2))


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])


def count_up(repeats: int, device: str, **options: Any) -> Iterator[dict[str, Any]]:
    """A benchmark whose row says how it was called."""
    timings = timing.compare_times({"nothing": lambda: None}, repeats=repeats, min_block_s=0, device=device)
    yield from bench_rows.bench_rows("counting", "none", timings, options=options)


def test_the_command_line_appends_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "rows.jsonl"
    for _ in range(2):
        command(monkeypatch, "--repeats", "2", "--out", str(out))
        bench_rows.main("Counting", count_up)
    rows, printed = read_rows(out), capsys.readouterr().out.splitlines()
    assert len(rows) == 2 == len(printed) and {row["rounds"] for row in rows} == {2}
    assert printed[0].split()[:2] == ["counting", "none"] and printed[0].endswith("x nothing")


def test_options_of_a_benchmark_reach_it_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "rows.jsonl"
    command(monkeypatch, "--out", str(out), "--only", "x")

    def add(parser: argparse.ArgumentParser) -> None:
        parser.set_defaults(repeats=3)
        parser.add_argument("--only")

    bench_rows.main("Counting", count_up, add)
    (row,) = read_rows(out)
    assert row["options"] == {"only": "x"} and row["rounds"] == 3


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--repeats", "0"], "--repeats: expected an int >= 1, got 0"),
        (["--repeats", "many"], "argument --repeats: invalid int value"),
        (["--device", "tpu"], "argument --device: invalid choice"),
        (["--device", "cuda"], "--device: expected a CUDA device, got none"),
        (["--out", "/dev/null/rows.jsonl"], "--out: expected a file in a folder that can be written to, got"),
    ],
)
def test_bad_options(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    command(monkeypatch, "--out", str(tmp_path / "rows.jsonl"), *arguments)
    with pytest.raises(SystemExit) as caught:
        bench_rows.main("Counting", count_up)
    assert caught.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "rows.jsonl").exists()
