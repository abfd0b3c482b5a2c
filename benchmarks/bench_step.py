# SPDX-License-Identifier: Apache-2.0
"""Training steps: dense against masked, and one BiP iteration against plain masked steps (ResNet-20, 32x32, batch 128).

python -m sparsekit.benchmarks.bench_step --out rows.jsonl
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from sparsekit.benchmarks.bench_rows import bench_rows, main
from sparsekit.benchmarks.engine import cross_entropy
from sparsekit.benchmarks.networks import build_network
from sparsekit.benchmarks.timing import compare_times
from sparsekit.nn import dense_state_dict, sparsify
from sparsekit.pruners import BiP

BATCH, SPARSITY = 128, 0.9


def _network(device: str) -> nn.Module:
    return build_network("resnet20", classes=10, channels=3, image_size=32, seed=0).train().to(device)


def _sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)


def _step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Callable[[], Tensor]:
    optimizer = _sgd(model)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = cross_entropy(model, batch)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def _bip(model: nn.Module, batches: Iterator[Any]) -> Callable[[], Any]:
    # More steps than any timing takes, so that the curves stay near their start.
    pruner = BiP(model, cross_entropy, SPARSITY, steps=10**9, lower=_sgd(model))
    return lambda: pruner.step(batches)


def _require_equal_losses(models: dict[str, nn.Module], batch: tuple[Tensor, Tensor]) -> None:
    """Masked and dense networks with the same effective weights must agree before anything is timed."""
    with torch.no_grad():
        losses = {name: float(cross_entropy(model, batch)) for name, model in models.items()}
    first = next(iter(losses.values()))
    for name, loss in losses.items():
        if abs(loss - first) > 1e-5 * abs(first):
            raise ValueError(f"bench_step: {name}: expected loss {first}, got {loss}")


def run(repeats: int, device: str = "cpu") -> Iterator[dict[str, Any]]:
    """Rows of both comparisons on ``device`` ("cpu" or "cuda")."""
    generator = torch.Generator().manual_seed(0)
    images, labels = (
        torch.randn(BATCH, 3, 32, 32, generator=generator),
        torch.randint(0, 10, (BATCH,), generator=generator),
    )
    batch = images.to(device), labels.to(device)
    masked = _network(device)
    sparsify(masked)
    BiP(masked, cross_entropy, SPARSITY, steps=1, lower=_sgd(masked))
    dense = _network(device)
    dense.load_state_dict(dense_state_dict(masked))
    pruned = _network(device)
    pruned.load_state_dict(dense_state_dict(masked))
    for module in pruned.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            prune.custom_from_mask(module, "weight", module.weight != 0)
    _require_equal_losses({"dense": dense, "masked": masked, "torch.nn.utils.prune": pruned}, batch)
    steps = {"dense step": _step(dense, batch), "masked step": _step(masked, batch)}
    steps["torch.nn.utils.prune step"] = _step(pruned, batch)
    timings = compare_times(steps, repeats=repeats, check=None, device=device)
    yield from bench_rows("step", "resnet20 b128 0.9", timings)
    bilevel = _network(device)
    sparsify(bilevel)
    iteration = _bip(bilevel, itertools.repeat(batch))
    timings = compare_times(
        {"masked step": _step(masked, batch), "BiP iteration": iteration}, repeats=repeats, check=None, device=device
    )
    yield from bench_rows("bip iteration", "resnet20 b128 0.9", timings)


if __name__ == "__main__":
    main(__doc__ or "", run)
