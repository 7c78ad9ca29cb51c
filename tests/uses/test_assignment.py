"""Assignments: the largest sum, proved by prices, from any beginning, at any scale.

Holds: tests of ``secant.uses.assignment``.
May import: pytest, torch, hypothesis, scipy, ``secant``.
"""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from secant.errors import InputError
from secant.uses import assignment
from secant.uses.assignment import NATIVE, Assignment, assign

EPS = torch.finfo(torch.float64).eps


@pytest.fixture(params=["C", "scipy"])
def way(request, monkeypatch):
    """Either way of solving; the C is skipped where it was not compiled."""
    if request.param == "scipy":
        monkeypatch.setattr(assignment, "_library", lambda: None)
    else:
        needs_library()
    return request.param


def needs_library():
    if NATIVE.absence():
        pytest.skip(NATIVE.absence())


def total(gain, columns):
    return float(gain.double().gather(1, columns[:, None]).sum())


def check(gain, found):
    """Each column once; the sum is scipy's; prices and the rows' best at them sum to no less."""
    size = len(gain)
    assert found.columns.dtype == torch.int64
    assert found.columns.sort().values.tolist() == list(range(size))
    wide = gain.double()
    slack = 4 * size * EPS * float(wide.abs().max())
    rows, columns = linear_sum_assignment(wide.numpy(), maximize=True)
    best = float(wide[rows, columns].sum())
    assert total(gain, found.columns) == pytest.approx(best, abs=slack, rel=1e-14)
    if found.prices is not None:  # no assignment can have more than this
        bound = (wide - found.prices).amax(1).sum() + found.prices.sum()
        assert float(bound) == pytest.approx(total(gain, found.columns), abs=slack, rel=1e-13)


