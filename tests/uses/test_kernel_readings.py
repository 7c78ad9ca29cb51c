"""Kernels of two models compared: closed forms, laws, coverage, padding, what has no kernel.

Holds: tests of ``secant.uses.kernel_readings``.
May import: pytest, hypothesis, torch, ``toy_tokens``, ``secant``.
"""

import copy
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import secant
from secant.load.data import load_data
from secant.load.feed import Feed
from secant.load.models import load_model
from secant.trials import Design, draw_sample
from secant.uses import kernel_readings as module
from secant.uses.kernel_readings import kernel_readings, reading_of, without_each
from secant.uses.motion import MOST_OUTPUTS, kernel_alignment
from toy_tokens import Digits

UNITS, CLASSES = 60, 3


def read(a, b, x, labels=None, *, has_controls=True, tokenizer=None):
    """The readings by variant."""
    pair = [replace(load_model(one), tokenizer=tokenizer) for one in (a, b)]
    feed = Feed(pair[0], load_data(x), groups=10, batch_size=16, seed=0)
    found = kernel_readings(
        pair[0].model, pair[1].model, feed, labels, seed=0, has_controls=has_controls,
        tell=lambda done, total: None,
    )  # fmt: skip
    assert all(one.gauge == "kernel" for one in found)
    return {one.variant: one for one in found}


def drawn(build, seed):
    torch.manual_seed(seed)
    return build().double()


def net(outputs=CLASSES):
    return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, outputs))


@pytest.fixture(scope="module")
def x():
    return torch.randn(UNITS, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(scope="module")
def labels():
    return torch.arange(UNITS) % CLASSES


class Two(nn.Module):
    """(x₁ u², x₂ v²): the gradients are 2 x₁ u and 2 x₂ v."""

    def __init__(self, u, v):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([u, v], dtype=torch.float64))

    def forward(self, x):
        return x * self.w**2


# Closed forms ------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [CLASSES, 3 * MOST_OUTPUTS])
def test_a_model_linear_in_its_weights_keeps_its_kernel(x, outputs):
    a, b = (drawn(lambda: nn.Linear(5, outputs), seed) for seed in (0, 1))
    (one,) = read(a, b, x).values()
    assert (one.value, one.interval) == (0, (0, 0))
    assert one.controls["random"]["value"] == 0
    assert one.details["outputs"] == outputs
    assert one.details["is_sketched"] == (outputs > MOST_OUTPUTS)


@pytest.mark.parametrize(("start", "end"), [((1.0, 1.0), (2.0, -0.5)), ((1.0, 3.0), (-3.0, 1.0))])
def test_two_kinds_of_units_have_the_known_drift(start, end):
    """Each unit has one of the two entries, so the kernel is u² ss' and v² tt' side by side.

    With p = |s|², q = |t|²: <K, K'> = u²u'² p² + v²v'² q², up to one factor.
    """
    s, t = torch.arange(1, 31).double() / 10, torch.arange(1, 31).double() / 7
    none = torch.zeros(30).double()
    x = torch.cat([torch.stack([s, none], 1), torch.stack([none, t], 1)])
    (one,) = read(Two(*start), Two(*end), x).values()
    assert one.samples == {"units": UNITS}
    p, q = float(s @ s), float(t @ t)

    def product(w, other):
        return (w[0] * other[0] * p) ** 2 + (w[1] * other[1] * q) ** 2

    cosine = product(start, end) / math.sqrt(product(start, start) * product(end, end))
    assert one.value == pytest.approx(1 - cosine, rel=1e-9)
    low, high = one.interval
    assert 0 <= low < one.value < high <= 1


