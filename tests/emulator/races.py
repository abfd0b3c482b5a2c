# SPDX-License-Identifier: Apache-2.0
"""Builds and runs ``race_check``: the kernels on the emulator, every CUDA thread a thread of ThreadSanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from . import COMPILER, HERE, ROOT, SMALL, build, require_emulator

RACE = 66
# Volatile accesses must not count as plain ones: the names of that option for GCC and for Clang.
DIALECTS = (["--param=tsan-distinguish-volatile=1"], ["-mllvm", "-tsan-distinguish-volatile=1"])
# Returns 0 if the compiler calls what it has to call, and fibers are known.
PROBE = """
#include <sanitizer/tsan_interface.h>
int calls = 0;
volatile int cell = 0;
extern "C" void __tsan_volatile_read4(void*) { ++calls; }
int main() {
  const int value = cell;
  return value + (calls == 1 && __tsan_get_current_fiber() ? 0 : 1);
}
"""


def run(program: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs an instrumented program, which ends at its first race with the status RACE."""
    options = f"halt_on_error=1:exitcode={RACE}:atexit_sleep_ms=0"
    command = [str(program), *arguments]
    setting = {"env": {**os.environ, "TSAN_OPTIONS": options, **environment}, "timeout": 300}
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", **setting)
    # Some kernels place memory at random addresses where the sanitizer cannot have it.
    if "unexpected memory mapping" in done.stderr and shutil.which("setarch"):
        command = ["setarch", "x86_64", "-R", *command]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", **setting)
    return done


def watched_options(folder: Path) -> list[str]:
    """The options with which this compiler instruments code. Skips where no such program can be built and run."""
    source, program = folder / "probe.cpp", folder / "probe"
    source.write_text(PROBE)
    for dialect in DIALECTS:
        options = ["-fsanitize=thread", *dialect]
        command = [str(COMPILER), "-std=c++17", *options, str(source), "-o", str(program)]
        if subprocess.run(command, capture_output=True).returncode == 0 and run(program).returncode == 0:
            return options
    pytest.skip("no program with -fsanitize=thread, fibers and tsan-distinguish-volatile can be built and run")


def race_checker(folder: Path) -> Path:
    """The program, built if it is not there yet. Skips where it cannot be built and run."""
    require_emulator()
    instrument = watched_options(folder)
    common = ["-DSPARSEKIT_CUDA=1", "-DEMULATOR_RACES", *SMALL, f"-I{HERE}", f"-I{ROOT / 'csrc'}"]
    # Nothing is optimised away: an access in the source is an access that is watched.
    watched = ["-O0", "-g1", *instrument, *common]
    kernels = ["topk_rows", "mask_weights", "group_scores", "expand_units", "nm_masks", "tile_masks"]
    names = [HERE / f"{name}.cpp" for name in ("race_check", "race_structured", "ordering")]
    names += [ROOT / "csrc" / f"{name}.cu" for name in kernels]
    sources = {**dict.fromkeys(names, watched), HERE / "emulator.cpp": ["-O1", *common]}
    return build("race_check", ("races", *instrument, *SMALL), sources, ["-fsanitize=thread"])
