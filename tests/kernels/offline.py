# SPDX-License-Identifier: Apache-2.0
"""Compiles a Triton kernel for a GPU that is not there and reads off what became of it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

HOPPER_SHARED, SMALLEST_SHARED = (
    227 * 1024,
    99 * 1024,
)  # bytes that a program may take, of compute capability 9.0 and 8.6


@dataclass(frozen=True)
class Binary:
    """What one thread and one program of a compiled kernel take, and its tensor-core instructions.

    wgmma: (shape and types, does the first operand come from registers?) of every instruction.
    """

    registers: int
    local_bytes: int
    shared: int
    wgmma: tuple[tuple[str, bool], ...]


def _usage(cubin: bytes) -> tuple[int, int]:
    """(registers, bytes of local memory, where spills go) per thread of the kernel in ``cubin``."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(file)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.search(rf"{name}:(\d+)", text).group(1)) for name in ("REG", "STACK", "LOCAL"))  # pyright: ignore
    return registers, stack + local


def compiled(
    kernel: JITFunction,
    types: dict[str, str],
    constants: dict[str, Any],
    divisible: set[str],
    capability: int = 90,
    **options: int,
) -> Binary:
    """``kernel`` for a compute capability (90 is 9.0).

    Args:
        types: Triton's type of every argument that is not a constant, like "*bf16" or "i32".
        constants: value of every constexpr, and of other arguments that are known, as a launch knows a 1.
        divisible: arguments that are multiples of 16, as a launch finds out by itself.
        options: num_warps, num_stages.
    """
    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in divisible},
    )
    found = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={**options, "enable_fp_fusion": True}
    )
    lines = re.findall(r"wgmma\.mma_async\.sync\.aligned\.(\S+)\s+\{[^}]*\},\s*(\{|%)", found.asm["ptx"])
    return Binary(*_usage(found.asm["cubin"]), found.metadata.shared, tuple((form, a == "{") for form, a in lines))
