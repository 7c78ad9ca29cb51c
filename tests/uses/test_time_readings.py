"""Readings in time against recurrences whose every number is known.

Holds: tests of ``secant.uses.time_readings``, ``secant.uses.time_sums``, ``secant.uses.horizons``.
May import: pytest, torch, ``secant``.
"""

import math

import pytest
import torch
from torch import nn

import secant
from secant.errors import InputError
from secant.load.units import Units
from secant.report.html import render_html
from secant.report.terminal import render_terminal
from secant.uses.horizons import Decay, LinearUpdate, horizon_sums

DRAW = torch.Generator().manual_seed(0)
WHITE = torch.randn(240, 24, 2, generator=DRAW)


class Known(nn.Module):
    """A recurrence given by its step, from a state of zeros."""

    def __init__(self, width):
        super().__init__()
        self.width = width

    def next(self, u, h):
        raise NotImplementedError  # each recurrence below has its own

    def step(self, u, state):
        h = self.next(u, u.new_zeros(len(u), self.width) if state is None else state)
        return h, h

    def forward(self, x, state=None):
        outputs = []
        for place in range(x.shape[1]):
            out, state = self.step(x[:, place], state)
            outputs.append(out)
        return torch.stack(outputs, 1), state


class Affine(Known):
    def __init__(self):
        super().__init__(3)
        turn = 0.9 * torch.tensor([[0.8, 0.6], [-0.6, 0.8]])
        self.register_buffer("a", torch.block_diag(turn, torch.tensor([[-0.5]])))
        self.register_buffer("b", torch.tensor([[1.0, 0.0, 2.0], [0.5, 1.0, -1.0]]))

    def next(self, u, h):
        return h @ self.a + u @ self.b + 0.25


class Fading(Known):
    def next(self, u, h):
        return 0.8 * h + u


class Delay(Known):
    """The last four inputs."""

    def next(self, u, h):
        return torch.cat([u, h[:, :6]], 1)


class Square(Known):
    def next(self, u, h):
        return 0.5 * u * u + 0.1 * h * h


class Model(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x):
        return self.rnn(x)[0][:, -1]


def read(rnn, x=WHITE, **options):
    found = secant.survey([Model(rnn)], x, gauges=["time"], has_controls=False, **options)
    return found.models[0].readings


def named(readings, gauge, variant):
    return [one for one in readings if (one.gauge, one.variant) == (gauge, variant)]


def test_an_affine_recurrence_is_read_exactly():
    readings = read(Affine())
    for variant in ("raw", "beyond"):
        (one,) = named(readings, "fit", variant)
        assert (one.variable, one.site, one.value) == ("time", "rnn", 1)
    (radius,) = named(readings, "fit", "spectral radius")
    assert radius.value == pytest.approx(0.9, abs=1e-5)
    assert radius.interval == pytest.approx((0.9, 0.9), abs=1e-5)
    exact = sorted([0.72 + 0.54j, 0.72 - 0.54j, -0.5 + 0j], key=lambda z: (abs(z), z.imag))
    got = sorted(
        (complex(*pair) for pair in radius.details["eigenvalues"]),
        key=lambda z: (abs(z), z.imag),
    )
    assert got[0] == pytest.approx(exact[0], abs=1e-5)
    for one, other in zip(got[1:], exact[1:], strict=True):
        assert abs(one.real - other.real) < 1e-5
        assert abs(abs(one.imag) - 0.54) < 1e-5
    ahead = named(readings, "fit", "horizon")
    assert [one.details["steps"] for one in ahead] == [1, 2, 4, 8, 16]
    assert all(one.value == pytest.approx(1, abs=1e-9) for one in ahead)
    curves = [one for one in readings if one.gauge in ("chord", "tangent", "sum", "homogeneity")]
    values = [one for one in curves if not one.variant.startswith("radius")]
    assert {one.details["direction"] for one in values if one.gauge == "sum"} == {
        "data", "early and late inputs",
    }  # fmt: skip
    assert all(one.value == 0 for one in values if one.variant == "raw")


def test_a_decay_splits_its_variance_as_known():
    """h = 0.8 h + u, u white: 0.64 of the variance is the state's, 0.36 the input's, late on."""
    readings = read(Fading(2), torch.randn(300, 80, 2, generator=DRAW))
    (raw,) = named(readings, "fit", "raw")
    # the first steps start from 0, whose variance is smaller: within a few per cent of the limit
    for name, limit in (("residual", 0.64), ("state alone", 0.64), ("input alone", 0.36)):
        assert raw.controls[name]["value"] == pytest.approx(limit, abs=0.03)
    for one in named(readings, "fit", "horizon"):
        alone = 0.64 ** one.details["steps"]
        assert one.controls["residual"]["value"] == pytest.approx(alone, abs=0.04)


