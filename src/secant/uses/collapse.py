"""Collapse: everything in a model that is exactly affine is joined where that saves work.

Holds: ``collapse``; ``collapsed`` and its result ``Collapse``, ``Joined``.
May import: torch, ``secant.errors``, ``secant.maps``, ``secant.uses``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secant.errors import InputError
from secant.maps.calls import without_cache
from secant.maps.graph import Captured, capture
from secant.maps.weights import Batch, run
from secant.uses.affine_attention import apply_value_biases, value_biases, value_gaps
from secant.uses.affine_forms import ROUNDING, Dense, Flattened, Form
from secant.uses.affine_joins import Join, apply_joins, cleaned, joins_of, split_norms
from secant.uses.affine_steps import ANY, LAST, steps_of
from secant.uses.chains import shortened

Progress = Callable[[str, int, int], None]

ENTRYWISE = (
    nn.Identity, nn.Dropout, nn.Linear, nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.ELU, nn.Tanh,
    nn.Sigmoid, nn.Softplus, nn.Hardtanh, nn.Softmax, nn.LogSoftmax, nn.Flatten, nn.Sequential,
)  # fmt: skip
"""Of these alone a sequence has no affine parts but its chains of linear modules."""


@dataclass(frozen=True)
class Joined:
    """Parts that became one: their names, the work before and after, and how exact that is.

    `work` counts products for the example batch (a chain of modules: a row; a bias that moved:
    additions). `relative` bounds the error of the joined weight, or bias, before it is rounded to
    the model's type, relative to its norm.
    `gap` is the largest distance, over the example's rows, of what the joined map gives from what
    the parts give in float64, and `bound` the largest that rounding may make it; None for chains
    of modules, whose parts may be too many to run again.
    """

    parts: list[str]
    work_before: int
    work: int
    relative: float
    gap: float | None = None
    bound: float | None = None


@dataclass(frozen=True)
class Collapse:
    """A collapsed model, what was joined, and what was left that could be, with the reason."""

    module: nn.Module
    joined: list[Joined]
    left: list[str]
    parameters_before: int
    parameters: int


def collapse(
    model: nn.Module,
    example: Batch,
    *,
    is_untying: bool = False,
    progress: Progress = lambda label, done, total: None,
) -> nn.Module:
    """The same function with everything joined that is exactly affine, where that saves work.

    Linear maps, convolutions, BatchNorm in eval mode, scales and shifts, dropout in eval mode,
    leaky ReLU and PReLU of slope 1, views between, linear residuals (x + W₂ W₁ x), and the affine
    part of LayerNorm or RMSNorm where all that reads it is linear; convolutions with the linear map
    behind a flatten; the bias of an attention's values into that of its output. What is
    not affine is not touched. Chains of modules in an `nn.Sequential` are joined first; for what
    is left the model is exported, and a graph comes back if anything there is joined, else a copy
    of the model.

    Args:
        model: in eval mode.
        example: as the model is called: a tensor, a sequence of them, or tensors by name; at
            least two rows.
        is_untying: also join weights that another module holds, which then exist twice.

    Returns: an ordinary module in eval mode, of the model's type and on its device.

    Raises: `InputError` for a model in training mode, one that cannot be exported, and an example
    that it refuses.

    Cost: products of the joined weights in float64; for an export, seconds and one forward.
    """
    return collapsed(model, example, is_untying=is_untying, progress=progress).module


def collapsed(
    model: nn.Module,
    example: Batch,
    *,
    is_untying: bool = False,
    progress: Progress = lambda label, done, total: None,
) -> Collapse:
    """As `collapse`, with what was joined and what was left."""
    _check_eval(model)
    before = _count(model)
    module, chains = shortened(
        model, is_untying=is_untying, progress=lambda done, total: progress("chain", done, total)
    )
    joined = [
        Joined([f"{one.modules} linear modules of {one.place}"], one.work_before, one.work,
               one.relative)
        for one in chains if not one.reason
    ]  # fmt: skip
    left = [f"{one.modules} linear modules of {one.place}: {one.reason}" for one in chains
            if one.reason]  # fmt: skip
    if not _is_plain(module):
        with without_cache(module):
            more, unjoined, graph = _exported(module, example, is_untying=is_untying)
        joined, left = joined + more, left + unjoined
        module = module if graph is None else graph
    module.requires_grad_(any(one.requires_grad for one in model.parameters()))
    return Collapse(module, joined, left, before, _count(module))


def _check_eval(model: nn.Module) -> None:
    training = [name or type(part).__name__ for name, part in model.named_modules()
                if part.training and not isinstance(part, nn.Sequential)]  # fmt: skip
    if training:
        raise InputError(
            f"collapse: the model must be in eval mode; {training[0]!r} is in training mode, where "
            "dropout draws and BatchNorm mixes rows. Call model.eval() first."
        )


def _count(model: nn.Module) -> int:
    return sum(one.numel() for one in model.parameters())


def _is_plain(module: nn.Module) -> bool:
    """Whether its chains are all that could be joined, so that it need not be exported."""
    return type(module) is nn.Sequential and all(type(one) in ENTRYWISE for one in module.modules())


def _exported(
    module: nn.Module, example: Batch, *, is_untying: bool
) -> tuple[list[Joined], list[str], nn.Module | None]:
    """What is joined in the graph, what is left, and the graph if anything was joined."""
    args, kwargs = _call_of(example)
    mask = kwargs.get("attention_mask", kwargs.get("input_ids"))
    with torch.no_grad():
        run(module, example)
    captured = capture(
        module, type(module).__name__, args, kwargs,
        has_length=mask is not None and mask.ndim == 2,
    )  # fmt: skip
    split_norms(captured)
    steps = steps_of(captured)
    found, kept = joins_of(captured, steps)
    tied = set() if is_untying else _tied(captured)
    found = [one for one in found if not tied & _weights_of(one)]
    left = [f"{one}: joining them would save no work" for one in kept]
    joined: list[Joined] = []
    if found:
        entries = [_rounded(join) for join in found]
        gaps = _gaps(captured, found, entries, args, kwargs)
        _check_gaps([one.names for one in found], gaps)
        apply_joins(captured, found, entries)
        joined += [
            Joined(join.names, join.work_before, join.work, _relative(join.form), *gap)
            for join, gap in zip(found, gaps, strict=True)
        ]
    # After the joins: they may have given values a bias, such as that of the norm before.
    biases, unmoved = value_biases(captured, tied)
    if biases:
        moves = value_gaps(captured, biases, args, kwargs)
        _check_gaps([one.way.names for one in biases], moves)
        apply_value_biases(captured, biases)
        cleaned(captured)
        joined += [
            Joined(one.way.names, one.work_before, one.work, one.relative, *gap)
            for one, gap in zip(biases, moves, strict=True)
        ]
    return joined, left + unmoved, _ordinary(captured.module) if joined else None


def _ordinary(module: nn.Module) -> nn.Module:
    """In eval mode, with `train` and `eval` that work: torch.export's refuse to be called."""
    for name in ("train", "eval"):
        vars(module).pop(name, None)
    return module.eval()


