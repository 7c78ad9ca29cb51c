"""Gating: which units of a piecewise linear network decide anything on data, and how often.

Holds: ``gating`` and its result ``Gating``, with ``LayerGates`` and ``Gates``; ``unit_interval``.
May import: torch, scipy, ``secant.errors``, ``secant.load``, ``secant.maps``, ``secant.readings``,
``secant.segments``, ``secant.slices``, ``secant.surveys`` (versions), ``secant.uses.active_maps``.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from scipy.stats import beta, binom
from scipy.stats import t as student
from torch import Tensor, nn

from secant.errors import ControlError, InputError
from secant.load.data import load_data
from secant.load.loaded import Loaded
from secant.load.models import load_model
from secant.load.options import DEFAULTS, LoadOptions
from secant.maps.frame import Layer, framed
from secant.maps.slice_mesh import TooManyCells
from secant.readings import number, plain, writable, write
from secant.segments import pieces, segment_readings
from secant.slices import SlicePieces, slice_pieces
from secant.surveys import versions
from secant.uses.active_maps import affine_at

Interval = tuple[float, float]
Progress = Callable[[str, int, int], None]

RADII = 64
"""Data units whose distance to the nearest boundary is taken."""

SEGMENTS = 8
"""Pairs of data units between which pieces are counted; no unit is in two of them."""

MOST_KINKS = 200_000

ON_DIAGONAL = 250
"""Most pieces along a diagonal of the slice: some 20,000 cells, which a page can draw."""

MOST_CELLS = 30_000
"""A page with four pictures of so many stays under 6 MB."""

SLACK = 1.2
"""The window's side, in sides of the smallest square around the three points."""


@dataclass(frozen=True)
class LayerGates:
    """One operation's units over the data. For windows a side is an entry that is the largest.

    `always` and `never` count units that are on, or off, at every unit of the data (of windows
    those that always choose the same entry are `always`); `sometimes` the others. `share` is the
    mean share of units that are on, its interval over data units; None for windows. `on` says of
    each unit at how many units of the data it is on, and `intervals` has, for each such number,
    the interval of the share.
    """

    name: str
    kind: str
    units: int
    always: int
    never: int
    sometimes: int
    share: float | None
    interval: Interval | None
    on: list[int]
    intervals: dict[str, Interval]


@dataclass(frozen=True)
class Gates:
    """What was found for one set of weights.

    `radius` is the median distance to the nearest boundary, in input space; `step` the median
    distance between two units of the data; `pieces` the mean number along segments between two.
    """

    layers: list[LayerGates]
    radius: float | None
    radius_interval: Interval | None
    nearest: dict[str, int]
    pieces: float | None
    pieces_interval: Interval | None
    units: int
    slice: dict[str, Any] | None = None


