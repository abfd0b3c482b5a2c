# SPDX-License-Identifier: Apache-2.0
"""Small networks, each with something that pruning libraries trip over."""

from __future__ import annotations

from torch import Tensor, nn


class Net(nn.Module):
    """A convolution and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc1, self.fc2 = nn.Conv2d(3, 8, 3), nn.Linear(8 * 36, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, 3, 8, 8] -> [N, 10]."""
        return self.fc2(self.fc1(self.conv(x).relu().flatten(1)).relu())


class Attention(nn.Module):
    """torch's attention, which reads a weight of its child, between linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.attention, self.out = nn.Linear(8, 8), nn.MultiheadAttention(8, 2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, L, 8] -> [N, L, 3]."""
        h = self.inp(x)
        return self.out(self.attention(h, h, h, need_weights=False)[0])


class Tied(nn.Module):
    """A language model's head that shares the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.body, self.head = nn.Embedding(12, 8), nn.Linear(8, 8), nn.Linear(8, 12, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        """x int [N, L] -> [N, L, 12]."""
        return self.head(self.body(self.embedding(x)).relu())


class Wide(nn.Module):
    """One layer of more than 2^24 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4097, 4097, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, 4097] -> [N, 4097]."""
        return self.fc(x)


class Stack(nn.Module):
    """Two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, 3, H, W] -> [N, 4, H - 4, W - 4]."""
        return self.second(self.first(x).relu())


class Recurrent(nn.Module):
    """An LSTM and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.fc = nn.LSTM(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """x [L, N, 8] -> [L, N, 3]."""
        return self.fc(self.lstm(x)[0])