def test_alignment_is_one_where_the_kernel_is_that_of_the_labels(labels):
    """One-hot inputs of a linear map without bias: K = C xx', and xx' is that of the labels."""
    x = functional.one_hot(labels, CLASSES).double()
    x = x + torch.arange(UNITS).double()[:, None] * 1e-12  # distinct units
    a, b = (drawn(lambda: nn.Linear(CLASSES, 2, bias=False), seed) for seed in (0, 1))
    found = read(a, b, x, labels)
    assert list(found) == ["drift", "alignment a", "alignment b"]
    for name in ("alignment a", "alignment b"):
        assert found[name].value == pytest.approx(1, abs=1e-9)
    assert found["alignment b"].controls["random"]["value"] == pytest.approx(1, abs=1e-9)
    mixed = read(a, b, x, labels.roll(1)[torch.randperm(UNITS)])
    assert mixed["alignment a"].interval[1] < 0.5


@settings(max_examples=10, deadline=None)
@given(st.floats(0.01, 100), st.floats(-100, -0.01))
def test_the_scale_of_outputs_changes_nothing(scale, other):
    class Scaled(nn.Module):
        def __init__(self, inner, factor):
            super().__init__()
            self.inner = inner
            self.register_buffer("factor", torch.tensor(factor, dtype=torch.float64))

        def forward(self, x):
            return self.factor * self.inner(x)

    x = torch.randn(UNITS, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(UNITS) % CLASSES
    nets = [drawn(net, seed) for seed in (0, 1)]
    plain = read(*nets, x, labels, has_controls=False)
    scaled = [Scaled(one, factor) for one, factor in zip(nets, (scale, other), strict=True)]
    found = read(*scaled, x, labels, has_controls=False)
    assert plain["drift"].value > 0.01
    for name, one in plain.items():
        assert found[name].value == pytest.approx(one.value, rel=1e-9)
        assert found[name].interval == pytest.approx(one.interval, rel=1e-6)


def test_the_order_of_units_changes_nothing_and_the_control_goes_as_far(x, labels):
    a = drawn(net, 0)
    b = copy.deepcopy(a)
    with torch.no_grad():
        b[0].weight.copy_(a[0].weight.flip(0))
        b[0].bias.copy_(a[0].bias.flip(0))
        b[2].weight.copy_(a[2].weight.flip(1))
    found = read(a, b, x, labels)
    assert found["drift"].value == pytest.approx(0, abs=1e-12)
    assert found["alignment a"].value == pytest.approx(found["alignment b"].value, rel=1e-9)
    beside = found["drift"].controls["random"]
    assert beside["value"] > 0.01, "a step as long elsewhere does turn it"
    assert beside["difference"]["value"] == pytest.approx(-beside["value"], rel=1e-6)
    assert beside["difference"]["interval"][1] < 0
    assert "random" not in found["alignment a"].controls


def test_text_counts_where_it_is_and_padding_does_not(monkeypatch):
    """Squared rows of an embedding: K = Σ over places with one token in both of 4 |w_token|²."""
    monkeypatch.setattr(module, "MOST_OUTPUTS", 1000)  # the closed form is of all outputs

    class Squares(nn.Module):
        def __init__(self, seed):
            super().__init__()
            torch.manual_seed(seed)
            self.word = nn.Embedding(11, 4).double()

        def forward(self, input_ids, attention_mask=None):
            return self.word(input_ids) ** 2

    texts = [f"{seed * 7919 % 100000:0{3 + seed % 4}d}" for seed in range(UNITS)]
    a, b = Squares(0), Squares(1)
    (one,) = read(a, b, texts, tokenizer=Digits()).values()
    loaded = replace(load_model(a), tokenizer=Digits())
    feed = Feed(loaded, load_data(texts), groups=10, batch_size=16, seed=0)
    texts = [texts[member.unit] for member in draw_sample(feed, Design())]
    assert one.samples == {"units": len(texts)}
    assert len(texts) > UNITS - 5, "a group of two units is left out"
    assert not one.details["is_sketched"]
    grams = []
    for model in (a, b):
        lengths = model.word.weight.detach().square().sum(1)
        grams.append(torch.tensor([
            [sum(float(lengths[int(p)]) for p, q in zip(left, right, strict=False) if p == q)
             for right in texts] for left in texts
        ]))  # fmt: skip
    cosine = (grams[0] * grams[1]).sum() / (grams[0].norm() * grams[1].norm())
    assert one.value == pytest.approx(1 - float(cosine), rel=1e-4)


# Intervals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("is_heavy", [False, True])
def test_intervals_cover(is_heavy):
    """Kernels xx' and xMM'x' of drawn units, their drift and alignment: 92 to 98 % of 400."""
    draw = torch.Generator().manual_seed(1)
    mix = torch.randn(12, 12, generator=draw, dtype=torch.float64) + 2 * torch.eye(12)
    side = torch.randn(12, generator=draw, dtype=torch.float64)
    groups = torch.arange(UNITS) % 10
    found = {"drift": [], "alignment": []}
    for _ in range(400):
        x = torch.randn(UNITS, 12, generator=draw, dtype=torch.float64)
        x *= torch.linspace(0.3, 2, 12)
        if is_heavy:  # Student's t, four degrees, a unit long or short as a whole
            normal = torch.randn(UNITS, 5, generator=draw, dtype=torch.float64)
            x *= (normal[:, :1] / normal[:, 1:].square().mean(1, keepdim=True).sqrt()).abs()
        x += 0.5
        targets = functional.one_hot((x @ side > 0).long(), 2).double()
        one, other = x @ x.T, (x @ mix) @ (x @ mix).T
        for name, statistic in (
            ("drift", partial(module._drift, one, other)),
            ("alignment", partial(module.alignment, one, targets)),
        ):
            found[name].append(reading_of(name, statistic, groups, {}))
    for name, every in found.items():
        truth = sum(one.value for one in every) / len(every)
        held = [one.interval for one in every]
        share = sum(low <= truth <= high for low, high in held) / len(held)
        assert 0.92 <= share <= 0.98, (name, share)


def test_a_group_is_left_out_with_its_rows_and_columns(x, labels):
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(9, 4, generator=draw, dtype=torch.float64)
    gram, targets = rows @ rows.T, functional.one_hot(labels[:9]).double()
    groups = torch.tensor([0, 0, 0, 2, 2, 5, 5, 5, 5])
    value, left_out = without_each(partial(module.alignment, gram, targets), groups)
    assert value == kernel_alignment(gram, targets)
    for place, kept in enumerate(([3, 4, 5, 6, 7, 8], [0, 1, 2, 5, 6, 7, 8], [0, 1, 2, 3, 4])):
        part = rows[kept] @ rows[kept].T
        expected = kernel_alignment(part, targets[kept])
        assert left_out[place] == pytest.approx(expected, rel=1e-12)


# What does not exist -----------------------------------------------------------------------


def test_no_kernel_and_no_classes_are_said(x, labels):
    def build():
        return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, track_running_stats=False))

    a, b = (drawn(build, seed) for seed in (0, 1))
    (one,) = read(a, b, x, labels).values()
    assert one.value is None
    assert "normalises by its batch" in one.warnings[0]
    same = read(drawn(net, 0), drawn(net, 1), x, torch.zeros_like(labels))
    assert same["alignment a"].value is None
    assert "no angle exists" in same["alignment a"].warnings[0]
    assert same["drift"].value > 0


def test_compare_holds_them(x, labels):
    data = DataLoader(TensorDataset(x, labels), batch_size=20)
    a, b = (drawn(net, seed) for seed in (0, 1))
    expected = read(a, b, x, labels)
    (model,) = secant.compare(a, b, data, steps=2).models
    found = {one.variant: one for one in model.readings if one.gauge == "kernel"}
    assert list(found) == ["drift", "alignment a", "alignment b"]
    for name, one in found.items():
        assert (one.value, one.interval) == (expected[name].value, expected[name].interval)
        assert one.variable == "weights"
    (model,) = secant.compare(a, b, x, steps=2, has_controls=False).models
    (one,) = (one for one in model.readings if one.gauge == "kernel")
    assert (one.variant, one.controls) == ("drift", {})
