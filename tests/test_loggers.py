# SPDX-License-Identifier: Apache-2.0
"""Loggers: what each writes, the first process alone, and no look at a value that nobody wants."""

from __future__ import annotations

import builtins
import json
import logging
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sparsekit as sk
from sparsekit.loggers import JSONLLogger, Logger, Loggers, StdLogger, TensorBoardLogger, WandbLogger

VALUES = {"loss": torch.tensor(0.5), "flips": torch.tensor(3), "rate": 0.25}
FLOATS = {"loss": 0.5, "flips": 3.0, "rate": 0.25}


class Unread(dict):
    """Metrics that may not be read."""

    def read(self) -> dict[str, float]:
        raise AssertionError("read")


class FakeRun:
    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def log(self, row: dict[str, float]) -> None:
        self.rows.append(row)


def fit(logger: Any, model: nn.Module | None = None) -> sk.Gradual:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    sk.sparsify(model)
    pruner = sk.Gradual(model, 0.5, steps=5)
    pruner.fit([None], logger=logger)
    return pruner


class TestJsonl:
    def test_lines(self, tmp_path: Path) -> None:
        file = tmp_path / "new" / "log.jsonl"
        logger = JSONLLogger(file, every=2)
        for step in range(5):
            logger.log(step, {**VALUES, "bad": torch.tensor(torch.nan), "huge": float("-inf")})
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        assert [line["step"] for line in lines] == [0, 2, 4]
        assert all(line["metrics"] == {**FLOATS, "bad": None, "huge": None} for line in lines)
        assert all(line["v"] == 1 and line["time"] > 1.7e9 for line in lines)
        JSONLLogger(file).log(9, {})
        assert len(file.read_text().splitlines()) == 4  # an earlier file is continued

    def test_a_line_cut_short_spoils_no_other(self, tmp_path: Path) -> None:
        file = tmp_path / "log"
        for cut in ('{"v": 1, "ti', '{"v": 1, "ti\n', ""):
            file.write_text(cut)
            JSONLLogger(file).log(4, VALUES)
            JSONLLogger(file).log(5, VALUES)
            assert [json.loads(line)["step"] for line in file.read_text().splitlines()[-2:]] == [4, 5]
            assert len(file.read_text().splitlines()) == 2 + bool(cut)

    def test_fit(self, tmp_path: Path) -> None:
        fit(JSONLLogger(tmp_path / "log"))
        lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
        assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
        assert lines[-1]["metrics"]["target"] == 0.5 and set(lines[0]["metrics"]) == {"target", "flips", "regrown"}


class TestTensorBoard:
    def test_a_writer(self) -> None:
        written: list[tuple[str, float, int]] = []
        writer = types.SimpleNamespace(add_scalar=lambda *args: written.append(args), close=lambda: written.append(()))
        logger = TensorBoardLogger(writer, every=2)
        logger.log(1, Unread())
        logger.log(2, VALUES)
        logger.close()
        assert written == [(f"sparsekit/{n}", v, 2) for n, v in FLOATS.items()] + [()]

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_event_files(self, tmp_path: Path) -> None:
        pytest.importorskip("tensorboard")
        logger = TensorBoardLogger(tmp_path)
        assert list(tmp_path.iterdir()) == []
        logger.log(3, VALUES)
        logger.close()
        (file,) = tmp_path.iterdir()
        assert b"sparsekit/loss" in file.read_bytes()

    def test_without_the_package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        forbid(monkeypatch, "torch.utils.tensorboard")
        with pytest.raises(ImportError, match="TensorBoardLogger: folder: expected the package tensorboard"):
            TensorBoardLogger(tmp_path).log(0, VALUES)


def forbid(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    original = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == package:
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)


class TestWandb:
    def test_the_current_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fake, run = types.ModuleType("wandb"), FakeRun()
        fake.run = None
        monkeypatch.setitem(sys.modules, "wandb", fake)
        logger = WandbLogger(prefix="p/")
        with pytest.raises(ValueError, match=r"WandbLogger: run: expected a run, got none; call wandb.init first"):
            logger.log(0, VALUES)
        fake.run = run
        logger.log(7, VALUES)
        assert run.rows == [{"p/step": 7, **{f"p/{n}": v for n, v in FLOATS.items()}}]

    def test_a_given_run(self) -> None:
        run = FakeRun()
        fit(WandbLogger(run, every=5))
        assert [row["sparsekit/step"] for row in run.rows] == [5]

    def test_without_the_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        forbid(monkeypatch, "wandb")
        with pytest.raises(ImportError, match="WandbLogger: run: expected the package wandb"):
            WandbLogger().log(0, VALUES)


class TestStdLogging:
    def test_lines(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO, "sparsekit"):
            StdLogger().log(3, VALUES)
        assert caplog.messages == ["step 3  loss 0.5  flips 3  rate 0.25"]

    def test_nothing_is_read_below_the_level(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING, "mine"):
            StdLogger(logging.getLogger("mine")).log(0, Unread())
        assert caplog.messages == []


def test_several(tmp_path: Path) -> None:
    run, file = FakeRun(), tmp_path / "log"
    both = Loggers(WandbLogger(run), JSONLLogger(file))
    fit(both)
    assert len(run.rows) == len(file.read_text().splitlines()) == 5 and isinstance(both, Logger)


@pytest.mark.parametrize(
    "make", [JSONLLogger, TensorBoardLogger, lambda p: WandbLogger(FakeRun()), lambda _: StdLogger()]
)
def test_only_the_first_process_reads(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for rank in (1, 0):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        logger = make(tmp_path / str(rank))
        if rank:
            logger.log(0, Unread())
        else:
            with pytest.raises(AssertionError, match="read"):
                logger.log(0, Unread())
    assert not (tmp_path / "1").exists()


@pytest.mark.parametrize("kind", [JSONLLogger, TensorBoardLogger, WandbLogger, StdLogger])
def test_bad_arguments(kind) -> None:
    for every in (0, True, 1.5):
        with pytest.raises(ValueError, match=f"{kind.__name__}: every: expected an int >= 1, got {every}"):
            kind("x", every=every)


def test_bad_values_and_loggers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"log: metrics\['x'\]: expected one number, got shape \(2,\)"):
        JSONLLogger(tmp_path / "f").log(0, {"x": torch.ones(2)})
    for value in ("text", {"a": 1.0}, None):
        with pytest.raises(TypeError, match=r"log: metrics\['x'\]: expected one number, got"):
            JSONLLogger(tmp_path / "f").log(0, {"x": value})
    assert not (tmp_path / "f").exists()
    for wrong in (print, StdLogger, "log"):
        with pytest.raises(TypeError, match=r"Gradual.fit: logger: expected an object with log\(step, metrics\), got"):
            fit(wrong)
        with pytest.raises(TypeError, match="Loggers: logger: expected an object with log"):
            Loggers(wrong)


def test_a_device_problem_is_raised_where_the_metrics_are_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a NaN"):
        JSONLLogger(tmp_path / "f").log(0, sk.Metrics({}, {"a NaN": torch.tensor(True)}))
