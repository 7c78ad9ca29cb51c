"""Linear states: exact where the recurrence is linear, told with its cost where it is not.

Holds: tests of ``secant.uses.linearize_state`` and its command.
May import: pytest, torch, ``secant``.
"""

import json

import pytest
import torch
from torch import nn

from secant.errors import InputError, LoadError
from secant.load.models import load_model
from secant.load.units import Units
from secant.nn.linear_state import LinearState
from secant.report.linear_state import plain_words
from secant.uses.linearize_state import linearize_state, restore_state

DRAW = torch.Generator().manual_seed(0)
X = torch.rand(120, 12, 4, generator=DRAW)
UNITS = Units("sequences", tensor=X)
CLASSES = Units("classes", tensor=X, labels=(X.sum((1, 2)) > 24).long())


class Reader(nn.Module):
    """A recurrence and the mean of what it hands on."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn
        self.head = nn.Linear(rnn.hidden_size * (2 if rnn.bidirectional else 1), 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0].mean(1))


def positive(layers=1, bidirectional=False):
    """ReLUs that never cut: all weights and inputs are positive, so the recurrence is linear."""
    torch.manual_seed(0)
    rnn = nn.RNN(4, 5, layers, nonlinearity="relu", batch_first=True, bidirectional=bidirectional)
    with torch.no_grad():
        for name, one in rnn.named_parameters():
            one.copy_(one.abs() * (0.25 if "weight_hh" in name else 1))
    return Reader(rnn).eval()


def curved(kind=nn.GRU):
    torch.manual_seed(1)
    return Reader(kind(4, 6, batch_first=True)).eval()


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_linear_recurrence_stays_the_same_function(layers, bidirectional):
    model = positive(layers, bidirectional)
    found = linearize_state(model, UNITS, batch_size=16)
    assert len(found.layers) == layers * (2 if bidirectional else 1)
    assert all(one.raw["value"] == pytest.approx(1, abs=1e-6) for one in found.layers)
    assert found.change["value"] < 1e-8
    torch.testing.assert_close(found.module(X), model(X), rtol=1e-4, atol=1e-4)
    assert isinstance(found.module.rnn, LinearState)
    assert isinstance(model.rnn, nn.RNN)


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_a_nonlinear_one_changes_and_says_so(kind):
    found = linearize_state(curved(kind), CLASSES, batch_size=16)
    (layer,) = found.layers
    assert 0.5 < layer.raw["value"] < 1
    assert layer.state == (12 if kind is nn.LSTM else 6)
    low, high = found.change["interval"]
    assert low <= found.change["value"] <= high
    assert found.units["fitted"] + found.units["scored"] == 120
    told = " ".join(plain_words(found))
    assert "nats" in told
    assert "ms ->" in told


def test_the_update_is_least_squares():
    """On the fitted half, against a plain solve over its rows in float64."""
    model = curved()
    found = linearize_state(model, UNITS, batch_size=16)
    layer = found.module.rnn.layers[0]
    states, _ = model.rnn(X)
    before = torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], 1)
    # what the update says of true states must beat any other row map on most of the data
    turned = layer(X, torch.zeros(len(X), 6))
    assert turned.shape == states.shape
    rows = torch.cat([before, X, torch.ones(*X.shape[:2], 1)], 2).flatten(0, 1).double()
    best = torch.linalg.lstsq(rows, states.flatten(0, 1).double()).solution
    one_step = torch.stack(
        [layer(X[:, [t]], before[:, t])[:, 0] for t in range(X.shape[1])], 1
    ).double()
    apart = (one_step - (rows @ best).view(states.shape)).norm() / states.double().norm()
    assert apart < 0.01


def test_a_budget_leaves_what_costs_more():
    model = Two()
    found = linearize_state(model, UNITS, batch_size=16, budget=1e-4)
    assert [one.site for one in found.layers] == ["straight"]
    assert list(found.left) == ["bent"]
    assert isinstance(found.module.bent, nn.GRU)
    assert "stays as it is" in " ".join(plain_words(found))
    with pytest.raises(InputError, match="no layer fits in the budget of 0"):
        linearize_state(curved(), UNITS, batch_size=16, budget=0.0)


class Two(nn.Module):
    """One recurrence that is linear and one that is not."""

    def __init__(self):
        super().__init__()
        self.straight, self.bent = positive().rnn, curved().rnn
        self.eval()

    def forward(self, x):
        return torch.cat([self.straight(x)[0], self.bent(4 * x)[0]], -1).mean(1)


def test_what_was_saved_comes_back(tmp_path):
    model = curved(nn.LSTM)
    found = linearize_state(model, CLASSES, batch_size=16)
    files = found.save(tmp_path)
    assert sorted(one.name for one in files) == ["linear_state.json", "model.safetensors"]
    again = restore_state(model, tmp_path)
    assert torch.equal(again(X), found.module(X))
    assert json.loads(files[1].read_text())["change"]["value"] == found.change["value"]
    with pytest.raises(LoadError, match="the model it was given"):
        restore_state(nn.Linear(3, 3), tmp_path)
    with pytest.raises(LoadError, match="cannot be read"):
        restore_state(model, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("model", "units", "words"),
    [
        (nn.Sequential(nn.Linear(4, 4)), UNITS, "has no nn.RNN, nn.GRU or nn.LSTM"),
        (curved(), Units("few", tensor=X[:12]), "Give some dozens"),
    ],
)
def test_what_cannot_be_done_is_refused(model, units, words):
    with pytest.raises(InputError, match=words):
        linearize_state(model, units)


def test_values_that_are_not_finite_are_refused():
    model = curved()
    x = X.clone()
    x[:, 3] = torch.inf
    with pytest.raises(InputError, match="not finite"):
        linearize_state(model, Units("spoilt", tensor=x), batch_size=16)


def test_the_command_says_what_it_costs_and_writes_it(run, tmp_path):
    code, out, _ = run("linearize-state", "demo:gru", "--rows", 200, "--out", tmp_path / "linear")
    assert code == 0
    assert "the loss changes by" in out
    model = load_model("demo:gru").model
    images = torch.rand(3, 1, 8, 8)
    assert restore_state(model, tmp_path / "linear")(images).shape == model(images).shape
    code, _, err = run("linearize-state", "demo:mlp", "--out", tmp_path / "none")
    assert code == 2
    assert "no nn.RNN" in err
    assert not (tmp_path / "none").exists()
