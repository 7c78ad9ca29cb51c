"""Collapse of value biases: against the closed form, over layouts of heads, and where it must not.

Holds: tests of ``secant.uses.affine_attention`` through ``secant.uses.collapse``.
May import: pytest, torch, transformers where installed, ``secant``, the tests of collapse.
"""

import random
from collections import Counter

import pytest
import torch
from test_collapse import agree, curved, drawn, settled, written
from test_kernel import bert, texts
from torch import nn
from torch.nn import functional

from secant.maps.affinity import arguments, op_name
from secant.uses.collapse import collapsed

WIDTH = 8


class Attention(nn.Module):
    """Attention with its layout of heads, how it is computed, and one way to go wrong."""

    def __init__(self, kind="sdpa", heads=4, groups=4, *, wrong="", has_bias=True, is_own=True):
        super().__init__()
        self.kind, self.heads, self.groups, self.wrong = kind, heads, groups, wrong
        self.size = WIDTH // heads
        self.q, self.k, self.v = (
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, groups * self.size),
            nn.Linear(WIDTH, groups * self.size, bias=is_own),
        )
        self.o = nn.Linear(WIDTH, WIDTH, bias=has_bias)

    def is_harmless(self):
        """Whether what is wrong changes nothing: a softmax takes no mask, one group is whole."""
        return (self.kind, self.wrong) == ("softmax", "mask") or (
            (self.groups, self.wrong) == (1, "mixed")
        )

    def split(self, x, count):
        return x.unflatten(-1, (count, self.size)).transpose(1, 2)

    def forward(self, x, other=None):
        other = x if other is None else other
        q, k = self.split(self.q(x), self.heads), self.split(self.k(other), self.groups)
        values = self.v(other)
        v = self.split(values, self.groups)
        if self.wrong == "mixed":
            v = values.view(x.shape[0], self.groups, -1, self.size)
        if self.wrong == "curved":
            v = v.tanh()
        many = self.heads // self.groups
        if self.kind != "grouped":
            k, v = k.repeat_interleave(many, 1), self.repeated(v, many)
        if self.kind in ("sdpa", "causal", "grouped"):
            mask = None
            if self.wrong == "mask":
                mask = torch.ones(x.shape[1], other.shape[1], dtype=torch.bool)
            h = functional.scaled_dot_product_attention(
                q, k, v, mask, dropout_p=0.5 if self.wrong == "dropout" else 0.0,
                is_causal=self.kind == "causal" and mask is None, enable_gqa=self.kind == "grouped",
            )  # fmt: skip
        else:
            rows = q @ k.mT
            if self.wrong == "columns":
                rows = rows.softmax(-2)
            elif self.wrong == "scaled":
                rows = rows.softmax(-1) * 0.5
            else:
                rows = rows.softmax(-1)
            rows = functional.dropout(rows, 0.5, training=self.wrong == "dropout")
            h = rows @ v
        y = self.o(h.transpose(1, 2).flatten(2))
        if self.wrong == "read":
            y = y + values.sum(1, keepdim=True).tanh().mean()
        if self.wrong == "read after":
            y = y + h.mean(1).sum().tanh()
        return y

    def repeated(self, v, many):
        """Key-value groups as the models at hand repeat them."""
        b, groups, length, size = v.shape
        return v[:, :, None].expand(b, groups, many, length, size).reshape(b, -1, length, size)


def biases(module):
    """The biases of all linear maps in a graph, None where there is none."""
    return [arguments(node).get("bias") for node in module.graph.nodes if op_name(node) == "linear"]


