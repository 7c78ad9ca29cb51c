"""The routes of a scan: which are there, which is taken where, and why others are not.

Holds: ``ScanRoute``, ``scan_routes``; ``Asked``, ``asked_of``, ``chosen_route``, ``passes_of``,
``is_traced``, ``kind_of``.
May import: torch, ``secant.errors``, ``secant.nn`` (the routes' own files).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from math import prod
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from secant.errors import InputError
from secant.nn import scan_c, scan_numba, scan_triton
from secant.nn.scan_rows import Passes, RowPasses
from secant.nn.scan_trial import fault

ROUTES: Final = ("c", "numba", "triton", "chunked", "loop", "associative")
# Routes that run on one kind of device, or take no matrices.
DEVICES: Final = {"c": "cpu", "numba": "cpu", "triton": "cuda"}
DIAGONAL_ONLY: Final = ("numba", "triton")
DIAGONAL: Final = "diagonal"
MATRIX: Final = "matrices"
LARGE: Final = "matrices over 128 that stay"
WHAT: Final = {
    "c": "one fused pass by a compiled kernel",
    "numba": "one fused pass by a kernel that numba compiles at its first call",
    "triton": "one fused pass by a kernel that Triton compiles at its first call",
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


class Asked(NamedTuple):
    """What a route is chosen by: where the numbers are, and of what kind; ``lanes``: a step's."""

    device: torch.device
    kind: str
    a_dtype: torch.dtype
    b_dtype: torch.dtype
    lanes: int


def asked_of(a: Tensor, b: Tensor, is_matrix: bool) -> Asked:
    """That of one scan, whose a has time as its dimension 1."""
    return Asked(b.device, kind_of(a, is_matrix), a.dtype, b.dtype, prod(b.shape[2:]))


def is_traced(b: Tensor) -> bool:
    """Whether torch writes down operations in place of running them: no kernel finds numbers."""
    # Before torch 2.7 an export could be told only from no compilation at all.
    is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
    return isinstance(b, FakeTensor) or bool(is_exporting())


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
    if name == "triton":
        return scan_triton.absence()
    if name == "associative" and find_spec("torch._higher_order_ops.associative_scan") is None:
        return f"torch {torch.__version__} has no associative_scan. Update torch."
    return None


def _fused_for(asked: Asked) -> tuple[str, ...]:
    """The fused routes that may be taken unasked, the fastest first."""
    if asked.device.type == "cpu":
        return {DIAGONAL: ("c", "numba"), MATRIX: ("c",), LARGE: ()}[asked.kind]
    return ("triton",) if asked.device.type == "cuda" and asked.kind == DIAGONAL else ()


def _default(asked: Asked) -> str:
    for name in _fused_for(asked):
        if _absence(name) is None and (name != "triton" or _is_trusted(asked)):
            return name
    return "chunked"


def _is_trusted(asked: Asked) -> bool:
    """Whether Triton's kernel is compiled here, and right about such numbers."""
    width = scan_triton.width_of(asked.lanes)
    return not scan_triton.is_interpreted() and (
        fault(asked.device, asked.a_dtype, asked.b_dtype, width) is None
    )


def scan_routes() -> dict[str, ScanRoute]:
    """Every route of `secant.nn.scan` by its name, the fastest first.

    Each says what it is, on which devices and for which transitions it runs, why it cannot run
    here (``absent``) and where it is the default (``default_for``): for diagonal transitions,
    matrices, and large matrices that stay, on the CPU or elsewhere (a CUDA device if there is one),
    for every type of number. With a CUDA device the first call tries Triton's kernel there, in
    float32, which takes some seconds; other types are tried when they are first scanned.
    """
    cpu, elsewhere = torch.device("cpu"), torch.device("meta")
    if torch.cuda.is_available():
        elsewhere = torch.device("cuda", torch.cuda.current_device())
    single, lanes = torch.float32, scan_triton.WIDTH
    defaults = {
        f"{kind} {said}": _default(Asked(device, kind, single, single, lanes))
        for device, said in ((cpu, "on the CPU"), (elsewhere, "elsewhere"))
        for kind in (DIAGONAL, MATRIX, LARGE)
    }
    return {
        name: ScanRoute(
            name=name,
            what=WHAT[name],
            devices=DEVICES.get(name, "any"),
            transitions="diagonal" if name in DIAGONAL_ONLY else "diagonal and matrix",
            absent=_absence(name),
            default_for=tuple(said for said, taken in defaults.items() if taken == name),
        )
        for name in ROUTES
    }


def chosen_route(route: str | None, asked: Asked) -> str:
    """The route that was asked for, if it can run; else the default.

    Raises: `InputError` for an unknown route, one that is absent, or one that does not take such
    tensors.
    """
    if route is None:
        return _default(asked)
    if route not in ROUTES:
        raise InputError(
            f"scan: `route` must be one of {', '.join(ROUTES)}; got {route!r}. "
            "Leave it out to take the fastest."
        )
    absent = _absence(route)
    if absent is not None:
        raise InputError(f"scan: the route {route!r} cannot run here. {absent}")
    device = asked.device
    only = DEVICES.get(route, device.type)
    is_on_trial = route == "triton" and device.type == "cpu" and scan_triton.is_interpreted()
    if device.type != only and not is_on_trial:
        place = {"cpu": "the CPU", "cuda": "CUDA devices"}[only]
        raise InputError(
            f"scan: the route {route!r} runs on {place}; got tensors on {device.type}. "
            "Leave `route` out, or take 'chunked'."
        )
    if route in DIAGONAL_ONLY and asked.kind != DIAGONAL:
        raise InputError(
            f"scan: the route {route!r} has diagonal transitions; got matrices. "
            "Leave `route` out, or take 'chunked'."
        )
    return route


@cache
def passes_of(route: str) -> Passes | None:
    """The fused passes of a route, or None for those in plain torch."""
    if route == "c":
        return RowPasses(scan_c.CKernel())
    if route == "numba":
        return RowPasses(scan_numba.NumbaKernel())
    return scan_triton.TritonPasses() if route == "triton" else None
