"""Faces: slopes, edges and pieces of surfaces made by hand, thin cells among them.

Holds: tests of ``secant.gauges.faces``.
May import: pytest, hypothesis, torch, ``secant``.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secant.gauges.faces import EPSILON, areas_of, edges_of, pieces_of, slopes_of


def strips(*cuts):
    """The unit square cut at x = cuts into rectangles, from left to right."""
    edges = [0.0, *cuts, 1.0]
    at = torch.tensor([[x, y] for x in edges for y in (0.0, 1.0)], dtype=torch.float64)
    loop = [n for i in range(len(edges) - 1) for n in (2 * i, 2 * i + 2, 2 * i + 3, 2 * i + 1)]
    return at, torch.tensor(loop), torch.arange(0, len(loop) + 1, 4)


def labels(at, values, loop, start, error=None):
    error = 4 * EPSILON * values.abs().amax(0) if error is None else error
    return pieces_of(slopes_of(at, values, loop, start), edges_of(loop, start)[1], error).tolist()


def test_edges_areas_and_slopes_of_strips():
    at, loop, start = strips(0.25, 0.5)
    ends, sides = edges_of(loop, start)
    assert len(ends) == 10
    assert sorted(map(tuple, sides[(sides >= 0).all(1)].tolist())) == [(0, 1), (1, 2)]
    assert areas_of(at, loop, start).tolist() == [0.25, 0.25, 0.5]
    values = torch.stack([3 * at[:, 0] - at[:, 1] + 7, at[:, 0].clamp(min=0.25)], 1)
    slope = slopes_of(at, values, loop, start).slope
    expected = torch.tensor([[[3, -1], [0, 0]], [[3, -1], [1, 0]], [[3, -1], [1, 0]]]).double()
    assert torch.allclose(slope, expected, rtol=0, atol=1e-13)


def test_neighbours_of_one_map_are_one_piece():
    at, loop, start = strips(0.2, 0.4, 0.6, 0.8)
    values = (at[:, :1] - 0.4).relu() + at[:, 1:]
    assert labels(at, values, loop, start) == [0, 0, 1, 1, 1]
    assert labels(at, 0 * values, loop, start) == [0] * 5


@pytest.mark.parametrize("width", [1e-13, 1e-14, 1e-15])
def test_a_thin_strip_does_not_join_two_maps(width):
    """A hinge beside a strip of rounding's width: the strip joins a side, the sides stay two."""
    at, loop, start = strips(0.3, 0.5, 0.5 + width, 0.7)
    values = (at[:, :1] - 0.5).relu()
    found = labels(at, values, loop, start)
    assert found[0] == found[1] != found[3] == found[4]
    assert found[2] in (found[1], found[3])


@settings(max_examples=25, deadline=None)
@given(
    angle=st.floats(0, 7), thin=st.floats(1e-12, 1.0), a=st.floats(-5, 5), b=st.floats(-5, 5),
    shift=st.floats(-100, 100),
)  # fmt: skip
def test_slopes_of_thin_turned_cells_are_right_to_what_they_claim(angle, thin, a, b, shift):
    """Off by at most eight of the spread's deviations, for values rounded to float64."""
    turn = torch.tensor(angle, dtype=torch.float64)
    axis = torch.stack([turn.cos(), turn.sin()])
    side = torch.stack([-turn.sin(), turn.cos()])
    at = torch.stack([0 * axis, axis, axis + thin * side, 0.5 * axis + thin * side]) + 0.25
    values = (a * at[:, :1] + b * at[:, 1:]) + shift
    loop, start = torch.arange(4), torch.tensor([0, 4])
    slopes = slopes_of(at, values, loop, start)
    off = slopes.slope[0, 0] - torch.tensor([a, b], dtype=torch.float64)
    error = 4 * EPSILON * (float(values.abs().max()) + abs(a) + abs(b))
    # Across and along: the deviations of the spread in these directions, as far as it has digits.
    spread = slopes.spread[0]
    for way in (axis, side):
        variance = max(float(way @ spread @ way), 4 * EPSILON * float(spread.trace()))
        allowed = 8 * error * variance**0.5
        assert abs(float(off @ way)) <= allowed + 1e-300


def test_many_cells_of_one_map_become_one_in_few_rounds():
    cuts = (torch.arange(1, 400) / 400).tolist()
    at, loop, start = strips(*cuts)
    values = torch.cat([at.sum(1, keepdim=True), (at[:, :1] - 0.5).abs()], 1)
    found = labels(at, values, loop, start)
    assert found == [0] * 200 + [1] * 200
