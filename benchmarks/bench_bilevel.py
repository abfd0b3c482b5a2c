# SPDX-License-Identifier: Apache-2.0
"""Ops on all layers of a network at once, against PyTorch's chains of calls and a copy of the same bytes, all checked first.

python -m sparsekit.benchmarks.bench_bilevel --out rows.jsonl
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sparsekit import criteria, ops
from sparsekit.benchmarks.bench_rows import bench_rows, main
from sparsekit.benchmarks.problems import NETWORK_SHAPES
from sparsekit.benchmarks.timing import compare_times

SPARSITY, GAMMA = 0.9, 1.0
LR, MOMENTUM, DECAY = 1e-3, 0.9, 5e-4  # small, so that numbers stay numbers however often a step is repeated
NETWORKS: tuple[str, ...] = ("resnet18", "resnet50")
FLOOR = "copy floor"

Provider = Callable[[], list[Tensor]]
"""Does the work and returns what came of it."""


@dataclass(frozen=True)
class Layers:
    """The tensors that the functions work on, in lists by layer. Pruned weights are zero."""

    theta: list[Tensor]
    h: list[Tensor]
    masks: list[Tensor]
    words: list[Tensor]
    scores: list[Tensor]

    def state(self, value: float = 1.0) -> list[Tensor]:
        """A buffer for every layer."""
        return [torch.full_like(x, value) for x in self.theta]


def layers_of(shapes: tuple[tuple[int, ...], ...], device: str) -> Layers:
    """Random layers; the same at every call."""
    generator = torch.Generator().manual_seed(0)

    def draw() -> list[Tensor]:
        return [torch.randn(shape, generator=generator) for shape in shapes]

    masks = [torch.rand(shape, generator=generator) >= SPARSITY for shape in shapes]
    theta = [torch.where(mask, x, 0.0) for x, mask in zip(draw(), masks, strict=True)]
    given = (theta, draw(), masks, [ops.pack_mask(mask) for mask in masks], draw())
    return Layers(*([x.to(device) for x in tensors] for tensors in given))


def _copy(x: Layers, bytes_each: float) -> Provider:
    """A copy that reads and writes half of ``bytes_each`` for every weight."""
    size = int(sum(t.numel() for t in x.theta) * bytes_each / 2)
    source = torch.ones(size, dtype=torch.uint8, device=x.theta[0].device)
    target = torch.empty_like(source)

    return lambda: [target.copy_(source)]


def mask_weights(x: Layers) -> dict[str, Provider]:
    """bfloat16 effective weights of float32 masters; the first function only casts."""
    outs = [torch.empty_like(t, dtype=torch.bfloat16) for t in x.theta]

    def cast() -> list[Tensor]:
        torch._foreach_copy_(outs, x.theta)
        return outs

    return {
        "cast": cast,
        "cast one by one": lambda: [t.to(torch.bfloat16) for t in x.theta],
        "mul + cast": lambda: [(t * m).to(torch.bfloat16) for t, m in zip(x.theta, x.masks, strict=True)],
        "sparsekit": lambda: ops.mask_weights(x.theta, x.words, torch.bfloat16),
        FLOOR: _copy(x, 6),
    }


def bilinear_grads(x: Layers) -> dict[str, Provider]:
    """Both gradients, float32, from dense bfloat16 ones."""
    h, wide = [t.bfloat16() for t in x.h], [m.float() for m in x.masks]

    def foreach() -> list[Tensor]:
        own = [g.float() for g in h]
        return [*torch._foreach_mul(own, wide), *torch._foreach_mul(own, x.theta)]

    def ours() -> list[Tensor]:
        masked, products = ops.bilinear_grads(h, x.theta, x.words)
        return [*masked, *products]

    return {"foreach": foreach, "sparsekit": ours, FLOOR: _copy(x, 14.125)}


def _foreach_update(s: list[Tensor], x: Layers, momenta: list[Tensor], wide: list[Tensor]) -> list[Tensor]:
    direct, square = torch._foreach_mul(x.theta, x.h), torch._foreach_mul(x.h, x.h)
    torch._foreach_mul_(square, wide)
    torch._foreach_add_(direct, square, alpha=-1 / GAMMA)
    # copysign and not sign, so that a score of zero moves.
    torch._foreach_mul_(direct, [torch.ones_like(t).copysign_(t) for t in s])
    torch._foreach_add_(direct, s, alpha=DECAY)
    torch._foreach_mul_(momenta, MOMENTUM)
    torch._foreach_add_(momenta, direct)
    torch._foreach_add_(s, momenta, alpha=-LR)
    return s


def bilevel_update(x: Layers) -> dict[str, Provider]:
    """One upper step of BiP on all scores, with momentum and weight decay."""
    wide = [m.float() for m in x.masks]
    states = [([s.clone() for s in x.scores], x.state()) for _ in range(3)]

    def by_layer() -> list[Tensor]:
        for s, momentum, theta, h, m in zip(*states[1], x.theta, x.h, x.masks, strict=True):
            g = criteria.bip_hypergradient(theta, m, h, s, GAMMA).add_(s, alpha=DECAY)
            s.add_(momentum.mul_(MOMENTUM).add_(g), alpha=-LR)
        return states[1][0]

    def ours() -> list[Tensor]:
        s, momenta = states[2]
        options = {"lr": LR, "gamma": GAMMA, "momentum": MOMENTUM, "weight_decay": DECAY}
        ops.bilevel_update_(s, x.theta, x.h, x.words, momenta=momenta, **options)
        return s

    chain: Provider = partial(_foreach_update, states[0][0], x, states[0][1], wide)
    return {"foreach": chain, "layer by layer": by_layer, "sparsekit": ours, FLOOR: _copy(x, 24.125)}


def _fused(x: Layers, make: Callable[[list[Tensor]], torch.optim.Optimizer], masked: bool) -> Provider:
    """A fused optimizer of PyTorch whose state has begun, with or without masks on the weights behind each step."""
    params = [t.clone().requires_grad_() for t in x.theta]
    wide = [m.float() for m in x.masks]
    optimizer = make(params)
    for p, h in zip(params, x.h, strict=True):
        p.grad = torch.zeros_like(h)
    optimizer.step()
    with torch.no_grad():
        for p, t, h in zip(params, x.theta, x.h, strict=True):
            p.copy_(t)
            p.grad = h

    def step() -> list[Tensor]:
        optimizer.step()
        if masked:
            with torch.no_grad():
                torch._foreach_mul_(params, wide)
        return [p.detach() for p in params]

    return step


def masked_sgd(x: Layers) -> dict[str, Provider]:
    """An SGD step with momentum and weight decay that pruned weights have no part in."""
    options = {"lr": LR, "momentum": MOMENTUM, "weight_decay": DECAY}
    theta, momenta = [t.clone() for t in x.theta], x.state(0.0)

    def ours() -> list[Tensor]:
        ops.masked_sgd_(theta, x.h, x.words, momenta=momenta, **options)
        return theta

    def make(params: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(params, fused=True, **options)

    fused = {"fused SGD + masks": _fused(x, make, True), "fused SGD, dense": _fused(x, make, False)}
    return {**fused, "sparsekit": ours, FLOOR: _copy(x, 20.125)}


def masked_adamw(x: Layers) -> dict[str, Provider]:
    """An AdamW step that pruned weights have no part in: the second one, after a first with gradients of zero."""
    theta, first, second = [t.clone() for t in x.theta], x.state(0.0), x.state(0.0)

    def ours() -> list[Tensor]:
        ops.masked_adamw_(theta, first, second, x.h, x.words, lr=LR, step=2, weight_decay=DECAY)
        return theta

    def make(params: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(params, fused=True, lr=LR, weight_decay=DECAY)

    fused = {"fused AdamW + masks": _fused(x, make, True), "fused AdamW, dense": _fused(x, make, False)}
    return {**fused, "sparsekit": ours, FLOOR: _copy(x, 28.125)}


CASES: dict[str, Callable[[Layers], dict[str, Provider]]] = {
    f.__name__: f for f in (mask_weights, bilinear_grads, bilevel_update, masked_sgd, masked_adamw)
}


def _oracle(case: str, x: Layers) -> list[Tensor]:
    """What one call must give, in float64 where it is computed at all."""
    wide = Layers(*([t.double() if t.is_floating_point() else t for t in given] for given in vars(x).values()))
    if case == "mask_weights":
        return [torch.where(m, t, 0).bfloat16() for t, m in zip(x.theta, x.masks, strict=True)]
    if case == "bilinear_grads":
        narrow = [t.bfloat16().double() for t in x.h]
        masked = [torch.where(m, g, 0) for g, m in zip(narrow, x.masks, strict=True)]
        return [*masked, *(t * g for t, g in zip(wide.theta, narrow, strict=True))]
    if case == "bilevel_update":
        found = []
        for s, theta, h, m in zip(wide.scores, wide.theta, wide.h, x.masks, strict=True):
            g = torch.where(s < 0, -1.0, 1.0) * (theta * h - torch.where(m, h * h, 0) / GAMMA)
            found.append(s - LR * (MOMENTUM + g + DECAY * s))
        return found
    params = [t.clone().requires_grad_() for t in wide.theta]
    options: dict[str, Any] = {"lr": LR, "weight_decay": DECAY, "foreach": False}
    sgd = case == "masked_sgd"
    optimizer = torch.optim.SGD(params, momentum=MOMENTUM, **options) if sgd else torch.optim.AdamW(params, **options)
    for grads in ([torch.zeros_like(h) for h in wide.h], wide.h):
        for p, t, g in zip(params, wide.theta, grads, strict=True):
            p.data.copy_(t)
            p.grad = g
        optimizer.step() if not sgd or grads is wide.h else None
    return [torch.where(m, p.detach(), 0) for p, m in zip(params, x.masks, strict=True)]


def _check(case: str, x: Layers) -> None:
    """Raises unless every function gives what the oracle says, up to the rounding of float32; dense ones where kept."""
    expected = _oracle(case, x)
    for name, function in CASES[case](x).items():
        found = function()
        if name == FLOOR:
            continue
        masks = x.masks if name.startswith("cast") or name.endswith("dense") else [m | True for m in x.masks]
        for i, (got, want) in enumerate(zip(found, expected, strict=True)):
            kept = masks[i % len(masks)]
            if not torch.allclose(got.double()[kept], want.double()[kept], rtol=1e-5, atol=1e-7):
                raise ValueError(f"bench_bilevel: {name}: expected what the oracle of {case} gives, got others")


def run(repeats: int, device: str = "cpu", only: str = "*") -> Iterator[dict[str, Any]]:
    """Rows for the networks of problems.py on ``device`` ("cpu" or "cuda"), for the problems that match ``only``."""
    for network in NETWORKS:
        for case, make in CASES.items():
            if not fnmatch.fnmatchcase(f"{network} {case}", only):
                continue
            x = layers_of(NETWORK_SHAPES[network], device)
            _check(case, x)
            timings = compare_times(make(x), repeats=repeats, check=None, device=device)
            n = sum(t.numel() for t in x.theta)
            for row in bench_rows("bilevel", f"{network} {case}", timings, n=n, tensors=len(x.theta)):
                yield row | {"floor_ratio": row["median_s"] / timings[FLOOR].median}


if __name__ == "__main__":
    main(__doc__ or "", run, lambda parser: parser.add_argument("--only", default="*", help="glob on problems"))
