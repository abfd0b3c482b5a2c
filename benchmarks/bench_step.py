# SPDX-License-Identifier: Apache-2.0
"""Whole training steps: dense against masked, and one BiP iteration against plain steps.

python -m sparsekit.benchmarks.bench_step --out rows.jsonl

On a CPU ResNet-20 in float32; on a GPU also larger networks, in channels-last under autocast to bfloat16.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from sparsekit.benchmarks.bench_rows import bench_rows, main
from sparsekit.benchmarks.networks import build_network
from sparsekit.benchmarks.timing import compare_times
from sparsekit.benchmarks.training import cross_entropy
from sparsekit.nn import dense_state_dict, prepared_weights, sparsify
from sparsekit.pruners import BiP, captured

SPARSITY = 0.9


@dataclass(frozen=True)
class Setting:
    """A network, the height and width of its images in pixels, images in a batch, and its number of classes."""

    network: str
    image_size: int = 32
    batch: int = 128
    classes: int = 10

    @property
    def name(self) -> str:
        """network bBATCH SPARSITY."""
        return f"{self.network.removeprefix('timm:')} b{self.batch} {SPARSITY}"


_LARGE = ("timm:resnet18", "timm:resnet50", "timm:vit_small_patch16_224")
SETTINGS = {
    "cpu": (Setting("resnet20"),),
    "cuda": (Setting("resnet20"), Setting("vgg16"), *(Setting(name, 224, 64, 1000) for name in _LARGE)),
}


def _network(setting: Setting, device: str) -> nn.Module:
    size, classes = setting.image_size, setting.classes
    model = build_network(setting.network, classes=classes, channels=3, image_size=size, seed=0).train()
    layout = torch.channels_last if device == "cuda" else torch.preserve_format
    return model.to(device=device, memory_format=layout)


def _batch(setting: Setting, device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(setting.batch, 3, setting.image_size, setting.image_size, generator=generator)
    labels = torch.randint(0, setting.classes, (setting.batch,), generator=generator)
    layout = torch.channels_last if device == "cuda" else torch.preserve_format
    return images.to(device, memory_format=layout), labels.to(device)


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    with torch.autocast("cuda", torch.bfloat16, enabled=batch[0].is_cuda):
        return cross_entropy(model, batch)


def _sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)


def _step(model: nn.Module, batch: tuple[Tensor, Tensor], prepared: bool = False) -> Callable[[], Tensor]:
    optimizer = _sgd(model)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with prepared_weights(model) if prepared else nullcontext():
            loss = _loss(model, batch)
            loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def _bip(model: nn.Module, batches: Iterator[Any]) -> Callable[[], Any]:
    # More steps than any timing takes, so that the curves stay near their start.
    pruner = BiP(model, _loss, SPARSITY, steps=10**9, lower=_sgd(model))
    return lambda: pruner.step(batches)


def _captured(model: nn.Module, batches: Iterator[Any]) -> Callable[[], Any]:
    lr = torch.tensor(1e-3, device="cuda")
    lower = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4, fused=True)
    ours = captured(BiP(model, _loss, SPARSITY, steps=10**9, lower=lower))
    return lambda: ours.step(batches)


def _require_equal_losses(models: dict[str, nn.Module], batch: tuple[Tensor, Tensor]) -> None:
    """Masked and dense networks with the same effective weights must agree before anything is timed."""
    with torch.no_grad():
        losses = {name: float(_loss(model, batch)) for name, model in models.items()}
    first, tolerance = next(iter(losses.values())), 1e-2 if batch[0].is_cuda else 1e-5
    for name, loss in losses.items():
        if abs(loss - first) > tolerance * abs(first):
            raise ValueError(f"bench_step: {name}: expected loss {first}, got {loss}")


def _peak(step: Callable[[], Any]) -> int:
    """Bytes allocated on the GPU at most during a step, beyond what was there before it."""
    step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _networks(setting: Setting, device: str) -> dict[str, nn.Module]:
    """The same effective weights dense, masked, and under torch.nn.utils.prune."""
    masked, dense, pruned = (_network(setting, device) for _ in range(3))
    sparsify(masked)
    # Its construction chooses the masks, which is all that is wanted of it.
    BiP(masked, _loss, SPARSITY, steps=1, lower=_sgd(masked))
    for model in (dense, pruned):
        model.load_state_dict(dense_state_dict(masked))
    for module in pruned.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            prune.custom_from_mask(module, "weight", module.weight != 0)
    return {"dense": dense, "masked": masked, "torch.nn.utils.prune": pruned}


def _compare(setting: Setting, repeats: int, device: str) -> Iterator[dict[str, Any]]:
    batch, models = _batch(setting, device), _networks(setting, device)
    _require_equal_losses(models, batch)
    steps = {f"{name} step": _step(model, batch) for name, model in models.items()}
    # A model of its own: two optimizers on one would run away from each other.
    steps["masked step, prepared_weights"] = _step(copy.deepcopy(models["masked"]), batch, prepared=True)
    facts = {"peak_bytes": {name: _peak(step) for name, step in steps.items()}} if device == "cuda" else {}
    timings = compare_times(steps, repeats=repeats, check=None, device=device)
    yield from bench_rows("step", setting.name, timings, **facts)
    bilevel = _network(setting, device)
    sparsify(bilevel)
    steps = {name: steps[name] for name in ("masked step", "dense step")}
    if device == "cuda":
        steps["BiP iteration, captured"] = _captured(copy.deepcopy(bilevel), itertools.repeat(batch))
    steps["BiP iteration"] = _bip(bilevel, itertools.repeat(batch))
    timings = compare_times(steps, repeats=repeats, check=None, device=device)
    yield from bench_rows("bip iteration", setting.name, timings)


def run(repeats: int, device: str = "cpu") -> Iterator[dict[str, Any]]:
    """Rows of both comparisons for every network on ``device`` ("cpu" or "cuda")."""
    for setting in SETTINGS[device]:
        yield from _compare(setting, repeats, device)


if __name__ == "__main__":
    main(__doc__ or "", run)
