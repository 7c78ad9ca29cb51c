"""Which affine steps of a graph are joined: the choice that leaves least work, and its writing.

Holds: ``Join``, ``joins_of``, ``apply_joins``, ``cleaned``; ``split_norms``, whose weights readers
can take.
May import: torch, ``secant.maps``, ``secant.uses`` (affine_flatten, affine_forms, affine_steps).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from secant.maps.affinity import arguments, module_path, op_name
from secant.maps.graph import Captured
from secant.uses.affine_flatten import flattened_form
from secant.uses.affine_forms import (
    Convolution,
    Dense,
    Diagonal,
    Flat,
    Flattened,
    Form,
    operations,
)
from secant.uses.affine_steps import (
    ANY,
    LAST,
    NORMS,
    Constants,
    Step,
    path_form,
    places,
    width_of,
)

DEEPEST = 64
"""Steps behind a node that are looked at for a join."""


@dataclass(frozen=True)
class Join:
    """Steps from `source` to `node` that become one `form`, and the work before and after."""

    node: Node
    source: Node
    steps: tuple[Step, ...]
    form: Form
    axis: int
    work: int
    work_before: int

    @property
    def names(self) -> list[str]:
        """The modules, or operations outside them, that are joined."""
        parts = [node for step in self.steps for node in (*step.inner, step.node)]
        return list(dict.fromkeys(module_path(node) or op_name(node) for node in parts))


def joins_of(captured: Captured, steps: Mapping[Node, Step]) -> tuple[list[Join], list[str]]:
    """The joins that leave the least work, and what could be joined but would not save any.

    Every node that anything but an affine step reads must be there; of the others any may be
    left out, and what follows them is then taken from further back. Over the trees of steps the
    cheapest choice is found exactly.
    """
    children: dict[Node, list[Node]] = {}
    for node, step in steps.items():
        children.setdefault(step.parent, []).append(node)
    inner = {node for step in steps.values() for node in step.inner}
    needed = {node for node in steps if not _is_read_by_steps(node, steps, inner)}
    plan = _Plan(steps, children, needed)
    joins: list[Join] = []
    kept: list[str] = []
    for root in [one for one in children if one not in steps]:
        plan.choose(root)
    for node in [one for one in steps if one in plan.chosen]:
        source = plan.chosen[node]
        path = plan.path(source, node)
        if len(path) == 1 and not path[0].inner:
            continue
        form = plan.form(source, node)
        assert form is not None
        axis = next((one.axis for one in path if one.axis != ANY), LAST)
        if isinstance(form, Flattened):
            axis = LAST
        if sum(_does_work(one) for one in path) < 2 and not any(one.inner for one in path):
            continue
        work = plan.work(source, node)
        joins.append(Join(node, source, tuple(path), form, axis, work,
                          sum(one.work for one in path)))  # fmt: skip
    for node in steps:
        parent = steps[node].parent
        if node in plan.chosen and plan.chosen[node] is parent and parent in steps:
            if isinstance(steps[parent].form, Flat) and steps[parent].parent in steps:
                parent = steps[parent].parent
            ours, theirs = steps[node].form, steps[parent].form
            is_dense = isinstance(ours, Dense | Convolution) and isinstance(
                theirs, Dense | Convolution
            )
            if is_dense and parent in plan.chosen:
                kept.append(f"{_name(parent)} and {_name(node)}")
    return joins, kept


def _is_read_by_steps(node: Node, steps: Mapping[Node, Step], inner: set[Node]) -> bool:
    """Whether only steps from this node, and branches within one, read it; something must."""
    users = list(node.users)
    for user in [one for one in users if op_name(one) in NORMS and one not in steps]:
        users.remove(user)  # BatchNorm gives three things, and the step is the first of them
        users += list(user.users)
    return bool(users) and all(
        user in inner or (user in steps and node in (steps[user].parent, *steps[user].inner))
        for user in users
    )


def _does_work(step: Step) -> bool:
    return operations(step.form, 1) > 0


def _name(node: Node) -> str:
    return module_path(node) or op_name(node)


class _Plan:
    """The cheapest set of nodes to keep, over trees of steps."""

    def __init__(
        self, steps: Mapping[Node, Step], children: Mapping[Node, list[Node]], needed: set[Node]
    ) -> None:
        self.steps, self.children, self.needed = steps, children, needed
        self.forms: dict[tuple[Node, Node], Form | None] = {}
        self.best: dict[tuple[Node, Node], tuple[float, bool]] = {}
        self.chosen: dict[Node, Node] = {}
        self.before_flatten: set[Node] = set()
        for node in [one for one in steps if isinstance(steps[one].form, Flat)]:
            while node in steps and node not in self.before_flatten:
                self.before_flatten.add(node)
                node = steps[node].parent

    def path(self, source: Node, node: Node) -> list[Step]:
        """The steps from `source` to `node`, first to last."""
        found = [self.steps[node]]
        while found[-1].parent is not source:
            found.append(self.steps[found[-1].parent])
        return found[::-1]

    def form(self, source: Node, node: Node) -> Form | None:
        """The product of the steps between them."""
        key = source, node
        if key not in self.forms:
            path = self.path(source, node)
            if any(isinstance(one.form, Flat) for one in path):
                self.forms[key] = self._form_of_flatten(path)
                return self.forms[key]
            axes = {one.axis for one in path} - {ANY}
            fits = len(axes) < 2 and len(path) <= DEEPEST
            if any(one.views for one in path) and any(isinstance(one.form, Convolution)
                                                      for one in path):  # fmt: skip
                fits = False
            self.forms[key] = path_form(path) if fits else None
        return self.forms[key]

    def _form_of_flatten(self, path: Sequence[Step]) -> Form | None:
        """The flatten itself, or what it is amid."""
        if len(path) == 1:
            return path[0].form
        return flattened_form(path) if len(path) <= DEEPEST else None

    def work(self, source: Node, node: Node) -> int:
        """Products for `node` from `source`."""
        step = self.steps[node]
        form = self.form(source, node)
        assert form is not None
        axis = step.axis or LAST
        width = width_of(node, axis)
        assert width is not None
        return operations(form, width) * places(node, axis)

    def cost(self, node: Node, source: Node) -> tuple[float, bool]:
        """The least work for `node` and all below it, `source` being there, and if it is kept."""
        key = node, source
        if key in self.best:
            return self.best[key]
        form = self.form(source, node)
        if form is None and not self._may_go_on(source, node):
            self.best[key] = math.inf, True
            return self.best[key]
        below = self.children.get(node, [])
        is_as_it_was = self.steps[node].parent is source and not self.steps[node].inner
        own: float = math.inf
        if form is not None:
            own = self.steps[node].work if is_as_it_was else self.work(source, node)
        kept = own + sum(self.cost(child, node)[0] for child in below)
        found = kept, True
        if node not in self.needed:
            without = sum(self.cost(child, source)[0] for child in below)
            if without < kept or (without == kept and isinstance(form, Diagonal)):
                found = without, False
        self.best[key] = found
        return found

    def _may_go_on(self, source: Node, node: Node) -> bool:
        """Whether there may be a form further on where there is none here: about a flatten."""
        path = self.path(source, node)
        is_past = any(isinstance(one.form, Flat) for one in path)
        return len(path) <= DEEPEST and (is_past or node in self.before_flatten)

    def choose(self, root: Node) -> None:
        """Fill in `chosen`: each node that is kept, and the node that it is taken from."""
        waiting = [(child, root) for child in self.children[root]]
        while waiting:
            node, source = waiting.pop()
            _, is_kept = self.cost(node, source)
            if is_kept:
                self.chosen[node] = source
            at = node if is_kept else source
            waiting += [(child, at) for child in self.children.get(node, [])]


def split_norms(captured: Captured) -> None:
    """Write a norm's weight and bias as steps of their own where all its readers are linear.

    Joins then take them away; where anything else reads the norm they cost nothing in it.
    """
    graph, constants = captured.module.graph, Constants(captured)
    for node in captured.nodes:
        if node.op != "call_function" or op_name(node) not in ("layer_norm", "rms_norm"):
            continue
        given = arguments(node)
        weight, bias = given.get("weight"), given.get("bias")
        is_known = constants(weight) is not None and (bias is None or constants(bias) is not None)
        is_read = bool(node.users) and all(
            op_name(user) == "linear" and arguments(user)["input"] is node for user in node.users
        )
        if len(given["normalized_shape"]) != 1 or not is_known or not is_read:
            continue
        for key, name in enumerate(given):
            if name in ("weight", "bias") and key < len(node.args):
                node.update_arg(key, None)
        node.kwargs = {k: v for k, v in node.kwargs.items() if k not in ("weight", "bias")}
        readers = list(node.users)
        after = node
        for target, value in (("mul", weight), ("add", bias)):
            if value is not None:
                with graph.inserting_after(after):
                    operation = getattr(torch.ops.aten, target).Tensor
                    after = graph.call_function(operation, (after, value))
                after.meta = dict(node.meta)
        for reader in readers:
            reader.replace_input_with(node, after)


def apply_joins(
    captured: Captured, joins: Sequence[Join], entries: Sequence[tuple[Tensor, Tensor | None]]
) -> None:
    """Write the joins into the graph, with weight and shift of each in the model's type."""
    graph, module = captured.module.graph, captured.module
    written: dict[Node, Node] = {}
    for number, join in enumerate(joins):
        names = []
        for what, value in zip(("weight", "bias"), _shaped(join, *entries[number]), strict=True):
            if value is not None:
                name = f"joined_{number}_{what}"
                module.register_parameter(name, torch.nn.Parameter(value, requires_grad=False))
                names.append(name)
        with graph.inserting_before(join.node):
            held = [graph.get_attr(name) for name in names]
            source = written.get(join.source, join.source)
            made = _call(graph, join, source, held[0], held[1] if len(held) > 1 else None)
            for view in [one for step in join.steps for one in step.views]:
                # Joins that follow ask for the shape of what is made here.
                value, width = arguments(view)["self"].meta["val"], width_of(join.node, LAST)
                made.meta = dict(join.node.meta)
                made.meta["val"] = value.new_empty((*value.shape[:-1], width))
                made = _view_of(graph, view, made, width)
        made.meta = dict(join.node.meta)
        join.node.replace_all_uses_with(made)
        written[join.node] = made
    cleaned(captured)


