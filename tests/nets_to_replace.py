"""Nets of blocks whose affine ones are known, and data for them.

Holds: ``WIDTH``, ``Block``, ``Still``, ``Net``, ``net_of``, ``data``.
May import: torch.
"""

import torch
from torch import nn

WIDTH = 8


class Block(nn.Module):
    """x + W₂ φ(W₁ x + b): affine without φ, or where every hidden unit is on."""

    def __init__(self, act, bias=0.0, scale=0.3):
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.act = act
        with torch.no_grad():
            self.up.bias.fill_(bias)
            self.down.weight.mul_(scale * 4)

    def forward(self, x):
        return x + self.down(self.act(self.up(x)))


class Still(nn.Module):
    """A block that does nothing, at some cost."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, x):
        return x + self.down(self.up(x).relu())


class Net(nn.Module):
    def __init__(self, *blocks):
        super().__init__()
        self.blocks, self.head = nn.ModuleList(blocks), nn.Linear(WIDTH, 4)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def net_of(*blocks):
    return Net(*blocks).eval()


def data(units=400):
    return torch.randn(units, WIDTH, generator=torch.Generator().manual_seed(1))
