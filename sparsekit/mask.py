# SPDX-License-Identifier: Apache-2.0
"""Mask and Masks: which weights are kept, as values. Storage is packed words; ``dense()`` is for people."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsekit import ops
from sparsekit.ops import shards
from sparsekit.ops.masks import check_words


@dataclass(frozen=True, eq=False)
class Mask:
    """Keep-pattern of one weight.

    words: int32 [rows, ceil(cols/32)], layout as ``ops.pack_mask``; padding bits are zero. A DTensor where the weight is
        one; then all processes of its mesh have to call what counts, compares or prints.
    shape: shape of the weight.

    Raises ValueError or TypeError when words and shape do not belong together.
    """

    words: Tensor
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.words, Tensor):
            raise TypeError(f"Mask: words: expected an int32 tensor, got {type(self.words).__name__}")
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        check_words("Mask", self.words, self.shape, "a mask of shape")

    @classmethod
    def full(cls, shape: Sequence[int], device: torch.device | str | None = None) -> Mask:
        """The mask that keeps everything."""
        return cls.from_dense(torch.ones(tuple(shape), dtype=torch.bool, device=device))

    @classmethod
    def from_dense(cls, mask: Tensor) -> Mask:
        """Pack a bool tensor of the weight's shape (True = kept)."""
        return cls(ops.pack_mask(mask), tuple(mask.shape))

    def dense(self) -> Tensor:
        """Bool tensor of the weight's shape, True where the weight is kept."""
        return ops.unpack_mask(self.words, self.shape)

    @property
    def numel(self) -> int:
        """Number of weights, kept or not."""
        rows, cols = ops.rows_cols(self.shape)
        return rows * cols

    def count(self) -> int:
        """Number of weights kept."""
        return int(ops.popcount(self.words))

    @property
    def sparsity(self) -> float:
        """Fraction of weights removed, in [0, 1]; 0 for an empty weight."""
        return 1.0 - self.count() / self.numel if self.numel else 0.0

    def clone(self) -> Mask:
        """A copy with storage of its own."""
        return Mask(self.words.clone(), self.shape)

    def _other(self, other: Mask) -> Tensor:
        if not isinstance(other, Mask):
            raise TypeError(f"Mask: operand: expected a Mask, got {type(other).__name__}")
        if other.shape != self.shape:
            raise ValueError(f"Mask: operand: expected shape {self.shape}, got {other.shape}")
        return other.words

    def __and__(self, other: Mask) -> Mask:
        return Mask(self.words & self._other(other), self.shape)

    def __or__(self, other: Mask) -> Mask:
        return Mask(self.words | self._other(other), self.shape)

    def __xor__(self, other: Mask) -> Mask:
        return Mask(self.words ^ self._other(other), self.shape)

    def __invert__(self) -> Mask:
        # Not by inverting the words, which would set the padding bits.
        return Mask.from_dense(~self.dense())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mask) and self.shape == other.shape and torch.equal(self.words, other.words)

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __repr__(self) -> str:
        return f"Mask(shape={self.shape}, kept={self.count()}, sparsity={self.sparsity:.4f})"


def _counts(before: Sequence[Tensor], after: Sequence[Tensor]) -> list[tuple[int, int, int]]:
    """(kept before, kept after, kept at both moments) of each mask: one call and one wait for each device."""
    found = [(0, 0, 0)] * len(before)
    for device in {words.device for words in before}:
        places = [i for i, words in enumerate(before) if words.device == device]
        rows = ops.mask_counts([before[i] for i in places], [after[i] for i in places]).tolist()
        for i, (old, new, both) in zip(places, rows, strict=True):
            found[i] = (old, new, both)
    return found


class Masks(Mapping[str, Mask]):
    """Masks of a model by layer name, in module order: a snapshot, independent of the live model."""

    def __init__(self, masks: Mapping[str, Mask]) -> None:
        self._masks = dict(masks)

    def __getitem__(self, name: str) -> Mask:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Masks) and list(self) == list(other) and all(self[k] == other[k] for k in self)

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def count(self) -> int:
        """Weights kept over all layers."""
        words = [mask.words for mask in self.values()]
        return sum(kept for kept, _, _ in _counts(words, words))

    @property
    def numel(self) -> int:
        """Weights over all layers, kept or not."""
        return sum(mask.numel for mask in self.values())

    @property
    def sparsity(self) -> float:
        """Fraction of weights removed over all layers, in [0, 1]."""
        return 1.0 - self.count() / self.numel if self.numel else 0.0

    def _check_names(self, other: Masks) -> None:
        if set(self) != set(other):
            difference = ", ".join(sorted(set(self) ^ set(other)))
            raise ValueError(f"Masks: operand: expected the same layers, got a difference in {difference}")

    def overlap(self, other: Masks) -> float:
        """Intersection over union of the kept weights, in [0, 1]; 1 when both keep nothing."""
        self._check_names(other)
        words = [self[name]._other(other[name]) for name in self]
        counts = _counts([mask.words for mask in self.values()], words)
        own, others, both = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0, 0)
        either = own + others - both
        return both / either if either else 1.0

    def hash(self) -> str:
        """Hex digest of names, shapes and bits: equal exactly when the masks are equal."""
        digest = hashlib.sha256()
        for name, mask in self.items():
            digest.update(f"{name}:{mask.shape}:".encode())
            digest.update(shards.gathered(mask.words).cpu().numpy().astype("<i4").tobytes())
        return digest.hexdigest()

    def table(self) -> str:
        """Plain-text table: layer, shape, weights kept, sparsity; the last line is the total."""
        words = [mask.words for mask in self.values()]
        kept = [kept for kept, _, _ in _counts(words, words)]
        rows = [(n, "x".join(map(str, m.shape)), k, m.numel) for (n, m), k in zip(self.items(), kept, strict=True)]
        rows.append(("total", "", sum(kept), self.numel))
        width = max(len(r[0]) for r in rows)
        lines = [f"{'layer':<{width}}  {'shape':>16}  {'kept':>12}  {'of':>12}  sparsity"]
        for name, shape, kept, n in rows:
            lines.append(f"{name:<{width}}  {shape:>16}  {kept:>12,}  {n:>12,}  {1 - kept / n if n else 0.0:>8.2%}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.table()
