"""Rounding against exact arithmetic and NumPy's float16; flattening against fractions.

Holds: tests of ``secant.nn.rounded``.
May import: pytest, hypothesis, torch, numpy, ``secant.nn``.
"""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, grad, jvp, vmap

from secant.errors import InputError
from secant.nn import KMax, LinearSquash, RoundedLinear, Rounding, flatten, rounded

DOUBLE = torch.float64
CLIP = Rounding(offset=1365.0, scale=64.0, step=-3 / 8192, times=700)
CLIP_BFLOAT16 = Rounding(torch.bfloat16, offset=170.0, scale=8.0, step=-3 / 1024, times=90)
GRAD1 = Rounding(step=-1 / 2048, times=500)
OFFSET = Rounding(offset=64.0)
DENORMAL = Rounding(torch.float32, scale=2.0**-149)
floats = st.floats(-8, 8, allow_nan=False, width=32)


def nearest(value, bits, least):
    """The nearest number of `bits` bits to a fraction, ties to even; 2**least is the finest."""
    if value == 0:
        return value
    power = 0
    while abs(value) >= Fraction(2) ** (power + 1):
        power += 1
    while abs(value) < Fraction(2) ** power:
        power -= 1
    grain = Fraction(2) ** max(power - bits + 1, least)
    return round(value / grain) * grain


@settings(deadline=None)
@given(floats)
@pytest.mark.parametrize(
    ("how", "bits", "least"),
    [
        (OFFSET, 11, -24),
        (Rounding(offset=-96.0, scale=2.0), 11, -24),
        (Rounding(scale=2.0**-24), 11, -24),
        (Rounding(torch.bfloat16, offset=16.0), 8, -133),
        (Rounding(torch.float32, offset=2.0**20), 24, -149),
        (DENORMAL, 24, -149),
        (Rounding(step=-1 / 2048, times=3), 11, -24),
        (Rounding(torch.float32, offset=3.0, step=-1 / 4096, times=2), 24, -149),
    ],
)
def test_rounding_is_that_of_exact_arithmetic(how, bits, least, value):
    scale, offset = Fraction(how.scale), Fraction(how.offset)
    u = nearest(nearest(Fraction(value) * scale, bits, least) + offset, bits, least)
    for _ in range(how.times):
        u = nearest(u + nearest(Fraction(how.step) * u, 24, -149), bits, least)
    expected = float(nearest(u - offset, bits, least) / scale)
    assert rounded(torch.tensor([value]), how).tolist() == [expected]
    assert rounded(torch.tensor([value]).double(), how).tolist() == [expected]


def test_an_offset_of_64_leaves_49_values():
    found = rounded(torch.linspace(-1, 1, 100_001), OFFSET).unique()
    below, above = np.arange(-32, 1) / 32, np.arange(1, 17) / 16
    assert found.tolist() == [*below, *above]
    assert OFFSET.quantum == (1 / 32, 1 / 16)
    assert Rounding(offset=-64.0).quantum == (1 / 16, 1 / 32)
    assert Rounding(offset=96.0).quantum == (1 / 16, 1 / 16)
    assert Rounding(torch.bfloat16, offset=128.0).quantum == (1 / 2, 1)
    assert DENORMAL.quantum == (1, 1)
    assert Rounding(scale=2.0**-24).quantum == (1, 1)


def test_a_small_step_many_times_clips():
    """min(z, 0) to one step of the type, for as far as one octave reaches."""
    z = torch.linspace(-5.3, 10.6, 10_001)
    assert (rounded(z, CLIP) - z.clamp_max(0)).abs().max() <= 1 / 64
    z = torch.linspace(-5.1, 10.6, 10_001)
    assert (rounded(z, CLIP_BFLOAT16) - z.clamp_max(0)).abs().max() <= 1 / 8
    # In more bits the same chain is straight, and is the real map.
    many = Rounding(torch.float32, offset=1365.0, scale=64.0, step=-3 / 8192, times=700)
    real = many.slope * z + many.shift
    assert (rounded(z, many) - real).abs().max() < 1e-2
    assert many.slope == pytest.approx(float((1 - Fraction(3, 8192)) ** 700), rel=1e-12)
    assert many.shift == pytest.approx(float(1365 * ((1 - Fraction(3, 8192)) ** 700 - 1) / 64))