def drawn(kind, size):
    generator = torch.Generator().manual_seed(size)
    normal = torch.randn(size, size, generator=generator)
    units = torch.randn(size, 9, generator=generator)
    order = torch.randperm(size, generator=generator)
    some = torch.randint(0, max(size // 5, 1), (2, size), generator=generator)
    is_dead = torch.rand(2, size, 1, generator=generator) < 0.4
    kinds = {
        "normal": normal,
        "integers": (10 * normal).round(),
        "few values": normal.sign(),
        "one value": torch.full((size, size), -2.5),
        "permuted copy": units @ units[order].T,
        "dead units": (units.where(~is_dead[0], 0.0)) @ (units[order].where(~is_dead[1], 0.0)).T,
        "units many times": units[some[0]] @ units[some[1]].T,
        "rank one": normal[:1].T @ normal[1:2] if size > 1 else normal,
        "nearly rank one": normal[:1].T @ normal[-1:] + 1e-6 * normal,
        "one column for all": normal + 100 * (torch.arange(size) == 1),
    }
    return kinds[kind]


KINDS = [
    "normal", "integers", "few values", "one value", "permuted copy", "dead units",
    "units many times", "rank one", "nearly rank one", "one column for all",
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("size", [1, 2, 3, 15, 16, 17, 33, 130])
@pytest.mark.parametrize("kind", KINDS)
def test_the_sum_is_the_largest(kind, size, dtype, way):
    gain = drawn(kind, size).to(dtype)
    found = assign(gain)
    check(gain, found)
    assert (found.prices is None) == (way == "scipy")
    assert torch.equal(assign(gain.clone()).columns, found.columns), "another in another run"


def test_nothing_is_matched_with_nothing(way):
    found = assign(torch.zeros(0, 0))
    assert found.columns.shape == (0,)
    assert found.columns.dtype == torch.int64


@pytest.mark.parametrize("kind", KINDS)
def test_any_beginning_ends_at_the_same_sum(kind):
    """From its own end, that of a like gain, of another, of a like one of other orders."""
    needs_library()
    gain = drawn(kind, 70)
    own = assign(gain)
    again = assign(gain, own)
    assert total(gain, again.columns) == pytest.approx(total(gain, own.columns), rel=1e-12)
    generator = torch.Generator().manual_seed(1)
    nudged = gain + 0.1 * torch.randn(70, 70, generator=generator)
    order = torch.randperm(70, generator=generator)
    for before in (nudged, -gain, 1e9 * gain, gain[order], gain[:, order], drawn("normal", 70)):
        begin = assign(before)
        kept = Assignment(begin.columns.clone(), begin.prices.clone())
        found = assign(gain, begin)
        assert torch.equal(begin.columns, kept.columns), "the beginning was changed"
        assert torch.equal(begin.prices, kept.prices), "the beginning was changed"
        loss = 300 * EPS * float(begin.prices.abs().max())  # prices are no finer than this
        assert total(gain, found.columns) == pytest.approx(
            total(gain, own.columns), rel=1e-12, abs=loss
        )


def test_its_own_end_is_left_as_it_is():
    """Pairs that are tight stay: gains of float32 have room in float64 to be summed exactly."""
    needs_library()
    gain = drawn("normal", 100)
    own = assign(gain)
    again = assign(gain, own)
    assert torch.equal(own.columns, again.columns)
    assert torch.equal(own.prices, again.prices)


def test_ties_leave_entries_where_they_are(way):
    """Gains that say nothing move nothing."""
    columns = assign(torch.zeros(20, 20)).columns
    assert torch.equal(columns, torch.arange(20))


@pytest.mark.parametrize("scale", [2.0**-1060, 1e-200, 1e-30, 1e30, 1e200, 2.0**955])
def test_scales_of_gains(scale, way):
    """To the ends of float64: subnormal ones, and sums past its largest number's root."""
    gain = drawn("normal", 40).double() * scale
    check(gain, assign(gain))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_strides_are_free(dtype, way):
    gain = drawn("normal", 48).to(dtype)
    for each in (gain.T, gain[::2, ::2], gain[1:33, 3:35], gain[:1].expand(48, 48)):
        check(each, assign(each))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("size", [5, 16, 40])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_gains_that_are_no_numbers_are_refused(value, size, dtype, way):
    gain = drawn("normal", size).to(dtype)
    gain[-1, -1] = gain[0, 3] = value
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(
        InputError,
        match=rf"must be finite and below 2\^960; 2 of {size**2} pairs are not\. Products of "
        rf"weights leave the range of {name}: make the weights smaller",
    ):
        assign(gain)


def test_gains_whose_sums_leave_the_range_are_refused(way):
    gain = torch.eye(4, dtype=torch.float64)
    gain[2, 1] = -(2.0**959)
    check(gain, assign(gain))
    gain[2, 1] *= 2
    with pytest.raises(InputError, match="1 of 16 pairs are not"):
        assign(gain)


VALUES = st.one_of(
    st.integers(-3, 3).map(float),
    st.floats(-1024.0, 1024.0, width=32),
    st.floats(-(2.0**-126), 2.0**-126, width=32),
    st.floats(-(2.0**100), 2.0**100, width=32),
)


@st.composite
def squares(draw, most):
    size = draw(st.integers(1, most))
    values = draw(st.lists(VALUES, min_size=size**2, max_size=size**2))
    return torch.tensor(values, dtype=draw(st.sampled_from([torch.float32, torch.float64]))).view(
        size, size
    )


@given(squares(5))
def test_no_order_of_all_has_more(gain):
    needs_library()
    every = [total(gain, torch.tensor(order)) for order in itertools.permutations(range(len(gain)))]
    slack = 100 * EPS * float(gain.abs().max())
    assert total(gain, assign(gain).columns) == pytest.approx(max(every), abs=slack)


@given(squares(20), st.data())
def test_the_law_of_prices(gain, data):
    """Cold, and from any prices and columns at all."""
    needs_library()
    size = len(gain)
    check(gain, assign(gain))
    prices = data.draw(st.lists(st.floats(-1e3, 1e3), min_size=size, max_size=size))
    columns = data.draw(st.lists(st.integers(-1, size - 1), min_size=size, max_size=size))
    begin = Assignment(torch.tensor(columns), torch.tensor(prices, dtype=torch.float64))
    found = assign(gain, begin)
    slack = 100 * size * EPS * max(float(gain.abs().max()), 1e3)
    assert total(gain, found.columns) == pytest.approx(total(gain, assign(gain).columns), abs=slack)
