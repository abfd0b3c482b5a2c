# SPDX-License-Identifier: Apache-2.0
"""What serves each op on each device.

Compiled CUDA code proves itself before it serves a device: the first call of an op there compares it with the reference on
a few inputs, bit by bit, and waits for the device to do so. If they differ, PyTorch serves that op on that device, with one
warning, and ``capabilities`` says so. Nothing can be compared inside a graph capture: there the compiled code serves, and
the proof follows with the first call outside.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from sparsekit.ops import (
    multi_native,
    multi_reference,
    native,
    native_cuda,
    proofs,
    reference,
    structured_native,
    structured_reference,
)
from sparsekit.ops.schemas import LIBRARY, OP_NAMES

_proofs: dict[tuple[str, int], bool] = {}


def native_info() -> dict[str, Any]:
    """Is the compiled module there, with CUDA code, and which CPU instruction sets can it use (best last)?"""
    if native._C is None:
        return {"built": False, "cuda": False, "cpu_features": []}
    return {"built": True, "cuda": bool(native._C.has_cuda), "cpu_features": list(native._C.cpu_features())}


def capabilities() -> dict[str, dict[str, str]]:
    """Op -> {device: what serves it}.

    "native" (sparsekit._C; on CUDA ", proven" once it has been), "torch", "native mask + torch" for the masked layers, or
    "torch (native failed its proof)". Before " | " stands a Triton kernel that serves where it is faster, after it the rest.
    """
    info = native_info()
    return {
        name: {
            "cpu": _server(name, info["built"]),
            "cuda": " | ".join(filter(None, [proofs.status(name), _cuda_server(name, info["cuda"])])),
        }
        for name in OP_NAMES
    }


def _server(name: str, has_native: bool) -> str:
    if name.startswith("masked_"):
        return "native mask + torch" if has_native else "torch"
    return "native" if has_native else "torch"


def _cuda_server(name: str, has_cuda: bool) -> str:
    own = "mask_weight" if name.startswith("masked_") else name
    proofs = [proven for (op, _), proven in _proofs.items() if op == own]
    if not all(proofs):
        return "torch (native failed its proof)"
    served = _server(name, has_cuda and own in native_cuda.CUDA_IMPLEMENTATIONS)
    return f"{served}, proven" if proofs else served


def _first_tensor(arguments: tuple[Any, ...]) -> Tensor:
    first = arguments[0]
    return first if isinstance(first, Tensor) else first[0]


def _reference(name: str) -> Callable[..., Any]:
    return next(getattr(m, name) for m in (reference, structured_reference, multi_reference) if hasattr(m, name))


def _oracle(name: str) -> Callable[..., Any]:
    """What the compiled CUDA code has to agree with to the bit: the reference, or where that rounds otherwise the CPU code."""
    if name == "group_scores":
        return structured_native.summed_in_order
    return multi_native.stepped_on_cpu(name) if name.endswith("_") else _reference(name)


def _differs(name: str, device: torch.device) -> str:
    """What the compiled op does otherwise than the reference on this device; empty if nothing."""
    ours, theirs = native_cuda.CUDA_IMPLEMENTATIONS[name], _oracle(name)
    # Each on tensors of its own, for an op may write to them; then they are compared as results are.
    given = zip(*(native_cuda.samples(device)[name] for _ in range(2)), strict=True)
    for number, (mine, yours) in enumerate(given):
        try:
            got, expected = ours(*mine), theirs(*yours)
        except torch.OutOfMemoryError:
            raise  # says nothing about the op, which proves itself with a later call
        except RuntimeError as error:
            return f"sample {number}: {error}"
        pairs = zip(*(_tensors(found) for found in ((got, mine), (expected, yours))), strict=True)
        if not all(torch.equal(_bits(a), _bits(b)) for a, b in pairs):
            return f"sample {number}: other bits than the reference"
    return ""


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _bits(x: Tensor) -> Tensor:
    """x to be compared by equality: floats by their bits, so that a NaN is one."""
    return x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]) if x.is_floating_point() else x


def _prove(name: str, device: torch.device) -> bool:
    with proofs.waiting_allowed():
        problem = _differs(name, device)
    if problem:
        warnings.warn(
            f"sparsekit: {name}: the compiled CUDA code failed its proof on {device} ({problem}); PyTorch serves instead. "
            "Reinstall sparsekit with the CUDA toolkit of your driver, or report it.",
            RuntimeWarning,
            stacklevel=4,
        )
    return not problem


def serves(name: str, device: torch.device) -> bool:
    """Does the compiled code serve this op on this CUDA device? Proves it first where that is still to be done."""
    place = (name, device.index or 0)
    if place not in _proofs:
        if torch.cuda.is_current_stream_capturing():
            return True
        _proofs[place] = _prove(name, device)
    return _proofs[place]


def _proven(name: str) -> Callable[..., Any]:
    ours, theirs = native_cuda.CUDA_IMPLEMENTATIONS[name], _reference(name)

    def serve(*arguments: Any) -> Any:
        return (ours if serves(name, _first_tensor(arguments).device) else theirs)(*arguments)

    return serve


def prove_all(device: torch.device) -> None:
    """Has every op with a kernel of its own prove itself on this CUDA device now, not with its first call."""
    for name in native_cuda.CUDA_IMPLEMENTATIONS if native_info()["cuda"] else ():
        serves(name, device)
    for prove in proofs.PROVERS:
        prove(device)


if native_info()["cuda"]:
    for _name in native_cuda.CUDA_IMPLEMENTATIONS:
        LIBRARY.impl(_name, _proven(_name), "CUDA")
