"""Methods of merging: closed forms, laws, and each paper's algorithm typed naively.

Holds: tests of ``secant.uses.merge_methods``.
May import: pytest, hypothesis, numpy, torch, ``secant``.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from secant.errors import InputError
from secant.load.kinds import KINDS, narrowed, widened
from secant.uses import merge_methods as methods

F32, F64, BF16, F16 = (KINDS[name] for name in ("F32", "F64", "BF16", "F16"))
VALUES = st.floats(-100, 100, width=32)
VECTORS = arrays(np.float32, 7, elements=VALUES)


def normal(count, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(count).astype(dtype)


def shares(a, b, t):
    return methods.slerp_shares(methods.inner_products(a, b).tolist(), t)


def bfloats(count, seed):
    return widened(narrowed(normal(count, seed, np.float32), BF16), BF16)


# linear


def linear(tensors, weights, *, normalise):
    return methods.linear((one.copy() for one in tensors), weights, normalise=normalise)


def test_linear_is_the_weighted_mean():
    a, b = np.array([1.0, 2.0]), np.array([5.0, -2.0])
    assert linear([a, b], [1, 3], normalise=True).tolist() == [4, -1]
    assert linear([a, b], [1, 3], normalise=False).tolist() == [16, -4]


@given(VECTORS, st.lists(st.floats(0.1, 3), min_size=2, max_size=4))
def test_linear_of_a_model_with_itself_is_the_model(x, weights):
    x = x.astype(float)  # in float32 numpy's own tolerance underflows
    found = linear([x] * len(weights), weights, normalise=True)
    np.testing.assert_allclose(found, x, rtol=1e-14, atol=0)


@given(st.permutations(range(3)), st.lists(st.floats(0.1, 3), min_size=3, max_size=3))
def test_linear_does_not_depend_on_the_order(order, weights):
    tensors = [normal(9, seed) for seed in range(3)]
    one = linear(tensors, weights, normalise=True)
    other = linear([tensors[i] for i in order], [weights[i] for i in order], normalise=True)
    np.testing.assert_allclose(other, one, rtol=1e-12, atol=1e-15)


def test_weights_without_a_mean_are_refused():
    with pytest.raises(InputError, match=r"1, -1 sum to 0"):
        linear([normal(2), normal(2)], [1, -1], normalise=True)


# slerp


def slerp(a, b, t):
    return linear((a, b), shares(a, b, t), normalise=False)


@given(st.floats(0, 1), st.floats(0.1, 3.0))
def test_slerp_in_the_plane_turns_by_the_share_of_the_angle(t, angle):
    a, b = np.array([1.0, 0.0]), np.array([math.cos(angle), math.sin(angle)])
    found = slerp(a, b, t)
    np.testing.assert_allclose(found, [math.cos(t * angle), math.sin(t * angle)], atol=1e-12)


@given(st.floats(0, 1), st.integers(0, 50))
def test_slerp_of_equal_norms_keeps_the_norm(t, seed):
    a, b = normal(20_000, seed), normal(20_000, seed + 100)
    b *= np.linalg.norm(a) / np.linalg.norm(b)
    found = slerp(a, b, t)
    assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(a), rel=1e-12)


def test_slerp_reaches_its_ends_and_is_the_same_backwards():
    a, b = normal(30, 1), normal(30, 2)
    np.testing.assert_array_equal(slerp(a, b, 0), a)
    np.testing.assert_array_equal(slerp(a, b, 1), b)
    np.testing.assert_allclose(slerp(a, b, 0.3), slerp(b, a, 0.7), rtol=1e-12)


@pytest.mark.parametrize("factor", [2.0, -2.0, 0.0])
def test_slerp_without_an_arc_is_straight(factor):
    a = normal(10)
    found = slerp(a, factor * a, 0.25)
    # Of a zero end the cosine is 0: its arc is taken, as for orthogonal ends.
    share = math.sin(0.75 * math.pi / 2) if factor == 0 else 0.75 + 0.25 * factor
    np.testing.assert_allclose(found, share * a, rtol=1e-12)


@pytest.mark.parametrize("count", [1, 4095, 4096, 4097, 12_289])
def test_inner_products_are_exact_enough_for_any_length(count):
    a, b = normal(count, 1, np.float32), normal(count, 2, np.float32)
    x, y = a.astype(float), b.astype(float)
    np.testing.assert_allclose(
        methods.inner_products(a, b), [x @ x, y @ y, x @ y], rtol=1e-6, atol=1e-6 * count**0.5
    )


# task arithmetic


def changed(base, others, kind=F64):
    return [methods.change(other.copy(), base, kind) for other in others]


def test_task_arithmetic_adds_weighted_changes():
    base, a, b = np.array([1.0, 1.0]), np.array([3.0, 1.0]), np.array([1.0, 0.0])
    found = methods.task_arithmetic(
        base, changed(base, [a, b]), [0.5, 2], F64, normalise=False, scale=1
    )
    assert found.tolist() == [2, -1]
    found = methods.task_arithmetic(
        base, changed(base, [a, b]), [0.5, 2], F64, normalise=True, scale=5
    )
    assert found.tolist() == [3, -3]


@given(VECTORS, VECTORS)
def test_one_change_of_weight_one_is_the_model(base, other):
    base, other = base.astype(float), other.astype(float)
    for merged in (methods.task_arithmetic, methods.ties):
        found = merged(base, changed(base, [other]), [1.0], F64, normalise=False, scale=1)
        np.testing.assert_allclose(found, other, rtol=0, atol=1e-13)


# TIES


def by_the_paper(base, others, weights, density):
    """Algorithm 1 of arXiv:2306.01708, with weights, value by value."""
    kept = []
    for other in others:
        change = [x - y for x, y in zip(other, base, strict=True)]
        count = max(1, int(density * len(change)))
        largest = sorted(range(len(change)), key=lambda i: -abs(change[i]))[:count]
        kept.append([value if i in largest else 0.0 for i, value in enumerate(change)])
    found = []
    for place, start in enumerate(base):
        parts = [(w * one[place], w) for one, w in zip(kept, weights, strict=True)]
        sign = 1 if sum(part for part, _ in parts) >= 0 else -1
        chosen = [(part, w) for part, w in parts if part * sign > 0]
        weight = sum(w for _, w in chosen)
        found.append(start + (sum(part for part, _ in chosen) / weight if chosen else 0.0))
    return found


def tied(base, others, weights, density, kind=F64, **how):
    changes = changed(base, others, kind)
    keep = max(1, int(density * base.size))
    for number, one in enumerate(changes):

        def counts(prefix, shift, one=one):
            found = np.zeros(1 << methods.DIGIT_BITS, np.uint32)
            methods.count_digits(methods.magnitudes(one, kind), prefix, shift, found)
            return [found]

        limit = methods.threshold(counts, kind, keep)
        changes[number], _ = methods.trimmed(one, kind, limit.value, limit.quota(0))
    return methods.ties(base, changes, weights, kind, **{"normalise": True, "scale": 1} | how)


def test_ties_by_hand():
    """Two models, five values, density 0.6: three changes of each survive."""
    base = np.zeros(5)
    a = np.array([4.0, -3.0, 0.1, 2.0, 0.2])  # keeps 4, -3, 2
    b = np.array([2.0, 5.0, -1.0, 0.3, 0.4])  # keeps 2, 5, -1
    # Signs: +, + (5 over -3), -, +, none; means of those that agree.
    assert tied(base, [a, b], [1, 1], 0.6).tolist() == [3, 5, -1, 2, 0]


@settings(max_examples=50)
@given(
    st.integers(0, 1000),
    st.lists(st.floats(0.1, 2), min_size=1, max_size=4),
    st.floats(0.05, 1),
)
def test_ties_is_the_papers(seed, weights, density):
    base, *others = (normal(23, seed + i) for i in range(len(weights) + 1))
    found = tied(base, others, weights, density)
    np.testing.assert_allclose(found, by_the_paper(base, others, weights, density), rtol=1e-12)


@given(st.permutations(range(3)))
def test_ties_does_not_depend_on_the_order(order):
    base, *others = (normal(50, i) for i in range(4))
    weights = [0.5, 1.0, 2.0]
    one = tied(base, others, weights, 0.4)
    other = tied(base, [others[i] for i in order], [weights[i] for i in order], 0.4)
    np.testing.assert_allclose(other, one, rtol=1e-12)


@pytest.mark.parametrize("kind", [F32, F64, BF16, F16], ids=lambda kind: kind.name)
@given(count=st.integers(1, 400), pieces=st.integers(1, 4), data=st.data())
@settings(max_examples=40)
def test_the_threshold_is_the_kth_largest(kind, count, pieces, data):
    """Against sorting; few distinct values in half of the cases, so that there are many ties."""
    values = normal(count, data.draw(st.integers(0, 99)))
    if data.draw(st.booleans()):
        values = np.round(values)
    values = widened(narrowed(values.astype(kind.working), kind), kind)
    keep = data.draw(st.integers(1, count))
    parts = np.array_split(values, pieces)

    def counts(prefix, shift):
        for part in parts:
            found = np.zeros(1 << methods.DIGIT_BITS, np.uint32)
            methods.count_digits(methods.magnitudes(part, kind), prefix, shift, found)
            yield found

    limit = methods.threshold(counts, kind, keep)
    trimmed = [
        methods.trimmed(part.copy(), kind, limit.value, limit.quota(i))
        for i, part in enumerate(parts)
    ]
    order = np.argsort(-np.abs(values), kind="stable")[:keep]
    expected = np.zeros_like(values)
    expected[order] = values[order]
    np.testing.assert_array_equal(np.concatenate([part for part, _ in trimmed]), expected)


def test_nothing_survives_the_threshold_of_nothing():
    for kind in (F32, BF16):
        limit = methods.nothing(kind, 2)
        values = widened(narrowed(normal(9, 0, np.float32), kind), kind)
        assert not methods.trimmed(values, kind, limit.value, limit.quota(0))[0].any()


# the arithmetic of short types


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(("kind", "dtype"), [(BF16, torch.bfloat16), (F16, torch.float16)])
def test_short_types_are_rounded_after_each_step_as_torch_does(kind, dtype, normalise):
    """The same formulas by torch's own arithmetic in that type, to the bit."""
    base, a, b = (torch.from_numpy(normal(5000, i, np.float32)).to(dtype) for i in range(3))
    weights = torch.tensor([0.3, 0.7]).to(dtype)
    parts = torch.stack([a - base, b - base]) * weights[:, None]
    total = parts.sum(0)
    if normalise:
        total = total / weights.sum(0)
    expected = base + total * 0.9
    agree = parts.sign() == torch.where(parts.sum(0) >= 0, 1, -1).to(dtype)
    total = (parts * agree).sum(0)
    if normalise:
        divisor = (weights[:, None] * agree).sum(0)
        total = total / torch.where(divisor == 0, 1, divisor)
    elected = base + total * 0.9
    x, *others = (one.float().numpy() for one in (base, a, b))
    for way, wanted in ((methods.task_arithmetic, expected), (methods.ties, elected)):
        found = way(
            x.copy(), changed(x, others, kind), [0.3, 0.7], kind, normalise=normalise, scale=0.9
        )
        assert narrowed(found, kind).tobytes() == wanted.view(torch.uint8).numpy().tobytes()


