"""The permutation symmetries of a model, found from its exported graph.

Holds: ``find_symmetries``, its result ``Symmetries`` of ``Symmetry`` and ``Block``, and
``Pinned``, what is not one.
May import: torch, ``secant.errors``, ``secant.maps``.

An axis (units of an MLP, channels, heads, entries of a head) is a symmetry if every operation
that touches it commutes with permuting it everywhere at once. Rules for each operation tie and
pin axes (`secant.maps.axis_rules`); no architecture is known by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

from secant.maps.affinity import CONTRACTIONS, op_name
from secant.maps.axes import Axes, Axis, Form, Segments
from secant.maps.axis_rules import Walk, hint

Rows = tuple[tuple[Segments, ...], ...]


@dataclass(frozen=True)
class Block:
    """A part of a tensor whose entries stand on a grid of axes.

    `view`: the tensor with a dimension for each factor, and `owners` the tensor's own dimension
    of each; `starts` and `sizes`: where the block lies in it; `axes`, `shape` and `dims`: for
    each axis its number, its size and the tensor's own dimension that it is a part of.
    """

    view: tuple[int, ...]
    owners: tuple[int, ...]
    starts: tuple[int, ...]
    sizes: tuple[int, ...]
    axes: tuple[int, ...]
    shape: tuple[int, ...]
    dims: tuple[int, ...]

    def read(self, tensor: Tensor) -> Tensor:
        """The block's entries, a dimension an axis."""
        found = tensor.reshape(self.view)
        for dim, (start, size) in enumerate(zip(self.starts, self.sizes, strict=True)):
            found = found.narrow(dim, start, size)
        return found.reshape(self.shape)

    def write(self, tensor: Tensor, values: Tensor) -> None:
        """Put the entries in their place."""
        target = tensor.view(self.view)
        for dim, (start, size) in enumerate(zip(self.starts, self.sizes, strict=True)):
            target = target.narrow(dim, start, size)
        target.copy_(values.reshape(self.sizes))


