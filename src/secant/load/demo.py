"""Demo nets: five small trained digit classifiers, ready to measure without a download.

Holds: ``DeepLinear``, ``ReluMLP``, ``SmallCNN``, ``SmallTransformer``, ``RowGRU``, the registry
``DEMOS``, and the functions ``load_demo``, ``digits`` and ``digits_split``.
May import: torch, safetensors, sklearn, ``secant.errors``.

Every net takes ``(batch, 1, 8, 8)`` float32 in 0..1 and returns ``(batch, 10)`` logits.
Each but the recurrent one has a ``blocks`` list whose members keep the shape of what they receive.
``scripts/train_demos.py`` makes the packaged weights.
"""

from difflib import get_close_matches
from importlib.resources import files
from typing import Final, final

import torch
from safetensors.torch import load as load_tensors
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from secant.errors import LoadError

HELD_OUT_SHARE: Final = 0.3


@final
class DeepLinear(nn.Module):
    """Linear layers without any activation: an affine map, the positive control."""

    def __init__(self, depth: int = 5, width: int = 64) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch of images."""
        hidden: Tensor = self.flatten(images)
        for block in self.blocks:
            hidden = block(hidden)
        logits: Tensor = self.head(hidden)
        return logits


@final
class ReluMLP(nn.Module):
    """The same layers with a ReLU after each; no residual."""

    def __init__(self, depth: int = 5, width: int = 64) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(depth)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch of images."""
        hidden: Tensor = self.flatten(images)
        for block in self.blocks:
            hidden = block(hidden)
        logits: Tensor = self.head(hidden)
        return logits


@final
class ResidualConv(nn.Module):
    """Two normalised 3x3 convolutions, added to their input, then a ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Feature maps of the same shape."""
        return functional.relu(hidden + self.branch(hidden))


@final
class SmallCNN(nn.Module):
    """Stem, residual convolution blocks, global average pool, head."""

    def __init__(self, depth: int = 4, channels: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualConv(channels) for _ in range(depth))
        self.head = nn.Linear(channels, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch of images."""
        hidden: Tensor = self.stem(images)
        for block in self.blocks:
            hidden = block(hidden)
        logits: Tensor = self.head(hidden.mean(dim=(2, 3)))
        return logits


@final
class SelfAttention(nn.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Mixed tokens of the same shape."""
        batch, count, width = tokens.shape
        split = self.qkv(tokens).view(batch, count, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, count, width))
        return out


@final
class TransformerBlock(nn.Module):
    """Pre-norm block: attention and MLP, each added to what it read."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens of the same shape."""
        tokens = tokens + self.attention(self.attention_norm(tokens))
        out: Tensor = tokens + self.mlp(self.mlp_norm(tokens))
        return out


@final
class SmallTransformer(nn.Module):
    """Pixel rows as eight tokens, pre-norm blocks, mean pool, head."""

    def __init__(self, depth: int = 4, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.position = nn.Parameter(0.02 * torch.randn(8, width))
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch of images."""
        tokens: Tensor = self.embed(images.squeeze(1)) + self.position
        for block in self.blocks:
            tokens = block(tokens)
        logits: Tensor = self.head(self.norm(tokens).mean(dim=1))
        return logits


@final
class RowGRU(nn.Module):
    """Pixel rows as eight steps of a gated recurrence, whose last state is read."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.rnn = nn.GRU(8, width, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch of images."""
        states, _ = self.rnn(images.squeeze(1))
        logits: Tensor = self.head(states[:, -1])
        return logits


DemoNet = DeepLinear | ReluMLP | SmallCNN | SmallTransformer | RowGRU

DEMOS: Final[dict[str, type[DemoNet]]] = {
    "linear": DeepLinear,
    "mlp": ReluMLP,
    "cnn": SmallCNN,
    "transformer": SmallTransformer,
    "gru": RowGRU,
}


def load_demo(name: str) -> nn.Module:
    """The trained demo net of that name, on the CPU, in eval mode."""
    if name not in DEMOS:
        near = get_close_matches(name, DEMOS, n=1)
        hint = f"Did you mean '{near[0]}'?" if near else "Choose one of these."
        known = ", ".join(DEMOS)
        raise LoadError(f"load_demo: `name` must be one of {known}; got {name!r}. {hint}")
    file = files("secant.load") / "weights" / f"{name}.safetensors"
    if not file.is_file():
        raise LoadError(
            f"load_demo: the weights of '{name}' must be at {file}; no such file. "
            "Reinstall secant, or run `python scripts/train_demos.py` in a checkout."
        )
    with torch.random.fork_rng(devices=[]):  # the initial draw must not move the caller's seed
        net = DEMOS[name]()
    net.load_state_dict(load_tensors(file.read_bytes()))
    return net.eval()


def digits() -> tuple[Tensor, Tensor]:
    """The 1797 scikit-learn digits: images in 0..1, and int64 labels."""
    data = load_digits()
    images = torch.from_numpy(data.images).float().unsqueeze(1) / 16
    return images, torch.from_numpy(data.target).long()


def digits_split(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Train and held-out indices of ``digits()``; the packaged weights saw seed 0's train part."""
    count = len(digits()[1])
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    held_out = round(HELD_OUT_SHARE * count)
    return order[held_out:], order[:held_out]
