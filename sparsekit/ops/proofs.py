# SPDX-License-Identifier: Apache-2.0
"""Proofs of kernels that compute with floating-point numbers, before they serve a device.

A kernel is compared on the device with float64, once for each way it is compiled; its largest error may be twice that of
PyTorch in the same dtype. If it is larger, or the kernel does not run, the plain route serves and one warning says so.
Nothing can be compared inside a graph capture, nor should a kernel be compiled there: what is not proven by then does not
serve in it.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# Ops with a Triton kernel here, and what proves them all on a device.
FUSED: set[str] = set()
PROVERS: list[Callable[[torch.device], None]] = []
_proofs: dict[tuple[str, int, Hashable], bool] = {}


def triton_wanted() -> bool:
    """Is Triton installed, and are the kernels not switched off by SPARSEKIT_KERNELS=off?"""
    return os.environ.get("SPARSEKIT_KERNELS") != "off" and importlib.util.find_spec("triton") is not None


@contextmanager
def waiting_allowed() -> Iterator[None]:
    """Lets the host wait for the device although the caller asked PyTorch to complain about that."""
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("default")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def beyond_yardstick(got: Tensor, peer: Tensor, truth: Tensor) -> str:
    """What is wrong with ``got``, given PyTorch's ``peer`` in the same dtype and the float64 ``truth``; empty if nothing."""
    error, allowed = ((x.double() - truth).abs().max().item() for x in (got, peer))
    slack = 0.05 * torch.finfo(got.dtype).eps * truth.abs().max().item()
    # A NaN compares false.
    return "" if error <= 2 * allowed + slack else f"error {error:.2g} against float64, PyTorch's own is {allowed:.2g}"


def proven(name: str, device: torch.device, variant: Hashable, problem: Callable[[], str]) -> bool:
    """May this variant of the kernel of op ``name`` serve the device? ``problem()`` says what it does wrong there."""
    place = (name, device.index or 0, variant)
    if place not in _proofs:
        if torch.cuda.is_current_stream_capturing():
            return False
        with waiting_allowed(), torch.no_grad():
            _proofs[place] = _passes(name, device, problem)
    return _proofs[place]


def _passes(name: str, device: torch.device, problem: Callable[[], str]) -> bool:
    try:
        found = problem()
    except torch.OutOfMemoryError:
        raise  # says nothing about the kernel, which proves itself with a later call
    except Exception as error:  # whatever compiler or driver raise: the plain route can still serve
        found = f"{type(error).__name__}: {error}"
    if found:
        warnings.warn(
            f"sparsekit: {name}: a Triton kernel failed its proof on {device} ({found}); PyTorch serves instead. "
            "Try another version of Triton, or report it.",
            RuntimeWarning,
            stacklevel=6,
        )
    return not found


def status(name: str) -> str:
    """What is known of the Triton kernel of an op: "triton", with ", proven", or "triton failed its proof"; "" for none."""
    known = [passed for (op, _, _), passed in _proofs.items() if op == name]
    if name not in FUSED:
        return ""
    if not all(known):
        return "triton failed its proof"
    return "triton, proven" if known else "triton"
