"""Slices against closed forms, Euler's formula, the exact line and activation patterns.

Holds: tests of ``secant.slices``, ``secant.maps.slice``, ``slice_mesh`` and ``slice_cells``.
May import: pytest, hypothesis, torch, ``secant``.
"""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from secant.errors import InputError
from secant.maps import slice_mesh
from secant.segments import pieces
from secant.slices import slice_pieces

NEAR = 1e-12
AXES = torch.eye(2, dtype=torch.float64)
ORIGIN = torch.zeros(2, dtype=torch.float64)


def of_plane(model, extent=1.0, **options):
    return slice_pieces(model, ORIGIN, *AXES, extent, **options)


def check_plane_graph(found):
    """V - E + F = 1 without the outer face, areas fill the window, all turn the same way."""
    ends, sides = found.edges
    assert len(found.at) - len(ends) + found.cells == 1
    assert (sides[:, 0] >= 0).all()
    (left, right), (low, high) = found.window
    area = (right - left) * (high - low)
    assert float(found.areas.sum()) == pytest.approx(area, rel=1e-12)
    assert (found.areas > -1e-15 * area).all()


def lines_net(weight, bias):
    layer = nn.Linear(2, len(bias)).double()
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return nn.Sequential(layer, nn.ReLU(), nn.Linear(len(bias), 3).double())


@settings(max_examples=15, deadline=None)
@given(count=st.integers(0, 12), seed=st.integers(0, 10_000))
def test_one_layer_has_one_and_lines_and_crossings(count, seed):
    """Lines w x + b = 0 that enter the window, and their crossings inside it, pair by pair."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(count, 2, generator=draw, dtype=torch.float64)
    bias = torch.randn(count, generator=draw, dtype=torch.float64)
    torch.manual_seed(seed)
    found = of_plane(lines_net(weight, bias) if count else nn.Linear(2, 3).double())
    inside = int((bias.abs() < weight.abs().sum(1)).sum())  # a corner on either side
    crossings = 0
    for i in range(count):
        for j in range(i):
            place = torch.linalg.solve(weight[[i, j]], -bias[[i, j]])
            crossings += int((place.abs() < 1).all())
    assert found.cells == found.regions == found.count == 1 + inside + crossings
    check_plane_graph(found)


def through_one_point():
    """Five lines through (0.25, 0.5), of which two are one: ten sectors less two."""
    angle = torch.tensor([0.1, 0.7, 1.4, 2.2, 0.7], dtype=torch.float64)
    weight = torch.stack([angle.cos(), angle.sin()], 1)
    return lines_net(weight, -(weight @ torch.tensor([0.25, 0.5], dtype=torch.float64)))


def test_lines_through_one_point_and_a_line_found_twice():
    found = of_plane(through_one_point())
    assert found.count == found.regions == 8
    check_plane_graph(found)


class Residual(nn.Module):
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
        return {"logits": self.head(functional.hardtanh(hidden, -2, 3).flatten(1))}


def relu_net(widths, seed=0):
    torch.manual_seed(seed)
    layers = []
    for before, after in pairwise(widths[:-1]):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(*widths[-2:])).double()


def residual_net():
    torch.manual_seed(1)
    model = Residual().double()
    for _ in range(20):
        model(torch.randn(8, 2, 4, 4, dtype=torch.float64))
    return model.eval()


CASES = {
    "mlp": (relu_net([6, 24, 24, 24, 5]), (6,), 3.0),
    "sharp": (nn.Sequential(nn.Linear(3, 9), nn.ReLU(), nn.Linear(9, 9), nn.Hardtanh()), (3,), 4.0),
    "residual": (residual_net(), (2, 4, 4), 1.5),
    "pool": (nn.Sequential(nn.MaxPool2d(3, 2, padding=1), nn.Flatten()), (1, 5, 5), 1.0),
    "maxout": (lambda x: torch.maximum(x[:, :2], x[:, 2:]).amax(1, keepdim=True), (4,), 1.0),
}


def drawn(shape, seed):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(3, *shape, generator=draw, dtype=torch.float64)


def cells_met(found, ends):
    """Pieces of the cells in whose inside the straight way between two places runs, in order."""
    begin, step = ends[0], ends[1] - ends[0]
    met = []
    for cell in range(found.cells):
        corners = found.polygon(cell)
        side = corners.roll(-1, 0) - corners
        inward = torch.stack([-side[:, 1], side[:, 0]], 1)
        level, rise = ((begin - corners) * inward).sum(1), inward @ step
        t = -level / rise
        low = max([0.0, *t[rise > 0].tolist()])
        high = min([1.0, *t[rise < 0].tolist()])
        if high - low > NEAR and (level[rise == 0] > 0).all():
            met.append((low, high, int(found.piece[cell])))
    return sorted(met)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", range(2))
def test_a_segment_meets_the_pieces_that_the_exact_line_finds(name, seed):
    model, shape, extent = CASES[name]
    plane = drawn(shape, seed)
    found = slice_pieces(model, *plane, extent)
    check_plane_graph(found)
    assert found.cells >= found.regions >= found.count
    if name in ("mlp", "sharp"):
        assert found.cells == found.regions
    draw = torch.Generator().manual_seed(seed)
    for _ in range(2):
        ends = extent * (2 * torch.rand(2, 2, generator=draw, dtype=torch.float64) - 1)
        met = cells_met(found, ends)
        assert met[0][0] == 0
        assert met[-1][1] == 1
        changes = [one[0] for before, one in pairwise(met) if before[2] != one[2]]
        start, end = found.plane.of(ends)
        assert changes == pytest.approx(pieces(model, start, end).kinks.tolist(), abs=1e-9)


@pytest.mark.parametrize("name", ["mlp", "residual", "pool"])
def test_values_and_slopes_are_the_model_s(name):
    """At random places: the model's output, and its derivative by finite differences."""
    model, shape, extent = CASES[name]
    found = slice_pieces(model, *drawn(shape, 3), extent)
    draw = torch.Generator().manual_seed(0)
    for cell in torch.randint(found.cells, (20,), generator=draw).tolist():
        corners = found.loop[found.start[cell] : found.start[cell + 1]]
        weight = torch.rand(len(corners), 1, generator=draw, dtype=torch.float64)
        weight /= weight.sum()
        place = (weight * found.at[corners]).sum(0)
        out = model(found.plane.of(place[None]))
        out = out["logits"] if isinstance(out, dict) else out
        expected = (weight * found.values[corners]).sum(0)
        assert torch.allclose(out[0], expected, rtol=0, atol=1e-11)
        if float(found.areas[cell]) > 1e-4:
            step = 1e-6 * AXES
            ahead = model(found.plane.of(place + step))
            ahead = ahead["logits"] if isinstance(ahead, dict) else ahead
            slope = (ahead - out).T / 1e-6
            assert torch.allclose(slope, found.slopes[cell], rtol=1e-5, atol=1e-5)


