"""The affine map that a piecewise affine network is at an input, and how far it holds.

Holds: ``affine_at`` and its result ``AffineMaps``.
May import: torch, ``secant.errors``, ``secant.maps``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secant.errors import InputError
from secant.maps.frame import MOST_ELEMENTS, Frame, framed
from secant.maps.line import AFFINE_WITHIN

INSIDE = 0.9
"""Where between an input and its nearest boundary the map is tried against the model."""


@dataclass(frozen=True)
class AffineMaps:
    """f(x) = A x + b around each input, and the nearest place where that ends; float64.

    `matrix` (inputs, outputs, features) and `offset` (inputs, outputs): A and b, for flattened
    inputs. `margin` (inputs,): Euclidean distance to the nearest boundary of the input's piece,
    infinite if there is none. `direction` (inputs, features): the unit vector towards it, 0 if
    none. `unit`: the unit whose side changes there, as (operation, number), None if none.
    `error` (inputs,): largest gap between A x + b and the model, at x and 0.9 margins towards
    the boundary.
    """

    matrix: Tensor
    offset: Tensor
    margin: Tensor
    direction: Tensor
    unit: list[tuple[str, int] | None]
    error: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """A x + b for one x (inputs, ...) an input: (inputs, outputs)."""
        flat = x.double().flatten(1)
        return torch.einsum("nof,nf->no", self.matrix, flat) + self.offset


def affine_at(model: Callable[..., Any], x: Tensor) -> AffineMaps:
    r"""The active affine map of a piecewise affine `model` at each of the inputs `x` (n, ...).

    A is the derivative of the model in float64, b the value at the origin of the affine map, each
    found by one forward pass over the input, the input and one along every axis, and the origin,
    on which every operation with kinks acts as it does, linearised, at the input. A unit with
    the value z and the gradient g in the input changes side at the distance

    .. math:: |z - \text{level}| / \|g\|

    from it, as long as no other does before, so the smallest of these over all units is the
    distance to the nearest facet of the input's region: exact, not a bound. The units are those
    that `pieces` follows: entries of relu and its kin, and the other entries of each window of a
    maximum. A boundary of a region need not be a kink of the output.

    `model` is as in `pieces`. An input that lies on a boundary has margin 0, and its map is that
    of torch's own derivative there.

    Cost: (features + 2) rows of a float64 forward pass an input. A (inputs x outputs x features)
    is held whole.

    Raises: `InputError` if x is no batch of finite floats, the model refuses it or is not
    piecewise affine (the message names the operation), one layer needs more than 512 MiB for one
    input, or A x + b is not the model's output to rounding.

    Source: the map and regions of Balestriero and Baraniuk 2018, arXiv:1805.06576; distance to a
    boundary as in Hanin and Rolnick 2019, arXiv:1901.09021.
    """
    if x.ndim < 2 or not len(x) or not x.is_floating_point() or not bool(x.isfinite().all()):
        raise InputError(
            "affine_at: `x` must be a batch of finite floats (inputs, ...); got "
            f"{x.dtype} {tuple(x.shape)}. Add the batch dimension with `x[None]`."
        )
    rows = x.detach().double()
    first, values, run = framed(model, rows[:1], has_axes=True)
    many = max(1, MOST_ELEMENTS // (4 * first.places * first.widest))
    parts = [_maps(first, values, rows[:1], run)]
    for some in torch.split(rows[1:], many) if len(rows) > 1 else ():
        frame, values, run = framed(model, some, has_axes=True)
        parts.append(_maps(frame, values, some, run))
    matrix, offset, margin, direction, error = (
        torch.cat([getattr(part, name) for part in parts])
        for name in ("matrix", "offset", "margin", "direction", "error")
    )
    units = [unit for part in parts for unit in part.unit]
    return AffineMaps(matrix, offset, margin, direction, units, error)


def _maps(
    frame: Frame, values: Tensor, rows: Tensor, run: Callable[[Tensor], Tensor]
) -> AffineMaps:
    """What one frame says, tried against the model."""
    near = frame.nearest
    known = zip(near.layer.tolist(), near.unit.tolist(), strict=True)
    units = [(frame.layers[layer].name, unit) if layer >= 0 else None for layer, unit in known]
    matrix, offset = (values[:, 1:-1] - values[:, :1]).mT, values[:, -1]
    found = AffineMaps(matrix, offset, near.distance, near.direction, units, near.distance)
    step = torch.where(near.distance.isfinite(), INSIDE * near.distance, 0.0)
    inside = rows + (step[:, None] * near.direction).view_as(rows)
    error = torch.zeros_like(near.distance)
    with torch.no_grad():
        for place in (rows, inside):
            out = run(place).double()
            if out.numel() != offset.numel():
                raise InputError(
                    f"affine_at: the model must give one output an input; {len(rows)} inputs gave "
                    f"{tuple(out.shape)}. Keep the batch as the first dimension."
                )
            gap = (found(place) - out.reshape(offset.shape)).abs().amax(1)
            error = torch.maximum(error, gap)
    scale = max(frame.magnitude, float(values.abs().max()))
    if not bool((error <= AFFINE_WITHIN * scale).all()):
        raise InputError(
            "affine_at: A x + b must be the model's output, each input for itself; it is off by "
            f"{float(error.max()):.3g} where numbers reach {scale:.3g}. "
            "Look for randomness, or for a mixing of the batch."
        )
    return AffineMaps(matrix, offset, near.distance, near.direction, units, error)
