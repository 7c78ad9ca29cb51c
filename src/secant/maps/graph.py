"""A model's exported graph: captured once, run node by node, with values replaced.

Holds: ``capture`` and its result ``Captured``; ``export``, the graph alone.
May import: torch, ``secant.errors``, ``secant.maps.features``.

Capture is non-strict `torch.export` with the batch (and the length of token models) left
open, functionalised but not decomposed: `layer_norm`, `gelu` and attention stay one node
each, as a reader knows them, and no node changes another's value.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from secant.errors import InputError
from secant.maps.calls import first_tensor

AGREEMENT = 1e-4
"""Largest gap allowed between graph and model, of the output's largest entry: float32 kernels
sum in another order there; a graph that fixed a batch's own value is off by far more."""

ROW, LENGTH, STATIC, UNKNOWN = "batch", "length", "static", "unknown"


@dataclass(frozen=True)
class Captured:
    """An exported graph and what its open dimensions mean."""

    name: str
    module: GraphModule
    source: nn.Module
    output: Node
    batch: frozenset[Any]
    length: frozenset[Any]

    @property
    def nodes(self) -> list[Node]:
        """The nodes in the order in which they run."""
        return list(self.module.graph.nodes)

    def run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[Node, Any]:
        """Every node's value on one batch."""
        leaves = tree_leaves((args, dict(kwargs)))
        values: dict[Node, Any] = {}
        for node in self.nodes:
            if node.op == "placeholder":
                values[node] = leaves[len(values)]
        self.evaluate(values, [node for node in self.nodes if node.op != "placeholder"])
        return values

    def evaluate(self, values: dict[Node, Any], nodes: Iterable[Node]) -> None:
        """Fill in the values of `nodes`, whose arguments must be there."""
        for node in nodes:
            if node.op == "get_attr":
                values[node] = _attribute(self.module, str(node.target))
            elif node.op == "call_function":
                assert callable(node.target)
                args = map_arg(node.args, values.__getitem__)
                kwargs = map_arg(node.kwargs, values.__getitem__)
                values[node] = node.target(*args, **kwargs)

    def after(self, changed: set[Node]) -> list[Node]:
        """The nodes between `changed` and the output, in order: all that must run again."""
        reached = set(changed)
        for node in self.nodes:
            if reached.intersection(node.all_input_nodes):
                reached.add(node)
        needed = {self.output}
        for node in reversed(self.nodes):
            if node in needed:
                needed.update(node.all_input_nodes)
        return [n for n in self.nodes if n in reached and n in needed and n not in changed]

    def check(self, values: dict[Node, Any], expected: Any) -> None:
        """Refuse a graph that does not give the model's own output."""
        wanted, found = first_tensor(expected, "(model)", "output"), values[self.output]
        scale = wanted.abs().max().clamp_min(torch.finfo(wanted.dtype).tiny)
        if wanted.shape != found.shape or not bool(
            (wanted - found).abs().max() <= AGREEMENT * scale
        ):
            raise InputError(
                f"model {self.name!r}: the exported graph must give the model's own output; it "
                "differs on a batch of this data. The forward pass depends on something that "
                "torch.export fixed, or is random or not finite: make it a function of its tensors."
            )

    def layout(self, node: Node) -> list[str]:
        """What each dimension of the node's value is: batch, length, static or unknown."""
        return [self._kind(size) for size in node.meta["val"].shape]

    def _kind(self, size: int | torch.SymInt) -> str:
        if not is_open(size):
            return STATIC
        assert isinstance(size, torch.SymInt)
        expression = size.node.expr
        if expression in self.length:
            return LENGTH
        if expression in self.batch:
            return ROW
        # Batch times heads: rows, unless padding has to be told apart in them.
        is_multiple = any((expression / symbol).is_Integer for symbol in self.batch)
        return ROW if is_multiple and not self.length else UNKNOWN


def _attribute(module: nn.Module, path: str) -> Any:
    value: Any = module
    for part in path.split("."):
        value = getattr(value, part)
    return value


def capture(
    model: nn.Module,
    name: str,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    has_length: bool,
) -> Captured:
    """Export `model` on an example batch of at least two units.

    `has_length` leaves the second dimension open as well: the length of token models.

    Cost: one traced forward pass on shapes alone, seconds for a small transformer.

    Raises: `InputError` for a model in training mode, one whose forward pass branches on
    values, one that fixes its batch, and one that returns no floating tensor.
    """
    if any(part.training for part in model.modules()):
        raise InputError(
            f"model {name!r} must be in eval mode; some part of it is in training mode, where "
            "batch statistics and dropout mix units and chance into it. Call `.eval()` first."
        )
    open_dims = {0: torch.export.Dim.AUTO}
    if has_length:
        open_dims[1] = torch.export.Dim.AUTO
    shapes = (tuple(open_dims for _ in args), dict.fromkeys(kwargs, open_dims))
    exported = export(model, name, args, dict(kwargs), shapes[1] if kwargs else shapes[0])
    inputs = [n for n in exported.graph.nodes if n.op == "placeholder"]
    (end,) = (n for n in exported.graph.nodes if n.op == "output")
    floats = [n for n in tree_leaves(end.args[0]) if isinstance(n, Node) and is_float(n)]
    if not floats:
        raise InputError(
            f"model {name!r} must return a floating tensor; its outputs are "
            f"{[str(n) for n in tree_leaves(end.args[0])]}. Wrap it so that it returns one."
        )
    sizes = [node.meta["val"].shape for node in inputs]
    if not all(is_open(shape[dim]) for shape in sizes for dim in open_dims):
        raise InputError(
            f"model {name!r} must take a batch of any size; torch.export found that the forward "
            f"pass fixes it (inputs {[tuple(map(str, s)) for s in sizes]}). Replace fixed sizes "
            "in it by those of its input."
        )
    return Captured(
        name, exported, model, floats[0],
        frozenset(shape[0].node.expr for shape in sizes),
        frozenset(shape[1].node.expr for shape in sizes if has_length),
    )  # fmt: skip


def export(
    model: nn.Module, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any = None
) -> GraphModule:
    """The graph of `model` on an example, all sizes fixed unless `shapes` leaves some open.

    Raises: `InputError` for a model whose forward pass branches on values.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # they speak of torch's own insides
        # torch.nn's encoder layers have one operation for all of them, which nobody can read.
        fused = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            program = torch.export.export(
                model, args, kwargs, dynamic_shapes=shapes, strict=False
            ).run_decompositions({})
            module = program.module(check_guards=False)
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            # The model ran on this very batch before, so this is about exporting.
            reason = next((line for line in str(error).splitlines() if line.strip()), "")
            raise InputError(
                f"model {name!r} cannot be exported ({type(error).__name__}: {reason.strip()[:200]}"
                "). Its forward pass must not branch on tensor values: write such a choice with "
                "torch.where, or pass the part of the model that has none."
            ) from error
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)
    assert isinstance(module, GraphModule)
    return module


def is_open(size: int | torch.SymInt) -> bool:
    """Whether the size differs from batch to batch; a size that export fixed keeps its type."""
    return isinstance(size, torch.SymInt) and bool(size.node.expr.free_symbols)


def is_float(node: Node) -> bool:
    """Whether the node's value is one floating tensor."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()
