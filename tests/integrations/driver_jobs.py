# SPDX-License-Identifier: Apache-2.0
"""Jobs of test_processes.py: what the callbacks do where several processes train one model."""

from __future__ import annotations

import os
import signal
import time
import warnings
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from processes import all_raise, everyone, raised
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import sparsekit as sk
from sparsekit.integrations.driver import Driver


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    sk.sparsify(model)
    return model


def loss(model: nn.Module, batch: Any) -> Tensor:
    return model(batch).square().mean()


def trained(model: nn.Module) -> sk.BiP:
    return sk.BiP(model, loss, 0.5, steps=3, lower=torch.optim.SGD(model.parameters(), lr=0.1))


def pruners_that_train(rank: int, world: int) -> None:
    """Each process would train for itself: refused by name, whether the pruner was made before or after the start."""
    text = f"PruningCallback: pruner: expected one that trains nothing, such as Gradual, where {world} processes train"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = network()
        for given in (trained(model), trained):
            driver = Driver("PruningCallback", given, None)
            all_raise(lambda d=driver, m=model: d.begin(m), "ValueError", text, "got BiP, which would train in each")
    shared = DistributedDataParallel(network())
    driver = Driver("PruningCallback", trained(shared), None)
    driver.begin(shared)
    driver.step(0, lambda: [torch.randn(4, 8, generator=torch.Generator().manual_seed(rank))])
    assert len(set(everyone(sk.masks(shared).hash()))) == 1


def gradual(rank: int, world: int) -> None:
    """No warning, the same masks everywhere; a rank that has others is named when the pruner is done."""
    for odd in (None, world - 1):
        model = network()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            driver = Driver("PruningCallback", lambda m: sk.Gradual(m, 0.5, steps=2), None)
            driver.begin(model)
        driver.step(1, lambda: [])
        if rank == odd:
            with torch.no_grad():
                model[0].weight.mul_(-1).sub_(1)  # pyright: ignore
        if odd is None:
            driver.step(2, lambda: [])
            assert len(set(everyone(sk.masks(model).hash()))) == 1
        else:
            text = f"check_ranks: masks: expected the same on all ranks, rank {odd} differs, first in `0.mask_words`"
            all_raise(lambda d=driver: d.step(2, lambda: []), "ValueError", text)


def killed(rank: int, world: int) -> None:
    """The others end with an error that says what may have happened, within the time-out of their group."""
    group: Any = dist.new_group(backend="gloo", timeout=timedelta(seconds=3))
    shared = DistributedDataParallel(network(), process_group=group)
    pruner, batches = trained(shared), iter([torch.ones(4, 8)] * 9)
    pruner.step(batches)
    if rank == world - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    began = time.monotonic()
    kind, text = raised(lambda: pruner.step(batches))
    assert kind == "RuntimeError" and time.monotonic() - began < 30, (kind, text)
    assert text.startswith(f"BiP: step: group: expected word from all {world} ranks within the time-out"), text
    assert "one of them has failed, was killed or hangs" in text
