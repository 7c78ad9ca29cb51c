"""The interval for a held-out R2: its coverage in simulation, and cases known in closed form."""

import functools
import math

import numpy as np
import pytest
import torch
from scipy.stats import t as student

from secant.errors import InputError
from secant.gauges.interval import FOLDS, GROUPS, difference_interval, ratio_interval

INPUTS, OUTPUTS, ROWS = 4, 2, 7
NOISE_UNIT, NOISE_ROW, X_VAR = 1.0, 1.5, 2.0
_weights = np.random.default_rng(0)
W = _weights.normal(size=(INPUTS, OUTPUTS))
A = 0.5 * _weights.normal(size=(INPUTS, OUTPUTS))


# The scale of a unit multiplies its inputs and its noise: name -> (draw, E s, E s^2).
SCALES = {
    "light": (lambda rng, n: np.ones(n), 1.0, 1.0),
    "heavy_t5": (
        lambda rng, n: 1 / np.sqrt(rng.chisquare(5, n) / 5),
        math.sqrt(2.5) * math.gamma(2.0) / math.gamma(2.5),
        5 / 3,
    ),
    "heavy_lognormal": (
        lambda rng, n: np.exp(0.5 * rng.standard_normal(n)),
        math.exp(0.125),
        math.exp(0.5),
    ),
}


def population_moment(scale: str) -> np.ndarray:
    """E z z' of z = (1, x, y) with y = x W + |x| A + noise, all times the scale of the unit."""
    _, first, second = SCALES[scale]
    x, y = slice(1, 1 + INPUTS), slice(1 + INPUTS, None)
    mean_abs = math.sqrt(2 * X_VAR / math.pi)
    mean_y = mean_abs * A.sum(0)
    moment = np.zeros((1 + INPUTS + OUTPUTS,) * 2)
    moment[0, 0] = 1.0
    moment[x, x] = second * X_VAR * np.eye(INPUTS)
    moment[x, y] = second * X_VAR * W
    moment[y, x] = moment[x, y].T
    moment[0, y] = moment[y, 0] = first * mean_y
    moment[y, y] = second * (
        X_VAR * W.T @ W
        + (X_VAR - mean_abs**2) * A.T @ A
        + np.outer(mean_y, mean_y)
        + (NOISE_UNIT**2 + NOISE_ROW**2) * np.eye(OUTPUTS)
    )
    return moment


