"""Points on a line and the places where a kink falls between them; tensors only, no model.

Holds: ``Grid``, ``level_crossings``, ``envelope_crossings`` and the exception ``TooLarge``.
May import: torch, ``secant.errors``.

A tensor "at the points" has them as its first dimension: (points, *shape).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from secant.errors import InputError

MOST_ELEMENTS = 2**22
"""Float64 numbers that one tensor over all points may hold: 32 MiB.

A convolution on the CPU unfolds its input to some ten times that. Above it the segment is cut.
"""


class TooLarge(Exception):  # noqa: N818 - a signal inside the package, not an error
    """The points found so far need more memory than allowed; `cuts` are t at which to cut."""

    def __init__(self, cuts: list[float]) -> None:
        super().__init__(cuts)
        self.cuts = cuts


class Crossings(NamedTuple):
    """Kinks between points: `share` of the way from point `interval` to the next."""

    interval: Tensor  # (n,), int64
    share: Tensor  # (n,), in [0, 1]


def level_crossings(points: Tensor, level: float | Tensor) -> Crossings:
    """Where each entry, affine between the points, passes `level`.

    `points` (points, *shape); `level` broadcasts to the shape. An entry that only touches the
    level at a point has its kink at that point, which is known already; one that lies on it
    from point to point has none.
    """
    below = (points < level).flatten(1)
    interval, unit = (below[1:] != below[:-1]).nonzero(as_tuple=True)
    flat = points.flatten(1)
    left, right = flat[interval, unit], flat[interval + 1, unit]
    if isinstance(level, Tensor):
        level = level.expand(points.shape[1:]).flatten()[unit]
    return Crossings(interval, (level - left) / (right - left))


def envelope_crossings(points: Tensor, windows: Tensor) -> Crossings:
    """Where the largest entry of each window changes: the kinks of an upper envelope of lines.

    `points` (points, *shape), affine in between; `windows` (count, width) positions in the
    flattened shape, -1 for padding. From the left end of an interval the walk goes to the next
    line that crosses the present largest, so several changes in one interval are all found, in
    as many rounds over the windows that change as the one with most changes has.
    """
    padding = points.new_full((len(points), 1), -torch.inf)
    entries = torch.cat([points.flatten(1), padding], 1)[:, windows]
    largest, winner = entries.max(-1)
    next_of_winner = entries[1:].gather(-1, winner[:-1, :, None])[..., 0]
    interval, window = (next_of_winner < largest[1:]).nonzero(as_tuple=True)
    left, right = entries[interval, window], entries[interval + 1, window]
    present = winner[interval, window][:, None]
    top = right.amax(1, keepdim=True)
    intervals, shares = [], []
    while len(interval):
        behind = left.gather(1, present) - left
        gain = right - right.gather(1, present)
        # Only lines that end higher can overtake; padding never does.
        share = torch.where(gain > 0, behind / (behind + gain), torch.inf)
        soonest = share.amin(1, keepdim=True)
        intervals.append(interval)
        shares.append(soonest[:, 0])
        # Of lines that meet at one place the one that ends highest leads from there on.
        present = torch.where(share <= soonest, right, -torch.inf).argmax(1, keepdim=True)
        is_going_on = (right.gather(1, present) < top)[:, 0]
        interval, left, right = interval[is_going_on], left[is_going_on], right[is_going_on]
        present, top = present[is_going_on], top[is_going_on]
    if not intervals:
        return Crossings(interval, points.new_empty(0))
    return Crossings(torch.cat(intervals), torch.cat(shares))


class Grid:
    """The sorted points of a segment, refined as kinks are found.

    Every refinement is a version. What was computed at an earlier version is affine between its
    points (all kinks that it has seen are among them), so `moved` brings it to the newest points
    by interpolation, exact but for rounding, and nothing is ever computed twice.
    """

    def __init__(self, low: float, high: float, limit: int, device: torch.device) -> None:
        self.versions = [torch.tensor([low, high], dtype=torch.float64, device=device)]
        self.limit = limit
        self.units, self.magnitude, self.widest = 0, 0.0, 1
        self._weights: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    @property
    def version(self) -> int:
        """The newest version's number."""
        return len(self.versions) - 1

    @property
    def t(self) -> Tensor:
        """The newest points, (points,)."""
        return self.versions[-1]

    def see(self, units: int, magnitude: float) -> None:
        """Note a layer of so many units that can kink, fed with values up to `magnitude`."""
        self.units += units
        self.magnitude = max(self.magnitude, magnitude)

    def admit(self, elements: int) -> None:
        """Cut the segment if a tensor of `elements` numbers at every point is too large.

        Two points are always admitted: they are the segment's own ends.
        """
        self.widest = max(self.widest, elements)
        count = len(self.t)
        parts = min(2 * -(-count * elements // MOST_ELEMENTS), count - 1)
        if count * elements > MOST_ELEMENTS and count > 2:
            raise TooLarge(self.t[[count * part // parts for part in range(1, parts)]].tolist())

    def levels(self, name: str, points: Tensor, levels: Sequence[float | Tensor]) -> None:
        """Add the kinks of entries that pass one of `levels`."""
        self.refine([level_crossings(points, level) for level in levels], points[0].numel())

    def envelope(self, name: str, points: Tensor, windows: Tensor) -> None:
        """Add the kinks of the largest entry of each window."""
        self.refine([envelope_crossings(points, windows)], points[0].numel())

    def bent(self, function: Callable[..., Any], values: Sequence[Tensor]) -> Any:
        """An operation whose kinks are among the points: exact there."""
        return function(*values)

    @property
    def chunk(self) -> int | None:
        """All points at a time: `admit` keeps them few."""
        return None

    def refine(self, crossings: list[Crossings], elements: int) -> None:
        """Add the kinks found in a tensor of `elements` numbers a point as points.

        A kink that rounds to a point is that point; two that round to one are one.
        """
        found = []
        for interval, share in crossings:
            low, high = self.t[interval], self.t[interval + 1]
            t = torch.lerp(low, high, share)
            found.append(t[(t > low) & (t < high)])
        new = torch.cat(found)
        if not len(new):
            return
        t = torch.unique(torch.cat([self.t, new]))
        if len(t) > self.limit:
            raise InputError(
                f"pieces: at most {self.limit} kinks may be followed; more were found. "
                "Shorten the segment, or raise `limit` if you can wait."
            )
        self.versions.append(t)
        self._weights.clear()
        self.admit(elements)

    @property
    def batch(self) -> int:
        """How many points fit into memory at once in the widest tensor seen."""
        return max(1, MOST_ELEMENTS // self.widest)

    def moved(self, points: Tensor, version: int) -> Tensor:
        """`points` of an earlier version at the newest points."""
        if version == self.version:
            return points
        if version not in self._weights:
            old = self.versions[version]
            left = (torch.searchsorted(old, self.t, right=True) - 1).clamp_max(len(old) - 2)
            share = (self.t - old[left]) / (old[left + 1] - old[left])
            new = share.nonzero()[:, 0]
            self._weights[version] = left, new, share[new]
        left, new, share = self._weights[version]
        out = points.index_select(0, left)
        share = share.view(-1, *[1] * (points.ndim - 1))
        # At a share of 1, which only the last point has, lerp gives the old value itself.
        right = points.index_select(0, left[new] + 1)
        torch.lerp(out.index_select(0, new), right, share, out=right)
        return out.index_copy_(0, new, right)
