# SPDX-License-Identifier: Apache-2.0
"""The texts of a model hub's folder: config.json and the card with its tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from sparsekit.nn import masked_layers, masks
from sparsekit.structure import structure_of

LICENCE = "other"


def config_text(model: nn.Module, config: Mapping[str, Any]) -> str:
    """config.json: what the caller says of the architecture, and the sparsity of every masked layer."""
    found = masks(model)
    layers = {n: {"shape": list(m.shape), "kept": m.count(), "sparsity": m.sparsity} for n, m in found.items()}
    sparsity = {"sparsity": found.sparsity, "mask_hash": found.hash() if found else None, "layers": layers}
    try:
        return json.dumps({**config, "sparsekit": sparsity}, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"export: config: expected JSON values, got others ({error})") from None


def model_card(model: nn.Module, config: Mapping[str, Any], results: Mapping[str, float]) -> str:
    """README.md of a hub folder: front matter, how to load it, its results and its layers.

    The licence is a placeholder that the publisher has to replace.
    """
    found = masks(model)
    free = sum(p.numel() for p in model.parameters()) - sum(x.weight.numel() for x in masked_layers(model).values())
    kept = found.count() if found else 0
    head = ["---", f"license: {LICENCE}", "license_name: choose-a-licence", "library_name: pytorch"]
    head += [
        "tags:",
        "- pruning",
        "- sparse",
        "- sparsekit",
        "---",
        "",
        f"# {config.get('network', type(model).__name__)}, pruned",
        "",
    ]
    body = [
        f"{found.sparsity:.2%} of {found.numel:,} prunable weights are zero; with the {free:,} other parameters "
        f"{free + kept:,} of {free + found.numel:,} remain.",
        "The file holds dense tensors with zeros, so it loads strictly into the plain network; whether zeros make it faster",
        "depends on hardware and pattern.",
        "",
        "> Licence: not chosen yet. Replace `license` above before you publish this.",
        "",
        *_loading(),
        *_results(results),
        *_layers(model),
        *_settings(config),
    ]
    return "\n".join([*head, *body])


def _loading() -> list[str]:
    code = [
        "from safetensors.torch import load_file",
        'network.load_state_dict(load_file("model.safetensors"))  # the plain network',
        "",
        "import sparsekit as sk",
        'sk.load(network, "model.safetensors", masks="infer")  # or with masks, to train on',
    ]
    return ["## Loading", "", "```python", *code, "```", ""]


def _results(results: Mapping[str, float]) -> list[str]:
    rows = [f"| {_cell(name)} | {value:.4g} |" for name, value in results.items()]
    return [
        "## Evaluation",
        "",
        *(["| what | value |", "|---|---|", *rows] if rows else ["No results were given."]),
        "",
    ]


def _layers(model: nn.Module) -> list[str]:
    head = ["## Sparsity", "", "| layer | shape | kept | sparsity | pattern |", "|---|---|---|---|---|"]
    rows = []
    for name, mask in masks(model).items():
        shape = "x".join(map(str, mask.shape))
        pattern = structure_of(mask.dense())
        rows.append(f"| {_cell(name)} | {shape} | {mask.count():,} | {mask.sparsity:.2%} | {pattern} |")
    return [*head, *rows, ""] if rows else ["## Sparsity", "", "Nothing is masked.", ""]


def _settings(config: Mapping[str, Any]) -> list[str]:
    if not config:
        return []
    return ["## Settings", "", "```json", json.dumps(dict(config), indent=2), "```", ""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
