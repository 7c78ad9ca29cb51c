"""One module's recurrent layers, each fitted by a linear update of its own steps.

Holds: ``fitted_state``; ``Layer``, what it says of one; ``JoinError``; ``shown``.
May import: torch, ``secant.errors``, ``secant.gauges``, ``secant.load``, ``secant.maps``,
``secant.nn``, ``secant.readings``, ``secant.uses`` (horizons, time_sums).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from secant.errors import InputError
from secant.gauges.fit import Fit
from secant.load.feed import Feed
from secant.maps.time import Transition, transitions
from secant.nn.linear_state import LinearLayer, LinearState
from secant.readings import interval_of, number
from secant.uses.horizons import LinearUpdate
from secant.uses.time_sums import Rows, rows_of


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


class JoinError(InputError):
    """The calls of one module in a forward cannot be fitted as one; the message says why."""


class _Fits(NamedTuple):
    """The next state by state and input, and by the state alone."""

    whole: Fit
    alone: Fit

    @classmethod
    def around(cls, rows: Rows) -> _Fits:
        before, inputs, after = (part.double().mean(0) for part in rows)
        place = rows.after.device
        return cls(Fit(torch.cat([before, inputs]), after).to(place), Fit(before, after).to(place))

    def add(self, rows: Rows, group: int) -> None:
        self.whole.update(torch.cat([rows.before, rows.inputs], 1), rows.after, group)
        self.alone.update(rows.before, rows.after, group)


def shown(site: str) -> str:
    """A site's name for a reader: the model itself has none."""
    return f"(model){site}" if not site or site.startswith(".") else site


def fitted_state(model: nn.Module, name: str, feed: Feed) -> tuple[LinearState, list[Layer]]:
    """The linear layers of one module, each fitted on what those below hand on.

    All calls in a forward are one fit. A call that goes on where the one before it ended does so
    from the linear state in the layers below; any other starts where it did.

    Raises: `JoinError` where a forward's calls cannot be told from its padding, or none is made;
    `InputError` for values that are not finite, and as `transitions` does.
    Cost: a pass over the data for each of its layers, the steps of all recurrences one by one.
    """
    module = model.get_submodule(name)
    assert isinstance(module, nn.RNNBase)
    ways = 2 if module.bidirectional else 1
    weight = next(module.parameters())
    layers: list[LinearLayer] = []
    said: list[Layer] = []
    made = _state_of(module, layers)
    for _ in range(module.num_layers):
        found = _gathered(model, name, feed, made)
        for site, fits in zip(_sites(name, module)[len(layers) :], found, strict=False):
            layer, one = _solved(shown(site), fits, weight)
            layers.append(layer)
            said.append(one)
        made = _state_of(module, layers)
    assert len(layers) == ways * module.num_layers
    return made, said


def _state_of(module: nn.RNNBase, layers: Sequence[LinearLayer]) -> LinearState:
    """These layers in the place of the module."""
    made = LinearState(
        layers, mode=module.mode, outputs=module.proj_size or module.hidden_size,
        ways=2 if module.bidirectional else 1, batch_first=module.batch_first,
        bias=module.bias, dropout=module.dropout,
    )  # fmt: skip
    return made.train(module.training)


def _sites(name: str, module: nn.RNNBase) -> list[str]:
    """What `transitions` calls the module's layers and directions in its first call."""
    ways = ("", "_reverse") if module.bidirectional else ("",)
    if module.num_layers == len(ways) == 1:
        return [name]
    return [f"{name}.l{layer}{way}" for layer in range(module.num_layers) for way in ways]


# Gathering ---------------------------------------------------------------------------------


