"""Anatomy: what in a model is not affine, and what each such operation is worth.

Holds: ``anatomy`` and its result ``Anatomy``.
May import: torch, scipy, ``secant.engine``, ``secant.gauges``, ``secant.load``, ``secant.maps``,
``secant.readings``, ``secant.uses.dissection``.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student
from torch import Tensor, nn

from secant.engine.plan import Batch
from secant.errors import InputError
from secant.gauges.interval import GROUPS, few_units, ratio_interval
from secant.load.data import Units, load_data
from secant.load.feed import Feed
from secant.load.models import Loaded, load_model
from secant.maps.affinity import Operation
from secant.readings import NO_INTERVAL, SCHEMA, Reading, interval_of, number, plain, write
from secant.uses.dissection import TOGETHER, Subject, Tally, site_of

Progress = Callable[[str, int, int], None]
ROWS_PER_REGRESSOR = 10
NOT_SEEN = "It does not lead to the measured output (the model's first)."


@dataclass(frozen=True)
class Anatomy:
    """Every operation of a model that is not affine, as readings beside their controls.

    `readings` are in the order of the graph, up to three for each site (module path and
    operation): variant `output` is the change of the output, `loss` and `accuracy` exist with
    labels. Readings rather than a type of its own, so that what compares and stores the
    readings of a report does so with these. `affine` counts the operations left alone because
    they are affine in the data; `units` those fitted on and those scored on.
    """

    model: str
    data: str
    affine: int
    units: dict[str, int]
    baseline: dict[str, float]
    readings: list[Reading]
    seed: int
    cost: dict[str, float]
    versions: dict[str, str]
    schema: int = SCHEMA

    def as_dict(self) -> dict[str, Any]:
        """Plain data; numbers that do not exist are None."""
        return plain(asdict(self))  # type: ignore[no-any-return]

    def save(self, path: Path) -> None:
        """Write the JSON whole or not at all.

        Raises: `InputError` if it cannot be written.
        """
        write(path, json.dumps(self.as_dict(), indent=1, allow_nan=False))


def anatomy(
    model: str | nn.Module | Loaded,
    data: str | Tensor | Units = "demo:digits",
    *,
    labels: Tensor | None = None,
    column: str = "text",
    rows: int | None = 512,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress = lambda label, done, total: None,
) -> Anatomy:
    r"""Replace each operation that is not affine in the data, alone, by its best affine fit.

    The change of the output, over held-out units u and, in token models, unpadded positions:

    .. math:: \sum_u \|f'(u) - f(u)\|^2 / \sum_u \|f(u) - \bar f\|^2

    with f' the model with one operation replaced and the mean taken over the units of the fit.
    No unit. 0: replacing it changes nothing; 1: the output moves as much as it varies. Its
    control `constant` replaces the operation by its mean: how much it matters at all. With
    `labels` also the rise in mean cross-entropy (nats) and in accuracy (a fall is negative),
    paired unit by unit. `details["local_r2"]` is the held-out R² of the fit at the operation.

    Half of the units, by a hash of their content, give the moments of every operation in one
    pass (the ridge is chosen on a fifth of them); the other half is scored, in groups that give
    the 95 % interval. `details["how"]` says from what each operation is fitted: entries of an
    operation that acts on entries have an intercept and slopes each; norms and softmax a full
    map of their row; attention, for each head, a map of the query, key and value at the
    position and of the mean of the values that the query may see. Fits are made on the
    untouched model; the last site replaces all of them at once. What depends on the data is
    said in `secant.maps.affinity`.

    Args:
        model: `demo:NAME`, a Hugging Face directory, or a module in eval mode.
        data: as in `survey`, or a tensor whose first dimension is the unit.
        labels: one class a unit, for outputs (batch, classes); `demo:digits` brings its own.
        rows: use the first so many units; all if None.

    Raises: `InputError` for a model that cannot be exported or whose forward pass the graph
    does not reproduce, for labels that do not fit, and for too few units.

    Cost: one pass for the moments, then for each operation and its control what comes after it
    in the forward pass, over half of the units. One batch's values are held at a time.
    """
    started = time.perf_counter()
    loaded = _as_loaded(model)
    units, labels = _units_and_labels(data, labels, column, rows)
    feed = Feed(loaded, units, groups=2 * GROUPS, batch_size=batch_size, seed=seed)
    fitted = [batch for batch in feed.batches if batch.group % 2 == 0]
    scored = [batch for batch in feed.batches if batch.group % 2 == 1]
    if not fitted or len({batch.group for batch in scored}) < 3:
        raise InputError(
            "anatomy: half of the units must be there to fit, and the others must fill at least "
            f"3 groups; got {len(units)} units. Give some dozens."
        )
    subject = Subject(feed, loaded)
    total = sum(len(batch.units) for batch in feed.batches)
    done = 0

    def tell(batch: Batch) -> None:
        nonlocal done
        done += len(batch.units)
        progress(loaded.name, done, total)

    with torch.inference_mode():
        subject.fit(fitted, tell)
        if labels is not None:
            subject.check_labels(labels, scored[0])
        tallies, base = subject.score(scored, labels, tell)
    count = {
        "fitted": sum(len(b.units) for b in fitted),
        "scored": sum(len(b.units) for b in scored),
    }
    readings = _readings(subject, tallies, base, count["scored"])
    packages = ("secant", "torch", "numpy")
    return Anatomy(
        loaded.name, units.name, subject.affine, count,
        {key: base.mean(key) for key in ("loss", "accuracy") if key in base.sums},
        readings, seed, {"seconds": time.perf_counter() - started},
        {"python": platform.python_version()} | {p: version(p) for p in packages},
    )  # fmt: skip


def _as_loaded(model: str | nn.Module | Loaded) -> Loaded:
    if isinstance(model, Loaded):
        return model
    if isinstance(model, str):
        return load_model(model)

    def fresh(_: int) -> nn.Module:
        raise AssertionError("anatomy needs no fresh weights")

    return Loaded(type(model).__name__, model, None, fresh)


def _units_and_labels(
    data: str | Tensor | Units, labels: Tensor | None, column: str, rows: int | None
) -> tuple[Units, Tensor | None]:
    if isinstance(data, str):
        units = load_data(data, column)
        if data == "demo:digits" and labels is None:
            from secant.load.demo import digits

            labels = digits()[1]
    else:
        units = Units("tensor", tensor=data) if isinstance(data, Tensor) else data
    if labels is not None and (len(labels) != len(units) or labels.dtype != torch.int64):
        raise InputError(
            f"anatomy: `labels` must be one int64 class a unit; got {tuple(labels.shape)} of "
            f"{labels.dtype} for {len(units)} units. Give one number for each."
        )
    return units.first(rows), None if labels is None else labels[:rows]


Interval = tuple[float, float]
Changed = tuple[float | None, Interval | None]


def mean_interval(sums: Tensor, counts: Tensor, level: float = 0.95) -> Interval:
    """Confidence interval for the mean ``sum(sums) / sum(counts)`` over units, group by group.

    The jackknife over groups with a Student quantile, groups less one. Unlike
    `ratio_interval` it takes sums of either sign, such as changes of a loss. For groups of one
    size it is the t interval of the groups' means.
    """
    groups = len(sums)
    others = (sums.sum() - sums) / (counts.sum() - counts)
    mean = float(sums.sum() / counts.sum())
    spread = float(((groups - 1) / groups * (others - others.mean()).square().sum()).sqrt())
    reach = float(student.ppf((1 + level) / 2, groups - 1)) * spread
    return mean - reach, mean + reach


def _ratio(part: Tensor, whole: Tensor) -> Changed:
    """sum(part) / sum(whole) with its interval; None where there is nothing to divide by."""
    filled = whole > 0
    if not bool(filled.any()):
        return None, None
    low, high = ratio_interval(part[filled], whole[filled])
    return number(float(part.sum() / whole.sum())), interval_of((1 - high, 1 - low))


def _change(tally: Tally, base: Tally, variant: str) -> Changed:
    """The value of one variant and its interval."""
    if variant == "output":
        return _ratio(tally.sums["squares"], base.sums["squares"])
    counts = base.sums["units"]
    filled = counts > 0
    difference = (tally.sums[variant] - base.sums[variant])[filled]
    interval = mean_interval(difference, counts[filled])
    return number(tally.mean(variant) - base.mean(variant)), interval_of(interval)


def _readings(
    subject: Subject, tallies: dict[tuple[str, str], Tally], base: Tally, scored: int
) -> list[Reading]:
    """Up to three readings a site, in the order of the graph, and those of all at once."""
    variants = [v for v in ("output", "loss", "accuracy") if v == "output" or v in base.sums]
    found = []
    sites: list[tuple[str, Operation | None]] = [(site_of(o), o) for o in subject.operations]
    for site, operation in [*sites, (TOGETHER, None)]:
        affine, constant = tallies.get((site, "affine")), tallies.get((site, "constant"))
        if operation is None and affine is None:
            continue
        details, warnings = _about(subject, operation, affine)
        for variant in variants:
            value, interval = _change(affine, base, variant) if affine else (None, None)
            beside = {}
            if constant is not None:
                control, reach = _change(constant, base, variant)
                beside["constant"] = {"value": control, "interval": reach}
            notes = warnings + few_units(scored)
            if affine and value is None:
                notes.append("The output does not vary or is not finite on this data.")
            elif affine and interval is None:
                notes.append(NO_INTERVAL)
            samples = {"units": scored} | ({"rows": details["rows"]} if "rows" in details else {})
            found.append(
                Reading(
                    "features", site, "anatomy", variant, value, interval, samples, beside,
                    notes, details,
                )
            )  # fmt: skip
    return found


def _about(
    subject: Subject, operation: Operation | None, tally: Tally | None
) -> tuple[dict[str, Any], list[str]]:
    """What a reading says of its operation and fit, and its warnings."""
    if operation is None:
        return {"how": "each from what reaches it when the others are replaced too"}, []
    how = subject.stands[operation].how
    details: dict[str, Any] = {
        "module": operation.path,
        "operation": operation.name,
        "inputs": len(operation.inputs),
        "how": how,
    }
    if not subject.reaches(operation):
        return details, [NOT_SEEN]
    if subject.stands[operation].arrange is None:
        return details, [f"No affine fit is made: {how}."]
    affine = subject.maps[operation]
    if affine is None or tally is None:
        return details, ["No affine fit exists: its values are not finite on this data."]
    local, interval = _ratio(tally.sums["local_residual"], tally.sums["local_total"])
    regressors = affine.weight.shape[1]
    details |= {
        "local_r2": None if local is None else 1 - local,
        "local_interval": interval and (1 - interval[1], 1 - interval[0]),
        "ridge": affine.ridge,
        "rows": affine.rows,
        "regressors": regressors,
    }
    if affine.rows < ROWS_PER_REGRESSOR * regressors:
        return details, [
            f"{affine.rows} rows for {regressors} regressors; at least "
            f"{ROWS_PER_REGRESSOR * regressors} are wanted, so the fit is held back by its sample."
        ]
    return details, []
