# SPDX-License-Identifier: Apache-2.0
"""Jobs of test_distributed_cuda.py: each runs on every rank of a group, whose ranks share one GPU."""

from __future__ import annotations

import random

import torch
from distributed_jobs import LIST_SHAPES, draw, flag, same
from oracles import topk_oracle
from processes import all_raise

from sparsekit import ops

DEVICE = "cuda"


def lists(rank: int, world: int) -> None:
    """Scores on the device give the masks of the sort, on the device."""
    wrong = []
    for case in range(60):
        dice = random.Random(5000 * world + case)
        scores, kept, options = draw(dice, LIST_SHAPES, world, 3)
        out = dice.choice(("words", "bool"))
        masks, invalid = ops.dist_topk_mask([s.to(DEVICE) for s in scores[rank]], kept, out=out, **options)
        flat = [s for part in scores for s in part]
        expected, bad = topk_oracle(flat, kept, **options) if flat else ([], False)
        start = sum(len(part) for part in scores[:rank])
        mine = expected[start : start + len(scores[rank])]
        fits = all(m.device.type == DEVICE and same(m.cpu(), e, out) for m, e in zip(masks, mine, strict=True))
        if not fits or not flag(invalid.cpu(), bad) or (flat and invalid.device.type != DEVICE):
            wrong.append((case, fits, bool(invalid), bad))
    assert not wrong, wrong[:5]


def another_device(rank: int, world: int) -> None:
    """Scores on the CPU of one rank and on the GPU of another are an error on both."""
    score = torch.ones(3, 3, device="cpu" if rank else DEVICE)
    text = f"dist_topk_mask: device: expected the same on all ranks, got {DEVICE} on rank 0, cpu on rank 1"
    all_raise(lambda: ops.dist_topk_mask([score], 2), "ValueError", text)
