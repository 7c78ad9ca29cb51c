"""Orders of one model's units in which they are as like another's as may be.

Holds: ``match`` and what it matches, ``Term``.
May import: torch, numpy, scipy, ``secant.maps``.

Coordinate descent as in Git Re-Basin (Ainsworth et al. 2022, arXiv:2209.04836, algorithm 1):
with all other orders held, the best order of one axis is a linear assignment. Where an axis
has others within it (the entries of each head), a pair of its entries is worth what the best
orders within that pair are worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from secant.maps.permutations import Orders, reordered
from secant.maps.symmetries import Symmetries


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
    """What each pair of entries is worth in one term, and the orders for which it was computed."""

    matrix: Tensor
    orders: tuple[Tensor, ...]


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
        self.gains: dict[tuple[int, int], _Gain] = {}

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
        if self._value(terms) > before + _rounding(terms):
            return True
        self.orders |= old
        return False

    def _leaf(self, root: int, terms: list[Term]) -> Orders:
        """The order of an axis that has none within it."""
        gain = torch.zeros(self.tree.sizes[root], self.tree.sizes[root])
        for term in terms:
            for dim, axis in enumerate(term.axes):
                if axis == root:
                    gain = gain + self._gain(term, dim)
        now = self.orders.get(root)
        order = _assigned(gain)
        if now is not None:
            entries = torch.arange(len(order))
            better = gain[entries, order].double().sum() - gain[entries, now].double().sum()
            if float(better) <= _rounding(terms):
                order = now
        return {root: order}

    def _gain(self, term: Term, dim: int) -> Tensor:
        """Products of each entry of `a` with each of `b`, the other axes in their orders.

        Kept from one round to the next, and mended where one other axis changed in few entries.
        """
        others = [a for d, a in enumerate(term.axes) if d != dim and a in self.orders]
        orders = tuple(self.orders[a] for a in others)
        key = id(term), dim
        kept = self.gains.get(key)
        if kept is not None and len(kept.orders) == len(orders):
            changed = [i for i, (old, new) in enumerate(zip(kept.orders, orders, strict=True))
                       if not torch.equal(old, new)]  # fmt: skip
            if not changed:
                return kept.matrix
            places = [d for d, a in enumerate(term.axes) if a == others[changed[0]]]
            if len(others) == len(places) == 1 and orders[0].ndim == 1:
                old, new = kept.orders[0], orders[0]
                where = (old != new).nonzero().flatten()
                if 2 * len(where) <= len(new):
                    a = term.a.index_select(places[0], where)
                    b = term.b.index_select(places[0], new[where])
                    b = b - term.b.index_select(places[0], old[where])
                    kept.matrix += _rows(a, dim) @ _rows(b, dim).T
                    kept.orders = orders
                    return kept.matrix
        ordered = {a: order for a, order in self.orders.items() if a in others}
        axes = tuple(-1 if d == dim else a for d, a in enumerate(term.axes))
        b = reordered(term.b, axes, ordered, self.within)
        matrix = _rows(term.a, dim) @ _rows(b, dim).T
        self.gains[key] = _Gain(matrix, orders)
        return matrix

    def _nested(self, root: int, terms: list[Term]) -> Orders:
        """The order of an axis, and for each of its entries the orders within it."""
        own, size = self.trees[root], self.tree.sizes[root]
        apart = {a: order for a, order in self.orders.items() if a not in own}
        values = torch.zeros(size, size, dtype=torch.float64)
        parts: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
        for term in terms:
            inner = tuple(a for a in term.axes if a in own and a != root)
            if not inner:
                for dim in (d for d, a in enumerate(term.axes) if a == root):
                    values += self._gain(term, dim)
                continue
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
        order = torch.arange(size) if is_fixed else _assigned(values)
        pairs = [inside[x, y] for x, y in enumerate(order.tolist())]
        found = {axis: torch.stack([orders[axis] for orders in pairs]) for axis in pairs[0]}
        return found if is_fixed else found | {root: order}


def _rows(values: Tensor, dim: int) -> Tensor:
    return values.movedim(dim, 0).flatten(1)


def _assigned(gain: Tensor) -> Tensor:
    """For each row its column, each column once, of the largest sum."""
    best = gain.argmax(1)
    if len(torch.bincount(best, minlength=len(best)).nonzero()) == len(best):
        return best  # no sum is larger than that of every row's largest
    _, columns = linear_sum_assignment(gain.double().numpy(), maximize=True)
    return torch.from_numpy(columns)


def _rounding(terms: Sequence[Term]) -> float:
    """A gain that sums of products in another order could have made up."""
    return sum(
        torch.finfo(t.a.dtype).eps * float(t.a.norm()) * float(t.b.norm()) for t in terms
    )  # fmt: skip
