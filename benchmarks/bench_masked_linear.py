# SPDX-License-Identifier: Apache-2.0
"""Masked linear layers against dense ones and against masks by PyTorch, forward and as a training step, all checked first.

python -m sparsekit.benchmarks.bench_masked_linear --out rows.jsonl

Weights rotate through copies that together exceed the caches, as those of a deep model do.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import prune

from sparsekit.benchmarks.bench_rows import bench_rows, case_options, main, matching
from sparsekit.benchmarks.problems import LinearProblem, linear_problems
from sparsekit.benchmarks.timing import compare_times
from sparsekit.mask import Mask
from sparsekit.nn import MaskedLinear, cached_weights

SPARSITY = 0.9
CACHES = {"cpu": 2 * 2**26, "cuda": 2 * 60 * 2**20}
"""Bytes that a set of weights has to exceed: twice the last cache of common processors, twice the L2 of an H200."""
TOKENS = {"cpu": (1, 8, 64), "cuda": (1, 16, 128, 512, 1024, 2048, 4096, 8192, 16384)}
BOOL, FLOAT, DENSE, OURS = "F.linear(x, w * m), m bool", "F.linear(x, w * m), m as w", "dense F.linear", "sparsekit"
CACHED, PRUNE, COMPILED = "sparsekit, cached_weights", "torch.nn.utils.prune", "compiled F.linear(x, w * m)"

Provider = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """A layer, its input's dtype, and whether the gradients of x and of the float32 weight are formed too.

    train: under autocast to `dtype`, as with float32 master weights; otherwise the weight has the dtype of x.
    """

    problem: LinearProblem
    dtype: torch.dtype
    train: bool

    @property
    def name(self) -> str:
        """tokens x outputs x inputs/dtype/forward or step."""
        p, dtype = self.problem, str(self.dtype).removeprefix("torch.")
        return f"{p.rows}x{p.outputs}x{p.inputs}/{dtype}/{'step' if self.train else 'forward'}"


def cases(device: str) -> list[Case]:
    """Square layers; in float32 on a CPU, in bfloat16 on a GPU."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    largest = 2**24 if device == "cpu" else 2**26
    found = [p for p in linear_problems(TOKENS[device]) if p.outputs == p.inputs and p.outputs * p.inputs <= largest]
    return [Case(p, dtype, train) for p in found for train in (False, True)]


@dataclass(frozen=True)
class Layers:
    """The rotating layers of a case, one entry for each copy."""

    x: Tensor
    weights: list[Tensor]
    masks: list[Tensor]
    masked: list[MaskedLinear]
    cached: list[MaskedLinear]
    pruned: list[torch.nn.Linear]


