"""Recurrent layers replaced by the linear update that fits their steps, and run as scans.

Holds: ``linearize_state`` and its result ``LinearizedState``; ``restore_state``.
May import: torch, safetensors, ``secant.engine``, ``secant.errors``, ``secant.gauges``,
``secant.load``, ``secant.maps``, ``secant.nn``, ``secant.readings``, ``secant.uses``.
"""

from __future__ import annotations

import copy
import json
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model as load_weights
from torch import nn

from secant.engine.plan import Batch, group_of
from secant.errors import InputError, LoadError
from secant.gauges.interval import GROUPS, few_units
from secant.load.data import Units, load_data
from secant.load.feed import Feed
from secant.load.models import Loaded, load_model
from secant.load.options import DEFAULTS, LoadOptions
from secant.nn.linear_state import LinearLayer, LinearState
from secant.readings import SCHEMA, plain, writable, write
from secant.uses.linear_fit import JoinError, Layer, fitted_state, shown
from secant.uses.output_scores import change, output_sums, told
from secant.uses.saved_modules import save_weights
from secant.uses.scores import Task, task_of
from secant.uses.timing import medians

Progress = Callable[[str, int, int], None]
WEIGHTS, SAID = "model.safetensors", "linear_state.json"
OF_STATE = ("mode", "outputs", "ways", "batch_first", "bias", "dropout")
"""What a `LinearState` is made with besides its layers."""


@dataclass(frozen=True)
class LinearizedState:
    """A model with linear recurrences, what that costs it and how much faster it is.

    `layers` were replaced, in order; `left` says of each RNN, GRU or LSTM that was not why not.
    `before` and `after` hold loss and accuracy (where the data has a task, else nothing) on the
    units scored, the median seconds of a forward of `batch` units and the parameters of the
    recurrences.
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
        kinds = [
            {
                "names": of_one,
                "layers": [[one.inputs, one.state, one.pairs] for one in part.layers],
                **{key: getattr(part, key) for key in OF_STATE},
            }
            for of_one in _names_of(self.module, LinearState).values()
            if isinstance(part := self.module.get_submodule(of_one[0]), LinearState)
        ]
        with writable(folder):
            save_weights(self.module, folder)
            said = json.dumps(self.as_dict() | {"modules": kinds}, indent=1, allow_nan=False)
            write(folder / SAID, said)
        return [folder / WEIGHTS, folder / SAID]


def restore_state(model: nn.Module, folder: str | Path) -> nn.Module:
    """A copy of `model`, the one that was linearized, as `LinearizedState.save` left it.

    Its linear layers lie where those of `model` do.

    Raises: `LoadError` if the files cannot be read or belong to another model.
    """
    folder = Path(folder)
    try:
        modules = json.loads((folder / SAID).read_bytes())["modules"]
        module = copy.deepcopy(model)
        for kind in modules:
            like = next(module.get_submodule(kind["names"][0]).parameters())
            layers = [
                LinearLayer((inputs, state), pairs) for inputs, state, pairs in kind["layers"]
            ]
            made = LinearState(layers, **{key: kind[key] for key in OF_STATE})
            made = made.to(like.device, torch.promote_types(like.dtype, torch.float32))
            module = _with_module(module, kind["names"], made)
        load_weights(module, str(folder / WEIGHTS))
    except (
        OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, StopIteration,
        IndexError, SafetensorError,
    ) as error:  # fmt: skip
        raise LoadError(
            f"expected in {str(folder)!r} what `secant linearize-state` wrote for this model; it "
            f"cannot be read ({error}). Give the folder of its --out and the model it was given."
        ) from error
    return module.eval()


def _names_of(model: nn.Module, kind: type[nn.Module]) -> dict[str, list[str]]:
    """All names of each module of a kind, under its first: one module may stand in many places."""
    names: dict[int, list[str]] = {}
    for name, part in model.named_modules(remove_duplicate=False):
        if isinstance(part, kind):
            names.setdefault(id(part), []).append(name)
    return {of_one[0]: of_one for of_one in names.values()}


def _with_module(model: nn.Module, names: list[str], part: nn.Module) -> nn.Module:
    """The model with `part` in these places; it alone where the model itself is the place."""
    for name in names:
        if not name:
            return part
        model.set_submodule(name, part)
    return model


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

    Cost: for each module as many passes over the fitted half as it has layers, the steps of all
    recurrences one by one. With a budget a forward pass over it at the start and one a module; at
    the end a pass of either model over the scored half (without a loss, twice the forwards), and
    sixteen forwards of one batch, timed.
    """
    loaded = model if isinstance(model, Loaded) else load_model(model, loading)
    if not isinstance(data, Units):
        data = load_data(data, column, loading, rows)
    fitted, scored = _halves(loaded, data.first(rows), batch_size, seed)
    names = _names_of(loaded.model, nn.RNNBase)
    if not names:
        raise InputError(
            f"linearize-state: {type(loaded.model).__name__} has no nn.RNN, nn.GRU or nn.LSTM. "
            "Cells that a model calls itself, and layers that are linear already, stay as they are."
        )
    task, why = task_of(scored, loaded.model)
    notes = [] if task else [f"No loss: {why}. The change of the outputs stands for it."]
    linear, layers, left = _replaced(loaded.model, fitted, names, task, budget, progress)
    notes += _growing(layers)
    replaced = [name for name in names if name not in left]
    inputs = Batch(0, tuple(range(min(batch_size, len(scored.units)))))
    before, after, costs = _compared(scored, (loaded.model, linear), task, replaced, inputs)
    packages = ("secant", "torch", "numpy")
    return LinearizedState(
        loaded.name, data.name, {"fitted": len(fitted.units), "scored": len(scored.units)},
        len(inputs.units), layers, {shown(name): reason for name, reason in left.items()},
        task.unit if task else "share of the outputs' variance", before, after,
        costs, [*notes, *few_units(len(scored.units)), *scored.notes], seed,
        {"python": platform.python_version()} | {name: version(name) for name in packages},
        module=linear,
    )  # fmt: skip


