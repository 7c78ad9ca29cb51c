"""Experiments: closed forms through real modules, masks, batches, seeds, and the demo nets.

Holds: tests of ``secant.experiments``.
May import: pytest, torch, ``secant``.
"""

import random

import pytest
import torch
from torch import nn

from secant.errors import InputError
from secant.experiments import (
    CURVES,
    FRACTIONS,
    RANDOM_RHOS,
    RHOS,
    SUM_RHOS,
    experiment,
    experiment_sums,
)
from secant.load.data import load_data
from secant.load.feed import Feed
from secant.load.models import load_model
from secant.maps.sites import find_sites
from secant.trials import Design, draw_sample, features_at
from toy_tokens import Apply, Digits, TokenNet, feed_of

DESIGN = Design(units=20, batch_size=6)


def net_of(function):
    return nn.Sequential(Apply(function))


def points(count=60, width=4, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def read(net, x, sites=("0",), design=DESIGN, **kwargs):
    readings, _ = experiment(net, feed_of(net, x, **kwargs), features_at(sites), design)
    return readings


def curve(readings, gauge, variant="raw", direction=None, site="0"):
    return {
        reading.details.get("t", reading.details.get("rho")): reading.value
        for reading in readings
        if (reading.gauge, reading.variant, reading.site) == (gauge, variant, site)
        and (direction is None or reading.details["direction"] == direction)
    }


def radii(readings, site="0"):
    return [r for r in readings if r.variant.startswith("radius") and r.site == site]


def steps_of(x, feed):
    """Starts, chords and the two data steps of the sample, by its definition."""
    sample = draw_sample(feed, DESIGN)
    x = x.double()
    start = x[[member.unit for member in sample]]
    first, second = (x[[member.partners[i] for member in sample]] - start for i in (0, 1))
    lengths = first.norm(dim=1)
    step = lengths.sort().values[len(lengths) // 2 - 1 : len(lengths) // 2 + 1].mean()
    scaled = [step * part / part.norm(dim=1, keepdim=True) for part in (first, second)]
    return start, first, *scaled


def test_a_square_has_its_known_curves():
    """F(x) = x², entry by entry: bends, second differences and cross terms in closed form."""
    x = points()
    net = net_of(torch.square)
    readings = read(net, x)
    start, chord, a, b = steps_of(x, feed_of(net, x))
    end = start + chord

    def ratio(gap, *lengths):
        return (gap.norm() / torch.stack([part.norm() for part in lengths]).norm()).item()

    for t in FRACTIONS:
        assert curve(readings, "chord")[t] == pytest.approx(
            ratio(chord**2, end**2 - start**2), rel=1e-9
        )
        assert curve(readings, "chord", "beyond")[t] == pytest.approx(
            ratio(chord**2, end**2 - start**2 - chord), rel=1e-9
        )
    for rho in RHOS:
        change = 2 * start * rho * a + (rho * a) ** 2
        for variant, less in (("raw", 0), ("beyond", rho * a)):
            got = curve(readings, "tangent", variant, "data")[rho]
            assert got == pytest.approx(ratio((rho * a) ** 2, change - less), rel=1e-6)
    for rho in SUM_RHOS:
        changes = [2 * start * rho * u + (rho * u) ** 2 for u in (a, b)]
        cross = 2 * rho * a * rho * b
        assert curve(readings, "sum")[rho] == pytest.approx(ratio(cross, *changes), rel=1e-7)
        assert curve(readings, "sum", "beyond")[rho] == pytest.approx(
            ratio(cross, changes[0] - rho * a, changes[1] - rho * b), rel=1e-7
        )
        second = 2 * (rho * a) ** 2
        assert curve(readings, "homogeneity")[rho] == pytest.approx(
            ratio(second, changes[0]), rel=1e-7
        )
        assert curve(readings, "homogeneity", "beyond")[rho] == pytest.approx(
            ratio(second, changes[0] - rho * a), rel=1e-7
        )


def test_the_random_tangent_of_a_square_has_isotropic_steps():
    """At x = 0 the change is h², the tangent 0: the reading is 1 along any direction."""
    x = points()
    readings = read(net_of(lambda x: (x * 0 + x).square() * 1.0), x)
    values = curve(readings, "tangent", direction="random")
    assert list(values) == list(RANDOM_RHOS)
    assert values[0.01] != pytest.approx(curve(readings, "tangent", direction="data")[0.01])
    # ‖h²‖² / ‖2xh‖² for h isotropic of length s in d = 4: s⁴ 3/(d + 2) over 4 s²‖x‖²/d.
    step = next(r.details["step"] for r in readings)
    mean_square = points().double().square().sum(1).mean()
    expected = 0.01 * step * (3 / 6 / mean_square) ** 0.5
    assert values[0.01] == pytest.approx(expected.item(), rel=0.3)


def test_an_affine_map_reads_zero_and_its_radius_is_censored():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 4))
    readings = read(net, points())
    values = [r for r in readings if not r.variant.startswith("radius")]
    assert {r.value for r in values} == {0.0}
    assert {r.interval for r in values} == {(0.0, 0.0)}
    assert all(r.details["below_floor"] for r in values)
    assert all(0 < r.details["floor"] < 1e-9 for r in values)
    assert len(radii(readings)) == 6
    for found in radii(readings):
        assert found.value is None
        assert found.details["censored"] == "past the grid"
        assert found.details["upper"] is None
    assert not any(r.warnings for r in readings)


