"""Recurrent layers replaced by the linear update that fits their steps, and run as scans.

Holds: ``linearize_state`` and its result ``LinearizedState``, of ``Layer``; ``restore_state``.
May import: torch, safetensors, ``secant.engine``, ``secant.errors``, ``secant.gauges``,
``secant.load``, ``secant.maps``, ``secant.nn``, ``secant.readings``, ``secant.uses``.
"""

from __future__ import annotations

import copy
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from secant.engine.files import written_whole
from secant.engine.plan import Batch, group_of
from secant.errors import InputError, LoadError
from secant.gauges.fit import Fit
from secant.gauges.interval import GROUPS, few_units
from secant.load.data import Units, load_data
from secant.load.feed import Feed
from secant.load.models import Loaded, load_model
from secant.load.options import DEFAULTS, LoadOptions
from secant.maps.calls import first_tensor
from secant.maps.time import Transition, recurrent_modules, transitions
from secant.nn.linear_state import LinearLayer, LinearState
from secant.readings import SCHEMA, interval_of, number, plain, writable, write
from secant.uses.anatomy import mean_interval
from secant.uses.horizons import LinearUpdate
from secant.uses.scores import Task, counted, task_of, token_ids
from secant.uses.time_sums import rows_of

Progress = Callable[[str, int, int], None]
WEIGHTS, SAID = "model.safetensors", "linear_state.json"
REPEATS = 7
"""Rounds in which model and linear model are timed in turn."""


class _Kind(NamedTuple):
    """How torch's module hands its states on."""

    outputs: int
    ways: int
    batch_first: bool


@dataclass(frozen=True)
class Layer:
    """One layer of a recurrence: held-out R² of its update, and what it became.

    `raw` is of the next state, `beyond` what the update adds to a plain decay of it, each with its
    interval. `radius` is the largest modulus of its eigenvalues; from 1 on the state would grow
    over sequences longer than those fitted. `form` is "eigenvalues" or "matrix".
    """

    site: str
    state: int
    inputs: int
    raw: dict[str, Any]
    beyond: dict[str, Any]
    radius: float
    form: str


@dataclass(frozen=True)
class LinearizedState:
    """A model with linear recurrences, what that costs it and how much faster it is.

    `layers` were replaced, in order; `left` says of other recurrent modules why not. `before` and
    `after` hold loss and accuracy (where the data has a task, else nothing) on the units scored,
    the median seconds of a forward of `batch` units and the parameters of the recurrences.
    `change` is the loss after less before, with its interval paired by groups of units, or the
    squared change of the outputs as a share of their variance where there is no task.
    """

    model: str
    data: str
    units: dict[str, int]
    batch: int
    layers: list[Layer]
    left: dict[str, str]
    unit: str
    before: dict[str, Any]
    after: dict[str, Any]
    change: dict[str, Any]
    notes: list[str]
    seed: int
    versions: dict[str, str]
    schema: int = SCHEMA
    module: nn.Module = field(repr=False, compare=False, default_factory=nn.Identity)

    def as_dict(self) -> dict[str, Any]:
        """Plain data without the module; numbers that do not exist are None."""
        held = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "module"}
        held["layers"] = [asdict(one) for one in self.layers]
        return plain(held)  # type: ignore[no-any-return]

    def save(self, folder: Path) -> list[Path]:
        """Write weights, and all that is said here, whole or not at all; `restore_state` reads it.

        Raises: `InputError` if the folder cannot be written.
        """
        kinds = {
            name: {
                "outputs": part.outputs,
                "ways": part.ways,
                "batch_first": part.batch_first,
                "layers": [[one.inputs, one.state, one.pairs] for one in part.layers],
            }
            for name, part in self.module.named_modules()
            if isinstance(part, LinearState)
        }
        state = {key: one.contiguous() for key, one in self.module.state_dict().items()}
        with writable(folder):
            with written_whole(folder / WEIGHTS) as part:
                save_file(state, part)
            said = json.dumps(self.as_dict() | {"modules": kinds}, indent=1, allow_nan=False)
            write(folder / SAID, said)
        return [folder / WEIGHTS, folder / SAID]


