# SPDX-License-Identifier: Apache-2.0
"""What the rows of an ablation say: accuracies, paired differences, and answers in a sentence each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsekit.benchmarks.ablation_variants import CONTROL, VARIANTS
from sparsekit.benchmarks.reporting.wording import count, points, points_range
from sparsekit.benchmarks.rows import Row
from sparsekit.benchmarks.statistics import MINIMUM_PAIRS, Estimate, describe, paired_difference

YES, OPEN = "yes", "not shown"


@dataclass(frozen=True)
class Line:
    """One variant: test accuracies over its seeds, before training too; difference: variant - control, paired by seed.

    overlap: mean intersection over union with the run's masks. failed: seeds whose last attempt failed.
    """

    variant: str
    summary: str
    accuracy: Estimate | None
    before: Estimate | None
    difference: Estimate | None
    overlap: float | None
    failed: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """A question, "yes" or "not shown", and the numbers behind it.

    difference: how much better what the question is about does, paired by seed; None without a common seed.
    """

    question: str
    better: str
    worse: str
    difference: Estimate | None
    verdict: str
    detail: str

    @property
    def sentence(self) -> str:
        """Question, verdict and numbers."""
        return f"{self.question}: {self.verdict} ({self.detail})"


@dataclass(frozen=True)
class Ablation:
    """run, config: what was ablated, as in the rows. epochs: of each variant's training, None if none has finished."""

    run: Mapping[str, Any]
    config: Mapping[str, Any]
    epochs: float | None
    lines: tuple[Line, ...]
    answers: tuple[Answer, ...]
    environments: tuple[Mapping[str, Any], ...]


_QUESTIONS = (
    ("the choice of weights matters beyond the densities of layers", CONTROL, ("shuffled", "random")),
    ("the densities of layers beat those of ERK", "random", ("random-erk",)),
    ("the weights that training begins with matter beyond the mask", CONTROL, ("reinit", "rewound")),
)


def summarise_ablation(rows: Iterable[Row]) -> Ablation:
    """The answers of the rows of one ablation.

    Raises:
        ValueError: no row of an ablation, or rows of several runs.
    """
    own = [row for row in rows if row.get("kind") == "ablate"]
    runs = {(row["run"]["id"], row["run"]["mask_hash"]) for row in own}
    if len(runs) != 1:
        raise ValueError(f"ablation: rows: expected those of one run, got those of {len(runs)}")
    by: dict[str, dict[int, Row]] = {}
    for row in own:
        if "result" in row or "result" not in by.get(row["variant"], {}).get(row["seed"], {}):
            by.setdefault(row["variant"], {})[row["seed"]] = row
    order = [name for name in VARIANTS if name in by]
    found = {name: {s: row for s, row in by[name].items() if "result" in row} for name in order}
    answers = (_answer(question, better, rivals, found) for question, better, rivals in _QUESTIONS)
    return Ablation(
        run=own[0]["run"],
        config=own[0]["config"],
        epochs=next((row["cost"]["epochs"] for row in own if "result" in row), None),
        lines=tuple(_line(name, found, by[name]) for name in order),
        answers=tuple(answer for answer in answers if answer),
        environments=tuple({str(row["environment"]): row["environment"] for row in own}.values()),
    )


def _line(name: str, found: Mapping[str, Mapping[int, Row]], rows: Mapping[int, Row]) -> Line:
    results = [row["result"] for row in found[name].values()]
    return Line(
        variant=name,
        summary=VARIANTS[name].summary,
        accuracy=_describe([result["test_accuracy"] for result in results]),
        before=_describe([result["test_accuracy_before"] for result in results]),
        difference=None if name == CONTROL else _difference(found[name], found.get(CONTROL, {})),
        overlap=sum(result["overlap"] for result in results) / len(results) if results else None,
        failed=tuple(seed for seed in rows if seed not in found[name]),
    )


def _describe(values: Sequence[float]) -> Estimate | None:
    return describe(values) if values else None


def _difference(a: Mapping[int, Row], b: Mapping[int, Row]) -> Estimate | None:
    """Test accuracy of a minus that of b over the seeds that both have."""
    seeds = sorted(a.keys() & b.keys())
    if not seeds:
        return None
    return paired_difference(*([rows[seed]["result"]["test_accuracy"] for seed in seeds] for rows in (a, b)))


def _answer(question: str, better: str, rivals: Sequence[str], found: Mapping[str, Mapping[int, Row]]) -> Answer | None:
    """The answer by the first rival that has run; None where neither side has."""
    worse = next((name for name in rivals if found.get(name)), None)
    if worse is None or not found.get(better):
        return None
    difference = _difference(found[better], found[worse])
    verdict, why = _verdict(difference)
    return Answer(question, better, worse, difference, verdict, f"{better} against {worse}: {why}")


def _verdict(difference: Estimate | None) -> tuple[str, str]:
    if difference is None:
        return OPEN, "no seed in common"
    size = f"{points(difference.mean)} points"
    if difference.interval is None:
        return OPEN, f"{size} with one seed; an answer needs {MINIMUM_PAIRS}"
    size += f", 95 %: {points_range(difference.interval)}"
    if difference.n < MINIMUM_PAIRS:
        return OPEN, f"{size} with {count(difference.n, 'seed')}; an answer needs {MINIMUM_PAIRS}"
    if difference.interval.high < 0:
        return OPEN, f"{size}, so it is the other way round"
    return YES if difference.interval.low > 0 else OPEN, size
