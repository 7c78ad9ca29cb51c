"""The cells of a window on a plane, cut wherever a kink falls; tensors only, no model.

Holds: ``Mesh`` and the error ``TooManyCells``.
May import: torch, ``secant.errors``, ``secant.maps.slice_cells``.

A mesh is what a grid of points is on a line (`line_grid`): a value known at the vertices, affine
on each cell, stays exact when cells are cut, since every new vertex lies on an edge and takes the
interpolated value there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from secant.errors import InputError
from secant.maps.slice_cells import Birth, Cells, Field, Pairs, both_sides, cut, entries

MOST_ELEMENTS = 2**26
"""Float64 numbers that one tensor over all vertices may hold: 512 MiB."""

CHUNK_ELEMENTS = 2**22
"""Float64 numbers of one batched operation: a convolution unfolds them to some ten times that."""


class TooManyCells(InputError):  # noqa: N818 - named by what went wrong
    """The window holds more cells than may be followed."""


class Mesh:
    """The cells of a window, refined as kinks are found, and what was decided on each.

    `at` (vertices, 2) are the vertices; `decisions` (cells,) a 64-bit sum over all kinks passed
    so far of a random number for each side taken: two cells share it if and only if (but for a
    chance of 2⁻⁶⁴ a pair) every unit is on the same side on both.
    """

    def __init__(self, corners: Tensor, limit: int) -> None:
        self.at = corners
        four = torch.arange(4, device=corners.device)
        self.cells = Cells(four, torch.tensor([0, 4], device=corners.device))
        self.decisions = torch.zeros(1, dtype=torch.int64, device=corners.device)
        self.limit = limit
        self.units, self.magnitude, self.widest = 0, 0.0, 1
        self.births: list[Birth] = []
        self._draw = torch.Generator().manual_seed(0)

    @property
    def version(self) -> int:
        """How many rounds of cuts there were."""
        return len(self.births)

    @property
    def chunk(self) -> int:
        """How many vertices one batched operation takes at a time."""
        return max(1, CHUNK_ELEMENTS // self.widest)

    def see(self, units: int, magnitude: float) -> None:
        """Note a layer of so many units that can kink, fed with values up to `magnitude`."""
        self.units += units
        self.magnitude = max(self.magnitude, magnitude)

    def admit(self, elements: int) -> None:
        """Refuse a tensor of `elements` numbers at every vertex that is too large."""
        self.widest = max(self.widest, elements)
        if len(self.at) * elements > MOST_ELEMENTS:
            raise TooManyCells(
                f"slice_pieces: {MOST_ELEMENTS:,} numbers of one layer may be held at all "
                f"vertices; {len(self.at):,} vertices of {elements:,} numbers are more. "
                "Make the window smaller."
            )

    def moved(self, points: Tensor, version: int) -> Tensor:
        """`points` of an earlier version at the newest vertices."""
        births = self.births[version:]
        if not births:
            return points
        out = points.new_empty(len(self.at), *points.shape[1:])
        out[: len(points)] = points
        filled = len(points)
        for birth in births:
            out[filled : filled + len(birth.a)] = birth.of(out)
            filled += len(birth.a)
        return out

    def bent(self, function: Callable[..., Any], values: Sequence[Tensor]) -> Any:
        """An operation whose kinks are edges: exact at every vertex."""
        return function(*values)

    def levels(self, name: str, points: Tensor, levels: Sequence[float | Tensor]) -> None:
        """Cut cells where an entry of `points` passes one of `levels`."""
        flat = points.flatten(1)
        shifted = [
            flat
            - (level.expand(points.shape[1:]).flatten() if isinstance(level, Tensor) else level)
            for level in levels
        ]
        field = Field(torch.cat([*shifted, flat.new_zeros(len(flat), 1)], 1))
        zero = field.room.shape[1] - 1
        over, under = _sides(self.cells, field)
        cell, p = (over & under).nonzero(as_tuple=True)
        rank = self._shuffled(zero)
        pairs = Pairs(cell, p, torch.full_like(p, zero))
        done: list[tuple[Cells, Tensor]] = []
        cells, decisions = self.cells, self.decisions
        count = cells.number
        while len(pairs.cell):
            cells, decisions, pairs = _set_aside(cells, decisions, pairs, done)
            chosen = _one_a_cell(pairs, rank[pairs.p], cells.number)
            found = cut(cells, pairs.where(chosen), field, len(self.at))
            self._born(found.birth, field)
            decisions = torch.cat([decisions, decisions[found.other >= 0]])
            rest, cells = pairs.where(~chosen), found.cells
            twin = Pairs(found.other[rest.cell], rest.p, rest.q)
            both = Pairs(*(torch.cat(two) for two in zip(rest, twin, strict=True)))
            pairs = both.where(both_sides(cells, both, field))
            count += int((found.other >= 0).sum())
            self._keep_to(count)
        done.append((cells, decisions))
        self.cells = Cells.joined([part for part, _ in done])
        over, _ = _sides(self.cells, field)
        self.decisions = torch.cat([part for _, part in done]) + self._sum(over[:, :zero])

    def envelope(self, name: str, points: Tensor, windows: Tensor) -> None:
        """Cut cells until one entry of each window is the largest all over each cell.

        A cut goes where the entry that leads in the middle of a cell is first overtaken on the
        way to a vertex at which it does not lead. Beyond that place a third entry may lead, so
        some cuts are no kinks: cells of the same decisions, to be told by `decisions`.
        """
        # Padding never leads: a column below all, and finite, since it is interpolated too.
        padding = torch.full_like(points[:, :1].flatten(1)[:, :1], points.min().item() - 1)
        field = Field(torch.cat([points.flatten(1), padding], 1))
        windows = torch.where(windows < 0, field.room.shape[1] - 1, windows)
        rank = self._shuffled(len(windows))
        winner = field.rows[:, windows].argmax(-1)
        first = winner[self.cells.loop[self.cells.start[:-1]]]
        differs = torch.zeros_like(first, dtype=torch.bool)
        for owner, vertex in _walk(self.cells):
            differs[owner] |= winner[vertex] != first[owner]
        cell, window = differs.nonzero(as_tuple=True)
        while len(cell):
            pairs, is_open = _overtaking(self.cells, field, cell, windows[window])
            cell, window, pairs = cell[is_open], window[is_open], pairs.where(is_open)
            if not len(cell):
                break
            chosen = _one_a_cell(pairs, rank[window], self.cells.number)
            found = cut(self.cells, pairs.where(chosen), field, len(self.at))
            self._born(found.birth, field)
            is_cut = found.other >= 0
            self.decisions = torch.cat([self.decisions, self.decisions[is_cut]])
            self.cells = found.cells
            twin = found.other[cell]
            cell, window = torch.cat([cell, twin]), torch.cat([window, window])
            cell, window = cell[cell >= 0], window[cell >= 0]
            self._keep_to(self.cells.number)
        self._decide(field, windows)

    def _decide(self, field: Field, windows: Tensor) -> None:
        """Add the leading entry of each window on each cell to the decisions."""
        codes = self._codes(windows.numel()).view(windows.shape)
        step = max(1, CHUNK_ELEMENTS // windows.numel())
        for part in torch.split(torch.arange(self.cells.number, device=windows.device), step):
            cells = self.cells.taken(part)
            sums = field.rows.new_zeros(len(part), field.room.shape[1])
            sums.index_add_(0, cells.owner, field.rows[cells.loop])
            held = (sums / cells.lengths[:, None])[:, windows]
            # Of entries that are one function here, so that neither leads, the first counts.
            leads = held >= held.amax(-1, keepdim=True) - field.tolerance[windows]
            at = leads.to(torch.int8).argmax(-1)
            place = torch.arange(len(windows), device=windows.device)
            self.decisions[part] += codes[place, at].sum(-1)

    def _born(self, birth: Birth, field: Field) -> None:
        self.births.append(birth)
        self.at = torch.cat([self.at, birth.of(self.at)])
        field.grow(birth)
        self.admit(field.room.shape[1])

    def _keep_to(self, count: int) -> None:
        if count > self.limit:
            raise TooManyCells(
                f"slice_pieces: at most {self.limit:,} cells may be followed; more were found. "
                "Make the window smaller, or raise `limit` if you can wait."
            )

    def _shuffled(self, count: int) -> Tensor:
        """A rank for each unit: cells cut by their units in a random order stay balanced."""
        return torch.randperm(count, generator=self._draw).to(self.at.device)

    def _codes(self, count: int) -> Tensor:
        high = 2**63 - 1
        return torch.randint(-high, high, (count,), generator=self._draw).to(self.at.device)

    def _sum(self, sides: Tensor) -> Tensor:
        """For each cell the sum of the codes of the units that are on the upper side."""
        codes = self._codes(sides.shape[1])
        step = max(1, CHUNK_ELEMENTS // max(1, sides.shape[1]))
        return torch.cat([torch.where(part, codes, 0).sum(1) for part in torch.split(sides, step)])


def _walk(cells: Cells) -> list[tuple[Tensor, Tensor]]:
    """Cells that have a k-th vertex, and that vertex, for every k."""
    lengths = cells.lengths
    walks = []
    for k in range(int(lengths.max())):
        owner = (lengths > k).nonzero()[:, 0]
        walks.append((owner, cells.loop[cells.start[owner] + k]))
    return walks


def _sides(cells: Cells, field: Field) -> tuple[Tensor, Tensor]:
    """(cells, columns) twice: whether a vertex of the cell is above zero, and below."""
    above, below = field.rows > field.tolerance, field.rows < -field.tolerance
    over = torch.zeros(cells.number, above.shape[1], dtype=torch.bool, device=above.device)
    under = torch.zeros_like(over)
    for owner, vertex in _walk(cells):
        if len(owner) == len(over):
            over |= above[vertex]
            under |= below[vertex]
        else:
            over[owner] |= above[vertex]
            under[owner] |= below[vertex]
    return over, under


def _set_aside(
    cells: Cells, decisions: Tensor, pairs: Pairs, done: list[tuple[Cells, Tensor]]
) -> tuple[Cells, Tensor, Pairs]:
    """Move cells that no line crosses to `done`: a line that met their edges would cross them."""
    is_crossed = torch.zeros(cells.number, dtype=torch.bool, device=decisions.device)
    is_crossed[pairs.cell] = True
    idle, busy = (~is_crossed).nonzero()[:, 0], is_crossed.nonzero()[:, 0]
    done.append((cells.taken(idle), decisions[idle]))
    name = is_crossed.cumsum(0) - 1
    return cells.taken(busy), decisions[busy], Pairs(name[pairs.cell], pairs.p, pairs.q)


def _one_a_cell(pairs: Pairs, rank: Tensor, cells: int) -> Tensor:
    """A mask with one pair of each cell, that of the lowest rank."""
    lowest = rank.new_full((cells,), torch.iinfo(torch.int64).max)
    lowest.scatter_reduce_(0, pairs.cell, rank, "amin")
    return rank == lowest[pairs.cell]


def _overtaking(cells: Cells, field: Field, cell: Tensor, windows: Tensor) -> tuple[Pairs, Tensor]:
    """For each cell and window (width,) two entries whose line to cut at, and whether there is one.

    `p` < `q` are columns: the entry that leads in the middle of the cell and the one that first
    overtakes it on the straight way to the vertex at which it is most behind.
    """
    lengths = cells.lengths[cell]
    item = torch.arange(len(cell), device=cell.device).repeat_interleave(lengths)
    vertex = cells.loop[entries(cells.start[cell], lengths)]
    values = field.rows[vertex[:, None], windows[item]]
    middle = values.new_zeros(len(cell), windows.shape[1]).index_add_(0, item, values)
    middle /= lengths[:, None]
    leader = middle.argmax(1)
    behind = values.amax(1) - values.gather(1, leader[item, None])[:, 0]
    most = behind.new_full((len(cell),), -torch.inf).scatter_reduce(0, item, behind, "amax")
    worst = torch.full_like(cell, len(vertex)).scatter_reduce(
        0, item[behind == most[item]], (behind == most[item]).nonzero()[:, 0], "amin"
    )
    end = values[worst]
    lead = middle.gather(1, leader[:, None]) - middle
    gain = end - end.gather(1, leader[:, None])
    share = torch.where(gain > 0, lead / (lead + gain), torch.inf)
    rival = share.argmin(1)
    row = torch.arange(len(cell), device=cell.device)
    one, two = windows[row, leader], windows[row, rival]
    pairs = Pairs(cell, torch.minimum(one, two), torch.maximum(one, two))
    is_open = torch.zeros_like(cell, dtype=torch.bool)
    moved = (most > 0).nonzero()[:, 0]
    is_open[moved] = both_sides(cells, pairs.where(moved), field)
    return pairs, is_open
