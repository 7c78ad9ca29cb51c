"""A tokenizer, a model of tokens and a feed of them, small enough to compute by hand.

Holds: ``Digits``, ``TokenNet``, ``feed_of``.
May import: torch, ``secant``.
"""

import torch
from torch import nn

from secant.load.data import Units
from secant.load.feed import Feed
from secant.load.models import Loaded

PAD = 10


class Digits:
    """A text of digits is its own token ids; padding goes on the left or on the right."""

    def __init__(self, side="right"):
        self.side = side

    def __call__(self, texts, truncation):
        return {"input_ids": [[int(digit) for digit in text] for text in texts]}

    def pad(self, encoded, return_tensors):
        rows = encoded["input_ids"]
        longest = max(map(len, rows))
        ids, masks = [], []
        for row in rows:
            gap = longest - len(row)
            padded = ([PAD] * gap, [0] * gap)
            parts = [(row, [1] * len(row)), padded]
            left, right = parts if self.side == "right" else parts[::-1]
            ids.append(left[0] + right[0])
            masks.append(left[1] + right[1])
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(masks)}


class TokenNet(nn.Module):
    """Embeds digits, padding as NaN, and runs one block on them."""

    def __init__(self, block, width=3):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.word = nn.Embedding(PAD + 1, width)
        with torch.no_grad():
            self.word.weight.copy_(torch.randn(PAD + 1, width, generator=generator))
            self.word.weight[PAD] = torch.nan
        self.block = block

    def get_input_embeddings(self):
        return self.word

    def forward(self, *, input_ids, attention_mask):
        return (self.block(self.word(input_ids)),)


def feed_of(model, units, *, tokenizer=None, groups=5):
    """A feed of a model in memory; `units` is a tensor or a list of texts."""
    loaded = Loaded("net", model, tokenizer, lambda seed: model)
    is_texts = isinstance(units, list)
    data = Units("data", units if is_texts else None, None if is_texts else units)
    return Feed(loaded, data, groups=groups, batch_size=4, seed=0)
