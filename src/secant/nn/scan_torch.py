"""Scans in plain torch, for any device: the loop, the loop in chunks, torch's associative scan.

Holds: ``apply``, ``loop``, ``chunked``, ``associative``, ``doubled``.
May import: torch, ``secant.nn`` (scan_rows).

All take a with as many dimensions as b (one more for matrices), of size 1 where it repeats.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from secant.nn.scan_rows import work_dtype


def apply(a: Tensor, h: Tensor, is_matrix: bool) -> Tensor:
    """One transition: the product place by place, or of a matrix and the last dimension."""
    if not is_matrix:
        return a * h
    a = a.to(h.dtype)
    if a.numel() == h.shape[-1] ** 2:
        return h @ a.reshape(a.shape[-2:]).mT
    return torch.einsum("...ij,...j->...i", a, h)


def _at(a: Tensor, time: int) -> Tensor:
    """The coefficients of one step; those without time are those of every step."""
    return a[:, 0 if a.shape[1] == 1 else time]


def _order(length: int, is_reverse: bool) -> Iterable[int]:
    return reversed(range(length)) if is_reverse else range(length)


def _start(a: Tensor, b: Tensor, initial: Tensor | None) -> Tensor:
    """The state before the first step, in the type that it is carried in."""
    shape = (b.shape[0], *b.shape[2:])
    dtype = work_dtype(a.dtype, b.dtype)
    if initial is None:
        return torch.zeros(shape, dtype=dtype, device=b.device)
    return initial.to(dtype).expand(shape)


def _run(
    a: Tensor, b: Tensor, h: Tensor, out: Tensor, *, is_matrix: bool, is_reverse: bool
) -> Tensor:
    """Step after step into `out`; gives the last state."""
    for time in _order(b.shape[1], is_reverse):
        h = apply(_at(a, time), h, is_matrix) + b[:, time]
        out[:, time] = h
    return h


def _out(a: Tensor, b: Tensor) -> Tensor:
    return torch.empty(b.shape, dtype=torch.promote_types(a.dtype, b.dtype), device=b.device)


def loop(
    a: Tensor, b: Tensor, initial: Tensor | None, *, is_matrix: bool, is_reverse: bool
) -> Tensor:
    """The recurrence as it is written, one step after the other."""
    out = _out(a, b)
    _run(a, b, _start(a, b, initial), out, is_matrix=is_matrix, is_reverse=is_reverse)
    return out


def _in_chunks(x: Tensor, count: int) -> Tensor:
    """(batch, length, ...) as a view (batch, count, length / count, ...)."""
    size, (batch, time) = x.shape[1] // count, x.stride()[:2]
    shape = (x.shape[0], count, size, *x.shape[2:])
    return x.as_strided(shape, (batch, size * time, time, *x.stride()[2:]))


def chunked(
    a: Tensor, b: Tensor, initial: Tensor | None, *, is_matrix: bool, is_reverse: bool
) -> Tensor:
    """The loop over all chunks of the sequence at once, some sqrt(length) of them.

    First each chunk from a state of zero, for its last state and the product of its coefficients;
    then from chunk to chunk; then each chunk again from the state that it starts in. So
    nothing is divided and no logarithm taken, and a = 0 and |a| near 1 are as exact as the loop.
    Some 3.5 sqrt(length) steps of Python in place of the length.
    """
    length = b.shape[1]
    size = isqrt(length // 2)
    if size < 2:
        return loop(a, b, initial, is_matrix=is_matrix, is_reverse=is_reverse)
    count = length // size
    main = slice(length - count * size, None) if is_reverse else slice(0, count * size)
    rest = slice(0, length - count * size) if is_reverse else slice(count * size, None)
    out, h = _out(a, b), _start(a, b, initial)
    is_still = a.shape[1] == 1
    # Chunks stand beside the batch: (batch, chunk, ...) at each of `size` places.
    parts_a = a.unsqueeze(1) if is_still else _in_chunks(a[:, main], count)
    parts_b = _in_chunks(b[:, main], count)
    parts_out = _in_chunks(out[:, main], count)
    total = torch.zeros(parts_b[:, :, 0].shape, dtype=h.dtype, device=h.device)
    product: Tensor | None = None
    for place in _order(size, is_reverse):
        now = parts_a[:, :, 0 if is_still else place]
        total = apply(now, total, is_matrix) + parts_b[:, :, place]
        wide = now.to(work_dtype(now.dtype))
        if product is not None:
            wide = wide @ product if is_matrix else wide * product
        product = wide
    assert product is not None
    starts = torch.empty_like(total)
    for chunk in _order(count, is_reverse):
        starts[:, chunk] = h
        h = apply(_at(product, chunk), h, is_matrix) + total[:, chunk]
    state = starts
    for place in _order(size, is_reverse):
        now = parts_a[:, :, 0 if is_still else place]
        state = apply(now, state, is_matrix) + parts_b[:, :, place]
        parts_out[:, :, place] = state
    if length > count * size:
        last = state[:, 0 if is_reverse else -1]
        tail = a if is_still else a[:, rest]
        _run(tail, b[:, rest], last, out[:, rest], is_matrix=is_matrix, is_reverse=is_reverse)
    return out


def associative(
    a: Tensor, b: Tensor, initial: Tensor | None, *, is_matrix: bool, is_reverse: bool
) -> Tensor:
    """torch's own associative scan, of pairs (product of coefficients, state)."""
    from torch._higher_order_ops.associative_scan import associative_scan

    dtype = work_dtype(a.dtype, b.dtype)
    full = (*b.shape, b.shape[-1]) if is_matrix else b.shape
    factors = a.to(dtype).expand(full)
    terms = b.to(dtype)
    if initial is not None:
        first = b.shape[1] - 1 if is_reverse else 0
        terms = terms.clone()
        terms[:, first] += apply(_at(a, first), _start(a, b, initial), is_matrix)

    def joined(left: Any, right: Any) -> Any:
        if is_matrix:
            moved = (right[0] @ left[1].unsqueeze(-1)).squeeze(-1)
            return right[0] @ left[0], moved + right[1]
        return right[0] * left[0], right[0] * left[1] + right[1]

    _, out = associative_scan(
        joined, (factors, terms), dim=1, reverse=is_reverse, combine_mode="generic"
    )
    found: Tensor = out
    return found.to(torch.promote_types(a.dtype, b.dtype))