def test_in_float32_an_affine_map_still_reads_zero_with_a_higher_floor():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 4))
    readings = read(net, points(), design=Design(20, 6, torch.float32))
    floors = [r.details["floor"] for r in readings if r.gauge == "tangent" and "floor" in r.details]
    assert 1e-4 < max(floors) < 1
    assert {r.value for r in readings if r.gauge == "chord"} == {0.0}


def test_a_relu_at_its_kink_is_seen_by_homogeneity_and_sum():
    """Points at ±1 and steps across 0; and homogeneity of |x| from 0 would be 2."""
    readings = read(net_of(torch.relu), points())
    assert curve(readings, "homogeneity")[1.0] > 0.3
    assert curve(readings, "sum")[1.0] > 0.1
    tangent = curve(readings, "tangent", direction="data")
    assert tangent[0.001] < tangent[0.1] < tangent[1.0]
    assert all(r.value is not None for r in radii(readings) if r.variant == "radius")


def test_a_residual_flatters_raw_but_not_beyond():
    """x + f(x): `beyond` is the reading of f itself, whatever the residual's share."""
    x = points()
    alone = read(net_of(torch.sin), x)
    for share in (1.0, 0.01):
        joined = read(net_of(lambda x, share=share: x + share * torch.sin(x)), x)
        for gauge, at in (("chord", 0.5), ("tangent", 0.5), ("sum", 0.5), ("homogeneity", 0.5)):
            expected = curve(alone, gauge)[at]
            assert curve(joined, gauge, "beyond")[at] == pytest.approx(expected, rel=1e-6)
            if share == 0.01:
                assert curve(joined, gauge)[at] < 0.05 * expected


def test_a_map_that_does_not_change_has_no_value():
    constant = read(net_of(lambda x: 0 * x + 3), points())
    assert {r.value for r in constant if r.variant == "raw"} == {None}
    assert all(r.warnings for r in constant if r.variant == "raw")
    identity = read(net_of(lambda x: 1 * x), points())
    assert {r.value for r in identity if r.variant == "raw"} == {0.0}
    beyond = [r for r in identity if r.variant == "beyond"]
    assert {r.value for r in beyond} == {None}
    assert "beyond the residual" in beyond[0].warnings[0]


def test_values_that_are_not_finite_are_no_number():
    readings = read(net_of(lambda x: torch.log(x - 100)), points())
    assert {r.value for r in readings} == {None}
    assert {r.interval for r in readings} == {None}


TEXTS = ["".join(random.Random(i).choices("0123456789", k=1 + i % 7)) for i in range(90)]


def read_texts(block, side="right", batch_size=6, texts=TEXTS, seed=0):
    net = TokenNet(block)
    design = Design(units=30, batch_size=batch_size, seed=seed)
    return read(net, texts, ["block"], design, tokenizer=Digits(side))


def numbers(reading):
    """Value and interval where they exist; what does not exist must not exist in the other."""
    found = [reading.value, *(reading.interval or (None, None))]
    return [number for number in found if number is not None]


def assert_same(left, right, rel=1e-6):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert (one.site, one.gauge, one.variant) == (other.site, other.gauge, other.variant)
        assert one.samples == other.samples
        for mine, its in zip(numbers(one), numbers(other), strict=True):
            assert mine == pytest.approx(its, rel=rel, abs=1e-9)
        assert one.details["step"] == pytest.approx(other.details["step"], rel=1e-12)


def test_padding_never_counts_left_or_right_in_any_batch():
    """NaN embeddings at padded positions; position-wise, so that the block does not mix them."""
    readings = read_texts(Apply(torch.sin))
    assert {r.samples["rows"] for r in readings} == {
        sum(len(TEXTS[m.unit]) for m in draw_sample(
            feed_of(TokenNet(Apply(torch.sin)), TEXTS, tokenizer=Digits()), Design(units=30))
        )
    }  # fmt: skip
    assert all(r.value is not None for r in readings if r.variant in {"raw", "beyond"})
    for side, size in (("left", 6), ("right", 1), ("left", 30)):
        assert_same(readings, read_texts(Apply(torch.sin), side, size))


def test_the_inputs_of_a_token_model_are_its_embeddings():
    readings = read_texts(Apply(torch.square))
    block = [r for r in readings if r.site == "block"]
    whole = [r for r in readings if r.site == "(model)"]
    assert {r.variable for r in block} == {"features"}
    assert {r.variable for r in whole} == {"inputs"}
    # Here the block is the whole model, so only the random directions differ.
    for gauge in ("chord", "sum", "homogeneity"):
        assert curve(block, gauge, site="block") == curve(whole, gauge, site="(model)")


def test_the_same_seed_gives_the_same_readings_and_another_does_not():
    first, again = (read_texts(Apply(torch.sin)) for _ in range(2))
    assert first == again
    other = read_texts(Apply(torch.sin), seed=1)
    assert curve(first, "chord", site="block") != curve(other, "chord", site="block")


