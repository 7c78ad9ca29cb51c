"""Many affine maps at once: each is the least-squares map of its own rows.

Holds: tests of ``secant.uses.affine_maps``.
May import: torch, ``secant``.
"""

import torch

from secant.uses.affine_maps import Sums


def rows(groups, count, p, m, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, count, p, generator=generator, dtype=torch.float64) + 100
    y = torch.randn(groups, count, m, generator=generator, dtype=torch.float64)
    return x, x @ torch.ones(groups, p, m, dtype=torch.float64) + 0.1 * y


def test_each_group_has_its_least_squares_map():
    """Batch by batch and far from zero, against torch's own solver with a column of ones."""
    x, y = rows(3, 4000, 2, 2)
    sums = Sums()
    for place, (a, b) in enumerate(zip(x.split(500, 1), y.split(500, 1), strict=True)):
        sums.add(a, b, int(place % 4 == 3))
    found = sums.solve()
    assert found.ridge <= 1e-4
    wide = torch.cat([x, torch.ones_like(x[..., :1])], -1)
    wanted = wide @ torch.linalg.lstsq(wide, y).solution
    # The ridge may take up to 1e-4 of the slopes.
    torch.testing.assert_close(x @ found.weight + found.bias, wanted, rtol=0, atol=2e-3)
    torch.testing.assert_close(found.mean, y.mean(1, keepdim=True))
    assert found.rows == 4000


def test_a_ridge_is_taken_where_it_predicts_better():
    """Ten regressors of pure noise: the strongest ridge wins; one line has none."""
    generator = torch.Generator().manual_seed(0)
    for p, wanted in [(10, 1.0), (1, 0.0)]:
        sums = Sums()
        for part in (0, 1):
            x = torch.randn(1, 12, p, generator=generator, dtype=torch.float64)
            sums.add(x, torch.randn(1, 12, 1, generator=generator, dtype=torch.float64), part)
        assert sums.solve().ridge == wanted


def test_a_direction_without_rows_gets_no_weight():
    x, y = rows(1, 50, 2, 1)
    x[..., 1] = 7
    sums = Sums()
    sums.add(x, y, 0)
    found = sums.solve()
    assert found.weight[0, 1, 0] == 0
    assert found.weight[0, 0, 0].abs() > 0.5


def test_what_is_not_finite_has_no_map():
    x, y = rows(1, 50, 2, 1)
    x[0, 3, 0] = float("inf")
    sums = Sums()
    sums.add(x, y, 0)
    assert sums.solve() is None
