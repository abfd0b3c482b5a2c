# SPDX-License-Identifier: Apache-2.0
"""The example for Accelerate runs, prunes, and finds its masks again in Accelerate's checkpoint."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import sparsekit as sk

pytest.importorskip("accelerate")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]
EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "train_accelerate.py"


@pytest.fixture
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_accelerate", EXAMPLE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_train_and_resume(example: ModuleType, tmp_path: Path) -> None:
    model = example.train(40, 0.9, tmp_path)
    n = 16 * 64 + 64 * 64 + 64 * 4
    assert sk.masks(model).count() == sk.kept_count(n, 0.9)
    x, y = (torch.cat(parts) for parts in zip(*example.data(64), strict=True))
    accuracy = (model(x).argmax(1) == y).float().mean()
    assert accuracy > 0.6  # chance is 0.25
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(20)) and lines[-1]["metrics"]["target"] == 0.9

    plain = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    again = sk.load(plain, tmp_path / "model")
    assert sk.masks(again) == sk.masks(model) and torch.equal(again(x), model(x))
    resumed = example.train(40, 0.9, tmp_path, resume=True)
    assert sk.masks(resumed) == sk.masks(model)  # the pruner was done, and the masks were in the checkpoint
