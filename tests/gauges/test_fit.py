"""Fit against a slow route that keeps every row, closed forms and laws."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secant.errors import InputError
from secant.gauges.fit import Fit, FitResult
from secant.gauges.interval import FOLDS, GROUPS
from secant.gauges.moments import WIDE
from secant.gauges.ridge import RIDGES


def draw(rows: int = 600, width: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of x, a curved y of one width with a residual path, and a group for each row."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator, dtype=torch.float64) + 3
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    y = x + 0.3 * torch.tanh(x @ mix) + 0.1
    return x, y, torch.arange(rows) % GROUPS


def fit(x: Tensor, y: Tensor, groups: Tensor) -> FitResult:
    gauge = Fit(x.mean(0), y.mean(0))
    for group in groups.unique().tolist():
        gauge.update(x[groups == group], y[groups == group], group)
    return gauge.compute()


def slow_scores(x: Tensor, y: Tensor, groups: Tensor, ridges: list[float]) -> dict[str, float]:
    """The definitions of DESIGN.md, typed on stored rows with a least-squares solver."""
    fold = groups % FOLDS
    sums = dict.fromkeys(("rss", "raw", "bare", "update", "white_rss", "white"), 0.0)
    for k in range(FOLDS):
        train, held = fold != k, fold == k
        x_mean, y_mean = x[train].mean(0), y[train].mean(0)
        a, b = x[train] - x_mean, y[train] - y_mean
        u = b - a
        strength = ridges[k] * a.square().sum() / a.shape[1]
        padded_a = torch.cat([a, strength.sqrt() * torch.eye(a.shape[1], dtype=a.dtype)])
        padded_u = torch.cat([u, torch.zeros(a.shape[1], u.shape[1], dtype=u.dtype)])
        weight = torch.linalg.lstsq(padded_a, padded_u).solution
        p, q = x[held] - x_mean, y[held] - y_mean
        error = q - p - p @ weight
        sums["rss"] += error.square().sum().item()
        sums["raw"] += q.square().sum().item()
        u_mean = (y - x)[train].mean(0)
        sums["update"] += ((y - x)[held] - u_mean).square().sum().item()
        c = (a * b).sum() / a.square().sum()
        sums["bare"] += (q - c * p).square().sum().item()
        inverse = torch.linalg.inv(b.T @ b)
        sums["white_rss"] += (inverse @ (error.T @ error)).trace().item()
        sums["white"] += (inverse @ (q.T @ q)).trace().item()
    return {
        "raw": 1 - sums["rss"] / sums["raw"],
        "beyond": 1 - sums["rss"] / sums["bare"],
        "update": 1 - sums["rss"] / sums["update"],
        "whitened": 1 - sums["white_rss"] / sums["white"],
        "residual": 1 - sums["bare"] / sums["raw"],
    }


def test_scores_equal_the_slow_route() -> None:
    x, y, groups = draw()
    result = fit(x, y, groups)
    expected = slow_scores(x, y, groups, result.ridges)
    for name, found in result.scores.items():
        assert found.value == pytest.approx(expected[name], abs=1e-10), name
    assert result.residual_alone is not None
    assert result.residual_alone.value == pytest.approx(expected["residual"], abs=1e-10)


def test_ridge_is_the_best_on_inner_folds() -> None:
    """Typed again on stored rows: train without two neighbours, test on the inner one."""
    x, _, groups = draw(rows=80, width=6, seed=3)
    noise = torch.randn(80, 6, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    y = x + 0.05 * x.roll(1, 1) + noise
    fold, chosen = groups % FOLDS, fit(x, y, groups).ridges
    for outer in range(FOLDS):
        losses = []
        for ridge in RIDGES:
            loss = 0.0
            for inner in {(outer - 1) % FOLDS, (outer + 1) % FOLDS}:
                train = (fold != outer) & (fold != inner)
                x_mean, u_mean = x[train].mean(0), (y - x)[train].mean(0)
                a = x[train] - x_mean
                gram = a.T @ a
                gram = gram + ridge * gram.trace() / len(gram) * torch.eye(6, dtype=a.dtype)
                weight = torch.linalg.solve(gram, a.T @ ((y - x)[train] - u_mean))
                error = (y - x)[fold == inner] - u_mean - (x[fold == inner] - x_mean) @ weight
                loss += error.square().sum().item()
            losses.append(loss)
        assert chosen[outer] == RIDGES[losses.index(min(losses))]
    assert max(chosen) > 0


def test_affine_map_reads_one_and_is_given_back() -> None:
    x, _, groups = draw()
    weight = torch.randn(5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    bias = torch.arange(5.0, dtype=torch.float64)
    result = fit(x, x @ weight + bias, groups)
    for name, found in result.scores.items():
        assert found.value == pytest.approx(1, abs=1e-10), name
        assert found.interval == pytest.approx((1, 1), abs=1e-10), name
    assert result.procrustes == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(result.affine.weight, weight, atol=1e-9, rtol=0)
    torch.testing.assert_close(result.affine.bias, bias, atol=1e-9, rtol=0)


def test_float32_affine_layer_has_a_closed_interval() -> None:
    """What float32 rounding leaves is far under the sums' own rounding: no spread of it is read."""
    x, _, groups = draw(width=64)
    layer = torch.nn.Linear(64, 64)
    with torch.no_grad():
        result = fit(x.float(), layer(x.float()), groups)
    for name in ("raw", "beyond", "update"):
        low, high = result.scores[name].interval or (float("nan"), 0)
        assert 1 - 1e-9 < low <= high <= 1, name


