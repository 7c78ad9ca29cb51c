"""Triton's kernel on trial: before a device runs it unasked, it must agree with the loop there.

Holds: ``fault``, ``disagreement``.
May import: torch, ``secant.nn`` (scan_rows, scan_torch, scan_triton).

Compilers for accelerators have had scans wrong (triton-lang/triton issues 2359, 2361), and a
kernel that is wrong on one device in one version shows nowhere else.
"""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Final, NamedTuple

import torch
from torch import Tensor

from secant.nn.scan_rows import Passes, work_dtype
from secant.nn.scan_torch import loop
from secant.nn.scan_triton import TritonPasses

# Several segments of tiles of every type, and a rest.
BATCH, LENGTH = 2, 1100
# How far rounding in so many steps may go, as a share of the largest number.
AGREES: Final = {
    torch.float64: 1e-12, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 1e-1,
}  # fmt: skip


class Case(NamedTuple):
    """What one comparison takes: (batch, length, lanes) but for the first state, without length."""

    a: Tensor
    b: Tensor
    upstream: Tensor
    first: Tensor


def _expected(case: Case, dtype: torch.dtype, is_reverse: bool) -> list[Tensor]:
    """States, and the gradients of a, b and the first state, by the loop, in a type."""
    a, b, upstream, first = (one.to(dtype) for one in case)
    if is_reverse:
        a, b, upstream = a.flip(1), b.flip(1), upstream.flip(1)
    states = loop(a, b, first, is_matrix=False, is_reverse=False)
    before = torch.cat([first[:, None], states[:, :-1]], dim=1)
    full = a.expand(b.shape)
    later = torch.cat([full[:, 1:], torch.zeros_like(full[:, :1])], dim=1).conj()
    grad_b = loop(later, upstream, None, is_matrix=False, is_reverse=True)
    grad_a = (before.conj() * grad_b).sum_to_size(a.shape)
    grad_first = full[:, 0].conj() * grad_b[:, 0]
    if is_reverse:
        states, grad_a, grad_b = states.flip(1), grad_a.flip(1), grad_b.flip(1)
    return [states, grad_a, grad_b, grad_first]


def disagreement(
    passes: Passes, device: torch.device, a_dtype: torch.dtype, b_dtype: torch.dtype, lanes: int
) -> float:
    """The largest difference from the loop, as a share of the largest number, in both passes.

    Coefficients that stay, and others either way; nan or infinity if something is neither.
    """
    random = torch.Generator(device="cpu").manual_seed(0)
    dtype = work_dtype(a_dtype, b_dtype)

    def drawn(shape: tuple[int, ...], one: torch.dtype) -> Tensor:
        return torch.randn(shape, dtype=one, device="cpu", generator=random)

    shape = (BATCH, LENGTH, lanes)
    a, b, upstream = drawn(shape, a_dtype), drawn(shape, b_dtype), drawn(shape, dtype)
    first, worst = drawn((BATCH, lanes), dtype), [torch.tensor(0.0, device="cpu")]
    a = a / a.abs().clamp_min(1)
    for coefficients, is_reverse in ((a, False), (a, True), (a[:1, :1], False)):
        case = Case(*(one.to(device) for one in (coefficients, b, upstream, first)))
        expected = _expected(case, dtype, is_reverse)
        states = passes.forward(case.a, case.b, case.first, is_reverse=is_reverse)
        if states is None:
            return float("nan")
        found = passes.backward(
            *(case.a, b_dtype, case.upstream, states, case.first),
            is_reverse=is_reverse,
            needs_a=True,
        )
        if found is None:
            return float("nan")
        for ours, theirs in zip((states, *found), expected, strict=True):
            assert ours is not None
            theirs = theirs if ours.is_complex() else theirs.real
            worst.append(((ours - theirs).abs().max() / theirs.abs().max()).cpu())
    return float(torch.stack([one.double() for one in worst]).max())  # nan if one of them is


@cache
def fault(
    device: torch.device, a_dtype: torch.dtype, b_dtype: torch.dtype, lanes: int
) -> str | None:
    """Why Triton's kernel is not taken unasked on a device; None if it may be.

    Tried once a process for each device, types of a and b, and lanes of a tile; it takes some
    seconds of compiling, whose result Triton keeps on disk. A fault is a warning.
    """
    types = {a_dtype.to_real(), b_dtype.to_real()}
    most = max(AGREES[one] for one in types)
    names = " and ".join(sorted({str(one).removeprefix("torch.") for one in (a_dtype, b_dtype)}))
    try:
        # In a thread of its own the modes of this one (vmap, fake tensors, autocast) are off.
        with ThreadPoolExecutor(1) as alone:
            found = alone.submit(
                disagreement, TritonPasses(), device, a_dtype, b_dtype, lanes
            ).result()
    except torch.OutOfMemoryError:  # no verdict on the kernel
        raise
    except Exception as error:  # whatever a compiler raises; told below
        said = f"does not run there: {type(error).__name__}: {error}"
    else:
        if found <= most:
            return None
        said = f"differs from the loop there by {found:.3g} of the largest number"
    said = f"Triton's kernel for {names} on {device} {said}."
    warnings.warn(
        f"scan: {said} The route 'chunked' is taken, which is slower.", RuntimeWarning, stacklevel=2
    )
    return said
