"""Sums against their definitions."""

import pytest
import torch

from secant.errors import InputError
from secant.gauges.moments import moments, recentred


def test_recentred_sums_are_the_sums_of_recentred_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    t = torch.randn(30, 2, generator=generator, dtype=torch.float64)
    a, b = torch.arange(4.0).double(), torch.ones(2).double()
    for found, expected in zip(recentred(moments(x, t), a, b), moments(x - a, t - b), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_half_precision_rows_are_summed_in_float64() -> None:
    """4,096 rows of 1: bfloat16 could not count past 256."""
    rows = torch.ones(4096, 2, dtype=torch.bfloat16)
    assert moments(rows, rows).xx[0, 1].item() == 4096


def test_rows_must_match() -> None:
    with pytest.raises(InputError, match="Flatten batch and position"):
        moments(torch.ones(3, 2), torch.ones(2, 2))
