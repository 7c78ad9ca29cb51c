"""Which entries of two sets go together, for the largest sum: an exact linear assignment.

Holds: ``assign`` and its result ``Assignment``.
May import: ctypes, numpy, scipy, torch, ``secant.engine`` (native), ``secant.errors``.

By the package's C (see ``_assign.c``), which can begin at what an earlier assignment ended with;
by scipy where there is no compiled C. Both reach the largest sum; where several assignments do,
each takes the same one in every run, but not both the same.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import pad

from secant.engine.native import Native
from secant.errors import InputError

NATIVE: Final = Native(Path(__file__).with_name("_assign.c"), layout=1)
NAMES: Final = {torch.float32: "f32", torch.float64: "f64"}
STEP = 16
"""Columns that the C takes at once: rows are padded to a multiple."""

LIMIT = 2.0**960
"""Sums and differences of 2^60 gains below it are in the range of float64."""


class Assignment(NamedTuple):
    """For each row its column, and what each column costs at the optimum.

    ``columns`` (n), int64. ``prices`` (n), float64: no row has a better column than its own, gain
    less price. None where scipy found the columns.
    """

    columns: Tensor
    prices: Tensor | None


def assign(gain: Tensor, begin: Assignment | None = None) -> Assignment:
    """Match rows to columns one to one so that the sum of their gains is the largest.

    ``gain`` (n, n) is float32 or float64, on the CPU; sums are made in float64. `begin`, an
    assignment of a like gain, changes the time that it takes, and of equal sums which is found.

    Raises: `InputError` for gains that are not finite or not below 2^960.

    Cost: n² for the best columns of all rows, and up to n² more for each row without one;
    memory of 10 n numbers, and a copy of the gains where n is no multiple of 16.
    """
    size = len(gain)
    library = _library()
    if library is None:
        if _beyond(gain):
            raise _refusal(gain)
        columns = linear_sum_assignment(gain.double().numpy(), maximize=True)[1]
        return Assignment(torch.from_numpy(columns).long(), None)
    padded = -(-size // STEP) * STEP
    wide = gain.contiguous() if padded == size else pad(gain, (0, padded - size))
    if begin is None or begin.prices is None:
        prices = torch.zeros(size, dtype=torch.float64)
        columns = torch.full((size,), -1, dtype=torch.int64)
    else:
        prices, columns = begin.prices.clone(), begin.columns.clone()
    memory = torch.empty(library.secant_assign_room(padded), dtype=torch.float64)
    run = getattr(library, f"secant_assign_{NAMES[gain.dtype]}")
    pointers = (each.data_ptr() for each in (prices, columns, memory))
    if run(wide.data_ptr(), size, padded, *pointers) < 0:
        raise _refusal(gain)
    return Assignment(columns, prices)


def _beyond(gain: Tensor) -> int:
    """How many gains are not finite or too large."""
    return int((~(gain.double().abs() < LIMIT)).sum())


def _refusal(gain: Tensor) -> InputError:
    return InputError(
        "align: what each pair of units is worth must be finite and below 2^960; "
        f"{_beyond(gain)} of {gain.numel()} pairs are not. Products of weights leave the range of "
        f"{str(gain.dtype).removeprefix('torch.')}: make the weights smaller."
    )


@cache
def _library() -> ctypes.CDLL | None:
    found = NATIVE.library()
    if found is None:
        return None
    found.secant_assign_room.argtypes = [ctypes.c_int64]
    found.secant_assign_room.restype = ctypes.c_int64
    for name in NAMES.values():
        run = getattr(found, f"secant_assign_{name}")
        run.argtypes = [ctypes.c_void_p, *[ctypes.c_int64] * 2, *[ctypes.c_void_p] * 3]
        run.restype = ctypes.c_int64
    return found
