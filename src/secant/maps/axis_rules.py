"""What each operation of an exported graph does to the axes of its tensors.

Holds: ``Walk``, which goes through a graph node by node, and ``hint``.
May import: torch, ``secant.maps.affinity``, ``secant.maps.axes``.

A rule ties axes that the operation brings together and pins those along which order counts.
An operation without a rule pins all that it reads: what is not known to be symmetric is not.
Sums inside an operation (a norm's, a softmax's) are recorded as tensors of their own, because
they say which axes may not depend on the one that is summed over.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from secant.maps.affinity import arguments, op_name
from secant.maps.axes import Axes, Form

Arguments = dict[str, Any]
Found = Form | list[Form]
Rule = Callable[["Walk", Node, Arguments], Found]


class Walk:
    """The forms of a graph's tensors, as far as it has been walked.

    `forms` has each node's form, one for each tensor of those that give several; `sums` are the
    forms of tensors inside operations.
    """

    def __init__(self, axes: Axes) -> None:
        self.axes = axes
        self.forms: dict[Node, Found] = {}
        self.sums: list[Form] = []

    def form(self, value: Any) -> Form:
        """The form of a node that is one tensor; of a number, that of a scalar."""
        found = self.forms[value] if isinstance(value, Node) else Form((), {(): ()})
        assert isinstance(found, Form)
        return found

    def visit(self, node: Node) -> None:
        """Give the node its form."""
        if node.target is operator.getitem:
            several, which = self.forms.get(node.args[0]), node.args[1]  # type: ignore[arg-type]
            if isinstance(several, list):
                self.forms[node] = several[which]  # type: ignore[index]
            return
        if not _shapes(node):
            return  # it checks something, or gives a number
        name = op_name(node)
        rule = RULES.get(name)
        is_pointwise = torch.Tag.pointwise in getattr(node.target, "tags", ())
        if rule is None and is_pointwise and len(_shapes(node)) == 1:
            rule = _entrywise
        found = self._unknown(node) if rule is None else rule(self, node, _given(node))
        shapes = [form.shape for form in (found if isinstance(found, list) else [found])]
        assert shapes == _shapes(node), f"{name}: {shapes} for {_shapes(node)}"
        self.forms[node] = found

    def _unknown(self, node: Node) -> Found:
        why = f"`{op_name(node)}` has no rule"
        for parent in node.all_input_nodes:
            for form in _listed(self.forms.get(parent)):
                self.axes.pin_form(form, why)
        return _as_given(node, [self.axes.form(shape, why=why) for shape in _shapes(node)])

    def entrywise(self, forms: Sequence[Form]) -> Form:
        """Dimensions are met from the last on."""
        rank = max(len(form.dims) for form in forms)
        names = [str(i) for i in range(rank)]
        return self.axes.met([(form, names[rank - len(form.dims) :]) for form in forms], names)

    def summed(self, form: Form, dims: Sequence[int]) -> Form:
        """Without these dimensions, recorded."""
        names = [str(i) for i in range(len(form.dims))]
        found = self.axes.met([(form, names)], [n for i, n in enumerate(names) if i not in dims])
        self.sums.append(found)
        return found

    def optional(self, given: Arguments, *names: str) -> list[Form]:
        """The forms of those arguments that are tensors."""
        return [self.form(given[name]) for name in names if isinstance(given.get(name), Node)]


def _listed(found: Found | None) -> list[Form]:
    return found if isinstance(found, list) else [] if found is None else [found]


def _as_given(node: Node, forms: list[Form]) -> Found:
    return forms[0] if isinstance(node.meta.get("val"), Tensor) else forms


def _shapes(node: Node) -> list[tuple[int, ...]]:
    values = [v for v in tree_leaves(node.meta.get("val")) if isinstance(v, Tensor)]
    return [tuple(hint(size) for size in value.shape) for value in values]


def _given(node: Node) -> Arguments:
    """The node's arguments, open sizes as they are in the example."""

    def plain(parent: Node) -> Any:
        value = parent.meta.get("val")
        return hint(value) if isinstance(value, int | torch.SymInt) else parent

    return {name: map_arg(value, plain) for name, value in arguments(node).items()}


