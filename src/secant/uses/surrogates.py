"""The form of the affine stand-in for one operation of a graph.

Holds: ``stand_for`` and its result ``Stand``; ``Arranged``, an operation's value as rows to fit,
with the ways there (``counted``, ``flat``) and back (``unflat``).
May import: torch, ``secant.maps``.

An operation's value becomes rows (units, and positions of token models) of groups, each with an
affine map of its own, from p regressors to m outputs. The regressors are affine in what the
operation reads, so that the stand-in is affine in the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from secant.maps.affinity import CONTRACTIONS, Operation, arguments, op_name
from secant.maps.graph import LENGTH, ROW, STATIC, UNKNOWN, Captured

WIDEST = 1024
"""Most regressors of one map: its sums take 8 p² bytes, its solution p³ products."""

_ROW_WISE = """
    softmax _softmax log_softmax _log_softmax layer_norm native_layer_norm rms_norm _fused_rms_norm
    gru lstm rnn_tanh rnn_relu cumprod cummax cummin logcumsumexp
"""
ROW_WISE = frozenset(_ROW_WISE.split())
_REDUCING = "amax amin max min logsumexp linalg_vector_norm norm var std prod"
REDUCING = frozenset(_REDUCING.split())

ENTRY = "each entry from itself"
ENTRIES = "each entry from those it is made of"
WHOLE_ROW = "each row from the whole row"
ENTRY_MEAN = "each entry from itself and its row's mean"
HEAD = "each head's row from its own query, key and value and the mean of the values it may see"
WINDOW = "each entry from its window"
LINEARISED = "each entry from the product with either factor held at its mean"


class Arranged(NamedTuple):
    """A value and its regressors as (*lead, m) and (*lead, p), and the way back."""

    y: Tensor
    x: Tensor
    lead: list[str]
    is_row: list[bool]
    restore: Callable[[Tensor], Tensor]


Arrange = Callable[[dict[Node, Any]], Arranged]


@dataclass(frozen=True)
class Stand:
    """How an operation's stand-in is built; without `arrange`, `how` says why there is none."""

    how: str
    arrange: Arrange | None


def stand_for(captured: Captured, operation: Operation) -> Stand:
    """The stand-in's form: see the texts of this module, one of which is `how`.

    Gives a `Stand` without a fit, and the reason as `how`, for an operation that reads no
    floating data, whose padding cannot be told apart, or whose shapes say nothing of which
    entry is made of which.
    """
    layout = captured.layout(operation.node)
    if UNKNOWN in layout or layout.count(ROW) != 1:
        return Stand("its rows cannot be told apart from padding", None)
    if not operation.inputs:
        return Stand("it reads no floating data", None)
    name, shape = op_name(operation.call), operation.node.meta["val"].shape
    if operation.is_module:
        return _entrywise(operation, layout) if operation.is_entrywise else _row_wise(
            operation, layout, 1
        )  # fmt: skip
    given = arguments(operation.call)
    if name == "scaled_dot_product_attention":
        return _attention(captured, operation, layout)
    if name in ROW_WISE:
        return _row_wise(operation, layout, len(given.get("normalized_shape", [0])), given)
    if name == "group_norm":
        return Stand(ENTRY_MEAN, _group_norm(operation, layout, int(given["num_groups"])))
    if name == "max_pool2d" and not given.get("ceil_mode") and len(shape) == 4:
        return Stand(WINDOW, _max_pool(operation, layout, given))
    if name in REDUCING and "other" not in given:
        return _reducing(captured, operation, layout, given)
    if name in CONTRACTIONS:
        return _linearised(captured, operation, layout)
    return _entrywise(operation, layout)


def by_entry(layout: list[str], y: Tensor, columns: list[Tensor]) -> Arranged:
    """Entries of open dimensions are rows, the others groups with a map each."""
    x = torch.stack([column.expand(y.shape) for column in columns], -1)
    is_row = [kind != STATIC for kind in layout]
    return Arranged(y.unsqueeze(-1), x, layout, is_row, lambda value: value.squeeze(-1))


def _entrywise(operation: Operation, layout: list[str]) -> Stand:
    shape = list(operation.node.meta["val"].shape)
    if op_name(operation.call) == "glu":
        dim = int(arguments(operation.call).get("dim", -1))

        def halves(values: dict[Node, Any]) -> Arranged:
            parts = values[operation.inputs[0]].chunk(2, dim)
            return by_entry(layout, values[operation.node], list(parts))

        return Stand(ENTRIES, halves)
    for node in operation.inputs:
        sizes = list(node.meta["val"].shape)
        aligned = zip(reversed(sizes), reversed(shape), strict=False)
        if len(sizes) > len(shape) or any(a != 1 and str(a) != str(b) for a, b in aligned):
            return Stand("its shapes do not say which entry is made of which", None)

    def arrange(values: dict[Node, Any]) -> Arranged:
        return by_entry(layout, values[operation.node], [values[n] for n in operation.inputs])

    return Stand(ENTRY if len(operation.inputs) == 1 else ENTRIES, arrange)


