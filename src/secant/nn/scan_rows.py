"""Diagonal scans by a fused kernel: any tensors as rows of lanes, without copies where that works.

Holds: the protocols ``Kernel`` and ``Passes``, ``RowPasses``, ``as_rows``, ``still_rows``,
``as_type``, ``flat_state``, ``work_dtype``.
May import: torch.

A kernel takes (batch, length, lanes) with lanes side by side or repeated. What does not lie so
(half precision, conjugates, broadcasts inside the lanes, a batch of single numbers) goes through
buffers, a piece of time after the other, so that memory stays that of inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Final, Protocol, final, runtime_checkable

import torch
from torch import Tensor

# A piece stays in the second-level cache between its conversion and its use.
PIECE_BYTES: Final = 1 << 20
# Fewer lanes than a vector holds: the batch joins them.
NARROW: Final = 8


@runtime_checkable
class Kernel(Protocol):
    """Both passes on (batch, length, lanes); see ``scan_c.CKernel`` for the contract."""

    def forward(
        self, a: Tensor, b: Tensor, initial: Tensor | None, out: Tensor, *, is_reverse: bool
    ) -> None:
        """The states into `out`."""

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
        """The gradients into `grad_b` and `grad_a`; `carry` in and out."""


@runtime_checkable
class Passes(Protocol):
    """Diagonal scans and their way back, of tensors as `secant.nn.scan` takes them.

    a has b's number of dimensions, of size 1 where it repeats; `initial` is (batch, ...).
    """

    def forward(
        self, a: Tensor, b: Tensor, initial: Tensor | None, *, is_reverse: bool
    ) -> Tensor | None:
        """The states of h_t = a_t h_{t-1} + b_t, in the promoted type.

        None if not all are finite, from passes that multiply coefficients of many steps: such
        products may leave the range where no state does.
        """

    def backward(
        self,
        a: Tensor,
        b_dtype: torch.dtype,
        upstream: Tensor,
        states: Tensor,
        initial: Tensor | None,
        *,
        is_reverse: bool,
        needs_a: bool,
    ) -> tuple[Tensor | None, Tensor, Tensor] | None:
        """Gradients of a (None where it needs none), b and the initial state; or None, as above.

        That of the initial state is (batch, ...) in the working type; the others have theirs.
        """


def work_dtype(*types: torch.dtype) -> torch.dtype:
    """The type that the state is carried in: the widest of these, at least float32."""
    found = torch.float32
    for one in types:
        found = torch.promote_types(found, one)
    return found


def _rows(x: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor | None:
    """x, expanded to `shape`, as (batch, length, lanes); None where that takes a copy."""
    if x.dtype != dtype or x.is_conj() or x.is_neg():
        return None
    full = x.expand(shape)
    lanes, inner = 1, True
    repeated = all(s == 0 for n, s in zip(shape[2:], full.stride()[2:], strict=True) if n > 1)
    for size, stride in zip(reversed(shape[2:]), reversed(full.stride()[2:]), strict=True):
        inner = inner and (size == 1 or stride == lanes)
        lanes *= size
    if not inner and not repeated:
        return None
    lane = 1 if inner else 0
    return full.as_strided((*shape[:2], lanes), (full.stride(0), full.stride(1), lane))


def still_rows(a: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Coefficients without time, as rows: copied once where they do not lie so."""
    found = _rows(a, shape, dtype)
    if found is None:
        once = a.expand(a.shape[0], 1, *shape[2:]).to(dtype).resolve_conj().resolve_neg()
        found = _rows(once.contiguous(), shape, dtype)
    assert found is not None
    return found


def as_rows(x: Tensor, shape: torch.Size) -> Tensor:
    """x, expanded to `shape`, as (batch, length, lanes): copied where it does not lie so."""
    found = _rows(x, shape, x.dtype)
    if found is None:
        whole = x.expand(shape).resolve_conj().resolve_neg().contiguous()
        found = whole.view(*shape[:2], -1)
    return found


def as_type(found: Tensor, dtype: torch.dtype) -> Tensor:
    """A gradient in the type of what it is for; that of a real number is real."""
    if found.is_complex() and not dtype.is_complex:
        found = found.real
    return found.to(dtype)


