"""The scan's kernel in numba, where there is no compiled one: the same passes, the same numbers.

Holds: ``absence`` and the class ``NumbaKernel``.
May import: numba (extra ``fast``), numpy, torch, ``secant.nn`` (scan_shares).

Compiled at the first call for a type of number, some seconds, and kept on disk by numba.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from inspect import unwrap
from typing import Any, Final, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secant.nn.scan_shares import in_shares

# Steps whose terms are summed in the working type before they join the float64 sum.
FLUSH: Final = 16


def absence() -> str | None:
    """Why there is no numba kernel, or None where there is one."""
    if find_spec("numba") is not None:
        return None
    return "numba is not installed. Install it with `pip install 'secant[fast]'`."


def _forward(a: Any, b: Any, state: Any, out: Any, steps: Any) -> None:
    """One batch entry: flat arrays, and for each start, time stride, lane stride in `steps`."""
    count = len(state)
    held, filled = np.empty_like(state), np.empty_like(state)
    at_a, at_b, at_out = steps[:3, 0]
    if steps[0, 2] == 1:
        held[:] = a[at_a : at_a + count]
    else:
        held[:] = a[at_a]
    for _ in range(steps[3, 0]):
        now_a, now_b = held, filled
        if steps[0, 1] != 0 and steps[0, 2] == 1:
            now_a = a[at_a : at_a + count]
        elif steps[0, 1] != 0:
            held[:] = a[at_a]
        if steps[1, 2] == 1:
            now_b = b[at_b : at_b + count]
        else:
            filled[:] = b[at_b]
        now_out = out[at_out : at_out + count]
        for j in range(count):
            value = now_a[j] * state[j] + now_b[j]
            state[j] = value
            now_out[j] = value
        at_a += steps[0, 1]
        at_b += steps[1, 1]
        at_out += steps[2, 1]


def _backward(
    a: Any, up: Any, states: Any, first: Any, grad_b: Any, terms: Any, sums: Any, carry: Any,
    steps: Any,
) -> None:  # fmt: skip
    """One batch entry, from the last step to the first; `terms` or `sums` may have no lanes."""
    count, length = len(carry), steps[5, 0]
    held, filled, part = np.empty_like(carry), np.empty_like(carry), np.zeros_like(carry)
    at_a, at_up, at_states, at_b, at_terms = steps[:5, 0]
    if steps[0, 2] == 1:
        held[:] = a[at_a : at_a + count]
    else:
        held[:] = a[at_a]
    for time in range(length):
        now_a, now_up, before = held, filled, first
        if steps[0, 1] != 0 and steps[0, 2] == 1:
            now_a = a[at_a : at_a + count]
        elif steps[0, 1] != 0:
            held[:] = a[at_a]
        if steps[1, 2] == 1:
            now_up = up[at_up : at_up + count]
        else:
            filled[:] = up[at_up]
        if time + 1 < length:
            before = states[at_states : at_states + count]
        now_b = grad_b[at_b : at_b + count]
        if len(terms):
            now_terms = terms[at_terms : at_terms + count]
            for j in range(count):
                now_terms[j] = np.conj(before[j]) * (now_up[j] + carry[j])
        elif len(sums):
            for j in range(count):
                part[j] += np.conj(before[j]) * (now_up[j] + carry[j])
            if time % FLUSH == FLUSH - 1 or time + 1 == length:
                for j in range(count):
                    sums[j] += part[j]
                    part[j] = 0
        for j in range(count):
            now = now_up[j] + carry[j]
            now_b[j] = now
            carry[j] = np.conj(now_a[j]) * now
        at_a += steps[0, 1]
        at_up += steps[1, 1]
        at_states += steps[2, 1]
        at_b += steps[3, 1]
        at_terms += steps[4, 1]


@cache
def _compiled() -> tuple[Any, Any]:
    """Both passes, to be compiled at their first call."""
    import numba

    made = numba.njit(nogil=True, cache=True, error_model="numpy")
    # A checker of annotations may have wrapped them; numba reads the functions themselves.
    return made(unwrap(_forward)), made(unwrap(_backward))


def _flat(x: Tensor) -> Any:
    """All that a tensor's strides reach, as one row."""
    reach = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    return x.as_strided((reach,), (1,)).numpy()


def _steps(
    views: list[Tensor], batch: int, lane: int, length: int, is_backwards: bool
) -> NDArray[np.int64]:
    """Start, time stride and lane stride of each; then the number of steps."""
    rows = []
    for x in views:
        start = batch * x.stride(0) + lane * x.stride(2)
        if is_backwards:
            rows.append((start + (length - 1) * x.stride(1), -x.stride(1), x.stride(2)))
        else:
            rows.append((start, x.stride(1), x.stride(2)))
    return np.array([*rows, (length, 0, 0)], dtype=np.int64)


@final
class NumbaKernel:
    """Both passes on (batch, length, lanes), as `secant.nn.scan_c.CKernel` has them."""

    def forward(
        self, a: Tensor, b: Tensor, initial: Tensor | None, out: Tensor, *, is_reverse: bool
    ) -> None:
        """h_t = a_t h_{t-1} + b_t into `out`; `is_reverse` takes time from its end."""
        run, _ = _compiled()
        batch, length, lanes = out.shape
        views = [a, b, out]
        flat_a, flat_b, flat_out = map(_flat, views)
        state = torch.zeros(batch, lanes, dtype=out.dtype) if initial is None else initial.clone()
        states = state.numpy()

        def share(batches: tuple[int, int], some: tuple[int, int]) -> None:
            for one in range(*batches):
                steps = _steps(views, one, some[0], length, is_reverse)
                run(flat_a, flat_b, states[one, slice(*some)], flat_out, steps)

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
        """g_t = upstream_t + conj(a_{t+1}) g_{t+1} into `grad_b`; conj(h_{t-1}) g_t for a."""
        _, run = _compiled()
        batch, length, lanes = grad_b.shape
        has_terms = grad_a is not None and grad_a.ndim == 3
        terms = grad_a if grad_a is not None and has_terms else grad_b
        views = [a, upstream, states, grad_b, terms]
        flats = [_flat(one) for one in views]
        if not has_terms:
            flats[4] = flats[4][:0]
        none = torch.empty(batch, 0, dtype=torch.promote_types(grad_b.dtype, torch.float64))
        sums = (grad_a if grad_a is not None and not has_terms else none).numpy()
        first = (torch.zeros_like(carry) if initial is None else initial).numpy()
        carries = carry.numpy()

        def share(batches: tuple[int, int], some: tuple[int, int]) -> None:
            part = slice(*some)
            for one in range(*batches):
                steps = _steps(views, one, some[0], length, not is_reverse)
                # The state before a step is its neighbour's; `first` stands at the end.
                steps[2, 0] += steps[2, 1]
                run(
                    *(*flats[:3], first[one, part], flats[3], flats[4]),
                    *(sums[one, part], carries[one, part], steps),
                )

        in_shares(share, batch, lanes, grad_b.numel() * grad_b.element_size())
