"""Gating: counts known by hand, intervals against scipy, the table, the page and the command.

Holds: tests of ``secant.uses.gating``, ``secant.report.gating``, ``gating_page``, ``slice_svg``.
May import: pytest, torch, scipy, rich, ``secant``.
"""

import json
import math
import re
from html.parser import HTMLParser

import pytest
import torch
from rich.console import Console
from scipy.stats import binomtest
from torch import nn

import secant
from secant.errors import InputError
from secant.report import slice_svg
from secant.report.gating import gating_words, render_gating
from secant.report.gating_page import render_page
from secant.report.slice_svg import FLAT, HUES, SIZE, classes, directions, slice_picture
from secant.slices import slice_pieces
from secant.uses import gating as module
from secant.uses.gating import gating, median_interval, unit_interval


def by_hand(*biases):
    """One input to units x + b, then a sum: unit i is on where x > -b."""
    first, last = nn.Linear(2, len(biases)).double(), nn.Linear(len(biases), 1).double()
    with torch.no_grad():
        first.weight.zero_()
        first.weight[:, 0] = 1
        first.bias.copy_(torch.tensor(biases))
    return nn.Sequential(first, nn.ReLU(), last).eval()


def ramp(count=8):
    """x = 0, 1, 2, ... and a second coordinate that makes no line of them."""
    x = torch.arange(count, dtype=torch.float64)
    return torch.stack([x, (x * 7) % 5], 1)


def test_units_on_always_never_and_sometimes_by_hand():
    """b = 1: on for all of 0..7; -9: for none; -3.5: for 4..7."""
    found = gating(by_hand(1.0, -9.0, -3.5), ramp(), has_control=False)
    (layer,) = found.trained.layers
    assert (layer.name, layer.kind, layer.units) == ("1 relu", "units", 3)
    assert (layer.always, layer.never, layer.sometimes) == (1, 1, 1)
    assert layer.on == [8, 0, 4]
    assert layer.share == pytest.approx(0.5)  # one or two of three
    assert set(layer.intervals) == {"8", "0", "4"}
    # Boundaries at x = -1, 9 and 3.5: the distance from each x to the nearest of them.
    radii = sorted(min(abs(x - edge) for edge in (-1, 9, 3.5)) for x in range(8))
    assert found.trained.radius == pytest.approx((radii[3] + radii[4]) / 2)
    assert found.trained.nearest == {"1 relu": 8}
    assert found.fresh is None


def test_pieces_lie_on_segments_between_pairs_of_the_sample():
    """The hinge at 3.5 is crossed by a pair with one end on either side, and by no other."""
    found = gating(by_hand(1.0, -9.0, -3.5), ramp(), has_control=False, seed=3)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(3)).view(4, 2)
    crossing = ((order > 3.5).sum(1) == 1).double()
    assert found.trained.pieces == pytest.approx(1 + float(crossing.mean()))
    assert found.step == pytest.approx(
        float((ramp()[order[:, 0]] - ramp()[order[:, 1]]).norm(dim=1).median())
    )


def test_windows_count_those_that_always_choose_the_same():
    x = torch.tensor([[[5.0, 1, 2, 3]], [[6, 2, 4, 1]], [[7, 0, 1, 2]]])
    (layer,) = gating(nn.MaxPool1d(2), x, has_control=False).trained.layers
    assert (layer.kind, layer.units, layer.always, layer.sometimes) == ("windows", 2, 1, 1)
    assert layer.share is None


@pytest.mark.parametrize(("count", "rows"), [(0, 10), (3, 10), (10, 10), (150, 512)])
def test_the_interval_of_a_share_is_clopper_and_pearson_s(count, rows):
    found = binomtest(count, rows).proportion_ci(method="exact")
    assert unit_interval(count, rows) == pytest.approx((found.low, found.high), abs=1e-12)


def test_the_interval_of_a_median_covers():
    """Of 2,000 samples of a skewed law at least 95 %, less three standard errors, hold it."""
    draw = torch.Generator().manual_seed(0)
    samples = -torch.rand(2000, 31, generator=draw).log()
    held = 0
    for sample in samples.tolist():
        low, high = median_interval(sample)
        held += low <= math.log(2) <= high
    assert held / 2000 > 0.95 - 3 * math.sqrt(0.05 * 0.95 / 2000)
    assert median_interval([1.0, 2.0, 3.0, 4.0, 5.0]) is None


