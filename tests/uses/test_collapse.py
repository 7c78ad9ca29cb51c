"""Collapse: hundreds of random graphs, each affine part by hand, chains, bounds and refusals.

Holds: tests of ``secant.uses.collapse`` and of what it is made of.
May import: pytest, torch, hypothesis, transformers where installed, ``secant``.
"""

import copy
import math
from collections import Counter
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernel import bert, texts
from torch import nn

from secant.errors import InputError
from secant.load.demo import digits
from secant.load.models import load_model
from secant.maps.affinity import op_name
from secant.uses.chains import cheapest
from secant.uses.collapse import collapse, collapsed
from secant.uses.products import chained, rounded


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def settled(model, seed=0):
    """In float64 and eval mode, with every parameter and statistic drawn."""
    torch.manual_seed(seed)
    model = model.double().eval()
    for name, one in [*model.named_parameters(), *model.named_buffers()]:
        if one.is_floating_point():
            one.data.copy_(torch.rand_like(one) + 0.5 if "var" in name else torch.randn_like(one))
    return model


class Affine(nn.Module):
    """x·scale + shift, written with operations."""

    def __init__(self, width, kind):
        super().__init__()
        self.kind = kind
        self.scale, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))

    def forward(self, x):
        if self.kind == 0:
            return x * self.scale + self.shift
        if self.kind == 1:
            return self.shift - x / (self.scale.abs() + 1)
        if self.kind == 2:
            return (2 * x - 3) - self.shift * 0.5
        return -(x.view(-1, x.shape[-1]).view(x.shape) @ torch.diag(self.scale))


class Program(nn.Module):
    """A random sequence of operations on rows, affine and not, with residuals and reuse."""

    def __init__(self, draw, width):
        super().__init__()
        self.steps, self.parts = [], nn.ModuleList()
        kept = [width]
        for _ in range(draw.randint(4, 12)):
            kind = draw.choice(
                ["linear"] * 5 + ["affine"] * 3 + ["residual"] * 2 + ["curved", "norm", "idle"]
                + ["reuse", "sum"]
            )  # fmt: skip
            now = kept[-1]
            if kind == "linear":
                out = draw.choice([2, 5, 8, 16])
                part = nn.Linear(now, out, bias=draw.random() < 0.7)
            elif kind == "affine":
                out, part = now, Affine(now, draw.randrange(4))
            elif kind == "residual":
                out = now
                part = nn.Sequential(nn.Linear(now, draw.choice([2, now, 16])), nn.Identity())
                part.append(nn.Linear(part[0].out_features, now))
            elif kind == "curved":
                out, part = now, draw.choice([nn.ReLU, nn.Tanh, nn.GELU, nn.PReLU])()
            elif kind == "norm":
                out, part = now, draw.choice([nn.LayerNorm, nn.RMSNorm])(now)
            elif kind == "idle":
                out, part = now, draw.choice([nn.Dropout, nn.Identity, lambda: nn.LeakyReLU(1.0)])()
            else:
                out, part = now, nn.Identity()
            back = draw.randrange(len(kept))
            if kind in ("reuse", "sum") and kept[back] != now:
                kind = "idle"
            self.steps.append((kind, back))
            self.parts.append(part)
            kept.append(out)

    def forward(self, x):
        kept = [x]
        for (kind, back), part in zip(self.steps, self.parts, strict=True):
            x = kept[-1]
            if kind == "residual":
                x = x + part(x)
            elif kind == "reuse":
                x = x - kept[back]
            elif kind == "sum":
                x = x.tanh() + kept[back]
            else:
                x = part(x)
            kept.append(x)
        return x


