"""Linear layers as scans: against the plain recurrence, in either form, called as torch's are.

Holds: tests of ``secant.nn.linear_state``.
May import: pytest, torch, ``secant``.
"""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from secant.errors import InputError
from secant.nn.linear_state import LinearLayer, LinearState

DRAW = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, generator=DRAW, dtype=torch.float64)


def turning(width):
    """A state map with real and complex eigenvalues of modulus 0.9."""
    basis = torch.linalg.qr(normal(width, width))[0]
    return 0.9 * basis


JORDAN = torch.diag(torch.full((4,), 0.9)).double() + torch.diag(torch.ones(3), 1).double()


def naive(a, b, bias, u, h):
    states = []
    for place in range(u.shape[1]):
        h = h @ a.T + u[:, place] @ b.T + bias
        states.append(h)
    return torch.stack(states, 1)


@pytest.mark.parametrize(("a", "is_diagonal"), [(turning(5), True), (JORDAN, False)])
def test_a_layer_is_the_plain_recurrence(a, is_diagonal):
    width = len(a)
    b, bias, u, h = normal(width, 3), normal(width), normal(2, 40, 3), normal(2, width)
    layer = LinearLayer.of(a, b, bias)
    assert layer.is_diagonal == is_diagonal
    found = layer(u.float(), h.float())
    torch.testing.assert_close(found.double(), naive(a, b, bias, u, h), rtol=1e-4, atol=1e-4)


def lstm_like(ways=2, batch_first=True):
    """Two layers whose states are (h, c) of three and two entries."""
    layers = []
    for inputs in (4, 3 * ways):
        layers += [LinearLayer.of(turning(5), normal(5, inputs), normal(5)) for _ in range(ways)]
    return LinearState(layers, mode="LSTM", outputs=3, ways=ways, batch_first=batch_first)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("ways", [1, 2])
def test_shapes_are_those_of_torch(ways, batch_first):
    mine = lstm_like(ways, batch_first)
    other = nn.LSTM(4, 2, 2, bidirectional=ways == 2, batch_first=batch_first)
    x = normal(6, 7, 4).float()
    out, (h, c) = mine(x)
    theirs, (their_h, their_c) = other(x)
    assert out.shape[:2] == theirs.shape[:2]
    assert (h.shape[:2], c.shape[:2]) == (their_h.shape[:2], their_c.shape[:2])
    assert (out.shape[2], h.shape[2], c.shape[2]) == (3 * ways, 3, 2)


