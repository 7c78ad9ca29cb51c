"""Two models of one architecture: what differs, how far apart they lie, and the line between.

Holds: ``check_pair``, ``pair_notes``, ``Line``, ``line_between``, ``random_line``,
``displacement``.
May import: torch, ``secant.errors``, ``secant.load``, ``secant.readings``.

A line needs no more than weights of one shape under one name: a model that was brought nearer to
the other first, by permuting its units, comes in here like any other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secant.errors import InputError
from secant.load.models import Loaded
from secant.readings import Reading, number

MOST_NAMED = 10
COUNTERS = "num_batches_tracked"
WHOLE = "(model)"
State = Mapping[str, Tensor]
"""Weights by name, a tied one once."""


def check_pair(a: Loaded, b: Loaded) -> None:
    """Refuse models whose tensors, ties or modules differ.

    Raises: `InputError` naming the first ten that do.
    """
    ours, theirs = (_tensors(one.model) for one in (a, b))
    _refuse(a, b, "tensors", {key: str(tuple(value.shape)) for key, value in ours.items()},
            {key: str(tuple(value.shape)) for key, value in theirs.items()})  # fmt: skip
    _refuse(a, b, "modules", _kinds(a.model), _kinds(b.model))
    _refuse(a, b, "ties between tensors", _ties(a.model), _ties(b.model))
    for name, value in ours.items():
        is_solid = not value.is_floating_point() and not name.endswith(COUNTERS)
        if is_solid and not torch.equal(value.cpu(), theirs[name].cpu()):
            raise InputError(
                f"models {a.name!r} and {b.name!r} differ in {name!r}, which holds {value.dtype}: "
                "there is nothing between whole numbers. Compare models that agree in it, or load "
                "quantised ones as floats."
            )
        is_open = value.is_floating_point() and not bool(torch.isfinite(value).all())
        if is_open and not torch.equal(value.cpu(), theirs[name].cpu()):
            raise InputError(
                f"models {a.name!r} and {b.name!r} differ in {name!r}, which holds infinities: "
                "there is no line between them. Compare models that agree in it."
            )


def _refuse(
    a: Loaded, b: Loaded, what: str, ours: Mapping[str, str], theirs: Mapping[str, str]
) -> None:
    names = dict.fromkeys([*ours, *theirs])
    apart = [name for name in names if ours.get(name) != theirs.get(name)]
    if not apart:
        return
    told = [f"{name} ({ours.get(name, 'not there')} and {theirs.get(name, 'not there')})"
            for name in apart[:MOST_NAMED]]  # fmt: skip
    more = f" and {len(apart) - MOST_NAMED} more" if len(apart) > MOST_NAMED else ""
    raise InputError(
        f"models {a.name!r} and {b.name!r} must be of one architecture; {len(apart)} of their "
        f"{what} differ: {', '.join(told)}{more}. Compare two checkpoints of one model."
    )


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    named = dict(model.named_parameters(remove_duplicate=False))
    return named | dict(model.named_buffers(remove_duplicate=False))


def _kinds(model: nn.Module) -> dict[str, str]:
    return {name or WHOLE: type(part).__name__ for name, part in model.named_modules()}


def _ties(model: nn.Module) -> dict[str, str]:
    """Each name of a tied weight but the first, with the first."""
    first: dict[int, str] = {}
    found = {}
    for name, one in model.named_parameters(remove_duplicate=False):
        if first.setdefault(id(one), name) != name:
            found[name] = f"tied to {first[id(one)]}"
    return found


def pair_notes(a: Loaded, b: Loaded) -> list[str]:
    """What a reader must know of two models that read texts: whether they read them alike."""
    if a.tokenizer is None and b.tokenizer is None:
        return []
    if a.tokenizer is None or b.tokenizer is None:
        lacking = a if a.tokenizer is None else b
        return [f"{lacking.name} has no tokenizer: both models were given {a.name}'s input."]
    if not all(hasattr(one.tokenizer, "get_vocab") for one in (a, b)):
        return ["The tokenizers do not show their vocabularies, which were not compared."]
    ours, theirs = a.tokenizer.get_vocab(), b.tokenizer.get_vocab()
    apart = [token for token in {**ours, **theirs} if ours.get(token) != theirs.get(token)]
    if apart:
        return [
            f"The vocabularies differ in {len(apart)} tokens ({len(ours)} and {len(theirs)} in "
            f"all; first {apart[0]!r}). Both models were given {a.name}'s tokens, so a row of an "
            "embedding may stand for two words."
        ]
    if type(a.tokenizer) is not type(b.tokenizer):
        kinds = [type(one.tokenizer).__name__ for one in (a, b)]
        return [
            f"The tokenizers are {' and '.join(kinds)} with one vocabulary; both models were "
            f"given the tokens of {a.name}'s."
        ]
    return []


@dataclass(frozen=True)
class Line:
    """Two sets of weights, with those of `buffers` that are finite floats; `t` = 0 is `start`."""

    start: State
    end: State
    buffers: frozenset[str]

    def put(self, model: nn.Module, t: float) -> None:
        """Give `model` the weights (1-t) start + t end; the ends to the last bit."""
        named = dict(model.named_parameters()) | dict(model.named_buffers())
        with torch.no_grad():
            for name, value in self.start.items():
                torch.lerp(value, self.end[name], t, out=named[name].data)


def weights_of(model: nn.Module, like: nn.Module) -> dict[str, Tensor]:
    """Parameters of floats, as `like`'s are: its dtype, device and names."""
    named = dict(model.named_parameters(remove_duplicate=False))
    return {
        name: named[name].detach().to(one, copy=True)
        for name, one in like.named_parameters()
        if one.is_floating_point()
    }


