"""A pretrained model fitted to labelled data: its tangent, its head alone, and fine-tuning.

Holds: ``tune`` and its result ``Tuned``.
May import: torch, ``secant.engine``, ``secant.errors``, ``secant.gauges``, ``secant.load``,
``secant.maps``, ``secant.readings``, ``secant.trials``, ``secant.uses``.
"""

from __future__ import annotations

import copy
import inspect
import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from secant.engine.plan import Batch, group_of
from secant.errors import InputError
from secant.gauges.interval import GROUPS, few_units
from secant.load.data import Units, load_data
from secant.load.feed import Feed
from secant.load.models import Loaded, load_model
from secant.load.options import LoadOptions
from secant.maps.calls import first_tensor
from secant.maps.weights import Batch as Rows
from secant.maps.weights import first_output, part_of, rows_of, run
from secant.readings import (
    NO_INTERVAL,
    SCHEMA,
    ModelReport,
    Reading,
    interval_of,
    number,
    plain,
    write,
)
from secant.trials import Design, draw_sample
from secant.uses.anatomy import mean_interval
from secant.uses.linearize import linearize
from secant.uses.paths import path_report
from secant.uses.scores import task_of
from secant.uses.tangent_fit import fit_tangent

Progress = Callable[[str, int, int], None]

RATES = (5e-5, 1e-3)
"""AdamW's steps that fine-tuning tries: usual for pretrained transformers, and its default."""

EPOCHS = 6
VALIDATION = 5
"""One unit in so many of those fitted says when fine-tuning stops and which rate it keeps."""


@dataclass(frozen=True)
class Tuned:
    """Accuracy on held-out units by each way of fitting, as readings.

    Sites are the ways: `tangent`, `probe`, `fine-tuning`; controls of each are the commonest
    class and, of the tangent, the other two with differences paired by groups of units. `units`
    counts those fitted and those scored; `choices` says what each way chose on the fitted units.
    `path` is what `compare` reads between the model before and after fine-tuning, on the units
    scored: how far its weights moved, and what the first order explains of what that did.
    """

    model: str
    data: str
    classes: list[str]
    units: dict[str, int]
    readings: list[Reading]
    path: ModelReport
    choices: dict[str, dict[str, Any]]
    notes: list[str]
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