def test_the_order_of_the_data_does_not_matter():
    reverse = read_texts(Apply(torch.sin), texts=TEXTS[::-1])
    assert_same(read_texts(Apply(torch.sin)), reverse, rel=1e-9)


def test_the_model_is_left_as_it_was():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).half().train()
    net[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    readings = read(net, points(), ["0", "1"])
    assert {r.value for r in readings if r.gauge == "chord"} == {0.0}
    assert net.training
    assert [p.requires_grad for p in net.parameters()] == [False, True, True, True]
    assert all(value.equal(before[name]) for name, value in net.state_dict().items())
    assert {p.dtype for p in net.parameters()} == {torch.float16}
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())


@pytest.mark.parametrize(
    ("gauges", "evaluations", "derivatives"),
    [
        (CURVES, 33, 2),
        (("chord",), 7, 1),
        (("tangent",), 15, 2),
        (("sum",), 13, 1),
        (("homogeneity",), 9, 1),
        (("sum", "homogeneity", "chord"), 23, 1),
    ],
)
def test_the_cost_is_what_was_evaluated(gauges, evaluations, derivatives):
    """Counted by hand: the points of each curve, those that curves share, and one for the noise."""
    calls = []

    def counted(x):
        calls.append(len(x))
        return x.sin()

    net, told = net_of(counted), []
    feed = feed_of(net, points())
    readings, cost = experiment(
        net, feed, features_at(["0"]), DESIGN, lambda *done: told.append(done), gauges
    )
    assert cost["experiment_evaluations"] == 2 * evaluations
    assert cost["experiment_derivatives"] == 2 * derivatives
    assert cost["experiment_forwards"] == 5
    # The site is the whole model here: two maps, their evaluations and derivatives, and five.
    assert sum(calls) / 20 == 2 * (evaluations + derivatives) + 5
    assert told[-1] == (40, 40)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    # Each point and radius raw and beyond: tangent has radii along two directions, sum along one.
    counts = {"chord": 5, "tangent": 8 + 6 + 2, "sum": 4 + 1, "homogeneity": 4}
    assert len(readings) == 2 * 2 * sum(counts[gauge] for gauge in gauges)


@pytest.mark.parametrize("name", ["demo:transformer", "demo:cnn"])
def test_one_gauge_alone_has_the_bits_that_it_has_beside_the_others(name):
    loaded, units = load_model(name), load_data("demo:digits", rows=60)
    feed = Feed(loaded, units, groups=10, batch_size=16, seed=0)
    sites = find_sites(loaded.model, None)

    def readings(gauges):
        return experiment(loaded.model, feed, features_at(sites), DESIGN, gauges=gauges)[0]

    whole = readings(CURVES)
    for gauges in [(gauge,) for gauge in CURVES] + [("homogeneity", "tangent")]:
        assert readings(gauges) == [one for one in whole if one.gauge in gauges]


def test_a_site_with_state_is_refused():
    counter = iter(range(10**6))
    with pytest.raises(InputError, match=r"'0'.*same output when called again.*keeps state"):
        read(net_of(lambda x: x + next(counter)), points())


def test_a_model_that_fails_in_float64_is_an_input_error():
    net = net_of(lambda x: x @ torch.eye(4))
    with pytest.raises(InputError, match=r"in torch.float64, in which curves.*same dtype"):
        read(net, points())
    assert read(net, points(), design=Design(20, 6, torch.float32))


@pytest.mark.parametrize("function", [lambda x: x.sum(), lambda x: x[:-1]])
def test_an_output_that_does_not_begin_with_the_unit_is_refused(function):
    with pytest.raises(InputError, match="begin with the 6 units of the batch"):
        read(net_of(function), points())


def test_a_repeated_module_is_a_site_for_each_call():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared = Apply(torch.sin)

        def forward(self, x):
            return self.shared(self.shared(x))

    net = Twice()
    sums, _ = experiment_sums(net, feed_of(net, points()), features_at(["shared"]), DESIGN)
    assert [of_site.site for of_site in sums] == ["shared", "shared@2", "(model)"]


@pytest.mark.parametrize("name", ["demo:transformer", "demo:cnn"])
def test_the_demo_nets_end_to_end(name):
    """Another batch size and route agree; chord ends at 0 bend; the noise is far below."""
    loaded = load_model(name)
    sites = find_sites(loaded.model)[:1]
    feed = feed_of(loaded.model, load_data("demo:digits").first(120).tensor)
    many, few = (
        experiment(loaded.model, feed, features_at(sites), Design(units=12, batch_size=size))[0]
        for size in (12, 5)
    )
    assert_same(many, few)
    for site in (*sites, "(model)"):
        tangent = curve(many, "tangent", direction="data", site=site)
        assert tangent[0.001] < tangent[1.0]
        assert 0.1 < curve(many, "chord", site=site)[0.5] < 5
    assert {r.variant for r in many if r.site == "(model)"} == {"raw", "radius"}
    assert max(r.details.get("floor") or 0 for r in many) < 1e-5
