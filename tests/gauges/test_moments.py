"""Sums against their definitions."""

import pytest
import torch

from secant.errors import InputError
from secant.gauges.moments import gram, moments, recentred, update_moments


def test_recentred_sums_are_the_sums_of_recentred_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    t = torch.randn(30, 2, generator=generator, dtype=torch.float64)
    a, b = torch.arange(4.0).double(), torch.ones(2).double()
    sums = recentred(moments(gram(x, 0 * a), gram(t, 0 * b)), a, b)
    for found, expected in zip(sums, moments(gram(x, a), gram(t, b)), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_update_sums_are_the_sums_of_the_update() -> None:
    """An update a millionth of x: twelve of sixteen digits go, four are left."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    t = x + 1e-6 * torch.randn(30, 4, generator=generator, dtype=torch.float64)
    zero = torch.zeros(4, dtype=torch.float64)
    found = update_moments(moments(gram(x, zero), gram(t, zero)))
    expected = moments(gram(x, zero), gram(t - x, zero))
    for name in ("t", "xt", "tt"):
        torch.testing.assert_close(
            getattr(found, name), getattr(expected, name), atol=1e-14 * 30, rtol=1e-3
        )


def test_half_precision_rows_are_summed_in_float64() -> None:
    """4,096 rows of 1: bfloat16 could not count past 256."""
    rows = torch.ones(4096, 2, dtype=torch.bfloat16)
    sums = gram(rows, torch.zeros(2))
    assert sums.product[0, 1].item() == sums.total[0].item() == 4096


def test_rows_must_match() -> None:
    zero = torch.zeros(2)
    with pytest.raises(InputError, match="Flatten batch and position"):
        moments(gram(torch.ones(3, 2), zero), gram(torch.ones(2, 2), zero))
