# SPDX-License-Identifier: Apache-2.0
"""What work costs besides seconds: floating-point operations, peak memory, energy; each None where nothing measures it."""

from __future__ import annotations

import importlib
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sparsekit.benchmarks.training import cross_entropy


def flops_per_image(model: nn.Module, images: torch.Tensor) -> float:
    """Operations of one forward and backward pass of the dense network, per image; masks save none of them.

    Args:
        model: a network of no consequence. images: float32 [B, C, H, W].
    """
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    # In eval mode nobody draws random numbers, which would change the run that happens to ask.
    with FlopCounterMode(display=False) as counter:
        cross_entropy(model.eval(), (images, labels)).backward()
    return counter.get_total_flops() / len(images)


class Meter:
    """Peak memory in bytes and energy in joules since it was made, on a GPU.

    Energy is that of the whole GPU, by NVML's counter (package nvidia-ml-py). ``whole``: False if work of an earlier
    process belongs to what is measured, so that nothing can be said of it.
    """

    def __init__(self, device: torch.device | str, whole: bool = True) -> None:
        self._device = torch.device(device)
        self._able = whole and self._device.type == "cuda"
        if self._able:
            torch.cuda.reset_peak_memory_stats(self._device)
        self._before = _joules(self._device) if self._able else None

    def row(self) -> dict[str, float | None]:
        """Entries of a row."""
        now = _joules(self._device) if self._able else None
        energy = None if now is None or self._before is None else now - self._before
        return {"peak_memory": torch.cuda.max_memory_allocated(self._device) if self._able else None, "energy": energy}


def _joules(device: torch.device) -> float | None:
    """Energy that the GPU has used since its driver was loaded."""
    with suppress(Exception):  # a missing package, driver or permission: a row with a gap is worth more than none
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
        try:
            uuid = torch.cuda.get_device_properties(device).uuid
            return nvml.nvmlDeviceGetTotalEnergyConsumption(nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")) / 1000
        finally:
            nvml.nvmlShutdown()
    return None