def _halves(loaded: Loaded, units: Units, batch_size: int, seed: int) -> list[Feed]:
    """The units that are fitted and those that are scored, by a hash of their content.

    Raises: `InputError` if either half has fewer than `GROUPS`.
    """
    whole = Feed(loaded, units, groups=2 * GROUPS, batch_size=batch_size, seed=seed)
    halves = [
        whole.units.take([place for place, one in enumerate(whole.contents)
                          if group_of(one, seed, 2 * GROUPS) % 2 == half])
        for half in (0, 1)
    ]  # fmt: skip
    if min(map(len, halves)) < GROUPS:
        raise InputError(
            f"linearize-state: each half of the units, one fitted and one scored, needs {GROUPS}; "
            f"got {len(whole.units)} in all. Give some dozens."
        )
    feeds = [Feed(loaded, half, groups=GROUPS, batch_size=batch_size, seed=seed) for half in halves]
    for feed in feeds:
        feed.notes = whole.notes  # what was dropped or cut, of both
    return feeds


def _replaced(
    model: nn.Module, feed: Feed, names: dict[str, list[str]], task: Task | None,
    budget: float | None, progress: Progress,
) -> tuple[nn.Module, list[Layer], dict[str, str]]:  # fmt: skip
    """A copy of the model with linear states, what is said of each, and of others why they stay.

    Raises: `InputError` if all stay.
    """
    linear = copy.deepcopy(model)
    layers: list[Layer] = []
    left: dict[str, str] = {}
    start = None if budget is None else output_sums(feed, model, model, task)
    for done, (name, places) in enumerate(names.items()):
        progress("linear states", done, len(names))
        kept = linear.get_submodule(name)
        try:
            made, said = fitted_state(linear, name, feed)
        except JoinError as error:
            left[name] = str(error)
            continue
        linear = _with_module(linear, places, made)
        if start is not None and budget is not None:
            growth = change(start, output_sums(feed, model, linear, task))["value"]
            if growth is None or not growth <= budget:
                linear = _with_module(linear, places, kept)
                left[name] = f"it would bring the change to {growth}, over the budget of {budget:g}"
                continue
        layers += said
    progress("linear states", len(names), len(names))
    if not layers:
        told_ = "can be replaced" if budget is None else f"fits in the budget of {budget:g}"
        advice = "units of one length, or whole sequences" if budget is None else "a larger one"
        reasons = "; ".join(f"{shown(name)}: {reason}" for name, reason in left.items())
        raise InputError(f"linearize-state: no layer {told_}: {reasons}. Give {advice}.")
    return linear, layers, left


def _growing(layers: list[Layer]) -> list[str]:
    """What must be known of states that may grow."""
    return [
        f"{one.site}: its largest eigenvalue is {one.radius:.4f}: over sequences longer than these "
        "its state may grow."
        for one in layers if one.radius > 1
    ]  # fmt: skip


def _compared(
    feed: Feed, models: tuple[nn.Module, nn.Module], task: Task | None, names: list[str],
    inputs: Batch,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:  # fmt: skip
    """What is told of both models, and the change; `names` are the modules that were replaced."""
    first, second = (output_sums(feed, models[0], one, task) for one in models)
    before, after = told(first, task), told(second, task)
    forwards = [feed.forward(one, inputs)[0] for one in models]
    before["seconds"], after["seconds"] = medians(forwards, feed.loaded.device)
    for held, one in zip((before, after), models, strict=True):
        parts = [one.get_submodule(name) for name in names]
        held["parameters"] = sum(p.numel() for part in parts for p in part.parameters())
    return before, after, change(first, second)
