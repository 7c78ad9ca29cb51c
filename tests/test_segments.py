"""Pieces of whole models between two inputs, against sampling and derivatives; their readings.

Holds: tests of ``secant.segments``.
May import: hypothesis, pytest, scipy, torch, ``secant``.
"""

import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student
from torch import nn

from secant.errors import InputError
from secant.load.demo import digits, load_demo
from secant.segments import pieces, segment_readings


def relu_net(depth, width, seed, inputs=16, outputs=1):
    """He initialisation, biases of size 1."""
    draw = torch.Generator().manual_seed(seed)
    layers, before = [], inputs
    for _ in range(depth):
        layer = nn.Linear(before, width, dtype=torch.float64)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=draw)
        nn.init.normal_(layer.bias, generator=draw)
        layers += [layer, nn.ReLU()]
        before = width
    layers.append(nn.Linear(before, outputs, dtype=torch.float64))
    nn.init.normal_(layers[-1].weight, generator=draw)
    nn.init.zeros_(layers[-1].bias)
    return nn.Sequential(*layers)


def ends(seed, length=3.0, inputs=16):
    draw = torch.Generator().manual_seed(seed)
    return length * torch.randn(2, inputs, generator=draw, dtype=torch.float64)


@functools.cache
def digit_pair():
    images, _ = digits()
    return images[0], images[1]


def patterns(model, x):
    """Which ReLUs are on, one row an input, heard at the modules or at the function."""
    heard, plain = [], nn.functional.relu

    def listen(z, inplace=False):
        heard.append((z > 0).flatten(1))
        return plain(z)

    nn.functional.relu = listen
    try:
        with torch.no_grad():
            model(x)
    finally:
        nn.functional.relu = plain
    return torch.cat(heard, 1)


@pytest.mark.parametrize(("name", "share"), [("mlp", 1.0), ("cnn", 0.02)])
def test_pieces_of_a_demo_net_are_its_activation_patterns(name, share):
    """Sampling knows neither kinks nor layers: it sees the same patterns in the same order."""
    model = load_demo(name).double()
    start, end = (image.double() for image in digit_pair())
    end = torch.lerp(start, end, share)
    found = pieces(load_demo(name), start, end)
    assert found.count > 40
    middle = (found.t[1:] + found.t[:-1]) / 2
    own = patterns(model, torch.stack([torch.lerp(start, end, t) for t in middle]))
    assert (own[1:] != own[:-1]).any(1).all()  # no piece is a part of another
    dense = torch.linspace(0, 1, 4001, dtype=torch.float64)[1:-1]
    sampled = patterns(model, torch.stack([torch.lerp(start, end, t) for t in dense]))
    piece = torch.searchsorted(found.t, dense) - 1
    assert sampled.equal(own[piece])  # no piece was missed where the samples are


@pytest.mark.parametrize(("name", "share"), [("mlp", 1.0), ("cnn", 0.02)])
def test_slopes_are_the_model_s_derivatives(name, share):
    model = load_demo(name).double()
    start, end = (image.double() for image in digit_pair())
    end = torch.lerp(start, end, share)
    found = pieces(load_demo(name), start, end)
    middle = (found.t[1:] + found.t[:-1]) / 2
    x = torch.stack([torch.lerp(start, end, t) for t in middle])
    _, derivative = torch.func.jvp(model, (x,), ((end - start).expand_as(x),))
    width = found.t.diff()[:, None]
    error = (found.slopes - derivative.detach()).abs() * width
    assert error.max() < 1e-12  # rounding of the values over the width of the piece


def test_the_linear_demo_is_one_piece_and_the_transformer_is_refused():
    assert pieces(load_demo("linear"), *digit_pair()).count == 1
    with pytest.raises(InputError, match=r"aten\.native_layer_norm\.default is not"):
        pieces(load_demo("transformer"), *digit_pair())


def test_kinks_that_cancel_are_no_kinks():
    """relu(x) - relu(-x) = x, also through layers that mix it; |x| keeps its kink."""
    weight = torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start, end = ends(1, inputs=5)
    crossings = int(((start @ weight) * (end @ weight) < 0).sum())
    assert crossings > 0

    def identity(x):
        h = x @ weight
        return (h.relu() - (-3 * h).relu() / 3) @ weight

    def absolute(x):
        h = x @ weight
        return (h.relu() + (-3 * h).relu() / 3) @ weight

    assert pieces(identity, start, end).count == 1
    assert pieces(absolute, start, end).count == crossings + 1


