"""How the kernels of two models differ, and how each is aligned with the labels.

Holds: ``kernel_readings``, ``without_each``.
May import: torch, jaxtyping, ``secant.errors``, ``secant.engine``, ``secant.gauges``,
``secant.load``, ``secant.maps``, ``secant.readings``, ``secant.uses`` (first_order, kernel,
motion, pairs, scores).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor, nn
from torch.nn import functional

from secant.engine.plan import Batch
from secant.errors import InputError
from secant.gauges.interval import jackknife_interval
from secant.load.feed import Feed
from secant.maps.calls import first_tensor
from secant.maps.weights import part_of, run
from secant.readings import NO_INTERVAL, Reading, interval_of
from secant.uses.first_order import UNITS, Sample
from secant.uses.kernel import kernel
from secant.uses.motion import MOST_OUTPUTS, in_rows, kernel_alignment, kernel_drift, sketched
from secant.uses.pairs import WHOLE, line_between, random_line
from secant.uses.scores import counted

Gram = Float64[Tensor, "n n"]
Statistic = Callable[[Tensor], float | None]
"""A number of some of the rows, given by their places."""
INPUT, MASK = "the input", "the mask"
"""Names that no model has for an argument."""
LACKS = "A kernel, or the labels, have no part that varies or is finite: no angle exists."
Tell = Callable[[int, int], None]


class _Read(nn.Module):
    """A model called with a mapping of tensors whose rows are units; outputs at padding are 0."""

    def __init__(self, model: nn.Module, feed: Feed) -> None:
        super().__init__()
        self.model = model
        self.call = feed.loaded.call or run

    def forward(self, **batch: Tensor) -> Tensor:
        mask = batch.pop(MASK, None)
        output = self.call(self.model, batch.get(INPUT, batch))
        return counted(first_tensor(output, WHOLE, "output"), mask)


class _Found(NamedTuple):
    """A statistic of all rows and with each group left out."""

    value: float | None
    left_out: list[float | None]

    def held(self) -> dict[str, Any]:
        """The value with its interval, which is cut to 0 and 1 as the statistic is."""
        ends = self.interval()
        interval = None if ends is None else (max(ends[0], 0.0), min(ends[1], 1.0))
        return {"value": self.value, "interval": interval}

    def less(self, other: _Found) -> dict[str, Any]:
        """The difference, a group left out of both at once."""
        first, *rest = (
            None if one is None or beside is None else one - beside
            for one, beside in zip(
                [self.value, *self.left_out], [other.value, *other.left_out], strict=True
            )
        )
        apart = _Found(first, rest)
        return {"value": apart.value, "interval": apart.interval()}

    def interval(self) -> tuple[float, float] | None:
        """Of the jackknife; None where a value is."""
        if self.value is None:
            return None
        left_out = torch.tensor(
            [torch.nan if one is None else one for one in self.left_out], dtype=torch.float64
        )
        return interval_of(jackknife_interval(self.value, left_out))


def without_each(statistic: Statistic, groups: Tensor) -> _Found:
    """`statistic` of all rows, and of those outside each group; `groups` (n,) are the rows'."""
    every = torch.arange(len(groups))
    used = sorted(set(groups.tolist()))
    return _Found(statistic(every), [statistic(every[groups != group]) for group in used])


