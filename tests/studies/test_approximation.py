"""The study of universal approximation: closed forms, the control, and a small run.

Holds: tests of ``secant.studies.approximation``.
May import: pytest, torch, ``secant``.
"""

import json

import pytest
import torch

from secant.studies.approximation import (
    HIDDEN,
    TARGETS,
    affine_error,
    hidden_layer,
    measure,
    solved_error,
    study,
)
from secant.studies.wide_nets import exponent


def test_a_layer_that_holds_the_target_leaves_nothing():
    draw = torch.Generator().manual_seed(0)
    x, other = torch.rand(2, 300, 2, generator=draw, dtype=torch.float64)
    error = solved_error(
        lambda x: torch.cat([x, (x[:, :1] - 0.3).relu()], 1),
        lambda x: 2 * x[:, 0] - (x[:, 0] - 0.3).relu(),
        x,
        other,
    )
    assert error < 1e-12


def test_even_kinks_are_as_near_as_linear_interpolation():
    """ReLUs with kinks h apart hold every broken line through the knots; the best one's root mean
    square error on a smooth f is f'' h² / 12 sqrt(5) for an f'' that is constant."""
    x = torch.linspace(0, 1, 20_001, dtype=torch.float64)[:, None]
    for pieces in (4, 16):
        knots = torch.arange(pieces, dtype=torch.float64) / pieces

        def features(x, knots=knots):
            return torch.cat([(x - knots).relu(), torch.ones(len(x), 1, dtype=torch.float64)], 1)

        error = solved_error(features, lambda x: x[:, 0].square() / 2, x, x)
        # On a long row of pieces the best broken line of x²/2 is off by h² / (12 sqrt 5).
        whole = float((x[:, 0].square() / 2).std())
        assert error * whole == pytest.approx(1 / pieces**2 / (12 * 5**0.5), rel=0.35)


def test_layers_of_one_seed_are_nested_and_have_their_length():
    narrow, wide = hidden_layer(4, 3), hidden_layer(16, 3)
    assert wide[0][:, :4].equal(narrow[0])
    assert wide[1][:4].equal(narrow[1])
    assert torch.allclose(wide[0].norm(dim=0), torch.tensor(4.0, dtype=torch.float64))


@pytest.mark.parametrize("hidden", ["none", "linear squash"])
def test_without_a_bend_no_width_helps(hidden):
    for target in TARGETS:
        for width in (4, 64):
            found = measure(target, hidden, width, 1)["error"]
            assert found == pytest.approx(affine_error(target, 1), rel=1e-9)


def test_with_one_it_does():
    for hidden in ("ReLU", "tanh"):
        errors = [measure("wave", hidden, width, 1)["error"] for width in (8, 64, 256)]
        assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert set(HIDDEN) == {"none", "linear squash", "ReLU", "tanh"}


def test_the_exponent_is_that_of_a_power():
    widths = [2, 4, 8]
    slope, (low, high) = exponent(widths, [[3 * w**-1.5 for w in widths]] * 3)
    assert (slope, low, high) == pytest.approx((-1.5, -1.5, -1.5))


def test_a_small_run_is_supported_and_written_down(tmp_path):
    found = study(widths=(4, 32), seeds=3, out=tmp_path)
    assert found.verdict == "supported"
    assert len(found.figures) == 12
    assert json.loads((tmp_path / "study.json").read_text()) == found.as_dict()
    assert (tmp_path / "study.html").read_text().count('<svg class="plot"') == 3
