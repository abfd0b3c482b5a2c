# SPDX-License-Identifier: Apache-2.0
"""The first example of the README runs as it stands, and gives what it says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sparsekit as sk
from sparsekit.allocation import kept_count

README = Path(__file__).parents[1] / "README.md"


def first_example() -> str:
    """Code of the first python block of the README, with its line numbers there."""
    text = README.read_text(encoding="utf-8")
    found = re.search(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert found, "the README has no python block"
    return "\n" * text[: found.start(1)].count("\n") + found[1]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    """Names that the example leaves behind, what it prints, and the folder that it ran in."""
    pytest.importorskip("sklearn")
    folder, names, printed = tmp_path_factory.mktemp("quickstart"), {"__name__": "__main__"}, io.StringIO()
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(folder)
        exec(compile(first_example(), str(README), "exec"), names)
    return names, printed.getvalue(), folder


def plain(names: dict[str, Any]) -> nn.Module:
    """A fresh network of the example's architecture."""
    sizes = [(m.in_features, m.out_features) for m in names["model"] if isinstance(m, nn.Linear)]
    layers = [module for size in sizes for module in (nn.Linear(*size), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def test_the_model_is_pruned_exactly_and_plain_again(ran: tuple[dict[str, Any], str, Path]) -> None:
    names, _, _ = ran
    model, pruner = names["model"], names["pruner"]
    assert pruner.done and not any(isinstance(module, sk.MaskedLayer) for module in model.modules())
    weights = [module.weight for module in model if isinstance(module, nn.Linear)]
    total = sum(w.numel() for w in weights)
    assert sum(int((w != 0).sum()) for w in weights) == kept_count(total, pruner.sparsity)
    right = (model(names["x"]).argmax(1) == names["y"]).float().mean()
    assert right > 0.9


def test_it_prints_the_report_and_the_table(ran: tuple[dict[str, Any], str, Path]) -> None:
    _, printed, _ = ran
    assert printed.startswith("masked 3 layers, skipped 0\n")
    assert re.search(r"^total .* 95\.00%$", printed, re.MULTILINE)
    assert re.search(r"^not masked: [\d,]+ parameters", printed, re.MULTILINE)


def test_the_saved_folder_loads(ran: tuple[dict[str, Any], str, Path]) -> None:
    names, _, folder = ran
    saved = [path.parent for path in folder.rglob("model.safetensors")]
    assert len(saved) == 1
    model = sk.load(plain(names), saved[0])
    assert sk.masks(model).count() == kept_count(sk.masks(model).numel, 0.95)
    with torch.no_grad():
        torch.testing.assert_close(model(names["x"]), names["model"](names["x"]))
    assert nn.Module.load_state_dict(plain(names), sk.dense_state_dict(model), strict=True).missing_keys == []
