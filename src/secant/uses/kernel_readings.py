"""How the kernels of two models differ, and how each is aligned with the labels.

Holds: ``kernel_readings``; its parts ``kernel_reader``, ``reading_of``, ``without_each``,
``alignment``, ``one_hot``.
May import: torch, jaxtyping, ``secant.errors``, ``secant.engine``, ``secant.gauges``,
``secant.load``, ``secant.maps``, ``secant.curves``, ``secant.readings``, ``secant.uses``
(first_order, kernel, motion, pairs, scores).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor, nn
from torch.nn import functional

from secant.curves import with_controls
from secant.engine.plan import Batch
from secant.errors import InputError
from secant.gauges.interval import jackknife_interval
from secant.load.feed import Feed
from secant.load.loaded import device_of
from secant.maps.calls import first_tensor
from secant.maps.weights import part_of, run
from secant.readings import NO_INTERVAL, Reading, interval_of
from secant.uses.first_order import UNITS, Sample
from secant.uses.kernel import kernel, room
from secant.uses.motion import MOST_OUTPUTS, in_rows, kernel_alignment, kernel_drift, sketched
from secant.uses.pairs import WHOLE, line_between, random_line
from secant.uses.scores import counted

Gram = Float64[Tensor, "n n"]
Details = dict[str, Any]
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


def without_each(statistic: Statistic, groups: Tensor) -> tuple[float | None, list[float | None]]:
    """`statistic` of all rows, and of those outside each group; `groups` (n,) are the rows'."""
    every = torch.arange(len(groups))
    used = sorted(set(groups.tolist()))
    return statistic(every), [statistic(every[groups != group]) for group in used]


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
    groups = torch.tensor([member.group for member in sample.members])
    line = line_between(a, b, sample.model)
    stops = {"a": (line, 0.0), "b": (line, 1.0)}
    if has_controls:
        stops["random"] = random_line(line, seed), 1.0
    grams: dict[str, Gram] = {}
    try:
        gram_of, details = kernel_reader(sample, feed, seed)
        for done, (name, (one, t)) in enumerate(stops.items(), start=1):
            one.put(sample.model, t)
            grams[name] = gram_of()
            tell(done, len(stops))
    except InputError as error:
        return [Reading("weights", WHOLE, "kernel", "drift", None, None, {"units": sample.units},
                        {}, [str(error)], {})]  # fmt: skip
    turned: dict[str, Statistic] = {"drift": partial(_drift, grams["a"], grams["b"])}
    fits, beside = dict[str, Statistic](), dict[str, Statistic]()
    if classes is not None:
        targets = one_hot(classes[[member.unit for member in sample.members]])
        fits = {f"alignment {end}": partial(alignment, grams[end], targets) for end in ("a", "b")}
    if has_controls:
        beside["drift"] = partial(_drift, grams["a"], grams["random"])
        if classes is not None:
            beside["alignment b"] = partial(alignment, grams["random"], targets)
    found, controls = (
        [reading_of(variant, statistic, groups, details)
         for variant, statistic in statistics.items()]
        for statistics in (turned | fits, beside)
    )  # fmt: skip
    joined = []
    for reading in found:
        of_it = [control for control in controls if control.variant == reading.variant]
        joined += with_controls([reading], {"random": of_it} if of_it else {})
    return joined


def kernel_reader(sample: Sample, feed: Feed, seed: int) -> tuple[Callable[[], Gram], Details]:
    """What gives the kernel at the sample's weights of now, and what it is made of.

    Raises: `InputError` for a model that has no kernel.
    """
    units = tuple(member.unit for member in sample.members)
    inputs, mask = feed.inputs(Batch(0, units))
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
        most = room(device_of(read))
        gram = kernel(read, batch, outputs=outputs, parameters=names, memory_bytes=most)
        return gram.to("cpu", torch.float64)

    return gram_of, {"outputs": width, "is_sketched": width > MOST_OUTPUTS}


def one_hot(classes: Tensor) -> Float64[Tensor, "n k"]:
    """Labels, any whole numbers, as columns of 0 and 1."""
    return functional.one_hot(torch.unique(classes.cpu(), return_inverse=True)[1]).double()


def _drift(one: Gram, other: Gram, rows: Tensor) -> float | None:
    return kernel_drift(one[rows][:, rows], other[rows][:, rows])


def alignment(gram: Gram, targets: Float64[Tensor, "n k"], rows: Tensor) -> float | None:
    """That of some rows and columns of a kernel with the labels of the same rows."""
    return kernel_alignment(gram[rows][:, rows], targets[rows])


def reading_of(variant: str, statistic: Statistic, groups: Tensor, details: Details) -> Reading:
    """A number of the kernel with its jackknife interval, cut to 0 and 1 as the number is."""
    value, left_out = without_each(statistic, groups)
    interval, warnings = None, []
    if value is None:
        warnings.append(LACKS)
    else:
        values = torch.tensor(
            [torch.nan if one is None else one for one in left_out], dtype=torch.float64
        )
        interval = interval_of(jackknife_interval(value, values))
        if interval is None:
            warnings.append(NO_INTERVAL)
        else:
            interval = (max(interval[0], 0.0), min(interval[1], 1.0))
    return Reading(
        "weights", WHOLE, "kernel", variant, value, interval, {"units": len(groups)}, {}, warnings,
        details | {"of_all_groups": value, "without_each_group": left_out},
    )  # fmt: skip
