"""Verdicts on two classes: against every support in fractions, closed forms, and an SVM's margin.

Holds: tests of ``secant.uses.separation``, ``separation_search`` and ``combinations``.
May import: pytest, numpy, scipy, sklearn, hypothesis, ``secant``, ``supports``.
"""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.svm import SVC

from secant.errors import InputError, UndecidedError
from secant.uses import separation, separation_search
from secant.uses.combinations import (
    free_columns,
    hull_distance,
    interior_proof,
    proves_meeting,
    signed,
)
from secant.uses.separation import Certificate, check, decide
from supports import hulls_meet

XOR = np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]])
ODD = np.array([False, True, True, False])


def decided(rows, is_positive):
    """The verdict, once its certificate has been checked again."""
    found = decide(rows, is_positive)
    assert check(rows, is_positive, found.certificate) == found.verdict
    return found


def planted(count, width, seed=0):
    draw = np.random.default_rng(seed)
    rows = draw.standard_normal((count, width))
    return rows, rows @ draw.standard_normal(width) > 0.1


def noise(count, width, seed=0):
    draw = np.random.default_rng(seed)
    return draw.standard_normal((count, width)), draw.random(count) < 0.5


points = st.integers(2, 7).flatmap(
    lambda n: st.tuples(
        st.integers(1, 3).flatmap(lambda d: arrays(np.int64, (n, d), elements=st.integers(-2, 2))),
        st.lists(st.booleans(), min_size=n, max_size=n).filter(lambda b: 0 < sum(b) < len(b)),
    )
)


@settings(max_examples=150, deadline=None)
@given(points, st.sampled_from([0, 1, 2]))
def test_small_sets_are_decided_as_by_every_support(case, way):
    """Turned by a multiple of a rotation in whole numbers, moved, scaled: the same verdict."""
    rows, labels = case
    is_positive = np.array(labels)
    table = signed(rows.astype(np.float64), is_positive)
    expected = "not separable" if hulls_meet(table.astype(int).tolist()) else "separable"
    moved = rows.astype(np.float64)
    if way == 1 and rows.shape[1] > 1:
        moved[:, :2] = moved[:, :2] @ np.array([[3.0, -4.0], [4.0, 3.0]])
        moved += 1024.0
    elif way == 2:
        moved = moved * 2.0 ** np.arange(-20, 0, 7)[: rows.shape[1]] - 3.0
    for one in (rows.astype(np.float64), moved):
        found = decided(one, is_positive)
        assert found.verdict == expected
        assert found.eps == 0
        if found.margin is not None:
            assert 0 < found.margin[0] <= found.margin[1]


def test_xor_is_not_and_the_other_fourteen_are():
    verdicts = []
    for code in range(1, 15):
        labels = np.array([bool(code >> place & 1) for place in range(4)])
        verdicts.append((code, decided(XOR, labels).verdict))
    assert [code for code, verdict in verdicts if verdict == "not separable"] == [6, 9]


def test_and_has_the_margin_of_its_corner():
    """From (1, 1) to the segment between the other near corners: 1/√2, twice the margin."""
    found = decided(XOR, np.array([False, False, False, True]))
    radius = 0.5**0.5
    assert found.margin == pytest.approx((0.5**0.5 / 2 / radius,) * 2, rel=1e-3)


def test_one_unit_in_the_last_place_decides():
    ends = [[0.0, 0.0], [1.0, 1.0]]
    labels = np.array([True, True, False])
    for middle, verdict in [
        ([0.5, 0.5], "not separable"),
        ([0.5, np.nextafter(0.5, 1)], "separable"),
        ([0.5, np.nextafter(0.5, 0)], "separable"),
    ]:
        found = decided(np.array([*ends, middle]), labels)
        assert (found.verdict, found.eps) == (verdict, 0)
    found = decided(np.array([[1.0], [np.nextafter(1.0, 2)]]), np.array([True, False]))
    assert found.verdict == "separable"


def test_a_point_on_the_hull_of_many():
    """Half-way between two rows of the other class, among 200 that a plane separates."""
    draw = np.random.default_rng(0)
    rows = 2.0 * draw.integers(-5, 6, (200, 8))
    is_positive = rows @ draw.standard_normal(8) > 0
    one, other = np.flatnonzero(is_positive)[:2]
    assert decided(rows, is_positive).verdict == "separable"
    rows = np.append(rows, [(rows[one] + rows[other]) / 2], 0)
    found = decided(rows, np.append(is_positive, False))
    assert (found.verdict, found.eps) == ("not separable", 0)