def line_between(a: nn.Module, b: nn.Module, like: nn.Module) -> Line:
    """The line from A's weights to B's, in the dtype of `like`; buffers of floats move along.

    One that holds infinities (a mask) is the same in both, as `check_pair` sees to.
    """
    start, end = weights_of(a, like), weights_of(b, like)
    ours, theirs = dict(a.named_buffers()), dict(b.named_buffers())
    moving = [
        (name, one)
        for name, one in like.named_buffers()
        if one.is_floating_point() and bool(torch.isfinite(ours[name]).all())
    ]
    for name, one in moving:
        start[name], end[name] = (side[name].to(one, copy=True) for side in (ours, theirs))
    return Line(start, end, frozenset(name for name, _ in moving))


def random_line(line: Line, seed: int) -> Line:
    """From the same start, as far in every weight as `line` goes, but anywhere.

    Directions are Gaussian, drawn tensor by tensor. Buffers stay: they are no weights.
    """
    generator = torch.Generator().manual_seed(seed)
    end = {}
    for name, start in line.start.items():
        if name in line.buffers:
            end[name] = start
            continue
        noise = torch.randn(start.shape, generator=generator, dtype=torch.float64)
        length = (line.end[name].double() - start.double()).norm().cpu()
        norm = noise.norm()
        step = noise * (length / norm) if norm > 0 else noise
        end[name] = start + step.to(start)
    return Line(line.start, end, line.buffers)


def displacement(
    a: nn.Module, b: nn.Module, fresh: nn.Module | None, missing: Mapping[str, str]
) -> list[Reading]:
    """How far every tensor of B lies from A's: three readings each, and two of all together.

    Variant `norm` is ‖b - a‖, `relative` that over ‖a‖, `share` its square over the sum of all
    tensors' squares. Exact: nothing is sampled, so there is no interval. Control `fresh`: the same
    from A to the same architecture with new weights.
    """
    far, anew = _distances(a, b), None if fresh is None else _distances(a, fresh)
    found = []
    for name, (norm, own, size) in far.items():
        values = _values(norm, own, far[WHOLE][0])
        others = None if anew is None else _values(*anew[name][:2], anew[WHOLE][0])
        for variant, value in values.items():
            if name == WHOLE and variant == "share":
                continue
            controls: dict[str, dict[str, Any]] = {}
            if others is not None:
                controls["fresh"] = {"value": others[variant], "interval": None}
            for control, reason in missing.items():
                controls[control] = {"value": None, "interval": None, "missing": reason}
            warnings = []
            if value is None:
                what = "A's tensor is zero" if variant == "relative" else "The models are the same"
                warnings.append(f"{what}: no ratio exists.")
            found.append(
                Reading(
                    "weights",
                    name,
                    "displacement",
                    variant,
                    value,
                    None,
                    {"weights": size},
                    controls,
                    warnings,
                    {"is_exact": True},
                )
            )
    return found


def _distances(a: nn.Module, b: nn.Module) -> dict[str, tuple[float, float, int]]:
    """‖b - a‖, ‖a‖ and entries of every tensor, and of all."""
    theirs = dict(b.named_parameters(remove_duplicate=False))
    found = {}
    for name, one in a.named_parameters():
        if one.is_floating_point():
            x, y = one.detach().double(), theirs[name].detach().to(one.device).double()
            found[name] = float((y - x).norm()), float(x.norm()), one.numel()
    norm, own = (math.hypot(*(each[place] for each in found.values())) for place in (0, 1))
    found[WHOLE] = norm, own, sum(each[2] for each in found.values())
    return found


def _values(norm: float, own: float, whole: float) -> dict[str, float | None]:
    return {
        "norm": number(norm),
        "relative": number(norm / own) if own > 0 else None,
        "share": number((norm / whole) ** 2) if whole > 0 else None,
    }
