"""A model from disk collapsed, held against itself on data, timed, and saved.

Holds: ``collapse_to`` and its result ``Collapsing``.
May import: torch, ``secant.engine``, ``secant.errors``, ``secant.load``,
``secant.maps``, ``secant.readings``, ``secant.uses``.
"""

from __future__ import annotations

import copy
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from secant.engine.plan import Batch
from secant.errors import InputError
from secant.gauges.interval import GROUPS
from secant.load.data import Units, load_data
from secant.load.feed import Feed
from secant.load.models import Loaded, load_model
from secant.load.options import DEFAULTS, LoadOptions
from secant.maps.calls import first_tensor
from secant.readings import SCHEMA, plain, writable, write
from secant.uses.collapse import Joined, collapsed
from secant.uses.saved_modules import saved_module
from secant.uses.timing import medians

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Collapsing:
    """What was joined in a model, what that saves, and how far the outputs move.

    `before` and `after` hold parameters, floating-point operations of a forward of `batch` units
    (products and sums), and the median seconds of it. `differences` are the largest over the
    outputs of `units` units from those of the model in float64: of the model itself in its own
    type and of the collapsed one; `scale` is the largest output.
    """

    model: str
    data: str
    units: int
    batch: int
    joined: list[Joined]
    left: list[str]
    before: dict[str, float]
    after: dict[str, float]
    differences: dict[str, float]
    files: list[str]
    notes: list[str]
    versions: dict[str, str]
    schema: int = SCHEMA

    def as_dict(self) -> dict[str, Any]:
        """Plain data; numbers that do not exist are None."""
        return plain(asdict(self))  # type: ignore[no-any-return]


def collapse_to(
    out: Path,
    model: str | Loaded,
    data: str | Units = "demo:digits",
    *,
    column: str = "text",
    loading: LoadOptions = DEFAULTS,
    rows: int | None = 64,
    batch_size: int = 32,
    seed: int = 0,
    is_untying: bool = False,
    progress: Progress = lambda label, done, total: None,
) -> Collapsing:
    """Collapse a model, see on data that it is the same function, and save what came out.

    Writes into the folder `out`: `model.safetensors`, the weights; `model.pt2`, the program, which
    `torch.export.load(...).module()` runs without secant; `model.onnx` where the extra
    `secant[onnx]` is installed; `collapse.json`, all that is said here.

    Args:
        model, data, loading: as in `survey`.
        rows: units that outputs are compared on.
        batch_size: units of a forward, of which time and operations are told.
        is_untying: as in `collapse`.

    Raises: `InputError` as `collapse`, or if the folder cannot be written.

    Cost: that of `collapse`, of some twenty forwards, and of one export for the program.
    """
    with writable(out):
        loaded = model if isinstance(model, Loaded) else load_model(model, loading)
        if not isinstance(data, Units):
            data = load_data(data, column, loading, rows)
        units = data.first(rows)
        if len(units) < 2:
            raise InputError(
                f"collapse: 2 units are needed to export on; got {len(units)}. Give more data."
            )
        feed = Feed(loaded, units, groups=GROUPS, batch_size=batch_size, seed=seed)
        inputs = feed.inputs(Batch(0, tuple(range(min(batch_size, len(units))))))[0]
        with torch.no_grad():
            feed.forward(loaded.model, feed.batches[0])[0]()  # what it refuses is told as ever
        found = collapsed(loaded.model, inputs, is_untying=is_untying, progress=progress)
        before, after = _measured(loaded.model, found.module, inputs, progress)
        before["parameters"], after["parameters"] = found.parameters_before, found.parameters
        differences = _differences(loaded.model, found.module, feed, progress)
        files, notes = saved_module(found.module, inputs, out)
        packages = ("secant", "torch")
        result = Collapsing(
            loaded.name, units.name, len(units), len(next(iter(_tensors(inputs)))),
            found.joined, found.left, before, after, differences, files,
            [*feed.notes, *notes],
            {"python": platform.python_version()} | {p: version(p) for p in packages},
        )  # fmt: skip
        write(out / "collapse.json", json.dumps(result.as_dict(), indent=1, allow_nan=False))
    return result


def _tensors(inputs: Any) -> list[Tensor]:
    return list(inputs.values()) if isinstance(inputs, Mapping) else [inputs]


def _call(module: nn.Module, inputs: Any) -> Tensor:
    output = module(**inputs) if isinstance(inputs, Mapping) else module(inputs)
    return first_tensor(output, "(model)", "output")


def _measured(
    one: nn.Module, other: nn.Module, inputs: Any, progress: Progress
) -> tuple[dict[str, float], dict[str, float]]:
    """Operations and median seconds of a forward, the two in turn."""
    found: list[dict[str, float]] = []
    for module in (one, other):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            _call(module, inputs)
        found.append({"flops": float(counter.get_total_flops())})
    forwards = [partial(_call, module, inputs) for module in (one, other)]
    device = _tensors(inputs)[0].device
    for each, seconds in zip(found, medians(forwards, device, progress), strict=True):
        each["seconds"] = seconds
    return found[0], found[1]


def _differences(
    one: nn.Module, other: nn.Module, feed: Feed, progress: Progress
) -> dict[str, float]:
    """How far both are from the model in float64."""
    exact = copy.deepcopy(one).double()
    found = {"model": 0.0, "collapsed": 0.0, "scale": 0.0}
    done = 0
    with torch.no_grad():
        for batch in feed.batches:
            inputs, mask = feed.inputs(batch)
            wide = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()} \
                if isinstance(inputs, Mapping) else \
                inputs.double() if inputs.is_floating_point() else inputs  # fmt: skip
            true = _counted(_call(exact, wide), mask)
            for name, module in (("model", one), ("collapsed", other)):
                gap = (_counted(_call(module, inputs), mask).double() - true).abs().max()
                found[name] = max(found[name], float(gap))
            found["scale"] = max(found["scale"], float(true.abs().max()))
            done += len(batch.units)
            progress("outputs compared", done, len(feed.units))
    return found


def _counted(output: Tensor, mask: Tensor | None) -> Tensor:
    """Without the positions of padding, whatever stands there."""
    if mask is None or output.shape[:2] != mask.shape:
        return output
    return output[mask]
