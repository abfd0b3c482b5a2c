# SPDX-License-Identifier: Apache-2.0
"""What users of pruning libraries trip over, as checks that any library can be asked: (passed, evidence)."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sparsekit.benchmarks.peers.library import PRUNED, Library, layers, zeros
from sparsekit.benchmarks.peers.networks import Attention, Net, Recurrent, Stack, Tied, Wide
from sparsekit.benchmarks.peers.steps import (
    HALF,
    Result,
    X,
    exact,
    final_of,
    pairs,
    pruned,
    refuse_smaller,
    steps,
    weights,
    zero_fraction,
)

Check = Callable[[Library], Result]


def copies(library: Library) -> Result:
    """`copy.deepcopy` before and after a forward pass"""
    model = pruned(library)
    before = copy.deepcopy(model)
    y = model(X)
    after = copy.deepcopy(model)
    return bool(torch.equal(before(X), y) and torch.equal(after(X), y)), "both copies give the same output"


def pickles(library: Library) -> Result:
    """pickle of the pruned model"""
    model = pruned(library)
    again = pickle.loads(pickle.dumps(model))
    return torch.equal(again(X), model(X)), "the copy gives the same output"


def compiles(library: Library) -> Result:
    """`torch.compile(fullgraph=True)`"""
    model = pruned(library)
    torch._dynamo.reset()
    y = torch.compile(model, backend="aot_eager", fullgraph=True)(X)
    return torch.allclose(y, model(X), atol=1e-6), "same output"


def exports(library: Library) -> Result:
    """`torch.export`"""
    model = pruned(library).eval()
    y = torch.export.export(model, (X,)).module()(X)
    return torch.allclose(y, model(X), atol=1e-6), "same output"


def baked_loads_strictly(library: Library) -> Result:
    """Pruned weights load strictly into the plain model"""
    model = pruned(library)
    y = model(X)
    plain, final = Net(), final_of(library, model)
    refuse_smaller(final, weights(plain))
    plain.load_state_dict(final.state_dict(), strict=True)
    return torch.allclose(plain(X), y, atol=1e-5), f"zeros: {zero_fraction(plain):.3f}"


def dense_loads(library: Library) -> Result:
    """A dense checkpoint loads behind the masks (`strict=False`)"""
    model = pruned(library)
    torch.manual_seed(7)
    dense = Net()
    library.dense_into(model, dense.state_dict())
    final = final_of(library, model)
    kept = [(a.weight[a.weight != 0], b.weight[a.weight != 0]) for a, b in pairs(final, dense)]
    arrived = sum(int((a == b).sum()) for a, b in kept) / max(1, sum(a.numel() for a, _ in kept))
    return arrived == 1.0, f"{arrived:.1%} of the kept weights are the checkpoint's; zeros: {zero_fraction(final):.3f}"


def convolutions(library: Library) -> Result:
    """Conv2d layers are pruned"""
    n, final = weights(Stack()), final_of(library, pruned(library, Stack()))
    left = sum(int((layer.weight != 0).sum()) for layer in layers(final).values())
    return left < 0.7 * n, f"{left:,} of {n:,} weights left"


def stays_zero(library: Library) -> Result:
    """Effective zeros under SGD with momentum and decay"""
    first = final_of(library, pruned(library))
    size, model = (weights(first), zero_fraction(first)), pruned(library)
    steps(model, X, 5)
    final = final_of(library, model)
    if weights(final) < weights(Net()):
        return weights(final) == size[0], f"{weights(final):,} of {weights(Net()):,} weights exist, before and after"
    return zero_fraction(final) >= size[
        1
    ] > 0, f"zeros {size[1]:.3f} before and {zero_fraction(final):.3f} after 5 steps"


def stored_stays(library: Library) -> Result:
    """What lies under the masks can be kept from drifting"""
    model = pruned(library)
    before = [w.detach().clone() for w, _ in library.stored(model)]
    steps(model, X, 5)
    drift = max(float((w - b)[~m].abs().max()) for (w, m), b in zip(library.stored(model), before, strict=True))
    model = pruned(library)
    before = [w.detach().clone() for w, _ in library.stored(model)]
    try:
        steps(model, X, 5, library.guard)
    except Exception as error:
        return False, f"drift of {drift:.2g} after 5 steps; {error}"
    still = all(torch.equal(w[~m], b[~m]) for (w, m), b in zip(library.stored(model), before, strict=True))
    return still, f"drift {drift:.2g}, and none with the protection on"


def bakes_and_goes_on(library: Library) -> Result:
    """After baking zeros for export, training goes on sparse"""
    model = pruned(library)
    if (before := zero_fraction(library.baked(model, X))) == 0:
        count = weights(model)
        steps(model, X, 1)
        return weights(model) == count, f"{count:,} weights before and after one more SGD step"
    try:
        steps(model, X, 1)
        after = zero_fraction(final_of(library, model))
    except Exception:
        after = zero_fraction(model)
    return after >= before, f"zeros {before:.3f} at the export, {after:.3f} after one more SGD step"


def resumes(library: Library) -> Result:
    """Masks and weights through a file into a fresh model, without unpickling objects"""
    model = pruned(library)
    torch.manual_seed(3)
    again = library.resume(model, Net(), X)
    return torch.equal(again(X), model(X)), "same output from the fresh model"


def names_stay(library: Library) -> Result:
    """Parameter names and `isinstance` stay"""
    model, plain = pruned(library), Net()
    names = {n for n, _ in plain.named_parameters()} ^ {n for n, _ in model.named_parameters()}
    kinds = all(isinstance(m, PRUNED) for m in (model.conv, model.fc1))
    return not names and kinds, f"changed: {', '.join(sorted(names)[:3])}" if names else "as in the dense model"


def reports_sparsity(library: Library) -> Result:
    """The sparsity can be read off the pruned model"""
    model = pruned(library, sparsity=0.9)
    told, real = library.sparsity(model), zero_fraction(final_of(library, model))
    return abs(told - real) < 1e-3, f"told {told:.4f}, real {real:.4f}"


def exact_global(library: Library) -> Result:
    """90 % of all Linear and Conv2d weights together, exactly"""
    return exact(library, Net(), 0.9)


def exact_ties(library: Library) -> Result:
    """Equal weights: 30 % of them, exactly"""
    model = Net()
    for layer in layers(model).values():
        nn.init.ones_(layer.weight)
    return exact(library, model, 0.3)


def large(library: Library) -> Result:
    """A layer of more than 2^24 weights, exactly"""
    return exact(library, Wide(), HALF, torch.randn(1, 4097))


def attention(library: Library) -> Result:
    """Attention trains twice, and what counts as pruned is zero for it"""
    x = torch.randn(2, 5, 8)
    model = pruned(library, Attention(), x)
    steps(model, x, 2)
    y = model(x)
    for weight, mask in library.stored(model):
        with torch.no_grad():
            weight.masked_fill_(~mask, 1e30)
    return torch.equal(model(x), y), "output unchanged by 1e30 under the masks"


def tied(library: Library) -> Result:
    """A tied embedding and head stay tied in effect"""
    x = torch.randint(0, 12, (2, 5))
    model: Any = pruned(library, Tied(), x)
    y = model(x)
    final: Any = final_of(library, model, x)
    same = torch.equal(final.head.weight, final.embedding.weight)
    agrees = torch.allclose(final(x), y, atol=1e-5)
    facts = ["one weight" if same else "two different weights", *([] if agrees else ["the export is another model"])]
    zero = f"zeros in head {zeros([final.head.weight]):.2f}, in embedding {zeros([final.embedding.weight]):.2f}"
    return same and agrees, "; ".join([zero, *facts])


def recurrent(library: Library) -> Result:
    """A model with an LSTM is pruned and trains"""

    x = torch.randn(5, 2, 8)
    model = pruned(library, Recurrent(), x)
    steps(model, x, 2)
    final: Any = final_of(library, model, x)
    gone = zeros([final.fc.weight])
    smaller = final.fc.weight.numel() < 24
    return smaller or gone >= HALF, f"zeros in the linear layer: {gone:.2f}"


CHECKS: tuple[Check, ...] = (
    copies,
    pickles,
    compiles,
    exports,
    names_stay,
    baked_loads_strictly,
    dense_loads,
    resumes,
    reports_sparsity,
    convolutions,
    exact_global,
    exact_ties,
    large,
    stays_zero,
    stored_stays,
    bakes_and_goes_on,
    attention,
    tied,
    recurrent,
)