def restore_state(model: nn.Module, folder: str | Path) -> nn.Module:
    """A copy of `model`, the one that was linearized, as `LinearizedState.save` left it.

    Raises: `LoadError` if the files cannot be read or belong to another model.
    """
    folder = Path(folder)
    try:
        modules = json.loads((folder / SAID).read_bytes())["modules"]
        weights = load_file(folder / WEIGHTS)
        module = copy.deepcopy(model)
        for name, kind in modules.items():
            layers = [
                LinearLayer((inputs, state), pairs) for inputs, state, pairs in kind["layers"]
            ]
            others = {key: kind[key] for key in ("outputs", "ways", "batch_first")}
            module.set_submodule(name, LinearState(layers, **others))
        module.load_state_dict(weights)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise LoadError(
            f"expected in {str(folder)!r} what `secant linearize-state` wrote for this model; it "
            f"cannot be read ({error}). Give the folder of its --out and the model it was given."
        ) from error
    return module.eval()


def linearize_state(
    model: str | nn.Module | Loaded,
    data: str | Units = "demo:digits",
    *,
    column: str = "text",
    loading: LoadOptions = DEFAULTS,
    budget: float | None = None,
    rows: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress = lambda label, done, total: None,
) -> LinearizedState:
    """Replace every `nn.RNN`, `nn.GRU` and `nn.LSTM` by the linear recurrence that fits it best.

    Each layer's next state is regressed on its state and input, as a survey's `fit` in `time`
    does, on half of the units by a hash of their content; layer after layer, with the inputs that
    the linear layers below hand on, so that what these lose is made good where it can be. The
    other half is scored. The linear layers run as scans, in the basis of their eigenvectors.

    Args:
        model, data, loading: as in `survey`, or a module; labels, or a model that predicts the
            next token, make the loss; without either the change of the outputs stands for it.
        budget: by how much the loss (the share of the outputs' variance) may grow in all on the
            units that were fitted; a module that would pass it stays as it is. No bound if None.
        rows: use the first so many units; all if None.

    Raises: `InputError` for a model without such a module, if none fits in the budget, too few
        units, or values that are not finite.

    Cost: two passes over the fitted units a module with its steps one by one, some twenty forwards.
    """
    loaded = model if isinstance(model, Loaded) else load_model(model, loading)
    if not isinstance(data, Units):
        data = load_data(data, column, loading, rows)
    units = data.first(rows)
    whole = Feed(loaded, units, groups=2 * GROUPS, batch_size=batch_size, seed=seed)
    halves = [
        units.take([place for place, one in enumerate(whole.contents)
                    if group_of(one, seed, 2 * GROUPS) % 2 == half])
        for half in (0, 1)
    ]  # fmt: skip
    if min(map(len, halves)) < GROUPS:
        raise InputError(
            f"linearize-state: each half of the units, one fitted and one scored, needs {GROUPS}; "
            f"got {len(units)} in all. Give some dozens."
        )
    fitted, scored = (
        Feed(loaded, half, groups=GROUPS, batch_size=batch_size, seed=seed) for half in halves
    )
    names = [
        name for name in recurrent_modules(loaded.model)
        if isinstance(loaded.model.get_submodule(name), nn.RNNBase)
    ]  # fmt: skip
    if not names:
        raise InputError(
            f"linearize-state: {type(loaded.model).__name__} has no nn.RNN, nn.GRU or nn.LSTM. "
            "Cells that a model calls itself, and layers that are linear already, stay as they are."
        )
    task, why = task_of(scored, loaded.model)
    notes = [] if task else [f"No loss: {why}. The change of the outputs stands for it."]
    linear = copy.deepcopy(loaded.model)
    layers: list[Layer] = []
    left: dict[str, str] = {}
    start = _scores(fitted, loaded.model, loaded.model, task)
    for done, name in enumerate(names):
        progress("linear states", done, len(names))
        kept = linear.get_submodule(name)
        made, said = _fitted(linear, name, fitted)
        linear.set_submodule(name, made)
        if budget is not None:
            growth = _change(start, _scores(fitted, loaded.model, linear, task))["value"]
            if growth is None or not growth <= budget:
                linear.set_submodule(name, kept)
                left[name] = f"it would bring the change to {growth}, over the budget of {budget:g}"
                continue
        layers += said
    progress("linear states", len(names), len(names))
    if not layers:
        raise InputError(
            f"linearize-state: no layer fits in the budget of {budget:g}: "
            + "; ".join(f"{name}: {reason}" for name, reason in left.items())
            + ". Give a larger one, or none."
        )
    notes += [
        f"{one.site}: its largest eigenvalue is {one.radius:.4f}: over sequences longer than these "
        "its state may grow."
        for one in layers if one.radius > 1
    ]  # fmt: skip
    first, second = (_scores(scored, loaded.model, one, task) for one in (loaded.model, linear))
    before, after = _told(first, task), _told(second, task)
    inputs = Batch(0, tuple(range(min(batch_size, len(scored.units)))))
    for held, seconds in zip((before, after), _timed(scored, loaded.model, linear, inputs),
                             strict=True):  # fmt: skip
        held["seconds"] = seconds
    for held, one in ((before, loaded.model), (after, linear)):
        parts = [one.get_submodule(name) for name in names if name not in left]
        held["parameters"] = sum(p.numel() for part in parts for p in part.parameters())
    packages = ("secant", "torch", "numpy")
    return LinearizedState(
        loaded.name, units.name, {"fitted": len(fitted.units), "scored": len(scored.units)},
        len(inputs.units), layers, left,
        task.unit if task else "share of the outputs' variance", before, after,
        _change(first, second), [*notes, *few_units(len(scored.units)), *scored.notes], seed,
        {"python": platform.python_version()} | {name: version(name) for name in packages},
        module=linear,
    )  # fmt: skip


