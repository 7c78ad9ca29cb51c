"""The scan's kernel for CUDA devices, in Triton: one program walks a block of lanes through time.

Holds: the kernel ``walk``.
May import: triton (it comes with torch's CUDA builds).

Imported by ``scan_triton`` alone, where it is first asked for: the decorator reads the environment.

A program takes (TIMES, LANES) numbers at a time, makes all prefixes of this tile by an associative
scan of pairs (product of coefficients, state from zero), and puts the state that it carries before
them. Complex numbers are pairs of real ones, side by side in memory: PARTS is 2.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import unwrap
from typing import Any

import triton
import triton.language as tl


def kernel(function: Callable[..., Any]) -> Any:
    """Compiled by Triton at its first launch. A checker of annotations may have wrapped it; Triton
    reads the functions themselves.
    """
    return triton.jit(unwrap(function))


@kernel
def _joined(left_a, left_b, right_a, right_b):
    """First the left piece of time, then the right one."""
    return right_a * left_a, right_a * left_b + right_b


@kernel
def _joined_complex(ax, ay, bx, by, cx, cy, dx, dy):
    """`_joined` of (a, b) and (c, d), each with its real part x and its imaginary part y."""
    return (
        cx * ax - cy * ay,
        cx * ay + cy * ax,
        cx * bx - cy * by + dx,
        cx * by + cy * bx + dy,
    )


@kernel
def _read(rows, at, inside, STATE: tl.constexpr, PARTS: tl.constexpr):
    """Real and imaginary parts; of real numbers twice the same, of which one goes unused."""
    if PARTS == 2:
        part = tl.arange(0, 2)[None, None, :]
        both = tl.load(rows + at[:, :, None] + part, mask=inside[:, :, None], other=0.0)
        real, imag = tl.split(both.to(STATE))
        return real, imag
    real = tl.load(rows + at, mask=inside, other=0.0).to(STATE)
    return real, real


@kernel
def _write(rows, at, real, imag, inside, PARTS: tl.constexpr):
    if PARTS == 2:
        part = tl.arange(0, 2)[None, None, :]
        tl.store(rows + at[:, :, None] + part, tl.join(real, imag), mask=inside[:, :, None])
    else:
        tl.store(rows + at, real, mask=inside)


@kernel
def _time(step, length, IS_REVERSE: tl.constexpr):
    """Which time a step of this pass is at."""
    time = step.to(tl.int64)
    if IS_REVERSE:
        time = length - 1 - time
    return time


@kernel
def _last(tile, row, TIMES: tl.constexpr):
    """The last row of a tile, (1, LANES)."""
    return tl.sum(tl.where(row == TIMES - 1, tile, 0.0), 0)[None, :]


@kernel
def walk(
    a,
    b,
    first,
    out,
    ends,
    products,
    before,
    edge,
    terms,
    length,
    lanes,
    steps,
    segments,
    a_batch,
    a_time,
    a_lane,
    b_batch,
    b_time,
    b_lane,
    IS_REVERSE: tl.constexpr,
    IS_BACK: tl.constexpr,
    IS_STILL: tl.constexpr,
    IS_TOTAL: tl.constexpr,
    HAS_FIRST: tl.constexpr,
    HAS_ENDS: tl.constexpr,
    HAS_EDGE: tl.constexpr,
    TERMS: tl.constexpr,
    STATE: tl.constexpr,
    PARTS: tl.constexpr,
    TIMES: tl.constexpr,
    LANES: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One block of lanes through one segment of `steps` steps.

    a, b: (batch, length, lanes), any strides, in real numbers; all others without gaps. What a
    segment has one of is (batch, segments, lanes): the state that it starts in, `first`, and the
    one that it ends in, `ends`, which is nan if any of its states is not finite (rows of a tile are
    made of different products, of which one may leave the range and the next not). All states go to
    `out` (batch, length, lanes); IS_TOTAL: nowhere, but the product of a segment's coefficients to
    `products`.

    IS_BACK: the pass back, g_k = b_k + conj(a_(k-1)) g_(k-1), k counted in the order of this pass.
    What the coefficients are owed, conj(state before) g, is made of `before`, the states that the
    forward pass gave, and `edge` (batch, lanes), its initial one. TERMS 1: term by term into
    `terms` (batch, length, lanes); 2: summed over the segment, tile by tile in float64, (batch,
    segments, lanes).
    """
    blocks = tl.cdiv(lanes, LANES)
    program = tl.program_id(0)
    lane = ((program % blocks) * LANES + tl.arange(0, LANES)).to(tl.int64)[None, :]
    segment = ((program // blocks) % segments).to(tl.int64)
    batch = (program // blocks // segments).to(tl.int64)
    is_lane = lane < lanes
    high = tl.minimum((segment + 1) * steps, length)
    a_rows, b_rows = a + batch * a_batch, b + batch * b_batch
    rows = batch * length
    own = ((batch * segments + segment) * lanes + lane) * PARTS
    row = tl.arange(0, TIMES)[:, None]
    carry, carry_imag = tl.zeros((1, LANES), STATE), tl.zeros((1, LANES), STATE)
    if HAS_FIRST:
        carry, carry_imag = _read(first, own, is_lane, STATE, PARTS)
    if IS_STILL:
        still, still_imag = _read(a_rows, lane * a_lane, is_lane, STATE, PARTS)
    total, total_imag = tl.full((1, LANES), 1.0, STATE), tl.zeros((1, LANES), STATE)
    flaw = tl.zeros((1, LANES), STATE)
    owed, owed_imag = tl.zeros((1, LANES), tl.float64), tl.zeros((1, LANES), tl.float64)
    for start in tl.range(segment * steps, high, TIMES, num_stages=STAGES):
        step = start + row
        is_step = step < high
        inside = is_step & is_lane
        time = _time(step, length, IS_REVERSE)
        # In the pass back a coefficient goes with the step after its own: the first has none.
        lag: tl.constexpr = 1 if IS_BACK else 0
        has_a = inside & (step >= lag)
        if IS_STILL:
            x = tl.where(has_a, still, 0.0)
            x_imag = tl.where(has_a, still_imag, 0.0)
        else:
            at_a = _time(step - lag, length, IS_REVERSE) * a_time + lane * a_lane
            x, x_imag = _read(a_rows, at_a, has_a, STATE, PARTS)
        # Past the end nothing changes, so that the last row is the state to carry.
        x = tl.where(is_step, x, 1.0)
        y, y_imag = _read(b_rows, time * b_time + lane * b_lane, inside, STATE, PARTS)
        if PARTS == 2:
            x_imag = tl.where(is_step, -x_imag if IS_BACK else x_imag, 0.0)
            x, x_imag, y, y_imag = tl.associative_scan((x, x_imag, y, y_imag), 0, _joined_complex)
            y, y_imag = (
                y + (x * carry - x_imag * carry_imag),
                y_imag + (x * carry_imag + x_imag * carry),
            )
            carry_imag = _last(y_imag, row, TIMES)
            flaw += tl.sum(y_imag - y_imag, 0)[None, :]
        else:
            x, y = tl.associative_scan((x, y), 0, _joined)
            y = x * carry + y
        carry = _last(y, row, TIMES)
        flaw += tl.sum(y - y, 0)[None, :]  # 0, or nan if a state is not finite
        at = ((rows + time) * lanes + lane) * PARTS
        if IS_TOTAL:
            last = _last(x, row, TIMES)
            if PARTS == 2:
                last_imag = _last(x_imag, row, TIMES)
                total, total_imag = (
                    total * last - total_imag * last_imag,
                    total * last_imag + total_imag * last,
                )
            else:
                total = total * last
        else:
            _write(out, at, y, y_imag, inside, PARTS)
        if TERMS != 0:
            has_before = inside & (step + 1 < length)
            earlier = _time(step + 1, length, IS_REVERSE)
            at_before = ((rows + earlier) * lanes + lane) * PARTS
            h, h_imag = _read(before, at_before, has_before, STATE, PARTS)
            if HAS_EDGE:
                at_edge = (batch * lanes + lane) * PARTS
                has_edge = inside & (step + 1 == length)
                e, e_imag = _read(edge, at_edge + 0 * time, has_edge, STATE, PARTS)
                h, h_imag = h + e, h_imag + e_imag
            term, term_imag = h * y, h * y_imag
            if PARTS == 2:
                term, term_imag = term + h_imag * y_imag, term_imag - h_imag * y
            if TERMS == 1:
                _write(terms, at, term, term_imag, inside, PARTS)
            else:
                # Outside both are 0, but 0 times what is not finite is not.
                owed += tl.sum(tl.where(inside, term, 0.0), 0)[None, :].to(tl.float64)
                if PARTS == 2:
                    owed_imag += tl.sum(tl.where(inside, term_imag, 0.0), 0)[None, :].to(tl.float64)
    if HAS_ENDS:
        _write(ends, own, carry + flaw, carry_imag, is_lane, PARTS)
    if IS_TOTAL:
        _write(products, own, total, total_imag, is_lane, PARTS)
    if TERMS == 2:
        _write(terms, own, owed, owed_imag, is_lane, PARTS)
