"""The bias of an attention's values as a bias of its output: its rows sum to 1, so it passes.

Holds: ``ValueBias``, ``value_biases``, ``apply_value_biases``, ``value_gaps``.
May import: torch, ``secant.maps``, ``secant.uses`` (affine_forms, affine_steps).

A matrix A with rows that sum to 1 gives A (V + 1 b') = A V + 1 b'. Where heads are split, repeated
for groups of queries and laid side by side again, each entry of b goes where the entries of V go.
That is found by sending the numbers of the entries the same way, at two choices of all sizes that
the graph leaves open: whatever mixes positions with features shows in one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.nn import functional

from secant.maps.affinity import SHAPE_ONLY, arguments, module_path, op_name
from secant.maps.graph import Captured, is_float, is_open
from secant.uses.affine_forms import ROUNDING, UNIT
from secant.uses.affine_steps import LAST, SAME, Constants, places

_MOVES = """
    view reshape _unsafe_view flatten unflatten unsqueeze squeeze transpose permute movedim
    expand repeat repeat_interleave slice select
"""
MOVES = SAME | frozenset(_MOVES.split())
"""Operations that put entries elsewhere, or repeat them, and do no more."""

ROWS = SAME | {"view", "reshape", "_unsafe_view", "expand", "to", "_to_copy"}
"""Operations that leave the rows of attention weights what they are, if the last size stays."""

SIZES = (5, 11, 17, 23, 31), (7, 13, 19, 29, 37)
"""Sizes that stand for open ones: primes, so that none is a multiple of a width by chance."""


@dataclass(frozen=True)
class _Way:
    """Nodes from the linear map of the values to that of the output."""

    value: Node
    before: tuple[Node, ...]
    attention: Node
    after: tuple[Node, ...]
    out: Node

    @property
    def names(self) -> list[str]:
        """The bias that goes, and the map that takes it."""
        ends = [module_path(node) or op_name(node) for node in (self.value, self.out)]
        return [f"{ends[0]} (bias)", ends[1]]


@dataclass(frozen=True)
class ValueBias:
    """A bias of values that the output's bias takes in: `shift`, float64, within `error`.

    `work` counts the additions of both biases for the example batch, after, and before.
    """

    way: _Way
    shift: Tensor
    error: float
    work: int
    work_before: int

    @property
    def relative(self) -> float:
        """The error, relative to the bias."""
        length = float(self.shift.norm())
        return self.error / length if length else 0.0


def value_biases(captured: Captured, tied: set[str]) -> tuple[list[ValueBias], list[str]]:
    """The biases that can move and save work by it; those that cannot, with the reason.

    `tied` are names of weights that other modules hold, whose maps stay as they are.
    """
    constants = Constants(captured)
    found: list[ValueBias] = []
    left: list[str] = []
    for node in captured.nodes:
        matched = _attention(node)
        if matched is None:
            continue
        values, reason = matched
        way, apart = _way(node, values, constants)
        if way is None:
            continue
        made = reason or apart or _moved(way, constants, tied)
        if isinstance(made, ValueBias):
            found.append(made)
        else:
            left.append(f"{' and '.join(way.names)}: {made}")
    return found, left


def _attention(node: Node) -> tuple[Node, str] | None:
    """The values that rows of weights mix here, and why the rows may not sum to 1, if so."""
    name, given = op_name(node), arguments(node) if node.op == "call_function" else {}
    if name == "scaled_dot_product_attention":
        reason = ""
        if given.get("attn_mask") is not None:
            reason = "the attention has a mask tensor, which may mask a whole row"
        elif given.get("dropout_p", 0.0) != 0:
            reason = "the attention drops weights at random"
        return given["value"], reason
    if name not in ("matmul", "bmm", "mm"):
        return None
    rows, values = given["self"], given.get("other", given.get("mat2"))
    reason = ""
    while op_name(rows) in ROWS | {"dropout", "getitem"}:
        before = rows.all_input_nodes[0]
        is_drawn = op_name(rows) == "dropout" and arguments(rows).get("train") is not False
        if op_name(rows) == "getitem":  # of what a dropout gives: values and what it kept
            if op_name(before) != "native_dropout" or rows.args[1] != 0:
                return None
            before, is_drawn = before.all_input_nodes[0], True
        if not is_float(rows) or not is_float(before) or _last(rows) != _last(before):
            return None
        reason = "the attention drops weights at random" if is_drawn else reason
        rows = before
    if op_name(rows) not in ("softmax", "_softmax") or not isinstance(values, Node):
        return None
    is_last = arguments(rows)["dim"] in (LAST, rows.meta["val"].ndim - 1)
    is_many = is_float(values) and values.meta["val"].ndim > 1
    return (values, reason) if is_last and is_many else None


def _last(node: Node) -> str:
    shape = node.meta["val"].shape
    return str(shape[-1]) if shape else ""


def _way(attention: Node, values: Node, constants: Constants) -> tuple[_Way | None, str]:
    """From linear map to linear map through attention, and what else reads on it, if anything.

    None where the values have no bias to move, or no linear map is at either end.
    """
    before: list[Node] = []
    while _is_move(values):
        before.insert(0, values)
        values = values.all_input_nodes[0]
    if op_name(values) != "linear" or constants(arguments(values).get("bias")) is None:
        return None, ""
    after: list[Node] = []
    at = attention
    while True:
        out = next((one for one in at.users if op_name(one) == "linear"), None)
        if out is not None and arguments(out)["input"] is at:
            break
        move = next((one for one in at.users if _is_move(one)), None)
        if move is None:
            return None, ""
        after.append(move)
        at = move
    way = _Way(values, tuple(before), attention, tuple(after), out)
    for kind, nodes in (("values", (values, *before)), ("attention", (attention, *after))):
        readers = [[one for one in node.users if op_name(one) not in SHAPE_ONLY] for node in nodes]
        if any(len(users) != 1 for users in readers):
            return way, f"something else reads the {kind}"
    last = (values, *before)[-1]
    is_once = sum(one is last for one in arguments(attention).values()) == 1
    return way, "" if is_once else "something else reads the values"


def _is_move(node: Node) -> bool:
    name = op_name(node)
    if name == "dropout" and arguments(node).get("train") is False:
        name = "clone"
    if node.op != "call_function" or name not in MOVES or not is_float(node):
        return False
    tensors = [one for one in node.all_input_nodes if isinstance(one.meta.get("val"), Tensor)]
    return len(tensors) == 1 and tensors[0] is node.all_input_nodes[0] and is_float(tensors[0])


def _moved(way: _Way, constants: Constants, tied: set[str]) -> ValueBias | str:
    """The output's new bias, or why there is none."""
    ours, theirs = arguments(way.value), arguments(way.out)
    bias, own = constants(ours["bias"]), constants(theirs.get("bias"))
    weight = constants(theirs["weight"])
    assert bias is not None
    if weight is None or weight.ndim != 2 or (theirs.get("bias") is not None and own is None):
        return "the output's weights depend on the inputs"
    held = {str(one.target) for one in (ours["bias"], theirs.get("bias")) if isinstance(one, Node)}
    if held & tied:
        return "another module holds one of the biases"
    index = _index(way, len(bias))
    if index is None:
        return "not each position of the attention has the bias in the same places"
    work = places(way.out, LAST) * len(weight)
    before = places(way.value, LAST) * len(bias) + (0 if own is None else work)
    if work >= before:
        return "the output has no bias, and one more there would save no work"
    moved = bias[index]
    shift = weight @ moved
    error = 2 * len(moved) * UNIT * float(weight.norm()) * float(moved.norm())
    shift = shift if own is None else shift + own
    return ValueBias(way, shift, error + UNIT * float(shift.norm()), work, before)


