"""Activations against closed forms, naive sorts and finite differences.

Holds: tests of ``secant.nn`` (activations, units, the names exported).
May import: pytest, hypothesis, torch, ``secant.nn``.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import secant.nn as parts
from secant.errors import InputError
from secant.nn import (
    Exp,
    KMax,
    LinearSquash,
    Rational,
    Sine,
    Snake,
    Spline,
    Swish,
    Tunable,
)

DOUBLE = torch.float64
UNITS = 3
PER_UNIT = {
    "swish": Swish,
    "snake": Snake,
    "sine": Sine,
    "rational": lambda units, **more: Rational(units, start="tanh", **more),
    "spline": Spline,
    "cubic": lambda units, **more: Spline(units, is_cubic=True, start="tanh", **more),
    "tunable": lambda units, **more: Tunable(nn.Tanh(), units, **more),
}
floats = st.floats(-20, 20, allow_nan=False)


def jiggled(module, seed=0):
    """The module in float64, with parameters that differ from unit to unit."""
    draw = torch.Generator().manual_seed(seed)
    module = module.double()
    with torch.no_grad():
        for one in module.parameters():
            one += 0.3 * torch.rand(one.shape, generator=draw, dtype=DOUBLE) + 0.05
    return module


def test_the_names():
    names = [
        "GILR", "GILRLSTM", "LRU", "S6", "DeltaNet", "DiagonalRNN", "Exp", "FourierFeatures",
        "FourierLayer", "Identity", "KMax", "LeakyReLU", "LinearLayer", "LinearRNN",
        "LinearSquash", "LinearState", "Mamba", "MambaBlock", "MambaLM", "MambaShape", "PReLU",
        "Place", "Rational", "ReLU", "RoundedLinear", "Rounding", "ScanRoute", "Sigmoid", "Sine",
        "SirenLayer", "Snake", "Softplus", "Spline", "Swapped", "Swish", "Tanh", "Tunable",
        "flatten", "mamba_from", "rounded", "scan", "scan_routes", "siren", "swap",
    ]  # fmt: skip
    assert parts.__all__ == names
    assert all(hasattr(parts, name) for name in names)
    assert parts.ReLU is nn.ReLU


@settings(deadline=None)
@given(st.lists(floats, min_size=1, max_size=8))
def test_closed_forms(values):
    """Each against its formula in Python's own floats."""
    x = torch.tensor(values, dtype=DOUBLE)

    def holds(module, formula):
        found = module.double()(x).tolist()
        assert found == pytest.approx([formula(one) for one in values], rel=1e-12, abs=1e-12)

    holds(LinearSquash(), lambda z: (z + 1) / 2)
    holds(Exp(), math.exp)
    holds(Swish(beta=1.5), lambda z: z / (1 + math.exp(-1.5 * z)))
    holds(Snake(a=2.0), lambda z: z + math.sin(2 * z) ** 2 / 2)
    holds(Sine(1, amplitude=2.0, frequency=3.0, phase=0.5), lambda z: 2 * math.sin(3 * z + 0.5))
    holds(Spline(knots=9), lambda z: max(z, 0.0))


@pytest.mark.parametrize("name", PER_UNIT)
@pytest.mark.parametrize("dim", [-1, 1])
def test_derivatives_by_finite_differences(name, dim):
    """Of inputs and parameters, away from kinks, which lie at knots and at 0."""
    module = jiggled(PER_UNIT[name](UNITS, dim=dim))
    shape = (2, UNITS, 2) if dim == 1 else (4, UNITS)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    x = (8 * x - 4).round() + 0.1 + 0.02 * x
    names, values = zip(*module.named_parameters(), strict=True)

    def run(x, *values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    inputs = (x.requires_grad_(), *(one.detach().requires_grad_() for one in values))
    assert torch.autograd.gradcheck(run, inputs)
    assert all(one.shape[0] == UNITS for one in values)


@pytest.mark.parametrize("name", PER_UNIT)
def test_each_unit_has_its_own(name):
    """Unit u of three is the module of one unit with that unit's parameters."""
    module = jiggled(PER_UNIT[name](UNITS))
    x = torch.linspace(-5, 5, 101, dtype=DOUBLE)
    together = module(x[:, None].expand(-1, UNITS))
    for unit in range(UNITS):
        alone = PER_UNIT[name](1).double()
        state = {
            key: value[unit : unit + 1] if value.shape[:1] == (UNITS,) else value
            for key, value in module.state_dict().items()
        }
        alone.load_state_dict(state)
        torch.testing.assert_close(together[:, unit], alone(x), rtol=1e-13, atol=1e-13)
    images = x[:30].view(2, UNITS, 5, 1)
    by_channel = PER_UNIT[name](UNITS, dim=1).double()
    by_channel.load_state_dict(module.state_dict())
    expected = module(images.movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(by_channel(images), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", PER_UNIT)
def test_types_devices_and_states(name):
    """Outputs have the input's type; low precision is that of one rounding; states go round."""
    module = PER_UNIT[name](UNITS)
    x = torch.linspace(-3, 3, 60).view(-1, UNITS)
    exact = module(x)
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        low = x.to(kind)
        assert module(low).dtype == kind
        # Two roundings: of the input before, where slopes are below 2, and of the output.
        reach = 6 * torch.finfo(kind).eps * x.abs().max()
        if kind != torch.float64:
            assert (module(low).float() - module(low.float())).abs().max() <= reach
            whole = PER_UNIT[name](UNITS).to(kind)(low)
            assert whole.dtype == kind
            assert torch.isfinite(whole).all()
    assert module.to("meta")(x.to("meta")).device.type == "meta"
    again = jiggled(PER_UNIT[name](UNITS)).float()
    other = PER_UNIT[name](UNITS)
    other.load_state_dict(again.state_dict())
    assert torch.equal(other(x), again(x))
    assert not torch.equal(other(x), exact)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["swish", "snake", "sine", "tunable"])
@pytest.mark.parametrize("units", [1, 2])
def test_few_bits_are_rounded_once(name, kind, units):
    """Parameters and inputs of few bits: what the exact value rounds to, but for ties."""
    module = PER_UNIT[name](units).to(kind)
    if name == "tunable":
        module.activation = nn.Identity()
        with torch.no_grad():
            module.output_shift.fill_(100.0)
            module.output_scale.fill_(1.0625)
    x = torch.linspace(-3, 3, 400).view(-1, 2).to(kind)
    found = module(x).double()
    exact = module.double()(x.double())
    grain = torch.finfo(kind).eps
    assert ((found - exact).abs() <= 0.51 * grain * exact.abs() + 1e-7).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 7), st.integers(0, 2**31), st.sampled_from([0, 1, -1]))