@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_products_of_wide_float32_rows_are_exact_enough(size: float) -> None:
    """Against float64 throughout, after a LayerNorm (rank d - 1), with a few huge dimensions."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3000, WIDE, generator=generator)
    x[:, :3] *= 100
    mix = torch.randn(WIDE, WIDE, generator=generator) / 10
    x = torch.nn.functional.layer_norm(x, (WIDE,), weight=torch.rand(WIDE, generator=generator))
    y = x + size * torch.tanh(x @ mix)
    groups = torch.arange(len(x)) % GROUPS
    single, double = fit(x, y, groups), fit(x.double(), y.double(), groups)
    assert single.ridges == double.ridges
    for name, tolerance in (("raw", 1e-6), ("beyond", 1e-6), ("update", 1e-6), ("whitened", 1e-5)):
        expected = double.scores[name].value
        assert single.scores[name].value == pytest.approx(expected, abs=tolerance), name


def test_a_curve_above_the_rounding_of_float32_products_is_not_called_affine() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, WIDE, generator=generator)
    groups = torch.arange(len(x)) % GROUPS
    for size, is_exact in ((1e-5, True), (1e-3, False)):
        result = fit(x, x + x.roll(1, 1) + size * x.square(), groups)
        assert (result.scores["beyond"].value == 1) is is_exact


def test_affine_map_to_another_width_is_given_back() -> None:
    x, _, groups = draw()
    weight = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    result = fit(x, x @ weight - 2, groups)
    assert set(result.scores) == {"raw", "whitened"}
    assert result.residual_alone is None
    torch.testing.assert_close(result.affine.weight, weight, atol=1e-9, rtol=0)
    torch.testing.assert_close(
        result.affine.bias, torch.full((3,), -2.0, dtype=torch.float64), atol=1e-9, rtol=0
    )


@pytest.mark.parametrize("r", [0.1, 0.5])
def test_the_residual_alone_flatters_raw_and_not_beyond(r: float) -> None:
    """A centred update orthogonal to x and independent of it: raw 1/(1+r²), beyond 0."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200_000, 2, generator=generator, dtype=torch.float64)
    y = x + r * torch.randn(200_000, 2, generator=generator, dtype=torch.float64)
    result = fit(x, y, torch.arange(len(x)) % GROUPS)
    assert result.scores["raw"].value == pytest.approx(1 / (1 + r**2), abs=0.003)
    assert result.scores["beyond"].value == pytest.approx(0, abs=0.001)


def test_square_of_a_normal_has_no_linear_part() -> None:
    """Cov(x, x²) = 0 for a centred normal x: raw tends to 0."""
    x = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.cat([x.square(), x.square()], 1)
    value = fit(x, y, torch.arange(len(x)) % GROUPS).scores["raw"].value
    assert value == pytest.approx(0, abs=0.001)


def test_procrustes_equals_the_published_score() -> None:
    """arXiv 2405.12250: centred, Frobenius-normalised, the residual of the best map, by SVD."""
    x, y, groups = draw(rows=100)
    a, b = x - x.mean(0), y - y.mean(0)
    a, b = a / a.norm(), b / b.norm()
    left = torch.linalg.svd(a, full_matrices=False).U
    expected = 1 - (b - left @ (left.T @ b)).square().sum()
    assert fit(x, y, groups).procrustes == pytest.approx(expected.item(), abs=1e-10)


def test_whitened_drops_the_direction_a_layer_norm_removes() -> None:
    x, y, groups = draw()
    normed = torch.nn.functional.layer_norm(y.float(), (5,))
    result = fit(x, normed, groups)
    assert result.rank == 4
    assert 0 < result.scores["whitened"].value < 1


def test_constant_site_has_no_score() -> None:
    x, _, groups = draw()
    scores = fit(x, torch.ones(600, 5, dtype=torch.float64), groups).scores
    assert scores["raw"].value != scores["raw"].value
    assert scores["raw"].interval is None


@settings(max_examples=15, deadline=None)
@given(st.floats(0.01, 100), st.floats(-100, 100), st.integers(0, 5))
def test_scale_shift_and_rotation_change_nothing(scale: float, shift: float, seed: int) -> None:
    """One scale for x and y keeps every score; so does a rotation of both."""
    x, y, groups = draw(rows=200, width=3)
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64)).Q
    before = fit(x, y, groups).scores
    after = fit(scale * x @ turn + shift, scale * y @ turn + shift, groups).scores
    for name in before:
        assert after[name].value == pytest.approx(before[name].value, abs=1e-8), name


def test_batching_and_centres_do_not_matter() -> None:
    x, y, groups = draw()
    whole, parts = fit(x, y, groups), Fit(torch.zeros(5), torch.ones(5))
    for row in range(0, 600, 7):
        for group in range(GROUPS):
            chosen = groups[row : row + 7] == group
            parts.update(x[row : row + 7][chosen], y[row : row + 7][chosen], group)
    for name, found in parts.compute().scores.items():
        assert found.value == pytest.approx(whole.scores[name].value, abs=1e-10), name


def test_states_survive_pickling_and_reset() -> None:
    x, y, _ = draw()
    gauge = Fit(x.mean(0), y.mean(0))
    gauge.update(x, y, 0)
    copy = pickle.loads(pickle.dumps(gauge))
    assert torch.equal(copy.sum_xx, gauge.sum_xx)
    gauge.reset()
    assert gauge.sum_xx.abs().sum() == 0


def test_messages_say_what_to_do() -> None:
    x, y, _ = draw()
    gauge = Fit(x.mean(0), y.mean(0))
    with pytest.raises(InputError, match="no rows yet"):
        gauge.compute()
    with pytest.raises(InputError, match="Flatten batch and position"):
        gauge.update(x[0], y[0], 0)
    with pytest.raises(InputError, match="must lie in"):
        gauge.update(x, y, GROUPS)
    gauge.update(x, y, 0)
    with pytest.raises(InputError, match="at least 3 folds"):
        gauge.compute()
