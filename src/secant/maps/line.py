"""The model along a segment between two inputs, as an exact polyline.

Holds: ``polyline`` and its result ``Polyline``; ``in_float64``, how a model is run.
May import: torch, ``secant.errors``, ``secant.maps``.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from secant.errors import InputError
from secant.maps.calls import first_tensor
from secant.maps.line_grid import Grid, TooLarge
from secant.maps.line_ops import LineTensor

CHECKED = 32
"""Pieces that are checked against the model itself, spread evenly; all if there are fewer."""

INSIDE = 0.381966
"""Where in a piece: not its middle, at which odd bends such as tanh's can hide."""

AFFINE_WITHIN = 1e-9
"""Largest gap at a checked point, relative to the largest number at a kink or in the output.

Rounding leaves 1e-16 a layer; a float32 model cannot resolve 1e-7.
"""


class Polyline(NamedTuple):
    """Values at `t`; the model is affine between neighbours. Some neighbours may share a map."""

    t: Tensor  # (points,) from 0 to 1, float64
    values: Tensor  # (points, width), float64: the flattened output
    rounding: Tensor  # (width,): largest gap between the model and the polyline where checked
    units: int  # scalars at which the model can kink, for one input
    magnitude: float  # largest number that entered a kink or left the model


def polyline(model: Callable[..., Any], start: Tensor, end: Tensor, *, limit: int) -> Polyline:
    """The model along x(t) = (1 - t) start + t end, t in [0, 1], exactly, in float64.

    `model` takes a batch; `start` and `end` are one input each, without the batch dimension.
    A module runs as a float64 view of itself, in the mode (train or eval) that it is in, and is
    not changed; another callable must compute in float64 itself.

    The model is run once on a tensor that stands for all points of the line (`LineTensor`).
    Between the kinks found so far the input of the next kink is affine in t, so its zero
    crossings follow by linear interpolation; they join the points, and the run goes on. Each
    layer is so computed once, at the kinks of the layers before it only. A second, ordinary run
    checks up to CHECKED pieces and measures the rounding.

    Cost: one forward pass over the points of each layer (more, up to twice, where the points
    need more memory than `MOST_ELEMENTS` and the segment is cut) and one over CHECKED inputs,
    whatever the depth and the number of pieces.

    Raises: `InputError` if the ends cannot be used, more than `limit` kinks are found, the model
    refuses the input or is not piecewise affine and continuous.
    """
    start, end = _ends(start, end)
    run = in_float64(model)
    with torch.inference_mode(False), torch.no_grad():
        parts = _parts(run, start, end, limit)
        # Neighbouring parts share a point.
        t = torch.cat([part.grid.t[i > 0 :] for i, part in enumerate(parts)])
        values = torch.cat([part.values[i > 0 :] for i, part in enumerate(parts)])
        if not torch.isfinite(values).all():
            raise InputError(
                "pieces: the model must be finite along the segment; it gives nan or infinity. "
                "Check its weights and the two inputs."
            )
        magnitude = max(values.abs().max().item(), *(part.grid.magnitude for part in parts))
        line = Polyline(t, values, torch.zeros_like(values[0]), parts[0].grid.units, magnitude)
        batch = min(part.grid.batch for part in parts)
        return line._replace(rounding=_rounding(run, start, end, line, batch))


class _Part(NamedTuple):
    grid: Grid
    values: Tensor  # (points of the grid, width)


def _ends(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    if start.shape != end.shape or not (start.is_floating_point() and end.is_floating_point()):
        raise InputError(
            "pieces: `start` and `end` must be real float tensors of one shape; got "
            f"{start.dtype} {tuple(start.shape)} and {end.dtype} {tuple(end.shape)}. "
            "Pass one input each, without the batch dimension."
        )
    start, end = start.detach().double(), end.detach().double()
    if not (start.isfinite().all() and end.isfinite().all()) or start.equal(end):
        raise InputError(
            "pieces: `start` and `end` must be finite and differ; they do not. "
            "Draw two distinct inputs."
        )
    return start, end


def in_float64(model: Callable[..., Any]) -> Callable[[Tensor], Tensor]:
    """The model's (first) output tensor; a module with float64 weights in place of its own."""
    run = model
    if isinstance(model, nn.Module):
        # Copied even where they are float64, since a forward pass may write to buffers.
        state = {
            name: buffer.detach().to(_float64_of(buffer), copy=True)
            for name, buffer in model.named_buffers()
        }
        for name, weight in model.named_parameters():
            state[name] = weight.detach().to(_float64_of(weight))

        def run(x: Tensor) -> Any:
            return functional_call(model, state, (x,))

    def output(x: Tensor) -> Tensor:
        try:
            return first_tensor(run(x), "(model)", "output")
        except InputError:
            raise
        except (RuntimeError, ValueError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(
                "pieces: the model must take a float64 batch of inputs of shape "
                f"{tuple(x.shape[1:])}; it refuses: {reason} "
                "Give inputs that the model was made for, on its device."
            ) from error

    return output


def _float64_of(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.is_floating_point() else tensor.dtype


def _parts(run: Callable[[Tensor], Tensor], start: Tensor, end: Tensor, limit: int) -> list[_Part]:
    """The polyline in parts, from left to right; one, unless memory asks for more."""
    done: list[_Part] = []
    todo = [(0.0, 1.0)]
    points = 0
    while todo:
        low, high = todo.pop()
        grid = Grid(low, high, limit - points, start.device)
        ends = torch.stack([torch.lerp(start, end, t) for t in (low, high)])[:, None]
        try:
            out = run(LineTensor(ends, grid))
        except TooLarge as signal:
            edges = [low, *signal.cuts, high]
            todo += reversed(list(pairwise(edges)))
            continue
        if isinstance(out, LineTensor):
            values = out.newest().reshape(len(grid.t), -1)
        else:  # the output does not depend on the input
            values = out.double().flatten().expand(len(grid.t), -1)
        done.append(_Part(grid, values))
        points += len(grid.t)
    return done


def _rounding(
    run: Callable[[Tensor], Tensor], start: Tensor, end: Tensor, line: Polyline, batch: int
) -> Tensor:
    """Largest gap between model and polyline inside the checked pieces, for each output."""
    pieces = len(line.t) - 1
    piece = torch.linspace(0, pieces - 1, min(pieces, CHECKED), device=line.t.device).long()
    low, high = line.t[piece], line.t[piece + 1]
    t = torch.lerp(low, high, INSIDE)
    share = ((t - low) / (high - low))[:, None]
    expected = torch.lerp(line.values[piece], line.values[piece + 1], share)
    x = torch.lerp(start, end, t.view(-1, *[1] * start.ndim))
    outputs = [run(rows).double() for rows in torch.split(x, batch)]
    found = torch.cat([out.reshape(len(out) if out.ndim else 1, -1) for out in outputs])
    if found.shape != expected.shape:
        raise InputError(
            f"pieces: the model must give one output an input; {len(x)} inputs gave "
            f"{tuple(found.shape)}, one gave {expected.shape[1]} numbers. "
            "Keep the batch as the first dimension."
        )
    gap = (found - expected).abs()
    worst = int(gap.amax(1).argmax())
    if not gap.max() <= AFFINE_WITHIN * line.magnitude:
        raise InputError(
            "pieces: the model must be affine between the kinks found, each input for itself; at "
            f"t = {t[worst].item():.6g} it is off by {gap.max().item():.3g} where numbers reach "
            f"{line.magnitude:.3g}. Look for randomness, or for a mixing of the batch."
        )
    return gap.amax(0)
