# SPDX-License-Identifier: Apache-2.0
"""Will it be faster? Every masked layer of a model, timed on its own inputs against what it could be instead."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from sparsekit import ops
from sparsekit.clocks import interleave, make_clock, quantiles, ratios
from sparsekit.nn import MaskedLayer, finalize, masked_layers, set_masks, sparsify
from sparsekit.ops import replicas
from sparsekit.patterns import Pattern, as_pattern
from sparsekit.projection import Projection

DENSE, EAGER, OWN, CUT = "dense", "weight * mask", "sparsekit", "cut"
"""What is timed: the layer without a mask, masked by PyTorch, as it is, and without its empty outputs and inputs."""
WORTH, COSTS = 1.1, 1.05
REASON = (
    "no gain: zeros inside a dense kernel save no arithmetic; empty outputs and inputs do once they are cut out (if cut). "
    "mask +n%: what the mask adds to the dense layer's time."
)


@dataclass(frozen=True)
class LayerSpeed:
    """One masked layer; times are medians in seconds of a call on the inputs that the example gives it.

    Args:
        name, kind, shape: of the layer, its class and its weight.
        kept: fraction of the weights that are kept, in [0, 1].
        outputs, inputs: how many of its outputs (dim 0) and inputs (dim 1) keep any weight.
        route: what served its forward pass, in words.
        seconds: by DENSE, EAGER, OWN and, if whole outputs or inputs are empty, CUT.
        ratios: of their times to the dense one's in the same round, the median; 1.02 is 2 % slower than dense.
        spread: the 20 and 80 % quantiles of these ratios.
        verdict: what most rounds agree on; see REASON.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    kept: float
    outputs: int
    inputs: int
    route: str
    seconds: dict[str, float]
    ratios: dict[str, float]
    spread: dict[str, tuple[float, float]]
    verdict: str


@dataclass(frozen=True)
class SpeedReport:
    """What ``speed`` found: every layer that ran, and the whole model as LayerSpeed names its times, without EAGER and CUT.

    Args:
        idle: masked layers that the example does not reach.
        backward: do the times include the backward pass?
    """

    layers: tuple[LayerSpeed, ...]
    seconds: dict[str, float]
    ratios: dict[str, float]
    idle: tuple[str, ...]
    backward: bool

    def __str__(self) -> str:
        lines = [
            f"{x.name}: {x.kind} {tuple(x.shape)}, {x.kept:.1%} kept, by {x.route}: dense {x.seconds[DENSE] * 1e3:.3f} ms, "
            f"masked {x.ratios[OWN]:.2f} of it, weight * mask {x.ratios[EAGER]:.2f}; {x.verdict}"
            for x in self.layers
        ]
        lines += [f"{name}: not reached by the example" for name in self.idle]
        whole = f"dense {self.seconds[DENSE] * 1e3:.2f} ms, masked {self.ratios[OWN]:.2f} of it"
        return "\n".join(
            [*lines, REASON, f"whole model, {'forward and backward' if self.backward else 'forward'}: {whole}"]
        )


