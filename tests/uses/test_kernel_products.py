"""Derivatives that outputs share, and factors that are gathered row by row.

Holds: tests of ``secant.uses.kernel_products`` and of ``Gathered``.
May import: pytest, torch, ``secant.uses``.
"""

import pytest
import torch
from torch import nn

from secant.uses import kernel_tape
from secant.uses.kernel import kernel
from secant.uses.kernel_factors import Outer
from secant.uses.kernel_gathered import Gathered
from secant.uses.kernel_products import by_shares, shared
from secant.uses.kernel_tables import Tokens


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def separable(rows=9, outputs=3, places=4, units=6):
    """m and v, with a unit that no row and one that only one row moves, and a row that is 0."""
    m, v = drawn(rows, 1, places, units), drawn(outputs, units, seed=1)
    m[..., 0] = 0
    m[:-1, ..., 1] = 0
    m[3] = 0
    return m, v


def test_what_outputs_share_is_found_up_to_its_scale():
    m, v = separable()
    found, shares = shared(m * v[:, None])
    assert torch.allclose(found * shares[:, None], m * v[:, None], rtol=1e-13, atol=0)
    assert found.shape == m.shape
    assert not shares[:, 0].any()


@pytest.mark.parametrize("row", [0, 8])
def test_one_derivative_that_differs_is_seen(row):
    m, v = separable()
    back = m * v[:, None]
    back[row, 1, 2, 3] *= 1 + 1e-12
    assert shared(back) is None
    assert by_shares(back, v) is None


def test_one_output_and_half_precision_are_left():
    m, v = separable()
    assert shared(m * v[:1, None]) is None
    assert shared((m * v[:, None]).half()) is None


def traced(a, b):
    """Σ_c of products of gradients written out."""
    one, two = (torch.einsum("nctl,ntr->nclr", x.back, x.into).flatten(1) for x in (a, b))
    bias = [x.back.sum(2).flatten(1) for x in (a, b)]
    return one @ two.T + bias[0] @ bias[1].T


@pytest.mark.parametrize("places", [1, 2, 40])
@pytest.mark.parametrize("is_shared", [True, False])
def test_the_trace_is_that_of_gradients_written_out(places, is_shared):
    """By pairs and by lines; of two sides, of one, and of one side alone that shares."""
    factors = []
    for seed in range(2):
        m, v = drawn(5, 1, places, 6, seed=seed), drawn(3, 6, seed=7)
        back = m * v[:, None] if is_shared else drawn(5, 3, places, 6, seed=seed)
        factors.append(Outer(drawn(5, places, 50, seed=seed + 2), back, True))
    mixed = Outer(factors[0].into, drawn(5, 3, places, 6, seed=9), True)
    for a, b in ((factors[0], factors[1]), (factors[0], mixed), (factors[0], factors[0])):
        total = torch.zeros(5, 5, dtype=torch.float64)
        a.add_trace(total, b)
        upper = torch.ones(5, 5).triu() if a is b else torch.ones(5, 5)
        assert torch.allclose(total * upper, traced(a, b) * upper, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("has_bias", [True, False])
def test_short_gradients_are_written_out_as_they_come(has_bias):
    into, back = drawn(7, 9, 4), drawn(7, 3, 9, 5, seed=1)
    gathered = Gathered(7)
    for own in (slice(0, 3), slice(3, 6), slice(6, 7)):
        gathered.add(Outer(into[own], back[own], has_bias))
    weight, *bias = gathered.whole().pieces
    expected = torch.einsum("nctl,ntr->nclr", back, into).flatten(2)
    assert torch.allclose(weight, expected, rtol=1e-12, atol=1e-12)
    assert len(bias) == has_bias
    assert not bias or torch.allclose(bias[0], back.sum(2))


def test_parts_of_one_tensor_are_not_copied():
    """As parts that lie elsewhere are."""
    ids, back = torch.zeros(6, 2, dtype=torch.int64), drawn(6, 3, 2, 5)
    for copied in (False, True):
        gathered = Gathered(6)
        for own in (slice(0, 4), slice(4, 6)):
            gathered.add(Tokens(ids[own], back[own].clone() if copied else back[own], 1))
        whole = gathered.whole()
        assert torch.equal(whole.back, back)
        assert (whole.back.data_ptr() == back.data_ptr()) is not copied
    gathered = Gathered(6)
    for own in (slice(4, 6), slice(0, 4)):  # not in order
        gathered.add(Tokens(ids[own], back[own], 1))
    assert torch.equal(gathered.whole().back, torch.cat([back[4:], back[:4]]))


class Tied(nn.Module):
    """A table that is also the last layer, a norm, and a linear map that is called twice."""

    def __init__(self):
        super().__init__()
        self.table, self.twice = nn.Embedding(7, 6), nn.Linear(6, 6)
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 7)
        self.head.weight = self.table.weight

    def forward(self, ids):
        x = self.twice(self.twice(self.table(ids)).tanh())
        return self.head(self.norm(x)).mean(1)


@pytest.mark.parametrize("outputs", ["trace", "full"])
def test_rows_in_parts_have_the_same_kernel(monkeypatch, outputs):
    """What a part of the rows leaves is not written over by the next."""
    torch.manual_seed(0)
    model, ids = Tied().double().eval(), torch.randint(0, 7, (9, 4))
    whole = kernel(model, ids, outputs=outputs)
    monkeypatch.setattr(kernel_tape, "BACKS", 1)
    assert torch.allclose(kernel(model, ids, outputs=outputs), whole, rtol=1e-12, atol=0)