def test_murphy_s_chain_has_two_slopes_an_octave():
    """Each step takes one unit of the last place: m -> m - 500, halved past the octave's end."""
    m = np.arange(1024, 2048)
    expected = np.where(m >= 1524, m - 500.0, 1024 - (500 - (m - 1024)) / 2)
    for octave in (-3, 0, 5):
        z = torch.from_numpy(m * 2.0**octave).float()
        assert np.array_equal(rounded(z, GRAD1).numpy(), expected * 2.0**octave)
        assert np.array_equal(rounded(-z, GRAD1).numpy(), -expected * 2.0**octave)


@pytest.mark.parametrize("times", [1, 7, 500])
def test_the_table_is_numpy_s_chain(times):
    """All 65,536 numbers of float16 but nan, step by step in NumPy."""
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    every = every[np.isfinite(every)]
    u = every
    for _ in range(times):
        u = (u.astype(np.float32) * np.float32(1 - 1 / 2048)).astype(np.float16)
    found = rounded(torch.from_numpy(every).float(), Rounding(step=-1 / 2048, times=times))
    assert np.array_equal(found.numpy(), u.astype(np.float32))


def test_derivatives_are_straight_through_or_of_secants():
    z = torch.linspace(-3, 3, 50).requires_grad_()
    for how in (OFFSET, CLIP, DENORMAL):
        (found,) = torch.autograd.grad(rounded(z, how).sum(), z)
        assert found.tolist() == pytest.approx([how.slope] * 50)
    seen = Rounding(offset=1365.0, scale=64.0, step=-3 / 8192, times=700, window=0.25)
    (found,) = torch.autograd.grad(rounded(z, seen).sum(), z)
    expected = ((z + 0.25).clamp_max(0) - (z - 0.25).clamp_max(0)) / 0.5
    assert (found - expected).abs().max() <= 2 / 64 / 0.5
    _, forward = jvp(lambda z: rounded(z, seen), (z.detach(),), (torch.ones(50),))
    each = vmap(grad(lambda z: rounded(z, seen)))(z.detach())
    assert torch.equal(forward, found)
    assert torch.equal(each, found)


def test_the_layer_rounds_its_operands_and_what_they_give():
    """Against NumPy: operands in float16, sums in float32, the chain by hand."""
    torch.manual_seed(0)
    layer = RoundedLinear(20, 6, rounding=Rounding(offset=8.0))
    x = torch.randn(9, 20)
    to_half = [one.detach().numpy().astype(np.float16).astype(np.float32) for one in
               (x, layer.weight, layer.bias)]  # fmt: skip
    z = (to_half[0] @ to_half[1].T + to_half[2]).astype(np.float16)
    expected = ((z + np.float16(8)) - np.float16(8)).astype(np.float32)
    found = layer(x).detach().numpy()
    # Sums in another order may fall to the other side of a step, and rarely do.
    assert np.mean(found == expected) > 0.95
    assert np.abs(found - expected).max() <= 8 / 1024
    plain = nn.Linear(20, 6)
    plain.load_state_dict(layer.state_dict())
    layer(x).sum().backward()
    plain(x).sum().backward()
    # Straight through: the derivative of the layer alone, at operands of 11 bits.
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad, rtol=0, atol=0.01)
    assert layer.weight.dtype == torch.float32


def test_the_layer_s_types_states_and_transforms():
    layer = RoundedLinear(4, 3, bias=False, rounding=OFFSET)
    assert layer.bias is None
    assert "offset=64" in repr(layer)
    x = torch.randn(5, 2, 4)
    assert layer(x).shape == (5, 2, 3)
    for kind in (torch.float16, torch.bfloat16, DOUBLE):
        assert layer(x.to(kind)).dtype == kind
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), layer(x))
        inside = layer(x)
    assert torch.equal(inside, layer(x))
    again = RoundedLinear(4, 3, bias=False, rounding=OFFSET)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(x), layer(x))
    whole = RoundedLinear(4, 3, rounding=CLIP).double()
    assert whole(x.double()).dtype == DOUBLE
    weights = {name: one.detach() for name, one in layer.named_parameters()}
    rows = vmap(lambda row: functional_call(layer, weights, (row,)))(x[:, 0])
    torch.testing.assert_close(rows, layer(x[:, 0]), rtol=0, atol=1 / 16)
    assert layer.to("meta")(x.to("meta")).device.type == "meta"


