"""The plan: every unit once, one group a batch, groups by content alone.

Holds: tests of ``secant.engine.plan``.
May import: pytest, hypothesis, ``secant``.
"""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secant.engine.plan import group_of, plan_batches
from secant.errors import InputError

contents_of_units = st.lists(st.binary(max_size=3), max_size=60)
seeds = st.integers(-5, 5)


def plan(contents, size=4, seed=0, groups=5):
    return plan_batches(contents, [len(c) for c in contents], groups=groups, size=size, seed=seed)


def group_by_unit(batches):
    return {unit: batch.group for batch in batches for unit in batch.units}


@given(contents_of_units, st.integers(1, 9), seeds)
def test_every_unit_once_in_batches_of_one_group(contents, size, seed):
    batches = plan(contents, size, seed)
    assert sorted(u for b in batches for u in b.units) == list(range(len(contents)))
    for batch in batches:
        assert 1 <= len(batch.units) <= size
        assert {group_of(contents[u], seed, 5) for u in batch.units} == {batch.group}


@given(contents_of_units, seeds)
def test_duplicates_share_a_group(contents, seed):
    groups = group_by_unit(plan(contents + contents, seed=seed))
    assert all(groups[u] == groups[u + len(contents)] for u in range(len(contents)))


@given(contents_of_units, st.randoms(use_true_random=False))
def test_a_group_ignores_the_other_units(contents, random):
    order = random.sample(range(len(contents)), len(contents))
    before = group_by_unit(plan(contents))
    after = group_by_unit(plan([contents[u] for u in order] + [b"another"]))
    assert all(after[place] == before[unit] for place, unit in enumerate(order))


def test_groups_are_about_equal_and_move_with_the_seed():
    contents = [str(number).encode() for number in range(5000)]
    found = [[group_of(c, seed, 5) for c in contents] for seed in (0, 1)]
    for groups in found:
        assert set(groups) == set(range(5))
        assert all(850 < count < 1150 for count in Counter(groups).values())
    assert 0.7 < sum(a != b for a, b in zip(*found, strict=True)) / 5000 < 0.9


def test_within_a_group_lengths_rise():
    contents = [bytes(number % 17) + str(number).encode() for number in range(200)]
    batches = plan(contents)
    for group in range(5):
        lengths = [len(contents[u]) for b in batches if b.group == group for u in b.units]
        assert lengths == sorted(lengths)


def test_a_plan_is_the_same_again():
    contents = [str(number).encode() for number in range(50)]
    assert plan(contents, seed=3) == plan(contents, seed=3)
    assert plan(contents, seed=3) != plan(contents, seed=4)


@pytest.mark.parametrize("size", [0, -1])
def test_a_size_below_one_is_refused(size):
    with pytest.raises(InputError, match="batch size"):
        plan([b"a"], size=size)