@pytest.mark.parametrize("kind", ["sdpa", "causal", "grouped", "softmax"])
@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (4, 2), (4, 1)])
def test_a_value_bias_goes_into_the_output(kind, heads, groups):
    """b_o + W_o (b_v, each group's part for each of its heads), by hand."""
    model = settled(Attention(kind, heads, groups), 1)
    x = drawn(0, 3, 5, WIDTH)
    found = collapsed(model, x)
    (one,) = found.joined
    assert one.parts == ["v (bias)", "o"]
    assert (one.work_before, one.work) == (15 * (model.v.out_features + 8), 15 * 8)
    assert one.gap <= one.bound < 1e-8
    with torch.no_grad():
        parts = model.v.bias.view(groups, 1, -1).expand(-1, heads // groups, -1).reshape(-1)
        expected = model.o.bias + model.o.weight @ parts
    torch.testing.assert_close(dict(found.module.named_parameters())["moved_0_bias"].data, expected,
                               rtol=1e-13, atol=1e-13)  # fmt: skip
    assert sum(one is None for one in biases(found.module)) == 1
    assert found.parameters == found.parameters_before - model.v.out_features
    agree(model, found.module, x)
    agree(model, found.module, drawn(1, 6, 5, WIDTH))


@pytest.mark.parametrize(
    ("kind", "wrong", "reason"),
    [
        ("sdpa", "mask", "mask tensor, which may mask a whole row"),
        ("sdpa", "dropout", "drops weights at random"),
        ("softmax", "dropout", "drops weights at random"),
        ("sdpa", "read", "something else reads the values"),
        ("softmax", "read", "something else reads the values"),
        ("sdpa", "read after", "something else reads the attention"),
        ("sdpa", "mixed", "not each position"),
        ("softmax", "columns", ""),
        ("softmax", "scaled", ""),
        ("sdpa", "curved", ""),
    ],
)
def test_a_value_bias_stays_where_rows_may_not_sum_to_one_or_others_read(kind, wrong, reason):
    model = settled(Attention(kind, wrong=wrong))
    found = collapsed(model, drawn(0, 3, 5, WIDTH))
    assert not found.joined
    assert len(found.left) == bool(reason)
    assert all(one.startswith("v (bias) and o: ") and reason in one for one in found.left)


def test_an_output_without_a_bias_gets_one_only_where_that_saves():
    """Additions: 5 queries of 8 against as many values, or 7, or values of one group of 2."""
    x, longer = drawn(0, 3, 5, WIDTH), drawn(1, 3, 7, WIDTH)
    model = settled(Attention(has_bias=False))
    found = collapsed(model, x)
    assert not found.joined
    assert found.left == [
        "v (bias) and o: the output has no bias, and one more there would save no work"
    ]
    assert not collapsed(settled(Attention(has_bias=False, groups=1)), [x, longer]).joined
    across = collapsed(model, [x, longer])
    assert [(one.work_before, one.work) for one in across.joined] == [(21 * 8, 15 * 8)]
    with torch.no_grad():
        torch.testing.assert_close(
            across.module(x, longer), model(x, longer), rtol=1e-9, atol=1e-9
        )  # fmt: skip


def test_values_without_a_bias_are_not_spoken_of():
    found = collapsed(settled(Attention(is_own=False)), drawn(0, 3, 5, WIDTH))
    assert (found.joined, found.left) == ([], [])


def test_a_mixing_that_one_length_hides_is_seen():
    """Values viewed as (width, length): at multiples of the width each row is the bias."""

    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(9, WIDTH)
            self.v, self.o = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, input_ids):
            x = self.embed(input_ids)
            v = self.v(x).view(x.shape[0], WIDTH, x.shape[1])
            return self.o(((x.mT @ x).softmax(-1) @ v).reshape(x.shape))

    ids = torch.arange(48).view(3, 16) % 9
    model = settled(Hidden())
    found = collapsed(model, {"input_ids": ids})
    assert not found.joined
    assert "not each position" in found.left[0]


def test_a_norms_bias_that_came_into_the_values_moves_on():
    """LayerNorm's shift becomes a bias of the values, which then leaves them."""

    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.inner = nn.LayerNorm(WIDTH), Attention(is_own=False)

        def forward(self, x):
            return self.inner(self.norm(x))

    model, x = settled(Normed()), drawn(0, 3, 5, WIDTH)
    found = collapsed(model, x)
    assert [one.parts for one in found.joined][-1] == ["inner.v (bias)", "inner.o"]
    agree(model, found.module, x)


def test_a_bias_that_another_module_holds_stays_unless_untied():
    model = settled(Attention())
    model.k.bias = model.v.bias
    x = drawn(0, 3, 5, WIDTH)
    found = collapsed(model, x)
    assert not found.joined
    assert "another module holds one of the biases" in found.left[0]
    untied = collapsed(model, x, is_untying=True)
    assert len(untied.joined) == 1
    agree(model, untied.module, x)


