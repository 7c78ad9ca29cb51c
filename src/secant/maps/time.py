"""The map from one state of a recurrence to the next, along the trajectories it really took.

Holds: ``Transition``, ``Unrolled``, ``transitions``, ``recurrent_modules``.
May import: torch, jaxtyping, ``secant.errors``, ``secant.maps`` (calls, cells, derivatives).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from secant.errors import InputError
from secant.maps.calls import first_tensor, intercept
from secant.maps.cells import Cell, packed, stepped_cell, torch_cell
from secant.maps.derivatives import jvp

SAME = 1e-4
"""How far the steps, written out, may end from what the layer gave, as a share of its norm."""

SAME_HALF = 0.1
FIRST = 8
"""Steps of a sequence in which the layer's own and those written out are compared."""

Valid = Bool[Tensor, "batch length"]


@dataclass(frozen=True)
class Transition:
    """h_t = F(h_{t-1}, u_t) of one recurrent layer on one batch, as a map of the state.

    `inputs` are the u_t, `x` the states before and `y` those after, in the order in which the
    layer took the steps; `valid` says which of them it took at all, None for all. `is_reversed`:
    it went backwards in time. `is_chained`: each state before is the one after the step before it,
    so that the trajectory can be followed; between cells that a model calls itself it need not be.
    """

    site: str
    cell: Cell
    inputs: Float[Tensor, "batch length inputs"]
    x: Float[Tensor, "batch length state"]
    y: Float[Tensor, "batch length state"]
    valid: Valid | None = None
    is_reversed: bool = False

    def value(self, x: Tensor) -> Tensor:
        """F of states (batch, length, state) in place of those before, inputs as they were."""
        return self.cell.step(x.flatten(0, 1), self.inputs.flatten(0, 1)).view_as(self.y)

    def jvp(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """F(x) and its derivative in the state along v. Cost: two to three evaluations."""
        return jvp(self.value, x, v)

    @property
    def is_chained(self) -> bool:
        """Whether the steps follow on one another."""
        before, after = self.x[:, 1:], self.y[:, :-1]
        if self.valid is not None:
            before, after = before[self.valid[:, 1:]], after[self.valid[:, 1:]]
        return bool(torch.isclose(before, after, rtol=1e-6, atol=0, equal_nan=True).all())

    def counted(self, mask: Tensor | None) -> Tensor | None:
        """The steps that count, (batch, length): those taken at positions that `mask` keeps.

        A packed sequence says itself which steps it takes.

        Raises: `InputError` if the mask leaves out positions, and has others than the layer took
        steps.
        """
        if mask is None or self.valid is not None or bool(mask.all()):
            return self.valid
        if mask.shape != self.y.shape[:2]:
            raise InputError(
                f"site {self.site!r}: it took {self.y.shape[1]} steps in a batch of "
                f"{self.y.shape[0]}, but the mask has {tuple(mask.shape)} (batch, length), so "
                "padding would count. Give units of one length, or pack them in the model."
            )
        return mask.flip(1) if self.is_reversed else mask


@dataclass(frozen=True)
class Unrolled:
    """The last state of a recurrent layer as a function of all its inputs, its first state fixed.

    `x` (batch, length, inputs) are the inputs and `y` (batch, state) the state after the last
    step that counts. Each value takes every step.
    """

    transition: Transition
    taken: Tensor | None

    @property
    def site(self) -> str:
        """That of the layer."""
        return self.transition.site

    @property
    def x(self) -> Tensor:
        """The inputs as they were."""
        return self.transition.inputs

    @property
    def y(self) -> Tensor:
        """The last state as it was."""
        return self.value(self.x)

    def value(self, x: Tensor) -> Tensor:
        """The last state for these inputs."""
        h, step = self.transition.x[:, 0], self.transition.cell.step
        for place in range(x.shape[1]):
            new = step(h, x[:, place])
            h = new if self.taken is None else torch.where(self.taken[:, place, None], new, h)
        return h

    def jvp(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The last state and its derivative along v. Cost: two to three evaluations."""
        return jvp(self.value, x, v)


def recurrent_modules(model: nn.Module) -> list[str]:
    """Paths of the modules whose transitions are known: torch's, and the innermost with a ``step``.

    A ``step`` takes (x_t, state) and returns (output, state); its module's forward takes
    (batch, length, features). A state of None is one of zeros.
    """
    stepped = [name for name, part in model.named_modules() if _has_step(part)]
    inner = [
        name for name in stepped
        if not any(other != name and _lies_in(other, name) for other in stepped)
    ]  # fmt: skip
    own = [
        name for name, part in model.named_modules()
        if isinstance(part, nn.RNNBase | nn.RNNCellBase)
    ]  # fmt: skip
    order = [name for name, _ in model.named_modules()]
    return sorted({*inner, *own}, key=order.index)


def _has_step(module: nn.Module) -> bool:
    step = getattr(type(module), "step", None)
    if not callable(step):
        return False
    return list(inspect.signature(step).parameters)[2:3] == ["state"]


def _lies_in(inner: str, outer: str) -> bool:
    return outer == "" or inner.startswith(f"{outer}.")


def transitions(model: nn.Module, forward: Callable[[], Any]) -> dict[str, Transition]:
    """Every recurrent layer's transition in one forward of the batch; empty if there is none.

    A layer of torch's stacked or two-way recurrences is a site of its own, named as its weights
    are: ``rnn.l0``, ``rnn.l0_reverse``; one that is alone bears the module's name. The second call
    of a module is ``rnn@2``; all calls of a cell (``nn.GRUCell``) in one forward are one site, its
    steps. A ``PackedSequence`` is taken apart.

    The steps are taken again one by one, those of half precision in float32. Cost: as the
    layer's own, without its fused kernels. Memory: the states of the batch.

    Raises: `InputError` where they do not end where the layer did (dropout between layers, a
    ``step`` that is not the forward's), and for layers without a batch.
    """
    calls: dict[str, list[_Call]] = {}

    def keep(site: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        name = site.partition("@")[0] if isinstance(module, nn.RNNCellBase) else site
        calls.setdefault(name, []).append(_Call(module, *_bound(module, args, kwargs), output))

    with torch.no_grad(), intercept(model, recurrent_modules(model), keep):
        forward()
    found: dict[str, Transition] = {}
    with torch.no_grad():
        for site, of_site in calls.items():
            module = of_site[0].module
            if isinstance(module, nn.RNNCellBase):
                parts = [_of_cell(site, module, of_site)]
            elif isinstance(module, nn.RNNBase):
                parts = _of_torch(site, module, of_site[0])
            else:
                parts = [_of_step(site, module, of_site[0])]
            found |= {part.site: part for part in parts}
    return found


@dataclass(frozen=True)
class _Call:
    """What a recurrent module took, input and state, and gave."""

    module: nn.Module
    x: Any
    state: Any
    output: Any


def _bound(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Input and initial state of a call, whatever the names under which they came."""
    # It was called like this a moment ago, so this binds.
    given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    return next(iter(given.values())), given.get("hx", given.get("state"))


def _exact(tensor: Tensor) -> Tensor:
    """Half precision in float32, everything else as it is."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _weights(module: nn.Module, suffix: str) -> dict[str, Tensor]:
    """The tensors of one layer, under their names without the layer's suffix."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    found = {name: getattr(module, name + suffix, None) for name in names}
    return {name: _exact(one) for name, one in found.items() if isinstance(one, Tensor)}


def _walk(
    site: str, cell: Cell, inputs: Tensor, start: Tensor, valid: Tensor | None, backwards: bool
) -> Transition:
    """The steps of a layer from its first state, which rows without a step keep."""
    before, after = [], []
    h = start
    for place in range(inputs.shape[1]):
        new = cell.step(h, inputs[:, place])
        if valid is not None:
            new = torch.where(valid[:, place, None], new, h)
        before.append(h)
        after.append(new)
        h = new
    empty = start.new_zeros(len(start), 0, cell.state)
    x, y = (torch.stack(steps, 1) if steps else empty for steps in (before, after))
    return Transition(site, cell, inputs, x, y, valid, backwards)


def _of_torch(site: str, module: nn.RNNBase, call: _Call) -> list[Transition]:
    x, valid = call.x, None
    output = call.output[0]
    if isinstance(x, PackedSequence):
        x, lengths = pad_packed_sequence(x, batch_first=True)
        output, _ = pad_packed_sequence(output, batch_first=True)
        valid = torch.arange(x.shape[1], device=x.device) < lengths.to(x.device)[:, None]
    elif x.ndim != 3:
        raise InputError(
            f"site {site!r}: expected an input of (batch, length, features); got "
            f"{tuple(x.shape)}. Give the layer a batch."
        )
    elif not module.batch_first:
        x, output = x.transpose(0, 1), output.transpose(0, 1)
    hidden = _exact(x)
    parts: list[Transition] = []
    ways = ("", "_reverse") if module.bidirectional else ("",)
    starts = _starts(module, call.state, hidden)
    for layer in range(module.num_layers):
        handed = []
        for way in ways:
            suffix = f"l{layer}{way}"
            kind = "RNN" if module.mode.startswith("RNN") else module.mode
            activation = "relu" if module.mode == "RNN_RELU" else "tanh"
            cell = torch_cell(kind, _weights(module, f"_{suffix}"), activation)
            is_alone = module.num_layers == len(ways) == 1
            name = site if is_alone else _with_suffix(site, suffix)
            steps, taken = hidden, valid
            if way:
                steps = hidden.flip(1)
                taken = None if valid is None else valid.flip(1)
            part = _walk(name, cell, steps, starts[len(parts)], taken, bool(way))
            out = part.y[..., : cell.outputs]
            handed.append(out.flip(1) if way else out)
            parts.append(part)
        hidden = torch.cat(handed, -1)
    for part, own in zip(parts[-len(ways) :], output.chunk(len(ways), -1), strict=True):
        given = own.flip(1) if part.is_reversed else own
        _check_same(site, part.y[..., : given.shape[-1]], given, part.valid)
    return parts


def _with_suffix(site: str, suffix: str) -> str:
    name, at, call = site.partition("@")
    return f"{name}.{suffix}{at}{call}"


def _starts(module: nn.RNNBase, state: Any, x: Tensor) -> list[Tensor]:
    """The first state of each layer and direction; zeros if none was given."""
    count = module.num_layers * (2 if module.bidirectional else 1)
    parts: Sequence[Tensor]
    if state is None:
        sizes = [module.proj_size or module.hidden_size]
        sizes += [module.hidden_size] if module.mode == "LSTM" else []
        parts = [x.new_zeros(count, len(x), size) for size in sizes]
    else:
        parts = [_exact(part) for part in (state if isinstance(state, tuple) else (state,))]
    return [torch.cat([part[place] for part in parts], -1) for place in range(count)]


def _of_cell(site: str, module: nn.RNNCellBase, calls: Sequence[_Call]) -> Transition:
    kind = type(module).__name__.removesuffix("Cell")
    cell = torch_cell(kind, _weights(module, ""), getattr(module, "nonlinearity", "tanh"))
    shapes = {tuple(call.x.shape) for call in calls}
    if len(shapes) > 1 or calls[0].x.ndim != 2:
        raise InputError(
            f"site {site!r}: expected inputs of (batch, features), of one batch in all its calls; "
            f"got {', '.join(map(str, sorted(shapes)))}. Give the cell a batch, the same at every "
            "step."
        )
    inputs = torch.stack([_exact(call.x) for call in calls], 1)
    before, after = [], []
    for call in calls:
        new = packed(call.output, module)
        before.append(torch.zeros_like(new) if call.state is None else packed(call.state, module))
        after.append(new)
    x, y = (_exact(torch.stack(states, 1)) for states in (before, after))
    part = Transition(site, cell, inputs, x, y)
    _check_same(site, part.value(x), y, None)
    return part


def _of_step(site: str, module: nn.Module, call: _Call) -> Transition:
    if not isinstance(call.x, Tensor) or call.x.ndim != 3 or not call.x.shape[1]:
        what = tuple(call.x.shape) if isinstance(call.x, Tensor) else type(call.x).__name__
        raise InputError(
            f"site {site!r}: expected an input of (batch, length, features); got {what}. "
            "Give the layer a batch of sequences."
        )
    step: Callable[[Tensor, Any], Any] = module.step  # type: ignore[assignment]
    outputs, states, state = [], [], call.state
    for place in range(call.x.shape[1]):
        out, state = step(call.x[:, place], state)
        outputs.append(out)
        states.append(packed(state, module))
    cell = stepped_cell(module, state)
    start = torch.zeros_like(states[0]) if call.state is None else packed(call.state, module)
    x, y = torch.stack([start, *states[:-1]], 1), torch.stack(states, 1)
    part = Transition(site, cell, call.x, x, y)
    _check_same(site, torch.stack(outputs, 1), first_tensor(call.output, site, "output"), None)
    _check_same(site, part.value(x), y, None)
    return part


def _check_same(site: str, steps: Tensor, given: Tensor, valid: Tensor | None) -> None:
    """Refuse a layer whose first steps, one by one, end elsewhere than it did.

    Later ones may part by rounding alone, where the state is chaotic, as shuffled weights make it.
    """
    taken = steps.new_ones(steps.shape[:2], dtype=torch.bool) if valid is None else valid
    early = taken & (taken.cumsum(1) <= FIRST)
    steps, exact = steps.double()[early], given.double()[early]
    known = exact.isfinite() & steps.isfinite()
    apart, whole = float((steps - exact)[known].norm()), float(exact[known].norm())
    most = SAME_HALF if torch.finfo(given.dtype).bits == 16 else SAME
    if apart > most * whole:
        raise InputError(
            f"site {site!r}: its first {FIRST} steps one by one end "
            f"{apart / whole if whole else apart:.2g} of the norm from what it gave at once. "
            "Put the model in eval mode, for dropout between layers; a `step` of your own must do "
            "what the forward does."
        )
