# SPDX-License-Identifier: Apache-2.0
"""What all pruners share: projection with its bookkeeping, one training step, fit, state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit.gradients import Loss, dense_gradients
from sparsekit.loggers import Logger, checked_logger
from sparsekit.mask import Mask, Masks
from sparsekit.nn import masked_layers, masks, prepared_weights
from sparsekit.nn.access import layers_by_weight
from sparsekit.nn.masked import MaskedLayer
from sparsekit.ops import shards
from sparsekit.patterns import Key
from sparsekit.projection import Projection
from sparsekit.pruners.checks import check_keys, check_orientation, checked_count, checked_sparsity, cycle
from sparsekit.pruners.cost import Cost, batch_size
from sparsekit.pruners.metrics import Metrics, moved_entries, warn_of_collapse
from sparsekit.pruners.ranks import Ranks

READ_EVERY = 100


class BasePruner:
    """Shared machinery of the pruners; an algorithm adds ``done``, ``_advance`` and its own state.

    trains: does it train the weights, so that several processes have to share what they learn?
    """

    trains = True

    def __init__(self, model: nn.Module, loss: Loss, sparsity: float, projection: Projection | None = None) -> None:
        self.name = type(self).__name__
        self.layers: dict[str, MaskedLayer] = masked_layers(model)
        if not self.layers:
            raise ValueError(f"{self.name}: model: expected masked layers, got nothing to prune; call sparsify first")
        if not (projection is None or isinstance(projection, Projection)):
            raise TypeError(f"{self.name}: projection: expected a Projection, got {projection!r}")
        if not callable(loss):
            raise TypeError(f"{self.name}: loss: expected a callable (model, batch) -> scalar, got {loss!r}")
        self.model, self.loss = model, loss
        self.sparsity = checked_sparsity(self.name, sparsity)
        self.projection = projection or Projection()
        check_orientation(self.name, self.projection, self.layers)
        self.ranks = Ranks(self.name, model, self.layers, self.projection, self.trains)
        stated = {"sparsity": self.sparsity, "projection": repr(self.projection), "layers": len(self.layers)}
        self.ranks.alike("arguments", lambda: None, **stated)
        self.ranks.check(0, weights=True)
        self.cost = Cost(next(iter(self.layers.values())).weight.device)
        self._step, self._loaded = 0, False
        self._problems: dict[str, Tensor] = {}
        self._replays: Any = None
        # Scores move little, so each selection begins where the last one ended.
        self._warm = self.projection.warm_start(len(self.layers), next(iter(self.weights.values())).device)

    @property
    def masks(self) -> Masks:
        """Snapshot of the masks; valid and exact after every step."""
        return masks(self.model)

    @property
    def weights(self) -> dict[str, Tensor]:
        """Live weights theta by layer name, detached."""
        return {name: layer.weight.detach() for name, layer in self.layers.items()}

    @property
    def done(self) -> bool:
        raise NotImplementedError

    def _advance(self, batches: Iterator[Any]) -> dict[str, Tensor]:
        raise NotImplementedError

    def step(self, batches: Iterator[Any]) -> Metrics:
        """Advance by one step, pulling as many batches as the algorithm needs.

        Raises:
            ValueError: the run is over, a batch is missing, the loss is not finite, or scores contain NaN (on a CPU at
                once, on other devices when the metrics are read).
        """
        if self.done:
            got = f"step {self._step + 1} after the last"
            raise ValueError(f"{self.name}: step: expected a run that is not done, got {got}")
        self.ranks.ready()
        if self._loaded:  # only now has the model's own state been loaded as well
            self.ranks.check(self._step, weights=True)
            self._loaded = False
        values = self._advance(batches)
        self._step, self.cost.steps = self._step + 1, self.cost.steps + 1
        if self.done:
            self.ranks.settle()
            warn_of_collapse(self.name, self.layers)
        if self.done or self._step % READ_EVERY == 0:
            self.ranks.check(self._step, weights=self.done)
        return Metrics(values, self._problems)

    def fit(
        self, loader: Iterable[Any], on_step: Callable[[Metrics], None] | None = None, logger: Logger | None = None
    ) -> Masks:
        """Run to the end, going through ``loader`` as often as needed.

        Args:
            loader: re-iterable source of batches.
            on_step: called with the metrics after every step.
            logger: see sparsekit.loggers; it is given every step, and decides which ones to wait for.
        """
        checked_logger(f"{self.name}.fit", logger)
        batches = cycle(self.name, loader)
        while not self.done:
            metrics = self.step(batches)
            if on_step is not None:
                on_step(metrics)
            if logger is not None:
                logger.log(self._step, metrics)
            # On a GPU problems show only when somebody reads, and reading waits: a compromise between the two.
            if self.done or self._step % READ_EVERY == 0:
                metrics.read()
        return self.masks

    def _draw(self, batches: Iterator[Any], count: int) -> list[Any]:
        """So many batches, drawn before a step changes anything; processes that prune together agree on going on."""
        return self.ranks.alike(
            "step", lambda: [self._next(batches) for _ in range(count)], step=self._step, batches=count
        )

    def _next(self, batches: Iterator[Any]) -> Any:
        if not hasattr(batches, "__next__"):
            raise TypeError(f"{self.name}: batches: expected an iterator, got {type(batches).__name__}")
        try:
            return next(batches)
        except StopIteration:
            wanted = f"another batch at step {self._step + 1}"
            raise ValueError(f"{self.name}: batches: expected {wanted}, got none") from None

    def _on_device(
        self, kind: str, detail: Any, drawn: list[Any], work: Callable[[list[Any]], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """``work(drawn)``; under ``captured`` a graph of it for each kind of work, and detail that is constant in it."""
        return work(drawn) if self._replays is None else self._replays.run(kind, detail, drawn, work)

    def _train_step(self, optimizer: torch.optim.Optimizer, batch: Any) -> Tensor:
        """One step of ``optimizer`` through the masks; returns the loss before it, detached, over all processes."""
        optimizer.zero_grad(set_to_none=True)
        with prepared_weights(self.model):
            self._evaluate(self.model, batch).backward()
        optimizer.step()
        self.cost.count_pass(batch_size(batch))
        return self._loss_value

    def _evaluate(self, model: nn.Module, batch: Any) -> Tensor:
        """The checked loss of this process's batch; ``_loss_value`` is its mean over all processes, detached."""
        value, self._loss_value = self.ranks.loss(self.loss, batch, model, self._check_loss)
        if not value.requires_grad:
            raise ValueError(f"{self.name}: loss: expected a differentiable tensor, got a detached one")
        return value

    def _dense_gradients(self, batch: Any) -> dict[str, Tensor]:
        """dl/dz at the present theta and masks, dense, by layer name: a pass, whose loss is ``_loss_value``."""
        _, dz = dense_gradients(self.model, self._evaluate, batch)
        self.cost.count_pass(batch_size(batch))
        return dz

    def _check_loss(self, value: Any) -> None:
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise ValueError(f"{self.name}: loss: expected a scalar tensor, got {got}")
        bad = ~torch.isfinite(value.detach()).reshape(())
        self._check(bad, f"{self.name}: loss: expected a finite value, got NaN or inf")

    def _check(self, flag: Tensor, message: str) -> None:
        """Raise now where looking is free, else when the metrics are read."""
        message = f"{message} (step {self._step + 1})"
        if flag.device.type == "cpu":
            if bool(flag):
                raise ValueError(message)
            return
        kind = message.split(" (step")[0]
        earlier = next((m for m in self._problems if m.startswith(kind)), None)
        # The first step that failed is the one to name: later flags are folded into it.
        self._problems[earlier or message] = flag | self._problems.get(earlier or message, torch.zeros_like(flag))

    def _project(
        self, scores: Mapping[str, Tensor], sparsity: float, key: Key = "magnitude", by: Projection | None = None
    ) -> dict[str, Tensor]:
        """Set the masks to the projection of ``scores``; returns how many entries changed and came back.

        Masks stay as they were if the scores contain NaN. The live masks are written last, when nothing can fail any more,
        so that no error leaves some of them new and others old.
        """
        with self.cost.selection():
            self._warm = self._warm.to(next(iter(scores.values())).device)  # the model may have moved
            projected = self.ranks.project(by or self.projection, scores, sparsity, key, self._warm)
            self._check(projected.invalid, f"{self.name}: scores: expected numbers, got NaN")
            old = [layer.mask_words for layer in self.layers.values()]
            new = [self._fitting(name, projected.masks[name], layer) for name, layer in self.layers.items()]
            if projected.invalid.device.type != "cpu":
                new = [torch.where(projected.invalid, o, n) for o, n in zip(old, new, strict=True)]
            moved = moved_entries(old, new)
            groups = layers_by_weight(self.model)
            for layer, words in zip(self.layers.values(), new, strict=True):
                for twin in groups[id(layer.weight)]:
                    twin.mask_words.copy_(words)
        return moved

    def _fitting(self, name: str, mask: Mask, layer: MaskedLayer) -> Tensor:
        """The words of a projected mask, which a pattern of the user may have made."""
        if mask.shape != tuple(layer.weight.shape):
            expected = f"a mask of shape {tuple(layer.weight.shape)} for layer `{name}`"
            raise ValueError(f"{self.name}: projection: expected {expected}, got {mask.shape}")
        return shards.gathered(mask.words)

    def _config(self) -> dict[str, Any]:
        """Arguments that a saved state must share, as plain values by name."""
        return {"pruner": self.name, "sparsity": self.sparsity, "projection": repr(self.projection)}

    def state_dict(self) -> dict[str, Any]:
        """See Pruner; the model's own state_dict has weights and masks."""
        return {"config": self._config(), "step": self._step, "cost": self.cost.state_dict()}

    def _check_state(self, where: str, state: Any) -> None:
        """Raise before anything changes; ``where`` begins the error."""
        check_keys(where, state, ())
        given = state.get("config")
        for key, own in self._config().items():
            other = given.get(key) if isinstance(given, Mapping) else None
            if other != own:
                raise ValueError(f"{where}: expected {key} {own!r}, got {other!r}")
        check_keys(where, state, self.state_dict())
        checked_count(where, "step", state["step"], 0)
        self.cost.check_state(f"{where}: cost", state["cost"])

    def _agree_on(self, state: Any) -> None:
        """Raise on all ranks if any of them must not take over its state."""
        self.ranks.alike("load_state_dict", lambda: self._check_state(f"{self.name}: load_state_dict", state))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state made by the same class with the same arguments. Load the model's state as well.

        Raises:
            ValueError, TypeError: no state, or one of another class or other arguments; nothing has changed then.
        """
        self._agree_on(state)
        step = int(state["step"])
        self.ranks.alike("load_state_dict", lambda: None, step=step)
        self._step, self._loaded = step, True
        self.cost.load_state_dict(state["cost"])