def test_a_kink_that_reaches_only_dead_units_is_none():
    """The second layer is off along the whole segment but for its bias path."""

    def model(x):
        return (x.relu() - 10).relu() + x

    assert pieces(model, torch.tensor([-1.0]), torch.tensor([1.0])).count == 1
    assert pieces(model, torch.tensor([-1.0]), torch.tensor([11.0])).count == 2


NETS = st.tuples(st.integers(1, 3), st.integers(0, 999))


@settings(max_examples=30, deadline=None)
@given(NETS, st.floats(0.1, 0.9), st.floats(1e-3, 1e3))
def test_reversal_splitting_and_scaling(net, at, scale):
    """Backwards mirrors, two parts add up, and a scaled output keeps its kinks."""
    depth, seed = net
    model, (start, end) = relu_net(depth, 12, seed, outputs=2), ends(seed)
    whole = pieces(model, start, end)
    back = pieces(model, end, start)
    assert back.t.tolist() == pytest.approx((1 - whole.t.flip(0)).tolist(), abs=1e-9)
    middle = torch.lerp(start, end, at)
    left, right = pieces(model, start, middle), pieces(model, middle, end)
    if not ((whole.kinks - at).abs() <= 1e-9).any():
        assert left.count + right.count == whole.count + 1
    scaled = pieces(lambda x: scale * model(x), start, end)
    assert scaled.count == whole.count
    assert scaled.bends.tolist() == pytest.approx((scale * whole.bends).tolist(), rel=1e-6)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_pieces_grow_with_the_number_of_units_whatever_the_depth(depth):
    """About one a unit on a line that goes far beyond the biases (arXiv:1901.09021, figure 2)."""
    readings = []
    for seed in range(4):
        start, _ = ends(seed, length=1e4)
        readings += segment_readings(relu_net(depth, 32, seed), start[None], -start[None])
    per_unit = [reading.details["pieces_per_unit"] for reading in readings]
    assert 0.85 < sum(per_unit) / 4 < 1.2
    assert all(reading.details["units"] == 32 * depth for reading in readings)


def test_the_reading_is_the_mean_over_pairs_with_student_s_interval():
    """|x| on pairs that straddle 0 or not: 2, 1, 2 pieces."""
    starts, ends_ = torch.tensor([[-1.0], [1.0], [-3.0]]), torch.tensor([[1.0], [2.0], [1.0]])
    (reading,) = segment_readings(torch.abs, starts, ends_)
    assert (reading.variable, reading.site, reading.gauge, reading.variant) == (
        "inputs", "(model)", "pieces", "count",
    )  # fmt: skip
    assert reading.value == pytest.approx(5 / 3)
    # Of 2, 1, 2 the variance is 1/3, the standard error so 1/3.
    reach = student.ppf(0.975, 2) / 3
    assert reading.interval == pytest.approx((5 / 3 - reach, 5 / 3 + reach))
    assert reading.samples == {"pairs": 3}
    assert reading.warnings == []
    assert reading.details == {
        "counts": [2, 1, 2],
        "units": 1,
        "pieces_per_unit": pytest.approx(5 / 3),
        "breakpoints": [0.5],
        "first_bends": [4],
    }


def test_one_pair_has_no_interval_and_no_units_no_share():
    (reading,) = segment_readings(load_demo("linear"), *(x[None] for x in digit_pair()))
    assert reading.value == 1
    assert reading.interval is None
    assert "One pair" in reading.warnings[0]
    assert reading.details["pieces_per_unit"] is None
    assert not math.isnan(reading.value)


def test_breakpoints_are_rounded_to_ten_digits():
    (reading,) = segment_readings(torch.abs, torch.tensor([[-1.0]]), torch.tensor([[2.0]]))
    assert reading.details["breakpoints"] == [0.3333333333]


@pytest.mark.parametrize(("starts", "stops"), [((2, 3), (3, 3)), ((0, 3), (0, 3)), ((3,), (3,))])
def test_pairs_that_do_not_match(starts, stops):
    with pytest.raises(InputError, match=r"`starts` and `ends` must be .*; got .*Pair the units"):
        segment_readings(torch.abs, torch.zeros(starts), torch.ones(stops))
