# SPDX-License-Identifier: Apache-2.0
"""Masked convolutions against dense ones and against masks by PyTorch, forward and as a training step, all checked first.

python -m sparsekit.benchmarks.bench_masked_conv2d --out rows.jsonl

Every different convolution of ResNet-18 and ResNet-50, channels_last, with masks of single weights; and the larger 3x3 ones
with masks of whole filters. On a GPU the Triton kernels are timed whether or not they serve: the rows say where they win.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from sparsekit.benchmarks.bench_rows import bench_rows, case_options, main, matching
from sparsekit.benchmarks.problems import ConvProblem, resnet18_convs, resnet50_convs
from sparsekit.benchmarks.timing import compare_times
from sparsekit.mask import Mask
from sparsekit.nn import MaskedConv2d, cached_weights, compacted_filters
from sparsekit.ops.formulas import conv, conv_backward

BATCHES = {"cpu": (1, 8), "cuda": (1, 8, 32, 128)}
UNSTRUCTURED, FILTERS = (0.9,), (0.5, 0.75)
"""Fractions removed: of single weights, and of whole filters."""
BOOL, FLOAT, DENSE, OURS = "conv2d(x, w * m), m bool", "conv2d(x, w * m), m as w", "dense conv2d", "sparsekit"
CACHED, COMPACT, PRUNE = "sparsekit, cached_weights", "sparsekit, compacted_filters", "torch.nn.utils.prune"
COMPILED, TRITON = "compiled conv2d(x, w * m)", "sparsekit's Triton kernels"

Provider = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """A convolution, its batch, its mask, and whether the gradients at x and at the float32 weight are formed too."""

    problem: ConvProblem
    batch: int
    sparsity: float
    filters: bool
    dtype: torch.dtype
    train: bool

    @property
    def name(self) -> str:
        """batch x inputs x size -> outputs, kernel, stride / mask / dtype / forward or step."""
        p, dtype = self.problem, str(self.dtype).removeprefix("torch.")
        conv = f"{self.batch}x{p.inputs}x{p.size}-{p.outputs}k{p.kernel}s{p.stride}"
        mask = f"{self.sparsity:g} {'filters' if self.filters else 'weights'}"
        return f"{conv}/{mask}/{dtype}/{'step' if self.train else 'forward'}"


def cases(device: str) -> list[Case]:
    """In float32 on a CPU, in bfloat16 with float32 weights on a GPU."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    convs = list(dict.fromkeys([*resnet18_convs(), *resnet50_convs()]))
    # On a CPU the 3x3 ones alone: a pass through all takes too long for what it tells.
    chosen = [p for p in convs if device == "cuda" or p.kernel == 3]
    found = []
    for p in chosen:
        masks = [(s, False) for s in UNSTRUCTURED]
        masks += [(s, True) for s in FILTERS if p.kernel == 3 and p.inputs >= 256]
        for batch in BATCHES[device]:
            found += [Case(p, batch, *mask, dtype, train) for mask in masks for train in (False, True)]
    return found


@dataclass(frozen=True)
class Layer:
    """What the providers of a case share."""

    x: Tensor
    weight: Tensor
    mask: Tensor
    masked: MaskedConv2d
    cached: MaskedConv2d
    compacted: MaskedConv2d
    pruned: nn.Conv2d
    upstream: Tensor