class Picture(nn.Module):
    """A random sequence of operations on channels."""

    def __init__(self, draw):
        super().__init__()
        self.parts = nn.Sequential()
        channels = 4
        for _ in range(draw.randint(3, 7)):
            kind = draw.choice(["conv", "depth", "point", "norm", "norm", "curved", "pool"])
            if kind == "conv":
                out, pad = draw.choice([2, 4, 6]), draw.choice([0, 1])
                kernel, stride = draw.choice([1, 2, 3]), draw.choice([1, 1, 2])
                self.parts.append(nn.Conv2d(channels, out, kernel, stride, min(pad, kernel // 2)))
                channels = out
            elif kind == "point":
                out = draw.choice([2, 4, 8])
                self.parts.append(nn.Conv2d(channels, out, 1, bias=draw.random() < 0.5))
                channels = out
            elif kind == "depth":
                self.parts.append(
                    nn.Conv2d(channels, 2 * channels, 3, padding=1, groups=channels, bias=False)
                )
                channels *= 2
            elif kind == "norm":
                self.parts.append(nn.BatchNorm2d(channels))
            elif kind == "curved":
                self.parts.append(nn.ReLU6())
            else:
                self.parts.append(nn.AvgPool2d(3, 1, 1))

    def forward(self, x):
        return self.parts(x).flatten(1)


class Many(nn.Module):
    """Programs side by side on one input: one export serves them all."""

    def __init__(self, programs):
        super().__init__()
        self.programs = nn.ModuleList(programs)

    def forward(self, x):
        return torch.cat([program(x).flatten(1) for program in self.programs], 1)


CURVED = {
    nn.ReLU: "relu", nn.Tanh: "tanh", nn.GELU: "gelu", nn.PReLU: "prelu", nn.ReLU6: "hardtanh",
    nn.LayerNorm: "layer_norm", nn.RMSNorm: "rms_norm",
}  # fmt: skip


def written(model):
    """How often each operation that is not affine is written down."""
    found = Counter(CURVED[type(one)] for one in model.modules() if type(one) in CURVED)
    sums = (kind for one in model.modules() if isinstance(one, Program) for kind, _ in one.steps)
    found["tanh"] += sum(kind == "sum" for kind in sums)
    return +found


def curved(graph):
    """How often each stands in a collapsed graph."""
    names = [op_name(node) for node in graph.graph.nodes if node.op == "call_function"]
    return Counter(name for name in names if name in CURVED.values())


def agree(one, other, x):
    with torch.no_grad():
        a, b = one(x), other(x)
    scale = a.abs().clamp_min(1)
    assert ((a - b).abs() / scale).max() < 1e-9


@pytest.mark.parametrize("seed", range(8))
def test_random_graphs_keep_their_function_and_what_is_not_affine(seed):
    """Two hundred programs in eight models."""
    import random

    draw = random.Random(seed)
    model = settled(Many([Program(draw, 8) for _ in range(25)]), seed)
    x = drawn(seed, 4, 3, 8)
    found = collapsed(model, x)
    agree(model, found.module, x)
    agree(model, found.module, drawn(seed + 100, 7, 3, 8))
    assert curved(found.module) == written(model)
    assert len(found.joined) > 25
    assert all(one.work < one.work_before for one in found.joined)
    assert all(one.gap is None or one.gap <= one.bound for one in found.joined)


@pytest.mark.parametrize("seed", range(3))
def test_random_pictures_keep_their_function(seed):
    import random

    draw = random.Random(seed)
    model = settled(Many([Picture(draw) for _ in range(12)]), seed)
    x = drawn(seed, 3, 4, 11, 11)
    found = collapsed(model, x)
    agree(model, found.module, x)
    agree(model, found.module, drawn(seed + 100, 5, 4, 11, 11))
    assert curved(found.module) == written(model)
    assert found.joined


def test_a_padded_convolution_does_not_take_a_shift_before_it():
    """Outside the picture the padding is 0, not the shift: to join them would be wrong there."""
    model = settled(nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3, padding=1), nn.ReLU()))
    x = drawn(0, 2, 2, 5, 5)
    assert not collapsed(model, x).joined
    bare = settled(nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3), nn.ReLU()))
    found = collapsed(bare, x)
    assert [one.parts for one in found.joined] == [["0", "1"]]
    agree(bare, found.module, x)


@pytest.mark.parametrize(
    ("stride", "padding", "kernels"), [(1, 1, (3, 1)), (2, 0, (1, 3)), (2, 1, (2, 2))]
)
def test_two_convolutions_are_one(stride, padding, kernels):
    """Against a direct evaluation of both; the second does not pad."""
    first = nn.Conv2d(6, 9, kernels[0], stride, padding)
    second = nn.Conv2d(9, 1, kernels[1])
    model = settled(nn.Sequential(first, second, nn.ReLU()))
    x = drawn(1, 2, 6, 12, 12)
    found = collapsed(model, x)
    assert [one.parts for one in found.joined] == [["0", "1"]]
    agree(model, found.module, x)


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.first, self.second, self.out = (
            nn.Linear(8, inner), nn.Linear(inner, 8), nn.Linear(8, 8)
        )  # fmt: skip

    def forward(self, x):
        return self.out((x + self.second(self.first(x))).relu())


def test_a_linear_residual_is_one_matrix_unless_it_is_narrow():
    x = drawn(0, 4, 8)
    wide, narrow = settled(Residual(8)), settled(Residual(2))
    found = collapsed(wide, x)
    assert [one.work for one in found.joined] == [4 * 64]
    agree(wide, found.module, x)
    assert not collapsed(narrow, x).joined, "2 x 8 x 2 products are fewer than 8 x 8"


