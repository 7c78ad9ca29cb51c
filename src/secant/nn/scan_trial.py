"""Triton's kernel on trial: before a device runs it unasked, it must agree with the loop there.

Holds: ``fault``.
May import: torch, ``secant.nn`` (scan_rows, scan_torch, scan_triton).

Compilers for accelerators have had scans wrong (triton-lang/triton issues 2359, 2361), and a
kernel that is wrong on one device in one version shows nowhere else.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Final

import torch
from torch import Tensor

from secant.nn.scan_rows import Passes
from secant.nn.scan_torch import loop
from secant.nn.scan_triton import TritonPasses

# Several segments of every type, and a rest; lanes past one tile.
SHAPE: Final = (2, 1100, 40)
# Rounding in so many steps stays far below this share of the largest number.
AGREES: Final = {torch.float32: 1e-4, torch.float64: 1e-12}


def _expected(a: Tensor, b: Tensor, upstream: Tensor, first: Tensor) -> list[Tensor]:
    """States, and the gradients of a, b and the first state, by the loop."""
    states = loop(a, b, first, is_matrix=False, is_reverse=False)
    before = torch.cat([first[:, None], states[:, :-1]], dim=1)
    full = a.expand(b.shape)
    later = torch.cat([full[:, 1:], torch.zeros_like(full[:, :1])], dim=1).conj()
    grad = loop(later, upstream, None, is_matrix=False, is_reverse=True)
    return [
        states,
        (before.conj() * grad).sum_to_size(a.shape),
        grad,
        full[:, 0].conj() * grad[:, 0],
    ]


def disagreement(passes: Passes, device: torch.device, dtype: torch.dtype) -> float:
    """The largest difference from the loop, as a share of the largest number, in both passes."""
    random = torch.Generator().manual_seed(0)
    a, b, upstream = (torch.randn(SHAPE, dtype=dtype, generator=random) for _ in range(3))
    first = torch.randn(SHAPE[0], SHAPE[2], dtype=dtype, generator=random)
    a = a / a.abs().clamp_min(1)
    shares = []
    for coefficients in (a, a[:1, :1]):
        given = [one.to(device) for one in (coefficients, b, upstream, first)]
        expected = _expected(*given)
        states = passes.forward(given[0], given[1], given[3], is_reverse=False)
        found = passes.backward(
            *(given[0], dtype, given[2], states, given[3]), is_reverse=False, needs_a=True
        )
        for ours, theirs in zip((states, *found), expected, strict=True):
            assert ours is not None
            shares.append((ours - theirs).abs().max() / theirs.abs().max())
    return float(torch.stack(shares).max())  # nan if one of them is


@cache
def fault(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why Triton's kernel is not taken unasked on a device; None if it may be.

    For states of one type. Tried once a process; it takes some seconds of compiling, whose result
    Triton keeps on disk. A fault is a warning.
    """
    most = AGREES[dtype.to_real()]
    try:
        found = disagreement(TritonPasses(), device, dtype)
    except Exception as error:  # whatever a compiler raises; told below
        said = f"does not run there: {type(error).__name__}: {error}"
    else:
        if found <= most:
            return None
        said = f"differs from the loop there by {found:.3g} of the largest number"
    said = f"Triton's kernel for {str(dtype).removeprefix('torch.')} on {device} {said}."
    warnings.warn(
        f"scan: {said} The route 'chunked' is taken, which is slower.", RuntimeWarning, stacklevel=2
    )
    return said
