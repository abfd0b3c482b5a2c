# SPDX-License-Identifier: Apache-2.0
"""The Python blocks of the pages in docs/, to be run as they stand with fewer steps."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

DOCS = Path(__file__).parents[1] / "docs"


def python(page: str) -> list[str]:
    """All Python blocks of a page, in order."""
    return re.findall(r"^```python\n(.*?)^```$", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)


def run_snippet(text: str, names: Mapping[str, Any]) -> dict[str, Any]:
    """Run a block with these names defined and runs of 1000 steps cut to 8; returns all names afterwards."""
    found = dict(names)
    exec(compile(text.replace("steps=1000", "steps=8"), "snippet", "exec"), found)  # noqa: S102 (our own pages)
    return found


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