def _gathered(model: nn.Module, name: str, feed: Feed, below: LinearState) -> list[_Fits]:
    """The sums of the layer on top of those below, one for each direction, in one pass."""
    module = model.get_submodule(name)
    assert isinstance(module, nn.RNNBase)
    found: list[_Fits] = []
    for batch in feed.batches:
        forward, mask = feed.forward(model, batch)
        calls = _calls(transitions(model, forward), _sites(name, module))
        if not calls:
            continue
        near = torch.finfo(next(module.parameters()).dtype).eps ** 0.5
        handed = _handed(below, calls, near)
        masks = _masks(calls, mask)
        for way in range(below.ways):
            place = len(below.layers) + way
            of_calls = [
                rows_of(replace(call[place], inputs=inputs[way].to(call[place].x)), own)
                for call, inputs, own in zip(calls, handed, masks, strict=True)
            ]
            rows = Rows(*(torch.cat(parts) for parts in zip(*of_calls, strict=True)))
            if not all(bool(one.isfinite().all()) for one in rows):
                raise InputError(
                    f"linearize-state: the states of {shown(calls[0][place].site)!r} hold values "
                    "that are not finite. Give units without them."
                )
            if len(found) == way:
                found.append(_Fits.around(rows))
            found[way].add(rows, batch.group)
    if not found:
        raise JoinError("no forward calls it")
    return found


def _calls(parts: dict[str, Transition], sites: list[str]) -> list[list[Transition]]:
    """The transitions of each call of a module, in the order of its layers and directions."""
    found: list[list[Transition]] = []
    at = ""
    while sites[0] + at in parts:
        found.append([parts[site + at] for site in sites])
        at = f"@{len(found) + 1}"
    return found


def _masks(calls: list[list[Transition]], mask: Tensor | None) -> list[Tensor | None]:
    """The positions of each call that count: the mask's, or its next ones where calls share it.

    Raises: `JoinError` if the steps are neither.
    """
    if mask is None:
        return [None] * len(calls)
    steps = [call[0].y.shape[1] for call in calls]
    if all(len(call[0].y) == len(mask) for call in calls):
        if all(count == mask.shape[1] for count in steps):
            return [mask] * len(calls)
        if sum(steps) == mask.shape[1]:
            return list(torch.split(mask, steps, 1))
    taken = ", ".join(map(str, steps[:4])) + (", ..." if len(steps) > 4 else "")
    raise JoinError(
        f"its calls take {taken} steps where the mask has {mask.shape[1]} positions, so padding "
        "cannot be told"
    )


def _handed(below: LinearState, calls: list[list[Transition]], near: float) -> list[list[Tensor]]:
    """What the layers below hand on in each call, in the order of each direction's steps."""
    count = len(below.layers)
    if not count:
        return [[part.inputs for part in call[: below.ways]] for call in calls]
    found: list[list[Tensor]] = []
    ends: list[Tensor] = []
    for place, call in enumerate(calls):
        starts = [part.x[:, 0].to(below.dtype) for part in call[:count]]
        if place:
            earlier = calls[place - 1]
            starts = [
                _going_on(end, before, start, near)
                for end, before, start in zip(ends, earlier, starts, strict=False)
            ]
        valid = call[0].valid
        lengths = None if valid is None else valid.sum(1)
        with torch.no_grad():
            hidden, ends = below.run(call[0].inputs.to(below.dtype), starts, lengths)
        found.append([hidden, hidden.flip(1)][: below.ways])
    return found


def _going_on(end: Tensor, before: Transition, start: Tensor, near: float) -> Tensor:
    """The linear state at the end of the call before, in rows that start where that one ended."""
    last = before.y[:, -1].to(start)
    if last.shape != start.shape:
        return start
    goes_on = (last - start).norm(dim=1) <= near * last.norm(dim=1)
    return torch.where(goes_on[:, None], end, start)


def _solved(site: str, fits: _Fits, weight: Tensor) -> tuple[LinearLayer, Layer]:
    """The layer where `weight` lies and of its type, of half precision float32; its scores."""
    whole, state = fits.whole.compute(), fits.alone.compute()
    width = len(whole.affine.bias)
    update = LinearUpdate.of(whole.affine, whole.affine.bias)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    layer = LinearLayer.of(update.state.T, update.inputs.T, update.bias, dtype).to(weight.device)
    raw, beyond = (
        {"value": number(one.value), "interval": interval_of(one.interval)}
        for one in (whole.scores["raw"], whole.within(state)["beyond"])
    )
    return layer, Layer(
        site, width, len(whole.affine.weight) - width, raw, beyond,
        float(update.eigenvalues()[0].abs()), "eigenvalues" if layer.is_diagonal else "matrix",
    )  # fmt: skip