def drawn_sums(rng, reps, units, scale):
    """Sums of z z' over the rows of each group, and over those of the other folds than each.

    Drawn anew in ``reps`` data sets: (reps, GROUPS, p, p) and (reps, FOLDS, p, p).
    """
    sizes = rng.integers(1, ROWS + 1, size=(reps, units))
    s = SCALES[scale][0](rng, (reps, units))[..., None, None]
    shape = (reps, units, ROWS)
    x = rng.standard_normal((reps, units, 1, INPUTS)) + rng.standard_normal((*shape, INPUTS))
    noise = NOISE_UNIT * rng.standard_normal((reps, units, 1, OUTPUTS))
    noise = noise + NOISE_ROW * rng.standard_normal((*shape, OUTPUTS))
    z = np.concatenate([np.ones((*shape, 1)), s * x, s * (x @ W + np.abs(x) @ A + noise)], -1)
    z *= (np.arange(ROWS) < sizes[..., None])[..., None]
    grams = np.swapaxes(z, -1, -2) @ z
    groups = np.add.reduceat(grams, np.arange(GROUPS) * units // GROUPS, axis=1)
    folds = groups.reshape(reps, FOLDS, GROUPS // FOLDS, *groups.shape[2:]).sum(2)
    train = folds.sum(1, keepdims=True) - folds
    return groups, train


def replicate(rng, reps, units, scale):
    """True R2 of the fitted maps, and the group sums, in ``reps`` data sets."""
    groups, train = drawn_sums(rng, reps, units, scale)
    p = 1 + INPUTS
    slopes = np.linalg.solve(train[..., :p, :p], train[..., :p, p:])
    means = np.zeros_like(slopes)
    means[..., :1, :] = train[..., :1, p:] / train[..., :1, :1]
    eye = np.broadcast_to(np.eye(OUTPUTS), (reps, FOLDS, OUTPUTS, OUTPUTS))
    sums, true = [], []
    for coefficients in (slopes, means):
        c = np.concatenate([-coefficients, eye], -2)
        square = c @ np.swapaxes(c, -1, -2)
        sums.append((groups * np.repeat(square, GROUPS // FOLDS, axis=1)).sum((2, 3)))
        true.append((square * population_moment(scale)).sum((1, 2, 3)))
    return 1 - true[0] / true[1], sums[0], sums[1]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("units", "reps"), [(50, 4000), (200, 3000), (1000, 1500)])
def test_interval_covers_the_r2_of_the_fitted_maps(scale, units, reps):
    rng = np.random.default_rng([0, units])
    chunk = 20000 // units
    hits, done = 0, 0
    while done < reps:
        truth, residual, total = replicate(rng, chunk, units, scale)
        for value, r, t in zip(truth, torch.tensor(residual), torch.tensor(total), strict=True):
            low, high = ratio_interval(r, t)
            hits += low <= value <= high
        done += chunk
    coverage = hits / done
    print(f"{scale} units={units} reps={done} coverage={coverage:.4f}")
    assert 0.92 <= coverage <= 0.98


# Populations written down before any result on them was seen, after the effective df was adopted.
# Each draws (x, y, sizes): rows of units, the first ``sizes`` of FRESH_ROWS real.
FRESH_ROWS = 5
_fresh = np.random.default_rng(2024)
FRESH_W, FRESH_A = _fresh.normal(size=(8, OUTPUTS)), _fresh.normal(size=(8, OUTPUTS))


def fresh_inputs(rng, units, inputs, unit_var=1.0):
    unit = math.sqrt(unit_var) * rng.standard_normal((units, 1, inputs))
    return unit + rng.standard_normal((units, FRESH_ROWS, inputs))


def fresh_noise(rng, units):
    rows = rng.standard_normal((units, FRESH_ROWS, OUTPUTS))
    return rng.standard_normal((units, 1, OUTPUTS)) + 1.5 * rows


def gamma_scale(rng, units):
    """A gamma scale, shape 2, multiplies inputs and noise of the unit; linear truth."""
    s = rng.gamma(2.0, 0.5, size=(units, 1, 1))
    x = fresh_inputs(rng, units, 6)
    y = x @ FRESH_W[:6] + fresh_noise(rng, units)
    return s * x, s * y, rng.integers(1, FRESH_ROWS + 1, units)


def size_and_scale(rng, units):
    """Longer units have larger scales, with a lognormal factor; linear truth."""
    sizes = rng.integers(1, FRESH_ROWS + 1, units)
    s = np.sqrt(sizes / 3) * np.exp(0.3 * rng.standard_normal(units))
    s = s[:, None, None]
    x = fresh_inputs(rng, units, 4)
    return s * x, s * (x @ FRESH_W[:4] + fresh_noise(rng, units)), sizes


def nonlinear(rng, units):
    """A sine and a product of inputs: the fitted map is far from the truth."""
    x = fresh_inputs(rng, units, 8)
    y = x @ FRESH_W / 2 + 2 * np.sin(x @ FRESH_A) + 0.5 * x[..., :2] * x[..., 2:4]
    return x, y + fresh_noise(rng, units) / 2, rng.integers(1, FRESH_ROWS + 1, units)


def laplace_effects(rng, units):
    """Laplace row noise and larger Laplace random effects of the unit; linear truth."""
    x = fresh_inputs(rng, units, 5, unit_var=2.0)
    noise = rng.laplace(size=(units, FRESH_ROWS, OUTPUTS))
    noise += 1.5 * rng.laplace(size=(units, 1, OUTPUTS))
    return x, x @ FRESH_W[:5] + noise, rng.integers(1, FRESH_ROWS + 1, units)


def fresh_rows(draw, rng, units):
    x, y, sizes = draw(rng, units)
    z = np.concatenate([np.ones((*x.shape[:2], 1)), x, y], -1)
    z *= (np.arange(FRESH_ROWS) < sizes[:, None])[..., None]
    return z.reshape(-1, z.shape[-1])


@functools.cache
def fresh_moment(draw):
    """E of the sum of z z' over a unit, from 400,000 units drawn apart."""
    rng, parts, each = np.random.default_rng(77), 40, 10_000
    grams = (z.T @ z for z in (fresh_rows(draw, rng, each) for _ in range(parts)))
    return sum(grams) / (parts * each)


def fresh_replicate(draw, rng, units):
    """True R2 of the fitted maps (folds weighted by their units) and the group sums.

    Each unit falls in a group independently, as by a hash: group sizes are multinomial.
    """
    counts = rng.multinomial(units, np.full(GROUPS, 1 / GROUPS))
    z = fresh_rows(draw, rng, units)
    parts = np.split(z, np.cumsum(counts)[:-1] * FRESH_ROWS)
    groups = np.stack([part.T @ part for part in parts])
    folds = groups.reshape(FOLDS, GROUPS // FOLDS, *groups.shape[1:]).sum(1)
    train = folds.sum(0) - folds
    p = z.shape[1] - OUTPUTS
    slopes = np.linalg.solve(train[:, :p, :p], train[:, :p, p:])
    means = np.zeros_like(slopes)
    means[:, 0] = train[:, 0, p:] / train[:, :1, 0]
    held = counts.reshape(FOLDS, -1).sum(1)
    sums, true = [], []
    for coefficients in (slopes, means):
        c = np.concatenate([-coefficients, np.broadcast_to(np.eye(OUTPUTS), (FOLDS, 2, 2))], 1)
        square = c @ c.swapaxes(1, 2)
        values = (groups * np.repeat(square, GROUPS // FOLDS, axis=0)).sum((1, 2))
        sums.append(torch.tensor(values.clip(0.0)))
        true.append(held @ (square * fresh_moment(draw)).sum((1, 2)))
    return 1 - true[0] / true[1], *sums


@pytest.mark.parametrize("draw", [gamma_scale, size_and_scale, nonlinear, laplace_effects])
@pytest.mark.parametrize(("units", "reps"), [(50, 1000), (200, 800), (1000, 400)])
def test_interval_covers_on_populations_chosen_before_their_results(draw, units, reps):
    rng = np.random.default_rng([1, units])
    hits = 0
    for _ in range(reps):
        value, residual, total = fresh_replicate(draw, rng, units)
        low, high = ratio_interval(residual, total)
        hits += low <= value <= high
    coverage = hits / reps
    print(f"{draw.__name__} units={units} reps={reps} coverage={coverage:.4f}")
    assert 0.92 <= coverage <= 0.98


def test_equal_totals_give_the_hand_computed_jackknife():
    r = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    t = torch.full((3,), 10.0, dtype=torch.float64)
    left = [math.log(5 / 20), math.log(4 / 20), math.log(3 / 20)]
    mean = sum(left) / 3
    reach = student.ppf(0.95, 2) * math.sqrt(2 / 3 * sum((v - mean) ** 2 for v in left))
    low, high = ratio_interval(r, t, level=0.9)
    assert low == pytest.approx(1 - 0.2 * math.exp(reach), rel=1e-12)
    assert high == pytest.approx(1 - 0.2 * math.exp(-reach), rel=1e-12)


def test_constant_ratio_has_no_width():
    t = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    assert ratio_interval(0.25 * t, t) == pytest.approx((0.75, 0.75), abs=1e-12)


def test_common_scale_and_order_do_not_matter():
    r, t = torch.rand(2, GROUPS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = ratio_interval(r, t + 1)
    assert ratio_interval(1e-200 * r, 1e-200 * (t + 1)) == pytest.approx(expected)
    assert ratio_interval(r.flip(0), (t + 1).flip(0)) == pytest.approx(expected)


@pytest.mark.parametrize("left", [0.0, 1e-30])
def test_affine_map_gives_one(left):
    residual = torch.zeros(GROUPS, dtype=torch.float64)
    residual[3] = left
    assert ratio_interval(residual, torch.ones(GROUPS)) == (1.0, 1.0)


def test_one_group_with_everything_says_nothing_is_known():
    one = torch.tensor([0.0, 0.0, 2.0])
    assert ratio_interval(one, torch.ones(3)) == (-math.inf, 1.0)
    assert ratio_interval(torch.ones(3), one) == (-math.inf, 1.0)


def test_one_nearly_whole_group_stays_ordered():
    low, high = ratio_interval(torch.ones(3), torch.tensor([1e-12, 1e-12, 1.0]))
    assert low <= -2.0 <= high <= 1.0


def test_higher_level_is_wider():
    r, t = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.full((4,), 10.0)
    low, high = ratio_interval(r, t)
    wide_low, wide_high = ratio_interval(r, t, level=0.99)
    assert wide_low < low < high < wide_high


def test_uneven_totals_take_fewer_degrees_of_freedom():
    r = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    t = torch.tensor([5.0, 5.0, 10.0, 30.0], dtype=torch.float64)
    left = torch.log((10 - r) / (50 - t))
    se = math.sqrt(0.75 * float(((left - left.mean()) ** 2).sum()))
    reach = student.ppf(0.975, 2500 / 1050 - 1) * se
    expected = (1 - 0.2 * math.exp(reach), 1 - 0.2 * math.exp(-reach))
    assert ratio_interval(r, t) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_not_finite_gives_nan(bad):
    values = torch.tensor([1.0, bad, 1.0])
    assert all(map(math.isnan, ratio_interval(values, torch.ones(3))))
    assert all(map(math.isnan, ratio_interval(torch.ones(3), values)))


def test_zero_total_gives_nan():
    assert all(map(math.isnan, ratio_interval(torch.zeros(3), torch.zeros(3))))


@pytest.mark.parametrize(
    ("residual", "total", "level", "message"),
    [
        (torch.ones(4), torch.ones(5), 0.95, "one shape"),
        (torch.ones(4, 1), torch.ones(4, 1), 0.95, "one shape"),
        (torch.ones(2), torch.ones(2), 0.95, "at least 3 groups"),
        (torch.tensor([1.0, -1.0, 1.0]), torch.ones(3), 0.95, "negative"),
        (torch.ones(3), torch.ones(3), 1.0, "level"),
    ],
)
def test_unusable_input_is_refused(residual, total, level, message):
    with pytest.raises(InputError, match=message):
        ratio_interval(residual, total, level)


def test_one_heavy_group_of_a_nearly_affine_map_gives_a_narrow_interval() -> None:
    """Equal totals 1, residuals near 0 but for one r: the jackknife in closed form.

    Leaving out g gives (R - r_g) / 9: values r / 9 nine times and 0 once, so the spread is
    se² = 9/10 · (9 (r/90)² + (r/10)²) = (r/10)², and R / T = r / 10 too.
    """
    residual = torch.full((10,), 1e-30, dtype=torch.float64)
    residual[3] = heavy = 1e-6
    low, high = ratio_interval(residual, torch.ones(10, dtype=torch.float64))
    quantile = 2.2621571628540993  # Student t, 9 degrees of freedom, 97.5 %
    assert 1 - low == pytest.approx((1 + quantile) * heavy / 10, rel=1e-6)
    assert high == 1


# The difference of two scores of the same units ---------------------------------------------


def pair_replicate(rng, reps, units, scale):
    """True difference of R2 between both outputs, from inputs cut to two, and the sums of each.

    Score ``a`` is of output 0 from all inputs, ``b`` of output 1 from the first two only; both
    outputs share units, inputs and the units' scales.
    """
    groups, train = drawn_sums(rng, reps, units, scale)
    scores, sums = [], []
    for width, output in ((1 + INPUTS, 1 + INPUTS), (3, 2 + INPUTS)):
        true = []
        for used in (width, 1):
            c = np.zeros((reps, FOLDS, 1 + INPUTS + OUTPUTS))
            target = train[..., :used, output, None]
            c[..., :used] = -np.linalg.solve(train[..., :used, :used], target)[..., 0]
            c[..., output] = 1
            square = c[..., :, None] * c[..., None, :]
            sums.append((groups * np.repeat(square, GROUPS // FOLDS, axis=1)).sum((2, 3)))
            true.append((square * population_moment(scale)).sum((1, 2, 3)))
        scores.append(1 - true[0] / true[1])
    return scores[0] - scores[1], sums


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("units", "reps"), [(50, 1200), (200, 600), (1000, 300)])
def test_difference_interval_covers(scale, units, reps):
    rng = np.random.default_rng([3, units])
    chunk = 20000 // units
    hits, done = 0, 0
    while done < reps:
        truth, sums = pair_replicate(rng, chunk, units, scale)
        for value, *four in zip(truth, *map(torch.tensor, sums), strict=True):
            low, high = difference_interval(*four)
            hits += low <= value <= high
        done += chunk
    coverage = hits / done
    print(f"{scale} units={units} reps={done} coverage={coverage:.4f}")
    assert 0.92 <= coverage <= 0.98


def test_difference_with_equal_totals_is_the_jackknife_of_a_mean():
    """Equal totals t: leave-one-out values are means, so se² is that of a mean of differences."""
    g = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 8, generator=g, dtype=torch.float64)
    t = torch.full((8,), 2.0, dtype=torch.float64)
    gaps = (b - a) / 2
    reach = student.ppf(0.975, 7) * float(gaps.std(correction=1)) / math.sqrt(8)
    expected = (float(gaps.mean()) - reach, float(gaps.mean()) + reach)
    assert difference_interval(a, t, b, t) == pytest.approx(expected, rel=1e-10)


@pytest.mark.filterwarnings("error")
def test_scores_whose_squares_leave_the_range_keep_their_interval():
    """Scaled by a power of two, which changes no digit: a chaotic control, or R2 itself."""
    residual, total = torch.tensor([0.3, 0.9, 1.4, 0.2]).double(), torch.ones(4).double()
    other = torch.tensor([0.4, 0.1, 0.5, 0.2]).double()
    scale = 2.0**600
    small = difference_interval(residual * 2.0**400, total, other, total)
    large = difference_interval(residual * 2.0**400 * scale, total, other, total)
    assert [one / scale for one in large] == pytest.approx(small, rel=1e-12)
    uneven = torch.tensor([1e-9, 1e9, 3.0, 40.0]).double()
    low, high = ratio_interval(uneven * scale, total)
    assert low / scale == pytest.approx(ratio_interval(uneven, total)[0], rel=1e-6)
    assert high == 1.0


def test_root_difference_is_the_jackknife_by_hand():
    r, t = torch.tensor([1.0, 2.0, 6.0]).double(), torch.tensor([10.0, 10.0, 10.0]).double()
    s = torch.tensor([4.0, 4.0, 1.0]).double()
    left = [
        math.sqrt((9 - x) / 20) - math.sqrt((9 - y) / 20)
        for x, y in zip(r.tolist(), s.tolist(), strict=True)
    ]
    mean = sum(left) / 3
    reach = student.ppf(0.975, 2) * math.sqrt(2 / 3 * sum((v - mean) ** 2 for v in left))
    found = difference_interval(r, t, s, t, is_root=True)
    assert found == pytest.approx((-reach, reach), rel=1e-12)


def test_what_both_share_cancels():
    """The residual of b is that of a plus a fixed share of the total: no spread is left."""
    g = torch.Generator().manual_seed(1)
    r, t = torch.rand(GROUPS, generator=g).double(), 1 + torch.rand(GROUPS, generator=g).double()
    assert difference_interval(r, t, r + 0.25 * t, t) == pytest.approx((0.25, 0.25), abs=1e-12)
    assert difference_interval(r, t, r, t) == (0.0, 0.0)
    low, high = difference_interval(r, t, r.flip(0), t)
    assert low == pytest.approx(-high)
    assert high > 0.01


def test_difference_without_a_number_says_so():
    one, heavy = torch.ones(3), torch.tensor([0.0, 0.0, 2.0])
    bad = torch.tensor([1.0, math.nan, 1.0])
    assert all(map(math.isnan, difference_interval(one, one, bad, one)))
    assert all(map(math.isnan, difference_interval(one, torch.zeros(3), one, one)))
    assert difference_interval(one, heavy, one, one) == (-math.inf, math.inf)


@pytest.mark.parametrize(
    ("sums", "level", "message"),
    [
        ((torch.ones(4), torch.ones(4), torch.ones(5), torch.ones(5)), 0.95, "same groups"),
        ((torch.ones(4), torch.ones(5), torch.ones(4), torch.ones(4)), 0.95, "one shape"),
        ((torch.ones(2),) * 4, 0.95, "at least 3 groups"),
        ((torch.ones(3), torch.ones(3), -torch.ones(3), torch.ones(3)), 0.95, "negative"),
        ((torch.ones(3),) * 4, 0.0, "level"),
    ],
)
def test_unusable_differences_are_refused(sums, level, message):
    with pytest.raises(InputError, match=message):
        difference_interval(*sums, level)
