"""Which operations of a graph are affine in the data, and which are not.

Holds: ``operations`` and its result ``Operation``.
May import: torch, ``secant.maps.graph``.

A node depends on the data or only on weights and constants. Data is every floating input, and
the output of an embedding of integer inputs: ids themselves are no points of a vector space,
so the embeddings are where a token model's data starts. Masks are integers, hence constants.
A product is affine while one factor depends on the data. What is not known to be affine is
counted as not affine.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from secant.maps.graph import Captured, is_float

_JOINT = """
    add sub rsub neg sum mean cumsum cat stack hstack vstack concat clone alias detach contiguous
    lift_fresh_copy _to_copy to type_as view _unsafe_view reshape view_as reshape_as flatten
    unflatten permute transpose t movedim swapaxes squeeze unsqueeze expand expand_as broadcast_to
    repeat repeat_interleave tile slice select narrow split split_with_sizes chunk unbind
    tensor_split flip roll rot90 diagonal diag_embed diag tril triu trace unfold im2col col2im
    pixel_shuffle pixel_unshuffle channel_shuffle pad constant_pad_nd reflection_pad1d
    reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d
    avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    _adaptive_avg_pool2d upsample_nearest1d upsample_nearest2d upsample_nearest3d
    upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d
    select_scatter slice_scatter diagonal_scatter positive real getitem as_strided
"""
JOINT = frozenset(_JOINT.split())
"""Affine in all their tensors together."""

SLOTS: dict[str, frozenset[str]] = {
    "div": frozenset({"self"}),
    "true_divide": frozenset({"self"}),
    "_native_batch_norm_legit_no_training": frozenset({"input"}),
    "index": frozenset({"self"}),
    "index_select": frozenset({"self"}),
    "gather": frozenset({"self"}),
    "take_along_dim": frozenset({"self"}),
    "embedding": frozenset({"weight"}),
    "masked_fill": frozenset({"self", "value"}),
    "where": frozenset({"self", "other"}),
    "index_put": frozenset({"self", "values"}),
    "index_add": frozenset({"self", "source"}),
    "index_copy": frozenset({"self", "source"}),
    "scatter": frozenset({"self", "src"}),
    "scatter_add": frozenset({"self", "src"}),
    "lerp": frozenset({"self", "end"}),
    "fill": frozenset({"self", "value"}),
}
"""Affine in these arguments together while the others do not depend on the data."""

FACTORS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "mul": (frozenset({"self", "other"}), frozenset()),
    "matmul": (frozenset({"self", "other"}), frozenset()),
    "mm": (frozenset({"self", "mat2"}), frozenset()),
    "bmm": (frozenset({"self", "mat2"}), frozenset()),
    "mv": (frozenset({"self", "vec"}), frozenset()),
    "dot": (frozenset({"self", "tensor"}), frozenset()),
    "outer": (frozenset({"self", "vec2"}), frozenset()),
    "linear": (frozenset({"input", "weight"}), frozenset({"bias"})),
    "addmm": (frozenset({"mat1", "mat2"}), frozenset({"self"})),
    "addmv": (frozenset({"mat", "vec"}), frozenset({"self"})),
    "baddbmm": (frozenset({"batch1", "batch2"}), frozenset({"self"})),
    "addcmul": (frozenset({"tensor1", "tensor2"}), frozenset({"self"})),
    "einsum": (frozenset({"tensors"}), frozenset()),
    **{
        f"{kind}{n}d": (frozenset({"input", "weight"}), frozenset({"bias"}))
        for kind in ("conv", "conv_transpose")
        for n in (1, 2, 3)
    },
    "convolution": (frozenset({"input", "weight"}), frozenset({"bias"})),
}
"""Factors, of which one may depend on the data, and what is added to their product."""

_SHAPE_ONLY = """
    sym_size zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty
    _assert_tensor_metadata _assert_async
"""
SHAPE_ONLY = frozenset(_SHAPE_ONLY.split())
"""Read a tensor's shape, never its values."""

CONTRACTIONS = frozenset(FACTORS) - {"mul", "addcmul"}
SCALARS = frozenset({"item", "_local_scalar_dense"})


@dataclass(frozen=True)
class Operation:
    """One operation that is not affine in the data.

    `node` is where its value stands, `call` the node that computes it (for one of several
    outputs, the call behind it), `inputs` the floating tensors from the data that it reads.
    """

    node: Node
    call: Node
    name: str
    path: str
    inputs: tuple[Node, ...]
    is_entrywise: bool = False
    is_module: bool = False


class Graded(NamedTuple):
    """The operations that are not affine, and how many that touch data are."""

    operations: list[Operation]
    affine: int


def op_name(node: Node) -> str:
    """`gelu` for `aten.gelu.default`; in-place forms lose their underscore."""
    if node.target is operator.getitem:
        return "getitem"
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return str(getattr(node.target, "__name__", node.target))
    return str(schema.name).split("::")[-1]