class Headed(nn.Module):
    """A model without a classifier, the mean over its positions, and a new last layer."""

    def __init__(self, body: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Logits."""
        hidden = first_tensor(self.body(*args, **kwargs), "(model)", "output")
        mask = kwargs.get("attention_mask")
        if hidden.ndim > 2:
            hidden = hidden.flatten(1, -2)
            if mask is None:
                hidden = hidden.mean(1)
            else:
                weight = mask.to(hidden)[..., None]
                hidden = (hidden * weight).sum(1) / weight.sum(1)
        logits: Tensor = self.head(hidden)
        return logits


class Set(NamedTuple):
    """Rows, their classes, and the group of each."""

    rows: Rows
    labels: Tensor
    groups: Tensor

    def take(self, which: Tensor) -> Set:
        """The rows at these places."""
        if isinstance(self.rows, Tensor):
            chosen: Rows = self.rows[which]
        else:
            assert isinstance(self.rows, Mapping), "a feed gives a tensor, or tensors by name"
            chosen = {key: one[which] for key, one in self.rows.items()}
        return Set(chosen, self.labels[which], self.groups[which])


def tune(
    model: str | nn.Module | Loaded,
    data: str | Units = "demo:digits",
    *,
    column: str = "text",
    label_column: str | None = None,
    rows: int | None = 512,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress = lambda label, done, total: None,
) -> Tuned:
    """Fit a pretrained model to labelled classes in three ways, and score them held out.

    `tangent`: ridge regression of one-hot classes on the model's first-order expansion in all its
    weights (`secant.fit_tangent`). `probe`: the same on the features before the last layer alone.
    `fine-tuning`: AdamW on the cross-entropy, by the rate and at the epoch of the least loss on a
    fifth of its units. All see the same units: half of them, by a hash of their content; the other
    half is scored, in groups that give 95 % intervals, paired for differences.

    A model whose output is (rows, classes) from a last linear layer keeps that layer. Any other
    gets a new one, drawn with `seed`, on the mean over its positions, and tangent and fine-tuning
    start there. What fine-tuning did to the weights is read as `compare` reads two models.

    Args:
        model: as in `survey`, or a module.
        data: as in `survey`, with labels; `label_column` names those of a file.
        rows: use the first so many units; all if None.

    Raises: `InputError` for data without classes or with too few units, and as `fit_tangent`.

    Cost: that of `fit_tangent` on half of the units, of fine-tuning for six epochs twice, and of
    `compare` on the other half.
    """
    started = time.perf_counter()
    loaded = model if isinstance(model, Loaded) else load_model(model)
    if not isinstance(data, Units):
        data = load_data(data, column, LoadOptions(label_column=label_column))
    units = data.first(rows)
    feed = Feed(loaded, units, groups=2 * GROUPS, batch_size=batch_size, seed=seed)
    whole = _whole(feed, seed)
    classes = int(whole.labels.max()) + 1
    fitted = whole.take((whole.groups % 2 == 0).nonzero()[:, 0])
    scored = whole.take((whole.groups % 2 == 1).nonzero()[:, 0])
    if len(set(fitted.labels.tolist())) < 2 or len(set(scored.groups.tolist())) < 3:
        raise InputError(
            "tune: the half of the units that is fitted must hold two classes, and the other fill "
            f"3 groups; got {len(whole.labels)} units. Give some dozens."
        )
    few = part_of(whole.rows, 0, 2)
    module, head = _classifier(loaded.model, few, classes, seed)
    started_at = replace(
        loaded, model=module, call=_call_of(loaded.model, units),
        fresh=lambda draw: _classifier(loaded.fresh(draw), few, classes, draw)[0],
    )  # fmt: skip
    held_out = units.take((whole.groups % 2 == 1).nonzero()[:, 0].tolist())
    _check_readable(started_at, held_out, batch_size, seed)
    marks, choices = {}, {}
    features = [_features(module, head, one.rows, batch_size) for one in (fitted, scored)]
    probe = linearize(nn.Linear(features[0].shape[1], classes).to(features[0]))
    for one in probe.model.parameters():
        one.zero_()
    found = fit_tangent(probe, features[0], fitted.labels, batch_size=1024, seed=seed)
    marks["probe"], choices["probe"] = _right(probe, scored._replace(rows=features[1]), 1024), found
    tangent = linearize(module.requires_grad_())
    found = fit_tangent(
        tangent, fitted.rows, fitted.labels, batch_size=batch_size, seed=seed, progress=progress
    )
    marks["tangent"], choices["tangent"] = _right(tangent, scored, batch_size), found
    said: dict[str, dict[str, Any]] = {
        way: {"ridge": one.ridge, "strength": one.strength, "how": one.how, "losses": one.losses}
        for way, one in choices.items()
    }
    tuned, said["fine-tuning"] = _fine_tuned(module, fitted, whole, feed, batch_size, seed,
                                             progress)  # fmt: skip
    marks["fine-tuning"] = _right(tuned, scored, batch_size)
    path = path_report(
        started_at, replace(started_at, name="fine-tuned", model=tuned), [], held_out,
        batch_size=batch_size, seed=seed, has_controls=True, progress=progress,
    )  # fmt: skip
    commonest = int(fitted.labels.mode().values)
    marks["commonest class"] = (scored.labels == commonest).double()
    names = data.classes or tuple(str(number) for number in range(classes))
    packages = ("secant", "torch", "numpy")
    return Tuned(
        loaded.name, units.name, list(names),
        {"fitted": len(fitted.labels), "scored": len(scored.labels)},
        _readings(marks, scored.groups), path, said, feed.notes, seed,
        {"seconds": time.perf_counter() - started},
        {"python": platform.python_version()} | {p: version(p) for p in packages},
    )  # fmt: skip


def _call_of(body: nn.Module, units: Units) -> Callable[[Any, Any], Any]:
    """How a model with a new head is called: with what its body takes of a tokenizer's output."""
    taken = inspect.signature(body.forward).parameters

    def call(model: nn.Module, inputs: Any) -> Any:
        if not isinstance(inputs, Mapping):
            return model(inputs)
        is_asked = units.fields is not None
        return model(**{key: one for key, one in inputs.items() if is_asked or key in taken})

    return call


def _check_readable(loaded: Loaded, units: Units, batch_size: int, seed: int) -> None:
    """Refuse before minutes of fitting what could not be read after them.

    Raises: `InputError` for too few units, or outputs that do not fit their labels.
    """
    feed = Feed(loaded, units, groups=GROUPS, batch_size=batch_size, seed=seed)
    draw_sample(feed, Design())
    task_of(feed, loaded.model)


def _whole(feed: Feed, seed: int) -> Set:
    """All units as one padded batch, in their order."""
    labels = feed.units.labels
    if labels is None or labels.dtype != torch.int64 or labels.ndim != 1 or int(labels.min()) < 0:
        found = "none" if labels is None else f"{tuple(labels.shape)} of {labels.dtype}"
        raise InputError(
            f"tune: data {feed.units.name!r} must have one class a unit, a word or a whole number "
            f"from 0 on; got {found}. Name its column with --label-column."
        )
    inputs, _ = feed.inputs(Batch(0, tuple(range(len(feed.units)))))
    groups = torch.tensor([group_of(one, seed, 2 * GROUPS) for one in feed.contents])
    return Set(inputs, labels.to(feed.loaded.device), groups.to(feed.loaded.device))


def _classifier(
    model: nn.Module, few: Rows, classes: int, seed: int
) -> tuple[nn.Module, nn.Linear]:
    """A copy that gives one logit a class, and its last layer."""
    module = copy.deepcopy(model).eval()
    last: list[tuple[nn.Linear, Tensor]] = []
    handles = [
        one.register_forward_hook(lambda part, _, output: last.append((part, output)))
        for one in module.modules()
        if isinstance(one, nn.Linear)
    ]
    with torch.no_grad():
        output = first_output(run(module, few))
    for handle in handles:
        handle.remove()
    if output.ndim == 2 and output.shape[1] >= classes and last and last[-1][1] is output:
        return module, last[-1][0]
    draw = torch.Generator().manual_seed(seed)
    head = nn.Linear(output.shape[-1], classes)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=draw) / output.shape[-1] ** 0.5)
        head.bias.zero_()
    head = head.to(output)
    return Headed(module, head).eval(), head


