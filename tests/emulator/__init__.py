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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CACHE = ROOT / ".benchmarks" / "emulator"
COMPILER = shutil.which(os.environ.get("CXX", "c++").split()[0])
# Small tiles and few bins: a thousand scores make many tiles, blocks and rounds.
SIZES = {"THREADS": 64, "SHOTS": 1, "DIGIT": 5, "ROW_BLOCKS": 3}
SMALL = tuple(f"-DSPARSEKIT_TOPK_{name}={value}" for name, value in SIZES.items()) + ("-DSPARSEKIT_GROUP_BLOCKS=3",)
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


def _compile(source: Path, target: Path, options: Sequence[str]) -> None:
    language = ["-x", "c++"] if source.suffix == ".cu" else []
    command = [str(COMPILER), "-std=c++17", "-mf16c", "-pthread", *options, *language, "-c", str(source)]
    subprocess.run([*command, "-o", str(target)], check=True)


def build(name: str, key: tuple[str, ...], sources: dict[Path, Sequence[str]], link: Sequence[str]) -> Path:
    """Compiles every source with its options and links them, unless the same was built before."""
    folder = CACHE / _key(key)
    result = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not result.exists():
            jobs = [(source, folder / f"{source.name}.o", options) for source, options in sources.items()]
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(lambda job: _compile(*job), jobs))
            command = [str(COMPILER), "-pthread", *link, *(str(target) for _, target, _ in jobs)]
            subprocess.run([*command, "-o", f"{result}.new"], check=True)
            os.replace(f"{result}.new", result)
    return result


def require_emulator() -> None:
    """Skips where the emulator cannot be built."""
    if platform.machine() not in ("x86_64", "AMD64") or platform.system() != "Linux" or COMPILER is None:
        pytest.skip("the CUDA emulator needs Linux on x86-64 and a C++ compiler")


def _module(flags: tuple[str, ...]) -> Path:
    sources = [p for p in sorted((ROOT / "csrc").iterdir()) if p.suffix in (".cpp", ".cu")]
    common = ["-fPIC", "-ffp-contract=off", "-DSPARSEKIT_CUDA=1", *flags, *_includes()]
    # Bindings are slow to optimise and quick to run.
    levels = {p: "-O0" if p.name.startswith(("bind_", "module")) else "-O1" for p in [*sources, HERE / "emulator.cpp"]}
    options = {path: [level, *common] for path, level in levels.items()}
    return build(f"_C{sysconfig.get_config_var('EXT_SUFFIX')}", flags, options, ["-shared"])


def emulated(*flags: str) -> ModuleType:
    """The module, built with ``flags`` if it is not there yet. Skips where the emulator cannot be built."""
    require_emulator()
    if flags not in _loaded:
        # pybind11 keeps one module for each name; the part after the dot names the function that makes it.
        spec = importlib.util.spec_from_file_location(f"emulated{len(_loaded)}._C", _module(flags))
        assert spec is not None and spec.loader is not None
        _loaded[flags] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(_loaded[flags])
        assert len({id(module) for module in _loaded.values()}) == len(_loaded)
    return _loaded[flags]
