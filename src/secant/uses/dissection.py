"""A captured model with one operation replaced at a time: what moves, group by group.

Holds: ``Subject``, ``Tally``, ``site_of``, ``TOGETHER``.
May import: torch, ``secant.engine``, ``secant.gauges``, ``secant.load``, ``secant.maps``,
``secant.uses``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional

from secant.engine.plan import Batch
from secant.errors import InputError
from secant.gauges.interval import GROUPS
from secant.load.feed import Feed
from secant.load.models import Loaded
from secant.maps.affinity import Operation, operations
from secant.maps.graph import ROW, STATIC, UNKNOWN, Captured, capture
from secant.uses.affine_maps import Affine, Sums
from secant.uses.surrogates import (
    Arrange,
    Arranged,
    by_entry,
    counted,
    flat,
    stand_for,
    unflat,
)

TOGETHER = "all of them together"


def site_of(operation: Operation) -> str:
    """Module path and operation, the name of its readings' site."""
    return f"{operation.path or '(model)'} {operation.name}"


class Inputs(nn.Module):
    """Stands where the model is called, and gives back what it was called with."""

    def forward(self, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments."""
        return args, kwargs


@dataclass
class Tally:
    """Sums over held-out units for one change to the model, group by group."""

    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, group: int, value: Tensor) -> None:
        """Add to the sum of one group."""
        by_group = self.sums.setdefault(name, torch.zeros(GROUPS, dtype=torch.float64))
        by_group[group] += value.double()

    def mean(self, name: str) -> float:
        """The sum over all groups, a unit."""
        return float(self.sums[name].sum() / self.sums["units"].sum())


class Subject:
    """A captured model, the stand-ins of its operations, and the passes over the data."""

    def __init__(self, feed: Feed, loaded: Loaded) -> None:
        self.feed, self.model, self.name = feed, loaded.model, loaded.name
        example = max(feed.batches, key=lambda batch: len(batch.units))
        args, kwargs, mask = self.inputs(example)
        sizes = [mask.shape[1]] if mask is not None else []
        if min([len(example.units), *sizes]) < 2:
            raise InputError(
                "anatomy: an example batch of at least 2 units (of 2 tokens) is needed to export "
                f"the model; the largest has {len(example.units)}. Give more data or a larger "
                "batch size."
            )
        with torch.no_grad():
            self.expected(example)
        self.captured: Captured = capture(
            loaded.model, loaded.name, args, kwargs, has_length=mask is not None
        )
        self.operations, self.affine = operations(self.captured)
        self.layout = self.captured.layout(self.captured.output)
        if self.layout.count(ROW) != 1 or UNKNOWN in self.layout:
            raise InputError(
                f"model {self.name!r} must give one output a unit, (batch, ...) or (batch, length, "
                f"...); its first has the shape {tuple(self.captured.output.meta['val'].shape)}. "
                "Wrap the model so that it returns such an output first."
            )
        self.stands = {o: stand_for(self.captured, o) for o in self.operations}
        self.after = {o: self.captured.after({o.node}) for o in self.operations}
        fitted = [o for o in self.operations if self.stands[o].arrange is not None]
        self.chain = {n for o in fitted for n in self.after[o]}
        self.maps: dict[Operation, Affine | None] = {}
        self.sums = {o: Sums() for o in self.operations}
        self.output_sum: tuple[Tensor, int] | None = None

    def inputs(self, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any], Tensor | None]:
        """What the model is called with on one batch."""
        forward, mask = self.feed.forward(Inputs(), batch)
        args, kwargs = forward()
        return args, kwargs, mask

    def expected(self, batch: Batch) -> Any:
        """The model's own output."""
        forward, _ = self.feed.forward(self.model, batch)
        try:
            return forward()
        except RuntimeError as error:
            raise InputError(
                f"model {self.name!r} refuses the data: {str(error).splitlines()[0]} "
                "Check that the data has the shape that the model was made for."
            ) from error

    def run(self, batch: Batch) -> tuple[dict[Node, Any], Tensor | None]:
        """Every value of the graph on one batch, checked against the model, and the mask."""
        args, kwargs, mask = self.inputs(batch)
        values = self.captured.run(args, kwargs)
        self.captured.check(values, self.expected(batch))
        return values, mask

    def arrange(self, operation: Operation) -> Arrange | None:
        """The operation's rows; of one without a fit, its entries, so that they have a mean."""
        arrange = self.stands[operation].arrange
        layout = self.captured.layout(operation.node)
        if arrange is None and layout.count(ROW) == 1 and UNKNOWN not in layout:

            def alone(values: dict[Node, Any]) -> Arranged:
                y = values[operation.node]
                return by_entry(layout, y, [torch.zeros_like(y)])

            return alone
        return arrange

    def output_rows(self, output: Tensor, mask: Tensor | None) -> Tensor:
        """The output as (features, rows, 1), float64, without padding."""
        return counted(by_entry(self.layout, output, [output]), mask)[1]

    def fit(self, batches: Sequence[Batch], tell: Callable[[Batch], None]) -> None:
        """One pass: the moments of every operation, then the maps."""
        arranges = {o: self.arrange(o) for o in self.operations}
        self.arranges = {o: a for o, a in arranges.items() if a is not None}
        for batch in batches:
            values, mask = self.run(batch)
            part = int(batch.group // 2 % 5 == 4)
            for operation, arrange in self.arranges.items():
                self.sums[operation].add(*counted(arrange(values), mask), part)
            rows = self.output_rows(values[self.captured.output], mask)
            if self.output_sum is None:
                self.output_sum = torch.zeros_like(rows[:, :1]), 0
            summed, number = self.output_sum
            self.output_sum = summed + rows.sum(1, keepdim=True), number + rows.shape[1]
            tell(batch)
        self.maps = {o: self.sums.pop(o).solve() for o in self.arranges}

    def stand_in(self, operation: Operation, values: dict[Node, Any], *, constant: bool) -> Tensor:
        """The operation's value from its map (or its mean alone), everywhere."""
        arranged = self.arranges[operation](values)
        affine = self.maps[operation]
        assert affine is not None
        if constant:
            rows = affine.mean.expand(-1, flat(arranged, arranged.y).shape[1], -1)
        else:
            rows = flat(arranged, arranged.x).double() @ affine.weight + affine.bias
        value = values[operation.node]
        # The operation's own strides, on which a later view may rely.
        return torch.empty_like(value).copy_(unflat(arranged, rows))

    def score(
        self, batches: Sequence[Batch], labels: Tensor | None, tell: Callable[[Batch], None]
    ) -> tuple[dict[tuple[str, str], Tally], Tally]:
        """Replace, run on, compare; `(site, variant)` to sums, and those of the model itself."""
        tallies: dict[tuple[str, str], Tally] = {}
        base = Tally()
        fitted = [o for o in self.maps if self.is_fitted(o)]
        for batch in batches:
            values, mask = self.run(batch)
            before = values[self.captured.output]
            self.tally(base, batch, before, None, mask, labels)
            for operation in self.maps:
                if self.maps[operation] is None or not self.reaches(operation):
                    continue
                for variant in ("affine", "constant"):
                    if variant == "affine" and not self.is_fitted(operation):
                        continue
                    tally = tallies.setdefault((site_of(operation), variant), Tally())
                    if variant == "affine":
                        self.tally_local(tally, operation, batch, values, mask)
                    scratch = dict(values)
                    scratch[operation.node] = self.stand_in(
                        operation, values, constant=variant == "constant"
                    )
                    self.captured.evaluate(scratch, self.after[operation])
                    after = scratch[self.captured.output]
                    self.tally(tally, batch, after, before, mask, labels)
            if len(fitted) > 1:
                tally = tallies.setdefault((TOGETHER, "affine"), Tally())
                after = self.all_replaced(values, fitted)
                self.tally(tally, batch, after, before, mask, labels)
            tell(batch)
        return tallies, base

    def all_replaced(self, values: dict[Node, Any], fitted: Sequence[Operation]) -> Tensor:
        """The output with every fitted operation replaced, each from what reaches it then."""
        scratch = dict(values)
        by_node = {operation.node: operation for operation in fitted}
        for node in self.captured.nodes:
            if node in by_node:
                scratch[node] = self.stand_in(by_node[node], scratch, constant=False)
            elif node in self.chain:
                self.captured.evaluate(scratch, [node])
        output: Tensor = scratch[self.captured.output]
        return output

    def is_fitted(self, operation: Operation) -> bool:
        """Whether an affine fit of it exists."""
        return self.stands[operation].arrange is not None and self.maps.get(operation) is not None

    def reaches(self, operation: Operation) -> bool:
        """Whether the measured output depends on it."""
        return bool(self.after[operation]) or operation.node is self.captured.output

    def tally(
        self,
        tally: Tally,
        batch: Batch,
        output: Tensor,
        before: Tensor | None,
        mask: Tensor | None,
        labels: Tensor | None,
    ) -> None:
        """Add one batch: how far the output is from `before`, or from the mean if None."""
        group = batch.group // 2
        rows = self.output_rows(output, mask)
        assert self.output_sum is not None
        if before is None:
            around = self.output_sum[0] / self.output_sum[1]
        else:
            around = self.output_rows(before, mask)
        tally.add("squares", group, (rows - around).square().sum())
        tally.add("units", group, torch.tensor(len(batch.units)))
        if labels is not None:
            wanted = labels[list(batch.units)]
            loss = functional.cross_entropy(output.double(), wanted, reduction="sum")
            tally.add("loss", group, loss)
            tally.add("accuracy", group, (output.argmax(1) == wanted).sum())

    def tally_local(
        self,
        tally: Tally,
        operation: Operation,
        batch: Batch,
        values: dict[Node, Any],
        mask: Tensor | None,
    ) -> None:
        """Residual and total of the fit at the operation itself."""
        affine = self.maps[operation]
        assert affine is not None
        x, y = counted(self.arranges[operation](values), mask)
        group = batch.group // 2
        residual = (y - x @ affine.weight - affine.bias).square().sum()
        tally.add("local_residual", group, residual)
        tally.add("local_total", group, (y - affine.mean).square().sum())

    def check_labels(self, labels: Tensor, batch: Batch) -> None:
        """Refuse labels that the output has no classes for."""
        shape = self.run(batch)[0][self.captured.output].shape
        low, high = int(labels.min()), int(labels.max())
        if len(shape) != 2 or self.layout[1] != STATIC or low < 0 or high >= shape[1]:
            raise InputError(
                f"anatomy: labels {low}..{high} need an output (batch, classes) with as many "
                f"classes, counted from 0; it is {tuple(shape)}. Leave `labels` out, or give those "
                "of this model."
            )