def test_a_delay_line_remembers_what_it_holds_and_nothing_else():
    readings = read(Delay(8))
    memory = {one.details["lag"]: one for one in readings if one.gauge == "memory"}
    assert list(memory) == [0, 1, 2, 4, 8]
    for lag, one in memory.items():
        assert one.value == pytest.approx(1.0 if lag < 4 else 0.0, abs=0.02)
        assert one.controls["input"]["value"] == pytest.approx(float(lag == 0), abs=0.02)
        assert one.details["directions"] == 2


def test_wide_inputs_are_remembered_along_random_directions():
    x = torch.randn(200, 10, 20, generator=DRAW)
    readings = read(Fading(20), x)
    (today, *_, oldest) = [one for one in readings if one.gauge == "memory"]
    assert today.details["directions"] == 16
    assert today.value > oldest.value > -0.05


def test_a_square_is_seen():
    """h = u²/2 + h²/10 has nothing that a line fits of white inputs, and early and late interact
    only through the square of the state."""
    readings = read(Square(2))
    (raw,) = named(readings, "fit", "raw")
    assert raw.value < 0.2
    tangents = [one for one in named(readings, "tangent", "raw") if one.details["rho"] == 1.0]
    assert all(one.value > 0.1 for one in tangents)


def test_readings_do_not_depend_on_the_batches():
    torch.manual_seed(0)
    rnn = nn.GRU(2, 3, batch_first=True)
    for a, b in zip(read(rnn, batch_size=8), read(rnn, batch_size=24), strict=True):
        if (a.gauge, a.variant) in {("fit", "raw"), ("fit", "beyond"), ("memory", "raw")}:
            assert a.value == pytest.approx(b.value, abs=1e-6)


def test_controls_stand_beside_every_fit():
    torch.manual_seed(0)
    model = Model(nn.LSTM(2, 4, batch_first=True))
    found = secant.survey([model], WHITE[:120], gauges=["time"])
    for one in found.models[0].readings:
        if one.gauge in ("fit", "memory"):
            assert {"fresh", "shuffled"} <= set(one.controls)
            assert one.controls["fresh"]["value"] is not None
    page = render_html(found.as_dict())
    for words in ("In time", "Eigenvalues of the linear state", "How far the linear state goes"):
        assert words in page
    assert "early and late inputs" in page
    tables = render_terminal(found.models[0])
    assert any("in time" in str(getattr(part, "title", "")) for part in tables)


def test_values_that_are_not_finite_are_said_aloud():
    class Growing(Known):
        def next(self, u, h):
            return 1e10 * h + u

    with pytest.raises(InputError, match="not finite"):
        read(Growing(2))


def test_a_state_too_wide_is_said_aloud():
    with pytest.raises(InputError, match="more than 1024"):
        read(Fading(1026), torch.randn(60, 3, 1026, generator=DRAW))


def test_a_model_without_a_recurrence_says_nothing_unless_asked():
    x = torch.randn(60, 3, generator=DRAW)
    quiet = secant.survey([nn.Sequential(nn.Linear(3, 3))], x, gauges=["fit"], has_controls=False)
    assert not any(one.variable == "time" for one in quiet.models[0].readings)
    with pytest.raises(InputError, match="no recurrent layer"):
        secant.survey([nn.Sequential(nn.Linear(3, 3))], x, gauges=["time"], has_controls=False)


