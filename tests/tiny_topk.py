# SPDX-License-Identifier: Apache-2.0
"""Problems of the top-k benchmark that take microseconds, for its tests and those of its command."""

from __future__ import annotations

import pytest

from sparsekit.benchmarks import timing, topk_problems, topk_providers

LISTS = {"small": ((4, 3, 3, 3), (5, 8))}
OVERHEAD = {"pair": ((2, 33), (7,), (0, 4))}
QUICK = ("8/float32/normal/20%", "100/bfloat16/two/20%", "small/float32/normal/5?%", "pair/float32/normal/20%")
QUICK_NAMES = ["8/float32/normal/20%", "100/bfloat16/two/20%", "small/float32/normal/50%", "pair/float32/normal/20%"]


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts them in the place of the real ones; no warming up, one call in a block."""
    monkeypatch.setattr(topk_problems, "SIZES", {"8": 8, "100": 100})
    monkeypatch.setattr(topk_problems, "LISTS", LISTS)
    monkeypatch.setattr(topk_problems, "QUICK", QUICK)
    for module in (topk_problems, topk_providers):
        monkeypatch.setattr(module, "LIST_OVERHEAD", OVERHEAD)
    real = timing._time_all
    monkeypatch.setattr(timing, "_time_all", lambda *a: real(*a[:-2], 0, 0.0))
