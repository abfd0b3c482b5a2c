# SPDX-License-Identifier: Apache-2.0
"""Which examples serve for training, validation and test: stratified, deterministic, disjoint."""

from __future__ import annotations

import hashlib
from typing import Literal, get_args

import torch
from torch import Tensor

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

SPLIT_SEED = 20221
"""Seeds the carving of validation and test sets: fixed, so that runs with different seeds share them."""

VALIDATION_SHARE = 10
"""One in ten training examples is set aside for validation ..."""
VALIDATION_CAP = 10_000
"""... but never more than these."""
TEST_SHARE = 5
"""One in five examples is set aside for the test where a data set comes without a split."""


def make_generator(*words: int | str) -> torch.Generator:
    """CPU generator seeded by a hash of `words`: neighbouring seeds or epochs give unrelated streams."""
    digest = hashlib.blake2b("/".join(str(word) for word in words).encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def draw_stratified(labels: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Splits positions into a sample with the class shares of the whole, and the rest.

    Args:
        labels: int64 [N], >= 0, on the CPU.
        count: size of the sample, 0 <= count <= N. Class c gets count * n_c / N, rounded by largest remainder, ties to
            the lowest class.
        generator: draws the members of each class.

    Returns:
        Positions of the sample and of the rest, int64, each ascending.
    """
    total = labels.numel()
    if not 0 <= count <= total:
        raise ValueError(f"draw_stratified: count: expected an integer in [0, {total}], got {count}")
    if total == 0:
        return torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    sizes = torch.bincount(labels)
    quotas = sizes * count // total
    missing = count - int(quotas.sum())
    remainders = sizes * count % total
    quotas[torch.argsort(remainders, descending=True, stable=True)[:missing]] += 1
    order = torch.randperm(total, generator=generator)
    order = order[torch.argsort(labels[order], stable=True)]
    by_class = labels[order]
    rank = torch.arange(total) - (sizes.cumsum(0) - sizes)[by_class]
    taken = rank < quotas[by_class]
    return order[taken].sort().values, order[~taken].sort().values


def plan_splits(labels: dict[Split, Tensor], *, limit: int | None, seed: int) -> dict[Split, tuple[Split, Tensor]]:
    """Where the examples of each split come from.

    A missing test set is carved out of the training set, then a missing validation set out of what remains.

    Args:
        labels: int64 [N] of each split that the data set offers; "train" must be there.
        limit: keep at most this many examples of each split (stratified), >= 1; None keeps all.
        seed: draws the examples that `limit` keeps; the carving does not depend on it.

    Returns:
        For each split the split of `labels` it is taken from, and the positions there, ascending int64.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"load_data: limit: expected an integer >= 1 or None, got {limit}")
    plan: dict[Split, tuple[Split, Tensor]] = {
        split: (split, torch.arange(values.numel())) for split, values in labels.items()
    }
    carved: tuple[tuple[Split, int], ...] = (("test", TEST_SHARE), ("val", VALIDATION_SHARE))
    for split, share in carved:
        if split not in plan:
            pool = plan["train"][1]
            count = (pool.numel() + share // 2) // share
            count = min(count, VALIDATION_CAP) if split == "val" else count
            sample, rest = draw_stratified(labels["train"][pool], count, make_generator(split, SPLIT_SEED))
            plan[split], plan["train"] = ("train", pool[sample]), ("train", pool[rest])
    if limit is not None:
        for split, (source, chosen) in plan.items():
            count = min(limit, chosen.numel())
            sample, _ = draw_stratified(labels[source][chosen], count, make_generator("limit", split, seed))
            plan[split] = (source, chosen[sample])
    return {split: plan[split] for split in SPLITS}