# Fitting -----------------------------------------------------------------------------------


def _fitted(model: nn.Module, name: str, feed: Feed) -> tuple[LinearState, list[Layer]]:
    """The linear layers of one module, each fitted on what those below hand on."""
    module = model.get_submodule(name)
    assert isinstance(module, nn.RNNBase)
    ways = 2 if module.bidirectional else 1
    layers: list[LinearLayer] = []
    said: list[Layer] = []
    kind = _Kind(module.proj_size or module.hidden_size, ways, module.batch_first)
    for _ in range(module.num_layers):
        found: list[Fit] = [*[None] * ways]  # type: ignore[list-item]
        alone: list[Fit] = [*[None] * ways]  # type: ignore[list-item]
        sites: list[str] = [""] * ways
        for batch in feed.batches:
            forward, mask = feed.forward(model, batch)
            parts = [part for site, part in transitions(model, forward).items()
                     if _belongs(site, name)]  # fmt: skip
            lower = _lowered(layers, parts, kind)
            for way in range(ways):
                part = parts[len(layers) + way]
                sites[way] = part.site
                inputs = part.inputs if lower is None else lower[way]
                _add(found, alone, way, part, inputs, mask, batch.group)
        for way in range(ways):
            layer, one = _solved(sites[way], found[way], alone[way])
            said.append(one)
            layers.append(layer.to(next(module.parameters()).device))
    return LinearState(layers, outputs=kind.outputs, ways=ways, batch_first=kind.batch_first), said


def _belongs(site: str, name: str) -> bool:
    """Whether a transition is of this module, in its first call."""
    return "@" not in site and (site == name or site.rpartition(".")[0] == name)


def _lowered(
    layers: list[LinearLayer], parts: list[Transition], kind: _Kind
) -> list[Tensor] | None:
    """What the linear layers so far hand on, in the order of each direction; None for the first."""
    if not layers:
        return None
    hidden = parts[0].inputs.float()
    with torch.no_grad():
        for place in range(0, len(layers), kind.ways):
            handed = []
            for way in range(kind.ways):
                part = parts[place + way]
                steps = hidden.flip(1) if way else hidden
                states = layers[place + way](steps, part.x[:, 0].float())
                out = states[..., : kind.outputs]
                handed.append(out.flip(1) if way else out)
            hidden = torch.cat(handed, -1)
    return [hidden, hidden.flip(1)][: kind.ways]