def test_a_grid_finds_no_pattern_that_the_cells_lack():
    """Every pattern sampled on a dense grid is that of the cell which holds the sample."""
    model, shape, extent = CASES["mlp"]
    found = slice_pieces(model, *drawn(shape, 5), extent)

    def patterns(places):
        x, on = found.plane.of(places), []
        for layer in model:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                on.append(x > 0)
        return torch.cat(on, 1)

    middles = torch.stack([found.polygon(c).mean(0) for c in range(found.cells)])
    known = {bytes(row) for row in patterns(middles).numpy()}
    assert len(known) == found.cells
    axis = extent * torch.linspace(-1, 1, 150, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    sampled = {bytes(row) for row in patterns(grid).numpy()}
    assert sampled <= known
    assert len(sampled) > 50


def test_pieces_of_one_map_are_one_although_units_decide():
    """|x| + |y| off the axes: a doubled unit and one that cancels add regions, no pieces."""
    weight = torch.tensor([[1, 0], [-1, 0], [0, 1], [0, -1], [2, 1]], dtype=torch.float64)
    model = lines_net(weight, torch.tensor([0.0, 0, 0, 0, 0.5], dtype=torch.float64))
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[1.0, 1, 1, 1, 0]] * 3))
    found = of_plane(model)
    assert found.count == 4
    assert found.regions == 4 + 1 + 2  # the fifth line enters once and crosses both axes
    check_plane_graph(found)