def speed(
    model: nn.Module,
    example: Any,
    *,
    sparsity: float = 0.9,
    pattern: str | Pattern = "unstructured",
    backward: bool = False,
    repeats: int = 10,
) -> SpeedReport:
    """Time every masked layer of a model, and the model, against the same without masks.

    Args:
        model: a model with masked layers, or a plain one, of which a copy is masked by magnitude. Stays as it is.
        example: what the model is called with: a Tensor, a tuple of arguments, or a mapping of named ones. An autocast
            around this call holds for the timed ones too.
        sparsity, pattern: of the masks of a plain model, in [0, 1); not used for masked ones.
        backward: time the forward and the backward pass to inputs and parameters.
        repeats: interleaved rounds, >= 1.

    Raises:
        ValueError, TypeError: an argument is out of range or of a wrong kind, or no masked layer is reached.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"speed: model: expected a torch.nn.Module, got {type(model).__name__}")
    if type(repeats) is not int or repeats < 1:
        raise ValueError(f"speed: repeats: expected an int >= 1, got {repeats!r}")
    # A copy, because a forward pass may change buffers and timing needs gradients.
    masked = copy.deepcopy(replicas.plain_network("speed", model)).eval()
    if not masked_layers(masked):
        sparsify(masked)
        weights = {name: layer.weight.detach() for name, layer in masked_layers(masked).items()}
        set_masks(masked, Projection(as_pattern(pattern))(weights, sparsity).masks)
    device = next(iter(masked_layers(masked).values())).weight.device
    found = _inputs(masked, example)
    if not found:
        raise ValueError("speed: example: expected one that reaches a masked layer, got one that reaches none")
    timer = _Timer(device, backward, repeats)
    layers = tuple(
        _measure(name, layer, found[name], timer) for name, layer in masked_layers(masked).items() if name in found
    )
    plain = finalize(copy.deepcopy(masked))
    whole = {DENSE: lambda: _call(plain, example), OWN: lambda: _call(masked, example)}
    seconds, ratios, _ = timer(whole, [*plain.parameters(), *masked.parameters()])
    idle = tuple(name for name in masked_layers(masked) if name not in found)
    return SpeedReport(layers, seconds, ratios, idle, backward)


def _call(model: nn.Module, example: Any) -> Any:
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)


def _inputs(model: nn.Module, example: Any) -> dict[str, Tensor]:
    """The input of each masked layer in its first call."""
    found: dict[str, Tensor] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, arguments: tuple, named: dict[str, Any]) -> None:
            found.setdefault(name, (*arguments, *named.values())[0].detach().clone())

        return hook

    hooks = [layer.register_forward_pre_hook(note(n), with_kwargs=True) for n, layer in masked_layers(model).items()]
    try:
        with torch.no_grad():
            _call(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    return found


class _Timer:
    """Medians and ratios to DENSE of functions, forward or forward and backward, in interleaved rounds."""

    def __init__(self, device: torch.device, backward: bool, repeats: int) -> None:
        self.clock, self.backward, self.repeats = make_clock(device), backward, repeats

    def __call__(self, functions: dict[str, Callable[[], Any]], sources: list[Tensor]) -> tuple[dict, dict, dict]:
        prepare = (lambda f: self._with_gradients(f, sources)) if self.backward else torch.no_grad()
        timed = {name: prepare(function) for name, function in functions.items()}
        rounds = interleave(timed, self.clock, repeats=self.repeats, warmup=1, min_block_s=0.005)
        found = {name: quantiles(ratios(r.measured, rounds[DENSE].measured)) for name, r in rounds.items()}
        seconds = {name: median(r.measured) for name, r in rounds.items()}
        return (
            seconds,
            {n: middle for n, (_, middle, _) in found.items()},
            {n: (low, high) for n, (low, _, high) in found.items()},
        )

    def _with_gradients(self, function: Callable[[], Any], sources: list[Tensor]) -> Callable[[], Any]:
        wanted = [s for s in sources if s.requires_grad]

        def both() -> None:
            out = [t for t in tree_leaves(function()) if isinstance(t, Tensor) and t.requires_grad]
            torch.autograd.grad(out, wanted, [torch.ones_like(t) for t in out], allow_unused=True)

        return both


def _measure(name: str, layer: MaskedLayer, x: Tensor, timer: _Timer) -> LayerSpeed:
    mask, weight = ops.unpack_mask(layer.mask_words, layer.weight.shape), layer.weight
    x = x.requires_grad_(timer.backward and x.is_floating_point())
    bias: Tensor | None = layer.bias  # pyright: ignore[reportAssignmentType]
    functions: dict[str, Callable[[], Any]] = {
        DENSE: lambda: _plain(layer, x, weight, bias),
        EAGER: lambda: _plain(layer, x, weight * mask, bias),
        OWN: lambda: layer(x),
    }
    rows, columns = (mask.flatten(1).any(1), mask.transpose(0, 1).flatten(1).any(1))
    if layer.transposed:
        rows, columns = columns, rows
    sources = [x, weight, *([] if bias is None else [bias])]
    if (cut := _cut(layer, x, rows, columns)) is not None:
        functions[CUT] = lambda: _plain(layer, *cut)
        sources += [t for t in cut if t is not None]
    seconds, ratios, spread = timer(functions, sources)
    conv: Any = layer
    geometry = () if weight.ndim == 2 else (conv.stride, _numbers(conv.padding), conv.dilation, conv.groups)
    kept, whole = float(mask.float().mean()), (int(rows.sum()), int(columns.sum()))
    route = ops.layer_route(x, weight, geometry, transposed=layer.transposed)
    kind = type(layer).__name__.removeprefix("Masked")
    return LayerSpeed(name, kind, tuple(weight.shape), kept, *whole, route, seconds, ratios, spread, _verdict(spread))


def _numbers(padding: Any) -> Any:
    # "same" and "valid" say nothing about which kernel serves.
    return (0, 0) if isinstance(padding, str) else padding


def _plain(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if weight.ndim == 2:
        return F.linear(x, weight.t() if layer.transposed else weight, bias)
    return layer._conv_forward(x, weight, bias)


def _cut(layer: Any, x: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """Input, weight and bias of the layer without its empty outputs and inputs; None without any, or if nothing is left."""
    some, grouped = bool(rows.any()), getattr(layer, "groups", 1) != 1
    if grouped or not some or bool(rows.all() and columns.all()):
        return None
    channel = x.ndim - 1 if layer.weight.ndim == 2 else x.ndim - layer.weight.ndim + 1
    kept = columns.nonzero().flatten()
    weight = layer.masked_weight()
    weight = weight[columns][:, rows] if layer.transposed else weight[rows][:, columns]
    weight = weight.contiguous().requires_grad_(x.requires_grad)
    bias = None if layer.bias is None else layer.bias.detach()[rows].requires_grad_(x.requires_grad)
    return x.detach().index_select(channel, kept).requires_grad_(x.requires_grad), weight, bias


def _verdict(spread: Mapping[str, tuple[float, float]]) -> str:
    """What most rounds agree on, in a few words for whoever asks why it is not faster; REASON has the rest."""
    cut, (least, most) = spread.get(CUT, (1.0, 1.0))[1], spread[OWN]
    cost = f", mask +{least - 1:.0%}" if least > COSTS else ""
    if cut * WORTH <= 1:
        return f"{1 / cut:.1f}x if cut{cost}"
    return (f"{1 / most:.1f}x" if most * WORTH <= 1 else "no gain") + cost