def test_equal_rows_of_both_classes_are_named():
    rows = np.array([[1.0, 2], [0, 0], [3, 4], [-0.0, 0]])
    found = decided(rows, np.array([True, True, False, False]))
    assert (found.verdict, found.certificate.rows) == ("not separable", [1, 3])
    assert decided(rows, np.array([True, False, True, False])).verdict == "separable"


@pytest.mark.parametrize("count", [30, 60, 300])
def test_margins_are_those_of_an_svm(count):
    """Bounds on half the distance between the hulls hold the hard-margin machine's."""
    rows, is_positive = planted(count, 10)
    machine = SVC(kernel="linear", C=1e12, tol=1e-8).fit(rows, is_positive)
    radius = np.linalg.norm(rows - rows.mean(0), axis=1).max()
    expected = 1 / np.linalg.norm(machine.coef_) / radius
    low, high = decided(rows, is_positive).margin
    assert low <= expected * (1 + 1e-4)
    assert high >= expected * (1 - 1e-4)
    assert high - low < 1e-3 * high


@pytest.mark.parametrize(("count", "width"), [(300, 60), (50, 80)])
def test_larger_sets(count, width):
    assert decided(*planted(count, width)).verdict == "separable"
    found = decided(*noise(count, width))
    assert found.verdict == ("not separable" if count > 3 * width else "separable")
    assert found.eps == 0


def test_columns_that_depend_do_not_hide_a_proof():
    """Constant, repeated, one-hot columns, and rows that a lone column can always set apart."""
    draw = np.random.default_rng(0)
    rows, is_positive = noise(300, 5)
    hot = np.eye(3)[draw.integers(0, 3, 300)]
    lone = np.zeros((300, 2))
    lone[np.flatnonzero(is_positive)[:4], 0] = 1.0
    lone[7, 1] = 2.5
    wide = np.concatenate([rows, rows[:, :2], np.full((300, 1), 7.0), hot, lone], 1)
    assert len(free_columns(wide)) == 5 + 2 + 2
    found = decided(wide, is_positive)
    assert (found.verdict, found.eps) == ("not separable", 0)
    assert not (lone[found.certificate.rows, 0] != 0).any()


def test_dependence_is_checked_in_whole_numbers():
    rows = np.random.default_rng(0).integers(0, 9, (40, 3)).astype(float)
    third = (rows[:, :1] + 2 * rows[:, 1:2]) / 2
    assert len(free_columns(np.concatenate([rows, third], 1))) == 3
    third[5] = np.nextafter(third[5], 100)
    assert len(free_columns(np.concatenate([rows, third], 1))) == 4


@pytest.mark.parametrize("rows_of", [planted, noise])
def test_the_programme_decides_alone(rows_of, monkeypatch):
    monkeypatch.setattr(separation_search, "STEPS", 0)
    rows, is_positive = rows_of(120, 12)
    found = decided(rows, is_positive)
    assert found.method == "highs-ipm"
    assert found.verdict == ("separable" if rows_of is planted else "not separable")


def test_methods_of_the_programme_stand_in_for_each_other(monkeypatch):
    monkeypatch.setattr(separation_search, "STEPS", 0)
    tried = []
    solve = separation_search.linprog

    def failing(*args, method, **more):
        tried.append(method)
        found = solve(*args, method=method, **more)
        if method != "highs":
            found.status = 4
        return found

    monkeypatch.setattr(separation_search, "linprog", failing)
    assert decided(*noise(60, 5)).method == "highs"
    assert tried == ["highs-ipm", "highs-ds", "highs"]


def test_whole_numbers_decide_alone(monkeypatch):
    monkeypatch.setattr(separation_search, "STEPS", 0)
    monkeypatch.setattr(separation_search, "METHODS", ())
    for rows_of, verdict in ((planted, "separable"), (noise, "not separable")):
        found = decided(*rows_of(60, 4))
        assert (found.verdict, found.method) == (verdict, "whole numbers")
    found = decided(XOR, ODD)
    assert found.certificate.kind == "exact combination"
    assert {Fraction(one) for one in found.certificate.weights} == {Fraction(1, 4)}


