"""Linear CKA against its definition as an average over four different rows, and its laws.

Holds: tests of ``secant.gauges.cka``.
May import: pytest, torch, ``secant``.
"""

import itertools

import pytest
import torch

from secant.errors import InputError
from secant.gauges.cka import cka_from_sums, cka_interval, hsic_sums


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hsic_over_quadruples(x, y):
    """HSIC as the U-statistic that Song et al. 2012, eq. 4, unbias: four rows, all different."""
    k, other, n = x @ x.T, y @ y.T, len(x)
    total = 0.0
    for i, j, q, r in itertools.permutations(range(n), 4):
        total += k[i, j] * (other[i, j] + other[q, r] - 2 * other[i, q])
    return total / (n * (n - 1) * (n - 2) * (n - 3))


def test_it_is_the_average_over_four_different_rows():
    x, y = drawn(7, 3), drawn(7, 5, seed=1) + 10
    found = hsic_sums(x, y) / 7
    pairs = [(x, y), (x, x), (y, y)]
    torch.testing.assert_close(found, torch.stack([hsic_over_quadruples(*pair) for pair in pairs]))


def test_it_has_no_bias_where_the_plain_form_does():
    """Independent features, more of them than rows: the plain form reads 0.9, this one 0."""
    draws = [hsic_sums(drawn(10, 50, seed=s), drawn(10, 50, seed=10**6 + s)) for s in range(400)]
    sums = torch.stack(draws)
    values = sums[:, 0] / (sums[:, 1] * sums[:, 2]).mean().sqrt()
    assert abs(float(values.mean())) < 4 * float(values.std()) / 20
    x, y = (drawn(10, 50, seed=s) for s in (0, 10**6))
    x, y = x - x.mean(0), y - y.mean(0)
    plain = (x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())
    assert plain > 0.7


def test_a_rotation_a_factor_and_a_shift_change_nothing_another_map_does():
    x = drawn(30, 6)
    rotation = torch.linalg.qr(drawn(6, 6, seed=1))[0]
    assert cka_from_sums(hsic_sums(x, 3 * x @ rotation - 7)).item() == pytest.approx(1)
    y = drawn(30, 4, seed=2)
    turned = cka_from_sums(hsic_sums(x @ rotation * 0.2 + 1, y))
    assert turned.item() == pytest.approx(cka_from_sums(hsic_sums(x, y)).item())
    stretched = x * torch.tensor([10.0, 1, 1, 1, 1, 1])
    assert cka_from_sums(hsic_sums(x, stretched)).item() < 0.7


def test_a_difference_from_itself_has_no_width():
    sums = torch.stack(
        [hsic_sums(drawn(20, 3, seed=s), drawn(20, 3, seed=s + 9)) for s in (0, 1, 2)]
    )
    assert cka_interval(sums, sums) == (0, 0)
    low, high = cka_interval(sums)
    assert low < cka_from_sums(sums.sum(0)) < high


def test_constant_features_and_few_rows():
    x = drawn(8, 2)
    assert cka_from_sums(hsic_sums(x, torch.ones(8, 3))).isnan()
    for rows in (x[:3], x):
        with pytest.raises(InputError, match="at least 4"):
            hsic_sums(rows, x[:3])