class Readers(nn.Module):
    """A norm read by linear maps, and perhaps by something else."""

    def __init__(self, norm, has_other):
        super().__init__()
        self.norm, self.a, self.b = norm, nn.Linear(8, 4), nn.Linear(8, 4)
        self.has_other = has_other

    def forward(self, x):
        h = self.norm(x)
        y = self.a(h).relu() + self.b(h)
        return torch.cat([y, h.tanh()], -1) if self.has_other else y


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_a_norm_gives_its_weight_to_its_readers_only_if_all_are_linear(norm):
    x = drawn(0, 4, 8)
    model = settled(Readers(norm(8), False))
    found = collapsed(model, x)
    assert [one.parts for one in found.joined] == [["norm", "a"], ["norm", "b"]]
    agree(model, found.module, x)
    assert sum(one.numel() for one in found.module.parameters()) == 2 * (8 * 4 + 4)
    assert not collapsed(settled(Readers(norm(8), True)), x).joined


def test_what_is_shared_is_joined_only_if_all_together_saves():
    """Three maps read one narrow one: each alone would save, all together would not."""

    class Shared(nn.Module):
        def __init__(self, middle):
            super().__init__()
            self.first = nn.Linear(10, middle)
            self.rest = nn.ModuleList(nn.Linear(middle, 5) for _ in range(3))

        def forward(self, x):
            h = self.first(x)
            return torch.stack([one(h).relu() for one in self.rest])

    x = drawn(0, 4, 10)
    assert not collapsed(settled(Shared(5)), x).joined  # 50 + 3 x 25 is less than 3 x 50
    assert len(collapsed(settled(Shared(16)), x).joined) == 3


def test_a_bottleneck_stays():
    model = settled(nn.Sequential(nn.Linear(64, 4), nn.Linear(4, 64), nn.ReLU()))
    found = collapsed(model, drawn(0, 2, 64))
    assert not found.joined
    assert "no work" in found.left[0]
    assert [type(one) for one in found.module] == [nn.Linear, nn.Linear, nn.ReLU]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=9))
def test_cuts_are_the_cheapest(widths):
    """Against every choice of cuts."""

    def cost(cuts):
        return sum(widths[a] * widths[b] + widths[b] for a, b in pairwise(cuts))

    last = len(widths) - 1
    every = [
        [0, *(place for place in range(1, last) if bits >> place & 1), last]
        for bits in range(0, 1 << last, 2)
    ]
    assert cost(cheapest(widths)) == min(map(cost, every))


@pytest.mark.parametrize("kind", ["orthogonal", "shrinking", "expanding"])
@pytest.mark.parametrize("count", [2, 7, 60])
def test_a_product_lies_within_its_bound_of_the_exact_one(kind, count):
    """Against rational arithmetic."""
    n = 5
    factor = {"orthogonal": None, "shrinking": 1 / n, "expanding": 3.0}[kind]
    weights = [
        torch.linalg.qr(drawn(i, n, n)).Q if factor is None else drawn(i, n, n) * factor
        for i in range(count)
    ]
    shifts = [drawn(1000 + i, n) if i % 3 else None for i in range(count)]
    found = chained(weights, shifts)
    exact = [[Fraction(int(i == j)) for j in range(n)] for i in range(n)]
    moved = [Fraction(0)] * n
    for weight, shift in zip(weights, shifts, strict=True):
        w = [[Fraction(v) for v in row] for row in weight.tolist()]
        b = [Fraction(v) for v in shift.tolist()] if shift is not None else [Fraction(0)] * n
        exact = [[sum(w[i][k] * exact[k][j] for k in range(n)) for j in range(n)] for i in range(n)]
        moved = [sum(w[i][k] * moved[k] for k in range(n)) + b[i] for i in range(n)]

    def error(mantissa, exponent, true):
        """The Euclidean norm of the difference, in units of the mantissa."""
        scale = Fraction(2) ** -int(exponent)
        return math.sqrt(sum(float(Fraction(m) - t * scale) ** 2
                             for m, t in zip(mantissa, true, strict=True)))  # fmt: skip

    flat = [value for row in exact for value in row]
    gap = error(found.weight[0].flatten().tolist(), found.exponent[0], flat)
    assert gap <= math.sqrt(n) * float(found.error[0])  # Frobenius against spectral
    assert error(found.shift[0].tolist(), found.shift_exponent[0], moved) <= found.shift_error[0]
    assert found.error[0] < 1e-6
    assert found.norm[0] >= torch.linalg.matrix_norm(found.weight[0], 2) * (1 - 1e-12)