def _call_of(example: Batch) -> tuple[tuple[Any, ...], dict[str, Tensor]]:
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, Mapping):
        return (), dict(example)
    return tuple(example), {}


def _tied(captured: Captured) -> set[str]:
    """Names in the graph of weights that several modules of the model hold."""
    counts: dict[int, list[str]] = {}
    for name, one in captured.source.named_parameters(remove_duplicate=False):
        counts.setdefault(id(one), []).append(name)
    shared = [one for names in counts.values() if len(names) > 1 for one in names]
    return {one for name in shared for one in (name, name.replace(".", "_"))}


def _weights_of(join: Join) -> set[str]:
    nodes = [node for step in join.steps for node in (*step.inner, step.node)]
    read = {one for node in nodes for one in node.all_input_nodes if one.op == "get_attr"}
    return {str(one.target) for one in read}


def _relative(form: Form) -> float:
    length = form.length
    return form.error / length if length else 0.0


def _rounded(join: Join) -> tuple[Tensor, Tensor | None]:
    """Weight and shift of a join in the type of what it replaces."""
    value = join.node.meta["val"]
    weight = join.form.weight.to(value.dtype)
    return weight, None if join.form.shift is None else join.form.shift.to(value.dtype)


def _gaps(
    captured: Captured,
    joins: list[Join],
    entries: list[tuple[Tensor, Tensor | None]],
    args: tuple[Any, ...],
    kwargs: dict[str, Tensor],
) -> list[tuple[float | None, float | None]]:
    """How far each joined map is from its parts on the example, and how far rounding may bring it.

    The parts run in the model's own type, whose rounding is in the bound: with L the largest
    norm of a value on the way and u the unit of the type, that is a few u times L.
    """
    with torch.no_grad():
        values = captured.run(args, kwargs)
    found: list[tuple[float | None, float | None]] = []
    for join, (weight, shift) in zip(joins, entries, strict=True):
        if not isinstance(join.form, Dense) or join.axis not in (LAST, ANY):
            found.append((None, None))
            continue
        is_flat = isinstance(join.form, Flattened)
        x, y = values[join.source].double(), values[join.node].double()
        x = x.flatten(1) if is_flat else x
        made = nn.functional.linear(x, weight.double(), None if shift is None else shift.double())
        gap = torch.linalg.vector_norm(made.view(y.shape) - y, dim=-1)
        unit = torch.finfo(join.node.meta["val"].dtype).eps
        way = [
            values[node] for step in join.steps for node in (step.parent, *step.inner, step.node)
        ]
        way = [one.flatten(1) if is_flat else one for one in way]
        largest = max(float(torch.linalg.vector_norm(one.double(), dim=-1).max()) for one in way)
        steps = len(way)
        gain = join.form.gain if isinstance(join.form, Flattened) else join.form.length
        rounding = unit * ROUNDING * steps * largest * max(1.0, gain)
        bound = join.form.error * float(torch.linalg.vector_norm(x, dim=-1).max())
        found.append((float(gap.max()), bound + join.form.shift_error + rounding))
    return found


def _check_gaps(
    names: Sequence[list[str]], gaps: Sequence[tuple[float | None, float | None]]
) -> None:
    for parts, (gap, bound) in zip(names, gaps, strict=True):
        if gap is not None and bound is not None and not gap <= bound:
            raise AssertionError(
                f"collapse joined {parts} wrongly: {gap:.1e} off, {bound:.1e} allowed"
            )
