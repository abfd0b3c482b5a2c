# SPDX-License-Identifier: Apache-2.0
"""The inverse Fisher matrix against dense inverses and the source's recursion in float64, and what pruning makes of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsekit import fisher

N = 50


def gradients(count: int, seed: int = 0) -> Tensor:
    """Rows whose entries span four orders of magnitude, as those of layers do."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, N, generator=generator) * torch.logspace(-3, 1, N)


def weights(seed: int = 1) -> Tensor:
    return torch.randn(N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(g: Tensor, damping: float, block: int) -> Tensor:
    """F itself, float64 [n, n]."""
    g, full = g.double(), torch.zeros(N, N, dtype=torch.float64)
    for start in range(0, N, block):
        own = slice(start, min(start + block, N))
        full[own, own] = g[:, own].T @ g[:, own] / len(g)
    return full + damping * torch.eye(N, dtype=torch.float64)


def recursion(g: Tensor, damping: float, dtype: torch.dtype) -> Tensor:
    """The source's inverse of one block, gradient by gradient."""
    inverse = torch.eye(N, dtype=dtype) / damping
    for row in g.to(dtype):
        moved = inverse @ row
        inverse = inverse - torch.outer(moved, moved) / (len(g) + row @ moved)
    return inverse


def error(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected) / expected).abs().max())


@pytest.mark.parametrize("block", [1, 16, 50, 2000])
@pytest.mark.parametrize("count", [1, 8, 50, 120])
@pytest.mark.parametrize("damping", [1e-1, 1e-5])
def test_diagonal_and_products_are_those_of_the_dense_inverse(count: int, damping: float, block: int) -> None:
    g, v = gradients(count), weights()
    inverse = torch.linalg.inv(dense(g, damping, block))
    assert error(fisher.inverse_diagonal(g, damping, block), inverse.diagonal()) < 1e-7
    found = fisher.inverse_times(g, v, damping, block)
    assert float((found - inverse @ v).norm() / (inverse @ v).norm()) < 1e-7
    assert found.dtype == torch.float64


