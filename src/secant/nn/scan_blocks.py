"""Scans with matrices by the C kernel: matrices and vectors laid out as it takes them.

Holds: ``blocks_forward``, ``blocks_backward``.
May import: torch, ``secant.nn`` (scan_c, scan_rows).

Matrices that do not lie row by row, or are in half precision, are copied first.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from secant.nn.scan_c import CKernel
from secant.nn.scan_rows import work_dtype


def _plain(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype).resolve_conj().resolve_neg()


def _matrices(a: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """(batch, length, blocks, n x n): repeats over batch, time or all blocks copy nothing."""
    a, blocks = _plain(a, dtype), prod(shape[2:-1])
    if prod(a.shape[2:-2]) not in (1, blocks):
        a = a.expand(*a.shape[:2], *shape[2:], shape[-1])
    if not a[0, 0].is_contiguous():
        a = a.contiguous()
    own = shape[-1] ** 2 if prod(a.shape[2:-2]) == blocks else 0
    wide = a.expand(*shape[:2], *a.shape[2:])
    return wide.as_strided(
        (*shape[:2], blocks, shape[-1] ** 2), (wide.stride(0), wide.stride(1), own, 1)
    )


def _vectors(b: Tensor, dtype: torch.dtype) -> Tensor:
    """(batch, length, blocks x n), lanes side by side."""
    flat = _plain(b, dtype).flatten(2)
    return flat if flat.stride(2) == 1 or flat.shape[2] == 1 else flat.contiguous()


def blocks_forward(a: Tensor, b: Tensor, initial: Tensor | None, *, is_reverse: bool) -> Tensor:
    """The states of h_t = A_t h_{t-1} + b_t; a has one dimension more than b."""
    dtype = work_dtype(a.dtype, b.dtype)
    shape, vectors = b.shape, _vectors(b, dtype)
    if initial is None:
        first = torch.zeros_like(vectors[:, 0])
    else:
        first = _plain(initial, dtype).reshape(shape[0], -1).contiguous()
    out = torch.empty(vectors.shape, dtype=dtype)
    CKernel().matrix(
        _matrices(a, shape, dtype), vectors, first, out, is_reverse=is_reverse, is_back=False
    )
    return out.view(shape).to(torch.promote_types(a.dtype, b.dtype))


def blocks_backward(a: Tensor, upstream: Tensor, *, is_reverse: bool) -> Tensor:
    """What is asked of each state: g_t = upstream_t + A_{t+1}* g_{t+1}, for a scan `is_reverse`."""
    shape, vectors = upstream.shape, _vectors(upstream, upstream.dtype)
    out = torch.empty(vectors.shape, dtype=upstream.dtype)
    CKernel().matrix(
        _matrices(a, shape, upstream.dtype),
        *(vectors, torch.zeros_like(vectors[:, 0]), out),
        is_reverse=not is_reverse,
        is_back=True,
    )
    return out.view(shape)
