# SPDX-License-Identifier: Apache-2.0
"""The Lightning callback: pruners that step along with the Trainer, checkpoints, resuming, averages of weights."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparsekit as sk

pl = pytest.importorskip("lightning.pytorch")
callbacks = pytest.importorskip("lightning.pytorch.callbacks")

from sparsekit.integrations.lightning import PruningCallback  # noqa: E402
from sparsekit.loggers import JSONLLogger  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
X = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
DATA = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, torch.arange(20) % 3), batch_size=4)


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        assert sk.sparsify(self).skipped == {}

    def training_step(self, batch: Any, _: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def trainer(folder: Path, *extra: Any, steps: int = 10, **options: Any) -> Any:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    quiet |= {"enable_checkpointing": any(isinstance(c, callbacks.ModelCheckpoint) for c in extra)}
    return pl.Trainer(
        default_root_dir=folder, accelerator="cpu", max_steps=steps, callbacks=list(extra), **quiet, **options
    )


def gradual(module: nn.Module, **options: Any) -> sk.Gradual:
    return sk.Gradual(module, 0.8, steps=6, **options)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_schedule_along_with_the_training(tmp_path: Path, accumulated: int) -> None:
    module, file = Module(), tmp_path / "log.jsonl"
    seen: list[tuple[float, int]] = []

    class Watch(callbacks.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            seen.append((sk.masks(pl_module).sparsity, trainer.global_step))
            logged.update(trainer.callback_metrics)

    logged: dict[str, Tensor] = {}
    callback = PruningCallback(gradual(module, every=2), logger=JSONLLogger(file))
    run = trainer(tmp_path, callback, Watch(), accumulate_grad_batches=accumulated)
    run.fit(module, DATA)
    n, schedule = 8 * 16 + 16 * 3, sk.Cubic(0.0, 0.8, 0, 5)
    expected = [1 - sk.kept_count(n, schedule(step)) / n for step in (0, 0, 2, 2, 4, 5, 5, 5, 5, 5)]
    by_step = [[s for s, at in seen if at == step] for step in range(1, 11)]
    assert [values[0] for values in by_step] == pytest.approx(expected, abs=1e-12)
    assert callback.pruner.done and sk.masks(module).count() == sk.kept_count(n, 0.8)
    assert len(file.read_text().splitlines()) == 6  # one for each optimizer step until it is done
    assert logged["sparsekit/sparsity"] == pytest.approx(expected[-1]) and logged["sparsekit/target"] == 0.8
    plain = sk.finalize(module)
    assert (plain.net[0].weight == 0).float().mean() > 0.5


@pytest.mark.parametrize("stop", [5, 10])  # ends of epochs: in between Lightning begins its loader anew
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, stop: int) -> None:
    whole = Module()
    trainer(tmp_path, PruningCallback(sk.Gradual(whole, 0.8, steps=9, every=2)), steps=15).fit(whole, DATA)
    part = Module()
    keep = callbacks.ModelCheckpoint(tmp_path, save_top_k=-1, every_n_train_steps=stop, filename="{step}")
    first = PruningCallback(sk.Gradual(part, 0.8, steps=9, every=2))
    trainer(tmp_path, keep, first, steps=stop).fit(part, DATA)
    resumed = Module()
    second = PruningCallback(sk.Gradual(resumed, 0.8, steps=9, every=2))
    trainer(tmp_path, second, steps=15).fit(resumed, DATA, ckpt_path=str(tmp_path / f"step={stop}.ckpt"))
    assert second.pruner.done and sk.masks(resumed) == sk.masks(whole)
    for (name, p), q in zip(resumed.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_masks_that_the_trainer_did_not_load_are_noticed(tmp_path: Path) -> None:
    module = Module()
    callback = PruningCallback(gradual(module))
    trainer(tmp_path, callback, steps=4).fit(module, DATA)
    state, other = callback.state_dict(), Module()
    again = PruningCallback(gradual(other))
    again.load_state_dict(state)
    with pytest.raises(
        ValueError, match=r"PruningCallback: model: expected the masks of the checkpoint \(\w{8}\), got"
    ):
        trainer(tmp_path, again, steps=4).fit(other, DATA)


def test_a_pruner_that_trains_and_is_made_when_training_starts(tmp_path: Path) -> None:
    module = Module()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model.net(batch[0]), batch[1])

    def make(model: nn.Module) -> sk.BiP:
        return sk.BiP(model, loss, 0.9, steps=5, lower=torch.optim.SGD(model.parameters(), 0.1))

    callback = PruningCallback(make)
    with pytest.raises(ValueError, match="expected a training that has started, got none yet"):
        _ = callback.pruner
    trainer(tmp_path, callback, steps=7).fit(module, DATA)
    assert isinstance(callback.pruner, sk.BiP) and callback.pruner.done
    assert sk.masks(module).count() == sk.kept_count(8 * 16 + 16 * 3, 0.9)


def bip(module: nn.Module) -> sk.BiP:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model.net(batch[0]), batch[1])

    return sk.BiP(module, loss, 0.3, steps=8, lower=torch.optim.SGD(module.parameters(), 0.1))


def test_a_pruner_takes_no_batches_from_a_loader_whose_workers_persist(tmp_path: Path) -> None:
    loader = torch.utils.data.DataLoader(DATA.dataset, batch_size=4, num_workers=1, persistent_workers=True)
    seen: list[int] = []

    class Watch(callbacks.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, index: int) -> None:
            seen.append(index)

    trainer(tmp_path, PruningCallback(bip), Watch()).fit(Module(), loader)
    assert seen == [*range(5)] * 2 and loader.persistent_workers


def test_several_loaders_are_refused(tmp_path: Path) -> None:
    text = "PruningCallback: train_dataloader: expected one loader for a pruner that draws batches, got 2 loaders"
    with pytest.raises(ValueError, match=text):
        trainer(tmp_path, PruningCallback(bip)).fit(Module(), {"a": DATA, "b": DATA})


def test_what_is_saved_before_the_training_starts(tmp_path: Path) -> None:
    assert PruningCallback(gradual).state_dict() == {}  # a trainer that fails early may save as well
    module = Module()
    first = PruningCallback(gradual(module))
    trainer(tmp_path, first, steps=4).fit(module, DATA)
    state = first.state_dict()
    for again in (PruningCallback(gradual(Module())), PruningCallback(gradual)):
        again.load_state_dict(state)
        assert again.state_dict() == state and state["pruner"]["step"] == 4
    fresh, other = PruningCallback(gradual), Module()
    fresh.load_state_dict({})
    trainer(tmp_path, fresh).fit(other, DATA)
    assert fresh.pruner.done


def test_lightnings_own_average_of_weights(tmp_path: Path) -> None:
    module = Module()
    average = callbacks.EMAWeightAveraging(decay=0.9)  # averages buffers, unless told otherwise
    pruning = PruningCallback(gradual(module))
    seen: list[bool] = []

    class Watch(callbacks.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            seen.append(list(sk.masks(average._average_model).values()) == list(sk.masks(pl_module).values()))

    trainer(tmp_path, pruning, average, Watch()).fit(module, DATA)
    assert seen == [True] * 10
    assert sk.masks(module).count() == sk.kept_count(8 * 16 + 16 * 3, 0.8)


def test_a_dense_module_is_refused(tmp_path: Path) -> None:
    module = sk.finalize(Module())
    with pytest.raises(ValueError, match="PruningCallback: model: expected masked layers, got none"):
        trainer(tmp_path, PruningCallback(lambda m: gradual(m))).fit(module, DATA)
