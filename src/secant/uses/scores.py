"""What a model's outputs are scored by: labels, the next token, or nothing.

Holds: ``Task``, ``task_of``, ``counted``, ``parts_of``.
May import: torch, ``secant.errors``, ``secant.engine``, ``secant.load``, ``secant.maps``,
``secant.trials``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from secant.engine.plan import Batch
from secant.errors import InputError
from secant.load.feed import Feed
from secant.maps.calls import first_tensor
from secant.trials import positions

CAUSAL = 1e-3
"""How far an earlier output may move, relative to the last, when the last token changes: rounding.

A model that looks ahead moves them by as much as the last, give or take a factor of ten.
"""
AT_ONCE = 2**22
"""Output entries that are turned to float64 at a time."""


@dataclass(frozen=True)
class Task:
    """How outputs are scored: cross-entropy in nats and share correct, a unit or a token."""

    kind: Literal["cross-entropy", "next token"]
    labels: Tensor | None = None

    @property
    def unit(self) -> str:
        """The unit of the loss."""
        return "nats" if self.kind == "cross-entropy" else "nats a token"

    def sums(
        self, output: Tensor, ids: Tensor | None, mask: Tensor | None, batch: Batch
    ) -> tuple[Tensor, Tensor, int]:
        """Loss and number correct, summed over one batch in float64, and how many were scored."""
        if self.labels is not None:
            wanted = self.labels[list(batch.units)].to(output.device)
            loss = functional.cross_entropy(output.double(), wanted, reduction="sum")
            return loss, (output.argmax(1) == wanted).sum().double(), len(wanted)
        assert ids is not None
        kept = torch.ones_like(ids[:, 1:], dtype=torch.bool) if mask is None else mask[:, 1:]
        loss = torch.zeros((), dtype=torch.float64, device=output.device)
        right = torch.zeros_like(loss)
        for logits, row, keep in zip(output[:, :-1], ids[:, 1:], kept, strict=True):
            # A unit at a time: a vocabulary wide, the whole batch in float64 would not fit.
            loss += functional.cross_entropy(logits[keep].double(), row[keep], reduction="sum")
            right += (logits[keep].argmax(1) == row[keep]).sum()
        return loss, right, int(kept.sum())

    def by_unit(
        self, output: Tensor, ids: Tensor | None, mask: Tensor | None, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """Loss of each unit of one batch, summed over its tokens, and their numbers, in float64.

        The loss of one token of a half-precision or single model is float32: a vocabulary wide in
        float64 would take as long as the model.
        """
        if self.labels is not None:
            wanted = self.labels[list(batch.units)].to(output.device)
            loss = functional.cross_entropy(output.double(), wanted, reduction="none")
            return loss, torch.ones_like(loss)
        assert ids is not None
        kept = torch.ones_like(ids[:, 1:], dtype=torch.bool) if mask is None else mask[:, 1:]
        rows = zip(output[:, :-1], ids[:, 1:], kept, strict=True)
        wide = torch.promote_types(output.dtype, torch.float32)
        losses = [
            functional.cross_entropy(logits[keep].to(wide), row[keep], reduction="none")
            .double()
            .sum()
            for logits, row, keep in rows
        ]
        return torch.stack(losses), kept.sum(1).double()


def task_of(feed: Feed, model: nn.Module) -> tuple[Task | None, str]:
    """The task that model and data have in common; if there is none, why.

    Labels of whole numbers with outputs (units, classes) give classes. Without labels, a model of
    tokens whose outputs (units, length, vocabulary) do not look ahead predicts the next; that is
    tried, not read off a name: the last token of the longest unit is changed.

    Raises: `InputError` for labels that the outputs have no classes for.
    """
    labels = feed.units.labels
    longest = max(range(len(feed.lengths)), key=feed.lengths.__getitem__)
    batch = Batch(0, (longest,))
    output = _output(feed, model, batch)
    if labels is not None:
        if labels.dtype != torch.int64 or labels.ndim != 1:
            return None, f"labels {tuple(labels.shape)} of {labels.dtype} are no classes"
        if output.ndim != 2:
            return None, f"labels need outputs (units, classes), not {tuple(output.shape)}"
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= output.shape[1]:
            raise InputError(
                f"labels {low}..{high} need as many classes, counted from 0; the output is "
                f"{tuple(output.shape)}. Give those of this model, or data without labels."
            )
        return Task("cross-entropy", labels), ""
    ids = token_ids(feed, batch)
    if ids is None:
        return None, "the data has no labels"
    is_of_tokens = output.ndim == 3 and output.shape[:2] == ids.shape and ids.shape[1] > 1
    if not is_of_tokens or output.shape[2] <= int(ids.max()):
        return None, "the data has no labels, and the outputs are not one row of logits a token"
    if _looks_ahead(feed, model, batch, output):
        return None, "the data has no labels, and the model looks ahead, so predicts no next token"
    return Task("next token"), ""


def token_ids(feed: Feed, batch: Batch) -> Tensor | None:
    """The tokens of a batch, (units, length), None if it has none."""
    inputs, _ = feed.inputs(batch)
    ids = inputs.get("input_ids") if isinstance(inputs, dict) else inputs
    if ids is None or ids.is_floating_point() or ids.ndim != 2:
        return None
    return ids


def _output(feed: Feed, model: nn.Module, batch: Batch) -> Tensor:
    forward, _ = feed.forward(model, batch)
    with torch.no_grad():
        return first_tensor(forward(), "(model)", "output")


def _looks_ahead(feed: Feed, model: nn.Module, batch: Batch, output: Tensor) -> bool:
    def other(value: Any) -> Any:
        if isinstance(value, Tensor) and not value.is_floating_point() and value.ndim == 2:
            changed = value.clone()
            changed[:, -1] = torch.where(value[:, -1] > 0, value[:, -1] - 1, value[:, -1] + 1)
            return changed
        return value

    def change(_: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if "input_ids" in kwargs:
            return args, kwargs | {"input_ids": other(kwargs["input_ids"])}
        return (other(args[0]), *args[1:]), kwargs

    handle = model.register_forward_pre_hook(change, with_kwargs=True)
    try:
        moved = (_output(feed, model, batch) - output).double().norm(dim=2)[0]
    finally:
        handle.remove()
    return bool(moved[:-1].max() > CAUSAL * moved[-1])


def counted(output: Tensor, mask: Tensor | None) -> Tensor:
    """The output, zero at the positions of padding, whatever stood there."""
    kept = positions(output, mask, "(model)")
    if kept is None:
        return output
    return torch.where(kept.view(*kept.shape, *[1] * (output.ndim - 2)), output, 0.0)


def parts_of(output: Tensor) -> Iterator[slice]:
    """Rows to be taken at a time, so that float64 copies stay small."""
    step = max(1, AT_ONCE * len(output) // max(output.numel(), 1))
    for start in range(0, len(output), step):
        yield slice(start, start + step)