def cleaned(captured: Captured) -> None:
    """Remove what a changed graph no longer reads, and make it ready to run."""
    graph, module = captured.module.graph, captured.module
    graph.eliminate_dead_code()
    graph.lint()
    module.delete_all_unused_submodules()
    _drop_unread(captured)
    module.recompile()


def _shaped(join: Join, weight: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Both in the shapes that the operation takes."""
    n = join.node.meta["val"].ndim - 2
    if isinstance(join.form, Diagonal):
        if join.axis == LAST:
            return weight, shift
        shape = (-1, *[1] * n)
        return weight.view(shape), None if shift is None else shift.view(shape)
    if isinstance(join.form, Dense) and join.axis != LAST:
        weight = weight.view(*weight.shape, *[1] * n)
    # A convolution's output has the layout of its weight, and a 1 x 1 kernel of any layout passes
    # for contiguous: so the strides are written anew.
    weight = weight.flatten().view(weight.shape)
    return weight, None if shift is None else shift.expand(len(weight)).contiguous()


def _call(graph: Graph, join: Join, source: Node, weight: Node, bias: Node | None) -> Node:
    form = join.form
    aten = torch.ops.aten
    if isinstance(form, Diagonal):
        made = graph.call_function(aten.mul.Tensor, (source, weight))
        return made if bias is None else graph.call_function(aten.add.Tensor, (made, bias))
    if isinstance(form, Flattened):
        source = graph.call_function(aten.flatten.using_ints, (source, 1))
    if isinstance(form, Dense) and join.axis == LAST:
        return graph.call_function(aten.linear.default, (source, weight, bias))
    n = join.node.meta["val"].ndim - 2
    convolution = {1: aten.conv1d, 2: aten.conv2d, 3: aten.conv3d}[n].default
    if isinstance(form, Dense):
        return graph.call_function(convolution, (source, weight, bias))
    assert isinstance(form, Convolution)
    settings = [list(one) for one in (form.stride, form.padding, form.dilation)]
    return graph.call_function(convolution, (source, weight, bias, *settings, form.groups))


def _view_of(graph: Graph, view: Node, made: Node, width: int | None) -> Node:
    """The same view of the leading dimensions of another width."""
    args: list[Any] = list(view.args)
    args[0] = made
    if op_name(view) in ("view", "reshape", "_unsafe_view"):
        args[1] = [*args[1][:-1], width]
    assert callable(view.target)
    return graph.call_function(view.target, tuple(args), dict(view.kwargs))


def _drop_unread(captured: Captured) -> None:
    """Remove weights that the graph no longer reads."""
    read = {str(node.target) for node in captured.nodes if node.op == "get_attr"}
    names = [name for name, _ in captured.module.named_parameters(remove_duplicate=False)]
    names += [name for name, _ in captured.module.named_buffers(remove_duplicate=False)]
    for name in names:
        if name in read:
            continue
        owner, _, last = name.rpartition(".")
        part = captured.module.get_submodule(owner)
        for table in (part._parameters, part._buffers):
            table.pop(last, None)
