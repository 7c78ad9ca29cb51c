"""How far a changed model is from the one it was made of: loss and outputs.

Holds: ``Sums``, ``output_sums``, ``told``, ``change``.
May import: torch, ``secant.errors``, ``secant.engine``, ``secant.gauges``, ``secant.load``,
``secant.maps``, ``secant.trials``, ``secant.uses`` (scores, walks).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from secant.engine.plan import Batch
from secant.errors import InputError
from secant.gauges.interval import GROUPS
from secant.load.feed import Feed
from secant.maps.calls import first_tensor
from secant.trials import positions
from secant.uses.scores import Task, parts_of, token_ids
from secant.uses.walks import mean_of


class Sums(NamedTuple):
    """By group of units, those with none left out: loss, number correct, how many were scored.

    Without a task: squared change of the outputs, zeros, and their squared distance from the mean.
    """

    loss: Tensor
    right: Tensor
    counts: Tensor


def output_sums(feed: Feed, model: nn.Module, other: nn.Module, task: Task | None) -> Sums:
    """The loss of `other` on every unit; without a task, how far its outputs are from `model`'s.

    Cost: a pass over the data; without a task one of each model.
    Raises: `InputError` without a task for outputs that are no rows of one width.
    """
    if task is None:
        return _changed(feed, model, other)
    loss, right, counts = (torch.zeros(GROUPS, dtype=torch.float64) for _ in range(3))
    own = replace(task, labels=feed.units.labels)
    for batch in feed.batches:
        output, mask = _output(feed, other, batch)
        ids = None if task.labels is not None else token_ids(feed, batch)
        lost, hit, count = own.sums(output, ids, mask, batch)
        loss[batch.group] += lost.cpu()
        right[batch.group] += hit.cpu()
        counts[batch.group] += count
    filled = counts > 0
    return Sums(loss[filled], right[filled], counts[filled])


def _changed(feed: Feed, model: nn.Module, other: nn.Module) -> Sums:
    """Sums by group, whose distance from the mean of all is taken at the end.

    So no number depends on how units lie in batches. The outputs are summed about the mean of the
    first rows, for a mean that is large beside their spread would leave nothing of it.
    """
    moved, squares, counts = (torch.zeros(GROUPS, dtype=torch.float64) for _ in range(3))
    centre: Tensor | None = None
    sums = torch.zeros(GROUPS, 0, dtype=torch.float64)
    for batch in feed.batches:
        kept, new = (_rows(*_output(feed, one, batch)) for one in (model, other))
        for part in parts_of(kept):
            rows = kept[part].double()
            if centre is None:
                centre = rows.mean(0)
                sums = torch.zeros(GROUPS, len(centre), dtype=torch.float64)
            if rows.shape[1] != len(centre):
                raise InputError(
                    "linearize-state: without a loss, outputs must be rows of one width; got "
                    f"{len(centre)} and {rows.shape[1]}. Give units of one length, or outputs "
                    "(batch, length, features)."
                )
            off = rows - centre
            moved[batch.group] += (new[part].double() - rows).square().sum().cpu()
            sums[batch.group] += off.sum(0).cpu()
            squares[batch.group] += off.square().sum().cpu()
            counts[batch.group] += len(rows)
    filled = counts > 0
    moved, sums, squares, counts = (one[filled] for one in (moved, sums, squares, counts))
    mean = sums.sum(0) / counts.sum()
    whole = squares - 2 * sums @ mean + counts * mean.square().sum()
    return Sums(moved, torch.zeros_like(moved), whole.clamp_min(0))


def _output(feed: Feed, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor | None]:
    forward, mask = feed.forward(model, batch)
    with torch.no_grad():
        return first_tensor(forward(), "(model)", "output"), mask


def _rows(output: Tensor, mask: Tensor | None) -> Tensor:
    """One row a unit, or of (batch, positions, ...) one each position that counts."""
    if output.ndim == 0:
        raise InputError(
            "linearize-state: without a loss, the model must give outputs of each unit; got one "
            "number a batch. Give labels, or name the output with --call."
        )
    if output.ndim <= 2:
        return output.reshape(len(output), -1)
    kept = positions(output, mask, "(model)")
    return (output if kept is None else output[kept].unsqueeze(0)).flatten(0, -2)


# Telling -----------------------------------------------------------------------------------


def told(sums: Sums, task: Task | None) -> dict[str, Any]:
    """Loss and accuracy with their intervals; nothing without a task."""
    if task is None:
        return {}
    hits = mean_of(sums.right, sums.counts)
    if hits["interval"] is not None:  # a share, which the jackknife does not know
        hits["interval"] = (max(hits["interval"][0], 0.0), min(hits["interval"][1], 1.0))
    return {"loss": mean_of(sums.loss, sums.counts), "accuracy": hits}


def change(before: Sums, after: Sums) -> dict[str, Any]:
    """The loss after less before, paired by group; without a task, the share of the variance."""
    return mean_of(after.loss - before.loss, after.counts)