def _index(way: _Way, width: int) -> Tensor | None:
    """Which entry of the bias each input of the output's map has; None if that varies."""
    nodes = (way.value, *way.before, way.attention, *way.after)
    sizes = [size for node in nodes for size in node.meta["val"].shape if is_open(size)]
    symbols = sorted({one for size in sizes for one in size.node.expr.free_symbols}, key=str)
    found: list[Tensor] = []
    for primes in SIZES:
        chosen = {one: primes[number % len(primes)] for number, one in enumerate(symbols)}
        row = _sent(way, width, chosen)
        if row is None:
            return None
        found.append(row)
    return found[0].long() if torch.equal(found[0], found[1]) else None


def _sent(way: _Way, width: int, chosen: dict[Any, int]) -> Tensor | None:
    """The numbers of the bias's entries as they reach the output's map, at the chosen sizes."""

    def size(value: Any) -> int:
        return int(value.node.expr.xreplace(chosen)) if is_open(value) else int(value)

    def run(nodes: Sequence[Node], value: Tensor) -> Tensor:
        for node in nodes:
            rest: Any = map_arg(node.args[1:], lambda one: size(one.meta["val"]))
            if op_name(node) in ("view", "_unsafe_view"):
                value = value.reshape(rest[0])  # the layout in memory is not that of the model
            elif op_name(node) != "dropout":
                assert callable(node.target)
                value = node.target(value, *rest, **node.kwargs)
        return value

    shape = [size(one) for one in way.value.meta["val"].shape]
    numbers = torch.arange(width, dtype=torch.float64).expand(shape)
    try:
        values = run(way.before, numbers)
        row = values[..., :1, :]
        if not torch.equal(values, row.expand_as(values)):
            return None
        whole = [size(one) for one in way.attention.meta["val"].shape]
        if arguments(way.attention).get("enable_gqa"):
            row = row.repeat_interleave(whole[-3] // row.shape[-3], -3)
        given = run(way.after, row.expand(whole)).flatten(0, -2)
    except RuntimeError:
        return None  # a view that holds for some sizes only
    return given[0] if torch.equal(given, given[:1].expand_as(given)) else None


def value_gaps(
    captured: Captured, found: Sequence[ValueBias], args: tuple[Any, ...], kwargs: dict[str, Tensor]
) -> list[tuple[float, float]]:
    """How far each output is from what it was on the example, and how far rounding may bring it.

    Both run in the model's type with unit u: with L the largest norm of a value on the way and
    n keys, rows of weights sum to 1 within n u. Rows that are not finite must stay so.
    """
    with torch.no_grad():
        values = captured.run(args, kwargs)
        return [_gap(captured, one, values) for one in found]


def _gap(captured: Captured, one: ValueBias, values: dict[Node, Any]) -> tuple[float, float]:
    way, y = one.way, values[one.way.out].double()
    given, theirs = arguments(way.value), arguments(way.out)
    nodes = [*way.before, way.attention, *way.after]
    anew = dict(values)
    anew[way.value] = functional.linear(values[given["input"]], values[given["weight"]])
    captured.evaluate(anew, nodes)
    weight = values[theirs["weight"]]
    shift = one.shift.to(weight.dtype)
    made = functional.linear(anew[theirs["input"]], weight, shift).double()
    is_known = torch.isfinite(y).all(-1)
    assert torch.equal(is_known, torch.isfinite(made).all(-1)), f"{way.names}: rows not finite"
    if not bool(is_known.any()):
        return 0.0, 0.0
    gap = torch.linalg.vector_norm((made - y)[is_known], dim=-1).max()
    passed = [each[node] for each in (values, anew) for node in (way.value, *nodes)]
    # Rows without a number, as a mask leaves them, say nothing of how large the others are; that
    # they are the same rows before and after is asserted above.
    largest = max(
        float(torch.linalg.vector_norm(value.double(), dim=-1).nan_to_num(0.0).max())
        for value in [*passed, y, shift]
    )
    unit = torch.finfo(weight.dtype).eps
    keys = passed[len(way.before)].shape[-2] if passed[len(way.before)].ndim > 1 else 1
    rounding = unit * (ROUNDING * len(nodes) + keys) * largest
    return float(gap), one.error + rounding * max(1.0, float(weight.double().norm()))


def apply_value_biases(captured: Captured, found: Sequence[ValueBias]) -> None:
    """Drop the biases of the values and write those of the outputs, in the model's type."""
    graph, module = captured.module.graph, captured.module
    for number, one in enumerate(found):
        value, out = one.way.value, one.way.out
        shift = one.shift.to(out.meta["val"].dtype)
        name = f"moved_{number}_bias"
        module.register_parameter(name, torch.nn.Parameter(shift, requires_grad=False))
        with graph.inserting_before(out):
            held = graph.get_attr(name)
        for node, bias in ((value, None), (out, held)):
            given = arguments(node)
            node.args, node.kwargs = (given["input"], given["weight"], bias), {}
