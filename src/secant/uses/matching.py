"""Orders of one model's units in which they are as like another's as may be.

Holds: ``match`` and what it matches, ``Term``.
May import: torch, ``secant.maps``, ``secant.uses``.

Coordinate descent as in Git Re-Basin (Ainsworth et al. 2022, arXiv:2209.04836, algorithm 1):
with all other orders held, the best order of one axis is a linear assignment. Where an axis
has others within it (the entries of each head), a pair of its entries is worth what the best
orders within that pair are worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from secant.maps.permutations import Orders, reordered
from secant.maps.symmetries import Symmetries
from secant.uses.assignment import Assignment, assign


class Term(NamedTuple):
    """Values of two models on one grid of axes, and a last dimension of whatever else there is.

    What is sought are the orders of `b` that make the sum of products with `a` the largest.
    """

    axes: tuple[int, ...]
    a: Tensor
    b: Tensor


class Found(NamedTuple):
    """Orders, and the sum of products that they reach."""

    orders: Orders
    value: float


@dataclass
class _Gain:
    """What each pair of an axis' entries is worth, and the last assignment.

    `matrix` is a sum over places, a term and one of its dimensions each; `orders` are those of
    the term's other axes for which it was added.
    """

    matrix: Tensor
    orders: dict[tuple[int, int], Orders] = field(default_factory=dict)
    assignment: Assignment | None = None


def match(symmetries: Symmetries, terms: Sequence[Term], generator: torch.Generator) -> Orders:
    """Coordinate descent until no axis gains.

    On the first round an axis is matched by those terms alone whose other axes have been matched
    before, the axis with the most of such values first; then in random order.
    """
    tree = _Tree(symmetries, generator)
    found = tree.descend(list(terms), tree.children[None], 0).orders
    return {s.axis: found[s.axis] for s in symmetries}


class _Tree:
    """The axes that stand within each other, and the descent over them."""

    def __init__(self, symmetries: Symmetries, generator: torch.Generator) -> None:
        self.sizes, self.generator = symmetries.sizes, generator
        self.within = {s.axis: s.within for s in symmetries}
        self.children: dict[int | None, list[int]] = {None: []}
        for axis, outer in list(self.within.items()):
            chain = (*outer, axis)
            for above, below in zip((None, *chain[:-1]), chain, strict=True):
                siblings = self.children.setdefault(above, [])
                if below not in siblings:
                    siblings.append(below)

    def subtree(self, axis: int) -> set[int]:
        """The axis and all within it."""
        return {axis}.union(*(self.subtree(child) for child in self.children.get(axis, [])))

    def descend(self, terms: list[Term], roots: list[int], depth: int) -> Found:
        """The best orders of `roots` and all within them; `depth` axes lie around these terms."""
        descent = _Descent(self, terms, roots, depth)
        return descent.run()


class _Descent:
    """The descent over axes none of which lies within another."""

    def __init__(self, tree: _Tree, terms: list[Term], roots: list[int], depth: int) -> None:
        self.tree, self.roots, self.depth = tree, roots, depth
        self.terms = terms
        self.trees = {root: tree.subtree(root) for root in roots}
        self.of = {root: [t for t in terms if root in t.axes] for root in roots}
        self.within = {a: outer[depth:] for a, outer in tree.within.items() if len(outer) >= depth}
        self.orders: Orders = {}
        self.gains: dict[int, _Gain] = {}
        self.roundings: dict[int, float] = {}

    def run(self) -> Found:
        """First the axes as they can be known, then rounds in random order until none gains."""
        pending = list(self.roots)
        while pending:
            root = max(pending, key=self._known)
            pending.remove(root)
            self._update(root, [t for t in self.of[root] if self._is_known(t, root)])
        is_moving = len(self.roots) > 1 or any(t.axes.count(r) > 1 for r in self.roots
                                               for t in self.of[r])  # fmt: skip
        while is_moving:
            is_moving = False
            for place in torch.randperm(len(self.roots), generator=self.tree.generator).tolist():
                root = self.roots[place]
                is_moving |= self._update(root, self.of[root])
        return Found(self.orders, self._value(self.terms))

    def _is_known(self, term: Term, root: int) -> bool:
        return all(a in self.orders for a in term.axes if a not in self.trees[root]
                   and a in self.within)  # fmt: skip

    def _known(self, root: int) -> int:
        return sum(t.a.numel() for t in self.of[root] if self._is_known(t, root))

    def _value(self, terms: list[Term]) -> float:
        return sum(
            float(torch.tensordot(t.a, reordered(t.b, t.axes, self.orders, self.within), t.a.ndim))
            for t in terms
        )

    def _rounding(self, terms: list[Term]) -> float:
        """A gain that sums of products in another order could have made up."""
        for t in terms:
            if id(t) not in self.roundings:
                norms = float(t.a.norm()) * float(t.b.norm())
                self.roundings[id(t)] = torch.finfo(t.a.dtype).eps * norms
        return sum(self.roundings[id(t)] for t in terms)

    def _update(self, root: int, terms: list[Term]) -> bool:
        """Give an axis its best order; whether it has another one now."""
        is_leaf = not self.tree.children.get(root)
        proposal = self._leaf(root, terms) if is_leaf else self._nested(root, terms)
        old = {axis: self.orders[axis] for axis in proposal if axis in self.orders}
        if old and all(torch.equal(old[axis], order) for axis, order in proposal.items()):
            return False
        is_exact = is_leaf and all(t.axes.count(root) == 1 for t in terms)
        if not old or is_exact:
            self.orders |= proposal
            return True
        before = self._value(terms)
        self.orders |= proposal
        if self._value(terms) > before + self._rounding(terms):
            return True
        self.orders |= old
        return False

    def _leaf(self, root: int, terms: list[Term]) -> Orders:
        """The order of an axis that has none within it."""
        gain, has_changed = self._gain(root, terms)
        now = self.orders.get(root)
        if now is not None and not has_changed:
            return {root: now}  # the best for this gain already
        gain.assignment = assign(gain.matrix, gain.assignment)
        order = gain.assignment.columns
        if now is not None:
            values = (gain.matrix.gather(1, each[:, None]).double().sum() for each in (order, now))
            if float(next(values) - next(values)) <= self._rounding(terms):
                order = now
        return {root: order}

    def _gain(self, root: int, terms: list[Term]) -> tuple[_Gain, bool]:
        """Products of each entry of `a` with each of `b`, the other axes in their orders.

        Kept from one round to the next and mended by what the other axes' new orders change;
        whether there was anything to mend.
        """
        kept = self.gains.get(root)
        if kept is None:
            is_double = any(torch.float64 in (t.a.dtype, t.b.dtype) for t in self.of[root])
            dtype = torch.float64 if is_double else torch.float32
            kept = self.gains[root] = _Gain(torch.zeros(2 * (self.tree.sizes[root],), dtype=dtype))
        has_changed = False
        for term in terms:
            for dim in (d for d, axis in enumerate(term.axes) if axis == root):
                has_changed |= self._mended(kept, term, dim)
        return kept, has_changed

    def _mended(self, gain: _Gain, term: Term, dim: int) -> bool:
        """Bring one term's part of a gain up to the present orders; whether it was not."""
        others = {a for d, a in enumerate(term.axes) if d != dim and a in self.orders}
        new = {axis: self.orders[axis] for axis in others}
        old = gain.orders.get((id(term), dim))
        changed = {a for a in new if old is None or a not in old or not torch.equal(old[a], new[a])}
        if old is not None and not changed:
            return False
        gain.orders[id(term), dim] = new
        a, b = term.a, term.b
        places = [d for d, axis in enumerate(term.axes) if d != dim and axis in changed]
        if old is not None and old.keys() == new.keys() == changed and len(places) == 1:
            (axis,) = changed
            if new[axis].ndim == 1:
                where = (old[axis] != new[axis]).nonzero().flatten()
                a = a.index_select(places[0], where)
                pair = (b.index_select(places[0], each[axis][where]) for each in (new, old))
                _add_products(gain.matrix, a, next(pair).sub_(next(pair)), dim)
                return True
        axes = tuple(-1 if d == dim else axis for d, axis in enumerate(term.axes))
        after = reordered(b, axes, new, self.within)
        if old is not None:
            after = after - reordered(b, axes, old, self.within)
        _add_products(gain.matrix, a, after, dim)
        return True

    def _nested(self, root: int, terms: list[Term]) -> Orders:
        """The order of an axis, and for each of its entries the orders within it."""
        own, size = self.trees[root], self.tree.sizes[root]
        apart = {a: order for a, order in self.orders.items() if a not in own}
        values = torch.zeros(size, size, dtype=torch.float64)
        parts: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
        plain = [t for t in terms if not own.intersection(t.axes) - {root}]
        values += self._gain(root, plain)[0].matrix
        for term in (t for t in terms if own.intersection(t.axes) - {root}):
            inner = tuple(a for a in term.axes if a in own and a != root)
            b = reordered(term.b, term.axes, apart, self.within)
            front = [d for a in (root, *inner) for d, each in enumerate(term.axes) if each == a]
            front = list(dict.fromkeys(front))
            pair = [
                each.movedim(front, list(range(len(front)))).flatten(len(front))
                for each in (term.a, b)
            ]
            kept = tuple(term.axes[d] for d in front[1:])
            parts.setdefault(kept, []).append((pair[0], pair[1]))
        joined = {
            axes: (torch.cat([a for a, _ in pairs], -1), torch.cat([b for _, b in pairs], -1))
            for axes, pairs in parts.items()
        }
        inside: dict[tuple[int, int], Orders] = {}
        is_fixed = root not in self.tree.within
        for x in range(size):
            for y in [x] if is_fixed else range(size):
                slices = [Term(axes, a[x], b[y]) for axes, (a, b) in joined.items()]
                below = self.tree.descend(slices, self.tree.children[root], self.depth + 1)
                values[x, y] += below.value
                inside[x, y] = below.orders
        order = torch.arange(size) if is_fixed else assign(values).columns
        pairs = [inside[x, y] for x, y in enumerate(order.tolist())]
        found = {axis: torch.stack([orders[axis] for orders in pairs]) for axis in pairs[0]}
        return found if is_fixed else found | {root: order}


def _rows(values: Tensor, dim: int) -> Tensor:
    return values.movedim(dim, 0).flatten(1)


def _add_products(gain: Tensor, a: Tensor, b: Tensor, dim: int) -> None:
    gain.addmm_(_rows(a, dim).to(gain.dtype), _rows(b, dim).to(gain.dtype).T)
