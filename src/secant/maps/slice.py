"""The model over a window of a plane of inputs, as exact cells on which it is affine.

Holds: ``partition`` and its result ``Partition``.
May import: torch, ``secant.errors``, ``secant.maps``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from secant.errors import InputError
from secant.maps.line import AFFINE_WITHIN, CHECKED, in_float64
from secant.maps.line_ops import LineTensor
from secant.maps.slice_cells import Cells
from secant.maps.slice_mesh import Mesh

Window = tuple[tuple[float, float], tuple[float, float]]

WEIGHT = 0.618034
"""Corner k of a checked cell weighs 1 + frac(k WEIGHT): a place inside, not its middle."""


class Plane(NamedTuple):
    """x(a, b) = origin + a u + b v, in float64."""

    origin: Tensor
    u: Tensor
    v: Tensor

    def of(self, at: Tensor) -> Tensor:
        """The inputs, (n, *shape), at coordinates (n, 2)."""
        a, b = (part.view(-1, *[1] * self.u.ndim) for part in at.unbind(1))
        return self.origin + a * self.u + b * self.v


class Partition(NamedTuple):
    """The window's cells; the model is affine on each. Some neighbours may share a map."""

    at: Tensor  # (vertices, 2): coordinates (a, b), float64
    values: Tensor  # (vertices, width): the flattened output there, float64
    cells: Cells
    decisions: Tensor  # (cells,): equal where every unit is on one side; see `Mesh`
    rounding: Tensor  # (width,): largest gap between the model and the cells where checked
    units: int  # scalars at which the model can kink, for one input
    magnitude: float  # largest number that entered a kink or left the model


def plane_of(origin: Tensor, u: Tensor, v: Tensor) -> Plane:
    """The plane, in float64.

    Raises: `InputError` unless all are finite floats of one shape and u, v span a plane.
    """
    given = {"origin": origin, "u": u, "v": v}
    shapes = {tuple(one.shape) for one in given.values()}
    if len(shapes) > 1 or not all(one.is_floating_point() for one in given.values()):
        raise InputError(
            "slice_pieces: `origin`, `u` and `v` must be real float tensors of one shape; got "
            f"{', '.join(f'{name} {one.dtype} {tuple(one.shape)}' for name, one in given.items())}."
            " Pass one input and two directions, without the batch dimension."
        )
    plane = Plane(*(one.detach().double() for one in given.values()))
    flat = torch.stack([plane.u.flatten(), plane.v.flatten()])
    is_finite = all(bool(one.isfinite().all()) for one in plane)
    sizes = torch.linalg.svdvals(flat) if is_finite and flat.shape[1] > 1 else flat.new_zeros(2)
    if not sizes[1] > 1e-9 * sizes[0]:
        raise InputError(
            "slice_pieces: `origin`, `u` and `v` must be finite and the directions span a plane; "
            "they do not. Draw two directions that are not parallel, of two numbers or more."
        )
    return plane


def partition(model: Callable[..., Any], plane: Plane, window: Window, *, limit: int) -> Partition:
    """The model over {origin + a u + b v}, (a, b) in the window, exactly, in float64.

    The model runs as `polyline` runs it: once, on a tensor that stands for all vertices of the
    cells found so far (`LineTensor` on a `Mesh`). Before each layer of kinks every cell is cut by
    the lines on which its units change side; each is straight within a cell. A second, ordinary
    run checks up to CHECKED cells at a place inside and measures the rounding.

    Cost: one forward pass over the vertices of each layer, and cuts of time and memory in
    proportion to vertices times the widest layer.

    Raises: `TooManyCells` past `limit` cells; `InputError` if the model refuses the input, is
    not finite in the window, or is not piecewise affine and continuous.

    Source: exact 2-D slices, Humayun et al. 2023, arXiv:2302.12828.
    """
    (left, right), (low, high) = window
    if not (
        left < right and low < high and all(map(torch.isfinite, torch.tensor(window).flatten()))
    ):
        raise InputError(
            f"slice_pieces: each range of the window must be finite and grow; got {window}. "
            "Give ((a from, a to), (b from, b to))."
        )
    corners = [[left, low], [right, low], [right, high], [left, high]]
    at = torch.tensor(corners, dtype=torch.float64, device=plane.origin.device)
    run = in_float64(model)
    with torch.inference_mode(False), torch.no_grad():
        mesh = Mesh(at, limit)
        out = run(LineTensor(plane.of(at)[:, None], mesh))
        if isinstance(out, LineTensor):
            values = out.newest().reshape(len(mesh.at), -1)
        else:  # the output does not depend on the input
            values = out.double().flatten().expand(len(mesh.at), -1)
        if not torch.isfinite(values).all():
            raise InputError(
                "slice_pieces: the model must be finite in the window; it gives nan or infinity. "
                "Check its weights and the window."
            )
        magnitude = max(values.abs().max().item(), mesh.magnitude)
        found = Partition(
            mesh.at, values, mesh.cells, mesh.decisions, values[0], mesh.units, magnitude
        )
        return found._replace(rounding=_rounding(run, plane, found, mesh.chunk))


def _rounding(
    run: Callable[[Tensor], Tensor], plane: Plane, found: Partition, batch: int
) -> Tensor:
    """Largest gap between model and cells inside the checked cells, for each output."""
    count = found.cells.number
    chosen = torch.linspace(0, count - 1, min(count, CHECKED), device=found.at.device).long()
    cells = found.cells.taken(chosen)
    place = torch.arange(len(cells.loop), device=found.at.device) - cells.start[cells.owner]
    weight = 1 + (place * WEIGHT).double().frac()
    total = weight.new_zeros(cells.number).index_add_(0, cells.owner, weight)
    share = (weight / total[cells.owner])[:, None]

    def mixed(rows: Tensor) -> Tensor:
        sums = rows.new_zeros(cells.number, rows.shape[1])
        return sums.index_add_(0, cells.owner, share * rows[cells.loop])

    expected, x = mixed(found.values), plane.of(mixed(found.at))
    outputs = [run(rows).double() for rows in torch.split(x, batch)]
    given = torch.cat([out.reshape(len(out) if out.ndim else 1, -1) for out in outputs])
    if given.shape != expected.shape:
        raise InputError(
            f"slice_pieces: the model must give one output an input; {len(x)} inputs gave "
            f"{tuple(given.shape)}, one gave {expected.shape[1]} numbers. "
            "Keep the batch as the first dimension."
        )
    gap = (given - expected).abs()
    worst = mixed(found.at)[int(gap.amax(1).argmax())].tolist()
    if not gap.max() <= AFFINE_WITHIN * found.magnitude:
        raise InputError(
            "slice_pieces: the model must be affine on the cells found, each input for itself; at "
            f"(a, b) = ({worst[0]:.6g}, {worst[1]:.6g}) it is off by {gap.max().item():.3g} where "
            f"numbers reach {found.magnitude:.3g}. Look for randomness, or a mixing of the batch."
        )
    return gap.amax(0)
