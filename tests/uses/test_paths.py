"""Two models compared: closed forms, and small real training runs on the digits.

Holds: tests of ``secant.uses.paths`` and what it is made of.
May import: pytest, hypothesis, torch, ``toy_tokens``, ``secant``.
"""

import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import secant
from secant.errors import InputError
from secant.load.demo import digits, digits_split
from secant.load.models import load_model
from secant.uses.pairs import pair_notes
from secant.uses.walks import barrier
from toy_tokens import Digits

CLASSES, HELD_OUT = 10, 400


def mlp():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(),
        nn.Linear(32, CLASSES),
    )  # fmt: skip


def trained(model, seed, steps=300, rate=1e-2, classes=range(CLASSES)):
    """A copy, trained on the digits of these classes, seeded."""
    model = copy.deepcopy(model).train()
    x, y = digits()
    own = digits_split()[0]
    own = own[torch.isin(y[own], torch.tensor(list(classes)))]
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(steps):
        batch = own[torch.randint(len(own), (64,), generator=generator)]
        optimiser.zero_grad()
        functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimiser.step()
    return model.eval()


def drawn(build, seed):
    torch.manual_seed(seed)
    return build()


@pytest.fixture(scope="module")
def held_out():
    x, y = digits()
    kept = digits_split()[1][:HELD_OUT]
    return DataLoader(TensorDataset(x[kept], y[kept]), batch_size=100)


@pytest.fixture(scope="module")
def apart():
    """Two networks that share nothing but the data."""
    return tuple(trained(drawn(mlp, seed), seed) for seed in (0, 1))


@pytest.fixture(scope="module")
def tunes(apart):
    """Two fine-tunes of one base."""
    return tuple(trained(apart[0], seed, steps=100, rate=1e-3) for seed in (5, 6))


def of(report, gauge, variant=None, **place):
    (model,) = report.models
    found = [
        one
        for one in model.readings
        if one.gauge == gauge
        and variant in (None, one.variant)
        and all(one.details.get(key) == value for key, value in place.items())
    ]
    assert found, (gauge, variant, place)
    return found


def value(report, gauge, variant=None, **place):
    (one,) = of(report, gauge, variant, **place)
    return one.value


def compared(a, b, data, **more):
    return secant.compare(a, b, data, batch_size=100, **more)


# Real runs ---------------------------------------------------------------------------------


def test_independent_networks_have_a_barrier(apart, held_out):
    report = compared(*apart, held_out)
    (one,) = of(report, "barrier", "loss")
    assert one.interval[0] > 0.3
    assert one.details["worst_t"] in (0.4, 0.5, 0.6)
    assert of(report, "barrier", "error")[0].interval[0] > 0.1
    losses = {r.details["t"]: r for r in of(report, "loss", "cross-entropy")}
    x, y = held_out.dataset.tensors
    with torch.no_grad():
        ends = [functional.cross_entropy(model(x), y).item() for model in apart]
    assert [losses[0.0].value, losses[1.0].value] == pytest.approx(ends, rel=1e-5)
    excess = {t: r.value - (1 - t) * ends[0] - t * ends[1] for t, r in losses.items()}
    assert one.value == pytest.approx(max(excess.values()), rel=1e-4)
    assert value(report, "tangent", "explained") < 0, "the tangent says nothing of the other net"
    assert set(losses[0.5].controls["random"]) == {"value", "interval", "difference"}


