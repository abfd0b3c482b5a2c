# SPDX-License-Identifier: Apache-2.0
"""compacted_filters: convolutions that compute only the filters that keep any weight."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit.nn.lasting import lasting, recorded
from sparsekit.nn.masked import MaskedLayer

MOST_KEPT = 0.8
"""Largest fraction of the filters for which leaving out the others saves more than putting the outputs in place costs."""
LEAST_PRODUCTS = {"cpu": 64, "cuda": 256 * 9}
"""Products summed up for each output pixel, input channels times taps: with fewer, moving the outputs costs as much as
computing them. On a CPU from rows under benchmarks/results, on CUDA a model of the traffic, not measured."""


class FilterPlan:
    """Which filters of one layer keep any weight, and which mask that was read from."""

    def __init__(self) -> None:
        self.key: tuple[Any, ...] = ()
        self.rows: Tensor | None = None
        # Held, because the memory of words that are gone is given out again, with the same address and version.
        self.words: Tensor | None = None

    def __reduce__(self) -> tuple[type, tuple]:
        # A copy of the layer outlives the context.
        return type(None), ()

    def of(self, layer: Any, input: Tensor) -> Tensor | None:
        """Indices int64 of the filters to compute; None where all of them should be."""
        words, weight = layer.mask_words, layer.weight
        # Recorded programs outlive the masks that they see now.
        if recorded():
            return None
        if layer.dense_grad or not (type(input) is type(words) is Tensor) or words.is_inference():
            return None
        if words.is_cuda and torch.cuda.is_current_stream_capturing():
            return None
        key = (words.data_ptr(), words._version, words.device)
        if key != self.key:
            self.key, self.rows, self.words = key, _worthwhile(words, weight), words.detach()
        return self.rows


def _worthwhile(words: Tensor, weight: Tensor) -> Tensor | None:
    rows = words.ne(0).any(1).nonzero().flatten()
    fits = 0 < len(rows) <= MOST_KEPT * len(words)
    large = weight[0].numel() >= LEAST_PRODUCTS.get(weight.device.type, LEAST_PRODUCTS["cuda"])
    return rows if fits and large else None


def spread(y: Tensor, rows: Tensor, bias: Tensor | None, filters: int) -> Tensor:
    """The outputs ``y`` [N, len(rows), ...] at their channels among all ``filters``; the others are their bias, or zero."""
    batched = y.ndim == 4
    y = y if batched else y.unsqueeze(0)
    last = y.is_contiguous(memory_format=torch.channels_last)
    shape = (len(y), filters, *y.shape[2:])
    layout = torch.channels_last if last else torch.contiguous_format
    rest = y.new_zeros(()) if bias is None else bias.to(y.dtype).view(-1, 1, 1)
    # In place, because the copying form gives up channels_last.
    whole = rest.expand(shape).clone(memory_format=layout).index_copy_(1, rows, y)
    return whole if batched else whole.squeeze(0)


@contextmanager
def compacted_filters(model: nn.Module) -> Iterator[None]:
    """While the context lasts, Conv2d layers whose masks remove whole filters compute only the filters that are left.

    The result is that of the masked layer, for training and evaluation and for any mask: what is left is masked as always.
    Only under an inf or NaN of the input do removed filters give their bias here and NaN there. Layers that would not gain
    stay as they are: where more than MOST_KEPT of the filters keep a weight, where one output sums few products
    (LEAST_PRODUCTS), and grouped ones. A mask that changes is read again, for which the host waits; replays of CUDA graphs
    and edits through ``.data`` are not seen, so make them outside. Under compile, export, tracing, graph capture and
    ``dense_gradient`` layers compute everything. To remove filters for good, cut them out.

    Args:
        model: with masked Conv2d layers.

    Raises:
        ValueError: the model has none. TypeError: it is not a Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"compacted_filters: model: expected a torch.nn.Module, got {type(model).__name__}")
    convs: list[Any] = [m for m in model.modules() if isinstance(m, MaskedLayer) and isinstance(m, nn.Conv2d)]
    if not convs:
        raise ValueError("compacted_filters: model: expected masked Conv2d layers, got none; call sparsify first")
    with lasting("_filters", [(layer, FilterPlan()) for layer in convs if layer.groups == 1]):
        yield
