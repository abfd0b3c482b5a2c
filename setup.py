# SPDX-License-Identifier: Apache-2.0
"""Maps the folders of the repository to packages and builds the compiled module sparsekit._C from csrc/.

The CPU part needs a C++17 compiler; without one the module is left out and the package runs on its PyTorch reference
code. The CUDA part is linked in when nvcc is found (CUDA_HOME, the PATH or /usr/local/cuda); SPARSEKIT_NO_CUDA=1 leaves
it out. Neither a GPU nor torch is needed to build.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from glob import glob
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

FOLDERS = {"sparsekit": "sparsekit", "sparsekit.kernels": "kernels", "sparsekit.benchmarks": "benchmarks"}
ARCHITECTURES = ("arch=compute_80,code=sm_80", "arch=compute_90a,code=sm_90a", "arch=compute_90,code=compute_90")


def packages() -> list[str]:
    """Every package under FOLDERS, by its installed name."""
    found: list[str] = []
    for name, folder in FOLDERS.items():
        found += [name, *(f"{name}.{sub}" for sub in find_packages(folder))]
    return found


def pybind11_include() -> str:
    """The header folder of pybind11, or of the copy that torch ships where pybind11 is not installed."""
    for package, sub in (("pybind11", "include"), ("torch", "include")):
        spec = importlib.util.find_spec(package)
        for root in (spec.submodule_search_locations or ()) if spec else ():
            if (Path(root, sub) / "pybind11" / "pybind11.h").is_file():
                return str(Path(root, sub))
    raise SystemExit("setup.py: pybind11 not found: pip install pybind11, or build with isolation")


def cuda_toolkit() -> tuple[str, str] | None:
    """(nvcc, folder of the static CUDA runtime), or None."""
    if os.environ.get("SPARSEKIT_NO_CUDA", "0") not in ("", "0"):
        return None
    on_path = shutil.which("nvcc")
    places = [os.environ.get("CUDA_HOME"), on_path and Path(on_path).resolve().parents[1], "/usr/local/cuda"]
    for root in filter(None, places):
        libraries = glob(f"{root}/lib*/libcudart_static.a") + glob(f"{root}/targets/*/lib/libcudart_static.a")
        if Path(root, "bin", "nvcc").is_file() and libraries:
            return str(Path(root, "bin", "nvcc")), str(Path(libraries[0]).parent)
    return None


class BuildExt(build_ext):
    """Compiles csrc/*.cu with nvcc and links the objects into the extension."""

    def build_extension(self, ext: Extension) -> None:
        toolkit = None if ext.optional else cuda_toolkit()
        if toolkit:
            ext.extra_objects += self.compile_cuda(toolkit[0])
            ext.define_macros.append(("SPARSEKIT_CUDA", "1"))
            ext.library_dirs.append(toolkit[1])
            ext.libraries += ["cudart_static", "dl", "rt"]
        super().build_extension(ext)

    def compile_cuda(self, nvcc: str) -> list[str]:
        """Objects for every architecture; a failure stops the build, for nvcc was there to be used."""
        Path(self.build_temp).mkdir(parents=True, exist_ok=True)
        flags = ["-O3", "-std=c++17", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
        flags += [flag for architecture in ARCHITECTURES for flag in ("-gencode", architecture)]
        objects = []
        for source in sorted(glob("csrc/*.cu")):
            objects.append(str(Path(self.build_temp, Path(source).stem + "_cuda.o")))
            subprocess.check_call([nvcc, *flags, "-c", source, "-o", objects[-1]])
        return objects


extension = Extension(
    "sparsekit._C",
    sources=sorted(glob("csrc/*.cpp")),
    depends=sorted(glob("csrc/*")),
    include_dirs=["csrc", pybind11_include()],
    extra_compile_args=["-O3", "-std=c++17", "-fvisibility=hidden", "-ffp-contract=off", "-pthread", "-g0"],
    extra_link_args=["-pthread"],
    language="c++",
    optional=not any(shutil.which(name) for name in (os.environ.get("CXX", "c++").split()[0], "g++", "clang++")),
)

setup(packages=packages(), package_dir=FOLDERS, ext_modules=[extension], cmdclass={"build_ext": BuildExt})