# DARE


def dropped(change, density, random, *, rescale=True):
    keep = methods.kept(change.size, density, random)
    return methods.dropped(change.copy(), keep, density, F64, rescale=rescale)


def test_dare_is_unbiased_and_keeps_its_share():
    """Mean and share over 4,000 draws of 200 values, within 5 standard errors."""
    change, density, draws = normal(200), 0.3, 4000
    random = np.random.default_rng(0)
    total, kept = np.zeros(200), 0
    for _ in range(draws):
        found = dropped(change, density, random)
        total += found
        kept += np.count_nonzero(found)
    error = np.abs(change) * math.sqrt((1 / density - 1) / draws)
    assert (np.abs(total / draws - change) < 5 * error).all()
    share_error = math.sqrt(density * (1 - density) / (200 * draws))
    assert kept / (200 * draws) == pytest.approx(density, abs=5 * share_error)


def test_what_dare_keeps_is_divided_by_the_density():
    change = normal(1000)
    found = dropped(change, 0.25, np.random.default_rng(1))
    plain = dropped(change, 0.25, np.random.default_rng(1), rescale=False)
    assert set(np.unique(found / change)) == {0.0, 4.0}
    assert set(np.unique(plain / change)) == {0.0, 1.0}


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_dare_at_its_ends(density):
    found = dropped(normal(50), density, np.random.default_rng(0))
    np.testing.assert_array_equal(found, density * normal(50))


