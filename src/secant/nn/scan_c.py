"""The C kernel of the scan: loading it, and one call for each share of the work.

Holds: ``library``, ``absence``, and the class ``CKernel``.
May import: ctypes, torch, ``secant.engine`` (native), ``secant.nn`` (scan_shares).
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Final, final

import torch
from torch import Tensor

from secant.engine.native import Native
from secant.nn.scan_shares import in_shares

NATIVE: Final = Native(Path(__file__).with_name("_scan.c"), layout=4)
NAMES: Final = {
    torch.float32: "f32",
    torch.float64: "f64",
    torch.complex64: "c64",
    torch.complex128: "c128",
}


def _fields(pointers: str, numbers: str) -> list[tuple[str, type]]:
    kinds = [(pointers, ctypes.c_void_p), (numbers, ctypes.c_int64)]
    return [(name, kind) for names, kind in kinds for name in names.split()]


class ForwardJob(ctypes.Structure):
    """``forward_job`` of ``_scan.c``."""

    _fields_ = _fields(
        "a b initial out",
        "batch_from batch_to lane_from lane_to length a_batch a_time a_lane "
        "b_batch b_time b_lane initial_batch initial_lane out_batch out_time streams",
    )


class BackwardJob(ctypes.Structure):
    """``backward_job`` of ``_scan.c``."""

    _fields_ = _fields(
        "a upstream before initial grad_b grad_a carry sums",
        "batch_from batch_to lane_from lane_to length lanes a_batch a_time a_lane "
        "upstream_batch upstream_time upstream_lane before_batch before_time "
        "initial_batch initial_lane grad_b_batch grad_b_time grad_a_batch grad_a_time "
        "streams",
    )


class MatrixJob(ctypes.Structure):
    """``matrix_job`` of ``_scan.c``."""

    _fields_ = _fields(
        "a b initial out",
        "batch_from batch_to block_from block_to length places a_batch a_time a_block "
        "b_batch b_time initial_batch out_batch out_time is_back",
    )


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernel, or None where there is none that fits this file."""
    found = NATIVE.library()
    if found is None:
        return None
    found.secant_scan_prepare.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    found.secant_scan_prepare.restype = ctypes.c_int64
    return found


def absence() -> str | None:
    """Why there is no C kernel, or None where there is one."""
    return NATIVE.absence()


def _start(x: Tensor, is_backwards: bool) -> int:
    """Address of the step that is taken first."""
    steps = max(x.shape[1] - 1, 0) if is_backwards else 0
    return x.data_ptr() + steps * x.stride(1) * x.element_size()


def _prepare(found: ctypes.CDLL, x: Tensor) -> int:
    """Get an output ready; gives whether to write it past the caches, as a C truth."""
    if not x.is_contiguous():
        return 0
    is_streamed: int = found.secant_scan_prepare(x.data_ptr(), x.numel() * x.element_size())
    return is_streamed