def build(case: Case, device: str) -> Layers:
    """Enough equal-sized layers to exceed the caches."""
    p, generator = case.problem, torch.Generator().manual_seed(0)
    dtype = torch.float32 if case.train else case.dtype
    copies = max(1, -(-CACHES[device] // (p.outputs * p.inputs * dtype.itemsize)))
    x = torch.randn(p.rows, p.inputs, generator=generator).to(device, dtype if case.train else case.dtype)
    first = torch.randn(p.weight_shape, generator=generator)
    mask = (torch.rand(p.weight_shape, generator=generator) >= SPARSITY).to(device)
    weights = [(first * (1 + i)).to(device, dtype).requires_grad_(case.train) for i in range(copies)]
    masked, pruned = [], []
    for weight in weights:
        layer = MaskedLinear(p.inputs, p.outputs, bias=False, device=device, dtype=dtype)
        layer.weight = torch.nn.Parameter(weight.detach(), requires_grad=case.train)
        layer.mask = Mask.from_dense(mask)
        plain = torch.nn.Linear(p.inputs, p.outputs, bias=False, device=device, dtype=dtype)
        plain.weight = torch.nn.Parameter(weight.detach(), requires_grad=case.train)
        masked.append(layer)
        pruned.append(prune.custom_from_mask(plain, "weight", mask))
    return Layers(x.requires_grad_(case.train), weights, [mask] * copies, masked, copy.deepcopy(masked), pruned)


def _in_turn(functions: Sequence[Provider]) -> Provider:
    turns = itertools.cycle(functions)
    return lambda: next(turns)()


def providers(case: Case, layers: Layers, compiled: bool = False) -> dict[str, Provider]:
    """Functions that give y, or (y, gradient of x, gradient of the weight); the first is the baseline."""
    x, pairs = layers.x, list(zip(layers.weights, layers.masks, strict=True))
    floats = layers.masks[0].to(layers.weights[0].dtype)
    product = torch.compile(lambda x, w, m: F.linear(x, w * m)) if compiled else None
    functions: dict[str, list[tuple[Provider, Tensor]]] = {
        BOOL: [(lambda w=w, m=m: F.linear(x, w * m), w) for w, m in pairs],
        FLOAT: [(lambda w=w: F.linear(x, w * floats), w) for w, _ in pairs],
        DENSE: [(lambda w=w: F.linear(x, w), w) for w, _ in pairs],
        PRUNE: [(lambda layer=layer: layer(x), layer.weight_orig) for layer in layers.pruned],
        OURS: [(lambda layer=layer: layer(x), layer.weight) for layer in layers.masked],
    }
    if product is not None:
        functions[COMPILED] = [(lambda w=w, m=m: product(x, w, m), w) for w, m in pairs]
    if not case.train:
        functions[CACHED] = [(lambda layer=layer: layer(x), layer.weight) for layer in layers.cached]
    return {name: _in_turn([_timed(case, f, w, x) for f, w in found]) for name, found in functions.items()}


def _timed(case: Case, forward: Provider, weight: Tensor, x: Tensor) -> Provider:
    if not case.train:
        return torch.no_grad()(forward)
    gradient = torch.ones(case.problem.rows, case.problem.outputs, device=x.device, dtype=case.dtype)

    def step() -> tuple[Tensor, ...]:
        with torch.autocast(x.device.type, case.dtype, enabled=case.dtype != torch.float32):
            y = forward()
        return (y, *torch.autograd.grad(y, (x, weight), gradient))

    return step


def make_check(case: Case, layers: Layers) -> Callable[[str, Any, Any], None]:
    """Each entry within twice the baseline's error against float64; what is dense has a truth of its own."""
    x, weight, mask = (t.detach().double() for t in (layers.x, layers.weights[0], layers.masks[0]))
    ones = torch.ones(case.problem.rows, case.problem.outputs, device=x.device, dtype=torch.float64)

    def truth(name: str) -> list[Tensor]:
        z = weight if name == DENSE else weight * mask
        exact = [F.linear(x, z)]
        if case.train:
            exact += [ones @ z, ones.t() @ x if name == DENSE else (ones.t() @ x) * mask]
        return exact

    def check(name: str, result: Any, expected: Any) -> None:
        found, base = ([r] if isinstance(r, Tensor) else list(r) for r in (result, expected))
        for ours, theirs, exact, reference in zip(found, base, truth(name), truth(BOOL), strict=True):
            rounding = torch.finfo(case.dtype).eps * exact.abs().max()
            allowed = 2 * (theirs.double() - reference).abs().max() + rounding if name != BOOL else 16 * rounding
            error = (ours.double() - exact).abs().max()
            # A dense product sums ten times as many terms as the baseline's.
            if not error <= allowed * (10 if name == DENSE else 1):
                raise ValueError(
                    f"bench_masked_linear: {name}: expected an error of at most {allowed:.3g}, got {error:.3g}"
                )

    return check


def measure(case: Case, repeats: int, device: str, compiled: bool = False) -> list[dict[str, Any]]:
    """Rows of one case: every provider is checked before any is timed."""
    layers = build(case, device)
    check = make_check(case, layers)
    with cached_weights(torch.nn.ModuleList(layers.cached)):
        functions = providers(case, layers, compiled)
        first = providers(case, layers)[BOOL]()
        check(BOOL, first, first)
        timings = compare_times(functions, repeats=repeats, check=check, device=device)
    p = case.problem
    return bench_rows("masked_linear", case.name, timings, tokens=p.rows, outputs=p.outputs, inputs=p.inputs)


def run(repeats: int, device: str = "cpu", only: str | None = None, compiled: bool = False) -> Iterator[dict[str, Any]]:
    """Rows of the cases of ``device`` ("cpu" or "cuda") whose names match the glob ``only``."""
    for case in matching("bench_masked_linear", cases(device), only):
        yield from measure(case, repeats, device, compiled)


if __name__ == "__main__":
    main(__doc__ or "", run, lambda parser: case_options(parser, "8x4096x4096/*"))