def build(case: Case, device: str) -> Layer:
    """Tensors and layers of a case, channels_last."""
    p, generator = case.problem, torch.Generator().manual_seed(0)
    dtype = torch.float32 if case.train else case.dtype
    options: dict[str, Any] = {"stride": p.stride, "padding": p.kernel // 2, "bias": False}
    place: dict[str, Any] = {"device": device, "memory_format": torch.channels_last}
    x = torch.randn(p.input_shape(case.batch), generator=generator).to(dtype=case.dtype, **place)
    weight = torch.randn(p.weight_shape, generator=generator).to(dtype=dtype, **place)
    each = torch.rand(p.outputs if case.filters else p.weight_shape, generator=generator)
    mask = each >= case.sparsity
    mask = (mask.view(-1, 1, 1, 1).expand(p.weight_shape) if case.filters else mask).to(**place)
    masked, plain = (
        kind(p.inputs, p.outputs, p.kernel, device=device, dtype=dtype, **options).to(memory_format=torch.channels_last)
        for kind in (MaskedConv2d, nn.Conv2d)
    )
    for layer in (masked, plain):
        layer.weight = nn.Parameter(weight.clone(), requires_grad=case.train)
    masked.mask = Mask.from_dense(mask)
    side = -(-p.size // p.stride)
    upstream = torch.ones(case.batch, p.outputs, side, side, dtype=case.dtype).to(**place)
    pruned: Any = prune.custom_from_mask(plain, "weight", mask)
    x, weight = x.requires_grad_(case.train), weight.requires_grad_(case.train)
    return Layer(x, weight, mask, masked, copy.deepcopy(masked), copy.deepcopy(masked), pruned, upstream)


def providers(case: Case, layer: Layer, compiled: bool = False) -> dict[str, Provider]:
    """Functions that give y, or (y, gradient of x, gradient of the weight); the first is the baseline."""
    x, w, m, floats = layer.x, layer.weight, layer.mask, layer.mask.to(layer.weight.dtype)
    options: dict[str, Any] = {"stride": case.problem.stride, "padding": case.problem.kernel // 2}
    functions: dict[str, tuple[Provider, Tensor]] = {
        BOOL: (lambda: F.conv2d(x, w * m, **options), w),
        FLOAT: (lambda: F.conv2d(x, w * floats, **options), w),
        DENSE: (lambda: F.conv2d(x, w, **options), w),
        PRUNE: (lambda: layer.pruned(x), layer.pruned.weight_orig),  # pyright: ignore[reportAssignmentType]
        OURS: (lambda: layer.masked(x), layer.masked.weight),
    }
    if compiled:
        product = torch.compile(lambda x, w, m: F.conv2d(x, w * m, **options))
        functions[COMPILED] = (lambda: product(x, w, m), w)
    found = {name: _timed(case, function, x, weight, layer.upstream) for name, (function, weight) in functions.items()}
    if not case.train:
        found[CACHED] = _timed(case, lambda: layer.cached(x), x, layer.cached.weight, layer.upstream)
    if case.filters:
        found[COMPACT] = _timed(case, lambda: layer.compacted(x), x, layer.compacted.weight, layer.upstream)
    if x.device.type == "cuda":
        found[TRITON] = _triton(case, layer)
    return found


def _triton(case: Case, layer: Layer) -> Provider:
    """The Triton kernels themselves, whatever would serve."""
    from sparsekit.ops import conv_problems, conv_routes
    from sparsekit.ops.triton_linear_problems import hardware

    x, weight, words, dy = layer.x.detach(), layer.masked.weight.detach(), layer.masked.mask_words, layer.upstream
    stride, padding = [case.problem.stride] * 2, [case.problem.kernel // 2] * 2
    runs = []
    for product in ("y", "dx", "dw") if case.train else ("y",):
        problem = conv_routes._problem(product, x, weight, (stride, padding, [1, 1], 1))
        tiles = conv_problems.tiles_for(problem, *hardware(x.device))
        runs.append(lambda p=problem, t=tiles: conv_problems.run(p, t, x, dy, weight, words, None))
    return lambda: tuple(run() for run in runs) if case.train else runs[0]()


def _timed(case: Case, forward: Provider, x: Tensor, weight: Tensor, upstream: Tensor) -> Provider:
    if not case.train:
        return torch.no_grad()(forward)

    def step() -> tuple[Tensor, ...]:
        with torch.autocast(x.device.type, case.dtype, enabled=case.dtype != torch.float32):
            y = forward()
        return (y, *torch.autograd.grad(y, (x, weight), upstream))

    return step


def make_check(case: Case, layer: Layer) -> Callable[[str, Any, Any], None]:
    """Each entry within twice the baseline's error against float64; what is dense has a truth of its own."""
    x, weight, mask, dy = (t.detach() for t in (layer.x, layer.weight, layer.mask, layer.upstream))
    geometry = [case.problem.stride] * 2, [case.problem.kernel // 2] * 2, [1, 1], 1
    dtype = case.dtype

    def truth(dense: bool) -> list[Tensor]:
        # The weight as the products see it.
        z = (weight if dense else torch.where(mask, weight, 0)).to(dtype).double()
        exact = [conv(x.double(), z, None, *geometry)]
        if case.train:
            dx, dz, _ = conv_backward(dy.double(), x.double(), z, *geometry, [True, True, False])
            exact += [dx, dz if dense else torch.where(mask, dz, 0)]
        return exact

    exact = {dense: truth(dense) for dense in (False, True)}

    def check(name: str, result: Any, expected: Any) -> None:
        found, base = ([r] if isinstance(r, Tensor) else list(r) for r in (result, expected))
        for ours, theirs, right, reference in zip(found, base, exact[name == DENSE], exact[False], strict=True):
            rounding = torch.finfo(dtype).eps * right.abs().max()
            # Winograd's convolution on a CPU loses a few bits.
            allowed = 2 * (theirs.double() - reference).abs().max() + rounding if name != BOOL else 64 * rounding
            error = (ours.double() - right).abs().max()
            # A dense sum has ten times as many terms as the baseline's.
            if not error <= allowed * (10 if name == DENSE else 1):
                what = f"expected an error of at most {allowed:.3g}, got {error:.3g}"
                raise ValueError(f"bench_masked_conv2d: {case.name}: {name}: {what}")

    return check


def measure(case: Case, repeats: int, device: str, compiled: bool = False) -> list[dict[str, Any]]:
    """Rows of one case: every provider is checked before any is timed."""
    layer, p = build(case, device), case.problem
    check = make_check(case, layer)
    with cached_weights(layer.cached), compacted_filters(layer.compacted):
        functions = providers(case, layer, compiled)
        first = functions[BOOL]()
        check(BOOL, first, first)
        timings = compare_times(functions, repeats=repeats, check=check, device=device)
    shape = {"batch": case.batch, "inputs": p.inputs, "outputs": p.outputs, "size": p.size}
    return bench_rows("masked_conv2d", case.name, timings, **shape, kernel=p.kernel, stride=p.stride)


def run(repeats: int, device: str = "cpu", only: str | None = None, compiled: bool = False) -> Iterator[dict[str, Any]]:
    """Rows of the cases of ``device`` ("cpu" or "cuda") whose names match the glob ``only``."""
    for case in matching("bench_masked_conv2d", cases(device), only):
        yield from measure(case, repeats, device, compiled)


if __name__ == "__main__":
    main(__doc__ or "", run, lambda parser: case_options(parser, "8x256x14-256k3s1/*"))
