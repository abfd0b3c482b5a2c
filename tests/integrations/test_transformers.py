# SPDX-License-Identifier: Apache-2.0
"""The callback for Hugging Face's Trainer: schedules, files next to the checkpoints, resuming."""

from __future__ import annotations

import shutil
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsekit as sk

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from sparsekit.integrations.transformers import STATE_FILE, PruningCallback  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]
SMALL = {"vocab_size": 32, "bos_token_id": 0, "eos_token_id": 1, "n_positions": 8}
TOKENS = torch.randint(2, 32, (12, 6), generator=torch.Generator().manual_seed(0))
DATA = [{"input_ids": row, "labels": row} for row in TOKENS]


def build() -> nn.Module:
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, **SMALL))
    sk.sparsify(model)
    return model


class Watching(transformers.Trainer):
    """Remembers the batches that it trains with."""

    def training_step(self, model: Any, inputs: Any, *rest: Any, **more: Any) -> Tensor:
        self.seen = [*getattr(self, "seen", ()), inputs["input_ids"].tolist()]
        return super().training_step(model, inputs, *rest, **more)


def train(model: nn.Module, callback: Any, folder: Path, steps: int, resume: str | None = None, **more: Any) -> Any:
    options = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "seed": 1, "save_steps": 3, "logging_steps": 1}
    batches = {"per_device_train_batch_size": 2, "learning_rate": 0.05, "lr_scheduler_type": "constant"}
    arguments = transformers.TrainingArguments(str(folder), max_steps=steps, **options, **batches, **more)
    trainer = Watching(model, arguments, train_dataset=DATA, eval_dataset=DATA, callbacks=[callback])
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def gradual(model: nn.Module) -> sk.Gradual:
    return sk.Gradual(model, 0.75, steps=6)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_schedule_along_with_the_training(tmp_path: Path, accumulated: int) -> None:
    model = build()
    n = sk.masks(model).numel
    callback = PruningCallback(gradual(model))
    trainer = train(model, callback, tmp_path, 8, gradient_accumulation_steps=accumulated)
    logged = [entry for entry in trainer.state.log_history if "sparsekit/sparsity" in entry and "loss" in entry]
    schedule = sk.Cubic(0.0, 0.75, 0, 5)
    expected = [1 - sk.kept_count(n, schedule(step)) / n for step in (0, 1, 2, 3, 4, 5, 5, 5)]
    assert [entry["sparsekit/sparsity"] for entry in logged] == pytest.approx(expected, abs=1e-12)
    assert [entry["sparsekit/target"] for entry in logged][:6] == [schedule(step) for step in range(6)]
    assert callback.pruner.done and sk.masks(model).count() == sk.kept_count(n, 0.75)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    whole = build()
    train(whole, PruningCallback(gradual(whole)), tmp_path / "whole", 9)
    part = build()
    train(part, PruningCallback(gradual(part)), tmp_path / "part", 3)
    checkpoint = tmp_path / "part" / "checkpoint-3"
    assert (checkpoint / STATE_FILE).is_file()
    resumed = build()
    callback = PruningCallback(gradual(resumed))
    train(resumed, callback, tmp_path / "part", 9, str(checkpoint))
    assert callback.pruner.done and sk.masks(resumed) == sk.masks(whole)
    for (name, p), q in zip(resumed.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(p, q), name

    moved = Path(shutil.move(checkpoint, tmp_path / "elsewhere"))
    other = build()
    with pytest.raises(ValueError, match="PruningCallback: resume_from: expected the folder of the checkpoint, got no"):
        train(other, PruningCallback(gradual(other)), tmp_path / "new", 9, str(moved))
    train(other, PruningCallback(gradual(other), resume_from=moved), tmp_path / "new", 9, str(moved))
    assert sk.masks(other) == sk.masks(whole)


def test_a_model_sparsified_too_late_is_noticed(tmp_path: Path) -> None:
    part = build()
    train(part, PruningCallback(gradual(part)), tmp_path, 3)
    late = sk.finalize(build())

    def make(model: nn.Module) -> sk.Gradual:
        return gradual(model)

    class Late(PruningCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            sk.sparsify(kwargs["model"])
            super().on_train_begin(args, state, control, **kwargs)

    with pytest.raises(ValueError, match="got others .*; sparsify the model before the trainer loads it"):
        train(late, Late(make), tmp_path, 9, str(tmp_path / "checkpoint-3"))


def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch).loss


def bip(model: nn.Module) -> sk.BiP:
    return sk.BiP(model, loss, 0.9, steps=5, lower=torch.optim.SGD(model.parameters(), 0.1, momentum=0.9))


def imp(model: nn.Module) -> sk.IMP:
    options = sk.IMPOptions(rate=0.7)  # two rounds of 0.7 and 0.9; the first is pruned when the pruner is made
    sgd = partial(torch.optim.SGD, lr=0.1)
    return sk.IMP(model, loss, 0.9, optimizer=sgd, budget=5, options=options)


@pytest.mark.parametrize("make", [bip, imp])
def test_a_pruner_that_trains_resumes_with_its_tensors(make: Any, tmp_path: Path) -> None:
    model = build()
    train(model, PruningCallback(make), tmp_path, 3)
    again = build()
    callback = PruningCallback(make)
    train(again, callback, tmp_path, 6, str(tmp_path / "checkpoint-3"))
    assert callback.pruner.done and callback.pruner.cost.steps == 5
    assert sk.masks(again).count() == sk.kept_count(sk.masks(again).numel, 0.9)


def test_a_pruner_takes_no_batches_from_a_loader_whose_workers_persist(tmp_path: Path) -> None:
    seen = []
    for make in (bip, gradual):
        workers = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
        seen.append(train(build(), PruningCallback(make), tmp_path, 8, **workers).seen)
    assert len(seen[0]) == 8 and seen[0] == seen[1]


@pytest.mark.parametrize("worst", [True, False])
def test_a_best_checkpoint_from_before_the_last_pruning_is_told(tmp_path: Path, worst: bool) -> None:
    model = build()
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": worst}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trainer = train(
            model, PruningCallback(gradual(model)), tmp_path, 9, eval_strategy="steps", eval_steps=3, **best
        )
    early = trainer.state.best_model_checkpoint.endswith("-3")
    texts = [str(w.message) for w in told if "the model ends with sparsity" in str(w.message)]
    assert early == worst == bool(texts) and (sk.masks(model).sparsity < 0.7) == worst
    assert all("PruningCallback: model: the model ends with sparsity 0.5" in text for text in texts), texts
