# SPDX-License-Identifier: Apache-2.0
"""Small networks whose channels are coupled in every way that surgery knows, and some in ways that it must refuse."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekit.benchmarks.networks import build_network


class Concat(nn.Module):
    """Two branches side by side, one of them added to itself, then a head that reads both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.b, self.nb = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.mix = nn.Conv2d(10, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([F.relu(self.na(self.a(x))), F.relu(self.nb(self.b(x)))], 1)
        return self.fc(F.adaptive_avg_pool2d(F.relu(self.norm(self.mix(y))), 2).flatten(1))


class Depthwise(nn.Module):
    """Two separable blocks, the second with a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.n0 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.dw, self.n1 = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.pw, self.n2 = nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.grouped, self.n3 = nn.Conv2d(12, 12, 3, padding=1, groups=3, bias=False), nn.BatchNorm2d(12)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.n0(self.stem(x)))
        x = F.relu6(self.n1(self.dw(x)))
        x = F.relu(self.n2(self.pw(x)))
        x = F.relu(self.n3(self.grouped(x)))
        return self.fc(x.mean((2, 3)))


class TransformerBlock(nn.Module):
    """A residual MLP behind LayerNorm: its hidden channels are free, those of the stream are mixed by LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(6, 8), nn.LayerNorm(8)
        self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.head(x)


class Softmax(nn.Module):
    """Channels that a softmax ranks against each other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8, bias=False), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.softmax(self.a(x), -1))


class MeanOverChannels(nn.Module):
    """An operation with a harmless name that mixes channels: only the proof can tell."""

    def __init__(self) -> None:
        super().__init__()
        self.free, self.a, self.b = nn.Linear(4, 8, bias=False), nn.Linear(8, 8, bias=False), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(torch.relu(self.free(x)))
        return self.b(y / (1 + y.pow(2).mean(1, keepdim=True)))


class HardSizes(nn.Module):
    """A forward that knows its own sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Linear(4 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.adaptive_avg_pool2d(torch.relu(self.a(x)), 4).view(-1, 64))


class Twice(nn.Module):
    """A layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6, bias=False), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(torch.relu(self.a(x)))))


class Chunk(nn.Module):
    """Two halves of one layer that go separate ways, so that both must stay of one size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a = nn.Conv2d(3, 6, 1, bias=False), nn.Conv2d(6, 8, 1, bias=False)
        self.b, self.c = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        u, v = F.relu(self.a(F.relu(self.stem(x)))).chunk(2, 1)
        return self.b(u) + self.c(v)


class Mixer(nn.Module):
    """A linear layer over positions, which is where Torch-Pruning loses track of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.wide = nn.Linear(6, 8, bias=False), nn.Linear(5, 10, bias=False)
        self.back, self.head = nn.Linear(10, 5), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x)
        return self.head(y + self.back(F.relu(self.wide(y.transpose(1, 2)))).transpose(1, 2))


class Decoder(nn.Module):
    """PReLU of one parameter a channel, and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.pa = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.PReLU(8)
        self.up, self.norm = nn.ConvTranspose2d(8, 6, 2, stride=2, bias=False), nn.BatchNorm2d(6)
        self.act, self.out = nn.PReLU(), nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.act(self.norm(self.up(self.pa(self.a(x))))))


class InputJoined(nn.Module):
    """Channels that are added to the network's input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x) + x)


IMAGE, SMALL = (2, 3, 16, 16), (2, 3, 8, 8)
EXACT: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: build_network("mlp", classes=5, channels=1, image_size=4, seed=0), (3, 1, 4, 4)),
    "convnet": (lambda: build_network("convnet", classes=5, channels=3, image_size=8, seed=0), SMALL),
    "resnet8": (lambda: build_network("resnet8", classes=5, channels=3, image_size=16, seed=0), IMAGE),
    "concat": (Concat, SMALL),
    "depthwise": (Depthwise, SMALL),
    "transformer": (TransformerBlock, (2, 5, 6)),
    "decoder": (Decoder, SMALL),
}


def settled(network: nn.Module, shape: tuple[int, ...], seed: int = 0) -> tuple[nn.Module, Tensor]:
    """The network with statistics and affine parameters of BatchNorm that are no defaults, in eval mode; and an input."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor, spread, mean in ((module.weight, 0.2, 1.0), (module.bias, 0.5, 0.0)):
                    tensor.copy_(torch.randn(tensor.shape, generator=generator) * spread + mean)
        for _ in range(2):
            network.train()(torch.randn(shape, generator=generator))
    return network.eval(), x
