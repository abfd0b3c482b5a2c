# SPDX-License-Identifier: Apache-2.0
"""Builds ``sparsekit._C`` with its CUDA part compiled for the emulator, so that kernels run where no GPU is.

A "device pointer" of that module is a pointer to CPU memory, and its CUDA functions run every thread of a kernel.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CACHE = ROOT / ".benchmarks" / "emulator"
COMPILER = shutil.which(os.environ.get("CXX", "c++").split()[0])
# Small tiles and few bins: a thousand scores make many tiles, blocks and rounds.
SMALL = ("-DSPARSEKIT_TOPK_THREADS=64", "-DSPARSEKIT_TOPK_SHOTS=1", "-DSPARSEKIT_TOPK_DIGIT=5")
_loaded: dict[tuple[str, ...], ModuleType] = {}


def _includes() -> list[str]:
    import pybind11

    return [f"-I{HERE}", f"-I{ROOT / 'csrc'}", f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]


def _key(flags: tuple[str, ...]) -> str:
    files = [
        p for folder in (HERE, ROOT / "csrc") for p in sorted(folder.iterdir()) if p.is_file() and p.suffix != ".py"
    ]
    digest = hashlib.sha256(" ".join((*flags, str(COMPILER), sysconfig.get_config_var("SOABI"))).encode())
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _compile(source: Path, target: Path, flags: tuple[str, ...]) -> None:
    language = ["-x", "c++"] if source.suffix == ".cu" else []
    # Bindings are slow to optimise and quick to run.
    level = "-O0" if source.name.startswith(("bind_", "module")) else "-O1"
    options = [level, "-std=c++17", "-fPIC", "-mf16c", "-pthread", "-DSPARSEKIT_CUDA=1", *flags, *_includes()]
    subprocess.run([str(COMPILER), *options, *language, "-c", str(source), "-o", str(target)], check=True)


def _build(flags: tuple[str, ...], folder: Path) -> Path:
    library = folder / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            sources = [*sorted((ROOT / "csrc").glob("*.c*")), HERE / "emulator.cpp"]
            sources = [s for s in sources if s.suffix in (".cpp", ".cu")]
            objects = [folder / f"{s.name}.o" for s in sources]
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(lambda pair: _compile(*pair, flags), zip(sources, objects, strict=True)))
            command = [str(COMPILER), "-shared", "-pthread", *map(str, objects), "-o", str(library) + ".new"]
            subprocess.run(command, check=True)
            os.replace(str(library) + ".new", library)
    return library


def emulated(*flags: str) -> ModuleType:
    """The module, built with ``flags`` if it is not there yet. Skips where the emulator cannot be built."""
    if platform.machine() not in ("x86_64", "AMD64") or platform.system() != "Linux" or COMPILER is None:
        pytest.skip("the CUDA emulator needs Linux on x86-64 and a C++ compiler")
    if flags not in _loaded:
        path = _build(flags, CACHE / _key(flags))
        spec = importlib.util.spec_from_file_location("_C", path)
        assert spec is not None and spec.loader is not None
        _loaded[flags] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(_loaded[flags])
    return _loaded[flags]
