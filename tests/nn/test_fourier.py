"""Fourier layers, features and sine networks: sums by hand, spreads, kernels.

Holds: tests of ``secant.nn.fourier``.
May import: pytest, torch, numpy, scipy, ``secant.nn``.
"""

import math

import numpy as np
import pytest
import torch
from scipy.stats import arcsine, kstest, norm
from torch import nn

from secant.errors import InputError
from secant.nn import FourierFeatures, FourierLayer, SirenLayer, siren

DOUBLE = torch.float64


def test_the_layer_is_its_sum():
    """Written out with Python's sines."""
    torch.manual_seed(0)
    layer = FourierLayer(2, 3, 4).double()
    x = torch.randn(5, 2, dtype=DOUBLE)
    a, w, p, b = (one.tolist() for one in layer.parameters())
    for row, out in zip(x.tolist(), layer(x).tolist(), strict=True):
        for j in range(3):
            expected = b[j] + sum(
                a[j][i][k] * math.sin(w[j][i][k] * row[i] + p[j][i][k])
                for i in range(2)
                for k in range(4)
            )
            assert out[j] == pytest.approx(expected, rel=1e-12)
    assert layer(x[:, None].expand(5, 7, 2)).shape == (5, 7, 3)
    inputs = x.clone().requires_grad_()
    assert torch.autograd.gradcheck(layer, (inputs,))


def test_the_layer_s_outputs_vary_by_one_whatever_the_input():
    """Over 40,000 outputs of one draw: mean 0, variance 1, standard errors 0.005 and 0.01."""
    torch.manual_seed(0)
    layer = FourierLayer(3, 40_000, 5)
    for x in ([0.0, 0.0, 0.0], [1.0, -2.0, 0.3], [50.0, 50.0, 50.0]):
        with torch.no_grad():
            out = layer(torch.tensor(x)).double()
        assert abs(float(out.mean())) < 0.03
        assert float(out.var()) == pytest.approx(1, abs=0.06)


def test_features_are_a_gaussian_kernel():
    """2048 frequencies: standard error below 1 / sqrt(4096) = 0.016."""
    features = FourierFeatures(2, 2048, sigma=0.2, seed=1)
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(30, 2, generator=draw)
    gram = features(x) @ features(x).T / 2048
    expected = torch.exp(-2 * math.pi**2 * 0.2**2 * torch.cdist(x, x).square())
    assert float((gram - expected).abs().max()) < 5 * 0.016
    assert torch.equal(features(x), FourierFeatures(2, 2048, sigma=0.2, seed=1)(x))
    assert not torch.equal(features(x), FourierFeatures(2, 2048, sigma=0.2, seed=2)(x))
    assert not list(features.parameters())
    assert "frequency" in features.state_dict()
    assert abs(float(features.frequency.std()) - 0.2) < 0.01


@pytest.mark.parametrize("omega", [30.0, 60.0])
def test_spreads_stay_through_depth(omega):
    """Sines of a normal z of variance v vary by (1 - exp(-2v))/2; the next layer doubles that.

    The paper's N(0, 1) and arcsine laws (theorem 1.8) are near, not exact: sin of a standard
    normal varies by 0.432, not by 1/2, and v settles at 0.797. Distances are Kolmogorov and
    Smirnov's, over 171 units of 171 rows that are far apart: from its own law 29,241 numbers
    would be 0.01 away, once in a hundred times.
    """
    torch.manual_seed(0)
    net = siren(16, 512, 9, 1, omega=omega)
    x = 2 * torch.rand(512, 16) - 1
    expected, distances = None, []
    with torch.no_grad():
        for place, layer in enumerate(net[:-1]):
            before = nn.functional.linear(x, omega * layer.weight, layer.bias)
            x = layer(x)
            if place == 0:  # its sines go over many waves
                expected = 2 * float(x.square().mean())
                continue
            assert float(before.var()) == pytest.approx(expected, rel=0.05)
            assert float(x.var()) == pytest.approx((1 - math.exp(-2 * expected)) / 2, rel=0.05)
            spread = norm(scale=expected**0.5).cdf
            some, sines = (one[::3, ::3].flatten().numpy() for one in (before, x))
            assert kstest(some, spread).statistic < 0.02
            distances.append([
                kstest(some, norm.cdf).statistic,
                kstest(sines, arcsine(loc=-1, scale=2).cdf).statistic,
            ])  # fmt: skip
            expected = 1 - math.exp(-2 * expected)
    assert expected == pytest.approx(0.797, abs=0.002)
    assert np.max(distances, axis=0) == pytest.approx([0.03, 0.065], abs=0.015)


def test_other_draws_do_not_keep_the_spread():
    """The same depth under torch's own draw: the waves die out."""
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 64)[:, None]
    with torch.no_grad():
        for place in range(9):
            layer = nn.Linear(512 if place else 1, 512)
            x = layer(x).sin()
    assert float((x - x.mean(0)).var()) < 1e-3


def test_siren_layers_draw_as_they_say():
    torch.manual_seed(0)
    first, later = SirenLayer(200, 300, is_first=True), SirenLayer(200, 300, is_first=False)
    for layer, reach in ((first, 1 / 200), (later, (6 / 200) ** 0.5 / 30)):
        flat = layer.weight.detach().flatten().numpy() / reach
        assert np.abs(flat).max() <= 1
        assert kstest(flat, "uniform", args=(-1, 2)).statistic < 0.01  # 60,000 draws
    x = torch.randn(4, 200, dtype=DOUBLE)
    later.double()
    expected = torch.sin(30 * x @ later.weight.T + later.bias)
    torch.testing.assert_close(later(x), expected)
    net = siren(2, 16, 3, 1)
    assert [layer.is_first for layer in net[:-1]] == [True, False, False]
    assert isinstance(net[-1], nn.Linear)
    assert float(net[-1].weight.detach().abs().max()) <= (6 / 16) ** 0.5 / 30


@pytest.mark.parametrize(
    "make",
    [
        lambda: FourierLayer(3, 2, 2),
        lambda: FourierFeatures(3, 1, sigma=1.0, seed=0),
        lambda: SirenLayer(3, 2, is_first=True),
    ],
)
def test_types_and_states(make):
    layer = make()
    x = torch.rand(4, 3)
    for kind in (torch.float16, torch.bfloat16):
        assert layer(x.to(kind)).dtype == kind
        assert make().to(kind)(x.to(kind)).dtype == kind
    assert layer.double()(x.double()).dtype == DOUBLE
    other = make().double()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x.double()), layer(x.double()))
    assert make().to("meta")(x.to("meta")).shape == (4, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FourierLayer(1, 1, 0), r"FourierLayer: `components` must be at least 1; got 0"),
        (lambda: FourierFeatures(0, 1, sigma=1.0, seed=0), r"`in_features` .* Give more"),
        (lambda: FourierFeatures(1, 1, sigma=0.0, seed=0), r"`sigma` must be positive.*got 0\.0"),
        (lambda: SirenLayer(1, 1, is_first=True, omega=-1.0), r"`omega` .*got -1\.0.*has 30"),
        (lambda: siren(1, 4, 0, 1), r"siren: `depth` must be at least 1; got 0"),
    ],
)
def test_messages(make, message):
    with pytest.raises(InputError, match=message):
        make()
