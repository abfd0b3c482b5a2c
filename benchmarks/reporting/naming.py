# SPDX-License-Identifier: Apache-2.0
"""Names of methods with their budgets, of networks and data, and large amounts, for the readers of a speed-up report."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sparsekit.benchmarks.recipe import Recipe, split_name
from sparsekit.benchmarks.reporting.paper import data_name
from sparsekit.benchmarks.reporting.speedup import Ratio
from sparsekit.benchmarks.reporting.wording import MISSING, TIMES, count, label, number
from sparsekit.benchmarks.statistics import Interval

NAMES = {
    "imp-lth": "IMP (rewound to init)",
    "imp-finetune": "IMP (no rewinding)",
    "imp-budget": "IMP (budgeted)",
    "bip-1pass": "BiP (one pass)",
    "bip-cubic": "BiP (cubic ramp)",
    "bip-released": "BiP (as released)",
    "bip-finetune": "BiP (fine-tuned)",
    "spode-bip": "SpODE then BiP",
    "dense": "Dense (continued)",
    "dpf": "DPF",
    "random-erk": "Random (ERK)",
    "snip-pretrained": "SNIP (of trained weights)",
    "grasp-pretrained": "GraSP (of trained weights)",
    "synflow-pretrained": "SynFlow (of trained weights)",
    "synflow-released": "SynFlow (as released)",
    "hydra": "Hydra (layer-wise)",
    "hydra-global": "Hydra (global)",
    "woodfisher-oneshot": "WoodFisher (one shot)",
}

DATA = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "digits": "Digits"}

SCALES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def name_of(method: str) -> str:
    """Name for readers, with the budget if it is not the recipe's: "BiP (one pass), 0.5× budget"."""
    own, factor = split_name(method)
    name = NAMES.get(own, label(own))
    return name if factor == 1 else f"{name}, {budget(method)} budget"


def budget(method: str) -> str:
    """Budget of a name in the rows as a multiple of the recipe's: "0.5×"."""
    return f"{split_name(method)[1]:g}{TIMES}"


def setting(recipe: Recipe) -> str:
    """ "CIFAR-10, ResNet-20"."""
    network = re.sub(
        r"^(resnet|vgg)(\d+)", lambda m: f"{'ResNet' if m[1] == 'resnet' else 'VGG'}-{m[2]}", recipe.network
    )
    return f"{DATA.get(data_name(recipe), recipe.data)}, {network}"


def hardware(environments: Sequence[Mapping[str, Any]]) -> str:
    """ "NVIDIA H200 (driver 580.65)", or the CPU with its threads where there is no GPU; every machine once."""
    return "; ".join(dict.fromkeys(_machine(environment) for environment in environments)) or "unknown hardware"


def _machine(environment: Mapping[str, Any]) -> str:
    gpu, cpu = environment.get("gpu") or {}, environment.get("cpu") or {}
    if gpu.get("name"):
        return str(gpu["name"]) + (f" (driver {gpu['driver']})" if gpu.get("driver") else "")
    if cpu.get("model"):
        threads = cpu.get("threads")
        return f"{cpu['model']}" + (f", {count(threads, 'thread')}" if threads else "") + ", no GPU"
    return "unknown hardware"


def listed(words: Iterable[str]) -> str:
    """ "a, b and c"; with semicolons where a word has a comma of its own, as budgets do."""
    found = list(words)
    if len(found) < 2:
        return found[0] if found else MISSING
    comma, last = ("; ", "; and ") if any("," in word for word in found) else (", ", " and ")
    return f"{comma.join(found[:-1])}{last}{found[-1]}"


def bracket(interval: Interval | None) -> str:
    """Interval of a ratio after its value: " [2.90, 3.30]"; nothing without one or where it is a point."""
    if interval is None or math.isclose(interval.low, interval.high, rel_tol=1e-9):
        return ""
    return f" [{factor(interval.low)}, {factor(interval.high)}]"


def factor(ratio: float) -> str:
    """ "0.52", "3.10", "12.4", "1.29e+12"."""
    return f"{ratio:.2f}" if ratio < 10 else number(ratio) if ratio < 1e5 else f"{ratio:.2e}"


def ratio_text(ratio: Ratio | None) -> str:
    """A ratio of costs with its interval: "3.10× [2.90, 3.30]"."""
    return MISSING if ratio is None else factor(ratio.value) + TIMES + bracket(ratio.interval)


def amount(value: float | None, unit: str) -> str:
    """A large amount with a prefix: (1.5e15, "FLOP") -> "1.50 PFLOP"."""
    if value is None:
        return MISSING
    scale, prefix = next(((s, p) for s, p in SCALES if abs(value) >= s), SCALES[-1])
    return f"{number(value / scale)}\N{NO-BREAK SPACE}{prefix}{unit}"
