# SPDX-License-Identifier: Apache-2.0
"""Models of Hugging Face transformers with random weights: what is masked, and that the masks hold."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from random_masks import poison_, remask_
from torch import Tensor, nn

import sparsekit as sk

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SMALL = {"vocab_size": 32, "bos_token_id": 0, "eos_token_id": 1}
BLOCKS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TOKENS = torch.randint(2, 32, (2, 7), generator=torch.Generator().manual_seed(0))
PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(n_layer=2, n_embd=16, n_head=2, n_positions=16, **SMALL)
    return transformers.GPT2LMHeadModel(config)


def bert() -> nn.Module:
    return transformers.BertForMaskedLM(transformers.BertConfig(**BLOCKS, max_position_embeddings=16, **SMALL))


def vit() -> nn.Module:
    return transformers.ViTForImageClassification(transformers.ViTConfig(**BLOCKS, image_size=16, patch_size=8))


def llama() -> nn.Module:
    config = transformers.LlamaConfig(**BLOCKS, max_position_embeddings=16, tie_word_embeddings=False, **SMALL)
    return transformers.LlamaForCausalLM(config)


def t5() -> nn.Module:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, **SMALL))


LM = {"input_ids": TOKENS, "labels": TOKENS}
# model, its input, how many layers are masked, and what is skipped with a word of the reason
MODELS: dict[str, tuple[Any, dict[str, Tensor], int, dict[str, str]]] = {
    "gpt2": (gpt2, LM, 8, {"lm_head": "tied to transformer.wte", "transformer.wte": "Embedding"}),
    "bert": (bert, LM, 13, {"cls.predictions.decoder": "tied to bert.embeddings.word_embeddings"}),
    "vit": (vit, {"pixel_values": PIXELS, "labels": torch.tensor([0, 1])}, 14, {"vit.embeddings": "no masked form"}),
    "llama": (llama, LM, 15, {"model.embed_tokens": "Embedding"}),
    "t5": (t5, LM, 16, {"lm_head": "tied to shared", "shared": "Embedding"}),
}
POISONS = [1e30, torch.inf, torch.nan]


@pytest.fixture(scope="module", params=list(MODELS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def sparse(name: str) -> nn.Module:
    torch.manual_seed(0)
    build, _, count, skipped = MODELS[name]
    model = build()
    report = sk.sparsify(model)
    assert len(report.masked) == count, report
    assert all(word in report.skipped[layer] for layer, word in skipped.items()), report
    text = sk.summary(model)
    assert all(f"not masked {layer}: {report.skipped[layer]}" in text for layer in skipped)
    remask_(model, 1, kept=0.6)
    return model


def run(model: nn.Module, name: str, training: bool) -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)  # dropout
    result = model.train(training)(**MODELS[name][1])
    return result.loss, result.logits


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_masked_is_finalized_whatever_lies_under_the_mask(sparse: nn.Module, name: str, training: bool) -> None:
    model = copy.deepcopy(sparse)
    final = sk.finalize(copy.deepcopy(model))
    assert [type(m) for m in final.modules()] == [type(m) for m in MODELS[name][0]().modules()]
    with torch.no_grad():
        expected = run(final, name, training)
        y = run(model, name, training)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
        assert y[1].isfinite().all() and y[1].ne(0).any()
        for value in POISONS:
            poison_(model, value)
            assert torch.equal(run(model, name, training)[1], y[1])
    torch.testing.assert_close(run(sk.finalize(model), name, training), expected, rtol=1e-4, atol=1e-5)


def test_gradients(sparse: nn.Module, name: str) -> None:
    model, final = copy.deepcopy(sparse), sk.finalize(copy.deepcopy(sparse))
    poison_(model, torch.nan)
    run(model, name, True)[0].backward()
    run(final, name, True)[0].backward()
    for layer_name, layer in sk.masked_layers(model).items():
        kept, dense = layer.mask.dense(), final.get_submodule(layer_name).weight.grad
        torch.testing.assert_close(layer.weight.grad, torch.where(kept, dense, 0.0), rtol=1e-3, atol=1e-6)
    model.zero_grad()
    with sk.dense_gradient(model):
        run(model, name, True)[0].backward()
    for layer_name, layer in sk.masked_layers(model).items():
        dense = final.get_submodule(layer_name).weight.grad
        torch.testing.assert_close(layer.weight.grad, dense, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_of_the_library(sparse: nn.Module, name: str, reentrant: bool) -> None:
    model, plain = copy.deepcopy(sparse), copy.deepcopy(sparse)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    run(model, name, True)[0].backward()
    run(plain, name, True)[0].backward()
    for (layer, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=layer)


def test_files(sparse: nn.Module, name: str, tmp_path: Path) -> None:
    sk.save(sparse, tmp_path)
    torch.manual_seed(1)
    other = sk.load(MODELS[name][0](), tmp_path)
    assert sk.masks(other) == sk.masks(sparse)
    assert torch.equal(run(other, name, False)[1], run(sparse, name, False)[1])
    twin = pickle.loads(pickle.dumps(sparse))
    assert torch.equal(run(twin, name, False)[1], run(sparse, name, False)[1])


def test_from_pretrained_reads_what_a_finalized_model_saved(sparse: nn.Module, name: str, tmp_path: Path) -> None:
    final = sk.finalize(copy.deepcopy(sparse))
    final.save_pretrained(tmp_path)
    again = type(final).from_pretrained(tmp_path)
    torch.testing.assert_close(run(again, name, False)[1], run(sparse, name, False)[1])


class TestConv1D:
    """GPT-2's layer, whose weight is stored as [in, out]."""

    def build(self) -> nn.Module:
        layer = transformers.pytorch_utils.Conv1D(5, 3)
        nn.init.normal_(layer.bias)
        sk.sparsify(layer)
        layer.mask = sk.Mask.from_dense(torch.tensor([[1, 0, 1, 0, 1], [0, 1, 1, 1, 0], [1, 1, 0, 0, 0]]).bool())
        return layer

    def test_against_the_formula(self) -> None:
        layer, x = self.build(), torch.randn(2, 4, 3)
        z = torch.where(layer.mask.dense(), layer.weight, 0)
        torch.testing.assert_close(layer(x), x @ z + layer.bias)
        assert isinstance(layer, transformers.pytorch_utils.Conv1D) and repr(layer) == "Conv1D(nf=5, nx=3)"
        torch.testing.assert_close(layer(x.transpose(0, 1)), layer(x).transpose(0, 1))  # any strides

    def test_compile_autocast_and_cached_weights(self) -> None:
        layer, x = self.build().eval(), torch.randn(2, 4, 3)
        torch._dynamo.reset()
        torch.testing.assert_close(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), layer(x))
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
            y.sum().backward()
        assert y.dtype == torch.bfloat16 and layer.weight.grad.dtype == torch.float32
        assert not layer.weight.grad[~layer.mask.dense()].any()
        with sk.cached_weights(layer), torch.no_grad():
            torch.testing.assert_close(layer(x), y.float(), rtol=0.05, atol=0.05)
            assert layer._cache.weight.shape == (3, 5)  # it did serve

    def test_second_derivatives_are_refused(self) -> None:
        layer = self.build()
        (g,) = torch.autograd.grad(layer(torch.randn(2, 3)).square().sum(), [layer.weight], create_graph=True)
        with pytest.raises(RuntimeError, match="differentiable once"):
            g.sum().backward()

    def test_units_are_refused(self) -> None:
        layer = self.build()
        with pytest.raises(ValueError, match=r"OneShotMagnitude: projection: expected single weights, as layer ''"):
            sk.OneShotMagnitude(layer, lambda m, b: m(b).sum(), 0.5, projection=sk.Projection("filter"))

    def test_speed(self) -> None:
        layer = self.build()
        layer.mask = sk.Mask.from_dense(torch.tensor([[1, 0, 1, 0, 1], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]]).bool())
        (found,) = sk.speed(layer, torch.randn(2, 3), repeats=1, backward=True).layers
        assert (found.kind, found.outputs, found.inputs) == ("Conv1D", 4, 2) and "cut" in found.seconds

    def test_its_own_constructor(self) -> None:
        from sparsekit.nn.conv1d_of_transformers import MaskedConv1D

        assert MaskedConv1D(5, 3).mask == sk.Mask.full((3, 5))
