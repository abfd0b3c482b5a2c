# SPDX-License-Identifier: Apache-2.0
"""state_dict both ways: masked into masked, masked into plain, plain into masked, and what is refused."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import sparsekit as sk


def build() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 16, 5), nn.Linear(5, 3))


def masked(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = build().eval()
    sk.sparsify(model)
    sk.set_masks(model, {n: sk.Mask.from_dense(torch.rand(m.shape) < 0.5) for n, m in sk.masks(model).items()})
    return model


X = torch.randn(2, 2, 6, 6)


def test_masked_into_masked() -> None:
    one, two = masked(0), masked(1)
    words = two[0].mask_words
    two.load_state_dict(one.state_dict())
    assert sk.masks(two) == sk.masks(one) and two[0].mask_words is words
    assert torch.equal(two(X), one(X))
    two.load_state_dict(copy.deepcopy(one.state_dict()), assign=True)
    assert torch.equal(two(X), one(X))


def test_masked_into_plain() -> None:
    model, plain = masked(), build().eval()
    assert plain.load_state_dict(sk.dense_state_dict(model), strict=True).missing_keys == []
    torch.testing.assert_close(plain(X), model(X))
    with pytest.raises(RuntimeError, match="mask_words"):
        plain.load_state_dict(model.state_dict())


NO_MASKS = (
    "Checkpoint has no masks for 3 sparse layers; pass `masks='infer'` to take zeros as masks, or `masks='dense'`."
)


def test_plain_into_masked_is_refused_in_words() -> None:
    model, plain = masked(), build()
    with pytest.raises(RuntimeError) as caught:
        model.load_state_dict(plain.state_dict())
    assert str(caught.value).count(NO_MASKS) == 1
    assert all(f"{name}.mask_words" in str(caught.value) for name in ("0", "3", "4"))


def test_the_message_names_three_layers_at_most_and_one_in_the_singular() -> None:
    deep = nn.Sequential(*[nn.Linear(2, 2) for _ in range(20)])
    plain = copy.deepcopy(deep)
    sk.sparsify(deep)
    with pytest.raises(RuntimeError, match=r"no masks for 20 sparse layers; pass .* the layers: 0, 1, 2, \.\.\.\)"):
        deep.load_state_dict(plain.state_dict())
    layer = sk.MaskedLinear(2, 2)
    with pytest.raises(RuntimeError, match=r"no masks for 1 sparse layer; pass .* the layers: the model itself\)"):
        layer.load_state_dict(nn.Linear(2, 2).state_dict())


def test_plain_into_masked_without_strict_keeps_the_masks() -> None:
    model, plain = masked(), build().eval()
    masks = sk.masks(model)
    result = model.load_state_dict(plain.state_dict(), strict=False)
    assert result.missing_keys == [f"{n}.mask_words" for n in ("0", "3", "4")] and result.unexpected_keys == []
    assert sk.masks(model) == masks and torch.equal(model[3].weight, plain[3].weight)


def test_some_masks_missing() -> None:
    model, state = masked(), masked(1).state_dict()
    del state["3.mask_words"]
    with pytest.raises(RuntimeError, match="no masks for 1 sparse layer; .* the layers: 3"):
        model.load_state_dict(state)


def test_missing_weights_are_reported_as_ever() -> None:
    model, state = masked(), masked(1).state_dict()
    del state["3.weight"], state["3.mask_words"]
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "3.weight", "3.mask_words"'):
        model.load_state_dict(state)


@pytest.mark.parametrize("strict", [True, False])
def test_words_that_fit_no_mask_are_refused(strict: bool) -> None:
    cases = [
        (torch.zeros(5, 2, dtype=torch.int64), "3.mask_words: expected dtype torch.int32, got torch.int64"),
        (torch.zeros(5, 1, dtype=torch.int32), "3.mask_words: expected shape (5, 2), got (5, 1)"),
    ]
    for words, text in cases:
        model = masked()
        before, state = model[3].mask, masked(1).state_dict()
        state["3.mask_words"] = words
        with pytest.raises(RuntimeError) as caught:
            model.load_state_dict(state, strict=strict)
        assert text in str(caught.value) and model[3].mask == before
    model, state = masked(), masked(1).state_dict()
    state["4.mask_words"] = torch.full((3, 1), 32, dtype=torch.int32)  # bit 5 of 5 columns
    with pytest.raises(RuntimeError, match="4.mask_words: expected zero padding bits, got set ones"):
        model.load_state_dict(state, strict=strict)


def test_shared_and_tied_layers_round_trip() -> None:
    def shared() -> nn.Module:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
        model[1], model[2].weight = model[0], model[0].weight
        sk.sparsify(model)
        sk.set_masks(model, {"0": sk.Mask.from_dense(torch.rand(3, 3) < 0.5)})
        return model

    one, two = shared(), shared()
    two.load_state_dict(one.state_dict())
    assert torch.equal(two(torch.ones(1, 3)), one(torch.ones(1, 3)))
    assert two[2].mask == two[0].mask == one[0].mask


def test_torch_save_load_weights_only() -> None:
    model, file = masked(), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = masked(1)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(X), model(X))


@pytest.mark.parametrize("how", ["pickle", "torch.save", "deepcopy"])
@pytest.mark.parametrize("after_forward", [False, True])
def test_whole_models_are_copied(how: str, after_forward: bool) -> None:
    model = masked()
    if after_forward:
        model(X).sum().backward()
    if how == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    elif how == "deepcopy":
        twin = copy.deepcopy(model)
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    assert torch.equal(twin(X), model(X)) and sk.masks(twin) == sk.masks(model)
    twin[3].mask = sk.Mask.full((5, 64))
    assert model[3].mask.sparsity > 0
    assert all(p.is_leaf for p in twin.parameters())
    assert type(sk.finalize(twin)[0]) is nn.Conv2d


def test_masks_and_mask_pickle() -> None:
    masks = sk.masks(masked())
    assert pickle.loads(pickle.dumps(masks)) == masks == copy.deepcopy(masks)
