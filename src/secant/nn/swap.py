"""Other activations in an existing model, and how far each leaves the function as it was.

Holds: ``swap`` and its result ``Swapped``, ``Place``, and ``MAKERS``.
May import: torch, ``secant.errors``, ``secant.nn``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from secant.errors import InputError
from secant.nn.activations import Exp, KMax, LinearSquash, Sine, Snake, Swish, Tunable
from secant.nn.rational import Rational
from secant.nn.spline import Spline

POINTS: Final = 4097
CHANNELS_SECOND: Final = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
)
FUNCTIONAL: Final = frozenset({
    "celu", "elu", "exp", "gelu", "glu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh",
    "leaky_relu", "logsigmoid", "mish", "prelu", "relu", "relu6", "rrelu", "selu", "sigmoid",
    "silu", "softplus", "softshrink", "softsign", "tanh", "tanhshrink", "threshold",
})  # fmt: skip


@dataclass(frozen=True)
class Place:
    """An activation module in a model, and what a forward pass showed of it.

    `units` lie along `dim` of what it reads, of `ndim` dimensions; `calls` counts its runs in the
    pass. After a swap `error` is the largest change of its output on the inputs of that pass and
    on even points of `span`, and `is_kept` whether that is within the tolerance.
    """

    name: str
    old: nn.Module
    units: int
    dim: int
    ndim: int
    calls: int
    span: tuple[float, float]
    new: nn.Module | None = None
    error: float = float("nan")
    is_kept: bool = False

    def __str__(self) -> str:
        """One line of a report."""
        low, high = self.span
        said = "keeps the function" if self.is_kept else "changes the function"
        return (
            f"{self.name}: {type(self.old).__name__} -> {type(self.new).__name__}, {self.units} "
            f"units along dimension {self.dim}; {said}: off by at most {self.error:.2g} on the "
            f"example and on [{low:g}, {high:g}]"
        )


Maker = Callable[[Place], nn.Module]

MAKERS: Final[dict[str, Maker]] = {
    "identity": lambda place: nn.Identity(),
    "linear_squash": lambda place: LinearSquash(),
    "sigmoid": lambda place: nn.Sigmoid(),
    "tanh": lambda place: nn.Tanh(),
    "relu": lambda place: nn.ReLU(),
    "leaky_relu": lambda place: nn.LeakyReLU(0.0),
    "prelu": lambda place: nn.PReLU(place.units if place.dim % place.ndim == 1 else 1, init=0.0),
    "softplus": lambda place: nn.Softplus(),
    "exp": lambda place: Exp(),
    "kmax": lambda place: KMax(max(1, place.units // 2), place.dim),
    "swish": lambda place: Swish(place.units, dim=place.dim),
    "snake": lambda place: Snake(place.units, dim=place.dim),
    "sine": lambda place: Sine(place.units, dim=place.dim),
    "tunable": lambda place: Tunable(place.old, place.units, dim=place.dim),
    "rational": lambda place: Rational(
        place.units, start=_start(place), span=place.span, dim=place.dim
    ),
    "spline": lambda place: Spline(
        place.units, start=_start(place), span=place.span, dim=place.dim
    ),
}
"""What each name puts at a place. `leaky_relu` and `prelu` have slope 0 below 0 at first, so both
are ReLU until they train; PReLU has a slope for each unit where units lie along dimension 1, as
torch has it, and else one. `kmax` keeps half. `tunable`, `rational` and `spline` start from the
module that was there."""


@dataclass(frozen=True)
class Swapped:
    """A new model, the places where its activations were changed, and what was left alone.

    `functional` counts, by the path of the module that ran them, calls of activations as
    functions, which have no module to change: ``{("blocks.0", "relu"): 1}``. `unreached` are
    modules of the classes asked for that the pass did not run; they were left as they are.
    """

    model: nn.Module
    places: list[Place]
    functional: dict[tuple[str, str], int] = field(default_factory=dict)
    unreached: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """A line for each place, and for what was left."""
        lines = [str(place) for place in self.places]
        for (path, name), calls in self.functional.items():
            often = "once" if calls == 1 else f"{calls} times"
            lines.append(f"{path or '(model)'}: runs {name} as a function, {often}: left alone")
        lines += [f"{name}: not run by the example: left alone" for name in self.unreached]
        return "\n".join(lines)


def swap(
    model: nn.Module,
    changes: Mapping[type[nn.Module], str | Maker],
    example: Any,
    *,
    dim: int | None = None,
    span: tuple[float, float] = (-4.0, 4.0),
    tolerance: float = 1e-6,
) -> Swapped:
    """A copy of the model in which the activation modules of some classes are others.

    ``changes`` gives for a class, exactly that class and no child of it, the name of what comes
    in its place (see `MAKERS`) or a function from `Place` to a module. ``example`` is what the
    model is called with: a tensor, a tuple of arguments or a dict of keywords. One forward pass
    of it, in eval mode, finds the units of each place: along dimension 1 of what has four
    dimensions or more, and of three if a convolution, a batch or group normalisation or a pooling
    gave it; along the last of all else; ``dim`` overrides both. A module used twice is changed
    once.

    The new modules have the type and device of the model, its mode, and are trainable; the model
    given is left as it was. Each place says by how much it changed its output in float64, on the
    example's own entries and on 4,097 even points of ``span``, where rational functions and
    splines are fitted too: the function is kept if by at most ``tolerance``.

    Raises: `InputError` if nothing is to be changed, a name is unknown, no module of the classes
    runs, one module gives its units along different dimensions or sizes, or the example is not
    of the three kinds.

    Example: ``swap(net, {nn.ReLU: "spline"}, images).model``
    """
    makers = {kind: _maker(kind, one) for kind, one in changes.items()}
    copied = copy.deepcopy(model)
    found, functional = _look(copied, makers, example, dim, span)
    names = {name for name, part in copied.named_modules() if type(part) in makers}
    if not found:
        kinds = ", ".join(kind.__name__ for kind in makers) or "no class"
        left = ", ".join(sorted({name for _, name in functional})) or "none"
        raise InputError(
            f"swap: the model must run a module of the classes to be changed ({kinds}); it runs "
            f"none. It holds {_held(copied)}; as functions it calls: {left}. "
            "Name another class, or make modules of the functions."
        )
    places = []
    for place, seen in found:
        like = next(copied.parameters(), torch.zeros(()))
        new = makers[type(place.old)](place).to(like.device, like.dtype)
        new.train(place.old.training)
        error = _change(place, new, seen)
        copied = _put(copied, place.old, new)
        places.append(
            Place(
                place.name, place.old, place.units, place.dim, place.ndim, place.calls, place.span,
                new, error, error <= tolerance,
            )
        )  # fmt: skip
    reached = {place.name for place in places}
    return Swapped(copied, places, functional, sorted(names - reached))


def _maker(kind: type[nn.Module], one: str | Maker) -> Maker:
    if not isinstance(one, str):
        return one
    if one not in MAKERS:
        raise InputError(
            f"swap: {kind.__name__} must become one of {', '.join(MAKERS)}, or what a function of "
            f"its place makes; got {one!r}. Choose one."
        )
    return MAKERS[one]


def _held(model: nn.Module) -> str:
    """The classes of the modules that hold no other."""
    return ", ".join(
        sorted({type(part).__name__ for part in model.modules() if not any(part.children())})
    )


def _start(place: Place) -> Callable[[Tensor], Tensor]:
    """The module that was there, as a function of numbers in float64."""
    if any(one.numel() > 1 for one in place.old.parameters()):
        raise InputError(
            f"swap: {place.name!r} must be one function of numbers for another to start from it; "
            f"{type(place.old).__name__} has parameters of each unit. Give a function of its place "
            "that makes the new module, or take `tunable`."
        )
    return copy.deepcopy(place.old).double().cpu()


@dataclass
class _Seen:
    """The inputs of one module over a pass, and the module that made each."""

    name: str
    module: nn.Module
    inputs: list[Tensor] = field(default_factory=list)
    makers: list[nn.Module | None] = field(default_factory=list)


class _Functions(TorchFunctionMode):
    """Counts activations that are called as functions, by the module that runs them."""

    def __init__(self, running: list[tuple[str, nn.Module]], seen: Mapping[int, _Seen]) -> None:
        super().__init__()
        self.running, self.seen = running, seen
        self.counts: dict[tuple[str, str], int] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "").rstrip("_")
        path, module = self.running[-1]
        # A module of torch's own that holds no other is an activation by itself, not a function.
        is_torch_s = type(module).__module__.startswith("torch.") and not any(module.children())
        if name in FUNCTIONAL and not is_torch_s and id(module) not in self.seen:
            self.counts[path, name] = self.counts.get((path, name), 0) + 1
        return func(*args, **kwargs or {})


def _look(
    model: nn.Module,
    kinds: Mapping[type[nn.Module], Maker],
    example: Any,
    dim: int | None,
    span: tuple[float, float],
) -> tuple[list[tuple[Place, list[Tensor]]], dict[tuple[str, str], int]]:
    """The places that one pass runs, with what they read, and the functions it calls."""
    seen = {
        id(part): _Seen(name, part) for name, part in model.named_modules() if type(part) in kinds
    }
    running: list[tuple[str, nn.Module]] = [("", model)]
    last: list[tuple[Tensor, nn.Module]] = []
    modes = {part: part.training for part in model.modules()}
    functions = _Functions(running, seen)
    with _hooks(model, seen, running, last), functions, torch.no_grad():
        _call(model.eval(), example)
    for part, mode in modes.items():
        part.training = mode
    found = [(_place(one, dim, span), one.inputs) for one in seen.values() if one.inputs]
    return found, functions.counts


@contextmanager
def _hooks(
    model: nn.Module,
    seen: dict[int, _Seen],
    running: list[tuple[str, nn.Module]],
    last: list[tuple[Tensor, nn.Module]],
) -> Iterator[None]:
    handles: list[RemovableHandle] = []

    def begin(name: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, args: Any) -> None:
            running.append((name, module))
            if id(module) in seen:
                (x, *_) = args
                maker = next((made for out, made in reversed(last) if out is x), None)
                seen[id(module)].inputs.append(x.detach().clone())
                seen[id(module)].makers.append(maker)

        return hook

    def end(module: nn.Module, args: Any, out: Any) -> None:
        running.pop()
        if isinstance(out, Tensor) and not any(module.children()):
            last.append((out, module))

    try:
        for name, part in model.named_modules():
            handles.append(part.register_forward_pre_hook(begin(name)))
            handles.append(part.register_forward_hook(end))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _call(model: nn.Module, example: Any) -> None:
    if isinstance(example, Tensor):
        model(example)
    elif isinstance(example, tuple):
        model(*example)
    elif isinstance(example, Mapping):
        model(**example)
    else:
        raise InputError(
            "swap: `example` must be a tensor, a tuple of arguments or a dict of keywords; got "
            f"{type(example).__name__}. Give what the model is called with."
        )


def _place(seen: _Seen, dim: int | None, span: tuple[float, float]) -> Place:
    dims = {
        _dim_of(x, maker) if dim is None else dim
        for x, maker in zip(seen.inputs, seen.makers, strict=True)
    }
    units = {x.shape[one] for x in seen.inputs for one in dims if -x.ndim <= one < x.ndim}
    if len(dims) != 1 or len(units) != 1:
        raise InputError(
            f"swap: {seen.name!r} must read its units along one dimension, as many each time; it "
            f"reads {[tuple(x.shape) for x in seen.inputs]}, along {sorted(dims)}. Give `dim`, or "
            "use a module of its own at each place."
        )
    (one,), (count,) = dims, units
    return Place(seen.name, seen.module, count, one, seen.inputs[0].ndim, len(seen.inputs), span)


def _dim_of(x: Tensor, maker: nn.Module | None) -> int:
    """The dimension of the units of x, by the module that made it and by its dimensions."""
    return 1 if x.ndim > 3 or (x.ndim == 3 and isinstance(maker, CHANNELS_SECOND)) else -1


def _change(place: Place, new: nn.Module, seen: list[Tensor]) -> float:
    """The largest change of the output, in float64, on inputs seen and on even points."""
    grid = torch.linspace(*place.span, POINTS, dtype=torch.float64)
    ends = seen[0].ndim - 1 - place.dim % seen[0].ndim
    shape = (POINTS, *[1] * (place.dim % seen[0].ndim - 1), place.units, *[1] * ends)
    inputs = [x.double().cpu() for x in seen]
    if place.dim % seen[0].ndim > 0:
        inputs.append(grid.view(-1, *[1] * (len(shape) - 1)).expand(shape).clone())
    old, tried = (copy.deepcopy(part).double().cpu().eval() for part in (place.old, new))
    errors = []
    with torch.no_grad():
        for x in inputs:
            before, after = old(x.clone()), tried(x.clone())
            if before.shape != after.shape:
                raise InputError(
                    f"swap: what comes in place of {place.name!r} must keep the shape "
                    f"{tuple(before.shape)}; it gives {tuple(after.shape)}. Make another module."
                )
            errors.append((after - before).abs().max())
    return float(torch.stack(errors).max())


def _put(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """The model, with the new module wherever it held the old one."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():  # named_children tells of shared ones once
            if child is old:
                parent._modules[name] = new
    return new if model is old else model
