# SPDX-License-Identifier: Apache-2.0
"""A Lightning callback that prunes while Lightning trains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

try:
    import lightning.pytorch as pl
except ImportError:
    try:
        import pytorch_lightning as pl  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "sparsekit.integrations.lightning: expected the package lightning, got none; "
            "pip install 'torch-sparsekit[lightning]'"
        ) from error

from sparsekit.integrations.driver import Driver, MakePruner, own_pass
from sparsekit.loggers import Logger
from sparsekit.pruners.protocol import Pruner


class PruningCallback(pl.Callback):  # pyright: ignore[reportGeneralTypeIssues]
    """Takes a step of a pruner before each optimizer step of the Trainer, until the pruner is done.

    Sparsify the model where it is made (in ``__init__`` of the LightningModule), so that checkpoints find its masks:
    Lightning keeps them in the model's state, and the pruner's state in the callback's. A resumed run whose masks differ
    from the checkpoint's is refused.

    Args:
        pruner: a pruner (``sk.Gradual(module, 0.9, steps=1000)``), or a function module -> pruner that is called when
            training starts, for pruners with tensors of their own or with the Trainer's optimizers. A pruner that trains
            draws batches from the Trainer's loader, on the Trainer's device; its own steps are not counted by the Trainer.
        logger: see sparsekit.loggers; takes every step. Independently, the metrics are logged with
            ``module.log_dict(..., prefix)``.
        prefix: of the names that Lightning sees.

    Raises:
        ValueError: when training starts: nothing is masked, or other masks than the checkpoint's. TypeError: a wrong kind.
    """

    def __init__(
        self, pruner: Pruner | MakePruner, *, logger: Logger | None = None, prefix: str = "sparsekit/"
    ) -> None:
        super().__init__()
        self._driver, self._prefix = Driver("PruningCallback", pruner, logger), prefix

    @property
    def pruner(self) -> Pruner:
        """The pruner at work."""
        return self._driver.pruner

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See lightning.pytorch.Callback."""
        self._driver.begin(pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """See lightning.pytorch.Callback."""
        metrics = self._driver.step(trainer.global_step, lambda: _batches(trainer))
        if metrics:
            # Lightning reads 0-d tensors only when its own loggers do.
            values = {self._prefix + name: value for name, value in metrics.items()}
            pl_module.log_dict(values, on_step=True, on_epoch=False, batch_size=1)  # pyright: ignore[reportArgumentType]

    def state_dict(self) -> dict[str, Any]:
        """See lightning.pytorch.Callback."""
        return self._driver.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See lightning.pytorch.Callback."""
        self._driver.load(state_dict)


def _batches(trainer: pl.Trainer) -> Iterable[Any]:
    loader: Any = trainer.train_dataloader
    if isinstance(loader, (Mapping, list, tuple)):
        expected = "one loader for a pruner that draws batches"
        raise ValueError(f"PruningCallback: train_dataloader: expected {expected}, got {len(loader)} loaders")
    for batch in own_pass(loader):
        yield trainer.strategy.batch_to_device(batch)
