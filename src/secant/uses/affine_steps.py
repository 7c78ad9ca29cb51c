"""Nodes of an exported graph as affine steps from one node of the data to the next.

Holds: ``Step``, ``steps_of``, ``path_form``; ``Constants``, what does not depend on the inputs;
``places``, ``sizes_of``, ``width_of``, ``attribute``.
May import: torch, ``secant.maps``, ``secant.uses.affine_forms``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from secant.maps.affinity import arguments, depending, op_name
from secant.maps.graph import Captured, is_float
from secant.uses.affine_forms import (
    Convolution,
    Dense,
    Diagonal,
    Flat,
    Form,
    after,
    operations,
    summed,
)

LAST, CHANNELS, ANY = -1, 1, 0
"""The axis of features: the last, the second of convolutions, or any for a number."""

SAME = frozenset({"clone", "contiguous", "alias", "detach", "lift_fresh_copy"})
VIEWS = frozenset({"view", "reshape", "_unsafe_view", "unsqueeze", "flatten"})
CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})
NORMS = frozenset({"batch_norm", "_native_batch_norm_legit_no_training"})


@dataclass(frozen=True)
class Step:
    """A node as an affine map of `parent`, which is where all its ways from the data meet.

    `views` are nodes that only change the leading dimensions, in order; `inner` the nodes of a
    sum's branches, which nothing else reads. `work` is what the graph as it is spends on all
    this, in products a batch.
    """

    node: Node
    parent: Node
    form: Form
    axis: int
    views: tuple[Node, ...] = ()
    inner: tuple[Node, ...] = ()
    work: int = 0


class Constants:
    """Values of nodes that depend on weights alone, in float64."""

    def __init__(self, captured: Captured) -> None:
        self.module = captured.module
        self.open: set[Node] = set()
        for node in captured.nodes:
            if node.op == "placeholder" or self.open.intersection(node.all_input_nodes):
                self.open.add(node)
        self.known: dict[Node, Any] = {}

    def __call__(self, value: Any) -> Tensor | None:
        """The tensor behind a node or a number; None if it depends on the inputs."""
        if isinstance(value, bool) or value is None:
            return None
        if isinstance(value, int | float):
            return torch.tensor(float(value), dtype=torch.float64)
        if not isinstance(value, Node) or value in self.open:
            return None
        found = self._value(value)
        return found.detach().double() if isinstance(found, Tensor) else None

    def _value(self, node: Node) -> Any:
        if node not in self.known:
            if node.op == "get_attr":
                self.known[node] = attribute(self.module, str(node.target))
            else:
                assert callable(node.target)
                args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), self._value)
                with torch.no_grad():
                    self.known[node] = node.target(*args, **kwargs)
        return self.known[node]


def attribute(module: GraphModule, path: str) -> Any:
    """What a `get_attr` node reads."""
    value: Any = module
    for part in path.split("."):
        value = getattr(value, part)
    return value


def places(node: Node, axis: int) -> int:
    """How many vectors of features the node holds on the example batch."""
    shape = node.meta["val"].shape
    sizes = [int(size.node.hint) if isinstance(size, torch.SymInt) else size for size in shape]
    whole = 1
    for size in sizes:
        whole *= size
    return whole // max(1, sizes[axis])


def width_of(node: Node, axis: int) -> int | None:
    """The number of features, None if it is not fixed."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.ndim == 0:
        return None
    size = value.shape[axis or LAST]
    return size if isinstance(size, int) else None


def sizes_of(node: Node) -> list[int] | None:
    """All sizes but the first, None if one is not fixed."""
    sizes = list(node.meta["val"].shape[1:])
    return sizes if all(isinstance(one, int) for one in sizes) else None


def steps_of(captured: Captured) -> dict[Node, Step]:
    """Every node that is affine in the features of one other, by node, in the graph's order."""
    data, constants = depending(captured), Constants(captured)
    found: dict[Node, Step] = {}
    for node in captured.nodes:
        if node.op != "call_function" or node not in data or not is_float(node):
            continue
        step = _single(node, data, constants) or _branches(node, data, found)
        if step is not None:
            found[node] = step
            for inner in step.inner:
                found.pop(inner, None)
    return found


