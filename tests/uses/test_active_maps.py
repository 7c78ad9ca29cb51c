"""The active map against autograd and exact arithmetic, its margin against bisection.

Holds: tests of ``secant.uses.active_maps`` and ``secant.maps.frame``.
May import: pytest, hypothesis, torch, ``secant``.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, jacrev
from torch.nn import functional

import secant
from secant.errors import InputError
from secant.maps import frame
from secant.maps.frame import framed


class Mixed(nn.Module):
    """Convolution, batch norm, PReLU, a residual, ReLU6, max pooling, a maximum."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.prelu = nn.PReLU(3)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        hidden = self.prelu(self.norm(self.conv(x)))
        hidden = functional.relu6(4 * (hidden + functional.leaky_relu(hidden.flip(1), 0.2)))
        hidden = functional.max_pool2d(hidden, 2)
        out = self.head(torch.maximum(hidden, 1 - hidden).flatten(1))
        return {"logits": torch.cat([out, out.amin(1, keepdim=True)], 1)}


def mixed():
    torch.manual_seed(1)
    model = Mixed().double()
    for _ in range(20):
        model(torch.randn(8, 2, 4, 4, dtype=torch.float64))
    return model.eval()


def draws(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def decisions(model, x):
    return torch.cat([layer.sides for layer in framed(model, x, has_axes=False)[0].layers], 1)


@pytest.mark.parametrize("float_type", [torch.float64, torch.float32])
def test_the_map_is_autograd_s_and_gives_the_output(float_type):
    model, x = mixed().to(float_type), draws((5, 2, 4, 4))
    found = secant.affine_at(model, x)
    wide = {name: one.double() for name, one in model.state_dict().items()}

    def run(rows):
        return functional_call(model, wide, (rows,))["logits"]

    for i in range(len(x)):
        expected = jacrev(lambda one: run(one[None])[0])(x[i]).flatten(1)
        assert torch.allclose(found.matrix[i], expected, rtol=0, atol=1e-12)
    assert torch.allclose(found(x), run(x), rtol=0, atol=1e-12)
    assert float(found.error.max()) < 1e-12
    assert {one.dtype for one in model.parameters()} == {float_type}


@pytest.mark.parametrize("seed", range(3))
def test_nothing_decides_anew_within_the_margin_and_its_unit_does_past_it(seed):
    model, x = mixed(), draws((6, 2, 4, 4), seed)
    found = secant.affine_at(model, x)
    assert torch.allclose(found.direction.norm(dim=1), torch.ones(6).double(), rtol=1e-12)
    here = decisions(model, x)
    step = found.margin[:, None] * found.direction
    for many in (0.5, 0.999):
        assert decisions(model, x + (many * step).view_as(x)).equal(here)
    layers = framed(model, x, has_axes=False)[0].layers
    beyond = framed(model, x + (1.001 * step).view_as(x), has_axes=False)[0].layers
    for i, (name, unit) in enumerate(found.unit):
        before = next(layer for layer in layers if layer.name == name)
        after = next(layer for layer in beyond if layer.name == name)
        assert before.sides[i, unit] != after.sides[i, unit]
    # Nor in any other direction.
    for other in range(20):
        way = draws(found.direction.shape, 100 + other)
        way *= 0.999 * found.margin[:, None] / way.norm(dim=1, keepdim=True)
        assert decisions(model, x + way.view_as(x)).equal(here)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 10))
def test_one_layer_has_the_distances_of_planes(seed, scale):
    """|w x + b| / |w|, the smallest over units; scaling a unit moves nothing."""
    draw = torch.Generator().manual_seed(seed)
    layer = nn.Linear(4, 7).double()
    with torch.no_grad():
        layer.weight.copy_(scale * torch.randn(7, 4, generator=draw))
        layer.bias.copy_(scale * torch.randn(7, generator=draw))
    x = torch.randn(3, 4, generator=draw, dtype=torch.float64)
    with torch.no_grad():
        planes = layer(x).abs() / layer.weight.norm(dim=1)
    found = secant.affine_at(nn.Sequential(layer, nn.LeakyReLU(0.1)), x)
    assert found.margin.tolist() == pytest.approx(planes.amin(1).tolist(), rel=1e-9)
    assert [unit for _, unit in found.unit] == planes.argmin(1).tolist()
    assert {name for name, _ in found.unit} == {"1 leaky_relu"}


