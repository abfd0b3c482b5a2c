# SPDX-License-Identifier: Apache-2.0
"""What is installed, what will serve each op, and what that means: the facts behind ``sparsekit doctor``."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import torch

from sparsekit import ops


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpus() -> list[dict[str, Any]]:
    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = f"{properties.major}.{properties.minor}"
        memory = round(properties.total_memory / 2**30, 1)
        found.append({"name": properties.name, "capability": capability, "memory_gib": memory})
    return found


def diagnose() -> dict[str, Any]:
    """Versions, devices, and for each op what serves CPU and CUDA tensors, with advice where something is missing."""
    native = ops.native_info()
    for index in range(torch.cuda.device_count()):
        ops.prove_all(torch.device("cuda", index))
    return {
        "python": platform.python_version(),
        "packages": {p: _version(p) for p in ("torch-sparsekit", "torch", "triton", "numpy", "safetensors")},
        "threads": torch.get_num_threads(),
        "gpus": _gpus(),
        "native": native,
        "ops": ops.capabilities(),
        "dispatch": ops.dispatch(),
        "advice": _advice(native),
    }


def _advice(native: dict[str, Any]) -> list[str]:
    advice = []
    if not native["built"]:
        advice.append(
            "The compiled module sparsekit._C is missing: PyTorch serves every op, and selecting masks is many times slower. "
            "Install a C++17 compiler and reinstall sparsekit."
        )
    elif torch.cuda.is_available() and not native["cuda"]:
        advice.append("sparsekit._C was built without CUDA: PyTorch serves CUDA tensors. Install nvcc and reinstall.")
    failed = [name for name, by in ops.capabilities().items() if "failed" in by["cuda"]]
    if failed:
        advice.append(
            f"The kernels of {', '.join(failed)} gave other results than their reference on this device, so PyTorch serves "
            "instead. Reinstall sparsekit with the CUDA toolkit of your driver, try another Triton, or report it."
        )
    return advice
