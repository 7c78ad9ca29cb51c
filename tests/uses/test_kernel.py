"""The kernel against dense float64 Jacobians, closed forms and its infinite-width limit.

Holds: tests of ``secant.uses.kernel`` and its parts.
May import: pytest, torch, ``secant``; transformers where installed.
"""

import math
import re
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from secant.errors import InputError
from secant.maps.weights import first_output, run
from secant.uses.kernel import kernel


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def jacobian(model, batch):
    """J (n, c, p) of the parameters that train, one output after another."""
    leaves = [one for one in model.parameters() if one.requires_grad]
    values = first_output(run(model, batch)).flatten(1)
    found = [
        torch.cat([
            one.flatten() for one in torch.autograd.grad(
                value, leaves, retain_graph=True, allow_unused=True, materialize_grads=True
            )
        ])
        for value in values.flatten()
    ]  # fmt: skip
    return torch.stack(found).view(*values.shape, -1)


def dense(model, x1, x2=None):
    one = jacobian(model, x1)
    return torch.einsum("ncp,mdp->nmcd", one, one if x2 is None else jacobian(model, x2))


def mlp():
    return nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 9), nn.Tanh(), nn.Linear(9, 3))


def cnn():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, 3, stride=2, groups=2, padding=1, padding_mode="circular"),
        nn.GroupNorm(2, 6), nn.ReLU(), nn.Conv2d(6, 6, (3, 2), padding="same", dilation=2),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 3),
    )  # fmt: skip


def sequence_cnn():
    return nn.Sequential(
        nn.Conv1d(2, 5, 3, padding=1, bias=False), nn.GELU(), nn.Conv1d(5, 4, 2, stride=2),
        nn.InstanceNorm1d(4, affine=True), nn.Flatten(), nn.Linear(12, 2, bias=False),
    )  # fmt: skip


def encoder():
    """torch's own layer, whose attention keeps its weights in no module of a known kind."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


class Shared(nn.Module):
    """One layer called three times, once on what it will write over, and a norm called twice."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        x = self.norm(self.layer(x)) * self.scale
        y = self.layer(x.mul(1))
        y += x
        return self.norm(self.layer(y)).sum(1)


class Unusual(nn.Module):
    """A layer whose weight also acts outside it, a transpose of another, a bias alone."""

    def __init__(self):
        super().__init__()
        self.inside, self.outside = nn.Linear(4, 4), nn.Linear(4, 4)
        self.table = nn.Embedding(4, 4)

    def forward(self, x):
        x = self.inside(x).tanh() @ self.inside.weight
        return functional.linear(self.outside(x), self.outside.weight.T) + self.table.weight[0]


def texts(rows, length=5, size=20, seed=0):
    """Token ids with padding on the right, the first row whole."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, size, (rows, length), generator=draw)
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        mask[row, length - row % (length - 1) :] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def bert():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=12, max_position_embeddings=10, num_labels=3,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def llama():
    """Grouped heads, RMSNorm, a table that is also the last layer."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=12, tie_word_embeddings=True,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def gpt2():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=8, bos_token_id=1, eos_token_id=2
    )
    return transformers.GPT2LMHeadModel(config)


CASES = {
    "mlp": (mlp, lambda n, seed: drawn(n, 6, seed=seed), ""),
    "cnn": (cnn, lambda n, seed: drawn(n, 2, 6, 6, seed=seed), ""),
    "sequence": (sequence_cnn, lambda n, seed: drawn(n, 2, 6, seed=seed), ""),
    "shared": (Shared, lambda n, seed: drawn(n, 3, 4, seed=seed), "1 of 5 .*scale.*rows at once"),
    "unusual": (Unusual, lambda n, seed: drawn(n, 4, seed=seed), "5 of 5 .*inside.weight"),
    "encoder": (encoder, lambda n, seed: drawn(n, 3, 8, seed=seed), "in_proj.*rows at once"),
    "bert": (bert, lambda n, seed: texts(n, seed=seed), ""),
    "llama": (llama, lambda n, seed: texts(n, seed=seed), ""),
    "gpt2": (gpt2, lambda n, seed: texts(n, seed=seed), ""),
}