def _add(
    found: list[Fit], alone: list[Fit], way: int, part: Transition, inputs: Tensor,
    mask: Tensor | None, group: int,
) -> None:  # fmt: skip
    """One batch's steps of one direction, to the fit of state and input and that of the state."""
    rows = rows_of(_with_inputs(part, inputs), mask)
    x = torch.cat([rows.before, rows.inputs.to(rows.before)], 1)
    if not bool(x.isfinite().all()) or not bool(rows.after.isfinite().all()):
        raise InputError(
            f"linearize-state: the states of {part.site!r} hold values that are not finite. Give "
            "units without them."
        )
    if found[way] is None:
        centres = [one.double().mean(0) for one in (x, rows.before, rows.after)]
        found[way] = Fit(centres[0], centres[2]).to(x.device)
        alone[way] = Fit(centres[1], centres[2]).to(x.device)
    found[way].update(x, rows.after, group)
    alone[way].update(rows.before, rows.after, group)


def _with_inputs(part: Transition, inputs: Tensor) -> Transition:
    return Transition(part.site, part.cell, inputs, part.x, part.y, part.valid, part.is_reversed)


def _solved(site: str, fit: Fit, alone: Fit) -> tuple[LinearLayer, Layer]:
    whole, state = fit.compute(), alone.compute()
    raw = whole.scores["raw"]
    beyond = whole.within(state)["beyond"]
    width = len(whole.affine.bias)
    update = LinearUpdate.of(whole.affine, whole.affine.bias)
    layer = LinearLayer.of(update.state.T, update.inputs.T, update.bias)
    held = [
        {"value": number(one.value), "interval": interval_of(one.interval)} for one in (raw, beyond)
    ]
    return layer, Layer(
        site, width, len(whole.affine.weight) - width, held[0], held[1],
        float(update.eigenvalues()[0].abs()), "eigenvalues" if layer.is_diagonal else "matrix",
    )  # fmt: skip


# Scoring -----------------------------------------------------------------------------------


class _Sums(NamedTuple):
    """By group: loss or squared change, number correct or squared length, and what was counted."""

    loss: Tensor
    right: Tensor
    counts: Tensor


def _scores(feed: Feed, model: nn.Module, other: nn.Module, task: Task | None) -> _Sums:
    """The loss of `other` on every unit; without a task, how far its outputs are from `model`'s."""
    loss, right, counts = (torch.zeros(GROUPS, dtype=torch.float64) for _ in range(3))
    for batch in feed.batches:
        with torch.no_grad():
            forward, mask = feed.forward(other, batch)
            output = first_tensor(forward(), "(model)", "output")
            if task is not None:
                own = replace(task, labels=feed.units.labels)
                ids = None if task.labels is not None else token_ids(feed, batch)
                lost, hit, whole = own.sums(output, ids, mask, batch)
                count = float(whole)
            else:
                forward, _ = feed.forward(model, batch)
                kept = counted(first_tensor(forward(), "(model)", "output"), mask).double()
                lost = (counted(output, mask).double() - kept).square().sum()
                hit = (kept - kept.flatten(0, -2).mean(0)).square().sum()
                count = float(hit)
        loss[batch.group] += lost.cpu()
        right[batch.group] += hit.cpu()
        counts[batch.group] += count
    filled = counts > 0
    return _Sums(loss[filled], right[filled], counts[filled])


def _told(sums: _Sums, task: Task | None) -> dict[str, Any]:
    if task is None:
        return {}
    hits = _mean(sums.right, sums.counts)
    if hits["interval"] is not None:  # a share, which the jackknife does not know
        hits["interval"] = (max(hits["interval"][0], 0.0), min(hits["interval"][1], 1.0))
    return {"loss": _mean(sums.loss, sums.counts), "accuracy": hits}


def _change(before: _Sums, after: _Sums) -> dict[str, Any]:
    return _mean(after.loss - before.loss, after.counts)


def _mean(sums: Tensor, counts: Tensor) -> dict[str, Any]:
    value = number(float(sums.sum() / counts.sum()))
    return {"value": value, "interval": interval_of(mean_interval(sums, counts))}


def _timed(feed: Feed, model: nn.Module, linear: nn.Module, batch: Batch) -> list[float]:
    """Median seconds of a forward of each, in turn."""
    seconds: list[list[float]] = [[], []]
    with torch.no_grad():
        for round_ in range(REPEATS + 1):
            for place, one in enumerate((model, linear)):
                forward, _ = feed.forward(one, batch)
                started = time.perf_counter()
                forward()
                if round_:  # the first warms up
                    seconds[place].append(time.perf_counter() - started)
    return [statistics.median(one) for one in seconds]
