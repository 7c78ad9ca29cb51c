"""The nets of the kernel benchmark, and their weights as arrays that any framework can read."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """A layer of a transformer that normalises first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        h = self.norm1(x)
        q, k, v = (
            part(h).view(n, t, self.heads, -1).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        weights = (q @ k.transpose(2, 3) * (d // self.heads) ** -0.5).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(n, t, d))
        return x + self.down(nn.functional.relu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    def __init__(self, width: int = 128, depth: int = 4, heads: int = 4, classes: int = 10) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64 * 14 * 14, 10),
    )  # fmt: skip


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "mlp": (lambda: mlp(784, 1024, 1024, 10), (1000, 784), "trace"),
    "mlp, 64 rows": (lambda: mlp(784, 1024, 1024, 10), (64, 784), "trace"),
    "cnn": (cnn, (256, 1, 28, 28), "trace"),
    "transformer": (Transformer, (128, 32, 128), "trace"),
    "full": (lambda: mlp(64, 512, 512, 512, 10), (512, 64), "full"),
}


def case(name: str) -> tuple[nn.Module, Tensor, str]:
    """The net, its rows, and which outputs; seeded."""
    make, shape, outputs = CASES[name]
    torch.manual_seed(0)
    return make().eval(), torch.randn(shape), outputs