def test_kmax_is_a_sort(k, seed, dim):
    """Against Python's sort, row by row, ties included: exactly k stay."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randint(-4, 5, (7, 7), generator=draw).double() + 0.5
    found = KMax(k, dim)(x)
    rows, kept = (one if dim != 0 else one.T for one in (x, found))
    for row, out in zip(rows.tolist(), kept.tolist(), strict=True):
        assert sorted(one for one in out if one) == sorted(row)[-k:]
        assert all(one in (0, other) for one, other in zip(out, row, strict=True))


def test_kmax_gradients_flow_through_what_is_kept():
    x = torch.tensor([[3.0, -1.0, 2.0, 5.0]], dtype=DOUBLE, requires_grad=True)
    KMax(2)(x).backward(torch.tensor([[1.0, 2.0, 3.0, 4.0]]).double())
    assert x.grad.tolist() == [[1, 0, 0, 4]]
    assert torch.autograd.gradcheck(KMax(2), (x,))
    assert torch.equal(KMax(4)(x), x)


@settings(deadline=None)
@given(st.integers(0, 2**31))
def test_laws(seed):
    """KMax moves with its entries, x - snake(x) has period pi / a, LinearSquash collapses."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 6, generator=draw, dtype=DOUBLE)
    order = torch.randperm(6, generator=draw)
    torch.testing.assert_close(KMax(3)(x[:, order]), KMax(3)(x)[:, order])
    snake = Snake(a=1.7).double()
    period = math.pi / float(snake.a.detach())
    torch.testing.assert_close(snake(x + period) - period, snake(x), rtol=1e-9, atol=1e-9)
    squash = LinearSquash(0.25, -1.0)
    torch.testing.assert_close(squash(2 * x[0] - x[1]), 2 * squash(x[0]) - squash(x[1]))


def test_swish_has_its_limits():
    x = torch.linspace(-3, 3, 61)
    torch.testing.assert_close(Swish()(x), nn.SiLU()(x))
    assert torch.equal(Swish(beta=0.0)(x), x / 2)
    torch.testing.assert_close(Swish(beta=1e6)(x), x.relu())


def test_snake_is_smooth_at_no_frequency():
    """x + sin²(ax)/a = x + a x² + O(a³): the derivative in a is x² at 0, and nothing is nan."""
    x = torch.tensor([-2.0, 0.0, 3.0], dtype=DOUBLE, requires_grad=True)
    snake = Snake(a=0.0).double()
    out = snake(x)
    out.sum().backward()
    assert torch.equal(out, x)
    assert x.grad.tolist() == [1, 1, 1]
    assert snake.a.grad.tolist() == [4 + 0 + 9]
    small = Snake(a=1e-9).double()(x)
    torch.testing.assert_close(small, x + 1e-9 * x**2, rtol=1e-15, atol=0)


def test_exp_overflows_where_it_says():
    for kind, last in ((torch.float16, 11.09), (torch.bfloat16, 88.5), (torch.float32, 88.72)):
        x = torch.tensor([last - 0.01, last + 1.0], dtype=kind)
        assert torch.isfinite(Exp()(x)).tolist() == [True, False]


@pytest.mark.parametrize("inner", [nn.ReLU(), nn.GELU(), nn.Tanh(), nn.PReLU(4), nn.Hardshrink()])
@pytest.mark.parametrize("kind", [torch.float16, torch.float32])
def test_tunable_starts_as_it_was(inner, kind):
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).to(kind)
    module = Tunable(inner, 4).to(kind)
    assert torch.equal(module(x), inner.to(kind)(x))
    with torch.no_grad():
        module.input_scale.fill_(2.0)
        module.input_shift.fill_(0.5)
        module.output_scale.fill_(-3.0)
        module.output_shift.fill_(1.0)
    x = x.float()
    expected = -3 * inner.float()(2 * x + 0.5) + 1
    torch.testing.assert_close(module.float()(x), expected)
    assert len(list(module.parameters())) == 4 + len(list(inner.parameters()))
    inner.to(torch.float32)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KMax(0), r"`k` must be at least 1; got 0\. Say how many"),
        (lambda: KMax(5)(torch.ones(2, 4)), r"from 1 to the 4 entries along dimension -1; got 5"),
        (lambda: Swish(0), r"at least one unit; got 0\. Give the number"),
        (
            lambda: Sine(3)(torch.ones(2, 4)),
            r"3 units .* -1; got .*\(2, 4\).*another `dim`",
        ),
        (lambda: Swish(3, dim=1)(torch.ones(3)), r"dimension 1; got an input of shape \(3,\)"),
    ],
)
def test_messages(make, message):
    with pytest.raises(InputError, match=message):
        make()