def test_rows_that_are_masked_whole_stay_undefined():
    """A softmax over nothing but minus infinity is undefined before and after."""

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.v, self.o = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
            self.register_buffer("mask", torch.zeros(5, 5))
            self.mask[1] = -torch.inf

        def forward(self, x):
            return self.o((x @ x.mT + self.mask).softmax(-1) @ self.v(x))

    model, x = Masked().eval(), torch.randn(3, 5, WIDTH)
    found = collapsed(model, x)
    assert len(found.joined) == 1
    with torch.no_grad():
        got, expected = found.module(x), model(x)
    assert bool(got[:, 1].isnan().all())
    torch.testing.assert_close(got, expected, equal_nan=True, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_stays_within_its_bound(dtype):
    model = settled(Attention("softmax", 4, 2)).to(dtype)
    (one,) = collapsed(model, drawn(0, 3, 50, WIDTH).to(dtype)).joined
    assert 0 < one.gap <= one.bound


def test_packed_projections_are_read_elsewhere():
    """One bias for queries, keys and values: without the last part nothing is saved."""
    model = settled(nn.TransformerEncoderLayer(WIDTH, 2, 12, batch_first=True))
    x = drawn(0, 3, 5, WIDTH)
    found = collapsed(model, x)
    assert not found.joined
    assert any("something else reads the values" in one for one in found.left)


def test_bert_with_padding_keeps_its_value_biases_and_says_why():
    found = collapsed(settled(bert()), texts(4))
    told = [one for one in found.left if "mask tensor" in one]
    assert len(told) == 2, "one a layer"
    assert not any("(bias)" in part for one in found.joined for part in one.parts)


class Block(nn.Module):
    """Random attention with affine parts and curved ones around it."""

    def __init__(self, draw):
        super().__init__()
        heads = draw.choice([1, 2, 4])
        groups = draw.choice([one for one in (1, 2, 4) if heads % one == 0])
        self.inner = Attention(
            draw.choice(["sdpa", "causal", "grouped", "softmax"]), heads, groups,
            wrong=draw.choice([""] * 4 + ["mask", "read", "read after", "mixed", "curved"]),
            has_bias=draw.random() < 0.8, is_own=draw.random() < 0.8,
        )  # fmt: skip
        self.first = draw.choice([nn.Identity, lambda: nn.LayerNorm(WIDTH),
                                  lambda: nn.Linear(WIDTH, WIDTH)])()  # fmt: skip
        self.last = draw.choice([nn.ReLU, nn.Identity, lambda: nn.Linear(WIDTH, 3)])()
        self.has_residual = draw.random() < 0.5

    def forward(self, x):
        y = self.inner(self.first(x))
        return self.last(x + y if self.has_residual else y)


class Blocks(nn.Module):
    def __init__(self, draw, count):
        super().__init__()
        self.blocks = nn.ModuleList(Block(draw) for _ in range(count))

    def forward(self, x):
        return torch.cat([block(x).flatten(1) for block in self.blocks], 1)


@pytest.mark.parametrize("seed", range(2))
def test_random_attentions_keep_their_function(seed):
    """Forty blocks; as many attentions, softmaxes and curved parts as before."""
    model = settled(Blocks(random.Random(seed), 20), seed)
    x = drawn(seed, 3, 5, WIDTH)
    found = collapsed(model, x)
    agree(model, found.module, x)
    agree(model, found.module, drawn(seed + 100, 7, 5, WIDTH))
    names = Counter(op_name(node) for node in found.module.graph.nodes)
    kinds = Counter(one.inner.kind for one in model.blocks)
    assert names["softmax"] == kinds["softmax"]
    assert names["scaled_dot_product_attention"] == 20 - kinds["softmax"]
    expected = written(model)
    expected["tanh"] += sum(one.inner.wrong in ("read", "read after", "curved")
                            for one in model.blocks)  # fmt: skip
    assert curved(found.module) == +expected
    moved = {part for one in found.joined for part in one.parts if "(bias)" in part}
    allowed = {f"blocks.{number}.inner.v (bias)" for number, one in enumerate(model.blocks)
               if not one.inner.wrong or one.inner.is_harmless()}  # fmt: skip
    assert len(moved) > 3
    assert moved <= allowed
    assert all(one.work < one.work_before for one in found.joined)
    assert all(one.gap is None or one.gap <= one.bound for one in found.joined)