@dataclass(frozen=True)
class Gating:
    """A network's decisions on data, beside the same architecture with fresh weights.

    `drawn` holds the slices themselves, trained and fresh, for a picture; they are not saved.
    """

    model: str
    data: str
    rows: int
    step: float
    trained: Gates
    fresh: Gates | None
    points: list[dict[str, Any]]
    notes: list[str]
    seed: int
    versions: dict[str, str]
    seconds: float
    drawn: dict[str, SlicePieces] = field(default_factory=dict, repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain data; numbers that do not exist are None."""
        shown = {name: getattr(self, name) for name in self.__dataclass_fields__}
        shown.pop("drawn")
        for name in ("trained", "fresh"):
            shown[name] = None if shown[name] is None else asdict(shown[name])
        return plain(shown)  # type: ignore[no-any-return]

    def save(self, folder: Path, page: str) -> None:
        """Write `gating.json` and the page `gating.html`, each whole or not at all.

        Raises: `InputError` if the folder cannot be written.
        """
        with writable(folder):
            text = json.dumps(self.as_dict(), indent=1, allow_nan=False)
            write(folder / "gating.json", text)
            write(folder / "gating.html", page)


def unit_interval(count: int, rows: int) -> Interval:
    """Clopper and Pearson's 95 % interval for a share, `count` of `rows` independent units.

    It covers at least 95 % for every share; 0 of n ends at 1 - 0.025^(1/n), near 3.7 / n.
    """
    low = float(beta.ppf(0.025, count, rows - count + 1)) if count else 0.0
    high = float(beta.ppf(0.975, count + 1, rows - count)) if count < rows else 1.0
    return low, high


def median_interval(values: Sequence[float]) -> Interval | None:
    """The 95 % interval of a median between two of the sorted values; None for fewer than 6."""
    below = int(binom.ppf(0.025, len(values), 0.5)) - 1
    if len(values) < 6 or below < 0:
        return None
    ordered = sorted(values)
    return ordered[below], ordered[len(values) - 1 - below]


def gating(
    model: str | nn.Module | Loaded,
    data: str | Tensor = "demo:digits",
    *,
    column: str = "text",
    loading: LoadOptions = DEFAULTS,
    rows: int | None = 512,
    batch_size: int = 64,
    seed: int = 0,
    has_slice: bool = False,
    has_control: bool = True,
    progress: Progress = lambda label, done, total: None,
) -> Gating:
    """Which units of a piecewise linear `model` decide on `data`, and how far one map reaches.

    Layer by layer (an operation with kinks is a layer): units that are on at all, none or some of
    the data, and the mean share that is on. A unit is on where relu and its kin pass their input:
    above the level, between two (hardtanh, relu6), outside the dead band (softshrink). In a
    window of a maximum the decision is which entry is the largest.

    The radius is the distance from an input to the nearest boundary of its region, exact
    (`affine_at`), at up to 64 units drawn by `seed`. Pieces are counted on up to 8 segments
    between two units, and with `has_slice` in a window of the plane through three
    (`slice_pieces`): a square about all three, or, where that has too many pieces, one about the
    first, its side halved until it has not.

    Everything stands beside the same architecture with fresh weights, on the same data, segments
    and window. Shares have Clopper and Pearson's intervals over units of the data, the median
    radius one between order statistics, means one by Student's t.

    Raises: `InputError` if the data is no batch of floats with three distinct units or more, or
    the model is not piecewise affine (the message names the operation).

    Cost: one float64 pass over the data, (features + 2) rows for each radius, and what
    `slice_pieces` costs: seconds for the demo networks, twice with the control.
    """
    started = time.perf_counter()
    loaded = model if isinstance(model, Loaded) else load_model(model, loading)
    x, name, labels = _inputs(data, column, loading, rows)
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=draw)
    apart = x[order[: 2 * (len(x) // 2)]].flatten(1).view(-1, 2, x[0].numel()).diff(dim=1)
    step = float(apart.flatten(1).norm(dim=1).median())
    notes: list[str] = []
    networks = _networks(loaded, seed, has_control, notes)
    found: dict[str, Gates] = {}
    for what, network in networks.items():
        found[what] = _gates(network, x, order, batch_size, lambda d, t, w=what: progress(w, d, t))  # type: ignore[misc]
    drawn: dict[str, SlicePieces] = {}
    points: list[dict[str, Any]] = []
    if has_slice:
        drawn, points = _slices(networks, x, order, labels, notes)
        for what, cut in drawn.items():
            found[what] = Gates(**{**vars(found[what]), "slice": _said(cut)})
    return Gating(
        loaded.name, name, len(x), step, found["trained"], found.get("fresh"), points, notes, seed,
        versions(), time.perf_counter() - started, drawn,
    )  # fmt: skip


def _networks(
    loaded: Loaded, seed: int, has_control: bool, notes: list[str]
) -> dict[str, nn.Module]:
    """The model and, unless a note says why not, one of fresh weights."""
    networks = {"trained": loaded.model}
    if has_control:
        try:
            networks["fresh"] = loaded.fresh(seed).eval()
        except ControlError as error:
            notes.append(f"No fresh weights: {error}")
    return networks


def _inputs(
    data: str | Tensor, column: str, loading: LoadOptions, rows: int | None
) -> tuple[Tensor, str, Tensor | None]:
    if isinstance(data, Tensor):
        x, name, labels = data, "tensor", None
    else:
        units = load_data(data, column, loading, rows)
        if units.tensor is None:
            raise InputError(
                f"gating: the data must be tensors of floats, taken by the model as they are; "
                f"{units.name!r} is not. Give it .npy, .npz, .safetensors or demo:digits."
            )
        x, name, labels = units.tensor, units.name, units.labels
    x = x[:rows]
    if not x.is_floating_point() or x.ndim < 2 or len(torch.unique(x.flatten(1), dim=0)) < 3:
        raise InputError(
            "gating: the data must be floats (units, ...) with at least 3 distinct units; got "
            f"{x.dtype} {tuple(x.shape)}. Give more rows, or other data."
        )
    return x.double(), name, labels


def _gates(
    network: nn.Module, x: Tensor, order: Tensor, batch_size: int, tell: Callable[[int, int], None]
) -> Gates:
    sample = x[order[:RADII]]
    pairs = x[order[: 2 * min(SEGMENTS, len(x) // 2)]]
    batches = torch.split(x, batch_size)
    total = len(x) + len(sample) + len(pairs) // 2
    sides: list[list[Layer]] = []
    for done, batch in enumerate(batches):
        sides.append(framed(network, batch, has_axes=False)[0].layers)
        tell(done * batch_size, total)
    layers = [_layer(parts) for parts in zip(*sides, strict=True)]
    margins: list[float] = []
    nearest: dict[str, int] = {}
    for done, some in enumerate(torch.split(sample, 16)):
        near = affine_at(network, some)
        margins += near.margin.tolist()
        for unit in near.unit:
            if unit is not None:
                nearest[unit[0]] = nearest.get(unit[0], 0) + 1
        tell(len(x) + 16 * done, total)
    starts, ends = pairs[0::2], pairs[1::2]
    differs = (starts != ends).flatten(1).any(1)
    reading = segment_readings(network, starts[differs], ends[differs], limit=MOST_KINKS)[0]
    tell(total, total)
    is_known = all(map(math.isfinite, margins))
    ordered = sorted(margins)
    half = len(ordered) // 2
    median = ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
    return Gates(
        layers, number(median), median_interval(margins) if is_known else None,
        dict(sorted(nearest.items(), key=lambda one: -one[1])), reading.value, reading.interval,
        int(reading.details["units"]),
    )  # fmt: skip


def _layer(parts: Sequence[Layer]) -> LayerGates:
    """One operation over all batches."""
    sides = torch.cat([part.sides for part in parts])
    rows, units = sides.shape
    name, kind = parts[0].name, "windows" if parts[0].is_window else "units"
    if parts[0].is_window:
        same = int((sides == sides[:1]).all(0).sum())
        return LayerGates(name, kind, units, same, 0, units - same, None, None, [], {})
    counts = sides.long().sum(0)
    always, never = int((counts == rows).sum()), int((counts == 0).sum())
    of_row = sides.double().mean(1)
    reach = float(student.ppf(0.975, rows - 1) * of_row.std() / rows**0.5)
    mean = float(of_row.mean())
    known = {f"{count}": unit_interval(count, rows) for count in sorted(set(counts.tolist()))}
    return LayerGates(
        name, kind, units, always, never, units - always - never, mean,
        (max(0.0, mean - reach), min(1.0, mean + reach)),
        counts.tolist(), known,
    )  # fmt: skip


def _slices(
    networks: dict[str, nn.Module], x: Tensor, order: Tensor, labels: Tensor | None,
    notes: list[str],
) -> tuple[dict[str, SlicePieces], list[dict[str, Any]]]:  # fmt: skip
    """One window for all networks, the first of `networks` with its three points."""
    chosen, at, u, v = _plane(x, order)
    origin = x[chosen[0]]
    middle, side = (at.amax(0) + at.amin(0)) / 2, SLACK * float((at.amax(0) - at.amin(0)).max())
    halved = 0
    while True:
        reach = side / 2
        window = tuple((float(c) - reach, float(c) + reach) for c in middle)
        try:
            for network in networks.values():
                _check_diagonals(network, origin, u, v, window)
            drawn = {
                what: slice_pieces(network, origin, u, v, window, limit=MOST_CELLS)  # type: ignore[arg-type]
                for what, network in networks.items()
            }
            break
        except TooManyCells:
            side, middle, halved = side / 2, at[0], halved + 1
    if halved:
        notes.append(
            f"The window about all three points has too many pieces to draw: shown is a square "
            f"about the first point, 1/{2**halved} as wide."
        )
    names = "ABC"
    points = [
        {
            "name": names[i], "row": int(chosen[i]), "at": at[i].tolist(),
            "label": None if labels is None else int(labels[chosen[i]]),
        }
        for i in range(3)
    ]  # fmt: skip
    return drawn, points


def _check_diagonals(network: nn.Module, origin: Tensor, u: Tensor, v: Tensor, window: Any) -> None:
    """Raise `TooManyCells` if either diagonal of the window has too many pieces."""
    (left, right), (low, high) = window
    for a, b, c, d in ((left, low, right, high), (left, high, right, low)):
        count = pieces(network, origin + a * u + b * v, origin + c * u + d * v).count
        if count > ON_DIAGONAL:
            raise TooManyCells(f"gating: {count} pieces on a diagonal; fewer can be drawn.")


def _plane(x: Tensor, order: Tensor) -> tuple[list[int], Tensor, Tensor, Tensor]:
    """Three units that span a plane, their coordinates, and its orthonormal axes."""
    first = int(order[0])
    for second in order[1:].tolist():
        u = x[second] - x[first]
        if float(u.norm()) > 0:
            break
    u = u / u.norm()
    for third in order[1:].tolist():
        step = x[third] - x[first]
        rest = step - (step * u).sum() * u
        if float(rest.norm()) > 1e-6 * float(step.norm()):
            v = rest / rest.norm()
            chosen = [first, second, third]
            steps = [x[place] - x[first] for place in chosen]
            at = [[float((s * u).sum()), float((s * v).sum())] for s in steps]
            return chosen, torch.tensor(at, dtype=torch.float64), u, v
    raise InputError(
        "gating: a slice needs three units that lie on no line; all of these do. "
        "Give other data, or leave the slice out."
    )


def _said(cut: SlicePieces) -> dict[str, Any]:
    """What a slice says in numbers."""
    (left, right), _ = cut.window
    return {
        "pieces": cut.count, "regions": cut.regions, "cells": cut.cells, "side": right - left,
        "window": [list(one) for one in cut.window],
    }  # fmt: skip