def test_flushed_denormals_are_refused():
    layer = RoundedLinear(3, 2, rounding=DENORMAL)
    x = 5 * torch.randn(4, 3)
    found = layer(x)
    assert torch.equal(found, found.round())
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        with pytest.raises(InputError, match=r"flushed to 0\. Call torch\.set_flush_denormal"):
            layer(x)
    finally:
        torch.set_flush_denormal(False)


@settings(deadline=None)
@given(st.integers(0, 2**31))
def test_flattening_is_exact(seed):
    """Small integers: against products of fractions, rounding and squashes included."""
    draw = torch.Generator().manual_seed(seed)
    first, second = RoundedLinear(3, 4, rounding=CLIP), nn.Linear(4, 2, bias=False)
    for one in [*first.parameters(), *second.parameters()]:
        one.data = torch.randint(-5, 6, one.shape, generator=draw).float()
    net = nn.Sequential(nn.Sequential(first, LinearSquash(0.5, -2.0)), nn.Identity(), second)
    flat = flatten(net)
    slope = (1 - Fraction(3, 8192)) ** 700
    shift = 1365 * (slope - 1) / 64
    w, b, v = (one.long().tolist() for one in (first.weight, first.bias, second.weight))
    for i in range(2):
        for j in range(3):
            exact = sum(v[i][k] * w[k][j] for k in range(4)) * slope / 2
            assert flat.weight[i, j].item() == pytest.approx(float(exact), rel=1e-11, abs=1e-11)
        hidden = [(slope * b[k] + shift) / 2 - 2 for k in range(4)]
        exact = sum(v[i][k] * hidden[k] for k in range(4))
        assert flat.bias[i].item() == pytest.approx(float(exact), rel=1e-11, abs=1e-11)
    assert flat.weight.dtype == DOUBLE


def test_a_net_of_many_bits_is_its_flat_self_and_one_of_few_is_not():
    torch.manual_seed(0)
    x = torch.randn(64, 10)
    for how, least, most in (
        (Rounding(torch.float32, offset=1.0), 0, 1e-5),
        (Rounding(offset=1024.0), 0.2, 10),
        (CLIP, 0.2, 10),
    ):
        net = nn.Sequential(RoundedLinear(10, 30, rounding=how), nn.Linear(30, 3))
        off = (net(x) - flatten(net)(x.double())).abs().max().detach()
        assert least <= float(off) <= most


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rounding(torch.float64), r"`dtype` must be .*got torch\.float64\. Choose one"),
        (lambda: Rounding(scale=3.0), r"`scale` must be a power of two .*got 3\.0\. Choose"),
        (lambda: Rounding(scale=2.0**-150), r"from 2\*\*-149 to 2\*\*127"),
        (lambda: Rounding(offset=2049.0), r"`offset` must be a finite number of .*got 2049\.0"),
        (lambda: Rounding(offset=float("inf")), r"`offset` .*got inf\. Choose one with few bits"),
        (lambda: Rounding(step=1e-9), r"`step` must be .*got 1e-09"),
        (lambda: Rounding(times=-1), r"must not be negative.*got -1 and 0"),
        (lambda: Rounding(window=float("inf")), r"nor infinite; got 0 and inf\. Give 0"),
        (lambda: rounded(torch.ones(2).half(), OFFSET), r"float32 or float64.*got torch\.float16"),
        (lambda: flatten(nn.Sequential(nn.Linear(2, 2), KMax(1))), r"'1' is KMax\. Take the part"),
        (lambda: flatten(nn.ReLU()), r"'net' is ReLU"),
        (lambda: flatten(nn.Sequential(LinearSquash(), nn.Linear(2, 2))), r"'0' is LinearSquash"),
        (lambda: flatten(nn.Identity()), r"hold a linear layer; got none\. Pass"),
    ],
)
def test_messages(make, message):
    with pytest.raises(InputError, match=message):
        make()
