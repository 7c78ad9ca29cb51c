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
from secant.report.html import render_html
from secant.report.terminal import render_terminal
from secant.uses.horizons import LinearUpdate, horizon_sums

DRAW = torch.Generator().manual_seed(0)
WHITE = torch.randn(240, 24, 2, generator=DRAW)


class Known(nn.Module):
    """A recurrence given by its step, from a state of zeros."""

    def __init__(self, width):
        super().__init__()
        self.width = width

    def next(self, u, h):
        raise NotImplementedError

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


class Decay(Known):
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
    readings = read(Decay(2), torch.randn(300, 80, 2, generator=DRAW))
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
    readings = read(Decay(20), x)
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
        read(Decay(1026), torch.randn(60, 3, 1026, generator=DRAW))


def test_a_model_without_a_recurrence_says_nothing_unless_asked():
    x = torch.randn(60, 3, generator=DRAW)
    quiet = secant.survey([nn.Sequential(nn.Linear(3, 3))], x, gauges=["fit"], has_controls=False)
    assert not any(one.variable == "time" for one in quiet.models[0].readings)
    with pytest.raises(InputError, match="no recurrent layer"):
        secant.survey([nn.Sequential(nn.Linear(3, 3))], x, gauges=["time"], has_controls=False)


def test_a_roll_out_is_the_naive_one():
    """Step by step from every state, each horizon, with steps that do not count left out."""
    draw = torch.Generator().manual_seed(1)
    h, u, y = (torch.randn(2, 6, width, generator=draw).double() for width in (3, 2, 3))
    a, b, bias, mean = (
        torch.randn(*shape, generator=draw).double() for shape in ((3, 3), (2, 3), (3,), (3,))
    )
    counted = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    found = horizon_sums(LinearUpdate(a, b, bias, mean), torch.tensor(0.5), h, u, y, counted)
    assert list(found) == [1, 2, 4]
    for steps, sums in found.items():
        slow = torch.zeros(3, dtype=torch.float64)
        for unit in range(2):
            for start in range(6 - steps + 1):
                end = start + steps - 1
                if not (counted[unit, start] and counted[unit, end]):
                    continue
                state = h[unit, start]
                for place in range(start, end + 1):
                    state = state @ a + u[unit, place] @ b + bias
                decayed = mean + 0.5**steps * (h[unit, start] - mean)
                guesses = (state, decayed, mean)
                slow += torch.stack([(one - y[unit, end]).square().sum() for one in guesses])
        assert sums.tolist() == pytest.approx(slow.tolist(), rel=1e-12)
        assert math.isfinite(float(sums.sum()))