def test_a_second_layer_s_boundary_is_seen_through_the_first():
    """relu(relu(x) - 1) at 3: kinks at 0 and 1, the nearer is that of the second layer."""
    found = secant.affine_at(
        lambda x: functional.relu(functional.relu(x) - 1), torch.tensor([[3.0]])
    )
    assert found.margin.tolist() == [2]
    assert found.unit == [("(model) relu #2", 0)]
    assert found.direction.tolist() == [[-1]]
    assert found.matrix.tolist() == [[[1]]]
    assert found.offset.tolist() == [[-1]]


def test_a_padded_window_and_ties_between_entries():
    pool = nn.MaxPool1d(3, 2, padding=1)
    x = torch.tensor([[[1.0, 3.0, 2.0, 0.0]], [[0.0, 0.0, 0.0, 5.0]]])
    found = secant.affine_at(pool, x)
    # Windows (1, 3) and (3, 2, 0): leaders 3 ahead by 1 at least, along (e_i - e_j) / sqrt 2.
    assert found.margin[0].item() == pytest.approx(1 / math.sqrt(2))
    assert found.margin[1].item() == 0


def test_a_linear_model_has_no_boundary():
    found = secant.affine_at(nn.Linear(3, 2), draws((2, 3)))
    assert found.margin.tolist() == [math.inf, math.inf]
    assert found.unit == [None, None]
    assert not found.direction.any()


def test_units_that_nothing_moves_have_no_boundary():
    """Behind a dead unit the second layer rests at its bias."""
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1), nn.ReLU()).double()
    for layer, weight, bias in ((model[0], 1.0, 0.0), (model[2], 1.0, 0.5)):
        nn.init.constant_(layer.weight, weight)
        nn.init.constant_(layer.bias, bias)
    found = secant.affine_at(model, torch.tensor([[-2.0]]))
    assert found.margin.tolist() == [2]
    assert found.unit == [("1 relu", 0)]


def test_several_inputs_go_in_parts(monkeypatch):
    model, x = mixed(), draws((5, 2, 4, 4))
    whole = secant.affine_at(model, x)
    monkeypatch.setattr("secant.uses.active_maps.MOST_ELEMENTS", 4 * 34 * 48 * 2)
    parts = secant.affine_at(model, x)
    assert torch.allclose(parts.matrix, whole.matrix, rtol=0, atol=1e-13)
    assert torch.allclose(parts.margin, whole.margin, rtol=1e-12)
    assert parts.unit == whole.unit


@pytest.mark.parametrize(
    ("operation", "on"),
    [
        (functional.relu, [0, 0, 1, 1]),
        (lambda x: x.clamp(max=1.0), [1, 1, 1, 1]),
        (lambda x: x.clamp_max(0.4), [1, 1, 0, 0]),
        (lambda x: functional.hardtanh(x, -1, 0.6), [0, 1, 1, 0]),
        (functional.softshrink, [1, 0, 0, 1]),
    ],
)
def test_what_on_means(operation, on):
    """A unit is on where it passes its input."""
    x = torch.tensor([[-2.0, -0.25, 0.5, 0.75]])
    assert decisions(operation, x).tolist() == [on]


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (nn.GELU(), torch.ones(1, 2), r"aten\.gelu\.default is not"),
        (nn.ReLU(), torch.ones(2), r"batch of finite floats.*got torch\.float32 \(2,\).*x\[None\]"),
        (nn.ReLU(), torch.ones(2, 2, dtype=torch.int64), r"got torch\.int64"),
        (nn.ReLU(), torch.full((1, 2), math.nan), r"finite floats"),
        (nn.Linear(3, 3), torch.ones(1, 2), r"it refuses: mat1 and mat2"),
        (lambda x: x + torch.rand(1).double(), torch.ones(1, 2), r"off by .* Look for randomness"),
        (lambda x: x.sum().view(1, 1), torch.ones(3, 2), r"one output an input; \d inputs gave"),
    ],
)
def test_what_has_no_active_map(model, x, message):
    with pytest.raises(InputError, match=message):
        secant.affine_at(model, x)


def test_a_layer_that_is_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(frame, "MOST_ELEMENTS", 100)
    with pytest.raises(InputError, match=r"100 numbers of one layer.*Give fewer inputs"):
        secant.affine_at(nn.Sequential(nn.Linear(3, 40), nn.ReLU()), draws((1, 3)))