def test_alignment_takes_most_of_the_barrier_away(apart, held_out):
    """As arXiv:2209.04836 found; what REPAIR (2211.08403) adds is within the interval here."""
    plain, aligned, both = (
        compared(*apart, held_out, align=is_aligned, has_repair=has_repair, has_controls=False)
        for is_aligned, has_repair in ((False, False), (True, False), (True, True))
    )
    bare, less, least = (of(one, "barrier", "loss")[0] for one in (plain, aligned, both))
    assert bare.interval[0] > 2 * less.interval[1]
    assert least.value < less.interval[1]
    far, near = (of(one, "displacement", "norm")[-1].value for one in (plain, aligned))
    (told,) = (note for note in aligned.models[0].notes if "Distance" in note)
    assert f"{far:.6g} before, {near:.6g} after" in told
    assert near < 0.8 * far
    ends = [[value(one, "loss", "cross-entropy", t=t) for t in (0.0, 1.0)]
            for one in (plain, aligned)]  # fmt: skip
    assert ends[0] == pytest.approx(ends[1], rel=1e-5), "B is the function that it was"


def test_a_permuted_copy_is_brought_back_before_it_is_compared(apart, held_out):
    a, b = apart[0], copy.deepcopy(apart[0])
    with torch.no_grad():
        b[1].weight.copy_(a[1].weight.flip(0))
        b[1].bias.copy_(a[1].bias.flip(0))
        b[3].weight.copy_(a[3].weight.flip(1))
    report = compared(a, b, held_out, align=True, steps=2, has_controls=False)
    assert all(one.value == 0 for one in of(report, "displacement", "norm"))
    (told,) = (note for note in report.models[0].notes if "put in the order" in note)
    assert "1.weight:0 32 of 32" in told
    assert "3.weight:0 0 of 32" in told
    assert torch.equal(b[1].weight, a[1].weight.flip(0)), "the caller's own is not changed"


class Branching(nn.Module):
    """Another sign where the mean is positive, which no graph holds."""

    def __init__(self):
        super().__init__()
        self.inner = mlp()

    def forward(self, x):
        return self.inner(x) if x.mean() > 0 else -self.inner(x)


def test_what_cannot_be_aligned_is_refused(apart, held_out):
    told = r"B cannot be aligned.*cannot be exported.*torch.where.*without --align"
    with pytest.raises(InputError, match=told):
        compared(drawn(Branching, 0), drawn(Branching, 1), held_out, align=True)
    with pytest.raises(InputError, match="Leave out the base or the alignment"):
        compared(*apart, held_out, base=apart[0], align=True)


def test_fine_tunes_of_one_base_have_next_to_none(tunes, held_out):
    report = compared(*tunes, held_out)
    (one,) = of(report, "barrier", "loss")
    assert one.interval[1] < 0.01
    assert of(report, "displacement", "relative")[-1].value < 0.1
    assert value(report, "tangent", "explained") > 0.9


def test_a_model_against_itself_is_nowhere_apart(apart, held_out):
    a = apart[0]
    report = compared(a, a, held_out)
    assert all(r.value == 0 for r in of(report, "displacement", "norm"))
    assert all(r.value == 0 and r.interval == (0, 0) for r in of(report, "barrier"))
    assert len({r.value for r in of(report, "loss")}) == 1
    for one in of(report, "chord") + of(report, "tangent") + of(report, "displacement", "share"):
        assert one.value is None
        assert one.warnings


def test_features_of_fine_tunes_are_more_alike_than_those_of_strangers(apart, tunes, held_out):
    near, far = (of(compared(*pair, held_out, steps=2), "cka") for pair in (tunes, apart))
    assert [one.site for one in near] == ["0", "1", "2", "3", "4", "5"]
    assert near[0].value == pytest.approx(1), "the first only flattens the image"
    for one, other in list(zip(near, far, strict=True))[1:]:
        assert one.interval[0] > other.interval[1]
        assert one.controls["fresh"]["difference"]["interval"][0] > 0


def test_a_model_is_not_changed(apart, held_out):
    before = [copy.deepcopy(model.state_dict()) for model in apart]
    compared(*apart, held_out, rows=100, has_repair=True, steps=2)
    for state, model in zip(before, apart, strict=True):
        now = model.state_dict()
        assert now.keys() == state.keys()
        assert all(torch.equal(now[key], state[key]) for key in state)


# Closed forms ------------------------------------------------------------------------------