def _batches(rows: Rows, size: int) -> list[tuple[int, Rows]]:
    return [(start, part_of(rows, start, start + size)) for start in range(0, rows_of(rows), size)]


def _features(module: nn.Module, head: nn.Linear, rows: Rows, size: int) -> Tensor:
    """What the last layer is given."""
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    try:
        with torch.no_grad():
            for _, part in _batches(rows, size):
                run(module, part)
    finally:
        handle.remove()
    return torch.cat(seen)


def _logits(module: nn.Module, rows: Rows, size: int) -> Tensor:
    with torch.no_grad():
        return torch.cat([first_output(run(module, part)) for _, part in _batches(rows, size)])


def _right(module: nn.Module, scored: Set, size: int) -> Tensor:
    """1 for each row whose class has the largest output, else 0."""
    return (_logits(module, scored.rows, size).argmax(1) == scored.labels).double()


def _fine_tuned(
    module: nn.Module, fitted: Set, whole: Set, feed: Feed, size: int, seed: int,
    progress: Progress,
) -> tuple[nn.Module, dict[str, Any]]:  # fmt: skip
    """The module at the rate and epoch of the least loss on the units that say so."""
    # Another hash than that of the halves, by content too: duplicates stay together.
    inner = [group_of(one, seed + 1, VALIDATION) == 0 for one in feed.contents]
    is_inner = torch.tensor(inner, device=whole.groups.device)[whole.groups % 2 == 0]
    train, check = fitted.take((~is_inner).nonzero()[:, 0]), fitted.take(is_inner.nonzero()[:, 0])
    if not len(train.labels) or not len(check.labels):
        raise InputError(
            f"tune: {len(fitted.labels)} units are too few to set one in {VALIDATION} aside for "
            "fine-tuning. Give some dozens more."
        )
    best: tuple[float, nn.Module, dict[str, Any]] | None = None
    done = 0
    for rate in RATES:
        draw = torch.Generator().manual_seed(seed)
        other = copy.deepcopy(module).requires_grad_()
        optimiser = torch.optim.AdamW(other.parameters(), lr=rate)
        for epoch in range(1, EPOCHS + 1):
            order = torch.randperm(len(train.labels), generator=draw).to(train.labels.device)
            other.train()
            with torch.random.fork_rng(), torch.enable_grad():
                torch.manual_seed(seed + epoch)  # dropout's
                for start in range(0, len(order), size):
                    part = train.take(order[start : start + size])
                    loss = cross_entropy(first_output(run(other, part.rows)), part.labels)
                    optimiser.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimiser.step()
            other.eval()
            value = float(cross_entropy(_logits(other, check.rows, size), check.labels))
            done += 1
            progress("fine-tuning", done, EPOCHS * len(RATES))
            if best is None or value < best[0]:
                said = {"rate": rate, "epoch": epoch, "validation_loss": value}
                best = value, copy.deepcopy(other), said
    assert best is not None
    return best[1], best[2] | {"epochs": EPOCHS, "trained": len(train.labels)}


def _readings(marks: dict[str, Tensor], groups: Tensor) -> list[Reading]:
    """One reading a way; differences are the way's accuracy less the control's."""
    places = sorted(set(groups.tolist()))

    def by_group(values: Tensor) -> Tensor:
        return torch.stack([values[groups == place].sum() for place in places])

    counts = by_group(torch.ones_like(groups, dtype=torch.float64))

    def about(values: Tensor, least: float = 0.0) -> dict[str, Any]:
        low, high = mean_interval(by_group(values), counts)
        # Shares lie in 0 to 1, differences of them in -1 to 1; the jackknife does not know.
        ends = interval_of((max(low, least), min(high, 1.0)))
        return {"value": number(float(values.mean())), "interval": ends}

    found = []
    for way in ("tangent", "probe", "fine-tuning"):
        mine = about(marks[way])
        others = ["commonest class", *(["probe", "fine-tuning"] if way == "tangent" else [])]
        beside = {
            other: about(marks[other]) | {"difference": about(marks[way] - marks[other], -1.0)}
            for other in others
        }
        notes = few_units(len(groups)) + ([] if mine["interval"] else [NO_INTERVAL])
        found.append(
            Reading(
                "weights", way, "tune", "accuracy", mine["value"], mine["interval"],
                {"units": len(groups)}, beside, notes,
            )
        )  # fmt: skip
    return found