def _row_wise(
    operation: Operation, layout: list[str], count: int, given: dict[str, Any] | None = None
) -> Stand:
    """Operations over the last `count` dimensions, or over `dim`."""
    (source, *others) = operation.inputs
    sizes = source.meta["val"].shape
    dim = int((given or {}).get("dim", -1)) % len(layout)
    if count > 1:
        dim = len(layout) - 1
    mixed = set(range(len(layout) - count, len(layout))) if count > 1 else {dim}
    lead = [kind for i, kind in enumerate(layout) if i not in mixed]
    same = len(sizes) == len(layout) and all(
        str(sizes[i]) == str(operation.node.meta["val"].shape[i])
        for i in range(len(layout))
        if i not in mixed
    )
    if others or not same:
        return Stand("its shapes do not say which entry is made of which", None)
    if any(layout[i] != STATIC for i in mixed):
        return _entrywise(operation, layout)
    width = math.prod(int(sizes[i]) for i in mixed)
    dims = sorted(mixed)
    if width > WIDEST and list(sizes) != list(operation.node.meta["val"].shape):
        return Stand("its rows are wider than a fit can hold", None)

    def rows(value: Tensor) -> Tensor:
        return value.movedim(dims, list(range(-count, 0))).flatten(-count)

    def arrange(values: dict[Node, Any]) -> Arranged:
        x, y = values[source], values[operation.node]
        if width > WIDEST:
            return by_entry(layout, y, [x, x.mean(dims, keepdim=True)])

        def restore(value: Tensor) -> Tensor:
            shape = [y.shape[i] for i in dims]
            return value.reshape(*value.shape[:-1], *shape).movedim(list(range(-count, 0)), dims)

        return Arranged(rows(y), rows(x), lead, [True] * len(lead), restore)

    return Stand(ENTRY_MEAN if width > WIDEST else WHOLE_ROW, arrange)