def test_a_model_linear_in_its_weights_reads_zero(held_out):
    a, b = (drawn(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), s) for s in (0, 1))
    report = compared(a, b, held_out)
    assert all(r.value == 0 for r in of(report, "chord"))
    assert all(r.value == 0 for r in of(report, "tangent", "raw"))
    assert value(report, "tangent", "explained") == 1
    assert value(report, "barrier", "loss") == 0, "cross-entropy is convex in the logits"


class Square(nn.Module):
    """x w²."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([w], dtype=torch.float64))

    def reset_parameters(self):
        nn.init.normal_(self.w)

    def forward(self, x):
        return x * self.w**2


@pytest.mark.parametrize(("a", "b"), [(1.0, 3.0), (-0.5, 2.0)])
def test_a_square_has_the_known_chord_and_tangent(a, b):
    """Chord |b-a| / |b+a| at every t; tangent ρ|v| / |2a + ρv|, v = b - a; as in the gauges."""
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    report = compared(Square(a), Square(b), x)
    for one in of(report, "chord"):
        assert one.value == pytest.approx(abs(b - a) / abs(b + a), rel=1e-9)
    for one in of(report, "tangent", "raw"):
        step = one.details["rho"] * (b - a)
        assert one.value == pytest.approx(abs(step) / abs(2 * a + step), rel=1e-9)
    left = (b - a) ** 4 / (b**2 - a**2) ** 2
    assert value(report, "tangent", "explained") == pytest.approx(1 - left, rel=1e-9)
    assert not any(one.gauge in ("loss", "barrier") for one in report.models[0].readings)
    assert any("no labels" in note for note in report.models[0].notes)


@pytest.mark.parametrize("factor", [3.0, 0.5, -1.0])
def test_a_scaled_copy_lies_one_scale_away(apart, held_out, factor):
    a, b = apart[0], copy.deepcopy(apart[0])
    with torch.no_grad():
        for parameter in b.parameters():
            parameter *= factor
    report = compared(a, b, held_out, rows=60, steps=2)
    for one in of(report, "displacement", "relative"):
        assert one.value == pytest.approx(abs(factor - 1), rel=1e-6)
    shares = of(report, "displacement", "share")
    assert sum(one.value for one in shares) == pytest.approx(1)
    assert [one.site for one in shares] == [name for name, _ in a.named_parameters()]
    assert all(one.controls["fresh"]["value"] > 0 for one in shares)


def curve(mean, counts, ts):
    """Sums by group of losses whose mean follows `mean`, each group a little off."""
    off = torch.linspace(-1, 1, len(counts), dtype=torch.float64)
    return torch.stack([counts * (mean(float(t)) + 0.1 * math.sin(3 * t) * off) for t in ts])


@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(0.1, 5))
def test_a_barrier_is_of_the_bend_alone(tilt, height, scale):
    """A straight line added to the losses changes nothing, a factor scales all; x(1-x): 1/4."""
    counts = torch.tensor([5.0, 5, 5, 5, 5, 5], dtype=torch.float64)
    ts = torch.linspace(0, 1, 11, dtype=torch.float64)
    bent = curve(lambda t: t * (1 - t), counts, ts)
    plain = barrier(bent, bent[[0, -1]], counts, ts)
    assert plain["value"] == pytest.approx(0.25)
    assert plain["worst_t"] == pytest.approx(0.5)
    other = scale * bent + counts * (height + tilt * ts[:, None])
    found = barrier(other, other[[0, -1]], counts, ts)
    assert found["value"] == pytest.approx(scale * plain["value"], rel=1e-9)
    assert found["interval"] == pytest.approx([scale * e for e in plain["interval"]], rel=1e-6)


def test_a_barrier_of_one_stop_has_the_interval_of_the_groups_means():
    """Groups of one size and one highest stop: the t interval of the groups' own excesses."""
    generator = torch.Generator().manual_seed(0)
    excesses = 1 + 0.1 * torch.randn(8, generator=generator, dtype=torch.float64)
    counts, ts = torch.full((8,), 4.0).double(), torch.tensor([0, 0.5, 1]).double()
    sums = torch.stack([0 * excesses, 4 * excesses, 0 * excesses])
    found = barrier(sums, sums[[0, -1]], counts, ts)
    reach = 2.3646242515927849 * float(excesses.std()) / math.sqrt(8)
    mean = float(excesses.mean())
    assert found["interval"] == pytest.approx((mean - reach, mean + reach), rel=1e-9)


