"""Convolutions before a flatten and linear maps after it as one matrix over the flattened input.

Holds: ``flattened_form``.
May import: torch, ``secant.maps``, ``secant.uses`` (affine_forms, affine_steps).

The rows of the later matrix are pictures, and what a convolution does to them from behind is its
adjoint, a transposed convolution. So the joined matrix costs as many products as its rows are
convolutions; the convolution is never written out as a matrix. Padding and shifts before it are
exact in the adjoint, since every place has entries of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch.nn import functional

from secant.uses.affine_forms import (
    UNIT,
    Convolution,
    Dense,
    Diagonal,
    Flat,
    Flattened,
    Form,
    operator_norm,
)
from secant.uses.affine_steps import LAST, Step, path_form, places, sizes_of, width_of


def flattened_form(path: Sequence[Step]) -> Form | None:
    """Steps with one flatten among them as one matrix; None if there is none that saves work.

    Before the flatten all must act on channels, after it on features. What a product costs is
    known before it is taken, and one that saves nothing is not: it may be too large to hold.
    """
    places_of = [number for number, one in enumerate(path) if isinstance(one.form, Flat)]
    before, later = path[: places_of[0]], path[places_of[0] + 1 :]
    if len(places_of) > 1 or not before or not later or any(one.views for one in path):
        return None
    if any(one.axis == LAST for one in before):
        return None
    shapes = [sizes_of(one.parent) for one in before] + [sizes_of(before[-1].node)]
    outputs, end = width_of(path[-1].node, LAST), path[-1].node
    if outputs is None:
        return None
    sizes = [shape for shape in shapes if shape is not None]
    if len(sizes) < len(shapes):
        return None
    if outputs * math.prod(sizes[0]) * places(end, LAST) >= sum(one.work for one in path):
        return None
    after_flatten = path_form(later)
    if not isinstance(after_flatten, Dense):
        return None
    whole = Flattened(
        after_flatten.weight, after_flatten.shift, after_flatten.error, after_flatten.shift_error,
        gain=after_flatten.length,
    )  # fmt: skip
    for step, into, out in zip(before[::-1], sizes[-2::-1], sizes[:0:-1], strict=True):
        whole = _pulled(whole, step.form, into, out)
    return whole


def _pulled(later: Flattened, earlier: Form, into: Sequence[int], out: Sequence[int]) -> Flattened:
    """`later` after `earlier`, whose values have the sizes `into` and `out`, channels first."""
    rows = later.weight.view(len(later.weight), *out)
    if isinstance(earlier, Diagonal):
        weight = rows * earlier.weight.view(-1, *[1] * (len(out) - 1))
        terms = 1
    elif isinstance(earlier, Dense):
        weight = (rows.flatten(2).mT @ earlier.weight).mT
        terms = len(earlier.weight)
    else:
        assert isinstance(earlier, Convolution)
        taps = earlier.weight.shape[2:]
        # Places at the end that no stride reaches have entries 0.
        rest = [
            size - ((places - 1) * stride - 2 * padding + dilation * (tap - 1) + 1)
            for size, places, stride, padding, dilation, tap in zip(
                into[1:], out[1:], earlier.stride, earlier.padding, earlier.dilation, taps,
                strict=True,
            )
        ]  # fmt: skip
        transposed = getattr(functional, f"conv_transpose{len(taps)}d")
        weight = transposed(
            rows, earlier.weight, stride=earlier.stride, padding=earlier.padding,
            output_padding=rest, groups=earlier.groups, dilation=earlier.dilation,
        )  # fmt: skip
        terms = len(earlier.weight) * math.prod(taps)
    weight = weight.reshape(len(rows), -1)
    assert weight.shape[1] == math.prod(into)
    length, scale = later.length, operator_norm(earlier)
    spread = math.sqrt(earlier.weight[0, 0].numel()) if earlier.weight.ndim > 2 else 1.0
    lost = earlier.error * spread
    error = length * lost + later.error * (scale + lost) + 2 * terms * UNIT * length * scale
    shift, shift_error = later.shift, later.shift_error
    if earlier.shift is not None:
        moved = rows.flatten(2).sum(2) @ earlier.shift.expand(out[0])
        shift = moved if shift is None else moved + shift
        everywhere = math.sqrt(math.prod(out) / earlier.shift.numel())
        known, lost = everywhere * earlier.shift_norm(), everywhere * earlier.shift_error
        shift_error += length * lost + later.error * (known + lost)
        shift_error += 2 * math.prod(out) * UNIT * length * known + UNIT * float(shift.norm())
    made = replace(
        later, weight=weight, shift=shift, error=error * 1.0001, shift_error=shift_error * 1.0001
    )
    return replace(made, gain=max(later.gain, made.length))
