# SPDX-License-Identifier: Apache-2.0
"""Learning-rate curves as text, as recipes hold them: a name, or pieces one after the other."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparsekit.pruners.learning_rate import CURVES, Curve

KINDS = ("warmup", "cosine", "linear", "constant")


@dataclass(frozen=True)
class Piece:
    """A stretch of a curve: kind of KINDS, share of the phase > 0, factor at its begin and at its end, both >= 0."""

    kind: str
    share: float
    begin: float
    end: float

    def at(self, u: float) -> float:
        """Factor after the fraction u of the piece."""
        if self.kind == "cosine":
            return self.end + (self.begin - self.end) * 0.5 * (1 + math.cos(math.pi * u))
        return self.begin + (self.end - self.begin) * u


@dataclass(frozen=True)
class Pieces:
    """A curve made of pieces, whose shares need not add up to one."""

    pieces: tuple[Piece, ...]

    def __call__(self, t: float) -> float:
        """Factor of the learning rate after the fraction t of the phase."""
        position = t * sum(piece.share for piece in self.pieces)
        for piece in self.pieces[:-1]:
            if position < piece.share:
                return piece.at(position / piece.share)
            position -= piece.share
        last = self.pieces[-1]
        return last.at(min(position / last.share, 1.0))


def curve_of(text: str, name: str = "curve") -> str | Curve:
    """The curve that a text describes; a name of the pruners' own curves stays a name.

    Args:
        text: "cosine", "linear", "constant", "step" (x0.1 at a half, x0.01 at three quarters), or pieces KIND:SHARE[:END]
            joined by "+", such as "warmup:20+cosine:70:1e-4+constant:10". A piece begins where the one before ended, the
            first at 1; "warmup" rises linearly from 1/SHARE to END (1), as one that counts epochs; "cosine" and "linear" fall
            to END (0); "constant" stays, or is at END throughout.
        name: what errors call it.

    Raises:
        ValueError: anything else.
    """
    if isinstance(text, str) and text in CURVES:
        return text
    if not isinstance(text, str) or ":" not in text:
        expected = f"one of {', '.join(CURVES)} or pieces such as warmup:20+cosine:80"
        raise ValueError(f"Recipe: {name}: expected {expected}, got {text!r}")
    pieces: list[Piece] = []
    for part in text.split("+"):
        pieces.append(_piece(part, pieces[-1].end if pieces else 1.0, f"Recipe: {name}"))
    return Pieces(tuple(pieces))


def _piece(part: str, begin: float, where: str) -> Piece:
    kind, *rest = part.split(":")
    try:
        numbers = [float(number) for number in rest]
    except ValueError:
        numbers = []
    fits = len(numbers) in (1, 2) and all(map(math.isfinite, numbers)) and numbers[0] > 0 and numbers[-1] >= 0
    if kind not in KINDS or not fits:
        expected = f"pieces KIND:SHARE[:END], KIND one of {', '.join(KINDS)}, SHARE > 0, END >= 0"
        raise ValueError(f"{where}: expected {expected}, got {part!r}")
    share = numbers[0]
    if kind == "warmup":
        begin = min(1.0, 1.0 / share)
    end = numbers[1] if len(numbers) > 1 else {"warmup": 1.0, "constant": begin}.get(kind, 0.0)
    return Piece(kind, share, end if kind == "constant" else begin, end)