def case(name):
    make, data, told = CASES[name]
    torch.manual_seed(0)
    model = make().double().eval()
    with torch.no_grad():
        for one in model.parameters():  # away from ones and zeros, where terms could vanish
            one.add_(torch.randn_like(one), alpha=0.1)
    return model, data(4, 1), data(3, 2), told


@pytest.mark.parametrize("name", CASES)
def test_equals_the_dense_jacobian(name):
    model, x1, x2, told = case(name)
    for other in (None, x2):
        expected = dense(model, x1, other)
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            full = kernel(model, x1, other, "full")
            trace = kernel(model, x1, other)
        scale = expected.abs().max().item()
        torch.testing.assert_close(full, expected, atol=1e-10 * scale, rtol=0)
        summed = expected.diagonal(dim1=2, dim2=3).sum(-1)
        torch.testing.assert_close(trace, summed, atol=1e-10 * scale, rtol=0)
        said = " ".join(str(one.message) for one in heard if "kernel" in str(one.message))
        assert bool(said) == bool(told)
        if told:
            assert re.search(told, said)


@pytest.mark.parametrize("outputs", ["trace", "full"])
@pytest.mark.parametrize(("name", "memory"), [("mlp", 1), ("cnn", 20_000), ("bert", 60_000)])
def test_chunks_change_nothing(name, memory, outputs):
    model, x1, x2, _ = case(name)
    for other in (None, x2):
        told = {}
        whole, cut = (
            kernel(
                model, x1, other, outputs, memory_bytes=each,
                progress=lambda _, done, total, each=each, told=told: told.update({each: total}),
            )
            for each in (1 << 30, memory)
        )  # fmt: skip
        assert told[memory] > told[1 << 30], "the second was taken in chunks"
        torch.testing.assert_close(cut, whole, rtol=1e-12, atol=1e-12 * float(whole.abs().max()))


def test_a_linear_model_has_the_products_of_its_inputs():
    x = drawn(5, 3)
    found = kernel(nn.Linear(3, 2).double(), x, outputs="full")
    expected = (x @ x.T + 1)[:, :, None, None] * torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        kernel(nn.Linear(3, 2).double(), x, parameters=["weight"]), 2 * x @ x.T
    )
    ones = kernel(nn.Linear(3, 2).double(), x, parameters=["bias"])
    torch.testing.assert_close(ones, torch.full_like(ones, 2))


def test_outputs_of_ones_own():
    model, x, _, _ = case("mlp")
    expected = dense(model, x)
    torch.testing.assert_close(kernel(model, x, outputs="logit 2"), expected[:, :, 2, 2])
    torch.testing.assert_close(kernel(model, x, outputs=lambda y: y[:, 0]), expected[:, :, 0, 0])
    two = kernel(model, x, outputs=lambda y: y[:, 1:])
    torch.testing.assert_close(two, expected[:, :, 1, 1] + expected[:, :, 2, 2])


def test_parameters_add():
    model, x, _, _ = case("bert")
    names = [name for name, _ in model.named_parameters()]
    parts = [kernel(model, x, parameters=names[first::3]) for first in range(3)]
    torch.testing.assert_close(sum(parts), kernel(model, x))


def test_float32_and_half_are_near_float64():
    model, x, _, _ = case("bert")
    exact = kernel(model, x)
    single = kernel(model.float(), x)
    assert single.dtype == torch.float32
    assert float((single - exact).norm() / exact.norm()) < 1e-5
    half = kernel(model.bfloat16(), x)
    assert half.dtype == torch.float32
    assert float((half - exact).norm() / exact.norm()) < 0.05