def arguments(node: Node) -> dict[str, Any]:
    """The node's arguments by the names of its schema."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {str(i): arg for i, arg in enumerate(node.args)} | dict(node.kwargs)
    names = [argument.name for argument in schema.arguments]
    return dict(zip(names, node.args, strict=False)) | dict(node.kwargs)


def module_path(node: Node) -> str:
    """The path of the module that the node belongs to, empty for the model itself."""
    stack = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return "" if not stack or stack[-1].startswith("_empty") else str(stack[-1])


def parents(node: Node, data: set[Node]) -> list[Node]:
    """The node's arguments that depend on the data."""
    return [parent for parent in node.all_input_nodes if parent in data]


def is_affine(node: Node, data: set[Node]) -> bool:
    """Whether the node is affine in those of its arguments that depend on the data."""
    name = op_name(node)
    touched = [
        key for key, value in arguments(node).items() for n in tree_leaves(value) if n in data
    ]
    if any(isinstance(n.meta.get("val"), Tensor) and not is_float(n) for n in parents(node, data)):
        return False  # a comparison or a rounding to integers lies before it
    if name in JOINT:
        return True
    if name == "div" and arguments(node).get("rounding_mode") is not None:
        return False
    if name in SLOTS:
        return SLOTS[name].issuperset(touched)
    if name in FACTORS:
        factors, addends = FACTORS[name]
        return (factors | addends).issuperset(touched) and sum(t in factors for t in touched) < 2
    return False


def depending(captured: Captured) -> set[Node]:
    """The nodes whose value depends on the data."""
    data: set[Node] = set()
    ids: set[Node] = set()
    for node in captured.nodes:
        before = set(node.all_input_nodes)
        if node.op == "placeholder":
            (data if is_float(node) else ids).add(node)
        elif op_name(node) in SHAPE_ONLY or not (before & (data | ids)):
            continue
        elif before & data:
            value = node.meta.get("val")
            if isinstance(value, Tensor | tuple | list) or op_name(node) in SCALARS:
                data.add(node)
        elif op_name(node) == "embedding" and arguments(node)["indices"] in ids:
            data.add(node)
        else:
            ids.add(node)
    return data


def operations(captured: Captured) -> Graded:
    """Every operation that is not affine in the data, in the order in which they run.

    An operation is a node of the graph; where a module without children of its own computes
    one floating tensor from one by several such nodes (a hand-written norm or activation), it
    is that module's call, named after its class.
    """
    data = depending(captured)
    modules = dict(_module_calls(captured, data))
    inside = {node for call in modules.values() for node in call[1]}
    found, affine = [], 0
    for node in captured.nodes:
        if node in modules:
            found.append(modules[node][0])
        if node.op != "call_function" or node not in data or node in inside:
            continue
        # Of a call with several outputs, each is an operation of its own.
        first = node.args[0] if op_name(node) == "getitem" else None
        call = first if isinstance(first, Node) and first in data else node
        if is_affine(call, data):
            affine += not _is_source(node, data)
        elif is_float(node):
            found.append(_operation(node, call, data))
    return Graded(_renamed(found), affine)


def _is_source(node: Node, data: set[Node]) -> bool:
    return not parents(node, data)


def _operation(node: Node, call: Node, data: set[Node]) -> Operation:
    inputs = tuple(n for n in call.all_input_nodes if n in data and is_float(n))
    name = "attention" if op_name(call) == "scaled_dot_product_attention" else op_name(call)
    return Operation(node, call, name, module_path(call), inputs)


def _module_calls(
    captured: Captured, data: set[Node]
) -> Iterator[tuple[Node, tuple[Operation, set[Node]]]]:
    """Calls of childless modules that hold several nodes that are not affine."""
    calls: dict[str, list[Node]] = {}
    for node in captured.nodes:
        path = module_path(node)
        if node.op == "call_function" and path and node in data:
            calls.setdefault(path, []).append(node)
    for path, nodes in calls.items():
        part = captured.source.get_submodule(path.split("@")[0])
        curved = [n for n in nodes if is_float(n) and parents(n, data) and not is_affine(n, data)]
        if len(curved) < 2 or any(True for _ in part.children()):
            continue
        if any(op_name(n) in CONTRACTIONS for n in nodes):
            continue
        members = set(nodes)
        beyond = {n: [u for u in n.users if u not in members] for n in nodes}
        ends = [n for n in nodes if any(u in data or u.op == "output" for u in beyond[n])]
        inputs = {i for n in nodes for i in n.all_input_nodes if i in data and i not in members}
        if len(ends) != 1 or len(inputs) != 1 or not is_float(ends[0]):
            continue
        (start,) = inputs
        shape = ends[0].meta["val"].shape
        if not is_float(start) or start.meta["val"].shape != shape:
            continue
        is_entrywise = all(n.meta["val"].shape == shape for n in nodes if is_float(n))
        operation = Operation(
            ends[0], ends[0], type(part).__name__, path, (start,), is_entrywise, True
        )
        yield ends[0], (operation, members)


def _renamed(found: list[Operation]) -> list[Operation]:
    """Several operations of one name at one path get numbers, so that sites are unique."""
    seen: dict[tuple[str, str], int] = {}
    twice = [(o.path, o.name) for o in found]
    named = []
    for operation in found:
        key = (operation.path, operation.name)
        seen[key] = seen.get(key, 0) + 1
        name = operation.name if twice.count(key) == 1 else f"{operation.name} #{seen[key]}"
        named.append(replace(operation, name=name))
    return named
