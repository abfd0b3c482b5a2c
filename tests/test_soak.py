# SPDX-License-Identifier: Apache-2.0
"""Many lives of a model in one process: memory, objects, open files and global hooks stay what they were.

200 cycles by default; ``pytest tests/test_soak.py --soak`` runs 2,000.
"""

from __future__ import annotations

import copy
import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_modules
from torch.optim import optimizer as torch_optimizers
from torch.optim.swa_utils import AveragedModel

import sparsekit as sk
from sparsekit.loggers import JSONLLogger

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc"),
]
WARM_UP, EVERY = 50, 25
# A cycle that kept one copy of the weights would add 35 KB. safetensors keeps some 30 bytes of every tensor that it reads.
BYTES_PER_CYCLE, SLACK = 2048, 2**21


def build(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 30))
    model.append(nn.Linear(30, 30)).append(nn.Linear(30, 30))
    model[6].weight = model[5].weight
    return model


X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return model(batch).square().mean()


def live(cycle: int, folder: Path) -> None:
    """Sparsify, prune by two pruners, train, average, evaluate, save, load, finalize."""
    model = build(cycle)
    sk.sparsify(model)
    average = AveragedModel(model, use_buffers=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    guard = sk.guard_(optimizer, model)
    pruner = sk.Gradual(model, 0.8, steps=2)
    bilevel = sk.BiP(model, loss, 0.8, steps=1, lower=optimizer)
    pruner.fit([X], logger=JSONLLogger(folder / "log", every=2))
    bilevel.fit([X])
    pruner.load_state_dict(copy.deepcopy(pruner.state_dict()))
    average.update_parameters(model)
    guard.remove()
    with sk.cached_weights(model), torch.no_grad():
        y = model.eval()(X)
    other = sk.load(build(cycle + 1), sk.save(model, folder)).eval()
    torch.testing.assert_close(sk.finalize(other)(X), y)
    sk.finalize(model)


def resident() -> int:
    """Bytes of memory in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def counts() -> dict[str, int]:
    """What must not grow at all."""
    gc.collect()
    objects = gc.get_objects()
    hooks = [value for name, value in vars(torch_modules).items() if name.startswith("_global_")]
    hooks += [value for name, value in vars(torch_optimizers).items() if name.startswith("_global_optimizer")]
    return {
        "tensors": sum(issubclass(type(o), torch.Tensor) for o in objects),
        "modules": sum(issubclass(type(o), nn.Module) for o in objects),
        "files": len(os.listdir("/proc/self/fd")),
        "hooks": sum(len(h) for h in hooks if isinstance(h, dict)),
        "classes": sum(issubclass(type(o), type) for o in objects),
    }


@pytest.fixture
def cycles(request: pytest.FixtureRequest) -> Iterator[int]:
    yield 2000 if request.config.getoption("--soak") else 200


def test_nothing_grows(cycles: int, tmp_path: Path) -> None:
    for cycle in range(WARM_UP):
        live(cycle, tmp_path)
    before, memory = counts(), resident()
    peak = memory
    for cycle in range(cycles):
        live(cycle, tmp_path)
        if cycle % EVERY == 0:
            peak = max(peak, resident())
    # What earlier tests left behind may go in the meantime.
    after = counts()
    assert all(after[name] <= count for name, count in before.items()), (before, after)
    grown = max(peak, resident()) - memory
    assert grown <= SLACK + BYTES_PER_CYCLE * cycles, f"{grown:,} bytes in {cycles} cycles"
    print(f"{cycles} cycles: {grown:,} bytes, {before}")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["log", "model.safetensors", "sparsity.json"]
