# SPDX-License-Identifier: Apache-2.0
"""The published format is what is on the disk: the reader in the document, and the digests by their definition."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

import sparsekit as sk

DOCUMENT = Path(__file__).parents[1] / "docs" / "checkpoint-format.md"
READER = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)[0]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 5, 3), nn.Linear(37, 37), nn.Linear(37, 37)
        self.two.weight = self.one.weight


def pruned(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    sk.sparsify(model)
    sk.set_masks(model, {n: sk.Mask.from_dense(torch.rand(m.shape) < 0.5) for n, m in sk.masks(model).items()})
    return model


@pytest.fixture(params=[Net, lambda: nn.Linear(33, 2), lambda: nn.Conv1d(1, 1, 40)], ids=["net", "layer", "row"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[nn.Module, Path]:
    model = pruned(request.param())
    return model, sk.save(model, tmp_path / "run")


def test_the_reader_of_the_document(saved: tuple[nn.Module, Path]) -> None:
    model, folder = saved
    space: dict[str, Any] = {}
    exec(READER, space)
    assert len(READER.strip().splitlines()) <= 20 and "sparsekit." not in READER and "import sparsekit" not in READER
    found = space["read"](folder / "model.safetensors")
    assert list(found) == list(sk.masks(model))
    for name, (weight, mask) in found.items():
        layer = sk.masked_layers(model)[name]
        assert np.array_equal(mask, layer.mask.dense().numpy())
        assert np.array_equal(weight, layer.masked_weight().numpy())


def test_the_reader_needs_neither_torch_nor_sparsekit(saved: tuple[nn.Module, Path]) -> None:
    file = saved[1] / "model.safetensors"
    program = f"{READER}\nimport sys\nread({str(file)!r})\nassert not {{'torch', 'sparsekit'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_the_hashes_by_their_definition(saved: tuple[nn.Module, Path]) -> None:
    model, folder = saved
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert list(file.metadata()) == ["sparsity.json"]
        text = file.metadata()["sparsity.json"]
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    about = json.loads(text)
    assert about == json.loads((folder / "sparsity.json").read_text())
    masks, content = hashlib.sha256(), hashlib.sha256(text.replace(about["sha256"], "0" * 64).encode())
    for name, layer in about["layers"].items():
        words = tensors[f"{name}.mask_words" if name else "mask_words"]
        masks.update(f"{name}:{tuple(layer['shape'])}:".encode() + words.numpy().astype("<i4").tobytes())
    assert masks.hexdigest() == about["mask_hash"] == sk.masks(model).hash()
    for name, value in sorted(tensors.items()):
        content.update(f"{name}:{str(value.dtype)[6:]}:{list(value.shape)}:".encode() + value.numpy().tobytes())
    assert content.hexdigest() == about["sha256"]


def test_equal_models_give_equal_files(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        torch.manual_seed(1)
        sk.save(pruned(Net()), folder)
    assert all((one / n).read_bytes() == (two / n).read_bytes() for n in ("model.safetensors", "sparsity.json"))
