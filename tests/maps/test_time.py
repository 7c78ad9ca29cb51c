"""Transitions: the steps of every recurrence are torch's own, and derivatives are exact.

Holds: tests of ``secant.maps.time`` and ``secant.maps.cells``.
May import: pytest, torch, ``secant``.
"""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from secant.errors import InputError
from secant.maps.derivatives import derivatives
from secant.maps.time import Unrolled, recurrent_modules, transitions

SEED = torch.Generator().manual_seed(0)
X = torch.randn(3, 5, 4, generator=SEED, dtype=torch.float64)


class Holder(nn.Module):
    """A recurrence and something to call it with."""

    def __init__(self, rnn, call=None):
        super().__init__()
        self.rnn, self.call = rnn, call

    def forward(self, x):
        return self.rnn(x) if self.call is None else self.call(self.rnn, x)


class Looped(nn.Module):
    """A cell that the model calls itself."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x):
        state = None
        for place in range(x.shape[1]):
            state = self.cell(x[:, place], state)
        return state[0] if isinstance(state, tuple) else state


class Rotation(nn.Module):
    """h_t = λ h_{t-1} + u_t in complex numbers, with a count of its own kind beside."""

    def __init__(self, turn=0.9 + 0.3j, count=None):
        super().__init__()
        self.turn, self.count = turn, count

    def step(self, u, state):
        h = torch.zeros_like(u, dtype=torch.complex128) if state is None else state[0]
        h = self.turn * h + u
        return h.real, (h,) if self.count is None else (h, self.count)

    def forward(self, x, state=None):
        outputs = []
        for place in range(x.shape[1]):
            out, state = self.step(x[:, place], state)
            outputs.append(out)
        return torch.stack(outputs, 1), state


def only(model, x=X):
    (found,) = transitions(model, lambda: model(x)).values()
    return found


KINDS = [
    nn.RNN(4, 6, batch_first=True),
    nn.RNN(4, 6, batch_first=True, nonlinearity="relu", bias=False),
    nn.GRU(4, 6, batch_first=True),
    nn.LSTM(4, 6, batch_first=True),
    nn.LSTM(4, 6, batch_first=True, proj_size=2),
]


@pytest.mark.parametrize("rnn", KINDS, ids=str)
def test_steps_are_torch_s(rnn):
    """Outputs of every step, and the last state, cell state included, to rounding."""
    model = Holder(rnn.double())
    outputs, last = rnn(X)
    found = only(model)
    assert found.site == "rnn"
    assert found.is_chained
    torch.testing.assert_close(found.y[..., : found.cell.outputs], outputs, rtol=0, atol=1e-12)
    ends = torch.cat([part[0] for part in (last if isinstance(last, tuple) else (last,))], -1)
    torch.testing.assert_close(found.y[:, -1], ends, rtol=0, atol=1e-12)
    assert found.x[:, 0].abs().max() == 0


@pytest.mark.parametrize("rnn", KINDS, ids=str)
def test_the_derivative_is_autograd_s(rnn):
    model = Holder(rnn.double())
    found = only(model)
    v = torch.randn(found.x.shape, generator=SEED, dtype=torch.float64)
    with derivatives():
        y, along = found.jvp(found.x, v)
    torch.testing.assert_close(y, found.y, rtol=0, atol=1e-12)
    _, slow = torch.autograd.functional.jvp(found.value, found.x, v)
    # relu has a kink at 0, where the first state lies, and both take the slope 0 there
    torch.testing.assert_close(along, slow, rtol=0, atol=1e-12)


def test_layers_and_directions_are_sites_of_their_own():
    rnn = nn.GRU(4, 3, num_layers=2, bidirectional=True).double()
    model = Holder(rnn)
    x = X.transpose(0, 1)
    found = transitions(model, lambda: model(x))
    assert list(found) == ["rnn.l0", "rnn.l0_reverse", "rnn.l1", "rnn.l1_reverse"]
    outputs, _ = rnn(x)
    back = found["rnn.l1_reverse"]
    assert back.is_reversed
    torch.testing.assert_close(back.y.flip(1).transpose(0, 1), outputs[..., 3:], rtol=0, atol=1e-12)
    mask = torch.tensor([[True] * 5, [True] * 4 + [False], [True] * 2 + [False] * 3])
    assert back.counted(mask).equal(mask.flip(1))
    assert found["rnn.l1"].counted(mask).equal(mask)


def test_a_packed_sequence_is_taken_apart_and_its_padding_takes_no_step():
    rnn = nn.LSTM(4, 3, bidirectional=True, batch_first=True).double()
    lengths = torch.tensor([2, 5, 3])

    def call(rnn, x):
        return rnn(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))

    model = Holder(rnn, call)
    found = transitions(model, lambda: model(X))
    _, (h, c) = model(X)
    for way, site in enumerate(("rnn.l0", "rnn.l0_reverse")):
        part = found[site]
        ends = torch.cat([h[way], c[way]], -1)
        torch.testing.assert_close(part.y[:, -1], ends, rtol=0, atol=1e-12)
        assert part.counted(None).sum(1).tolist() == lengths.tolist()
        assert part.is_chained


@pytest.mark.parametrize("cell", [nn.RNNCell(4, 3), nn.GRUCell(4, 3), nn.LSTMCell(4, 3)], ids=str)
def test_the_calls_of_a_cell_are_its_steps(cell):
    model = Looped(cell.double())
    found = only(model)
    assert (found.site, found.y.shape[1]) == ("cell", 5)
    assert found.is_chained
    torch.testing.assert_close(found.y[:, -1, :3], model(X), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.value(found.x), found.y, rtol=0, atol=1e-12)


def test_a_module_with_a_step_is_known_and_complex_states_become_real():
    model = Holder(Rotation())
    assert recurrent_modules(model) == ["rnn"]
    found = only(model)
    assert found.cell.state == 8
    h = torch.zeros(3, 4, dtype=torch.complex128)
    for place in range(5):
        h = (0.9 + 0.3j) * h + X[:, place]
    torch.testing.assert_close(
        torch.view_as_complex(found.y[:, -1].reshape(3, 4, 2)), h, rtol=0, atol=1e-12
    )
    with derivatives():
        _, along = found.jvp(found.x, torch.ones_like(found.x))
    both = torch.view_as_complex(along.reshape(3, 5, 4, 2))
    assert torch.allclose(both, torch.full_like(both, (0.9 + 0.3j) * (1 + 1j)))


def test_the_unrolled_layer_stops_at_the_last_step_that_counts():
    model = Holder(nn.GRU(4, 3, batch_first=True).double())
    found = only(model)
    taken = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True] + [False] * 4])
    whole = Unrolled(found, taken)
    torch.testing.assert_close(
        whole.y, torch.stack([found.y[0, 4], found.y[1, 2], found.y[2, 0]]), rtol=0, atol=1e-12
    )
    assert whole.site == "rnn"
    assert Unrolled(found, None).y.allclose(found.y[:, -1])


def test_half_precision_is_followed_in_float32():
    model = Holder(nn.GRU(4, 3, batch_first=True).bfloat16())
    found = only(model, X.bfloat16())
    assert found.y.dtype == torch.float32


def test_no_recurrence_is_no_transition():
    model = nn.Linear(4, 4).double()
    assert transitions(model, lambda: model(X)) == {}


@pytest.mark.parametrize(
    ("model", "x", "words"),
    [
        (Holder(nn.GRU(4, 3).double()), X[0], "Give the layer a batch"),
        (Looped(nn.GRUCell(4, 3).double()), X[0, None], None),
        (Holder(Rotation(count=torch.tensor(3))), X, "expected a state of tensors of floats"),
        (Holder(Rotation()), X[0], "Give the layer a batch of sequences"),
    ],
)
def test_what_cannot_be_followed_is_refused(model, x, words):
    if words is None:
        assert only(model, x).y.shape == (1, 5, 3)
        return
    with pytest.raises(InputError, match=words):
        transitions(model, lambda: model(x))


def test_a_cell_without_a_batch_is_refused():
    cell = nn.GRUCell(4, 3).double()
    model = Holder(cell, lambda cell, x: cell(x[0, 0]))
    with pytest.raises(InputError, match="Give the cell a batch"):
        transitions(model, lambda: model(X))


def test_dropout_between_layers_is_refused():
    model = Holder(nn.GRU(4, 3, num_layers=2, dropout=0.9, batch_first=True).double())
    with pytest.raises(InputError, match="in eval mode"):
        transitions(model, lambda: model(X))
    model.eval()
    assert len(transitions(model, lambda: model(X))) == 2


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_a_chaotic_layer_may_part_from_its_own_steps_by_rounding(kind):
    """In float32, over 300 steps of a state that rounding grows in; the first ones agree."""
    torch.manual_seed(0)
    layer = kind(4, 32, batch_first=True, bidirectional=True)
    with torch.no_grad():
        for one in layer.parameters():
            one.mul_(30)
    x = torch.randn(2, 300, 4)
    model = Holder(layer)
    forward, backward = transitions(model, lambda: model(x)).values()
    given = layer(x)[0].detach()
    ours = torch.cat([forward.y[..., :32], backward.y[..., :32].flip(1)], -1)
    assert torch.allclose(ours[:, :6, :32], given[:, :6, :32], atol=1e-3)
    assert float((ours - given).norm()) > 1e-2 * float(given.norm())


def test_a_mask_of_another_length_is_refused():
    found = only(Holder(nn.GRU(4, 3, batch_first=True).double()))
    whole = torch.ones(3, 7, dtype=torch.bool)
    assert found.counted(whole) is None
    whole[1, 6] = False
    with pytest.raises(InputError, match="it took 5 steps"):
        found.counted(whole)


def test_calls_of_a_cell_on_other_rows_are_refused():
    cell = nn.GRUCell(4, 3).double()
    model = Holder(cell, lambda cell, x: cell(x[:1, 1], cell(x[:, 0])[:1]))
    with pytest.raises(InputError, match="the same at every step"):
        transitions(model, lambda: model(X))


def test_a_state_is_known_by_its_name():
    class Masked(Rotation):
        def forward(self, x, mask=None, state=None):
            return super().forward(x, state)

    model = Holder(Masked(), lambda rnn, x: rnn(x, torch.ones(3, 5))[0])
    assert only(model).x[:, 0].abs().max() == 0
