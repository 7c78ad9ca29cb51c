"""Blocks of a merge in C: one call a block, whose bytes then pass the caches once.

Holds: ``blocks``, the way of this machine, and the class ``Compiled``.
May import: numpy, ctypes, ``secant.engine`` (native), ``secant.load``, ``secant.uses``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from secant.engine.native import Native
from secant.load.kinds import Array, Kind
from secant.uses import merge_methods as methods
from secant.uses.merge_blocks import Blocks, Change, Join, Plain

NATIVE: Final = Native(Path(__file__).with_name("_merge.c"), layout=1)
TILE: Final = 512
"""Values of a row of C's. With five rows of float32 a third of a first-level cache of 32 kB."""


def blocks() -> Blocks:
    """In C where the package was built with a compiler, else by numpy."""
    library = NATIVE.library()
    return Plain() if library is None else Compiled(library)


class _Change(ctypes.Structure):
    """``change`` of ``_merge.c``."""

    _fields_ = (
        ("stored", ctypes.c_void_p), ("keep", ctypes.c_void_p),
        ("weight", ctypes.c_double), ("rescale", ctypes.c_double),
        ("limit", ctypes.c_uint64), ("is_trimmed", ctypes.c_int64), ("left", ctypes.c_int64),
    )  # fmt: skip


class _MixJob(ctypes.Structure):
    """``mix_job`` of ``_merge.c``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("stored", "weights", "out", "rows")),
        *((name, ctypes.c_int64) for name in ("count", "models", "tile")),
        ("divisor", ctypes.c_double),
    )


class _JoinJob(ctypes.Structure):
    """``join_job`` of ``_merge.c``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("base", "changes", "out", "rows")),
        *((name, ctypes.c_int64) for name in ("count", "models", "tile", "is_elected", "is_mean")),
        *((name, ctypes.c_double) for name in ("divisor", "scale")),
    )


class _CountJob(ctypes.Structure):
    """``count_job`` of ``_merge.c``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("base", "stored", "counts", "rows")),
        *((name, ctypes.c_int64) for name in ("count", "tile", "shift")),
        ("prefix", ctypes.c_uint64),
    )


@final
@dataclass(frozen=True)
class Compiled:
    """By the functions of the library; arrays are contiguous, as blocks are."""

    library: ctypes.CDLL

    def span(self, kind: Kind) -> int:
        """2 MB: shorter, and threads wait for the interpreter and the file more than they work."""
        return (1 << 21) // kind.size

    def mixed(
        self, stored: Sequence[Array], weights: Sequence[float], kind: Kind, *, normalise: bool
    ) -> Array | None:
        """`methods.linear`."""
        out, models = np.empty_like(stored[0]), len(stored)
        rows = np.empty(TILE, kind.working)
        places = (ctypes.c_void_p * models)(*(one.ctypes.data for one in stored))
        shares = (ctypes.c_double * models)(*weights)
        job = _MixJob(
            *(
                ctypes.addressof(places),
                ctypes.addressof(shares),
                out.ctypes.data,
                rows.ctypes.data,
            ),
            *(out.size, models, TILE),
            float(methods.weight_sum(weights, rows.dtype)) if normalise else 1,
        )
        return out if self._run("mix", kind, job) else None

    def joined(
        self, base: Array, changes: Sequence[Change], join: Join, kind: Kind
    ) -> Array | None:
        """`methods.ties` or `methods.task_arithmetic`, of what is left of the changes."""
        out, models = np.empty_like(base), len(changes)
        rows = np.empty((3 + models) * TILE, kind.working)
        weights = methods.as_kind(join.weights, kind, rows.dtype)
        is_divided = join.normalise and not join.elects
        parts = (_Change * models)(*map(_part, changes, weights.tolist()))
        job = _JoinJob(
            *(base.ctypes.data, ctypes.addressof(parts), out.ctypes.data, rows.ctypes.data),
            *(out.size, models, TILE, join.elects, join.normalise),
            float(methods.divisor_of(weights, kind)) if is_divided else 1,
            join.scale,
        )
        is_finite = self._run("join", kind, job)
        for change, part in zip(changes, parts, strict=True):
            if change.trim is not None:
                change.trim.left = part.left
        return out if is_finite else None

    def count(
        self, base: Array, stored: Array, kind: Kind, place: tuple[int, int],
        counts: NDArray[np.uint32],
    ) -> None:  # fmt: skip
        """`methods.count_digits` of the magnitudes of a change; `place` is prefix and shift."""
        prefix, shift = place
        rows = np.empty(3 * TILE, kind.working)
        arrays = (one.ctypes.data for one in (base, stored, counts, rows))
        self._run("count", kind, _CountJob(*arrays, base.size, TILE, shift, prefix))

    def _run(self, what: str, kind: Kind, job: Any) -> bool:
        run = getattr(self.library, f"secant_merge_{what}_{kind.name.lower()}")
        return bool(run(ctypes.byref(job)))


def _part(change: Change, weight: float) -> _Change:
    trim, drop = change.trim, change.drop
    rescales = drop is not None and drop.rescale and 0 < drop.density < 1
    return _Change(
        change.stored.ctypes.data,
        None if drop is None or drop.density >= 1 else drop.keep.ctypes.data,
        weight,
        1 / drop.density if drop is not None and rescales else 1,
        0 if trim is None else trim.limit,
        trim is not None,
        0 if trim is None else trim.left,
    )
