# SPDX-License-Identifier: Apache-2.0
"""The inverse of a block-diagonal empirical Fisher matrix, without ever forming it.

Within a block of b weights, with the m gradients g_i of the block as rows of G,

    F = lambda I + (1/m) sum g_i g_i' = lambda I + G'G / m

WoodFisher writes the inverse as a recursion over the gradients, from F_0^-1 = I / lambda:

    F_i^-1 = F_(i-1)^-1 - (F_(i-1)^-1 g_i)(F_(i-1)^-1 g_i)' / (m + g_i' F_(i-1)^-1 g_i)

Each of its m steps rounds a b x b matrix whose entries fall from 1 / lambda by many orders of magnitude, which float32 does
not survive. The m steps together are one identity of Woodbury's with an m x m matrix, formed and solved here in float64,

    F^-1 v = (v - ridge(G v)) / lambda,    ridge(r) = G' (m lambda I + G G')^-1 r = (m lambda I + G'G)^-1 G' r

by whichever of the two matrices is smaller. Beside the gradients, which may be float32, it takes ``WORKSPACE`` numbers for any
number of blocks (or what one block needs), and errors stay near 1e-16 times the condition of F.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

WORKSPACE = 1 << 23
"""Float64 numbers of gradients that are worked on at a time, if that is at least one block's."""


def inverse_diagonal(gradients: Tensor, damping: float, block: int) -> Tensor:
    """diag(F^-1), block by block.

    Args:
        gradients: [m, n], one row for each gradient; any float dtype, finite.
        damping: lambda > 0.
        block: b >= 1; the last block has what is left.

    Returns:
        float64 [n], in [1 / F_qq, 1 / lambda].

    Source: Singh and Alistarh, "WoodFisher", NeurIPS 2020, section 3.
    """
    found = gradients.new_empty(gradients.shape[1], dtype=torch.float64)
    for span, g in _blocks(gradients, block):
        count, (m, b) = len(gradients), g.shape[1:]
        ridge = count * damping
        if b < m:
            inverse = torch.cholesky_inverse(_factor(g.mT @ g, ridge)).diagonal(dim1=1, dim2=2) * count
        else:
            solved = torch.linalg.solve_triangular(_factor(g @ g.mT, ridge), g, upper=False)
            inverse = (1 - solved.square().sum(1)) / damping
        # No diagonal of an inverse is smaller than that, so what the difference has lost cannot become zero or negative.
        least = 1 / (damping + g.square().mean(1))
        found[span] = torch.maximum(inverse, least).reshape(-1)
    return found


def inverse_times(gradients: Tensor, vector: Tensor, damping: float, block: int) -> Tensor:
    """F^-1 v of a vector v [n]: float64 [n]. Other arguments as of ``inverse_diagonal``."""
    found = torch.empty_like(vector, dtype=torch.float64)
    for span, g in _blocks(gradients, block):
        v = vector[span].double().reshape(len(g), -1)
        found[span] = ((v - _ridge(g, _times(g, v), damping)) / damping).reshape(-1)
    return found


def saliency(theta: Tensor, diagonal: Tensor) -> Tensor:
    """Score theta_q^2 / (2 [F^-1]_qq): what removing weight q alone costs, the others answering in the best way.

    Args:
        theta: [n]. diagonal: float64 [n], of ``inverse_diagonal``.

    Source: WoodFisher, equation 4; the optimal brain surgeon of Hassibi and Stork, NeurIPS 1992.
    """
    return theta.double().square() / (2 * diagonal)


def summed_update(
    theta: Tensor, removed: Tensor, diagonal: Tensor, gradients: Tensor, damping: float, block: int
) -> Tensor:
    """Change - sum_q theta_q F^-1 e_q / [F^-1]_qq of the weights, q over the removed ones: float64 [n].

    Exact for one removed weight in a block. With several, each is answered as if the others stayed, and the answers are
    added: the source's approximation. What it gives for the removed weights themselves is for the mask to hide.

    Args:
        theta: [n]. removed: bool [n]. Others as of ``inverse_diagonal``, whose result ``diagonal`` is.
    """
    single = torch.where(removed, theta.double() / diagonal, 0)
    return -inverse_times(gradients, single, damping, block)


def joint_update(theta: Tensor, removed: Tensor, kept: Tensor, gradients: Tensor, damping: float, block: int) -> Tensor:
    """Change of the kept weights that answers the removal of all removed ones together best: float64 [n], else zero.

    Minimises d' F d with d = -theta on the removed weights and free on the kept ones, d_K = ridge_K(G_Q theta_Q).

    Args:
        theta: [n]. removed, kept: bool [n], disjoint. Others as of ``inverse_diagonal``.
    """
    found = torch.zeros_like(theta, dtype=torch.float64)
    for span, g in _blocks(gradients, block):
        shape = len(g), -1
        lost = torch.where(removed[span], theta[span].double(), 0).reshape(shape)
        free = g * kept[span].reshape(shape).unsqueeze(1)
        found[span] = _ridge(free, _times(g, lost), damping).reshape(-1)
    return found


def _blocks(gradients: Tensor, block: int) -> Iterator[tuple[slice, Tensor]]:
    """Some blocks at a time: which weights they are, and their gradients, float64 [blocks, m, b]."""
    m, n = gradients.shape
    block = min(block, max(n, 1))
    whole, together = n // block * block, max(1, WORKSPACE // (m * block)) * block
    starts = [*range(0, whole, together), *([whole] if whole < n else [])]
    for start in starts:
        stop, size = (min(start + together, whole), block) if start < whole else (n, n - whole)
        yield slice(start, stop), gradients[:, start:stop].double().reshape(m, -1, size).transpose(0, 1)


def _factor(product: Tensor, ridge: float) -> Tensor:
    """Lower Cholesky factor of each matrix with ``ridge`` added to its diagonal."""
    shifted = product + ridge * torch.eye(product.shape[-1], dtype=product.dtype, device=product.device)
    # Without raising, for which the host would have to wait: NaN in gives NaN out.
    return torch.linalg.cholesky_ex(shifted)[0]


def _times(g: Tensor, v: Tensor) -> Tensor:
    return (g @ v.unsqueeze(-1)).squeeze(-1)


def _ridge(g: Tensor, r: Tensor, damping: float) -> Tensor:
    """G' (m lambda I + G G')^-1 r of each block, [blocks, b]."""
    (m, b), r = g.shape[1:], r.unsqueeze(-1)
    if b < m:
        return torch.cholesky_solve(g.mT @ r, _factor(g.mT @ g, m * damping)).squeeze(-1)
    return (g.mT @ torch.cholesky_solve(r, _factor(g @ g.mT, m * damping))).squeeze(-1)