class Reading(nn.Module):
    """Tokens, padded on the right, through an embedding and two recurrences."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(9, 3)
        self.first = nn.GRU(3, 4, batch_first=True)
        self.second = nn.LSTM(4, 3, batch_first=True, bidirectional=True)

    def forward(self, input_ids, attention_mask):
        return self.second(self.first(self.embed(input_ids))[0])[0]


def tokens(lengths):
    draw = torch.Generator().manual_seed(2)
    longest = max(lengths)
    ids = torch.randint(1, 9, (len(lengths), longest), generator=draw)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    return Units("tokens", fields={"input_ids": ids * mask, "attention_mask": mask.long()})


def test_padding_and_lengths_move_nothing():
    """Units of very different lengths: the same in batches of any size, padding never counted."""
    lengths = [3 + (7 * unit) % 30 for unit in range(150)]
    units = tokens(lengths)
    found = [
        secant.survey([Reading()], units, gauges=["time"], has_controls=False, batch_size=size)
        for size in (7, 50)
    ]
    one, other = (report.models[0].readings for report in found)
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        if a.gauge in ("fit", "memory") and a.variant != "whitened":
            assert (a.site, a.variant) == (b.site, b.variant)
            assert a.samples == b.samples
            assert a.value == pytest.approx(b.value, abs=1e-6)
    raw = [a for a in one if (a.gauge, a.variant) == ("fit", "raw")]
    assert [a.site for a in raw] == ["first", "second.l0", "second.l0_reverse"]
    assert all(a.samples["rows"] == sum(lengths) for a in raw)
    farthest = max(a.details["steps"] for a in one if a.variant == "horizon")
    assert farthest == 32
    memory = [a for a in one if a.gauge == "memory"]
    assert max(a.details["lag"] for a in memory) == 8
    rows = sum(length - 8 for length in lengths if length > 8)
    assert {a.samples["rows"] for a in memory} == {rows}


def test_horizons_that_few_units_reach_are_left_out():
    lengths = [4] * 98 + [40] * 2
    found = secant.survey([Reading()], tokens(lengths), gauges=["time"], has_controls=False)
    readings = found.models[0].readings
    assert {a.details["steps"] for a in readings if a.variant == "horizon"} == {1, 2, 4}


class Interleaved(nn.Module):
    """One cell for two sequences in turn."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.cell = nn.GRUCell(2, 3)

    def forward(self, x):
        one = other = None
        for place in range(x.shape[1]):
            one, other = self.cell(x[:, place], one), self.cell(-x[:, place], other)
        return one + other


def test_steps_that_do_not_follow_have_a_fit_and_no_memory():
    found = secant.survey([Interleaved()], WHITE, gauges=["time"], has_controls=False)
    readings = found.models[0].readings
    (raw,) = named(readings, "fit", "raw")
    assert raw.value is not None
    assert any("do not follow on one another" in one for one in raw.warnings)
    assert not named(readings, "fit", "horizon")
    assert not [one for one in readings if one.gauge == "memory"]


class Pair(nn.Module):
    """A layer that can be read and one that cannot."""

    def __init__(self):
        super().__init__()
        self.good, self.wide = nn.GRU(2, 3, batch_first=True), nn.GRU(2, 1030, batch_first=True)

    def forward(self, x):
        return self.good(x)[0].sum(2) + self.wide(x)[0].sum(2)


def test_a_layer_that_cannot_be_read_does_not_hide_the_others():
    x = WHITE[:60, :4]
    readings = secant.survey([Pair()], x, gauges=["time"], has_controls=False).models[0].readings
    raw = {one.site: one for one in named(readings, "fit", "raw")}
    assert raw["good"].value is not None
    assert raw["wide"].value is None
    assert "more than 1024" in raw["wide"].warnings[0]


def test_a_roll_out_is_the_naive_one():
    """Step by step from every state, each horizon, with steps that do not count left out."""
    draw = torch.Generator().manual_seed(1)
    h, u, y = (torch.randn(2, 6, width, generator=draw).double() for width in (3, 2, 3))
    a, b, bias, mean = (
        torch.randn(*shape, generator=draw).double() for shape in ((3, 3), (2, 3), (3,), (3,))
    )
    counted = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    decay = Decay(torch.tensor(0.5), mean + 1, mean)
    found = horizon_sums(LinearUpdate(a, b, bias, mean), decay, h, u, y, counted)
    assert list(found) == [1, 2, 4]
    for steps, sums in found.items():
        slow, rows = torch.zeros(3, dtype=torch.float64), 0
        for unit in range(2):
            for start in range(6 - steps + 1):
                end = start + steps - 1
                if not (counted[unit, start] and counted[unit, end]):
                    continue
                state = h[unit, start]
                for place in range(start, end + 1):
                    state = state @ a + u[unit, place] @ b + bias
                decayed = mean + 0.5**steps * (h[unit, start] - mean - 1)
                rows += 1
                guesses = (state, decayed, mean)
                slow += torch.stack([(one - y[unit, end]).square().sum() for one in guesses])
        assert sums[:3].tolist() == pytest.approx(slow.tolist(), rel=1e-12)
        assert sums[3:].tolist() == [rows, 2]
        assert math.isfinite(float(sums.sum()))