def test_max_of_many_is_its_upper_envelope():
    """The maximum of planes tangent to a bowl: the cells are those of a Voronoi diagram."""
    centre = drawn((6, 2), 0)[0] / 2

    def bowl(x):
        return (2 * x @ centre.T - centre.square().sum(1)).amax(1, keepdim=True)

    found = of_plane(bowl)
    axis = torch.linspace(-1, 1, 400, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    nearest = torch.cdist(grid, centre).argmin(1)
    assert found.count == len(nearest.unique())
    areas = torch.zeros(found.count, dtype=torch.float64)
    areas.index_add_(0, found.piece, found.areas)
    shares = torch.bincount(nearest).double() * 4 / len(grid)
    assert sorted(areas.tolist()) == pytest.approx(sorted(shares[shares > 0].tolist()), abs=0.02)
    check_plane_graph(found)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_small_integer_nets_keep_a_plane_graph(seed):
    """Weights in -1..1: lines that coincide, meet in one point or run along edges are common."""
    draw = torch.Generator().manual_seed(seed)

    def whole(*shape):
        return torch.randint(-1, 2, shape, generator=draw).double()

    weights = [(whole(5, 2), whole(5)), (whole(5, 5), whole(5)), (whole(2, 5), whole(2))]

    def model(x):
        for weight, bias in weights[:-1]:
            x = functional.relu(functional.linear(x, weight, bias))
        return functional.linear(x, *weights[-1])

    found = of_plane(model, 2.0)
    check_plane_graph(found)
    # Lines lie at multiples of halves and thirds here; no cell is thinner than rounding.
    assert float(found.areas.min()) > 1e-6
    for _ in range(3):
        ends = 4 * torch.rand(2, 2, generator=draw, dtype=torch.float64) - 2
        met = [one[2] for one in cells_met(found, ends)]
        assert sum(a != b for a, b in pairwise(met)) == (pieces(model, *ends).count - 1)


def test_the_window_may_lie_anywhere_and_turn():
    """The same piece of the plane in other coordinates has the same cells."""
    model = CASES["mlp"][0]
    origin, u, v = drawn((6,), 1)
    whole = slice_pieces(model, origin, u, v, ((0.0, 1.0), (-1.0, 2.0)))
    shifted = slice_pieces(model, origin + 0.5 * u, -v, u / 2, ((-2.0, 1.0), (-1.0, 1.0)))
    assert shifted.count == whole.count
    assert shifted.areas.sort().values.tolist() == pytest.approx(
        (2 * whole.areas).sort().values.tolist(), abs=1e-10
    )


def test_a_constant_output_is_one_piece():
    found = of_plane(lambda x: torch.ones(len(x), 2, dtype=torch.float64))
    assert found.cells == found.count == 1
    assert found.units == 0


def test_too_many_cells_or_numbers_are_refused(monkeypatch):
    model, shape, extent = CASES["mlp"]
    plane = drawn(shape, 0)
    with pytest.raises(InputError, match=r"at most 10 cells.*Make the window smaller"):
        slice_pieces(model, *plane, extent, limit=10)
    monkeypatch.setattr(slice_mesh, "MOST_ELEMENTS", 500)
    with pytest.raises(InputError, match=r"500 numbers of one layer.*Make the window smaller"):
        slice_pieces(model, *plane, extent)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (functional.gelu, r"aten\.gelu\.default is not"),
        (lambda x: x + torch.rand(1, dtype=torch.float64), r"off by .* Look for randomness"),
        (lambda x: x.relu().sum().view(1, 1), r"one output an input; \d+ inputs gave \(1, 1\)"),
        (lambda x: (x + 5).relu() * 1e200 * 1e200, r"finite in the window; it gives nan"),
        (nn.Linear(3, 3), r"it refuses: mat1 and mat2"),
    ],
)
def test_what_cannot_be_followed_is_refused(model, message):
    with pytest.raises(InputError, match=message):
        of_plane(model)


@pytest.mark.parametrize(
    ("plane", "extent", "message"),
    [
        ((torch.zeros(2), torch.zeros(2), torch.ones(3)), 1.0, r"one shape; got origin"),
        ((torch.zeros(2, dtype=torch.int64), *torch.eye(2)), 1.0, r"origin torch\.int64"),
        ((torch.zeros(2), torch.ones(2), 2 * torch.ones(2)), 1.0, r"span a plane"),
        ((torch.zeros(2), torch.ones(2), math.nan * torch.ones(2)), 1.0, r"finite and the dir"),
        ((torch.zeros(1), torch.ones(1), torch.ones(1)), 1.0, r"of two numbers or more"),
        ((torch.zeros(2), *torch.eye(2)), ((0.0, 0.0), (0.0, 1.0)), r"finite and grow; got"),
        ((torch.zeros(2), *torch.eye(2)), math.inf, r"finite and grow"),
    ],
)
def test_what_is_no_window(plane, extent, message):
    with pytest.raises(InputError, match=message):
        slice_pieces(torch.relu, *plane, extent)