def _attention(captured: Captured, operation: Operation, layout: list[str]) -> Stand:
    """Regressors of a head's row; the mean of values is attention itself at a zero query."""
    call = operation.call
    given = arguments(call)
    mask = given.get("attn_mask")
    if isinstance(mask, Node) and mask in operation.inputs:
        return Stand("its mask depends on the data", None)
    query, key, value = (given[part] for part in ("query", "key", "value"))
    sizes = [str(node.meta["val"].shape[-2]) for node in (query, key)]
    is_self = sizes[0] == sizes[1]
    heads = operation.node.meta["val"].shape[-3] if len(layout) > 3 else 1

    def aligned(part: Tensor) -> Tensor:
        # Grouped queries share keys and values: each head reads a copy.
        if len(layout) > 3 and part.shape[-3] != heads:
            return part.repeat_interleave(int(heads) // part.shape[-3], -3)
        return part

    def arrange(values: dict[Node, Any]) -> Arranged:
        args = list(map_arg(call.args, values.__getitem__))
        kwargs = map_arg(call.kwargs, values.__getitem__)
        silent = torch.zeros_like(values[query])
        mean = call.target(silent, *args[1:], **kwargs)  # type: ignore[operator]
        parts = [values[query], mean]
        if is_self:
            parts += [aligned(values[key]), aligned(values[value])]
        is_row = [kind != STATIC for kind in layout[:-2]] + [True]
        x = torch.cat(parts, -1)
        return Arranged(values[operation.node], x, layout[:-1], is_row, lambda v: v)

    return Stand(HEAD, arrange)


def _group_norm(operation: Operation, layout: list[str], groups: int) -> Arrange:
    def arrange(values: dict[Node, Any]) -> Arranged:
        x = values[operation.inputs[0]]
        mean = x.reshape(x.shape[0], groups, -1).mean(2)
        mean = mean.repeat_interleave(x.shape[1] // groups, 1)
        mean = mean.reshape(*mean.shape, *[1] * (x.ndim - 2))
        return by_entry(layout, values[operation.node], [x, mean])

    return arrange


def _max_pool(operation: Operation, layout: list[str], given: dict[str, Any]) -> Arrange:
    kernel = given["kernel_size"]
    places = {
        "stride": given.get("stride") or kernel,
        "padding": given.get("padding", 0),
        "dilation": given.get("dilation", 1),
    }

    def arrange(values: dict[Node, Any]) -> Arranged:
        x, y = values[operation.inputs[0]], values[operation.node]
        windows = functional.unfold(x, kernel, **places)
        windows = windows.reshape(len(x), x.shape[1], -1, *y.shape[-2:])
        return by_entry(layout, y, list(windows.unbind(2)))

    return arrange


def _reducing(
    captured: Captured, operation: Operation, layout: list[str], given: dict[str, Any]
) -> Stand:
    (source,) = operation.inputs
    dims = given.get("dim")
    if dims is None or dims == []:
        return Stand("it mixes the units of a batch", None)
    before = captured.layout(source)
    chosen = sorted(int(d) % len(before) for d in ([dims] if isinstance(dims, int) else dims))
    sizes = [source.meta["val"].shape[d] for d in chosen]
    if any(before[d] != STATIC for d in chosen) or math.prod(map(int, sizes)) > WIDEST:
        return Stand("it reduces more entries than a fit can hold", None)
    lead = [kind for d, kind in enumerate(before) if d not in chosen]
    ends = list(range(-len(chosen), 0))

    def arrange(values: dict[Node, Any]) -> Arranged:
        y = values[operation.node]
        x = values[source].movedim(chosen, ends).flatten(-len(chosen))
        is_row = [kind != STATIC for kind in lead]
        return Arranged(y.reshape(*x.shape[:-1], 1), x, lead, is_row, lambda v: v.reshape(y.shape))

    return Stand(WHOLE_ROW, arrange)


def _linearised(captured: Captured, operation: Operation, layout: list[str]) -> Stand:
    """A product of two factors near their means: its part in one, and its part in the other.

    The means are the first batch's: any fixed factor gives a regressor that is affine.
    """
    call = operation.call
    layouts = {node: captured.layout(node) for node in operation.inputs}
    if any(kind not in (ROW, STATIC) for kinds in layouts.values() for kind in kinds):
        return Stand("its factors change size with the text", None)
    held: dict[Node, Tensor] = {}
    factors = [n for n in tree_leaves((call.args, call.kwargs)) if n in layouts]

    def arrange(values: dict[Node, Any]) -> Arranged:
        columns = []
        for place, factor in enumerate(factors):
            if factor not in held:
                rows = [d for d, kind in enumerate(layouts[factor]) if kind == ROW]
                held[factor] = values[factor].mean(rows, keepdim=True)
            # By its place among the arguments: x times x has two factors, one node.
            seen = iter(range(len(factors)))

            def value(node: Node, place: int = place, seen: Iterator[int] = seen) -> Any:
                if node in layouts and next(seen) == place:
                    return held[node].expand_as(values[node])
                return values[node]

            args, kwargs = map_arg(call.args, value), map_arg(call.kwargs, value)
            columns.append(call.target(*args, **kwargs))  # type: ignore[operator]
        return by_entry(layout, values[operation.node], columns)

    return Stand(LINEARISED, arrange)


def valid_rows(arranged: Arranged, mask: Tensor | None) -> Tensor | None:
    """Which rows count, as (rows,) in `flat`'s order; None where all do."""
    if mask is None or LENGTH not in arranged.lead:
        return None
    kinds = [k for k, is_row in zip(arranged.lead, arranged.is_row, strict=True) if is_row]
    sizes = [n for n, is_row in zip(arranged.y.shape, arranged.is_row, strict=False) if is_row]
    valid = torch.ones(sizes, dtype=torch.bool)
    batch = kinds.index(ROW)
    for place, kind in enumerate(kinds):
        if kind == LENGTH:
            shape = [1] * len(kinds)
            shape[batch], shape[place] = mask.shape
            valid = valid & (mask if batch < place else mask.T).reshape(shape)
    return valid.flatten()


def flat(arranged: Arranged, value: Tensor) -> Tensor:
    """(*lead, width) as (groups, rows, width)."""
    is_row = arranged.is_row
    order = [i for i, r in enumerate(is_row) if not r] + [i for i, r in enumerate(is_row) if r]
    groups = math.prod(value.shape[i] for i, r in enumerate(is_row) if not r)
    return value.permute(*order, -1).reshape(groups, -1, value.shape[-1])


def unflat(arranged: Arranged, value: Tensor) -> Tensor:
    """The way back from (groups, rows, width) to the operation's own shape."""
    is_row = arranged.is_row
    order = [i for i, r in enumerate(is_row) if not r] + [i for i, r in enumerate(is_row) if r]
    lead = [arranged.y.shape[i] for i in order]
    back = [order.index(i) for i in range(len(order))]
    return arranged.restore(value.reshape(*lead, value.shape[-1]).permute(*back, -1))


def counted(arranged: Arranged, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """x (groups, rows, p) and y (groups, rows, m) in float64, without padding."""
    x, y = flat(arranged, arranged.x), flat(arranged, arranged.y)
    valid = valid_rows(arranged, mask)
    if valid is not None:
        x, y = x[:, valid], y[:, valid]
    return x.double(), y.double()