def test_a_sequence_split_in_two_gives_the_same():
    mine = lstm_like(ways=1)
    x = normal(3, 20, 4).float()
    whole, end = mine(x)
    first, state = mine(x[:, :7])
    second, later = mine(x[:, 7:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(later, end, rtol=1e-4, atol=1e-5)


def test_half_precision_comes_and_goes_as_it_is():
    x = normal(2, 6, 4).bfloat16()
    out, (h, _) = lstm_like(ways=1)(x)
    assert (out.dtype, h.dtype) == (torch.bfloat16, torch.bfloat16)


def test_gradients_reach_every_parameter():
    mine = lstm_like()
    state = normal(4, 2, 3).float(), normal(4, 2, 2).float()
    mine(normal(2, 6, 4).float(), state)[0].sum().backward()
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in mine.parameters())


@pytest.mark.parametrize("x", [torch.zeros(5, 4), torch.zeros(2, 0, 4), [1.0]])
def test_what_it_does_not_take_is_refused(x):
    with pytest.raises(InputError, match=r"a PackedSequence; got .* Give it a batch of sequences"):
        lstm_like()(x)


@pytest.mark.parametrize(
    "hx",
    [
        torch.zeros(4, 2, 5),
        (torch.zeros(4, 1, 3), torch.zeros(4, 1, 2)),
        (torch.zeros(2, 2, 3), torch.zeros(2, 2, 2)),
    ],
)
def test_first_states_that_do_not_fit_are_refused(hx):
    with pytest.raises(InputError, match=r"first states of shapes \[\(4, 2, 3\), \(4, 2, 2\)\]"):
        lstm_like()(torch.zeros(2, 6, 4), hx)


@pytest.mark.parametrize(
    ("kind", "options", "state", "outputs"),
    [
        (nn.RNN, {"hidden_size": 5, "num_layers": 2, "nonlinearity": "relu"}, 5, 5),
        (nn.LSTM, {"hidden_size": 6, "num_layers": 3, "dropout": 0.5, "proj_size": 2}, 8, 2),
    ],
)
@pytest.mark.parametrize("ways", [1, 2])
def test_its_sizes_have_the_names_of_torch(kind, options, state, outputs, ways):
    other = kind(4, bidirectional=ways == 2, **options)
    layers = [
        LinearLayer.of(turning(state), normal(state, inputs), normal(state))
        for inputs in [4, *[outputs * ways] * (other.num_layers - 1)] for _ in range(ways)
    ]  # fmt: skip
    mine = LinearState(layers, mode=other.mode, outputs=outputs, ways=ways,
                       batch_first=other.batch_first, dropout=other.dropout)  # fmt: skip
    mine.flatten_parameters()
    for name in ("mode", "input_size", "hidden_size", "num_layers", "bidirectional", "proj_size",
                 "batch_first", "bias", "dropout"):  # fmt: skip
        assert getattr(mine, name) == getattr(other, name), name
    x = torch.zeros(7, 3, 4)
    assert mine(x)[0].shape == other(x)[0].shape


@pytest.mark.parametrize("lengths", [[7, 7, 7], [7, 4, 1], [2, 7, 5]])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("ways", [1, 2])
def test_packed_sequences_give_what_each_gives_alone(ways, batch_first, lengths):
    mine = lstm_like(ways, batch_first)
    rows = [normal(length, 4).float() for length in lengths]
    start = normal(2 * ways, 3, 3).float(), normal(2 * ways, 3, 2).float()
    packed = pack_sequence(rows, enforce_sorted=False)
    out, (h, c) = mine(packed, start)
    assert torch.equal(out.batch_sizes, packed.batch_sizes)
    padded, counts = pad_packed_sequence(out, batch_first=True)
    assert counts.tolist() == lengths
    for place, row in enumerate(rows):
        at = slice(place, place + 1)
        one = row[None] if batch_first else row[:, None]
        alone, (own_h, own_c) = mine(one, (start[0][:, at], start[1][:, at]))
        alone = alone[0] if batch_first else alone[:, 0]
        torch.testing.assert_close(padded[place, : len(row)], alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(h[:, at], own_h, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(c[:, at], own_c, rtol=1e-4, atol=1e-5)


def test_a_sequence_packed_in_order_stays_in_order():
    """As torch's own: no indices come where none went in."""
    packed = pack_sequence([normal(length, 4).float() for length in (5, 5, 2)])
    out, _ = lstm_like()(packed)
    theirs, _ = nn.LSTM(4, 3, bidirectional=True)(packed)
    assert out.data.shape == theirs.data.shape
    assert out.sorted_indices is None
    assert theirs.sorted_indices is None


@pytest.mark.parametrize("a", [turning(5), JORDAN])
def test_in_float64_it_is_exact(a):
    width = len(a)
    b, bias, u, h = normal(width, 3), normal(width), normal(2, 40, 3), normal(2, width)
    layer = LinearLayer.of(a, b, bias, torch.float64)
    torch.testing.assert_close(layer(u, h), naive(a, b, bias, u, h), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("own", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("given", [torch.float64, torch.float32, torch.bfloat16])
def test_parameters_of_any_type_take_inputs_of_any(own, given):
    """The sums are those of float32 parameters rounded to that type."""
    mine = lstm_like().to(own)
    x = normal(2, 6, 4).to(given)
    out, (h, c) = mine(x)
    assert {one.dtype for one in (out, h, c)} == {given}
    exact = mine.double()(x.double())[0]
    torch.testing.assert_close(out.double(), exact, rtol=2e-2, atol=2e-2)


def test_autocast_does_not_reach_its_sums():
    mine, x = lstm_like(), normal(2, 6, 4).float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = mine(x)[0]
    assert torch.equal(inside, mine(x)[0])


@pytest.mark.parametrize("a", [turning(4), JORDAN])
@pytest.mark.parametrize("length", [0, 1])
def test_the_shortest_sequences(a, length):
    """One step is the plain one, with its gradients; of none come none."""
    b, bias, u, h = normal(4, 3), normal(4), normal(2, length, 3), normal(2, 4)
    layer = LinearLayer.of(a, b, bias, torch.float64)
    h.requires_grad_()
    found = layer(u, h)
    wanted = h @ a.T + (u[:, 0] @ b.T if length else 0) + bias
    assert found.shape == (2, length, 4)
    if length:
        torch.testing.assert_close(found[:, 0], wanted, rtol=1e-9, atol=1e-9)
    (slope,) = torch.autograd.grad(found.sum(), h)
    torch.testing.assert_close(slope, length * a.sum(0).expand(2, 4), rtol=1e-9, atol=1e-9)


def test_dropout_falls_between_layers_in_training_alone():
    mine, x = lstm_like(ways=1), torch.ones(2, 6, 4)
    mine.dropout = 1.0
    first = mine.layers[1](torch.zeros(2, 6, 3), torch.zeros(2, 5))[..., :3]
    torch.testing.assert_close(mine.train()(x)[0], first)
    assert not torch.equal(mine.eval()(x)[0], first)
