# SPDX-License-Identifier: Apache-2.0
"""SGD and AdamW that leave pruned weights and their state bit-unchanged, in one pass over all masked layers.

They do what ``guard_`` does for any optimizer, without the copies that it takes before and the two passes that it makes after
each step. Use ``guard_`` for other optimizers, for options that are missing here (amsgrad, maximize, capturable), and for an
optimizer that exists already.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit import ops
from sparsekit.nn import masked_layers

# As written, without the hooks that PyTorch wraps around every step: those of the classes below run once.
_SGD_STEP = inspect.unwrap(torch.optim.SGD.step)
_ADAMW_STEP = inspect.unwrap(torch.optim.AdamW.step)


def _masked_with_grad(function: str, model: nn.Module, group: dict[str, Any]) -> list[tuple[nn.Parameter, Tensor]]:
    """(weight, words) of the group's masked weights that have a gradient."""
    words = {id(layer.weight): layer.mask_words for layer in masked_layers(model).values()}
    found = [(p, words[id(p)]) for p in group["params"] if id(p) in words and p.grad is not None]
    if sparse := next((p for p, _ in found if p.grad is not None and p.grad.is_sparse), None):
        raise ValueError(f"{function}: step: expected dense gradients, got a sparse one of shape {tuple(sparse.shape)}")
    return found


def _checked(function: str, model: nn.Module) -> nn.Module:
    """The model, if it has masked layers."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function}: model: expected a torch.nn.Module, got {type(model).__name__}")
    if not masked_layers(model):
        raise ValueError(f"{function}: model: expected masked layers, got none; call sparsify first")
    return model


def _step(optimizer: Any, plain: Callable[..., Any], update: Callable[..., None], closure: Any) -> Any:
    """Masked weights by ``update``, all others by ``plain``, the step of PyTorch's class."""
    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
    with torch.no_grad():
        grads: list[tuple[nn.Parameter, Tensor | None]] = []
        for group in optimizer.param_groups:
            own = _masked_with_grad(type(optimizer).__name__, optimizer.model, group)
            update(group, own)
            grads += [(p, p.grad) for p, _ in own]
        try:
            for p, _ in grads:
                p.grad = None  # PyTorch passes over what has no gradient
            plain(optimizer)
        finally:
            for p, grad in grads:
                p.grad = grad
    return loss


def _gradients(own: Iterable[tuple[nn.Parameter, Tensor]]) -> list[Tensor]:
    return [p.grad for p, _ in own if p.grad is not None]


class MaskedSGD(torch.optim.SGD):
    """``torch.optim.SGD`` whose steps leave pruned weights and their momentum as they are; its state dicts fit both.

    Args:
        params: parameters or groups of them, masked and not.
        model: sparsified; says which parameters are masked. Masks may change between steps.
        lr, momentum, dampening, weight_decay, nesterov: as of ``torch.optim.SGD``, with its bits (``ops.masked_sgd_``).
    """

    def __init__(
        self,
        params: Iterable[Any],
        model: nn.Module,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(params, lr, momentum, dampening, weight_decay, nesterov)
        self.model = _checked("MaskedSGD", model)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what ``closure`` does."""
        return _step(self, _SGD_STEP, self._update, closure)

    def _update(self, group: dict[str, Any], own: list[tuple[nn.Parameter, Tensor]]) -> None:
        names = ("lr", "momentum", "dampening", "weight_decay", "nesterov")
        options: dict[str, Any] = {name: group[name] for name in names}
        if not group["momentum"]:
            ops.masked_sgd_([p for p, _ in own], _gradients(own), [w for _, w in own], **options)
            return
        fresh = [(p, w) for p, w in own if self.state[p].get("momentum_buffer") is None]
        for p, _ in fresh:
            self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        started = {id(p) for p, _ in fresh}
        # A layer may get its first gradient later than others.
        for first, part in ((True, fresh), (False, [(p, w) for p, w in own if id(p) not in started])):
            momenta = [self.state[p]["momentum_buffer"] for p, _ in part]
            weights, words = [p for p, _ in part], [w for _, w in part]
            ops.masked_sgd_(weights, _gradients(part), words, momenta=momenta, first=first, **options)


class MaskedAdamW(torch.optim.AdamW):
    """``torch.optim.AdamW`` whose steps leave pruned weights and their moments as they are; its state dicts fit both.

    Args:
        params: parameters or groups of them, masked and not.
        model: sparsified; says which parameters are masked. Masks may change between steps.
        lr, betas, eps, weight_decay: as of ``torch.optim.AdamW`` (for the bits see ``ops.masked_adamw_``).
    """

    def __init__(
        self,
        params: Iterable[Any],
        model: nn.Module,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)
        self.model = _checked("MaskedAdamW", model)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what ``closure`` does."""
        return _step(self, _ADAMW_STEP, self._update, closure)

    def _update(self, group: dict[str, Any], own: list[tuple[nn.Parameter, Tensor]]) -> None:
        by_step: dict[int, list[tuple[nn.Parameter, Tensor]]] = {}
        for p, w in own:
            state = self.state[p]
            if not state:
                state |= {"step": torch.zeros(()), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            state["step"] += 1
            by_step.setdefault(int(state["step"]), []).append((p, w))
        for step, part in by_step.items():
            first, second = ([self.state[p][name] for p, _ in part] for name in ("exp_avg", "exp_avg_sq"))
            options: dict[str, Any] = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}
            ops.masked_adamw_(
                [p for p, _ in part], first, second, _gradients(part), [w for _, w in part], step=step, **options
            )
