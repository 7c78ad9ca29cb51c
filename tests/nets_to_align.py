"""Small models with random weights, and the symmetries that they are known to have.

Holds: ``CASES``, ``mlp``, ``run_once``, ``scrambled``.
May import: torch, transformers, ``secant``.
"""

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from secant.load.demo import load_demo
from secant.load.huggingface import quiet
from secant.maps.graph import export
from secant.maps.permutations import permute, random_orders
from secant.maps.symmetries import find_symmetries


def mlp(*widths):
    layers = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def first_output(output):
    return output if isinstance(output, torch.Tensor) else output[0]


@torch.no_grad()
def run_once(model, args, kwargs):
    return first_output(model(*args, **kwargs))


def scrambled(model, args, kwargs, seed=0):
    """A copy with all of its units in a random order."""
    found = find_symmetries(export(model, "m", args, kwargs), model)
    other = copy.deepcopy(model)
    permute(other, found, random_orders(found, torch.Generator().manual_seed(seed)))
    return other


@dataclass(frozen=True)
class Case:
    """A model, its example, and how many symmetries have which (size, orders, depth)."""

    name: str
    make: Callable
    example: Callable
    expected: Counter
    has_float32: bool = False

    def build(self, dtype):
        torch.manual_seed(0)
        with quiet():
            model = self.make().to(dtype).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # norms and biases are not left at 1 and 0
                parameter.copy_(0.3 * torch.randn(parameter.shape))
            for part in model.modules():
                if isinstance(part, nn.BatchNorm2d):
                    part.running_mean.normal_()
                    part.running_var.uniform_(0.5, 2)
        example = self.example()
        if isinstance(example, dict):
            return model, (), example
        return model, (example.to(dtype),), {}


def transformer(kind, config, **sizes):
    def make():
        import transformers

        return getattr(transformers, kind)(getattr(transformers, config)(vocab_size=40, **sizes))

    return make


def ids():
    return {"input_ids": torch.randint(0, 40, (3, 5))}


class Dense(nn.Module):
    """Channels side by side, as in DenseNet; groups, and a flattened map of 3 x 3 pixels."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.c, self.norm = nn.Conv2d(10, 12, 3), nn.GroupNorm(3, 12)
        self.d, self.head = nn.Conv2d(12, 12, 3, groups=12), nn.Linear(12 * 4, 5)

    def forward(self, x):
        x = self.a(x).relu()
        x = self.norm(self.c(torch.cat([x, self.b(x).relu()], 1))).relu()
        return self.head(nn.functional.max_pool2d(self.d(x), 2).flatten(1))


HF = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
HEADS = {(4, 1, 0): 2, (8, 4, 1): 4}
CASES = [
    Case("mlp", lambda: mlp(6, 8, 8, 4), lambda: torch.randn(3, 6), Counter({(8, 1, 0): 2})),
    Case(
        "residual CNN with BatchNorm", lambda: load_demo("cnn"),
        lambda: torch.randn(3, 1, 8, 8), Counter({(16, 1, 0): 5}),
    ),
    Case(
        "demo transformer", lambda: load_demo("transformer"), lambda: torch.randn(3, 1, 8, 8),
        Counter({(32, 1, 0): 1, (4, 1, 0): 4, (8, 4, 1): 8, (128, 1, 0): 4}),
    ),
    Case(
        "concatenated and grouped", Dense, lambda: torch.randn(3, 3, 8, 8),
        Counter({(4, 1, 0): 1, (6, 1, 0): 1, (3, 1, 0): 1, (4, 3, 1): 1}),
    ),
    Case(
        "torch's encoder layer", lambda: nn.TransformerEncoderLayer(16, 4, 32, batch_first=True),
        lambda: torch.randn(3, 5, 16), Counter({(4, 1, 0): 1, (4, 4, 1): 2, (32, 1, 0): 1}),
    ),
    Case(
        "BERT", transformer("BertModel", "BertConfig", max_position_embeddings=24, **HF), ids,
        Counter(HEADS | {(48, 1, 0): 2}),
    ),
    Case(
        "BERT with a head",
        transformer(
            "BertForSequenceClassification", "BertConfig", max_position_embeddings=24, **HF
        ),
        ids, Counter(HEADS | {(48, 1, 0): 2, (32, 1, 0): 2}),
    ),
    Case(
        "GPT-2",
        transformer(
            "GPT2LMHeadModel", "GPT2Config", n_embd=32, n_layer=2, n_head=4, n_positions=24,
            use_cache=False,
        ),
        ids, Counter(HEADS | {(128, 1, 0): 2, (32, 1, 0): 1}),
    ),
    Case(
        "Llama",
        transformer(
            "LlamaForCausalLM", "LlamaConfig", num_key_value_heads=2, tie_word_embeddings=True,
            use_cache=False, **HF,
        ),
        # Key/value groups, query heads in each, entries of the values; queries are rotated.
        ids, Counter({(2, 1, 0): 2, (2, 2, 1): 2, (8, 2, 1): 2, (48, 1, 0): 2, (32, 1, 0): 1}),
        has_float32=True,
    ),
    Case(
        "GPT-NeoX",
        transformer("GPTNeoXForCausalLM", "GPTNeoXConfig", use_cache=False, **HF), ids,
        # A quarter of a head's 8 query and key entries is rotated, the other 6 are not.
        Counter({(4, 1, 0): 2, (6, 4, 1): 2, (8, 4, 1): 2, (48, 1, 0): 2, (32, 1, 0): 1}),
    ),
]  # fmt: skip