@final
class CKernel:
    """Both passes on three-dimensional tensors (batch, length, lanes), and those of matrices.

    Lanes have stride 1 or 0; other strides are free. What is written has lanes of stride 1.
    """

    def forward(
        self, a: Tensor, b: Tensor, initial: Tensor | None, out: Tensor, *, is_reverse: bool
    ) -> None:
        """h_t = a_t h_{t-1} + b_t into `out`; `is_reverse` takes time from its end."""
        found = library()
        assert found is not None
        batch, length, lanes = out.shape
        way = -1 if is_reverse else 1
        streams = _prepare(found, out)
        run = getattr(found, f"secant_scan_forward_{NAMES[out.dtype]}")

        def share(batches: tuple[int, int], some: tuple[int, int]) -> None:
            job = ForwardJob(
                *(_start(x, is_reverse) for x in (a, b)),
                None if initial is None else initial.data_ptr(),
                _start(out, is_reverse),
                *(*batches, *some, length),
                *(a.stride(0), way * a.stride(1), a.stride(2)),
                *(b.stride(0), way * b.stride(1), b.stride(2)),
                *((0, 0) if initial is None else initial.stride()),
                *(out.stride(0), way * out.stride(1)),
                streams,
            )
            run(ctypes.byref(job))

        in_shares(share, batch, lanes, out.numel() * out.element_size())

    def backward(
        self,
        a: Tensor,
        upstream: Tensor,
        states: Tensor,
        initial: Tensor | None,
        grad_b: Tensor,
        grad_a: Tensor | None,
        carry: Tensor,
        *,
        is_reverse: bool,
    ) -> None:
        """g_t = upstream_t + conj(a_{t+1}) g_{t+1} into `grad_b`; conj(h_{t-1}) g_t for a.

        `grad_a` takes these terms one by one where it has three dimensions; with two (batch,
        lanes; float64) their sums over time are added there. `carry` (batch, lanes) comes in as
        what later steps ask of the last state and goes out as what is asked of `initial`.
        """
        found = library()
        assert found is not None
        batch, length, lanes = grad_b.shape
        back, way = not is_reverse, 1 if is_reverse else -1
        terms = grad_a if grad_a is not None and grad_a.ndim == 3 else None
        sums = grad_a if terms is None else None
        streams = _prepare(found, grad_b)
        if terms is not None:
            streams &= _prepare(found, terms)
        run = getattr(found, f"secant_scan_backward_{NAMES[grad_b.dtype]}")
        # The state before a step is its neighbour's; the kernel takes `initial` at the end.
        before = _start(states, back) + way * states.stride(1) * states.element_size()

        def share(batches: tuple[int, int], some: tuple[int, int]) -> None:
            job = BackwardJob(
                *(_start(a, back), _start(upstream, back), before),
                None if initial is None else initial.data_ptr(),
                _start(grad_b, back),
                None if terms is None else _start(terms, back),
                carry.data_ptr(),
                None if sums is None else sums.data_ptr(),
                *(*batches, *some, length, lanes),
                *(a.stride(0), way * a.stride(1), a.stride(2)),
                *(upstream.stride(0), way * upstream.stride(1), upstream.stride(2)),
                *(states.stride(0), way * states.stride(1)),
                *((0, 0) if initial is None else initial.stride()),
                *(grad_b.stride(0), way * grad_b.stride(1)),
                *((0, 0) if terms is None else (terms.stride(0), way * terms.stride(1))),
                streams,
            )
            run(ctypes.byref(job))

        in_shares(share, batch, lanes, grad_b.numel() * grad_b.element_size())

    def matrix(
        self,
        a: Tensor,
        b: Tensor,
        initial: Tensor,
        out: Tensor,
        *,
        is_reverse: bool,
        is_back: bool,
    ) -> None:
        """h_t = A_t h_{t-1} + b_t into `out`, for matrices (batch, length, blocks, n x n).

        `b`, `out` (batch, length, blocks x n) and `initial` (batch, blocks x n) have lanes of
        stride 1. `is_back`: the conjugate transpose of the matrix of the step taken before.
        """
        found = library()
        assert found is not None
        batch, length, lanes = out.shape
        blocks, places = a.shape[2], lanes // a.shape[2]
        way = -1 if is_reverse else 1
        run = getattr(found, f"secant_scan_matrix_{NAMES[out.dtype]}")

        def share(batches: tuple[int, int], some: tuple[int, int]) -> None:
            job = MatrixJob(
                *(_start(x, is_reverse) for x in (a, b)),
                initial.data_ptr(),
                _start(out, is_reverse),
                *(*batches, *some, length, places),
                *(a.stride(0), way * a.stride(1), a.stride(2)),
                *(b.stride(0), way * b.stride(1), initial.stride(0)),
                *(out.stride(0), way * out.stride(1)),
                is_back,
            )
            run(ctypes.byref(job))

        in_shares(share, batch, blocks, out.numel() * out.element_size() * places, unit=1)
