"""Pieces of a curve given by points, against closed forms; no model.

Holds: tests of ``secant.gauges.pieces``.
May import: hypothesis, pytest, torch, ``secant``.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secant.errors import InputError
from secant.gauges.pieces import affine_pieces

EPSILON = torch.finfo(torch.float64).eps


def column(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)[:, None]


def points(count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    inner = torch.rand(count, generator=draw, dtype=torch.float64)
    return torch.cat([torch.zeros(1), inner, torch.ones(1)]).unique()


def test_a_hinge_has_two_pieces_with_their_slopes_and_bend():
    """0, 0, 1.5 at 0, 1/4, 1: slopes 0 and 2."""
    found = affine_pieces(torch.tensor([0.0, 0.25, 1.0]), column(0, 0, 1.5))
    assert found.count == 2
    assert found.kinks.tolist() == [0.25]
    assert found.slopes.tolist() == [[0.0], [2.0]]
    assert found.bends.tolist() == [2.0]
    assert found.values.tolist() == [[0.0], [0.0], [1.5]]


def test_a_bend_is_the_length_of_the_change_over_all_outputs():
    values = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.5, 2.0]])
    assert affine_pieces(torch.tensor([0.0, 0.5, 1.0]), values).bends.tolist() == [5.0]


@pytest.mark.parametrize("seed", range(5))
def test_many_points_of_one_line_are_one_piece(seed):
    """3t + 1/3, rounded: nothing but rounding lies between the neighbours."""
    t = points(3000, seed)
    found = affine_pieces(t, torch.stack([3 * t + 1 / 3, 1e9 * t - 5e8, 0 * t], 1))
    assert found.count == 1
    assert found.t.tolist() == [0.0, 1.0]
    assert len(found.bends) == 0


@pytest.mark.parametrize("seed", range(5))
def test_kinks_among_idle_points_and_noise_are_found_and_nothing_else(seed):
    """Three hinges, 2000 points that are none, errors of 1e-12 that `rounding` announces."""
    at = [0.2, 0.5, 0.7]
    t = torch.cat([points(2000, seed), torch.tensor(at, dtype=torch.float64)]).unique()
    values = sum(((t - kink).relu() for kink in at), torch.zeros_like(t))
    noise = 1e-12 * (2 * torch.rand(len(t), generator=torch.Generator().manual_seed(seed)) - 1)
    found = affine_pieces(t, (values + noise)[:, None], torch.tensor([1e-12]).double())
    assert found.count == 4
    # A point next to a kink can stand for it where the two are nearer than the errors can tell.
    assert found.kinks.tolist() == pytest.approx(at, abs=1e-10)
    assert found.bends.tolist() == pytest.approx([1, 1, 1], rel=1e-8)


@pytest.mark.parametrize("gap", [EPSILON / 2, EPSILON, 8 * EPSILON])
def test_one_kink_found_twice_is_one_kink(gap):
    """Two breakpoints some units in the last place apart: both alone look straight."""
    t = torch.tensor([0.0, 0.5, 0.5 + gap, 1.0], dtype=torch.float64)
    found = affine_pieces(t, (t - 0.5).relu()[:, None])
    assert found.count == 2
    assert found.kinks.tolist() == pytest.approx([0.5], abs=1e-14)
    assert found.bends.tolist() == pytest.approx([1.0], rel=1e-12)


@pytest.mark.parametrize("gap", [1e-3, 1e-8, 1e-12])
def test_two_near_kinks_stay_two(gap):
    t = torch.tensor([0.0, 0.5, 0.5 + gap, 1.0], dtype=torch.float64)
    values = (t - 0.5).relu() + (t - 0.5 - gap).relu()
    assert affine_pieces(t, values[:, None]).count == 3


def test_the_tolerance_is_eight_errors_over_the_widths():
    """Bend b at 1/2: kept from 8 r (2 + 2) = 32 r on."""
    t, error = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([1e-6])
    for bend, count in ((33e-6, 2), (31e-6, 1)):
        assert affine_pieces(t, column(0, 0, bend / 2), error).count == count


def test_one_bending_output_suffices_and_a_large_one_does_not_hide_it():
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    small = 1e-9 * (t - 0.5).relu()
    assert affine_pieces(t, torch.stack([1e9 * t, small], 1)).count == 2


@given(
    st.integers(0, 999),
    st.floats(1e-6, 1e6),
    st.booleans(),
)
def test_scale_and_reversal(seed, scale, is_negative):
    """Counts stay under any scale of the output; reversal mirrors the breakpoints."""
    draw = torch.Generator().manual_seed(seed)
    t = points(20, seed)
    at = t[torch.randperm(20, generator=draw)[:5] + 1]
    values = (t[:, None] - at).relu() @ torch.randn(5, 2, generator=draw, dtype=torch.float64)
    plain = affine_pieces(t, values)
    scaled = affine_pieces(t, values * (-scale if is_negative else scale))
    back = affine_pieces(1 - t.flip(0), values.flip(0))
    assert plain.count == scaled.count == back.count == 6
    assert back.t.tolist() == pytest.approx((1 - plain.t.flip(0)).tolist(), abs=1e-12)
    assert back.bends.tolist() == pytest.approx(plain.bends.flip(0).tolist(), rel=1e-6)


@pytest.mark.parametrize(
    ("t", "values", "rounding", "message"),
    [
        (torch.rand(3), torch.rand(4, 1), None, r"must match.*\(3,\), \(4, 1\)\. Pass one row"),
        (torch.rand(1), torch.rand(1, 1), None, "at least 2 points"),
        (torch.rand(3), torch.rand(3), None, "must match"),
        (torch.rand(3), torch.rand(3, 2), torch.rand(3), r"\(3, 2\), \(3,\)"),
        (torch.tensor([0.0, 0.0, 1.0]), torch.rand(3, 1), None, "must increase.*drop repeated"),
        (torch.tensor([0.0, 1.0]), column(0, math.nan), None, "finite.*check the model"),
        (torch.tensor([0.0, 1.0]), column(0, 1), torch.tensor([math.inf]), "finite"),
    ],
)
def test_messages(t, values, rounding, message):
    with pytest.raises(InputError, match=message):
        affine_pieces(t, values, rounding)