def small():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3)
    )


def cloud(rows=40):
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(1))


def test_the_slice_goes_through_three_units_and_the_control_shares_its_window():
    found = gating(small(), cloud(), has_slice=True)
    trained, fresh = found.drawn["trained"], found.drawn["fresh"]
    assert trained.window == fresh.window
    for point in found.points:
        place = torch.tensor(point["at"], dtype=torch.float64)
        inside = trained.plane.of(place[None])[0]
        assert torch.allclose(inside, cloud()[point["row"]].double(), rtol=0, atol=1e-12)
        (left, right), (low, high) = trained.window
        assert left < place[0] < right
        assert low < place[1] < high
    assert found.trained.slice["pieces"] == trained.count > 5
    assert float(trained.plane.u @ trained.plane.v) == pytest.approx(0, abs=1e-12)
    assert found.notes == []


def test_a_slice_with_too_many_pieces_is_halved_about_the_first_point(monkeypatch):
    whole = gating(small(), cloud(), has_slice=True, has_control=False)
    monkeypatch.setattr(module, "ON_DIAGONAL", 4)
    found = gating(small(), cloud(), has_slice=True, has_control=False)
    (left, right), _ = found.drawn["trained"].window
    full = whole.drawn["trained"].window[0][1] - whole.drawn["trained"].window[0][0]
    halvings = math.log2(full / (right - left))
    assert halvings == pytest.approx(round(halvings))
    assert halvings >= 1
    assert (left + right) / 2 == pytest.approx(0, abs=1e-12)  # the first point is the origin
    assert f"1/{2 ** round(halvings)} as wide" in found.notes[0]


def painted(svg):
    """The area of all polygons of a picture, by the shoelace formula, and how many there are."""
    area, count = 0.0, 0
    for path in re.findall(r'<path class="cell[^>]* d="([^"]*)"', svg):
        for one in path.split("z"):
            if not one:
                continue
            start, steps = one[1:].split("l")
            numbers = [int(n) for n in re.findall(r"-?\d+", steps)]
            x, y = (int(n) for n in re.findall(r"-?\d+", start))
            corners = [(x, y)]
            for dx, dy in zip(numbers[::2], numbers[1::2], strict=True):
                x, y = x + dx, y + dy
                corners.append((x, y))
            twice = sum(
                a * d - b * c
                for (a, b), (c, d) in zip(corners, corners[1:] + corners[:1], strict=True)
            )
            area += abs(twice) / 2
            count += 1
    return area, count


def test_the_picture_paints_the_whole_window_once():
    plane = torch.randn(3, 3, generator=torch.Generator().manual_seed(2)).double()
    cut = slice_pieces(small(), *plane, 2.0)
    svg = slice_picture(cut, directions(cut), {}, [], "a < b")
    area, count = painted(svg)
    # Corners are rounded alike for all cells that share them.
    assert area == pytest.approx(SIZE**2, rel=1e-9)
    assert 0.9 * cut.cells <= count <= cut.cells
    assert "a &lt; b" in svg