def doubled(
    a: Tensor, b: Tensor, initial: Tensor | None, *, is_matrix: bool, is_reverse: bool
) -> Tensor:
    """Each state joined with the one 1, 2, 4, ... steps before: log2(length) operations in a graph.

    Nothing is written in place and nothing looked at, so that a trace holds it.
    """
    dtype = work_dtype(a.dtype, b.dtype)
    factors = a.to(dtype).expand((*b.shape, b.shape[-1]) if is_matrix else b.shape)
    terms = b.to(dtype)
    if is_reverse:
        factors, terms = factors.flip(1), terms.flip(1)
    if initial is not None and b.shape[1] > 0:
        first = apply(factors[:, 0], initial.to(dtype), is_matrix) + terms[:, 0]
        terms = torch.cat([first.unsqueeze(1), terms[:, 1:]], dim=1)
    step = 1
    while step < b.shape[1]:
        later, before = factors[:, step:], factors[:, :-step]
        joined = apply(later, terms[:, :-step], is_matrix) + terms[:, step:]
        terms = torch.cat([terms[:, :step], joined], dim=1)
        product = later @ before if is_matrix else later * before
        factors = torch.cat([factors[:, :step], product], dim=1)
        step *= 2
    found = terms.flip(1) if is_reverse else terms
    return found.to(torch.promote_types(a.dtype, b.dtype))
