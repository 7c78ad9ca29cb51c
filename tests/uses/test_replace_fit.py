"""Maps of every rank from sums: beside dense computations, and where the answer is known.

Holds: tests of ``secant.uses.replace_fit``.
May import: pytest, torch, numpy, ``secant``.
"""

import numpy as np
import pytest
import torch

from secant.errors import InputError
from secant.uses.replace_fit import FOLDS, SiteFit, fitted, ranks_for


def site_of(x, y, chunk=50):
    """Sums of rows that come in batches, fold by fold."""
    site = SiteFit()
    for number, start in enumerate(range(0, len(x), chunk)):
        site.add(x[start : start + chunk], y[start : start + chunk], number % FOLDS)
    return site


def applied(form, x):
    """What the map gives, multiplied out in float64."""
    made = x.double()
    for factor in form.factors:
        made = made @ factor
    made = made if form.factors else torch.zeros(len(x), form.width, dtype=torch.float64)
    made = made + x.double() if form.is_added else made
    return made if form.shift is None else made + form.shift


def drawn(d, m, rows=600, seed=0):
    """Correlated inputs, outputs with noise; no residual path."""
    g = torch.Generator().manual_seed(seed)
    x = (
        torch.randn(rows, d, generator=g, dtype=torch.float64)
        @ torch.randn(d, d, generator=g, dtype=torch.float64)
        + 3
    )
    y = torch.tanh(x @ torch.randn(d, m, generator=g, dtype=torch.float64) / d) - 1
    return x, y


def ridge(x, y, strength):
    """Centred rows, the ridge solution by least squares of rows with a penalty's rows below."""
    x_c, y_c = (one.numpy() - one.numpy().mean(0) for one in (x, y))
    d = x_c.shape[1]
    penalty = np.sqrt(strength * np.trace(x_c.T @ x_c) / d) * np.eye(d)
    targets = np.vstack([y_c, np.zeros((d, y_c.shape[1]))])
    return x_c, y_c, np.linalg.lstsq(np.vstack([x_c, penalty]), targets, rcond=None)[0], penalty


@pytest.mark.parametrize("rank", [1, 3])
def test_reduced_rank_is_the_best_map_of_its_rank(rank):
    """By least squares with numpy, projected on the leading right singular vectors of the
    fitted values: Eckart and Young in the metric of x'x and the penalty."""
    x, y = drawn(7, 5)
    fit = fitted(site_of(x, y), [rank], is_added=False)
    form = fit.map("rank", rank)
    x_c, _, weight, penalty = ridge(x, y, fit.ridge)
    values = np.vstack([x_c, penalty]) @ weight
    leading = np.linalg.svd(values, full_matrices=False)[2][:rank]
    expected = x_c @ weight @ leading.T @ leading + y.numpy().mean(0)
    assert np.linalg.matrix_rank(form.factors[0].numpy() @ form.factors[1].numpy()) == rank
    np.testing.assert_allclose(applied(form, x).numpy(), expected, atol=1e-8)
    left = [
        float((applied(fit.map(*of), x) - y).square().sum()) for of in (("rank", rank), ("affine",))
    ]
    lost = fit.errors[f"rank {rank}"] - fit.errors["affine"]
    assert lost == pytest.approx(left[0] - left[1], rel=0.01)
    assert fit.errors[f"rank {rank}"] > fit.errors["affine"]


def test_the_whole_map_and_a_shift():
    x, y = drawn(6, 6)
    fit = fitted(site_of(x, y), [])
    assert not fit.is_added
    x_c, _, weight, _ = ridge(x, y, fit.ridge)
    expected = x_c @ weight + y.numpy().mean(0)
    np.testing.assert_allclose(applied(fit.map("affine"), x).numpy(), expected, atol=1e-8)
    np.testing.assert_allclose(applied(fit.map("shift"), x), y.mean(0).expand_as(y), atol=1e-12)
    assert float(applied(fit.map("drop"), x).abs().max()) == 0


def test_errors_are_held_out_and_those_of_no_map_exact():
    x, y = drawn(6, 4)
    y = x[:, :4] + y
    fit = fitted(site_of(x, y), [2])
    assert fit.errors["drop"] == pytest.approx(float(y.square().sum()), rel=1e-9)
    centred = y - y.mean(0)
    assert fit.errors["shift"] == pytest.approx(float(centred.square().sum()), rel=1e-9)
    assert fit.scalar is None
    assert fit.beyond == pytest.approx(1 - fit.errors["affine"] / fit.total)
    assert fit.total == pytest.approx(float(centred.square().sum()), rel=1e-9)
    folds = torch.arange(len(x)) // 50 % FOLDS
    held_out = 0.0
    for fold in range(FOLDS):
        design = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)
        a = torch.linalg.lstsq(design[folds != fold], y[folds != fold]).solution
        held_out += float((y - design @ a)[folds == fold].square().sum())
    assert fit.errors["affine"] == pytest.approx(held_out, rel=1e-3)


def test_a_residual_path_is_told_by_which_of_x_and_zero_is_nearer():
    x, y = drawn(6, 6)
    stream = fitted(site_of(x, x + 0.1 * y), [2])
    assert stream.is_added
    assert torch.equal(applied(stream.map("drop"), x), x)
    assert stream.errors["drop"] == pytest.approx(float((0.1 * y).square().sum()), rel=1e-6)
    x_c, y_c = (one - one.mean(0) for one in (x, x + 0.1 * y))
    scale = (x_c * y_c).sum() / x_c.square().sum()
    alone = float((y_c - scale * x_c).square().sum())
    assert stream.scalar == pytest.approx(alone, rel=1e-6)
    assert stream.beyond == pytest.approx(1 - stream.errors["affine"] / alone, rel=1e-6)
    low = stream.map("rank", 2)
    assert low.is_added
    assert float((applied(low, x) - x - 0.1 * y).square().sum()) < stream.errors["shift"]
    whole = stream.map("affine")
    assert not whole.is_added  # x is in the map: one product, no sum
    assert float((applied(whole, x) - x - 0.1 * y).square().mean()) < 0.01


def test_influence_is_that_of_the_rows():
    x, y = drawn(6, 6)
    expected = 1 - float(torch.nn.functional.cosine_similarity(x, y, dim=1).mean())
    assert fitted(site_of(x, y), []).influence == pytest.approx(expected, rel=1e-9)
    assert fitted(site_of(x, y[:, :4]), []).influence is None


def test_a_direction_without_variance_gets_no_weight():
    x, y = drawn(6, 3)
    x = torch.cat([x, x[:, :1]], 1)  # two columns that are one
    form = fitted(site_of(x, y), []).map("affine")
    assert torch.allclose(form.factors[0][0], form.factors[0][-1], atol=1e-8)


def test_ranks_save_or_are_not_tried():
    assert ranks_for(64, 64) == [4, 16]
    assert ranks_for(2, 2) == []
    for rank in ranks_for(576, 1536):
        assert rank * (576 + 1536) < 576 * 1536


def test_messages():
    x, y = drawn(4, 4, rows=60)
    site = SiteFit()
    site.add(x, y, 0)
    with pytest.raises(InputError, match=r"units in 3 folds; got units in 1\. Give some hundred"):
        fitted(site, [])
    x[3, 2] = torch.nan
    with pytest.raises(InputError, match="it gives NaN or infinity"):
        SiteFit().add(x, y, 0)