@dataclass(frozen=True)
class Symmetry:
    """One axis that may be permuted: everywhere by the same order.

    `within`: the axes, outermost first, for each of whose entries it has an order of its own,
    such as the entries of a head within each head. `places`: tensors and their dimensions.
    """

    axis: int
    name: str
    size: int
    within: tuple[int, ...]
    copies: int
    places: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Pinned:
    """Dimensions of tensors that may not be permuted, in whole or part, and why."""

    size: int
    why: str
    places: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Symmetries:
    """All symmetries of a model, and how each tensor of its state lies on their axes.

    `blocks`: for the tensors that a permutation moves. `sizes`: of every axis in them, also of
    those that stay in place. `values`: the nodes of the graph that products make or read,
    and how their values lie: there the units of a symmetry can be compared.
    """

    found: tuple[Symmetry, ...]
    pinned: tuple[Pinned, ...]
    blocks: Mapping[str, tuple[Block, ...]]
    sizes: Mapping[int, int]
    values: Mapping[str, tuple[Block, ...]]

    def __len__(self) -> int:
        """How many."""
        return len(self.found)

    def __iter__(self) -> Iterator[Symmetry]:
        """In the order of the model's tensors."""
        return iter(self.found)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Floating parameters and kept buffers, each under its first name only."""
    kept = model.state_dict(keep_vars=True)
    named = [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if n in kept)]
    return {name: value.detach() for name, value in named if value.is_floating_point()}


def find_symmetries(graph: GraphModule, model: nn.Module) -> Symmetries:
    """The permutation symmetries of `model`, whose exported graph is given.

    Sound and not complete: an axis is left out, with a reason in `pinned`, where an operation
    has no rule, where it is an input's or output's own, or where order counts. What is said of
    the graph holds for the model as long as the graph does.
    """
    rows: dict[str, Rows] = {}
    while True:
        tracing = _Tracing(graph, model, rows)
        finer = tracing.finer()
        if finer == rows:
            return tracing.result()
        rows = finer


class _Tracing:
    """One walk through the graph, with the tensors of the state in given segments."""

    def __init__(self, graph: GraphModule, model: nn.Module, rows: dict[str, Rows]) -> None:
        self.axes, self.rows = Axes(), rows
        self.walk = Walk(self.axes)
        self.nodes = list(graph.graph.nodes)
        self.state = state_of(model)
        self.names = _canonical(model, self.state)
        self.params: dict[str, Form] = {}
        self.is_data: set[Node] = set()
        for node in self.nodes:
            self._visit(node, graph)

    def _visit(self, node: Node, graph: GraphModule) -> None:
        if node.op == "placeholder":
            self.is_data.add(node)
            self._create(node, node.meta.get("val"), "it is the input's")
        elif node.op == "get_attr":
            self._attribute(node, graph)
        elif node.op == "call_function":
            if self.is_data.intersection(node.all_input_nodes):
                self.is_data.add(node)
            self.walk.visit(node)
        elif node.op == "output":
            for leaf in tree_leaves(node.args):
                found = self.walk.forms.get(leaf) if isinstance(leaf, Node) else None
                if isinstance(found, Form):
                    self.axes.pin_form(found, "it is the output's")

    def _create(self, node: Node, value: object, why: str) -> None:
        if isinstance(value, Tensor):
            self.walk.forms[node] = self.axes.form([hint(n) for n in value.shape], why=why)

    def _attribute(self, node: Node, graph: GraphModule) -> None:
        value: object = graph
        for part in str(node.target).split("."):
            value = getattr(value, part)
        name = self.names.get(str(node.target))
        if name is None:
            if isinstance(value, Tensor):
                self.walk.forms[node] = self._constant(value)
            return
        if name not in self.params:
            tensor = self.state[name]
            whole = tuple(() if size == 1 else ((size,),) for size in tensor.shape)
            self.params[name] = self.axes.segmented(self.rows.get(name, whole))
            if not tensor.is_contiguous():
                self.axes.pin_form(self.params[name], "its tensor does not lie whole in memory")
        self.walk.forms[node] = self.params[name]

    def _constant(self, value: Tensor) -> Form:
        """Free where values do not vary along a dimension, pinned where they do."""
        form = self.axes.form(value.shape, is_free=True)
        for dim, size in enumerate(value.shape):
            if size > 1 and not bool((value == value.narrow(dim, 0, 1)).all()):
                why = "a constant varies along it"
                form = self.axes.replaced(form, dim, dim + 1, (size,), why)
        return form

    def finer(self) -> dict[str, Rows]:
        """The segments that the cuts asked for would need."""
        rows = {name: form.dims for name, form in self.params.items()}
        for axis, where in self.axes.cuts:
            wanted = self.axes.resolved(axis)
            for name, form in self.params.items():
                for at, segment, before, after in self._places(form, wanted):
                    rows[name] = _with_border(
                        rows[name], form, at, segment, before, after, where
                    )  # fmt: skip
        whole = {
            n: tuple(() if s == 1 else ((s,),) for s in f.shape) for n, f in self.params.items()
        }
        return {name: row for name, row in rows.items() if row != whole[name]}

    def _places(self, form: Form, wanted: Axis) -> set[tuple[int, int, int, int]]:
        """Factors and segments that hold these atoms, with the sizes before and after them."""
        found = set()
        for key, cell in form.cells.items():
            for at, axis in enumerate(map(self.axes.resolved, cell)):
                for i in range(len(axis) - len(wanted) + 1):
                    if axis[i : i + len(wanted)] == wanted:
                        before, after = axis[:i], axis[i + len(wanted) :]
                        found.add((at, key[at], self.axes.size(before), self.axes.size(after)))
        return found

    def result(self) -> Symmetries:
        """Read off the symmetries after a walk whose cuts are all made."""
        axes = self.axes
        forms = [f for found in self.walk.forms.values()
                 for f in (found if isinstance(found, list) else [found])]  # fmt: skip
        cells = {
            tuple(a for axis in cell for a in axes.resolved(axis) if not axes.is_free(a))
            for form in [*self.params.values(), *forms, *self.walk.sums]
            for cell in form.cells.values()
        }
        blocks = {name: self._blocks(form) for name, form in self.params.items()}
        places: dict[int, list[tuple[str, int]]] = {}
        for name, own in blocks.items():
            for block in own:
                for atom, dim in zip(block.axes, block.dims, strict=True):
                    held = places.setdefault(atom, [])
                    if (name, dim) not in held:
                        held.append((name, dim))
        for atom, held in places.items():
            if len(held) == 1:  # how much of it is read may be the example's own
                axes.pin((atom,), "nothing else goes along with it")
        chains = _chains(cells, [a for a in places if axes.why(a) is None])
        found = []
        for atom, chain in chains.items():
            name = _name(places[atom], blocks, atom)
            copies = axes.size(chain)
            found.append(
                Symmetry(atom, name, axes.size((atom,)), chain, copies, tuple(places[atom]))
            )
        moved = {symmetry.axis for symmetry in found}
        sizes = {a: axes.size((a,)) for own in blocks.values() for b in own for a in b.axes}
        return Symmetries(
            tuple(found), self._pinned(places),
            {n: own for n, own in blocks.items() if any(moved & set(b.axes) for b in own)},
            sizes, self._values(moved),
        )  # fmt: skip

    def _blocks(self, form: Form) -> tuple[Block, ...]:
        view = tuple(sum(factor) for factor in form.factors)
        owner = tuple(dim for dim, row in enumerate(form.dims) for _ in row)
        found = []
        for key, cell in form.cells.items():
            ends = [(0, *accumulate(factor)) for factor in form.factors]
            starts = tuple(end[i] for end, i in zip(ends, key, strict=True))
            sizes = tuple(factor[i] for factor, i in zip(form.factors, key, strict=True))
            atoms = [(a, d) for axis, d in zip(cell, owner, strict=True)
                     for a in self.axes.resolved(axis)]  # fmt: skip
            axes = tuple(atom for atom, _ in atoms)
            shape = tuple(self.axes.size((atom,)) for atom in axes)
            dims = tuple(dim for _, dim in atoms)
            found.append(Block(view, owner, starts, sizes, axes, shape, dims))
        return tuple(found)

    def _values(self, moved: set[int]) -> dict[str, tuple[Block, ...]]:
        """Values that depend on the data, that a product makes or reads, along a symmetry."""
        products = CONTRACTIONS | {"scaled_dot_product_attention"}
        found = {}
        for node in self.nodes:
            form = self.walk.forms.get(node)
            if node not in self.is_data or not isinstance(form, Form):
                continue
            if any(op_name(each) in products for each in (node, *node.users)):
                own = self._blocks(form)
                if any(moved & set(block.axes) for block in own):
                    found[node.name] = own
        return found

    def _pinned(self, places: dict[int, list[tuple[str, int]]]) -> tuple[Pinned, ...]:
        found = []
        for atom, held in places.items():
            why = self.axes.why(atom)
            if why is not None:
                found.append(Pinned(self.axes.size((atom,)), why, tuple(held)))
        return tuple(found)


def _canonical(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, str]:
    """The name in `state` of every name that a tensor of the model goes by."""
    first = {id(value): name for name, value in
             [*model.named_parameters(), *model.named_buffers()]}  # fmt: skip
    every = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    return {name: first[id(v)] for name, v in every if first.get(id(v)) in state}


def _with_border(
    rows: Rows, form: Form, at: int, segment: int, before: int, after: int, where: int
) -> Rows:
    """The factors with one more border between segments, where that can be said in factors.

    `at` and `segment` say which segment of which factor of `form`; within it the atoms to be
    cut at `where` have `before` entries of slower and `after` of faster atoms around them.
    """
    count = 0
    for dim, row in enumerate(form.dims):
        if at >= count + len(row):
            count += len(row)
            continue
        own, new = list(rows[dim]), at - count
        if rows[dim] != row and len(rows[dim]) != len(row):
            return rows  # another cut has factored it since; the next walk asks again
        factor = row[new]
        start = sum(factor[:segment]) + where * after
        if before == 1:
            ends = sorted({*accumulate(own[new]), start})
            own[new] = tuple(b - a for a, b in zip((0, *ends), ends, strict=False))
        elif len(factor) == 1:
            inner = factor[0] // before
            own[new : new + 1] = [(before,), (where * after, inner - where * after)]
        return (*rows[:dim], tuple(own), *rows[dim + 1 :])
    raise AssertionError("the factor is one of the form's")


def _chains(cells: set[Axis], atoms: list[int]) -> dict[int, Axis]:
    """For each atom those on which its order may depend, outermost first.

    An order may depend on the entry of another axis if the other stands beside it in every
    tensor, once. Of those that do, a chain is taken, each link depending on the ones before.
    """
    beside: dict[int, set[int]] = {}
    for cell in cells:
        counts = Counter(cell)
        for atom in counts:
            others = {a for a, times in counts.items() if times == 1 and a != atom}
            beside[atom] = beside[atom] & others if atom in beside else others
    chains: dict[int, Axis] = {}
    movable = set(atoms)

    def chain(atom: int) -> Axis:
        if atom not in movable:
            return ()  # it stays in place itself
        if atom not in chains:
            outer = beside[atom]
            # Of two that each stand beside the other, one has to be the outer.
            own = {a for a in outer if atom not in beside[a] or (a not in movable or a < atom)}
            links = [(*chain(a), a) for a in sorted(own)]
            links = [link for link in links if own.issuperset(link)]
            chains[atom] = max(links, key=len, default=())
        return chains[atom]

    for atom in atoms:
        chain(atom)
    return {atom: chains[atom] for atom in atoms}


def _name(places: list[tuple[str, int]], blocks: Mapping[str, tuple[Block, ...]], atom: int) -> str:
    """The tensor that makes the axis (its output), and the axis's place in that dimension."""
    name, dim = next((place for place in places if place[1] == 0), places[0])
    block = next(b for b in blocks[name] if (atom, dim) in zip(b.axes, b.dims, strict=True))
    parts = [str(n) if a != atom else f"*{n}*" for a, n, d in
             zip(block.axes, block.shape, block.dims, strict=True) if d == dim]  # fmt: skip
    return f"{name}:{dim}" + (f" ({'×'.join(parts)})" if len(parts) > 1 else "")