class Wide(nn.Module):
    """sqrt(2/n) a·relu(W x / sqrt(d)), standard normal weights: the NTK parametrisation."""

    def __init__(self, inputs, width):
        super().__init__()
        self.first = nn.Linear(inputs, width, bias=False)
        self.last = nn.Linear(width, 1, bias=False)
        for layer in (self.first, self.last):
            nn.init.normal_(layer.weight)

    def forward(self, x):
        hidden = (self.first(x) / x.shape[1] ** 0.5).relu()
        return self.last(hidden) * (2 / hidden.shape[1]) ** 0.5


def test_a_wide_net_has_the_kernel_of_its_limit():
    """|x||x'|/d (k1 + u k0) with the arc-cosine kernels of Cho and Saul 2009, u the cosine."""
    x = drawn(6, 5)
    length = x.norm(dim=1)
    u = (x @ x.T / length[:, None] / length).clamp(-1, 1)
    angle = u.arccos()
    k0, k1 = 1 - angle / math.pi, (angle.sin() + (math.pi - angle) * u) / math.pi
    limit = length[:, None] * length / 5 * (k1 + u * k0)
    errors = []
    for width in (64, 1024, 16384):
        found = []
        for seed in range(8):
            torch.manual_seed(seed)
            found.append((kernel(Wide(5, width).double(), x) - limit).norm() / limit.norm())
        errors.append(float(torch.stack(found).square().mean().sqrt()))
    slope = math.log(errors[2] / errors[0]) / math.log(16384 / 64)
    assert slope == pytest.approx(-0.5, abs=0.1)  # fluctuations of a mean over the width
    assert errors[2] < 0.05


def test_progress_is_told():
    model, x, _, _ = case("mlp")
    seen = []
    kernel(model, x, memory_bytes=1, progress=lambda *one: seen.append(one))
    assert [done for _, done, _ in seen] == list(range(1, len(seen) + 1))
    assert {total for _, _, total in seen} == {len(seen)}


def test_the_model_is_left_as_it_was():
    model, x, _, _ = case("cnn")
    before = {key: one.clone() for key, one in model.state_dict().items()}
    kernel(model, x)
    assert all(torch.equal(before[key], one) for key, one in model.state_dict().items())
    assert all(one.grad is None and one.requires_grad for one in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert model[2].inplace


class Branches(nn.Module):
    """Decides by a value, which cannot be done for rows at once."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return (x * self.weight).sum(1) * (2 if x.sum().item() > 0 else 1)


def test_what_cannot_be_done_for_rows_at_once_is_done_row_by_row_and_said():
    x = drawn(5, 3).abs()
    with pytest.warns(UserWarning, match=r"weight\) .* taken row by row \(.*item"):
        found = kernel(Branches().double(), x)
    torch.testing.assert_close(found, 4 * x @ x.T)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"x1": torch.zeros(0, 6)}, "first dimension"),
        ({"outputs": "logits"}, r"got 'logits'.*Write 'logit 3'"),
        ({"outputs": "logit 3"}, r"'logit 3' of 3 outputs.*Choose 0 to 2"),
        ({"outputs": lambda y: y.sum()}, r"one row for each of 2 inputs; got \(\)"),
        ({"outputs": lambda y: y.sum(0)}, r"got \(3,\)"),
        ({"parameters": ["nonesuch"]}, "no parameter matches 'nonesuch'"),
    ],
)
def test_bad_input(given, told):
    with pytest.raises(InputError, match=told):
        kernel(mlp(), **({"x1": torch.zeros(4, 6)} | given))


@pytest.mark.parametrize(
    ("layer", "told"), [(nn.Dropout(0.5), r"call to call"), (nn.BatchNorm1d(9), "by its batch")]
)
def test_training_mode_is_refused(layer, told):
    model = nn.Sequential(nn.Linear(6, 9), layer)
    with pytest.raises(InputError, match=told):
        kernel(model, torch.ones(4, 6))
    kernel(model.eval(), torch.ones(4, 6))