def test_a_chain_that_leaves_the_range_is_left_and_told():
    shrinking = nn.Sequential(*(nn.Linear(16, 16, bias=False) for _ in range(300)))
    with torch.no_grad():
        for number, one in enumerate(shrinking):
            one.weight.copy_(drawn(number, 16, 16) / 16)
    found = collapsed(shrinking.eval(), torch.ones(2, 16))
    assert not found.joined
    assert "below the range of float32" in found.left[0]
    assert len(found.module) == 300
    double = collapsed(copy.deepcopy(shrinking).double(), torch.ones(2, 16, dtype=torch.float64))
    assert len(double.module) == 1, "2^-800 lies in the range of float64"
    with torch.no_grad():
        for number, one in enumerate(shrinking):
            one.weight.copy_(drawn(number, 16, 16) * 4)
    assert "past the range of float32" in collapsed(shrinking, torch.ones(2, 16)).left[0]


def test_a_product_that_rounding_has_eaten_is_left_and_told():
    """A projection on one axis after one on the other: the exact product is 0, and unknown."""
    a, b = torch.tensor([[1.0, 1e-17], [0.0, 0.0]]), torch.tensor([[1e-17, 0.0], [-1.0, 0.0]])
    found = rounded(chained([b.double(), a.double()], [None, None]), torch.float64)
    assert found.weight is None
    assert "too little is sure" in found.reason


def test_ten_thousand_layers_are_one():
    torch.manual_seed(0)
    layers = nn.Sequential(*(nn.Linear(8, 8) for _ in range(10_000)))
    with torch.no_grad():
        for one in layers:
            one.weight.copy_(torch.linalg.qr(one.weight).Q)
    x = torch.randn(3, 8)
    found = collapsed(layers.eval(), x)
    assert [type(one) for one in found.module] == [nn.Linear]
    with torch.no_grad():
        expected = copy.deepcopy(layers).double()(x.double())
        torch.testing.assert_close(found.module(x).double(), expected, rtol=1e-5, atol=1e-4)


def test_shared_and_tied_weights():
    """A module used twice joins with itself; a weight that an embedding holds stays with it."""
    one = nn.Linear(6, 6)
    twice = settled(nn.Sequential(one, one))
    x = drawn(0, 2, 6)
    agree(twice, collapse(twice, x), x)

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.mix = nn.Embedding(9, 6), nn.Linear(6, 6)
            self.head = nn.Linear(6, 9, bias=False)
            self.head.weight = self.words.weight

        def forward(self, ids):
            return self.head(self.mix(self.words(ids).tanh()))

    model, ids = settled(Tied()), torch.arange(8).view(2, 4)
    found = collapsed(model, ids)
    assert not any("head" in part for one in found.joined for part in one.parts)
    untied = collapsed(model, ids, is_untying=True)
    assert [one.parts for one in untied.joined] == [["mix", "head"]]
    torch.testing.assert_close(untied.module(ids), model(ids), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["linear", "mlp", "cnn", "transformer"])
def test_demo_models_collapse_to_the_same_function(name):
    model = load_model(f"demo:{name}").model.double()
    images = digits()[0][:16].double()
    found = collapsed(model, images)
    torch.testing.assert_close(found.module(images), model(images), rtol=1e-9, atol=1e-9)
    if name == "linear":
        assert found.parameters == 650, "a 64 x 10 matrix and its bias"


def test_bert_collapses_with_padding_and_any_length():
    model, batch = bert().eval(), texts(4)
    found = collapsed(model.double(), batch)
    for many in (batch, texts(6, size=11)):
        with torch.no_grad():
            expected = model(**many)
            got = found.module(**many)
        torch.testing.assert_close(got[0], expected[0], rtol=1e-9, atol=1e-9)


def test_a_llama_gives_its_norms_weights_to_their_readers():
    """Its norms are written by hand, and all that reads one inside a layer is linear."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    model = settled(transformers.LlamaForCausalLM(config))
    ids = torch.arange(21).view(3, 7)
    found = collapsed(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    parts = Counter(one.parts[0].rpartition(".")[2] for one in found.joined)
    assert parts == {"input_layernorm": 6, "post_attention_layernorm": 4}
    longer = torch.arange(36).view(4, 9)
    batch = {"input_ids": longer, "attention_mask": torch.ones_like(longer)}
    with torch.no_grad():
        expected, got = model(**batch, use_cache=False).logits, found.module(**batch).logits
    # Its norms round to float32 within.
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_the_model_is_left_as_it_was():
    model = settled(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU()))
    before = copy.deepcopy(model.state_dict())
    collapse(model, drawn(0, 2, 4))
    assert all(torch.equal(before[key], one) for key, one in model.state_dict().items())


class Chooses(nn.Module):
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(2, 2)

    def forward(self, x):
        return self.line(x) if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.BatchNorm1d(2)).train(), "eval mode"),
        (Chooses().eval(), "cannot be exported"),
    ],
)
def test_what_cannot_be_collapsed_is_told(model, message):
    with pytest.raises(InputError, match=message):
        collapse(model, torch.ones(3, 2))
