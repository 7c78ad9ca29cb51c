"""A merge judged before it is trusted: its loss beside its parents', and the barrier between these.

Holds: ``judge``.
May import: torch, ``secant.errors``, ``secant.gauges``, ``secant.load``, ``secant.readings``,
``secant.surveys``, ``secant.uses``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from secant.errors import InputError
from secant.gauges.interval import GROUPS, few_units
from secant.load.checkpoints import INDEX, weights_in
from secant.load.data import load_data
from secant.load.feed import Feed
from secant.load.models import Loaded, load_model
from secant.load.options import LoadOptions
from secant.readings import ModelReport, Reading, Report, writable, write
from secant.surveys import report_of
from secant.uses.pairs import check_pair
from secant.uses.paths import Progress, along
from secant.uses.scores import Task
from secant.uses.walks import Stop, Walk, Walker, loss_readings, mean_of

MERGED = "merged"
STEPS = 10
"""Of the path between two parents, as `compare` takes."""


def judge(
    merged: Path | str | Callable[[], Path],
    parents: Sequence[Path | str],
    data: Any,
    *,
    base: Path | str | None = None,
    factory: str | None = None,
    column: str = "text",
    label_column: str | None = None,
    rows: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress = lambda label, done, total: None,
) -> Report:
    """Score a merged model and its parents on the same units; write `judgement.json` beside it.

    Readings have the variable `weights` and the sites `merged`, `base` and `parent NAME`: `loss`
    and `accuracy` of each model as it is stored, with 95 % intervals over groups of units; those of
    `merged` stand beside the others', with the difference merged less other, paired by group. For
    two parents, at the site `(model)`, what `compare` reads along the line between them: `loss`,
    `accuracy`, `barrier`, `chord`. A merged model whose loss is above every parent's, by more than
    the difference's interval, is warned of in the notes.

    Data without labels judges models that predict the next token. For others it can only say how
    far two parents' outputs are from the straight line between them.

    Args:
        merged: the folder of the merged model; or a function that makes it and gives its folder,
            called once parents and data are known to go together.
        parents: Hugging Face directories; with a `factory` plain weights, one file each.
        data: as in `survey`. Labels must be classes.
        factory: `package.module:factory`, the model that plain weights belong to.

    Raises: `InputError` for models that differ in tensors, data that judges nothing of them, or
    fewer units than fill three groups.

    Cost: a forward of the data for each model; for two parents 24 more.
    """
    started = time.perf_counter()
    if not parents:
        raise InputError("judge: a merge is judged beside its parents; got none. Name them.")
    loading = LoadOptions(label_column=label_column)
    units = load_data(data, column, loading, rows)
    first, *others = [_loaded(one, factory) for one in (*parents, *([base] if base else []))]
    feed = Feed(first, units, groups=GROUPS, batch_size=batch_size, seed=seed)
    walker = Walker(feed, has_repair=False)
    if walker.task is None and len(parents) != 2:
        raise InputError(
            f"judge: no loss on data {units.name!r}: {walker.why_no_task}. Without one, only the "
            f"outputs between two parents can be judged; got {len(parents)}. Name the column of "
            "classes with --label-column."
        )
    for other in others:
        _check(walker, other)
    folder = Path(merged() if callable(merged) else merged)
    own = _loaded(folder, factory)
    _check(walker, own)

    def tell(what: str) -> Callable[[int, int], None]:
        return lambda done, total: progress(what, done, total)

    readings, notes = [], []
    if walker.task is not None:
        names = [f"parent {one}" for one in parents] + (["base"] if base else []) + [MERGED]
        models = [first, *others, own]
        stops = [_as_stored(walker, model) for model in models]
        readings += _scores(walker.walk(stops, tell("scores")), walker.task, names)
        notes += _warnings(readings, len(parents))
    if len(parents) == 2:
        found, told = along(
            walker, others[0], STEPS, seed, True, lambda what: tell(f"between parents, {what}")
        )
        readings += found
        notes += told
    seconds = time.perf_counter() - started
    model = ModelReport(
        str(folder), units.name, len(feed.units), len(feed.units),
        list(dict.fromkeys(one.site for one in readings)), readings, {"seconds": seconds},
        [*notes, *few_units(len(feed.units)), *feed.notes],
    )  # fmt: skip
    report = report_of([model], seed, started)
    with writable(folder):
        write(folder / "judgement.json", report.to_json())
    return report


def _loaded(name: Path | str, factory: str | None) -> Loaded:
    """A model by the name that `merge` knows it by."""
    path = Path(name)
    if factory is not None:
        file = weights_in(path) if path.is_dir() else path
        if file.name.endswith(INDEX):
            raise InputError(
                f"judge: weights {str(name)!r} lie in shards, and a factory's model is filled from "
                "one file. Write them as one."
            )
        return load_model(factory, LoadOptions(weights=file))
    folder = path.parent if path.name.endswith(INDEX) else path
    if not (folder / "config.json").is_file():
        raise InputError(
            f"judge: {str(name)!r} has weights and no config.json, so it must be told its model. "
            "Give --model package.module:factory."
        )
    return load_model(str(folder))


def _check(walker: Walker, other: Loaded) -> None:
    check_pair(walker.feed.loaded, other)
    walker.check_reaches(other.model)


def _as_stored(walker: Walker, model: Loaded) -> Stop:
    """The model with its own statistics: what is judged is what lies on the disk."""
    (stop,) = walker.bare(walker.line(walker.feed.loaded.model, model.model), (1.0,))
    return stop


def _scores(walk: Walk, task: Task, names: Sequence[str]) -> list[Reading]:
    """Loss and accuracy of every model, the last of which is the merged one."""
    found = []
    plain = loss_readings(walk, None, task)
    for place, sums in enumerate((walk.loss, walk.right)):
        assert sums is not None
        mine = plain[place * len(names) : (place + 1) * len(names)]
        controls = {
            name: {"value": one.value, "interval": one.interval}
            | {"difference": mean_of(sums[-1] - its, walk.counts)}
            for name, one, its in zip(names[:-1], mine, sums, strict=False)
        }
        for name, one in zip(names, mine, strict=True):
            details = {key: value for key, value in one.details.items() if key != "t"}
            beside = controls if name == MERGED else {}
            found.append(replace(one, site=name, controls=beside, details=details))
    return found


def _warnings(readings: Sequence[Reading], parents: int) -> list[str]:
    """What must be said of a merged model that is worse than all it was made of."""
    (loss,) = (one for one in readings if (one.site, one.gauge) == (MERGED, "loss"))
    if loss.value is None:
        return ["The merged model's loss is not a finite number. Do not use it."]
    beside = list(loss.controls.values())[:parents]
    intervals = [one["difference"]["interval"] for one in beside]
    if any(one is None or one[0] <= 0 for one in intervals):
        return []
    least = min(beside, key=lambda one: one["value"])
    return [
        f"The merged model is worse than every parent: loss {loss.value:.3g}, where the best of "
        f"them has {least['value']:.3g}. Do not trust this merge."
    ]
