"""A survey's readings in weights: closed forms, laws, what suits them, and the path from a base.

Holds: tests of ``secant.uses.weight_readings`` and of the base of ``secant.uses.survey``.
May import: pytest, hypothesis, torch, safetensors, ``secant``.
"""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import secant
from secant.errors import InputError
from secant.load.data import load_data
from secant.load.feed import Feed
from secant.load.models import load_model
from secant.uses.survey import survey
from secant.uses.weight_readings import (
    RHOS,
    _random_step,
    kernel_and_labels,
    tangent_in_weights,
)

UNITS = 60


def silent(done, total):
    pass


def feed_of(model, x, labels=None):
    units = replace(load_data(x), labels=labels)
    return Feed(load_model(model), units, groups=10, batch_size=16, seed=0)


def curve(model, x):
    """Values by ρ, and the radius."""
    found = tangent_in_weights(model, feed_of(model, x), 0, silent)
    assert {(one.variable, one.site, one.gauge) for one in found} == {
        ("weights", "(model)", "tangent")
    }
    points = {one.details["rho"]: one for one in found if one.variant == "raw"}
    (radius,) = (one for one in found if one.variant == "radius")
    return points, radius


@pytest.fixture(scope="module")
def x():
    return torch.randn(UNITS, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def net(seed, width=16):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, 3)).double()


class Product(nn.Module):
    """x a b, whose two weights are a tensor each."""

    def __init__(self, a, b):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.tensor([one], dtype=torch.float64)) for one in (a, b))

    def forward(self, x):
        return x * self.a * self.b


# Tangent -----------------------------------------------------------------------------------


def test_one_layer_is_linear_in_its_weights(x):
    points, radius = curve(nn.Linear(5, 3).double(), x)
    assert list(points) == list(RHOS)
    assert all(one.value == 0 and one.interval == (0, 0) for one in points.values())
    assert radius.details["censored"] == "past the grid"


def test_a_product_of_two_weights_has_the_known_gap(x):
    """A step (s ρ a, t ρ b) moves the output by (s + t) ρ + s t ρ², the tangent by (s + t) ρ."""
    model = Product(2.0, -0.5)
    points, _ = curve(model, x)
    gaps, lengths = dict.fromkeys(RHOS, 0.0), dict.fromkeys(RHOS, 0.0)
    w = torch.tensor([2.0, -0.5], dtype=torch.float64)
    by_group = points[0.1].details["gap_by_group"]
    squares = torch.tensor(points[0.1].details["length_by_group"])
    signs = [
        (_random_step(w, [1, 1], 0, group) / w).round(decimals=12).tolist()
        for group in range(len(by_group))
    ]
    assert {abs(one) for pair in signs for one in pair} == {1.0}
    assert len({s * t for s, t in signs}) == 2, "some steps stretch, some turn"
    for group, (s, t) in enumerate(signs):
        moved = {rho: (s + t) * rho + s * t * rho**2 for rho in RHOS}
        weight = float(squares[group]) / moved[0.1] ** 2
        for rho in RHOS:
            gaps[rho] += weight * rho**4
            lengths[rho] += weight * moved[rho] ** 2
    for rho in RHOS:
        expected = (gaps[rho] / lengths[rho]) ** 0.5
        assert points[rho].value == pytest.approx(expected, rel=1e-6)


@settings(max_examples=5, deadline=None)
@given(scale=st.floats(0.05, 20))
def test_a_rescaling_that_keeps_a_relu_net_keeps_the_reading(scale):
    x = torch.randn(UNITS, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one, other = net(0), net(0)
    with torch.no_grad():
        other[0].weight.mul_(scale)
        other[0].bias.mul_(scale)
        other[2].weight.div_(scale)
    (points, radius), (scaled, again) = curve(one, x), curve(other, x)
    for rho in RHOS:
        assert scaled[rho].value == pytest.approx(points[rho].value, rel=1e-9)
    assert again.value == pytest.approx(radius.value, rel=1e-9)
    assert 0 < radius.value < 1


def test_the_model_is_left_as_it_was(x):
    model = net(0).train()
    before = copy.deepcopy(model.state_dict())
    curve(model, x)
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert model.training


# Kernel ------------------------------------------------------------------------------------


class Kept(nn.Module):
    """A linear map of the first three columns."""

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(3, 2, bias=False)

    def forward(self, x):
        return self.map(x[:, :3])


def test_alignment_is_one_where_rows_are_the_classes():
    labels = torch.arange(UNITS) % 3
    one_hot = nn.functional.one_hot(labels).float()
    noise = torch.randn(UNITS, 2, generator=torch.Generator().manual_seed(0))
    x = torch.cat([one_hot, noise], 1)
    model = Kept()
    (one,) = kernel_and_labels(model, feed_of(model, x, labels + 7), 0, silent)
    assert (one.variable, one.gauge, one.variant) == ("weights", "kernel", "alignment")
    assert one.value == pytest.approx(1, abs=1e-12)
    assert one.interval == pytest.approx((1, 1), abs=1e-9)


def test_a_survey_sets_both_beside_controls(x):
    labels = (x[:, 0] > 0).long()
    report = survey([net(0)], data_of(x, labels), gauges=["kernel"])
    (one,) = report.models[0].readings
    assert set(one.controls) == {"fresh", "shuffled"}
    for control in one.controls.values():
        assert control["value"] is not None
        low, high = control["difference"]["interval"]
        assert low <= one.value - control["value"] <= high
    (model,) = survey([net(0)], data_of(x, labels)).models
    of_weights = [one for one in model.readings if one.variable == "weights"]
    assert {one.gauge for one in of_weights} == {"tangent", "kernel"}
    assert all({"fresh", "shuffled"} == set(one.controls) for one in of_weights)


def data_of(x, labels):
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, labels), batch_size=20)