def hint(size: int | torch.SymInt) -> int:
    """A size in the example that the graph was exported with."""
    return int(size.node.hint) if isinstance(size, torch.SymInt) else size


def _entrywise(walk: Walk, node: Node, given: Arguments) -> Found:
    tensors = [leaf for leaf in tree_leaves(list(given.values())) if isinstance(leaf, Node)]
    forms = [walk.form(n) for n in tensors if isinstance(n.meta.get("val"), Tensor)]
    (shape,) = _shapes(node)
    found = walk.entrywise(forms) if forms else walk.axes.form(shape, is_free=True)
    return _broadcast(walk, found, shape)


def _broadcast(walk: Walk, form: Form, shape: tuple[int, ...]) -> Form:
    form = Form(((),) * (len(shape) - len(form.dims)) + form.dims, form.cells)
    for dim, size in enumerate(shape):
        if form.shape[dim] != size:
            form = walk.axes.spread(form, dim, size)
    return form


def _uniform(walk: Walk, node: Node, given: Arguments) -> Found:
    return walk.axes.form(_shapes(node)[0], is_free=True)


def _ordered(walk: Walk, node: Node, given: Arguments) -> Found:
    return walk.axes.form(_shapes(node)[0], why="it counts positions")


def _sum(walk: Walk, node: Node, given: Arguments) -> Found:
    form = walk.form(given["self"])
    dims = _dims(given.get("dim"), len(form.dims))
    found = walk.summed(form, dims)
    if given.get("keepdim"):
        rows = iter(found.dims)
        kept = tuple(() if i in dims else next(rows) for i in range(len(form.dims)))
        found = Form(kept, found.cells)
    return _as_given(node, [found] * len(_shapes(node)))


def _dims(dim: Any, rank: int) -> list[int]:
    """Named dimensions counted from the front; all if none is named."""
    if dim is None or dim == []:
        return list(range(rank))
    return [d % max(rank, 1) for d in ([dim] if isinstance(dim, int) else dim)]


def _softmax(walk: Walk, node: Node, given: Arguments) -> Found:
    form = walk.form(given["self"])
    walk.summed(form, _dims(given["dim"], len(form.dims)))
    return form


def _row_norm(walk: Walk, node: Node, given: Arguments) -> Found:
    form = walk.form(given["input"])
    rank = len(form.dims)
    walk.summed(form, range(rank - len(given["normalized_shape"]), rank))
    return walk.entrywise([form, *walk.optional(given, "weight", "bias")])


def _channel_norm(walk: Walk, node: Node, given: Arguments) -> Found:
    form = walk.form(given["input"])
    names = [str(i) for i in range(len(form.dims))]
    if op_name(node) == "instance_norm":
        walk.summed(form, range(2, len(names)))
    channels = walk.optional(given, "weight", "bias", "running_mean", "running_var")
    found = walk.axes.met([(form, names), *((each, ["1"]) for each in channels)], names)
    # In eval mode the saved statistics that some forms of it give as well are empty.
    rest = [walk.axes.form(shape, why="it is empty") for shape in _shapes(node)[1:]]
    return _as_given(node, [found, *rest])