def _single(node: Node, data: set[Node], constants: Constants) -> Step | None:
    """A node with one argument from the data."""
    given = arguments(node)
    touched = [one for one in node.all_input_nodes if one in data]
    name = op_name(node)
    if name == "getitem" and touched and op_name(touched[0]) in NORMS and node.args[1] == 0:
        inner = touched[0]
        parents = [one for one in inner.all_input_nodes if one in data]
        return _norm(node, arguments(inner), parents, constants)
    if len(touched) != 1 or not is_float(touched[0]):
        return None
    parent = touched[0]
    if name in NORMS and is_float(node):
        return _norm(node, given, touched, constants)
    if name == "linear" or name in CONVOLUTIONS:
        return _contraction(node, name, given, parent, constants)
    if name in ("matmul", "mm") and given.get("self") is parent:
        weight = constants(given.get("other", given.get("mat2")))
        if weight is None or weight.ndim != 2:
            return None
        return _step(node, parent, Dense(weight.T.contiguous()), LAST)
    if name in SAME or _is_idle(name, given, node, constants):
        return _step(node, parent, Diagonal(torch.ones(1, dtype=torch.float64)), ANY)
    if name in VIEWS:
        return _view(node, parent) or _flatten(node, parent)
    return _entrywise(node, name, given, parent, constants)


def _step(node: Node, parent: Node, form: Form, axis: int) -> Step | None:
    width = width_of(node, axis)
    if width is None or width_of(parent, axis) is None:
        return None
    work = operations(form, width) * places(node, axis or LAST)
    return Step(node, parent, form, axis, work=work)


def _is_idle(name: str, given: dict[str, Any], node: Node, constants: Constants) -> bool:
    """What does nothing: dropout in eval mode, a leaky ReLU of slope 1, a cast to the same type."""
    if name == "dropout":
        return given.get("train") is False
    if name == "leaky_relu":
        return bool(given.get("negative_slope") == 1)
    if name in ("prelu", "_prelu_kernel"):
        weight = constants(given.get("weight"))
        return weight is not None and bool((weight == 1).all())
    if name in ("_to_copy", "to"):
        parent = node.all_input_nodes[0]
        return bool(parent.meta["val"].dtype == node.meta["val"].dtype)
    return False


