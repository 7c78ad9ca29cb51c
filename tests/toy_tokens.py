"""A tokenizer, models and a feed of them, small enough to compute by hand.

Holds: ``Digits``, ``Apply``, ``TokenNet``, ``feed_of``.
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

    pad_token_id = eos_token_id = PAD

    def __init__(self, side="right"):
        self.side = side

    def __call__(self, texts):
        ids = [[int(digit) for digit in text] for text in texts]
        return {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}


def padded_on_the_left(feed):
    """The same feed, whose batches have their padding moved to the left."""
    on_the_right = feed.inputs

    def inputs(batch):
        found, mask = on_the_right(batch)
        gaps = (~mask).sum(1).tolist()

        def moved(rows):
            return torch.stack([row.roll(gap) for row, gap in zip(rows, gaps, strict=True)])

        return {key: moved(rows) for key, rows in found.items()}, moved(mask)

    feed.inputs = inputs
    return feed


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


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
    feed = Feed(loaded, data, groups=groups, batch_size=4, seed=0)
    is_left = tokenizer is not None and tokenizer.side == "left"
    return padded_on_the_left(feed) if is_left else feed
