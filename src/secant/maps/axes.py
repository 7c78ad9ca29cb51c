"""Axes of tensors: which of them are one and the same, and how they are made of smaller ones.

Holds: ``Axes``, the ties between axes; ``Form``, how one tensor is made of them.
May import: the standard library.

An axis is a product of atoms, in row-major order: (heads, entries of a head). Atoms that an
operation brings together are tied; a view factors an atom into smaller ones; an atom that may
not be permuted is pinned, with the reason. A free atom is one along which values do not vary.

A dimension of a tensor is a product of factors, each a row of segments (queries, keys, values
side by side). Every cell, one segment of each factor, has axes of its own: the heads of the
queries need not be those of the values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, product
from math import prod

Axis = tuple[int, ...]
"""Atoms, of which the last varies fastest; empty for size 1."""

Segments = tuple[int, ...]
Key = tuple[int, ...]


@dataclass(frozen=True)
class Form:
    """The factors of each dimension, and for each cell the axis of each factor."""

    dims: tuple[tuple[Segments, ...], ...]
    cells: dict[Key, tuple[Axis, ...]]

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of the dimensions."""
        return tuple(prod(map(sum, factors)) for factors in self.dims)

    @property
    def factors(self) -> tuple[Segments, ...]:
        """The factors of all dimensions in a row."""
        return tuple(factor for factors in self.dims for factor in factors)

    def span(self, dim: int) -> tuple[int, int]:
        """Where the factors of a dimension stand among all."""
        start = sum(len(factors) for factors in self.dims[:dim])
        return start, start + len(self.dims[dim])

    def axes(self) -> Iterator[Axis]:
        """Every axis of every cell."""
        for cell in self.cells.values():
            yield from cell