@pytest.mark.parametrize("density", [2.0**-17, 0.5, 0.9, 1 - 2.0**-17])
def test_choices_have_the_exact_probability(density):
    """8 random bits alone would round the first to 0 and the last to 1."""
    count = 8_000_003
    kept = np.count_nonzero(methods.kept(count, density, np.random.default_rng(3)))
    deviation = math.sqrt(count * density * (1 - density))
    assert abs(kept - count * density) < 5 * deviation


def test_choices_are_independent_of_their_neighbours():
    kept = methods.kept(1_000_000, 0.4, np.random.default_rng(5)).astype(float) - 0.4
    for lag in (1, 2, 3, 4, 8):
        correlation = (kept[lag:] * kept[:-lag]).mean() / 0.24
        assert abs(correlation) < 5e-3  # five standard errors


def test_a_value_that_is_no_number_stays_to_be_seen():
    base, other = np.zeros(4), np.array([1.0, np.nan, -1.0, 0.0])
    for way in (methods.task_arithmetic, methods.ties):
        found = way(base, changed(base, [other]), [0.5], F64, normalise=True, scale=1)
        assert np.isnan(found).tolist() == [False, True, False, False]
    many = np.full(1000, np.nan)
    assert np.isnan(dropped(many, 0.5, np.random.default_rng(0))).all()