def test_without_classes_the_kernel_needs_no_word_unless_it_was_named(x):
    (model,) = survey([net(0)], x, has_controls=False).models
    assert not any(one.gauge == "kernel" for one in model.readings)
    assert not any("kernel" in note for note in model.notes)
    with pytest.raises(InputError, match="--label-column"):
        survey([net(0)], x, gauges=["kernel"])
    with pytest.raises(InputError, match="have none"):
        survey([net(0)], data_of(x, x[:, 0]), gauges=["kernel"])


# Base --------------------------------------------------------------------------------------


def test_a_base_adds_what_compare_reads(x, tmp_path):
    labels = (x[:, 0] > 0).long()
    data = data_of(x, labels)
    start, end = net(0), net(1)
    found = survey([end], data, base=start, gauges=["kernel"], out=tmp_path / "out")
    surveyed, path = found.models
    (expected,) = secant.compare(start, end, data).models
    assert path.readings == expected.readings
    assert {"displacement", "tangent", "kernel", "barrier"} <= {o.gauge for o in path.readings}
    assert [one.gauge for one in surveyed.readings] == ["kernel"]
    page = (tmp_path / "out/report.html").read_text()
    assert "The first order explains" in page
    assert "Kernel and labels" in page


def test_a_run_cut_off_among_the_path_goes_on(x, tmp_path):
    data, out, calls = data_of(x, (x[:, 0] > 0).long()), tmp_path / "out", []
    stop = ["similarity"]

    def progress(label, done, total):
        calls.append(label)
        if stop and stop[0] in label:
            raise KeyboardInterrupt

    options = {"base": net(0), "gauges": ["kernel"], "has_controls": False, "out": out}
    models = [net(1), net(2)]
    with pytest.raises(KeyboardInterrupt):
        survey(models, data, progress=progress, **options)
    stop.clear()
    calls.clear()
    found = survey(models, data, progress=progress, resume=True, **options)
    assert len(found.models) == 4
    assert not any("trained" in label and "Sequential 1" in label for label in calls)
    whole = survey(models, data, **{**options, "out": None})
    assert [one.readings for one in found.models] == [one.readings for one in whole.models]
    stop.append("similarity")
    options["out"] = tmp_path / "other"
    with pytest.raises(KeyboardInterrupt):
        survey(models, data, progress=progress, **options)
    with pytest.raises(InputError, match="another fingerprint"):
        survey(models, data, resume=True, **{**options, "base": net(3)})


def test_a_base_of_another_architecture_is_refused_before_the_survey(x):
    calls = []
    with pytest.raises(InputError, match="tensors"):
        survey(
            [net(0)],
            data_of(x, (x[:, 0] > 0).long()),
            base=nn.Linear(5, 3).double(),
            progress=lambda *told: calls.append(told),
        )
    assert calls == []


def test_the_base_of_a_factory_is_a_file_of_weights(tmp_path, monkeypatch, x):
    from safetensors.torch import save_file

    (tmp_path / "own_net.py").write_text(
        "from torch import nn\n\ndef make():\n    return nn.Linear(5, 3).double()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    torch.manual_seed(0)
    for name in ("start", "end"):
        save_file(nn.Linear(5, 3).double().state_dict(), tmp_path / f"{name}.safetensors")
    loading = secant.LoadOptions(weights=tmp_path / "end.safetensors")
    options = {"gauges": ["tangent"], "loading": loading, "has_controls": False}
    found = survey(["own_net:make"], x, base=tmp_path / "start.safetensors", **options)
    whole = {one.variant: one.value for one in found.models[1].readings
             if (one.site, one.gauge) == ("(model)", "displacement")}  # fmt: skip
    assert whole["norm"] > 0
    with pytest.raises(InputError, match="Give that file as the base"):
        survey(["own_net:make"], x, base=nn.Linear(5, 3), **options)