class Axes:
    """Atoms tied into classes, and the algebra of forms over them.

    `cuts` are the places at which an axis that is still whole would have to be cut: whoever
    made the axis can make it in segments instead and begin again.
    """

    def __init__(self) -> None:
        self._size: list[int] = []
        self._parent: list[int] = []
        self._parts: dict[int, Axis] = {}
        self._free: set[int] = set()
        self._why: dict[int, str] = {}
        self.cuts: list[tuple[Axis, int]] = []

    # Atoms

    def fresh(self, size: int, *, why: str | None = None, is_free: bool = False) -> Axis:
        """An axis of one new atom, pinned if a reason is given; none for size 1."""
        if size == 1:
            return ()
        atom = len(self._size)
        self._size.append(size)
        self._parent.append(atom)
        if is_free:
            self._free.add(atom)
        if why is not None:
            self._why[atom] = why
        return (atom,)

    def size(self, axis: Iterable[int]) -> int:
        """The product of the atoms' sizes."""
        return prod(self._size[atom] for atom in axis)

    def find(self, atom: int) -> int:
        """The atom that stands for its class."""
        while self._parent[atom] != atom:
            self._parent[atom] = self._parent[self._parent[atom]]
            atom = self._parent[atom]
        return atom

    def resolved(self, axis: Axis) -> Axis:
        """The atoms that stand for the classes, as finely factored as is known by now."""
        found: list[int] = []
        for atom in map(self.find, axis):
            found.extend(self.resolved(self._parts[atom]) if atom in self._parts else (atom,))
        return tuple(found)

    def is_free(self, atom: int) -> bool:
        """Whether values do not vary along it."""
        return atom in self._free

    def why(self, atom: int) -> str | None:
        """Why it may not be permuted; None if it may."""
        return self._why.get(self.find(atom))

    def pin(self, axis: Axis, why: str) -> None:
        """Keep every atom of the axis in place."""
        for atom in self.resolved(axis):
            if atom not in self._free:
                self._why.setdefault(atom, why)

    def is_pinned(self, axis: Axis) -> bool:
        """Whether nothing of the axis can be permuted."""
        return all(a in self._free or a in self._why for a in self.resolved(axis))

    def _factor(self, atom: int, lead: int) -> Axis:
        """Take the atom for a product, of which the slower part has size `lead`."""
        more = {"why": self._why.get(atom), "is_free": atom in self._free}
        parts = (
            self.fresh(lead, **more) + self.fresh(self._size[atom] // lead, **more)  # type: ignore[arg-type]
        )
        self._parts[atom] = parts
        return parts

    def tie(self, one: Axis, other: Axis) -> Axis:
        """Make two axes of one size the same; gives the axis with as few free atoms as may be."""
        left, right, both = list(one[::-1]), list(other[::-1]), []
        while left and right:
            a, b = self._next(left), self._next(right)
            m, n = self._size[a], self._size[b]
            if m == n:
                both.append(self._union(a, b))
            elif m % n == 0:
                left.extend(self._factor(a, n)[::-1])
                right.append(b)
            elif n % m == 0:
                right.extend(self._factor(b, m)[::-1])
                left.append(a)
            else:
                rest = (*both, a, *left[::-1]), (b, *right[::-1])
                for axis in rest:
                    self.pin(axis, f"blocks of {m} meet blocks of {n}")
                return self.fresh(self.size(one), why=f"blocks of {m} meet blocks of {n}")
        return tuple(both)

    def _next(self, stack: list[int]) -> int:
        stack.extend(self.resolved((stack.pop(),))[::-1])
        return stack.pop()

    def _union(self, a: int, b: int) -> int:
        if a == b or b in self._free:
            return a
        if a in self._free:
            return b
        low, high = min(a, b), max(a, b)
        self._parent[high] = low
        if high in self._why:
            self._why.setdefault(low, self._why[high])
        return low

    def _divided(self, axis: Axis, stride: int) -> tuple[Axis, Axis]:
        """The axis as slower and faster part, the latter of size `stride`."""
        slow, fast, need = list(self.resolved(axis)), [], stride
        whole = self.size(slow)
        while need > 1:
            atom = slow.pop()
            size = self._size[atom]
            if need % size == 0:
                fast.append(atom)
                need //= size
            elif size % need == 0:
                parts = self._factor(atom, size // need)
                slow.append(parts[0])
                fast.append(parts[1])
                need = 1
            else:
                why = f"blocks of {size} are read in blocks of {need}"
                self.pin(axis, why)
                return self.fresh(whole // stride, why=why), self.fresh(stride, why=why)
        return tuple(slow), tuple(fast[::-1])

    def _cut_axis(self, axis: Axis, where: int, may_ask: bool, why: str) -> tuple[Axis, Axis]:
        atoms = self.resolved(axis)
        rest = self.size(atoms) - where
        if all(atom in self._free for atom in atoms):
            return self.fresh(where, is_free=True), self.fresh(rest, is_free=True)
        if may_ask and not self.is_pinned(atoms):
            self.cuts.append((atoms, where))
        self.pin(atoms, why)
        return self.fresh(where, why=why), self.fresh(rest, why=why)

    # Forms

    def form(self, shape: Sequence[int], *, why: str | None = None, is_free: bool = False) -> Form:
        """A form with a new axis for each dimension."""
        kept = [size for size in shape if size != 1]
        cell = tuple(self.fresh(size, why=why, is_free=is_free) for size in kept)
        dims = tuple(() if size == 1 else ((size,),) for size in shape)
        return Form(dims, {(0,) * len(kept): cell})

    def segmented(self, dims: tuple[tuple[Segments, ...], ...]) -> Form:
        """A form with these factors, and new axes for every cell."""
        factors = [factor for row in dims for factor in row]
        cells = {
            key: tuple(self.fresh(f[i]) for f, i in zip(factors, key, strict=True))
            for key in product(*(range(len(factor)) for factor in factors))
        }
        return Form(dims, cells)

    def pin_form(self, form: Form, why: str) -> None:
        """Keep every axis of the form in place."""
        for axis in form.axes():
            self.pin(axis, why)

    def replaced(self, form: Form, first: int, last: int, sizes: Sequence[int], why: str) -> Form:
        """Dimensions `first` to `last` (exclusive) pinned, and pinned ones of `sizes` instead."""
        start = form.span(first)[0] if first < len(form.dims) else len(form.factors)
        stop = start + sum(len(factors) for factors in form.dims[first:last])
        gone = [axis for cell in form.cells.values() for axis in cell[start:stop]]
        # What is in place for another reason already hands that reason on.
        if all(map(self.is_pinned, gone)):
            reasons = (self.why(a) for axis in gone for a in self.resolved(axis))
            why = next((reason for reason in reasons if reason), why)
        for axis in gone:
            self.pin(axis, why)
        new = self.form(sizes, why=why)
        (inner,) = new.cells.values()
        cells: dict[Key, tuple[Axis, ...]] = {}
        for key, cell in form.cells.items():
            where = key[:start] + (0,) * len(inner) + key[stop:]
            rest = cell[:start] + inner + cell[stop:]
            cells[where] = self._tied(cells[where], rest) if where in cells else rest
        return Form(form.dims[:first] + new.dims + form.dims[last:], cells)

    def _tied(self, one: tuple[Axis, ...], other: tuple[Axis, ...]) -> tuple[Axis, ...]:
        return tuple(self.tie(a, b) for a, b in zip(one, other, strict=True))

    def permuted(self, form: Form, order: Sequence[int]) -> Form:
        """The dimensions in another order."""
        flat = [at for dim in order for at in range(*form.span(dim))]
        cells = {
            tuple(key[at] for at in flat): tuple(cell[at] for at in flat)
            for key, cell in form.cells.items()
        }
        return Form(tuple(form.dims[dim] for dim in order), cells)

    def reshaped(self, form: Form, shape: Sequence[int]) -> Form:
        """The form of a view; what it reads across the borders of blocks is pinned."""
        shape = tuple(shape)
        if 0 in shape or 0 in form.shape:
            return self.form(shape, why="it is empty")
        # One dimension for each factor, then each run between common borders on its own.
        apart = Form(tuple((factor,) for factor in form.factors), form.cells)
        for have, want in reversed(_runs(apart.shape, [size for size in shape if size != 1])):
            apart = self._run(apart, have, want)
        rows = iter(apart.dims)
        return self._fused(
            Form(tuple(() if size == 1 else next(rows) for size in shape), apart.cells)
        )

    def _run(self, form: Form, places: range, want: list[int]) -> Form:
        """The dimensions at `places` as dimensions of sizes `want`."""
        at, last = places.start, places.stop
        have = list(form.shape[at:last])
        borders = sorted(_strides(have) | _strides(want))
        if any(big % small for small, big in pairwise(borders)):
            why = f"a view of {tuple(have)} as {tuple(want)} cuts across it"
            return self.replaced(form, at, last, want, why)
        group = Form(
            (*form.dims[:at], tuple(f for (f,) in form.dims[at:last]), *form.dims[last:]),
            form.cells,
        )
        split = self._split(group, at, _strides(want))
        if split is None:
            why = f"a view of {tuple(have)} as {tuple(want)} cuts across its segments"
            return self.replaced(form, at, last, want, why)
        rows: list[tuple[Segments, ...]] = []
        factors = list(split.dims[at])
        for size in want:
            row: list[Segments] = []
            while prod(map(sum, row)) < size:
                row.append(factors.pop(0))
            rows.append(tuple(row))
        return Form((*split.dims[:at], *rows, *split.dims[at + 1 :]), split.cells)

    def _split(self, form: Form, dim: int, strides: set[int]) -> Form | None:
        """The form with a border between factors at each stride of the dimension."""
        for stride in sorted(strides):
            start, stop = form.span(dim)
            inner = 1
            for at in range(stop - 1, start - 1, -1):
                segments = form.factors[at]
                if inner < stride < inner * sum(segments):
                    if stride % inner or any(size % (stride // inner) for size in segments):
                        return None
                    form = self._split_factor(form, dim, at, stride // inner)
                    break
                inner *= sum(segments)
        return form

    def _split_factor(self, form: Form, dim: int, at: int, stride: int) -> Form:
        start, _ = form.span(dim)
        row, cells = form.dims[dim], {}
        outer = tuple(size // stride for size in form.factors[at])
        for key, cell in form.cells.items():
            slow, fast = self._divided(cell[at], stride)
            cells[(*key[: at + 1], 0, *key[at + 1 :])] = (*cell[:at], slow, fast, *cell[at + 1 :])
        own = at - start
        row = (*row[:own], outer, (stride,), *row[own + 1 :])
        return Form((*form.dims[:dim], row, *form.dims[dim + 1 :]), cells)

    def _fused(self, form: Form) -> Form:
        """Each dimension with as few factors as may be: a factor in one segment joins the last."""
        at, dims, joins = 0, [], []
        for row in form.dims:
            kept: list[Segments] = []
            for factor in row:
                if kept and len(factor) == 1:
                    kept[-1] = tuple(size * factor[0] for size in kept[-1])
                    joins.append(at)
                else:
                    kept.append(factor)
                at += 1
            dims.append(tuple(kept))
        cells = form.cells
        for place in reversed(joins):
            cells = {
                key[:place] + key[place + 1 :]: (
                    *cell[: place - 1], cell[place - 1] + cell[place], *cell[place + 1 :],
                )
                for key, cell in cells.items()
            }  # fmt: skip
        return Form(tuple(dims), cells)

    def _cut(self, form: Form, at: int, where: int, may_ask: bool, why: str) -> Form:
        """The form with a border between segments of a factor at `where`."""
        ends = list(accumulate(form.factors[at]))
        if where in (0, *ends):
            return form
        segment = next(i for i, end in enumerate(ends) if where < end)
        inside = where - (ends[segment] - form.factors[at][segment])
        cells: dict[Key, tuple[Axis, ...]] = {}
        halves: dict[Axis, tuple[Axis, Axis]] = {}
        for key, cell in form.cells.items():
            if key[at] == segment:
                axis = self.resolved(cell[at])
                if axis not in halves:
                    halves[axis] = self._cut_axis(axis, inside, may_ask, why)
                for step, half in enumerate(halves[axis]):
                    place = (*key[:at], segment + step, *key[at + 1 :])
                    cells[place] = (*cell[:at], half, *cell[at + 1 :])
            else:
                place = (*key[:at], key[at] + (key[at] > segment), *key[at + 1 :])
                cells[place] = cell
        old = form.factors[at]
        new = (*old[:segment], inside, old[segment] - inside, *old[segment + 1 :])
        dims, count = [], 0
        for row in form.dims:
            own = at - count
            dims.append((*row[:own], new, *row[own + 1 :]) if 0 <= own < len(row) else row)
            count += len(row)
        return Form(tuple(dims), cells)

    def spread(self, form: Form, dim: int, size: int) -> Form:
        """A dimension of size 1 repeated: values do not vary along it."""
        at, new = form.span(dim)[0], self.fresh(size, is_free=True)
        cells = {(*k[:at], 0, *k[at:]): (*c[:at], new, *c[at:]) for k, c in form.cells.items()}
        return Form((*form.dims[:dim], ((size,),), *form.dims[dim + 1 :]), cells)

    def sliced(self, form: Form, dim: int, low: int, high: int, *, may_ask: bool, why: str) -> Form:
        """Entries `low` to `high` of a dimension."""
        size = form.shape[dim]
        if (low, high) == (0, size):
            return form
        row = form.dims[dim]
        start, stop = form.span(dim)
        stride = prod(map(sum, row[1:]))
        is_fixed = all(self.is_pinned(a) for c in form.cells.values() for a in c[start:stop])
        if high <= low or low % stride or high % stride or (is_fixed and len(row[0]) == 1):
            return self.replaced(form, dim, dim + 1, (max(high - low, 0),), why)
        low, high = low // stride, high // stride
        for where in (low, high):
            form = self._cut(form, start, where, may_ask, why)
        ends = (0, *accumulate(form.factors[start]))
        first, last = ends.index(low), ends.index(high)
        kept = form.factors[start][first:last]
        cells = {
            (*key[:start], key[start] - first, *key[start + 1 :]): cell
            for key, cell in form.cells.items()
            if first <= key[start] < last
        }
        rest = form.dims[dim][1:]
        if kept == (1,):
            cells = {
                k[:start] + k[start + 1 :]: c[:start] + c[start + 1 :] for k, c in cells.items()
            }
            return Form((*form.dims[:dim], rest, *form.dims[dim + 1 :]), cells)
        return self._fused(Form((*form.dims[:dim], (kept, *rest), *form.dims[dim + 1 :]), cells))

    def joined(self, forms: Sequence[Form], dim: int, why: str) -> Form:
        """Forms side by side along a dimension."""
        length = sum(form.shape[dim] for form in forms)
        forms = [form for form in forms if form.shape[dim] > 0]
        if len(forms) == 1:
            return forms[0]
        bare = [form if form.dims[dim] else self._with_unit(form, dim) for form in forms]
        places = [form.span(dim) for form in bare]
        is_fixed = all(
            self.is_pinned(axis)
            for form, place in zip(bare, places, strict=True)
            for cell in form.cells.values()
            for axis in cell[slice(*place)]
        )
        if is_fixed or any(len(form.dims[dim]) > 1 for form in bare):
            alike = [self.replaced(form, dim, dim + 1, (length,), why) for form in forms]
            labels = [str(i) for i in range(len(alike[0].dims))]
            return self.met([(form, labels) for form in alike], labels)
        for other in range(len(bare[0].dims)):
            if other != dim:
                bare = self._conformed(bare, [other] * len(bare), why)
        cells: dict[Key, tuple[Axis, ...]] = {}
        segments: Segments = ()
        for form in bare:
            at = form.span(dim)[0]
            for key, cell in form.cells.items():
                cells[(*key[:at], key[at] + len(segments), *key[at + 1 :])] = cell
            segments += form.factors[at]
        dims = bare[0].dims
        return Form((*dims[:dim], (segments,), *dims[dim + 1 :]), cells)

    def _with_unit(self, form: Form, dim: int) -> Form:
        """A dimension of size 1 with a factor of its own, which it has nowhere else."""
        at = form.span(dim)[0]
        cells = {(*k[:at], 0, *k[at:]): (*c[:at], (), *c[at:]) for k, c in form.cells.items()}
        return Form((*form.dims[:dim], ((1,),), *form.dims[dim + 1 :]), cells)

    def _conformed(self, forms: list[Form], dims: Sequence[int], why: str) -> list[Form]:
        """The forms with the same factors and segments in one dimension each."""
        rows = [form.dims[dim] for form, dim in zip(forms, dims, strict=True)]
        if not rows or all(row == rows[0] for row in rows):
            return forms
        size = forms[0].shape[dims[0]]
        strides = set().union(*(_strides([sum(f) for f in row]) for row in rows))
        split = [self._split(f, d, strides) for f, d in zip(forms, dims, strict=True)]
        borders = sorted(strides)
        if any(form is None for form in split) or any(b % a for a, b in pairwise(borders)):
            return [self.replaced(f, d, d + 1, (size,), why)
                    for f, d in zip(forms, dims, strict=True)]  # fmt: skip
        same = [form for form in split if form is not None]
        for step in range(len(same[0].dims[dims[0]])):
            places = [form.span(dim)[0] + step for form, dim in zip(same, dims, strict=True)]
            cuts = {
                end
                for form, at in zip(same, places, strict=True)
                for end in accumulate(form.factors[at])
            }
            for where in sorted(cuts):
                same = [self._cut(form, at, where, True, why)
                        for form, at in zip(same, places, strict=True)]  # fmt: skip
        return same

    def met(self, parts: Sequence[tuple[Form, Sequence[str]]], out: Sequence[str]) -> Form:
        """Dimensions of one label are tied; gives the form with the labels `out`.

        A label that is not in `out` is summed over. Dimensions of size 1 are broadcast; a label
        in `out` that no part has in full size is of size 1. No part has a label twice.
        """
        assert all(len(set(row)) == len(row) for _, row in parts), "a label stands twice"
        forms = [form for form, _ in parts]
        labels = [list(row) for _, row in parts]
        rows: dict[str, tuple[Segments, ...]] = {}
        names = dict.fromkeys(label for row in [*labels, list(out)] for label in row)
        for name in names:
            holders = [
                (i, dim)
                for i, row in enumerate(labels)
                for dim, label in enumerate(row)
                if label == name and forms[i].dims[dim]
            ]
            new = self._conformed(
                [forms[i] for i, _ in holders], [dim for _, dim in holders], "segments are joined"
            )
            for (i, _), form in zip(holders, new, strict=True):
                forms[i] = form
            rows[name] = forms[holders[0][0]].dims[holders[0][1]] if holders else ()
        counts = [len(factor) for name in names for factor in rows[name]]
        cells: dict[Key, tuple[Axis, ...]] = {}
        for key in product(*map(range, counts)):
            self._meet(key, names, rows, forms, labels, out, cells)
        return Form(tuple(rows[label] for label in out), cells)

    def _meet(
        self, key: Key, names: Iterable[str], rows: dict[str, tuple[Segments, ...]],
        forms: list[Form], labels: list[list[str]], out: Sequence[str],
        cells: dict[Key, tuple[Axis, ...]],
    ) -> None:  # fmt: skip
        """Tie the axes of one cell of all labels."""
        at, where = 0, {}
        for name in names:
            where[name] = key[at : at + len(rows[name])]
            at += len(rows[name])
        axes: dict[tuple[str, int], Axis] = {}
        for form, row in zip(forms, labels, strict=True):
            full = [label for label, factors in zip(row, form.dims, strict=True) if factors]
            own = [(label, i) for label in full for i in range(len(rows[label]))]
            place = tuple(where[name][i] for name, i in own)
            for slot, axis in zip(own, form.cells[place], strict=True):
                axes[slot] = self.tie(axes[slot], axis) if slot in axes else axis
        slots = [(label, i) for label in out for i in range(len(rows[label]))]
        place = tuple(where[name][i] for name, i in slots)
        found = tuple(axes[slot] for slot in slots)
        cells[place] = self._tied(cells[place], found) if place in cells else found


def _strides(sizes: Sequence[int]) -> set[int]:
    """How many entries lie between steps along each dimension but the last, which is 1."""
    return set(accumulate(reversed(sizes[1:]), int.__mul__))


def _runs(have: Sequence[int], want: Sequence[int]) -> list[tuple[range, list[int]]]:
    """The shortest runs of dimensions that hold as many entries before and after a view."""
    runs, at, done = [], 0, 0
    while at < len(have):
        first, start = at, done
        at, done = at + 1, done + 1
        while (before := prod(have[first:at])) != (after := prod(want[start:done])):
            at, done = at + (before < after), done + (after < before)
        runs.append((range(first, at), list(want[start:done])))
    return runs
