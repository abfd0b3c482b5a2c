# SPDX-License-Identifier: Apache-2.0
"""What the CUDA compiler makes of csrc/*.cu: no spills on any architecture, 16-byte loads where scores are read."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "csrc").glob("*.cu"))
NVCC = shutil.which("nvcc", path=f"{os.environ.get('PATH', '')}:/usr/local/cuda/bin")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(NVCC is None, reason="needs nvcc")]


def cuobjdump() -> str | None:
    """Triton's wheel brings the disassembler."""
    spec = importlib.util.find_spec("triton")
    places = (
        [Path(p, "backends", "nvidia", "bin", "cuobjdump") for p in (spec.submodule_search_locations or ())]
        if spec
        else []
    )
    return next((str(p) for p in places if p.is_file()), shutil.which("cuobjdump"))


def compiled(source: Path, architecture: str, target: Path) -> str:
    """Compiles and returns what the assembler says."""
    flags = ["-O3", "-std=c++17", f"-arch={architecture}", "-Xptxas", "-v", "-Werror", "all-warnings"]
    command = [str(NVCC), *flags, "-c", str(source), "-o", str(target)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_compiles_without_spills(source: Path, architecture: str, tmp_path: Path) -> None:
    spills = [line for line in compiled(source, architecture, tmp_path / "o.o").splitlines() if "spill" in line]
    assert spills
    assert all(" 0 bytes spill stores, 0 bytes spill loads" in line for line in spills)
    if source.name == "topk_mask.cu" and architecture == "sm_90a" and cuobjdump():
        check_loads(tmp_path / "o.o")


def check_loads(target: Path) -> None:
    """The pass that reads all scores has its eight (for 16 bits four) 16-byte loads of a lane in flight together."""
    command = [str(cuobjdump()), "-sass", str(target)]
    assembly = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    kernels = {part.split("\n", 1)[0]: part for part in assembly.split("Function : ")[1:]}
    for mark, loads in (("topk_kernelIjLb1", 8), ("topk_kernelItLb1", 4)):
        (text,) = [part for title, part in kernels.items() if mark in title]
        code = re.findall(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\d\s+)?([A-Z0-9.]+)", text)
        wide = {i for i, op in enumerate(code) if op == "LDG.E.128.CONSTANT"}
        assert any(wide >= set(range(start, start + loads)) for start in wide), f"{mark}: {loads} loads, got {wide}"
        assert not [op for op in code if op.startswith(("LDL", "STL", "LD.E.128"))], mark


def test_newer_devices_get_ptx() -> None:
    codes = set(re.findall(r'"arch=\w+,code=(\w+)"', (ROOT / "setup.py").read_text()))
    assert {"sm_80", "sm_90a", "compute_90"} <= codes