def touching(width):
    """A point that rounding puts within some units in the last place of a segment."""
    rows, _ = noise(3 * width, width, seed=3)
    is_positive = rows[:, 0] > 0
    one, other = np.flatnonzero(is_positive)[:2]
    place = np.flatnonzero(~is_positive)[0]
    rows[place] = (rows[one] + rows[other]) / 2
    return rows, is_positive


def test_what_is_too_large_for_whole_numbers_is_left_to_eps():
    found = decided(*touching(40))
    assert found.verdict == "no margin above eps"
    assert 0 < found.eps < 1e-14
    assert decided(*touching(5)).eps == 0


def test_no_proof_is_an_error(monkeypatch):
    monkeypatch.setattr(separation_search, "STEPS", 1)
    monkeypatch.setattr(separation_search, "METHODS", ())
    monkeypatch.setattr(separation, "EXACT_WORK", 0)
    with pytest.raises(UndecidedError, match="a plane, or a combination within"):
        decide(*noise(60, 5))


def test_numbers_near_the_ends_of_float64_are_refused():
    with pytest.raises(InputError, match=r"from 1e-60 to 1e\+60 in size"):
        decide(np.array([[1e300], [1.0]]), np.array([True, False]))
    assert decided(np.array([[1e50], [1e-50]]), np.array([True, False])).verdict == "separable"


def test_spoiled_certificates_prove_nothing():
    rows, is_positive = noise(60, 5)
    proof = decide(rows, is_positive).certificate
    assert check(rows, is_positive, proof) == "not separable"
    # Weights so far inside prove it of other labels too, but not of those of a plane.
    assert check(rows, rows[:, 0] > 0, proof) is None
    lone = [1.0, *[1e-9] * (len(proof.rows) - 1)]
    assert check(rows, is_positive, replace(proof, weights=lone)) is None
    spoiled = [-1.0, *proof.weights[1:]]
    assert check(rows, is_positive, replace(proof, weights=spoiled)) is None

    rows, is_positive = planted(60, 5)
    proof = decide(rows, is_positive).certificate
    assert check(rows, is_positive, replace(proof, plane=[-one for one in proof.plane])) is None
    assert check(rows, is_positive, replace(proof, plane=[*proof.plane[:-1], 100.0])) is None
    assert check(rows, is_positive, replace(proof, plane=[float("nan")] * 6)) is None
    exact = replace(proof, kind="plane in fractions", plane=[str(Fraction(n)) for n in proof.plane])
    assert check(rows, is_positive, exact) == "separable"
    assert check(rows, ~is_positive, exact) is None
    assert check(rows, is_positive, Certificate("equal rows", rows=[0, 1])) is None
    fourth = Certificate("exact combination", rows=[0, 1, 2, 3], weights=["1/4"] * 4)
    assert check(XOR, ODD, fourth) == "not separable"
    assert check(XOR, ~ODD, replace(fourth, weights=["1/4", "1/4", "1/4", "1/5"])) is None
    apart = Certificate("combination", rows=[0, 1], weights=[1.0, 1.0])
    assert check(rows, is_positive, apart) is None


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_no_weights_prove_that_separable_sets_meet(seed):
    rows, is_positive = planted(40, 3, seed)
    weights = np.random.default_rng(seed).random(40)
    assert not proves_meeting(rows, is_positive, weights)
    assert interior_proof(rows, is_positive, weights) is None


@given(st.integers(0, 10**6), st.sampled_from([0.0, 1e8]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_distance_of_two_points_is_rounded_outward(seed, shift, is_near):
    """Also of points that differ by the rounding of one of them alone."""
    draw = np.random.default_rng(seed)
    rows = draw.standard_normal((12, 3)) + shift
    is_positive, weights = np.arange(12) < 5, draw.random(12)
    if is_near:
        rows[5] = weights[:5] @ rows[:5] / weights[:5].sum()
        weights[6:] = 0.0
    points = []
    for chosen in (is_positive, ~is_positive):
        total = sum(map(Fraction, weights[chosen].tolist()))
        points.append([
            sum(Fraction(w) * Fraction(x) for w, x in zip(weights[chosen].tolist(),
                                                          column[chosen].tolist(), strict=True))
            / total
            for column in rows.T
        ])  # fmt: skip
    squared = sum((a - b) ** 2 for a, b in zip(*points, strict=True))
    found = Fraction(hull_distance(rows, is_positive, weights))
    assert squared <= found**2 <= squared * (1 + Fraction(1, 10**6)) + Fraction(1, 10**12)
