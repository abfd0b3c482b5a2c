# SPDX-License-Identifier: Apache-2.0
"""Which tiles serve which problem: a table for Hopper, a rule elsewhere, and from how many tokens cuBLAS is taken instead.

Everything here is chosen by a model of the traffic, not measured: no row exists yet. The model for Hopper (132
multiprocessors, 227 KB of shared memory each): few tokens are bound by reading the weight once, so tiles are narrow in
tokens, deep, and the depth is split until every multiprocessor has work; from 128 tokens on the tensor cores and the reads
of x from the second-level cache count, so tiles grow to 128 x 128 and then 128 x 256. tests/kernels compiles every line of
the table for Hopper and asserts registers, shared memory and the form of the tensor-core instruction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ProductConfig:
    """Tiles of ``x where(m, w, 0)^T`` and of its gradient at x.

    features x tokens is the tile of the result, depth the step of the sum; split parts of the sum are added by a second
    kernel (0: as many as split_for gives). warps and stages are Triton's.
    """

    features: int
    tokens: int
    depth: int
    warps: int
    stages: int
    split: int = 0


@dataclass(frozen=True)
class GradientConfig:
    """Tiles of the gradient at the weight: out x in is the tile of the result, tokens the step of the sum."""

    out: int
    inputs: int
    tokens: int
    warps: int
    stages: int


MANY = 1 << 62
# Most tokens of the bucket -> candidates, the chosen one first; the others are for SPARSEKIT_AUTOTUNE.
Products = dict[int, tuple[ProductConfig, ...]]
Gradients = dict[int, tuple[GradientConfig, ...]]

# x and weight both 16 bits wide.
HOPPER_NARROW: Products = {
    16: (ProductConfig(64, 16, 128, 4, 4), ProductConfig(64, 16, 256, 4, 3), ProductConfig(128, 16, 64, 4, 5)),
    32: (ProductConfig(64, 32, 128, 4, 4), ProductConfig(128, 32, 64, 4, 5)),
    64: (ProductConfig(64, 64, 128, 4, 4), ProductConfig(128, 64, 64, 4, 4)),
    128: (ProductConfig(128, 128, 64, 8, 4), ProductConfig(64, 128, 64, 4, 4)),
    512: (ProductConfig(128, 128, 64, 8, 4), ProductConfig(128, 64, 64, 4, 4)),
    MANY: (ProductConfig(128, 256, 64, 8, 3), ProductConfig(128, 128, 64, 8, 4)),
}
# x 16 bits wide, weight fp32: autocast with masters. The tile of the weight takes twice the room.
HOPPER_MASTERS: Products = {
    16: (ProductConfig(64, 16, 128, 4, 3), ProductConfig(64, 16, 64, 4, 5)),
    32: (ProductConfig(64, 32, 128, 4, 3), ProductConfig(64, 32, 64, 4, 5)),
    64: (ProductConfig(64, 64, 64, 4, 4), ProductConfig(128, 64, 64, 4, 3)),
    128: (ProductConfig(128, 128, 64, 8, 3), ProductConfig(64, 128, 64, 4, 3)),
    512: (ProductConfig(128, 128, 64, 8, 3), ProductConfig(128, 64, 64, 4, 3)),
    MANY: (ProductConfig(128, 256, 32, 8, 4), ProductConfig(128, 128, 64, 8, 3)),
}
# Both fp32: tf32 on the tensor cores, else fused multiply-adds, which hold their operands in registers.
HOPPER_TF32: Products = {
    16: (ProductConfig(64, 16, 64, 4, 4), ProductConfig(64, 16, 128, 4, 3)),
    64: (ProductConfig(64, 64, 64, 4, 3),),
    MANY: (ProductConfig(128, 128, 32, 8, 4), ProductConfig(64, 128, 32, 4, 4)),
}
HOPPER_FP32: Products = {
    16: (ProductConfig(64, 16, 32, 4, 4), ProductConfig(32, 16, 64, 4, 4)),
    MANY: (ProductConfig(64, 64, 32, 8, 3),),
}
HOPPER_GRADIENT: Gradients = {
    16: (GradientConfig(128, 128, 16, 8, 3), GradientConfig(64, 128, 16, 4, 3)),
    32: (GradientConfig(128, 128, 32, 8, 3), GradientConfig(64, 128, 32, 4, 3)),
    MANY: (GradientConfig(128, 128, 64, 8, 3), GradientConfig(128, 128, 32, 8, 4)),
}
HOPPER_GRADIENT_TF32: Gradients = {MANY: (GradientConfig(64, 64, 32, 4, 3),)}
HOPPER_GRADIENT_FP32: Gradients = {MANY: (GradientConfig(64, 64, 16, 8, 3),)}

# Elsewhere: tiles that fit the 99 KB of shared memory of the smallest devices.
ELSEWHERE: Products = {
    16: (ProductConfig(64, 16, 64, 4, 3),),
    MANY: (ProductConfig(64, 64, 32, 4, 3), ProductConfig(128, 64, 32, 4, 3)),
}
ELSEWHERE_GRADIENT: Gradients = {MANY: (GradientConfig(64, 64, 16, 4, 3), GradientConfig(128, 64, 32, 4, 3))}

# Most tokens for which the fused kernels are taken, by what they multiply; above, the masked weight is formed in one pass
# and cuBLAS multiplies. cuBLAS beats Triton by 5 to 15 % on large products, and reading the mask apart costs the less the
# more tokens share it: by the model the lines cross near 1024 tokens for 16-bit weights, and at 2048 for fp32 masters, whose
# pass reads more. Until that is measured a quarter of it is taken, where the weight's traffic decides nearly alone.
FUSED_TOKENS = {"narrow": 256, "masters": 512, "tf32": 32, "fp32": 16}
FUSED_TOKENS_ELSEWHERE = {"narrow": 64, "masters": 128, "tf32": 32, "fp32": 16}


def kind_of(x: torch.dtype, weight: torch.dtype, tf32: bool) -> str | None:
    """Which of the tables serves these dtypes: "narrow", "masters", "tf32", "fp32", or None where no kernel does."""
    if x in (torch.bfloat16, torch.float16):
        return {x: "narrow", torch.float32: "masters"}.get(weight)
    if x == weight == torch.float32:
        return "tf32" if tf32 else "fp32"
    return None


def fused_tokens(kind: str, capability: tuple[int, int]) -> int:
    """Most tokens for which the fused kernels serve products of this kind."""
    return (FUSED_TOKENS if capability[0] == 9 else FUSED_TOKENS_ELSEWHERE)[kind]


def bucket(tokens: int, table: Products | Gradients) -> int:
    """The key of ``table`` under which so many tokens are found."""
    return next(most for most in table if tokens <= most)


def products(kind: str, capability: tuple[int, int]) -> Products:
    """The table for products of this kind on a device of this compute capability."""
    hopper = {"narrow": HOPPER_NARROW, "masters": HOPPER_MASTERS, "tf32": HOPPER_TF32, "fp32": HOPPER_FP32}
    return hopper[kind] if capability[0] == 9 else ELSEWHERE


def gradients(kind: str, capability: tuple[int, int]) -> Gradients:
    """The table for gradients at the weight."""
    hopper = {"tf32": HOPPER_GRADIENT_TF32, "fp32": HOPPER_GRADIENT_FP32}
    return hopper.get(kind, HOPPER_GRADIENT) if capability[0] == 9 else ELSEWHERE_GRADIENT


def split_for(config: ProductConfig, tokens: int, features: int, depth: int, processors: int) -> int:
    """Parts of the sum: as many as can run at the same time, of at least four steps each."""
    if config.split:
        return config.split
    programs = math.ceil(tokens / config.tokens) * math.ceil(features / config.features)
    # Shared memory has room for two programs with small tiles, for one with large ones.
    room = processors * (2 if config.features * config.tokens <= 64 * 64 else 1)
    steps = math.ceil(depth / config.depth)
    split = 1
    while split < 16 and 2 * split * programs <= room and 2 * split * 4 <= steps:
        split *= 2
    return split
