# SPDX-License-Identifier: Apache-2.0
"""MaskedLayer: what every masked layer adds to its torch layer, namely one buffer of packed mask words."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparsekit import ops
from sparsekit.mask import Mask
from sparsekit.ops import shards

if TYPE_CHECKING:
    from sparsekit.nn.cached import WeightCache
    from sparsekit.nn.compacted import FilterPlan
    from sparsekit.nn.prepared import Preparation

WORDS = "mask_words"
_NO_MASKS = "Checkpoint has no masks for {count} sparse layer{s}; pass `masks='infer'` to take zeros as masks, "
_NO_MASKS += "or `masks='dense'`. (sparsekit.load takes them; the layers: {names})"


class MaskedLayer(nn.Module):
    """Mixin of the masked layers.

    ``weight`` stays the leaf Parameter under its dense name; the forward pass uses ``where(m, weight, 0)``.

    mask_words: int32 buffer [rows, ceil(cols/32)] of ``weight``'s logical C order, padding bits zero.
    dense_grad: when True, ``weight`` receives the gradient of the effective weight unmasked; set it through
        ``sparsekit.dense_gradient``.
    """

    weight: nn.Parameter
    mask_words: Tensor
    dense_grad: bool = False
    # A tensor that stands in for the masked weight (sparsekit.effective_weights); differentiable any number of times.
    _effective: Tensor | None = None
    # Of sparsekit.cached_weights, while its context lasts.
    _cache: WeightCache | None = None
    # Of sparsekit.compacted_filters, while its context lasts.
    _filters: FilterPlan | None = None
    # Of sparsekit.prepared_weights, likewise.
    _prepared: Preparation | None = None
    # Masked layers that share the weight, and so have to share the mask (sparsify keeps this list).
    _twins: tuple[MaskedLayer, ...] = ()
    # Is the weight stored as [in, out], the transpose of what nn.Linear stores?
    transposed: bool = False

    def _stand_in(self, input: Tensor) -> Tensor | None:
        """What serves as the weight for this input instead of weight and mask."""
        if self._effective is not None:
            return self._effective
        if self._prepared is not None and (weight := self._prepared.of(self, input)) is not None:
            return weight
        return None if self._cache is None else self._cache.of(self, input)

    def _init_mask(self) -> None:
        self.register_buffer(WORDS, Mask.full(self.weight.shape, self.weight.device).words)

    @property
    def mask(self) -> Mask:
        """Snapshot of the mask; assign a Mask to change it in place, in all layers that share the weight."""
        return Mask(self.mask_words.clone(), tuple(self.weight.shape))

    @mask.setter
    def mask(self, mask: Mask) -> None:
        if not isinstance(mask, Mask):
            raise TypeError(f"mask: expected a Mask, got {type(mask).__name__}; Mask.from_dense packs a bool tensor")
        if mask.shape != tuple(self.weight.shape):
            raise ValueError(f"mask: expected shape {tuple(self.weight.shape)}, got {mask.shape}")
        with torch.no_grad():
            words = shards.gathered(mask.words)
            for layer in (self, *(twin for twin in self._twins if twin.weight is self.weight)):
                layer.mask_words.copy_(words)

    @property
    def spread_words(self) -> Tensor:
        """The mask words; where the weight is a DTensor, as one that is spread alike."""
        return shards.spread_as(self.mask_words, self.weight)

    def masked_weight(self) -> Tensor:
        """The effective weight ``where(m, weight, 0)``, detached: weight's shape, dtype and strides."""
        return ops.mask_weight(self.weight.detach(), self.mask_words)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MaskedLayer:
        before = self.mask_words
        super()._apply(fn, recurse)
        if self.mask_words is not before:
            self._buffers[WORDS] = _moved(before, self.mask_words, self.weight)
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key = prefix + WORDS
        words = state_dict.get(key)
        if words is not None and (problem := _words_problem(words, self.weight)):
            error_msgs.append(f"{key}: {problem}")
            state_dict = {name: value for name, value in state_dict.items() if name != key}
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if key in missing_keys and prefix + "weight" in state_dict:
            telling = _MissingMask(key)
            telling.missing = missing_keys
            missing_keys[missing_keys.index(key)] = telling


def _moved(before: Tensor, after: Tensor, weight: Tensor) -> Tensor:
    """The words after a conversion of the whole module, which is meant for weights: bits have to arrive as they left.

    ``to_empty`` leaves what lies in memory and ``type()`` turns bits into numbers. Words without data (the meta device)
    become full ones where memory is given to them, as in a new layer.
    """
    if after.is_meta or type(before) is not Tensor or type(after) is not Tensor:
        return after
    if before.is_meta:
        return Mask.full(weight.shape, after.device).words
    same = before.to(after.device)
    return after if after.dtype == same.dtype and torch.equal(after, same) else same.clone()


def _words_problem(words: Tensor, weight: Tensor) -> str | None:
    """Why ``words`` cannot be the mask of ``weight``, or None."""
    if words.dtype != torch.int32:
        return f"expected dtype torch.int32, got {words.dtype}"
    if tuple(words.shape) != ops.words_shape(weight.shape):
        return f"expected shape {ops.words_shape(weight.shape)}, got {tuple(words.shape)}"
    if not words.is_meta and not torch.equal(ops.pack_mask(ops.unpack_mask(words, weight.shape)), words):
        return "expected zero padding bits, got set ones"
    return None


class _MissingMask(str):
    """A missing key that explains itself where torch prints it, which it does only for strict loading.

    torch calls ``_load_from_state_dict`` with strict=True whatever the user asked for, so this is the one place that knows.
    """

    missing: list[str]

    def __format__(self, spec: str) -> str:
        masks = [key for key in self.missing if isinstance(key, _MissingMask)]
        if masks[0] is not self:
            return str(self)
        names = [key.removesuffix(WORDS).rstrip(".") or "the model itself" for key in masks]
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        message = _NO_MASKS.format(count=len(names), s="" if len(names) == 1 else "s", names=shown)
        return f"{self!s}: {message}"
