# SPDX-License-Identifier: Apache-2.0
"""Numbers as text: the one place that rounds, names methods and marks what is missing."""

from __future__ import annotations

import math

from sparsekit.benchmarks.statistics import Estimate, Interval, Verdict

MISSING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"

LABELS = {
    "bip": "BiP",
    "spode": "SpODE",
    "imp": "IMP",
    "omp": "OMP",
    "gmp": "GMP",
    "dpf": "DPF",
    "dense": "Dense (continued)",
    "spode-bip": "SpODE then BiP",
    "random-erk": "Random (ERK)",
    "rigl": "RigL",
    "set": "SET",
    "iter-magnitude": "Magnitude (iterative)",
    "iter-spode": "SpODE (iterative)",
    "iter-snip": "SNIP (iterative)",
    "iter-grasp": "GraSP (iterative)",
    "iter-synflow": "SynFlow (iterative)",
    "iter-magnitude-released": "Magnitude (iterative, as released)",
    "iter-spode-released": "SpODE (iterative, as released)",
    "iter-snip-released": "SNIP (iterative, as released)",
    "iter-grasp-released": "GraSP (iterative, as released)",
    "iter-synflow-released": "SynFlow (iterative, as released)",
    "oneshot": "One-shot magnitude",
    "snip": "SNIP",
    "grasp": "GraSP",
    "grasp-rounds": "GraSP (in rounds)",
    "synflow": "SynFlow",
    "random": "Random",
    "hydra": "Hydra",
    "hydra-global": "Hydra (global)",
    "movement": "Movement",
    "str": "STR",
    "powerprop": "Powerprop",
    "probmask": "ProbMask",
    "woodfisher": "WoodFisher",
}


def label(method: str) -> str:
    """Name of a method for readers; a suffix such as "bip-tied" is kept, and a budget as in "gmp@1.5" said."""
    own, at, factor = method.partition("@")
    head, dash, tail = own.partition("-")
    name = LABELS.get(own, LABELS.get(head, head) + dash + tail)
    return f"{name}, {factor}{TIMES} budget" if at else name


def percent(fraction: float | None, digits: int = 2) -> str:
    """0.9712 -> "97.12"."""
    return MISSING if fraction is None else f"{100 * fraction:.{digits}f}"


def sparsity_text(sparsity: float) -> str:
    """0.893 -> "89.3 %", 0.9775 -> "97.75 %"; what two decimals cannot tell, like rungs of IMP, with one."""
    percent = 100 * sparsity
    digits = 2 if abs(percent - round(percent, 2)) < 1e-9 else 1
    return f"{percent:.{digits}f}".rstrip("0").rstrip(".") + "\N{NO-BREAK SPACE}%"


def points(fraction: float | None, digits: int = 2) -> str:
    """A difference in percentage points with its sign: -0.0021 -> "−0.21"."""
    if fraction is None:
        return MISSING
    text = f"{100 * fraction:+.{digits}f}"
    return text.replace("-", MINUS) if float(text) else text[1:]


def spread(estimate: Estimate | None, digits: int = 2) -> str:
    """Mean and standard deviation of a fraction in percent: "97.12 ± 0.20", or the mean alone for one value."""
    if estimate is None:
        return MISSING
    return percent(estimate.mean, digits) + ("" if estimate.sd is None else f" ± {percent(estimate.sd, digits)}")


def points_range(interval: Interval | None) -> str:
    """Interval of a difference: "−0.50 to +0.10"."""
    return MISSING if interval is None else f"{points(interval.low)} to {points(interval.high)}"


def number(value: float | None) -> str:
    """Three significant digits, no exponent."""
    if value is None:
        return MISSING
    digits = 2 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 6)}f}"


def times(ratio: float | None) -> str:
    """A ratio: "2.31×", "0.52×", "12.4×"."""
    return MISSING if ratio is None else (f"{ratio:.2f}" if ratio < 10 else number(ratio)) + TIMES


def times_range(interval: Interval | None) -> str:
    """Interval of a ratio: "2.20× to 2.41×"."""
    return MISSING if interval is None else f"{times(interval.low)} to {times(interval.high)}"


def seconds_text(seconds: float | None) -> str:
    """A duration in its natural unit; minutes from 2 min on, hours from 2 h on."""
    if seconds is None:
        return MISSING
    size, unit = _unit(seconds)
    return f"{number(seconds / size)}\N{NO-BREAK SPACE}{unit}"


def seconds_sd(estimate: Estimate) -> str:
    """Standard deviation of durations in the unit of their mean: "± 0.08"; empty for one value."""
    return "" if estimate.sd is None else f"± {estimate.sd / _unit(estimate.mean)[0]:.2g}"


def _unit(seconds: float) -> tuple[float, str]:
    """Size in seconds and name of the unit that suits a duration."""
    for size, least, unit in ((3600.0, 7200.0, "h"), (60.0, 120.0, "min"), (1.0, 1.0, "s"), (1e-3, 1e-3, "ms")):
        if seconds >= least:
            return size, unit
    return 1e-6, "\N{MICRO SIGN}s"


def verdict_text(verdict: Verdict | None, pairs: int, margin: float, minimum: int) -> str:
    """A verdict with its reason: "non-inferior at a margin of 0.3 points"."""
    size = f"{number_plain(100 * margin)} points"
    if verdict is None:
        return MISSING
    if verdict == "inconclusive" and pairs < minimum:
        return f"inconclusive: fewer than {minimum} paired seeds"
    if verdict == "inferior":
        return f"less accurate by more than the margin of {size}"
    return f"{verdict} at a margin of {size}"


def number_plain(value: float) -> str:
    """A number without trailing zeros: 0.30 -> "0.3"."""
    return f"{value:.6g}"


def count(n: int, noun: str, plural: str = "") -> str:
    """ "1 seed", "5 seeds"."""
    return f"{n} {noun}" if n == 1 else f"{n} {plural or noun + 's'}"
