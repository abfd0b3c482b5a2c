# SPDX-License-Identifier: Apache-2.0
"""Dense linear and convolution formulas on an effective weight z: shared by the implementations and their fakes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def linear(x: Tensor, z: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ z.T + bias``: x [..., in], z [out, in], bias [out] or None."""
    return F.linear(x, z, bias)


def linear_backward(dy: Tensor, x: Tensor, z: Tensor, needs: Sequence[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients (dx, dz, dbias) of ``linear``; an entry that is not needed is an empty tensor."""
    n = math.prod(x.shape[:-1])  # not -1: a layer may have zero features
    rows = dy.reshape(n, z.shape[0])
    dx = (rows @ z).reshape(x.shape) if needs[0] else x.new_empty(0)
    dz = rows.t() @ x.reshape(n, z.shape[1]) if needs[1] else x.new_empty(0)
    db = rows.sum(0) if needs[2] else x.new_empty(0)
    return dx, dz, db


def conv(
    x: Tensor,
    z: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """N-dimensional cross-correlation of a batched x [N, C, *spatial] with z [out, C / groups, *kernel]."""
    nothing = [0] * len(stride)
    return torch.ops.aten.convolution(x, z, bias, stride, padding, dilation, False, nothing, groups)


def conv_backward(
    dy: Tensor,
    x: Tensor,
    z: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients (dx, dz, dbias) of ``conv``; an entry that is not needed is an empty tensor."""
    nothing = [0] * len(stride)
    grads = torch.ops.aten.convolution_backward(
        dy, x, z, [z.shape[0]], stride, padding, dilation, False, nothing, groups, list(needs)
    )
    return tuple(g if need else x.new_empty(0) for g, need in zip(grads, needs, strict=True))  # pyright: ignore