def _contraction(
    node: Node, name: str, given: dict[str, Any], parent: Node, constants: Constants
) -> Step | None:
    weight, bias = constants(given["weight"]), given.get("bias")
    shift = constants(bias)
    if given["input"] is not parent or weight is None or (bias is not None and shift is None):
        return None
    if name == "linear":
        return _step(node, parent, Dense(weight, shift), LAST) if weight.ndim == 2 else None
    n = weight.ndim - 2
    if parent.meta["val"].ndim != n + 2 or isinstance(given.get("padding", 0), str):
        return None
    stride, padding, dilation = (
        _each(given.get(key, default), n)
        for key, default in (("stride", 1), ("padding", 0), ("dilation", 1))
    )
    groups = given.get("groups", 1)
    is_pointwise = weight[0, 0].numel() == 1 and set(stride) == {1} and not any(padding)
    if is_pointwise and groups == 1:
        return _step(node, parent, Dense(weight.flatten(1), shift), CHANNELS)
    form = Convolution(
        weight, shift, stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    return _step(node, parent, form, CHANNELS)


def _each(value: int | Sequence[int], n: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * n if len(values) == 1 else values


def _norm(
    node: Node, given: dict[str, Any], touched: list[Node], constants: Constants
) -> Step | None:
    """BatchNorm in eval mode."""
    mean, variance = (
        constants(given.get(one, given.get(other)))
        for one, other in (("running_mean", "running_mean"), ("running_var", "running_var"))
    )
    is_trained = given.get("training") is True
    if len(touched) != 1 or mean is None or variance is None or is_trained:
        return None
    scale = (variance + given["eps"]).rsqrt()
    weight, bias = constants(given.get("weight")), constants(given.get("bias"))
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    axis = LAST if node.meta["val"].ndim == 2 else CHANNELS
    return _step(node, touched[0], Diagonal(scale, shift), axis)


def _view(node: Node, parent: Node) -> Step | None:
    """A view that keeps the last dimension, and its place, as it is."""
    width = width_of(node, LAST)
    if width is None or width != width_of(parent, LAST):
        return None
    if op_name(node) == "unsqueeze":
        dim = arguments(node)["dim"]
        if dim in (-1, node.meta["val"].ndim - 1):
            return None
    form = Diagonal(torch.ones(1, dtype=torch.float64))
    return Step(node, parent, form, LAST, views=(node,))


def _flatten(node: Node, parent: Node) -> Step | None:
    """A view of each row's channels and places as one axis."""
    before, after = parent.meta["val"].shape, node.meta["val"].shape
    sizes = sizes_of(parent)
    if len(before) < 3 or len(after) != 2 or sizes is None or str(before[0]) != str(after[0]):
        return None
    assert after[1] == math.prod(sizes), "a view keeps the number of entries"
    return Step(node, parent, Flat(torch.ones((), dtype=torch.float64)), LAST)


def _entrywise(
    node: Node, name: str, given: dict[str, Any], parent: Node, constants: Constants
) -> Step | None:
    """Products and sums with constants, and a change of sign."""
    one = torch.ones(1, dtype=torch.float64)
    if name == "neg":
        return _step(node, parent, Diagonal(-one), ANY)
    if name not in ("mul", "div", "add", "sub", "rsub") or given.get("rounding_mode") is not None:
        return None
    if node.meta["val"].dtype != parent.meta["val"].dtype:
        return None
    is_first = given["self"] is parent
    other = given["other"] if is_first else given["self"]
    if other is parent or (name == "div" and not is_first):
        return None
    value = constants(other)
    found = None if value is None else _features(value, node, parent)
    if found is None:
        return None
    value, axis = found
    if name == "mul":
        return _step(node, parent, Diagonal(value), axis)
    if name == "div":
        return _step(node, parent, Diagonal(1 / value), axis)
    alpha = float(given.get("alpha", 1))
    ours, theirs = (1.0, alpha) if is_first else (alpha, 1.0)
    if name == "sub":
        ours, theirs = (1.0, -alpha) if is_first else (-alpha, 1.0)
    elif name == "rsub":
        ours, theirs = (-alpha, 1.0) if is_first else (1.0, -alpha)
    return _step(node, parent, Diagonal(ours * one, theirs * value), axis)


def _features(value: Tensor, node: Node, parent: Node) -> tuple[Tensor, int] | None:
    """A constant as one number, or one a feature, and the axis; None where it has other places."""
    shape, before = node.meta["val"].shape, parent.meta["val"].shape
    if len(shape) != len(before) or any(
        str(a) != str(b) for a, b in zip(shape, before, strict=True)
    ):
        return None  # the constant spreads its argument
    if value.numel() == 1:
        return value.reshape(1), ANY
    sizes = [1] * (len(shape) - value.ndim) + list(value.shape)
    for axis in (LAST, CHANNELS):
        is_channels = axis == CHANNELS and len(shape) > 2
        if axis == CHANNELS and not is_channels:
            continue
        if sizes[axis] == value.numel() == width_of(node, axis):
            return value.flatten(), axis
    return None


def _branches(node: Node, data: set[Node], found: dict[Node, Step]) -> Step | None:
    """A sum of two ways from one node, where nothing else reads what lies on them."""
    given = arguments(node)
    name = op_name(node)
    if name not in ("add", "sub") or given.get("alpha", 1) != 1:
        return None
    one, other = given.get("self"), given.get("other")
    if not isinstance(one, Node) or not isinstance(other, Node) or not {one, other} <= data:
        return None
    shapes = [str(tuple(end.meta["val"].shape)) for end in (one, other, node)]
    if len(set(shapes)) > 1:
        return None
    ways = [_way(end, found) for end in (one, other)]
    common = next((step for step in ways[0] if step in ways[1]), None)
    if common is None:
        return None
    paths = [way[: way.index(common)] for way in ways]
    inner = {step for path in paths for step in path}
    inner |= {deep for step in inner for deep in found[step].inner}
    if any(user is not node and user not in inner for step in inner for user in step.users):
        return None
    axes = {found[step].axis for path in paths for step in path} - {ANY}
    if len(axes) > 1 or any(found[step].views for path in paths for step in path):
        return None
    axis = axes.pop() if axes else ANY
    forms = [path_form([found[step] for step in reversed(path)]) for path in paths]
    width = width_of(node, axis)
    if width is None or forms[0] is None or forms[1] is None:
        return None
    form = summed(forms[0], forms[1], 1.0 if name == "add" else -1.0, width)
    if form is None:
        return None
    here = places(node, axis or LAST)
    work = sum(found[step].work for path in paths for step in path) + width * here
    if operations(form, width) * here >= work:
        return None
    return Step(node, common, form, axis, inner=tuple(sorted(inner)), work=work)


def _way(node: Node, found: dict[Node, Step]) -> list[Node]:
    """The node and all that it is affine in, nearest first."""
    way = [node]
    while way[-1] in found:
        way.append(found[way[-1]].parent)
    return way


def path_form(steps: Sequence[Step]) -> Form | None:
    """The product of steps, first to last; the identity if there are none."""
    whole: Form | None = Diagonal(torch.ones(1, dtype=torch.float64))
    for step in steps:
        assert whole is not None
        whole = after(step.form, whole)
        if whole is None:
            return None
    return whole