def kernel_readings(
    a: nn.Module,
    b: nn.Module,
    feed: Feed,
    classes: Tensor | None,
    *,
    seed: int,
    has_controls: bool,
    tell: Tell,
) -> list[Reading]:
    r"""Gauge `kernel`: how far the empirical kernel turns from A to B, and its use for the labels.

    Variant `drift` is 1 - <K_A, K_B> / (|K_A| |K_B|): 0 where one is the other times a number, 1
    where they share nothing. With `classes`, `alignment a` and `alignment b` are the centred
    alignment of each kernel with that of the labels (see `uses.motion`). Kernels are traces over
    outputs; of more than `MOST_OUTPUTS` a row, so many sketches. Each is the model's own, with
    BatchNorm's statistics as stored. Control `random`: A's kernel against that of a step as long
    in every tensor, anywhere; its alignment stands beside that of B.

    In float64 on the sample of the tangent, a kernel row a unit. Intervals are jackknives that
    leave out the rows and columns of a group. Diagonals count, so values are those of samples of
    this size.

    Cost: for each kernel (three, two without controls) a forward and at most `MOST_OUTPUTS`
    derivatives of `UNITS` units, and the products of all pairs of them; memory A in float64,
    three times its weights, and what `kernel` keeps to.

    Where a model has no kernel (random outputs, units normalised by their batch) the reading has
    no value and says why.
    """
    sample = Sample(a, feed, seed, batch_size=UNITS)
    units = [member.unit for member in sample.members]
    groups = torch.tensor([member.group for member in sample.members])
    samples = {"units": sample.units}
    line = line_between(a, b, sample.model)
    stops = {"a": (line, 0.0), "b": (line, 1.0)}
    if has_controls:
        stops["random"] = random_line(line, seed), 1.0
    grams: dict[str, Gram] = {}
    try:
        gram_of, details = _reader(sample, feed, units, seed)
        for done, (name, (one, t)) in enumerate(stops.items(), start=1):
            one.put(sample.model, t)
            grams[name] = gram_of()
            tell(done, len(stops))
    except InputError as error:
        return [Reading("weights", WHOLE, "kernel", "drift", None, None, samples, {},
                        [str(error)], {})]  # fmt: skip
    wanted: dict[str, Statistic] = {
        "drift": partial(_drift, grams["a"], grams["b"]),
    }
    controls: dict[str, Statistic] = {}
    if has_controls:
        controls["drift"] = partial(_drift, grams["a"], grams["random"])
    if classes is not None:
        targets = functional.one_hot(classes[units].cpu()).double()
        for end in ("a", "b"):
            wanted[f"alignment {end}"] = partial(_alignment, grams[end], targets)
        if has_controls:
            controls["alignment b"] = partial(_alignment, grams["random"], targets)
    return [
        _reading(variant, statistic, controls.get(variant), groups, samples, details)
        for variant, statistic in wanted.items()
    ]


def _reader(
    sample: Sample, feed: Feed, units: Sequence[int], seed: int
) -> tuple[Callable[[], Gram], dict[str, Any]]:
    """What gives the kernel at the sample's weights of now, and what it is made of."""
    inputs, mask = feed.inputs(Batch(0, tuple(units)))
    batch = inputs if isinstance(inputs, dict) else {INPUT: inputs}
    if mask is not None:
        batch = batch | {MASK: mask}
    read = _Read(sample.model, feed)
    with torch.no_grad():
        width = in_rows(run(read, part_of(batch, 0, 2))).shape[1]
    outputs: Callable[[Any], Tensor] = in_rows
    if width > MOST_OUTPUTS:
        outputs = sketched(in_rows, width, torch.Generator().manual_seed(seed))
    names = [f"model.{name}" for name in sample.names]

    def gram_of() -> Gram:
        return kernel(read, batch, outputs=outputs, parameters=names).to("cpu", torch.float64)

    return gram_of, {"outputs": width, "is_sketched": width > MOST_OUTPUTS}


def _drift(one: Gram, other: Gram, rows: Tensor) -> float | None:
    return kernel_drift(one[rows][:, rows], other[rows][:, rows])


def _alignment(gram: Gram, targets: Float64[Tensor, "n k"], rows: Tensor) -> float | None:
    return kernel_alignment(gram[rows][:, rows], targets[rows])


def _reading(
    variant: str,
    statistic: Statistic,
    control: Statistic | None,
    groups: Tensor,
    samples: dict[str, int],
    details: dict[str, Any],
) -> Reading:
    found = without_each(statistic, groups)
    held, beside = found.held(), {}
    if control is not None:
        other = without_each(control, groups)
        beside["random"] = other.held() | {"difference": found.less(other)}
    warnings = []
    if held["value"] is None:
        warnings.append(LACKS)
    elif held["interval"] is None:
        warnings.append(NO_INTERVAL)
    return Reading(
        "weights", WHOLE, "kernel", variant, held["value"], held["interval"], samples, beside,
        warnings, details | {"without_each_group": found.left_out},
    )  # fmt: skip