def test_colours_are_the_direction_of_the_slope_and_the_largest_output():
    """f = (x + y)+ : the output moves along (1, 1), an eighth of a turn; else nothing moves."""
    eye = torch.eye(2).double()
    cut = slice_pieces(lambda x: x.sum(1, keepdim=True).relu(), torch.zeros(2), *eye)
    by_area = dict(zip(directions(cut), cut.areas.tolist(), strict=True))
    assert by_area == pytest.approx({FLAT: 2, HUES // 4: 2})
    both = slice_pieces(lambda x: torch.cat([x.relu(), 0 * x + 0.1], 1), torch.zeros(2), *eye)
    # The larger of x+ and y+ where one is above 0.1 in the middle of its quadrant.
    assert sorted(classes(both))[-1] == 2
    assert set(classes(both)) <= {0, 1, 2}


@pytest.fixture(scope="module")
def found():
    return gating(small(), cloud(), has_slice=True)


def test_the_page_is_whole_safe_and_small(found):
    page = render_page(found)
    HTMLParser().feed(page)
    assert page.count('<svg class="slice"') == 4
    assert "<script" not in page
    assert not re.search(r"https?://", page)
    assert "default-src 'none'" in page
    for text in (
        "1 relu",
        "3 relu",
        gating_words(found)[:30],
        f"{found.trained.slice['pieces']:,}",
    ):
        assert text in page
    assert len(page.encode()) < 6e6


def test_names_are_escaped():
    class Sly(nn.ReLU):
        pass

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module("<img src=x>", Sly())

        def forward(self, x):
            return next(iter(self.children()))(x)

    found = gating(Outer().eval(), cloud(), has_slice=True, has_control=False)
    page = render_page(found)
    assert "<img" not in page
    assert "&lt;img src=x&gt; relu" in page


def test_a_page_of_the_most_cells_stays_small(monkeypatch):
    """By its bytes a cell: with edges where they are drawn, and without at the largest slice."""
    torch.manual_seed(0)
    layers = []
    for into in (16, 120, 120):
        layers += [nn.Linear(into, 120), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(120, 4)).eval()
    monkeypatch.setattr(module, "ON_DIAGONAL", 10_000)
    found = gating(model, 4 * torch.randn(12, 16), has_slice=True)
    cells = sum(cut.cells for cut in found.drawn.values())
    assert cells > 3_000
    with_edges = len(render_page(found).encode()) / cells
    # A plane graph whose corners are crossings has two edges a cell.
    assert with_edges * 2 * slice_svg.MOST_EDGES / 2 < 6e6
    monkeypatch.setattr(slice_svg, "MOST_EDGES", 0)
    assert len(render_page(found).encode()) / cells * 2 * module.MOST_CELLS < 6e6


def test_table_words_and_json(found, tmp_path):
    console = Console(width=110, record=True, file=(tmp_path / "table").open("w"))
    for table in render_gating(found):
        console.print(table)
    text = console.export_text()
    layer, fresh = found.trained.layers[0], found.fresh.layers[0]
    assert f"{layer.always} ({fresh.always})" in text
    assert f"{found.trained.slice['pieces']:,}" in text
    deciding = sum(one.sometimes for one in found.trained.layers)
    assert f"{deciding} of 24 units decide" in gating_words(found)
    found.save(tmp_path / "out", render_page(found))
    told = json.loads((tmp_path / "out" / "gating.json").read_text())
    assert told["trained"]["layers"][0]["on"] == layer.on
    assert told["fresh"]["slice"]["pieces"] == found.fresh.slice["pieces"]
    assert (tmp_path / "out" / "gating.html").stat().st_size > 10_000


def test_a_linear_model_decides_nothing():
    found = gating(nn.Linear(3, 2).eval(), cloud(), has_slice=True)
    assert "no unit that can kink" in gating_words(found)
    assert found.trained.radius is None
    assert found.trained.pieces == 1
    assert found.trained.slice["pieces"] == 1
    assert "infinity" not in json.dumps(found.as_dict(), allow_nan=False)
    assert "one affine map" in render_page(found)
    assert len(render_gating(found)) == 1


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (nn.GELU(), cloud(), r"aten\.gelu\.default is not"),
        (nn.ReLU(), torch.zeros(5, 2), r"at least 3 distinct units"),
        (nn.ReLU(), torch.arange(12).view(6, 2), r"got torch\.int64"),
        (nn.ReLU(), torch.arange(5).float()[:, None] * torch.ones(5, 2), r"lie on no line"),
    ],
)
def test_what_cannot_be_gated(model, data, message):
    with pytest.raises(InputError, match=message):
        gating(model, data, has_slice=True)


def test_texts_are_refused(tmp_path):
    (tmp_path / "x.txt").write_text("one\ntwo\nthree\n")
    with pytest.raises(InputError, match=r"tensors of floats.*Give it \.npy"):
        gating(nn.ReLU(), str(tmp_path / "x.txt"))


def test_without_fresh_weights_a_note_says_why():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.eye(3))

        def forward(self, x):
            return (x @ self.weight).relu()

    found = secant.gating(Own().eval(), cloud())
    assert found.fresh is None
    assert "No fresh weights: parameter 'weight'" in found.notes[0]
