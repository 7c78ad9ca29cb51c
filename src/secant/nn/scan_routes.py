"""The routes of a scan: which are there, which is taken where, and why others are not.

Holds: ``ScanRoute``, ``scan_routes``, ``chosen_route``, ``kernel_of``, ``kind_of``.
May import: torch, ``secant.errors``, ``secant.nn`` (the routes' own files).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Final

import torch
from torch import Tensor

from secant.errors import InputError
from secant.nn import scan_c, scan_numba
from secant.nn.scan_rows import Kernel

FUSED: Final = ("c", "numba")
ROUTES: Final = (*FUSED, "chunked", "loop", "associative")
DIAGONAL: Final = "diagonal"
MATRIX: Final = "matrices"
LARGE: Final = "matrices over 128 that stay"
WHAT: Final = {
    "c": "one fused pass by a compiled kernel",
    "numba": "one fused pass by a kernel that numba compiles at its first call",
    "chunked": "torch, all chunks of the sequence at once",
    "loop": "torch, one step after the other; the reference",
    "associative": "torch's associative scan",
}


def kind_of(a: Tensor, is_matrix: bool) -> str:
    """The kind of transitions, by which a route is chosen; a has time as its dimension 1.

    Large matrices that stay are multiplied for all chunks at once, from the caches, which a pass
    that takes one step after the other cannot do.
    """
    if not is_matrix:
        return DIAGONAL
    return LARGE if a.shape[1] == 1 and a.shape[-1] > 128 else MATRIX


@dataclass(frozen=True)
class ScanRoute:
    """One way to run `secant.nn.scan`.

    ``absent``: why it cannot run here, or None; ``default_for``: where it is taken unless
    another is asked for.
    """

    name: str
    what: str
    devices: str
    transitions: str
    absent: str | None
    default_for: tuple[str, ...]

    @property
    def is_available(self) -> bool:
        """Whether it can run here."""
        return self.absent is None


def _absence(name: str) -> str | None:
    if name == "c":
        return scan_c.absence()
    if name == "numba":
        return scan_numba.absence()
    if name == "associative" and find_spec("torch._higher_order_ops.associative_scan") is None:
        return f"torch {torch.__version__} has no associative_scan. Update torch."
    return None


def _default(device: str, kind: str) -> str:
    fused = {DIAGONAL: FUSED, MATRIX: ("c",), LARGE: ()}[kind] if device == "cpu" else ()
    return next((name for name in fused if _absence(name) is None), "chunked")


def scan_routes() -> dict[str, ScanRoute]:
    """Every route of `secant.nn.scan` by its name, the fastest first.

    Each says what it is, on which devices and for which transitions it runs, why it cannot run
    here (``absent``) and where it is the default (``default_for``): for diagonal transitions,
    matrices, and large matrices that stay, on the CPU or elsewhere, for every type of number.
    """
    places = [
        (device, kind, f"{kind} {said}")
        for device, said in (("cpu", "on the CPU"), ("cuda", "elsewhere"))
        for kind in (DIAGONAL, MATRIX, LARGE)
    ]
    return {
        name: ScanRoute(
            name=name,
            what=WHAT[name],
            devices="cpu" if name in FUSED else "any",
            transitions="diagonal" if name == "numba" else "diagonal and matrix",
            absent=_absence(name),
            default_for=tuple(
                said for device, kind, said in places if _default(device, kind) == name
            ),
        )
        for name in ROUTES
    }


def chosen_route(route: str | None, device: str, kind: str) -> str:
    """The route that was asked for, if it can run; else the default.

    Raises: `InputError` for an unknown route, one that is absent, or one that does not take such
    tensors.
    """
    if route is None:
        return _default(device, kind)
    if route not in ROUTES:
        raise InputError(
            f"scan: `route` must be one of {', '.join(ROUTES)}; got {route!r}. "
            "Leave it out to take the fastest."
        )
    absent = _absence(route)
    if absent is not None:
        raise InputError(f"scan: the route {route!r} cannot run here. {absent}")
    if route in FUSED and device != "cpu":
        raise InputError(
            f"scan: the route {route!r} runs on the CPU; got tensors on {device}. "
            "Leave `route` out, or take 'chunked'."
        )
    if route == "numba" and kind != DIAGONAL:
        raise InputError(
            f"scan: the route {route!r} has diagonal transitions; got matrices. "
            "Leave `route` out, or take 'chunked'."
        )
    return route


@cache
def kernel_of(route: str) -> Kernel | None:
    """The fused kernel of a route, or None for those in plain torch."""
    if route == "c":
        return scan_c.CKernel()
    return scan_numba.NumbaKernel() if route == "numba" else None
