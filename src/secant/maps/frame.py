"""Inputs with their affine surroundings: the active map, every unit's side, and what lies nearest.

Holds: ``Frame`` and what it notes, ``Layer``; ``framed``, one run of a model on it.
May import: torch, ``secant.errors``, ``secant.maps``.

A frame is what a grid of points is on a line (`line_grid`), for a tensor known at some inputs and
at the corners of a frame about each. Affine operations run on the corners as on any input; an
operation with kinks acts on them as it does, linearised, at the input itself. So corners never
leave the input's own piece, however far out they are, and differences of their values are exact
derivatives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secant.errors import InputError
from secant.maps.line import in_float64
from secant.maps.line_ops import LineTensor

MOST_ELEMENTS = 2**26
"""Float64 numbers that one tensor over all corners may hold: 512 MiB."""

CHUNK_ELEMENTS = 2**22
"""Float64 numbers of one batched operation: a convolution unfolds them to some ten times that."""

BELOW_IS_ON = {"clamp_max"}
OUTSIDE_IS_ON = {"softshrink"}


@dataclass(frozen=True)
class Layer:
    """One operation with kinks, and on which side each of its units is at each input.

    `sides` (inputs, units): 1 where a unit is on, else 0; for windows the place of the largest
    entry. `name` is the module's path and the operation.
    """

    name: str
    is_window: bool
    sides: Tensor


@dataclass
class Nearest:
    """The nearest boundary of each input's piece: how far, which unit's, and in which direction."""

    distance: Tensor  # (inputs,)
    layer: Tensor  # (inputs,), -1 if no unit ever changes side
    unit: Tensor  # (inputs,)
    direction: Tensor  # (inputs, corners)


@dataclass
class Frame:
    """`inputs` inputs with `axes` corners each, one along every axis, and one at the origin.

    With no axes it only notes the sides of units.
    """

    inputs: int
    axes: int
    device: torch.device
    layers: list[Layer] = field(default_factory=list)
    path: list[str] = field(default_factory=list)
    units: int = 0
    magnitude: float = 0.0
    widest: int = 1
    _winner: Tensor | None = None
    _counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        empty = torch.full((self.inputs,), -1, dtype=torch.int64, device=self.device)
        far = torch.full(empty.shape, torch.inf, dtype=torch.float64, device=self.device)
        self.nearest = Nearest(far, empty, empty.clone(), far.new_zeros(self.inputs, self.axes))

    @property
    def places(self) -> int:
        """How many places each input has: itself, its corners and the origin."""
        return self.axes + 2 if self.axes else 1

    @property
    def version(self) -> int:
        """Never changes: no place is added."""
        return 0

    @property
    def chunk(self) -> int:
        """How many places one batched operation takes at a time."""
        return max(1, CHUNK_ELEMENTS // self.widest)

    def see(self, units: int, magnitude: float) -> None:
        """Note a layer of so many units that can kink, fed with values up to `magnitude`."""
        self.units += units
        self.magnitude = max(self.magnitude, magnitude)

    def admit(self, elements: int) -> None:
        """Refuse a tensor of `elements` numbers at every place that is too large."""
        self.widest = max(self.widest, elements)
        if self.inputs * self.places * elements > MOST_ELEMENTS:
            raise InputError(
                f"affine_at: {MOST_ELEMENTS:,} numbers of one layer may be held at all places; "
                f"{self.inputs} inputs with {self.places} places of {elements:,} numbers are more. "
                "Give fewer inputs, or a part of the model."
            )

    def moved(self, points: Tensor, version: int) -> Tensor:
        """`points` themselves: there is one version."""
        return points

    def levels(self, name: str, points: Tensor, levels: Sequence[float | Tensor]) -> None:
        """Note on which side of `levels` each entry is, and how far from them."""
        shape = points.shape[1:]
        z = points.view(self.inputs, self.places, *shape)
        base, axes = z[:, 0], z[:, 1 : self.axes + 1] - z[:, :1]
        passed = torch.stack([base > level for level in levels]).sum(0)
        on = passed == 0 if name in BELOW_IS_ON else passed == 1
        on = passed != 1 if name in OUTSIDE_IS_ON else on
        if self.axes:
            gaps = torch.stack([base - level for level in levels])
            gap = gaps.gather(0, gaps.abs().argmin(0, keepdim=True))[0]
            self._compare(gap.flatten(1), axes.flatten(2))
        self._note(name, is_window=False, sides=on.flatten(1))

    def envelope(self, name: str, points: Tensor, windows: Tensor) -> None:
        """Note which entry of each window is the largest, and how far the others are behind."""
        z = points.view(self.inputs, self.places, -1)
        entries = z[:, :, windows.clamp_min(0)]
        is_padding = windows < 0
        winner = entries[:, 0].masked_fill(is_padding, -torch.inf).argmax(-1)
        at = winner[:, None, :, None].expand(-1, self.places, -1, 1)
        behind = entries.gather(3, at) - entries
        if self.axes:
            gap = behind[:, 0].masked_fill(is_padding, torch.inf)
            axes = behind[:, 1 : self.axes + 1] - behind[:, :1]
            self._compare(gap.flatten(1), axes.flatten(2), width=windows.shape[1])
        self._winner = windows.expand(self.inputs, -1, -1).gather(2, winner[..., None])[..., 0]
        self._note(name, is_window=True, sides=winner)

    def bent(self, function: Callable[..., Any], values: Sequence[Tensor]) -> Any:
        """The operation on every input, and linearised there on its corners."""
        split = [one.view(self.inputs, self.places, *one.shape[1:]) for one in values]
        base = tuple(one[:, 0] for one in split)
        if self._winner is not None:
            winner, self._winner = self._winner, None
            out = function(*base)
            first = out if isinstance(out, Tensor) else out[0]
            at = winner[:, None].expand(-1, self.places, -1)
            points = split[0].flatten(2).gather(2, at).reshape(-1, *first.shape[1:])
            if isinstance(out, Tensor):
                return points
            return (points, *(one.repeat_interleave(self.places, 0) for one in out[1:]))
        if not self.axes:
            return function(*base)

        def change(*steps: Tensor) -> Tensor:
            derivative: Tensor = torch.func.jvp(function, base, steps)[1]
            return derivative

        steps = tuple(one - one[:, :1] for one in split)
        moved = torch.vmap(change, in_dims=1, out_dims=1)(*steps)
        return (function(*base)[:, None] + moved).flatten(0, 1)

    def _compare(self, gap: Tensor, axes: Tensor, width: int = 1) -> None:
        """Keep the nearest boundary: where a gap (inputs, units) with slopes `axes` closes."""
        slope = torch.linalg.vector_norm(axes, dim=1)
        distance, unit = torch.where(slope > 0, gap.abs() / slope, torch.inf).min(1)
        best, row = self.nearest, torch.arange(self.inputs, device=gap.device)
        side = torch.where(gap[row, unit] < 0, 1.0, -1.0)
        toward = side[:, None] * axes[row, :, unit] / slope[row, unit, None]
        is_nearer = distance < best.distance
        best.distance = torch.where(is_nearer, distance, best.distance)
        best.layer = torch.where(is_nearer, len(self.layers), best.layer)
        best.unit = torch.where(is_nearer, unit // width, best.unit)
        best.direction = torch.where(is_nearer[:, None], toward, best.direction)

    def _note(self, name: str, *, is_window: bool, sides: Tensor) -> None:
        where = f"{'.'.join(self.path[-1:]) or '(model)'} {name}"
        self._counts[where] += 1
        if self._counts[where] > 1:
            where += f" #{self._counts[where]}"
        self.layers.append(Layer(where, is_window, sides))


@contextmanager
def _watched(model: Any, path: list[str]) -> Iterator[None]:
    """`path` holds the names of the modules under way, the innermost last."""
    handles = []

    def leave(*_: Any) -> None:
        path.pop()

    try:
        for name, part in model.named_modules() if isinstance(model, nn.Module) else ():

            def enter(*_: Any, name: str = name) -> None:
                path.append(name)

            handles.append(part.register_forward_pre_hook(enter))
            handles.append(part.register_forward_hook(leave))
        yield
    finally:
        for handle in handles:
            handle.remove()


def framed(
    model: Callable[..., Any], x: Tensor, *, has_axes: bool
) -> tuple[Frame, Tensor, Callable[[Tensor], Tensor]]:
    """One run on inputs (n, *shape) in float64: the frame, the output at all places, and the model.

    The output is (n, places, width): at the input, at the input and one along each axis, and at
    the origin, all by the affine map that is active at the input. The model in float64 takes a
    batch.

    Cost: one forward pass over n (inputs + 2) rows; without axes over n rows.

    Raises: `InputError` as `polyline` does for models that are not piecewise affine.
    """
    rows = x.detach().double()
    axes = rows[0].numel() if has_axes else 0
    frame = Frame(len(rows), axes, rows.device)
    run = in_float64(model)
    with torch.inference_mode(False), torch.no_grad(), _watched(model, frame.path):
        places = rows[:, None]
        if axes:
            corners = torch.eye(axes, dtype=torch.float64, device=rows.device)
            corners = rows[:, None] + corners.view(axes, *rows.shape[1:])
            places = torch.cat([places, corners, torch.zeros_like(places)], 1)
        frame.admit(rows[0].numel())
        out = run(LineTensor(places.flatten(0, 1)[:, None], frame))
        if isinstance(out, LineTensor):
            values = out.newest().reshape(len(rows), frame.places, -1)
        else:  # the output does not depend on the input
            values = out.double().flatten().expand(len(rows), frame.places, -1)
    return frame, values, run