def _group_norm(walk: Walk, node: Node, given: Arguments) -> Found:
    axes, form, groups = walk.axes, walk.form(given["input"]), given["num_groups"]
    batch, channels, *space = form.shape
    split = (groups, channels // groups)
    form = axes.reshaped(form, (batch, *split, *space))
    walk.summed(form, range(2, len(form.dims)))
    names = [str(i) for i in range(len(form.dims))]
    channel = [
        (axes.reshaped(each, split), ["1", "2"]) for each in walk.optional(given, "weight", "bias")
    ]
    return axes.reshaped(axes.met([(form, names), *channel], names), (batch, channels, *space))


def _product(walk: Walk, left: Form, right: Form) -> Form:
    """As torch.matmul: the last dimension of `left` with the last but one of `right`."""
    rank = max(len(left.dims), len(right.dims))
    names = [f"batch {i}" for i in range(rank)]

    def batch(form: Form) -> list[str]:
        count = max(len(form.dims) - 2, 0)
        return names[len(names) - count :]

    rows = [*batch(left), "row"][-len(left.dims) + 1 :] if len(left.dims) > 1 else []
    columns = ["column"] if len(right.dims) > 1 else []
    out = max(batch(left), batch(right), key=len)
    return walk.axes.met(
        [(left, [*rows, "sum"]), (right, [*batch(right), "sum", *columns])],
        [*out, *rows[-1:], *columns],
    )


def _matmul(walk: Walk, node: Node, given: Arguments) -> Found:
    left, right = (walk.form(value) for value in list(given.values())[:2])
    return _product(walk, left, right)


def _addmm(walk: Walk, node: Node, given: Arguments) -> Found:
    added, left, right = (walk.form(value) for value in list(given.values())[:3])
    return walk.entrywise([added, _product(walk, left, right)])


def _linear(walk: Walk, node: Node, given: Arguments) -> Found:
    form, weight = walk.form(given["input"]), walk.form(given["weight"])
    names = [str(i) for i in range(len(form.dims) - 1)]
    out = ["out"] if len(weight.dims) == 2 else []
    bias = [(each, out) for each in walk.optional(given, "bias")]
    return walk.axes.met([(form, [*names, "in"]), (weight, [*out, "in"]), *bias], [*names, *out])


def _einsum(walk: Walk, node: Node, given: Arguments) -> Found:
    equation, tensors = given["equation"].replace(" ", ""), given["tensors"]
    left, arrow, out = equation.partition("->")
    rows = left.split(",")
    if "." in equation or not arrow or any(len(set(row)) < len(row) for row in rows):
        return walk._unknown(node)
    parts = [(walk.form(n), list(row)) for n, row in zip(tensors, rows, strict=True)]
    return walk.axes.met(parts, list(out))


def _convolution(walk: Walk, node: Node, given: Arguments) -> Found:
    axes, form, weight = walk.axes, walk.form(given["input"]), walk.form(given["weight"])
    why, name = "a convolution slides along it", op_name(node)
    is_transposed = given.get("transposed", name.startswith("conv_transpose"))
    groups, (shape,) = given.get("groups", 1), _shapes(node)
    space, kernel = len(weight.dims) - 2, weight.shape[2:]
    first = len(form.dims) - space
    form = axes.replaced(form, first, len(form.dims), shape[len(shape) - space :], why)
    weight = axes.replaced(weight, 2, space + 2, kernel, why)
    channels, out = form.shape[first - 1], shape[first - 1]
    sizes = (channels, out) if is_transposed else (out, channels)
    lead, other = ("in", "out") if is_transposed else ("out", "in")
    weight = axes.reshaped(weight, (groups, sizes[0] // groups, sizes[1] // groups, *kernel))
    rest, places = form.shape[: first - 1], form.shape[first:]
    form = axes.reshaped(form, (*rest, groups, channels // groups, *places))
    before = [f"batch {i}" for i in range(len(rest))]
    after, taps = [f"place {i}" for i in range(space)], [f"tap {i}" for i in range(space)]
    bias = [
        (axes.reshaped(each, (groups, out // groups)), ["group", "out"])
        for each in walk.optional(given, "bias")
    ]
    found = axes.met(
        [(form, [*before, "group", "in", *after]), (weight, ["group", lead, other, *taps]), *bias],
        [*before, "group", "out", *after],
    )
    return axes.reshaped(found, shape)


def _attention(walk: Walk, node: Node, given: Arguments) -> Found:
    axes = walk.axes
    query, key, value = (walk.form(given[name]) for name in ("query", "key", "value"))
    mask = walk.optional(given, "attn_mask")
    (shape,) = _shapes(node)
    if given.get("enable_gqa"):
        heads, groups = query.shape[-3], key.shape[-3]
        *rest, _, length, width = query.shape
        query = axes.reshaped(query, (*rest, groups, heads // groups, length, width))
        key, value = (
            axes.reshaped(each, (*each.shape[:-2], 1, *each.shape[-2:])) for each in (key, value)
        )
        # One dimension of heads in a mask stands for two; a mask for all heads has size 1 there.
        mask = [
            axes.reshaped(
                each,
                (*each.shape[:-3], *((groups, heads // groups) if each.shape[-3] > 1 else (1, 1)),
                 *each.shape[-2:]),
            )
            if len(each.dims) > 2 else each
            for each in mask
        ]  # fmt: skip
    batch = [f"batch {i}" for i in range(len(query.dims) - 2)]

    def names(form: Form, *last: str) -> tuple[Form, list[str]]:
        return form, [*batch[len(batch) - len(form.dims) + 2 :], *last]

    scores = axes.met(
        [names(query, "query", "width"), names(key, "key", "width"),
         *(names(each, "query", "key") for each in mask)],
        [*batch, "query", "key"],
    )  # fmt: skip
    if given.get("is_causal"):
        rank, sizes = len(scores.dims), scores.shape[-2:]
        scores = axes.replaced(scores, rank - 2, rank, sizes, "attention is causal along it")
    walk.sums.append(scores)
    walk.summed(scores, [len(scores.dims) - 1])
    found = axes.met(
        [(scores, [*batch, "query", "key"]), names(value, "key", "width")],
        [*batch, "query", "width"],
    )
    return axes.reshaped(found, shape)


def _embedding(walk: Walk, node: Node, given: Arguments) -> Found:
    weight, index = walk.form(given["weight"]), walk.form(given["indices"])
    why = "its rows are looked up by number"
    walk.axes.pin_form(index, why)
    row = walk.axes.replaced(weight, 0, 1, (), why)
    names = [str(i) for i in range(len(index.dims))]
    return walk.axes.met([(index, names), (row, ["width"])], [*names, "width"])


def _view(walk: Walk, node: Node, given: Arguments) -> Found:
    return walk.axes.reshaped(walk.form(given["self"]), _shapes(node)[0])


def _same(walk: Walk, node: Node, given: Arguments) -> Found:
    return walk.form(next(iter(given.values())))


def _transpose(walk: Walk, node: Node, given: Arguments) -> Found:
    form, name = walk.form(given["self"]), op_name(node)
    order = list(range(len(form.dims)))
    if name == "permute":
        order = _dims(given["dims"], len(order)) if order else []
    elif name in ("t", "numpy_T"):
        order.reverse()
    elif len(order) > 1:
        swapped = [v for key, v in given.items() if key.startswith(("dim", "axis"))]
        one, other = (-2, -1) if name == "mT" else swapped
        order[one], order[other] = order[other], order[one]
    return walk.axes.permuted(form, order)


def _movedim(walk: Walk, node: Node, given: Arguments) -> Found:
    form = walk.form(given["self"])
    rank = len(form.dims)
    source, target = (_dims(given[name], rank) for name in ("source", "destination"))
    rest = iter(dim for dim in range(rank) if dim not in source)
    moved = dict(zip(target, source, strict=True))
    order = [moved[place] if place in moved else next(rest) for place in range(rank)]
    return walk.axes.permuted(form, order)


def _expand(walk: Walk, node: Node, given: Arguments) -> Found:
    return _broadcast(walk, walk.form(given["self"]), _shapes(node)[0])


def _repeat(walk: Walk, node: Node, given: Arguments) -> Found:
    """Whole copies one after the other, or of each entry, as a dimension of their own."""
    axes, form = walk.axes, walk.form(given["self"])
    (shape,) = _shapes(node)
    if op_name(node) == "repeat":
        form = Form(((),) * (len(shape) - len(form.dims)) + form.dims, form.cells)
        for dim, times in reversed(list(enumerate(given["repeats"]))):
            if times > 1:
                form = Form((*form.dims[:dim], (), *form.dims[dim:]), form.cells)
                form = axes.spread(form, dim, times)
    elif isinstance(given["repeats"], int) and given.get("dim") is not None:
        dim = given["dim"] % len(form.dims)
        form = Form((*form.dims[: dim + 1], (), *form.dims[dim + 1 :]), form.cells)
        if given["repeats"] > 1:
            form = axes.spread(form, dim + 1, given["repeats"])
    else:
        return walk._unknown(node)
    return axes.reshaped(form, shape)


def _slice(walk: Walk, node: Node, given: Arguments) -> Found:
    form, source = walk.form(given["self"]), given["self"]
    dim, low, high, step = _range(node, form)
    if step != 1:
        return walk.axes.replaced(form, dim, dim + 1, (_shapes(node)[0][dim],), "it is strided")
    # Where entries are left unread, how many are read may be the length of the example.
    read = [
        _range(user, form) for user in source.users
        if op_name(user) in ("slice", "narrow", "select") and user.args[0] is source
    ]  # fmt: skip
    seen = {entry for d, start, stop, by in read if d == dim and by == 1
            for entry in range(start, stop)}  # fmt: skip
    is_whole = len(seen) == form.shape[dim]
    why = "part of it is read alone"
    found = walk.axes.sliced(form, dim, low, high, may_ask=is_whole, why=why)
    if op_name(node) == "select":
        found = Form(found.dims[:dim] + found.dims[dim + 1 :], found.cells)
    return found


def _range(node: Node, form: Form) -> tuple[int, int, int, int]:
    """Dimension, first entry, end and step of a slice."""
    given = _given(node)
    dim = given.get("dim", 0) % len(form.dims)
    size = form.shape[dim]
    if op_name(node) == "select":
        low = given["index"] % size
        return dim, low, low + 1, 1
    if op_name(node) == "narrow":
        low = given["start"]
        return dim, low, low + given["length"], 1
    low, high, step = slice(given.get("start"), given.get("end"), given.get("step", 1)).indices(
        size
    )
    return dim, low, max(low, high), step


def _split(walk: Walk, node: Node, given: Arguments) -> Found:
    form = walk.form(given["self"])
    dim = given.get("dim", 0) % len(form.dims)
    parts, low, name = [], 0, op_name(node)
    for shape in _shapes(node):
        high = low + (1 if name == "unbind" else shape[dim])
        part = walk.axes.sliced(form, dim, low, high, may_ask=True, why=f"`{name}` parts it")
        if name == "unbind":
            part = Form(part.dims[:dim] + part.dims[dim + 1 :], part.cells)
        parts.append(part)
        low = high
    return parts


def _cat(walk: Walk, node: Node, given: Arguments) -> Found:
    forms, rank = [walk.form(n) for n in given["tensors"]], len(_shapes(node)[0])
    dim, why = given.get("dim", 0) % rank, f"`{op_name(node)}` puts it beside others"
    if op_name(node) == "stack":
        forms = [Form((*f.dims[:dim], (), *f.dims[dim:]), f.cells) for f in forms]
    # A tensor of shape (0,) may stand among others of any rank.
    return walk.axes.joined([form for form in forms if len(form.dims) == rank], dim, why)


def _spatial(walk: Walk, node: Node, given: Arguments) -> Found:
    """Pooling and resizing: all dimensions after the channels, which the name counts."""
    form = walk.form(next(iter(given.values())))
    name, shapes = op_name(node), _shapes(node)
    count = int(next(c for c in reversed(name) if c.isdigit()))
    first, why = len(form.dims) - count, f"`{name}` goes along it"
    found = walk.axes.replaced(form, first, len(form.dims), shapes[0][first:], why)
    return _as_given(node, [found] * len(shapes))


def _pad(walk: Walk, node: Node, given: Arguments) -> Found:
    form, (shape,) = walk.form(given["self"]), _shapes(node)
    pads, rank = given["pad"], len(shape)
    for place in range(len(pads) // 2):
        dim = rank - 1 - place
        if pads[2 * place] or pads[2 * place + 1]:
            form = walk.axes.replaced(form, dim, dim + 1, (shape[dim],), "it is padded")
    return form


def _along(walk: Walk, node: Node, given: Arguments) -> Found:
    """Order counts along the named dimensions; the others are carried along."""
    form, shapes = walk.form(given["self"]), _shapes(node)
    rank, why = len(form.dims), f"order counts in `{op_name(node)}`"
    dims = _dims(given.get("dim", given.get("dims", -1)), rank)
    is_kept = len(shapes[0]) == rank
    for dim in sorted(dims, reverse=True):
        sizes = (shapes[0][dim],) if is_kept else ()
        form = walk.axes.replaced(form, dim, dim + 1, sizes, why)
    return _as_given(node, [form] * len(shapes))


def _triangle(walk: Walk, node: Node, given: Arguments) -> Found:
    form = walk.form(given["self"])
    rank = len(form.dims)
    return walk.axes.replaced(form, rank - 2, rank, form.shape[-2:], "a triangle is cut from it")


def _index(walk: Walk, node: Node, given: Arguments) -> Found:
    form, indices, (shape,) = walk.form(given["self"]), given["indices"], _shapes(node)
    places = [dim for dim, index in enumerate(indices) if index is not None]
    kinds = [index.meta["val"].dtype for index in indices if index is not None]
    if places != list(range(places[0], places[-1] + 1)) or torch.bool in kinds:
        return walk._unknown(node)
    why = "its entries are looked up by number"
    for index in indices:
        if index is not None:
            walk.axes.pin_form(walk.form(index), why)
    first, last = places[0], places[-1] + 1
    size = len(shape) - (len(form.dims) - len(places))
    return walk.axes.replaced(form, first, last, shape[first : first + size], why)


def _named(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Rule] = {
    **_named(_entrywise, "__and__ __or__ __xor__ where masked_fill dropout feature_dropout rsub"),
    **_named(_same, """alias detach contiguous clone to _to_copy type_as lift_fresh
        lift_fresh_copy identity prelu_ cudnn_contiguous"""),
    **_named(_uniform, """zeros ones full zeros_like ones_like full_like new_zeros new_ones
        new_full scalar_tensor"""),
    **_named(_ordered, "arange linspace eye tril_indices triu_indices"),
    **_named(_sum, """sum mean amax amin var std var_mean std_mean prod any all logsumexp norm
        linalg_vector_norm"""),
    **_named(_softmax, "softmax log_softmax _softmax _log_softmax _safe_softmax"),
    **_named(_row_norm, "layer_norm rms_norm"),
    **_named(_channel_norm, "batch_norm _native_batch_norm_legit_no_training instance_norm"),
    **_named(_group_norm, "group_norm"),
    **_named(_matmul, "matmul mm bmm mv dot"),
    **_named(_addmm, "addmm baddbmm addmv"),
    **_named(_linear, "linear"),
    **_named(_einsum, "einsum"),
    **_named(_convolution, """conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d
        conv_transpose3d"""),
    **_named(_attention, "scaled_dot_product_attention"),
    **_named(_embedding, "embedding"),
    **_named(_view, """view _unsafe_view reshape view_as reshape_as flatten unflatten squeeze
        unsqueeze"""),
    **_named(_transpose, "permute transpose t numpy_T mT swapaxes swapdims"),
    **_named(_movedim, "movedim moveaxis"),
    **_named(_expand, "expand expand_as broadcast_to"),
    **_named(_repeat, "repeat repeat_interleave"),
    **_named(_slice, "slice narrow select"),
    **_named(_split, "split split_with_sizes chunk unbind tensor_split"),
    **_named(_cat, "cat concat stack"),
    **_named(_spatial, """max_pool1d max_pool2d max_pool3d max_pool2d_with_indices avg_pool1d
        avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
        _adaptive_avg_pool2d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
        upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d
        upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d"""),
    **_named(_pad, "pad constant_pad_nd"),
    **_named(_along, """cumsum cumprod flip roll sort argsort topk diff argmax argmin max min
        index_select"""),
    **_named(_triangle, "tril triu"),
    **_named(_index, "index"),
}  # fmt: skip
"""The rule of each operation by its name; pointwise ones need none (torch marks them)."""