# Task vectors ------------------------------------------------------------------------------


def test_task_vectors_of_a_linear_model_add_and_those_of_a_square_do_not(held_out):
    """For x w²: 2uv over the root of Δ_u² + Δ_v², Δ_u = 2wu + u²."""
    build = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10))  # noqa: E731
    a, b, base = (drawn(build, seed) for seed in range(3))
    report = compared(a, b, held_out, base=base, steps=2)
    assert all(one.value == 0 for one in of(report, "sum", "raw"))
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    w, u, v = 0.5, 1.5, -0.7
    report = compared(Square(w + u), Square(w + v), x, base=Square(w), steps=2)
    for one in of(report, "sum", "raw"):
        step, other = (one.details["rho"] * part for part in (u, v))
        parts = math.hypot(2 * w * step + step**2, 2 * w * other + other**2)
        assert one.value == pytest.approx(abs(2 * step * other) / parts, rel=1e-9)


def test_a_task_taken_away_is_lost_and_a_random_vector_is_not_missed(apart, held_out):
    """Tuned on digits below 5, and on the rest, from one base that has seen all."""
    base = trained(drawn(mlp, 3), 3, steps=100, rate=3e-3)
    a = trained(base, 0, steps=150, rate=3e-3, classes=range(5))
    b = trained(base, 1, steps=150, rate=3e-3, classes=range(5, 10))
    x, y = held_out.dataset.tensors
    own = y < 5
    data = DataLoader(TensorDataset(x[own], y[own]), batch_size=100)
    report = compared(a, b, data, base=base, steps=2)
    models = {name: copy.deepcopy(base) for name in ("negated", "both")}
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            ours, theirs = (dict(one.named_parameters())[name] for one in (a, b))
            dict(models["negated"].named_parameters())[name].copy_(2 * parameter - ours)
            dict(models["both"].named_parameters())[name].copy_(ours + theirs - parameter)
        losses = [functional.cross_entropy(m(x[own]), y[own]) for m in (models["negated"], base)]
        moved = (models["both"](x[own]).argmax(1) != a(x[own]).argmax(1)).double().mean()
    (lost,) = of(report, "negation", "a loss")
    assert lost.value == pytest.approx(float(losses[0] - losses[1]), rel=1e-4)
    assert lost.interval[0] > lost.controls["random"]["interval"][1]
    assert of(report, "negation", "a accuracy")[0].interval[1] < 0
    assert value(report, "disentanglement", "a") == pytest.approx(float(moved), abs=1e-6)
    assert of(report, "sum", "raw", rho=1.0)[0].controls["random"]["value"] > 0
    assert [one.variant for one in of(report, "disentanglement")] == ["a", "b"]


# Tokens ------------------------------------------------------------------------------------


class Tokens(nn.Module):
    """Logits of the next digit from this one, and, if it looks ahead, from the last."""

    def __init__(self, seed, looks_ahead=False):
        super().__init__()
        torch.manual_seed(seed)
        self.word, self.looks_ahead = nn.Embedding(11, 11), looks_ahead

    def forward(self, input_ids, attention_mask=None):
        seen = self.word(input_ids)
        return seen + seen[:, -1:] if self.looks_ahead else seen


