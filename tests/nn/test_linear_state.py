"""Linear layers as scans: against the plain recurrence, in either form, called as torch's are.

Holds: tests of ``secant.nn.linear_state``.
May import: pytest, torch, ``secant``.
"""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

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
    return LinearState(layers, outputs=3, ways=ways, batch_first=batch_first)


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


@pytest.mark.parametrize("x", [torch.zeros(5, 4), pack_sequence([torch.zeros(3, 4)])])
def test_what_it_does_not_take_is_refused(x):
    with pytest.raises(InputError, match="padded sequences, not packed"):
        lstm_like()(x)
