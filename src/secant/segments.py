"""Segments: the exact affine pieces of a model between two inputs, and readings of them.

Holds: ``pieces`` and ``segment_readings``.
May import: torch, scipy, ``secant.errors``, ``secant.maps``, ``secant.gauges``,
``secant.readings``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from scipy.stats import t as student
from torch import Tensor

from secant.errors import InputError
from secant.gauges.pieces import Pieces, affine_pieces
from secant.maps.line import Polyline, polyline
from secant.readings import Reading

LIMIT = 100_000
"""Kinks followed before giving up: about a minute for a small convolutional net on two cores."""


def pieces(model: Callable[..., Any], start: Tensor, end: Tensor, *, limit: int = LIMIT) -> Pieces:
    """The exact affine pieces of `model` along x(t) = (1 - t) start + t end, t in [0, 1].

    `model` is an `nn.Module`, or any callable that computes in float64, and takes a batch;
    `start` and `end` are one input each, without the batch dimension. A module is run in float64
    and in its own mode, and is not changed. Of several outputs the first tensor counts.

    Followed through kinks of relu, leaky_relu, prelu, relu6, hardtanh, hardsigmoid, clamp,
    continuous threshold, softshrink, abs, max pooling, maximum and minimum (of two tensors or
    over dimensions), and through everything affine between them: linear layers, convolutions,
    residuals, batch norm in eval mode, average pooling, reshaping.

    Returns `Pieces`: `count`, breakpoints `t`, `values` there, `slopes`, `bends`. 1 piece means
    affine along this segment. Neighbours whose slopes differ by no more than rounding explains
    are one; see `affine_pieces`.

    Cost: one forward pass in float64 over the kinks of each layer's predecessors, and one over
    at most 32 inputs to check the result; 5 to 8 ms for 3 x 256 units on one core.

    Raises: `InputError` if the ends cannot be used, more than `limit` kinks are found, the model
    refuses the input, or it is not piecewise affine and continuous (gelu, softmax, layer norm,
    batch norm or dropout in training mode, ...); the message names the operation.

    Source: pieces along a line as in Hanin and Rolnick 2019, arXiv:1901.09021.
    """
    return _pieces_of(polyline(model, start, end, limit=limit))


def segment_readings(
    model: Callable[..., Any], starts: Tensor, ends: Tensor, *, limit: int = LIMIT
) -> list[Reading]:
    """One reading: the mean number of pieces from `starts` (pairs, ...) to `ends`, pair by pair.

    The interval is Student's t at 95 % over the pairs, so no unit may be in two of them; None
    for a single pair. `details` hold the count of each pair, the number of scalars that can kink
    (`units`) and the mean number of pieces for each of them, and the first pair's curve for
    a plot: where it bends between the ends, and how much, to 10 digits.

    Raises: as `pieces`, and `InputError` if there is no pair or the pairs do not match.
    """
    if starts.shape != ends.shape or starts.ndim < 2 or not len(starts):
        raise InputError(
            "pieces: `starts` and `ends` must be (pairs, ...) with as many of each and at least "
            f"one; got {tuple(starts.shape)} and {tuple(ends.shape)}. Pair the units first."
        )
    lines = [polyline(model, *pair, limit=limit) for pair in zip(starts, ends, strict=True)]
    found = [_pieces_of(line) for line in lines]
    counts = [each.count for each in found]
    mean = sum(counts) / len(counts)
    units = lines[0].units
    details: dict[str, Any] = {
        "counts": counts,
        "units": units,
        "pieces_per_unit": mean / units if units else None,
        "breakpoints": _to_10_digits(found[0].kinks),
        "first_bends": _to_10_digits(found[0].bends),
    }
    interval = _student_interval(counts)
    warnings = [] if interval else ["One pair of units: the spread over pairs is unknown."]
    return [
        Reading(
            "inputs", "(model)", "pieces", "count", mean, interval, {"pairs": len(counts)},
            warnings=warnings, details=details,
        )
    ]  # fmt: skip


def _pieces_of(line: Polyline) -> Pieces:
    return affine_pieces(line.t, line.values, line.rounding)


def _to_10_digits(numbers: Tensor) -> list[float]:
    return [float(f"{number:.10g}") for number in numbers.tolist()]


def _student_interval(counts: list[int]) -> tuple[float, float] | None:
    """Mean ± the 97.5 % quantile of Student's t times the standard error."""
    if len(counts) < 2:
        return None
    sample = torch.tensor(counts, dtype=torch.float64)
    error = sample.std().item() / math.sqrt(len(counts))
    reach = float(student.ppf(0.975, len(counts) - 1)) * error
    return sample.mean().item() - reach, sample.mean().item() + reach