def test_a_causal_model_is_scored_by_the_next_token(monkeypatch):
    texts = [f"{seed * 7919 % 100000:0{3 + seed % 4}d}" for seed in range(60)]
    monkeypatch.setattr(
        "secant.uses.paths.load_model",
        lambda model, options: replace(load_model(model, options), tokenizer=Digits()),
    )
    a, b = Tokens(0), Tokens(1)
    report = secant.compare(a, b, texts, batch_size=8)
    losses = {one.details["t"]: one for one in of(report, "loss", "next token")}
    total = tokens = 0
    for text in texts:
        ids = torch.tensor([int(letter) for letter in text])
        logits = (a.word.weight.detach()[ids[:-1]] + b.word.weight.detach()[ids[:-1]]) / 2
        total += functional.cross_entropy(logits.double(), ids[1:], reduction="sum").item()
        tokens += len(ids) - 1
    assert losses[0.5].value == pytest.approx(total / tokens, rel=1e-6)
    assert losses[0.5].samples == {"units": 60, "scored": tokens}
    assert all(one.value == 0 for one in of(report, "chord")), "an embedding is linear"
    report = secant.compare(Tokens(0, True), Tokens(1, True), texts, batch_size=8)
    assert any("looks ahead" in note for note in report.models[0].notes)


def test_vocabularies_that_differ_are_said():
    class Words:
        def __init__(self, *words):
            self.words = words

        def get_vocab(self):
            return {word: place for place, word in enumerate(self.words)}

    loaded = load_model(Tokens(0))
    a, b, c = (replace(loaded, tokenizer=Words(*words)) for words in ("xyz", "xyz", "xzy"))
    assert pair_notes(a, b) == []
    (note,) = pair_notes(a, c)
    assert "differ in 2 tokens" in note
    assert "'y'" in note
    (note,) = pair_notes(a, loaded)
    assert "no tokenizer" in note


# Bad input ---------------------------------------------------------------------------------


def wide(width, depth=1):
    return nn.Sequential(nn.Flatten(), *(nn.Linear(64, 64) for _ in range(depth)),
                         nn.Linear(64, width))  # fmt: skip


def test_tensors_that_differ_are_named(held_out):
    with pytest.raises(InputError, match=r"2 of their tensors differ: 2.weight \(\(10, 64\) and"):
        compared(wide(10), wide(12), held_out)
    with pytest.raises(InputError, match=r"16 of their tensors.*not there.* and 6 more"):
        compared(wide(64, 1), wide(64, 9), held_out)


def test_modules_ties_and_codes_that_differ_are_refused(held_out):
    relu, tanh = (nn.Sequential(nn.Flatten(), nn.Linear(64, 10), f()) for f in (nn.ReLU, nn.Tanh))
    with pytest.raises(InputError, match=r"modules differ: 2 \(ReLU and Tanh\)"):
        compared(relu, tanh, held_out)
    slow, fast = (nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.LeakyReLU(s)) for s in (0, 2))
    fast.load_state_dict(slow.state_dict())
    with pytest.raises(InputError, match="no tensor, such as an activation"):
        compared(slow, fast, held_out)
    free = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64))
    tied = copy.deepcopy(free)
    tied[2].weight = tied[1].weight
    with pytest.raises(InputError, match=r"ties between tensors differ: 2.weight"):
        compared(free, tied, held_out)


def test_labels_steps_and_units_that_do_not_fit_are_refused(apart):
    x = torch.rand(60, 1, 8, 8)
    with pytest.raises(InputError, match=r"labels 0..59 need as many classes"):
        compared(*apart, DataLoader(TensorDataset(x, torch.arange(60)), batch_size=20))
    with pytest.raises(InputError, match="at least 2 steps"):
        compared(*apart, x, steps=1)
    with pytest.raises(InputError, match="3 groups"):
        compared(*apart, x[:1])
    with pytest.raises(InputError, match="once for each of 2 models"):
        compared(*apart, x, weights=["one.safetensors"])
    with pytest.raises(InputError, match="tensors differ"):
        compared(*apart, x, base=wide(10))
