# SPDX-License-Identifier: Apache-2.0
"""Compacted models on disk: the same bits again, and nothing taken from a file that does not fit."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import surgery_nets as nets
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import sparsekit as sk
from sparsekit.benchmarks.networks import build_network

pytest.importorskip("torch_pruning")


def saved(tmp_path: Path, name: str = "resnet8") -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """The full model, the small one, an input."""
    build, shape = nets.EXACT[name]
    model, x = nets.settled(build(), shape)
    sk.sparsify(model)
    scores = {n: layer.weight.detach() for n, layer in sk.masked_layers(model).items()}
    sk.set_masks(model, sk.Projection(sk.coupled_filters(model, x), "uniform")(scores, 0.5).masks)
    small, _ = sk.compact(model, x, silence_batchnorm=True)
    assert sk.save_compact(small, tmp_path / "small") == tmp_path / "small"
    return build(), small, x


@pytest.mark.parametrize("name", ["resnet8", "depthwise", "concat", "transformer"])
def test_the_same_model_again(name: str, tmp_path: Path) -> None:
    full, small, x = saved(tmp_path, name)
    before = {k: v.clone() for k, v in full.state_dict().items()}
    for source in (full, nets.EXACT[name][0]):
        again = sk.load_compact(source, tmp_path / "small").eval()
        assert torch.equal(again(x), small(x))
        assert [(n, p.shape) for n, p in again.named_parameters()] == [
            (n, p.shape) for n, p in small.named_parameters()
        ]
        assert str(again) == str(small)  # sizes of all layers
    assert all(torch.equal(v, before[k]) for k, v in full.state_dict().items())


def test_the_sidecar_says_how_wide_layers_are(tmp_path: Path) -> None:
    saved(tmp_path)
    layers = json.loads((tmp_path / "small" / "compact.json").read_text())["layers"]
    assert layers["layer2.0.conv2"] == {"in_channels": 16, "out_channels": 16, "groups": 1}
    assert sum(layers["layer2.0.shortcut"].values()) == 8 and layers["fc"]["in_features"] == 32


def test_tied_weights(tmp_path: Path) -> None:
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    model[1].weight = model[0].weight
    sk.save_compact(model, tmp_path)
    fresh = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    again = sk.load_compact(fresh, tmp_path)
    assert torch.equal(again[1].weight, model[0].weight) and torch.equal(again[1].bias, model[1].bias)  # pyright: ignore


def edit(folder: Path, change: Any) -> None:
    """Write the file anew with another description, and without a digest to give it away."""
    description = json.loads((folder / "compact.json").read_text()) | {"sha256": None}
    change(description)
    save_file(
        load_file(folder / "model.safetensors"), folder / "model.safetensors", {"compact.json": json.dumps(description)}
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: d["layers"].pop("fc"), "expected the layers of the model, got a difference in 'fc'"),
        (lambda d: d["layers"]["fc"].update(in_features=0), "fc: expected sizes of at most"),
        (lambda d: d["layers"]["fc"].update(in_features=65), "fc: expected sizes of at most"),
        (lambda d: d["layers"]["fc"].update(in_features=31), "size mismatch for fc.weight"),
        (lambda d: d["layers"]["fc"].update(other=1), "fc: expected sizes of at most"),
        (lambda d: d.update(layers=[]), "expected the layers of the model"),
        (lambda d: d.update(ties={"fc.weight": "nowhere"}), "expected ties of stored tensors"),
        (lambda d: d.update(format="other"), "expected what save_compact wrote, got another file"),
        (lambda d: d.update(version=2), "expected format version <= 1, got 2"),
    ],
)
def test_files_that_do_not_fit(change: Any, text: str, tmp_path: Path) -> None:
    full, _, _ = saved(tmp_path)
    edit(tmp_path / "small", change)
    with pytest.raises(ValueError, match=f"load_compact: path: .*{text}"):
        sk.load_compact(full, tmp_path / "small")


def test_damage_and_bad_arguments(tmp_path: Path) -> None:
    full, small, _ = saved(tmp_path)
    with pytest.raises(ValueError, match="expected a model of this architecture, got another"):
        sk.load_compact(
            partial(build_network, "resnet20b", classes=5, channels=3, image_size=8, seed=0), tmp_path / "small"
        )
    file = tmp_path / "small" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="load_compact: path: expected the content that was saved, got a damaged one"):
        sk.load_compact(full, tmp_path / "small")
    with pytest.raises(ValueError, match="load_compact: path: expected a directory with model.safetensors"):
        sk.load_compact(full, tmp_path / "none")
    with pytest.raises(TypeError, match="load_compact: model: expected a torch.nn.Module, got int"):
        sk.load_compact(lambda: 3, tmp_path)  # pyright: ignore
    with pytest.raises(TypeError, match="save_compact: path: expected a str or Path, got int"):
        sk.save_compact(small, 3)  # pyright: ignore
    sk.sparsify(full)
    with pytest.raises(ValueError, match="save_compact: model: expected plain layers, got masked ones"):
        sk.save_compact(full, tmp_path)
    sk.save_compact(small, tmp_path / "small")
    with pytest.raises(ValueError, match="load_compact: model: expected plain layers, got masked ones"):
        sk.load_compact(full, tmp_path / "small")