@pytest.mark.parametrize("count", [1, 8, 120])
def test_it_is_the_recursion_of_the_source(count: int) -> None:
    g, v = gradients(count), weights()
    inverse = recursion(g, 1e-2, torch.float64)
    assert error(fisher.inverse_diagonal(g, 1e-2, N), inverse.diagonal()) < 1e-8
    torch.testing.assert_close(fisher.inverse_times(g, v, 1e-2, N), inverse @ v, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("damping", [1e-5, 1e-8])
def test_float32_gradients_keep_their_accuracy_where_the_recursion_in_float32_loses_it(damping: float) -> None:
    g = gradients(80)
    full = dense(g, damping, N)
    condition, expected = float(torch.linalg.cond(full)), torch.linalg.inv(full).diagonal()
    assert condition > 1e6
    assert error(fisher.inverse_diagonal(g, damping, N), expected) < 1e-13 * condition
    assert error(recursion(g, damping, torch.float32).diagonal(), expected) > 1e-3


@pytest.mark.parametrize("count, block", [(3, 50), (80, 50), (3, 3), (10, 10)])
def test_no_diagonal_leaves_its_bounds_however_bad_the_condition(count: int, block: int) -> None:
    g, damping = gradients(count) * 1e6, 1e-18
    found = fisher.inverse_diagonal(g, damping, block)
    least = 1 / (damping + g.double().square().mean(0))
    assert bool((found >= least).all()) and bool((found <= 1 / damping * (1 + 1e-9)).all())


@pytest.mark.parametrize("block", [4, 16, 50])
def test_how_many_blocks_go_together_is_no_matter(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    g, v, removed = gradients(6), weights(), weights(2) > 0.3

    def all_results() -> list[Tensor]:
        diagonal = fisher.inverse_diagonal(g, 1e-3, block)
        own = g, 1e-3, block
        return [
            diagonal,
            fisher.inverse_times(g, v, 1e-3, block),
            fisher.summed_update(v, removed, diagonal, *own),
            fisher.joint_update(v, removed, ~removed, *own),
        ]

    at_once = all_results()
    for workspace in (1, 6 * block * 2):
        monkeypatch.setattr(fisher, "WORKSPACE", workspace)
        for found, expected in zip(all_results(), at_once, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_nan_stays_in_its_block_and_nothing_raises() -> None:
    g = gradients(5)
    g[2, 20] = torch.nan
    found = fisher.inverse_diagonal(g, 1e-3, 10)
    assert not found[20:30].isfinite().any() and found[:20].isfinite().all() and found[30:].isfinite().all()


# What pruning makes of it: on L = d' F d / 2 around the minimum, which is the model of the optimal brain surgeon.


def rise(d: Tensor, full: Tensor) -> Tensor:
    return d @ full @ d / 2


def best_answer(theta: Tensor, removed: Tensor, full: Tensor) -> Tensor:
    """The change with -theta on the removed weights that raises L the least, by the optimality conditions."""
    kept, change = ~removed, torch.where(removed, -theta, 0)
    change[kept] = torch.linalg.solve(full[kept][:, kept], -full[kept][:, removed] @ change[removed])
    return change


@pytest.mark.parametrize("count", [8, 80])
def test_removing_one_weight_is_the_textbook_case(count: int) -> None:
    g, theta, damping = gradients(count), weights(), 1e-2
    full = dense(g, damping, N)
    diagonal = fisher.inverse_diagonal(g, damping, N)
    scores = fisher.saliency(theta, diagonal)
    for q in (0, 17, 49):
        removed = torch.arange(N) == q
        change = fisher.summed_update(theta, removed, diagonal, g, damping, N)
        torch.testing.assert_close(change, best_answer(theta, removed, full), rtol=1e-6, atol=1e-8)
        assert float(change[q]) == pytest.approx(-float(theta[q]), rel=1e-9)
        assert float(rise(change, full)) == pytest.approx(float(scores[q]), rel=1e-6)
        joint = fisher.joint_update(theta, removed, ~removed, g, damping, N)
        torch.testing.assert_close(joint[~removed], change[~removed], rtol=1e-6, atol=1e-8)


def test_a_table_by_hand() -> None:
    # F = [[1, 0], [0, 1]] + [2, 0]' [2, 0] / 1 = diag(5, 1) with one gradient and lambda 1
    g, theta = torch.tensor([[2.0, 0.0]]), torch.tensor([3.0, 4.0])
    diagonal = fisher.inverse_diagonal(g, 1.0, 2)
    assert diagonal.tolist() == pytest.approx([0.2, 1.0])
    assert fisher.saliency(theta, diagonal).tolist() == pytest.approx([9 * 5 / 2, 16 / 2])
    # F = I + [1, 1]' [1, 1] / 1 = [[2, 1], [1, 2]], inverse [[2, -1], [-1, 2]] / 3: removing 3 moves the other by 3 / 2
    g = torch.tensor([[1.0, 1.0]])
    diagonal = fisher.inverse_diagonal(g, 1.0, 2)
    assert diagonal.tolist() == pytest.approx([2 / 3, 2 / 3])
    removed = torch.tensor([True, False])
    assert fisher.summed_update(theta, removed, diagonal, g, 1.0, 2).tolist() == pytest.approx([-3.0, 1.5])
    assert fisher.joint_update(theta, removed, ~removed, g, 1.0, 2).tolist() == pytest.approx([0.0, 1.5])


@pytest.mark.parametrize("block", [10, 50])
@pytest.mark.parametrize("count", [8, 80])
def test_removing_many_at_once(count: int, block: int) -> None:
    g, theta, damping = gradients(count), weights(), 1e-2
    full, removed = dense(g, damping, block), weights(3) > 0.2
    inverse, diagonal = torch.linalg.inv(full), fisher.inverse_diagonal(g, damping, block)
    each = [-theta[q] * inverse[:, q] / inverse[q, q] for q in range(N) if removed[q]]
    found = fisher.summed_update(theta, removed, diagonal, g, damping, block)
    torch.testing.assert_close(found, torch.stack(each).sum(0), rtol=1e-6, atol=1e-8)

    joint = fisher.joint_update(theta, removed, ~removed, g, damping, block)
    best = best_answer(theta, removed, full)
    torch.testing.assert_close(joint[~removed], best[~removed], rtol=1e-6, atol=1e-8)
    assert not joint[removed].any()
    hidden = torch.where(removed, -theta, found)
    assert rise(best, full) < rise(hidden, full)  # the sum is an approximation


def test_weights_that_were_gone_before_take_no_part() -> None:
    g, theta, removed = gradients(8), weights(), torch.arange(N) % 5 == 0
    gone = torch.arange(N) % 7 == 3
    g[:, gone] = 0
    kept = ~removed & ~gone
    diagonal = fisher.inverse_diagonal(g, 1e-2, N)
    for change in (
        fisher.joint_update(theta, removed & ~gone, kept, g, 1e-2, N),
        fisher.summed_update(theta, removed & ~gone, diagonal, g, 1e-2, N),
    ):
        assert not change[gone].any() and change[kept].abs().sum() > 0
