"""Statistics of channels along a path: BatchNorm's and REPAIR's, against a direct computation.

Holds: tests of ``secant.uses.channels``.
May import: pytest, torch, ``secant``.
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import secant
from secant.errors import InputError
from secant.load.data import Units
from secant.load.demo import digits, digits_split
from secant.load.feed import Feed
from secant.load.models import load_model
from secant.uses.channels import BATCH
from secant.uses.walks import Walker

UNITS = 200
"""One batch of statistics, so that what is folded in is what was measured."""


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip


def plain():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip


def trained(build, seed):
    torch.manual_seed(seed)
    model, (x, y), own = build(), digits(), digits_split()[0]
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(200):
        batch = own[torch.randint(len(own), (64,))]
        optimiser.zero_grad()
        functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimiser.step()
    return model.eval()


@pytest.fixture(scope="module")
def norms():
    return trained(cnn, 0), trained(cnn, 1)


@pytest.fixture(scope="module")
def plains():
    return trained(plain, 0), trained(plain, 1)


@pytest.fixture(scope="module")
def units():
    x, y = digits()
    kept = digits_split()[1][:UNITS]
    assert UNITS <= BATCH
    return Units("digits", tensor=x[kept], labels=y[kept])


def walker_of(pair, units, *, has_repair=False):
    loaded = [load_model(one) for one in pair]
    feed = Feed(loaded[0], units, groups=10, batch_size=50, seed=0)
    walker = Walker(feed, has_repair=has_repair)
    return walker, walker.line(*(one.model for one in loaded))


def between(a, b, t, x):
    """The model between; a momentum of 1 makes torch keep the statistics of one training pass."""
    middle = copy.deepcopy(a)
    with torch.no_grad():
        for one, other in zip(middle.parameters(), b.parameters(), strict=True):
            one.lerp_(other, t)
        for part in middle.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = 1.0
        middle.train()(x)
    return middle.eval()


def test_statistics_are_those_of_the_point(norms, units):
    walker, line = walker_of(norms, units)
    for stop in walker.stops(line, (0.0, 0.3, 1.0)):
        walker.put(stop)
        with torch.no_grad():
            found = walker.model(units.tensor)
            expected = between(*norms, stop.t, units.tensor)(units.tensor)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_statistics_of_the_point_lower_the_barrier(norms, units):
    walker, line = walker_of(norms, units)
    ts = [place / 4 for place in range(5)]
    anew, stored = (walker.walk(how(line, ts)).loss.sum(1) for how in (walker.stops, walker.bare))
    assert anew[2] < stored[2] - 0.3 * UNITS
    assert abs(anew[0] - stored[0]) < 0.1 * UNITS, "the ends' own statistics fit these units too"


def test_the_report_says_so_and_gives_the_ends_as_stored(norms, units):
    data = [(units.tensor, units.labels)]
    report = secant.compare(*norms, data, batch_size=50, steps=2, has_controls=False)
    (model,) = report.models
    assert any("2 BatchNorm layers were estimated anew" in note for note in model.notes)
    stored = {
        one.details["t"]: one.value
        for one in model.readings
        if one.variant == "cross-entropy, statistics as stored" and one.gauge == "loss"
    }
    with torch.no_grad():
        ends = [functional.cross_entropy(one(units.tensor), units.labels).item() for one in norms]
    assert [stored[0.0], stored[1.0]] == pytest.approx(ends, rel=1e-5)


def test_with_statistics_anew_alignment_takes_most_of_the_barrier_away(norms, units):
    """Channels through BatchNorm, as arXiv:2211.08403 aligns them."""
    data = [(units.tensor, units.labels)]
    barriers = [
        next(one for one in report.models[0].readings if one.gauge == "barrier")
        for align in (False, True)
        for report in [secant.compare(*norms, data, align=align, has_controls=False)]
    ]
    assert barriers[0].interval[0] > 2 * barriers[1].interval[1]


def outputs_of(model, layers, x):
    found = {}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: found.__setitem__(name, output.double())
        )
        for name in layers
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


def statistics(output):
    rows = output.movedim(1, -1).flatten(0, -2)
    return rows.mean(0), rows.std(0, unbiased=False)


def test_repair_gives_each_channel_what_lies_between_the_ends(plains, units):
    walker, line = walker_of(plains, units, has_repair=True)
    layers = ["0", "2", "5"]
    assert list(walker.channels.layers) == layers, "the last gives the output"
    ends = [outputs_of(model, layers, units.tensor) for model in plains]
    for stop in walker.stops(line, (0.0, 0.25, 0.5, 1.0)):
        walker.put(stop)
        found = outputs_of(walker.model, layers, units.tensor)
        for name in layers:
            goal = [
                torch.lerp(*pair, stop.t)
                for pair in zip(*(statistics(end[name]) for end in ends), strict=True)
            ]
            torch.testing.assert_close(
                list(statistics(found[name])), goal, rtol=1e-4, atol=1e-4,
            )  # fmt: skip


def test_repair_leaves_the_ends_and_lowers_the_barrier(plains, units):
    walker, line = walker_of(plains, units, has_repair=True)
    ts = (0.0, 0.5, 1.0)
    repaired = walker.walk(walker.stops(line, ts)).loss.sum(1) / UNITS
    bare = walker.walk(walker.bare(line, ts)).loss.sum(1) / UNITS
    torch.testing.assert_close(repaired[[0, 2]], bare[[0, 2]], rtol=1e-3, atol=1e-4)
    assert repaired[1] < 0.7 * bare[1]


def test_repair_leaves_a_shared_layer_alone(units):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.shared = nn.Linear(64, 64), nn.Linear(64, 64)
            self.last = nn.Linear(64, 10)

        def forward(self, x):
            return self.last(self.shared(self.shared(self.first(x.flatten(1)).relu())))

    walker, _ = walker_of((Twice(), Twice()), units, has_repair=True)
    assert list(walker.channels.layers) == ["first"]
    only = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(InputError, match="REPAIR needs linear layers"):
        walker_of((only, only), units, has_repair=True)