def flat_state(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(batch, ...) as (batch, lanes), a fresh copy without gaps, which kernels count on."""
    flat = x.to(dtype).resolve_conj().resolve_neg().reshape(x.shape[0], -1)
    return flat.clone(memory_format=torch.contiguous_format)


def _pieces(length: int, row_bytes: int, is_reverse: bool) -> Iterator[tuple[int, int]]:
    """Ranges of time in the order in which the scan takes them."""
    step = max(1, PIECE_BYTES // max(1, row_bytes))
    starts = range(0, length, step)
    for start in reversed(starts) if is_reverse else starts:
        yield start, min(length, start + step)


class _Buffer:
    """One piece of time, the batch among the lanes: (1, time, batch x lanes)."""

    def __init__(self, shape: torch.Size, like: Tensor, dtype: torch.dtype) -> None:
        self.batch, self.rest = shape[0], shape[2:]
        row = prod(shape[2:]) * shape[0]
        steps = max(1, PIECE_BYTES // max(1, row * dtype.itemsize))
        self.kept = torch.empty(min(steps, shape[1]), row, dtype=dtype, device=like.device)

    def view(self, steps: int) -> Tensor:
        return self.kept[:steps].view(steps, self.batch, *self.rest).transpose(0, 1)

    def row(self, steps: int) -> Tensor:
        return self.kept[:steps].unsqueeze(0)

    def filled(self, x: Tensor) -> Tensor:
        """The piece (batch, time, ...) as a row, in this type."""
        self.view(x.shape[1]).copy_(x)
        return self.row(x.shape[1])


def _into(target: Tensor, found: Tensor) -> None:
    """Write a gradient; that of a real number is real."""
    target.copy_(found.real if found.is_complex() and not target.is_complex() else found)


def _as_lanes(rows: Tensor) -> Tensor:
    """Coefficients without time (batch, length, lanes) as those of one row of batch x lanes."""
    return rows[:, :1].transpose(0, 1).reshape(1, 1, -1)


@final
class RowPasses:
    """Both passes by a fused kernel on the CPU."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def forward(
        self,
        a: Tensor,
        b: Tensor,
        initial: Tensor | None,
        *,
        is_reverse: bool,
    ) -> Tensor:
        """The states of h_t = a_t h_{t-1} + b_t; a has b's number of dimensions."""
        dtype = work_dtype(a.dtype, b.dtype)
        shape, made = b.shape, torch.promote_types(a.dtype, b.dtype)
        out = torch.empty(shape, dtype=made, device=b.device)
        start = None if initial is None else flat_state(initial.expand(shape[0], *shape[2:]), dtype)
        lanes = prod(shape[2:])
        is_still = a.shape[1] == 1
        rows_a = still_rows(a, shape, dtype) if is_still else _rows(a, shape, dtype)
        rows_b = _rows(b, shape, dtype)
        is_narrow = lanes < NARROW and shape[0] > 1
        if rows_a is not None and rows_b is not None and made == dtype and not is_narrow:
            self.kernel.forward(
                rows_a, rows_b, start, out.view(*shape[:2], lanes), is_reverse=is_reverse
            )
            return out
        state = None if start is None else start.view(1, -1)
        at_b, at_out = _Buffer(shape, b, dtype), _Buffer(shape, b, dtype)
        at_a = None if is_still else _Buffer(shape, b, dtype)
        row_bytes = at_b.kept.shape[1] * dtype.itemsize
        for low, high in _pieces(shape[1], row_bytes, is_reverse):
            steps = high - low
            if at_a is None:
                assert rows_a is not None
                now_a = _as_lanes(rows_a).expand(1, steps, -1)
            else:
                now_a = at_a.filled(a[:, low:high])
            now = at_out.row(steps)
            self.kernel.forward(
                now_a, at_b.filled(b[:, low:high]), state, now, is_reverse=is_reverse
            )
            state = now[:, 0 if is_reverse else -1].clone()
            out[:, low:high].copy_(at_out.view(steps))
        return out

    def backward(
        self,
        a: Tensor,
        b_dtype: torch.dtype,
        upstream: Tensor,
        states: Tensor,
        initial: Tensor | None,
        *,
        is_reverse: bool,
        needs_a: bool,
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Gradients of a, b and the initial state, in one pass back over time.

        That of the initial state has the working type and is (batch, ...).
        """
        dtype = work_dtype(a.dtype, b_dtype)
        shape, lanes = states.shape, prod(states.shape[2:])
        is_still = a.shape[1] == 1
        rows_a = still_rows(a, shape, dtype) if is_still else _rows(a, shape, dtype)
        rows = [_rows(one, shape, dtype) for one in (upstream, states)]
        grad_b = torch.empty(shape, dtype=b_dtype, device=states.device)
        wide = torch.promote_types(dtype, torch.float64)
        sums = torch.zeros(shape[0], lanes, dtype=wide, device=states.device)
        start = None if initial is None else flat_state(initial.expand(shape[0], *shape[2:]), dtype)
        carry = torch.zeros(shape[0], lanes, dtype=dtype, device=states.device)
        grad_a = torch.empty(a.shape, dtype=a.dtype, device=a.device) if needs_a else None
        is_plain = a.dtype == dtype and b_dtype == dtype and not (lanes < NARROW and shape[0] > 1)
        up, before = rows
        if (
            (rows_a is not None and up is not None and before is not None and is_plain)
            and (before.stride(2) == 1 or lanes == 1)
            and (is_still or a.shape == shape or not needs_a)
        ):
            terms = grad_a.view(before.shape) if grad_a is not None and not is_still else None
            self.kernel.backward(
                rows_a,
                up,
                before,
                start,
                grad_b.view(before.shape),
                (sums if is_still else terms) if needs_a else None,
                carry,
                is_reverse=is_reverse,
            )
        else:
            _back_in_pieces(
                self.kernel,
                (a, _as_lanes(rows_a) if is_still and rows_a is not None else None),
                (upstream, states, start),
                (grad_a, grad_b, sums.view(1, -1), carry.view(1, -1)),
                is_reverse=is_reverse,
            )
        if grad_a is not None and is_still:
            _into(grad_a, sums.view(shape[0], 1, *shape[2:]).sum_to_size(a.shape))
        return grad_a, grad_b, carry.view(shape[0], *shape[2:])


def _back_in_pieces(
    kernel: Kernel,
    coefficients: tuple[Tensor, Tensor | None],
    known: tuple[Tensor, Tensor, Tensor | None],
    found: tuple[Tensor | None, Tensor, Tensor, Tensor],
    *,
    is_reverse: bool,
) -> None:
    """`RowPasses.backward` through buffers, from the last piece of time to the first."""
    (a, still), (upstream, states, start), (grad_a, grad_b, sums, carry) = (
        coefficients,
        known,
        found,
    )
    shape, dtype = states.shape, carry.dtype
    at_a, at_up, at_states, at_b, at_terms = (_Buffer(shape, states, dtype) for _ in range(5))
    row_bytes = at_b.kept.shape[1] * dtype.itemsize
    for low, high in _pieces(shape[1], row_bytes, not is_reverse):
        steps = high - low
        edge = high if is_reverse else low - 1
        first: Tensor | None
        if 0 <= edge < shape[1]:
            first = flat_state(states[:, edge], dtype).view(1, -1)
        else:
            first = None if start is None else start.view(1, -1)
        terms = None
        if grad_a is not None:
            terms = at_terms.row(steps) if still is None else sums
        kernel.backward(
            at_a.filled(a[:, low:high]) if still is None else still.expand(1, steps, -1),
            at_up.filled(upstream[:, low:high]),
            at_states.filled(states[:, low:high]),
            first,
            at_b.row(steps),
            terms,
            carry,
            is_reverse=is_reverse,
        )
        _into(grad_b[:, low:high], at_b.view(steps))
        if grad_a is not None and still is None:
            part = grad_a[:, low:high]
            _into(part, at_terms.view(steps).sum_to_size(part.shape))
