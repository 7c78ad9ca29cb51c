"""The map from a model's weights to what it gives on one batch.

Holds: ``WeightsMap``; ``chosen_parameters``; ``run``, ``rows_of``, ``part_of``, ``first_output``,
batches as models take them; ``check_fixed``, which refuses models whose rows or calls differ.
May import: torch, jaxtyping, ``secant.errors``, ``secant.maps`` (calls, derivatives).

Weights are one vector, in the order of `model.named_parameters()`: sums, steps and scipy's
operators then need no code of their own. Its pieces are views, so nothing is held twice.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from secant.errors import InputError
from secant.maps.calls import first_tensor
from secant.maps.derivatives import jvp

Batch = Tensor | Mapping[str, Tensor] | Sequence[Tensor]
"""What a model is called with; the first dimension of every tensor is the row."""


def run(model: nn.Module, batch: Batch) -> Any:
    """The model's output: a mapping gives keyword arguments, a sequence positional ones."""
    if isinstance(batch, Tensor):
        return model(batch)
    return model(**batch) if isinstance(batch, Mapping) else model(*batch)


def rows_of(batch: Batch) -> int:
    """How many rows a batch has.

    Raises: `InputError` if it has no tensors, or tensors of different lengths.
    """
    tensors: list[Any] = [batch]
    if isinstance(batch, Mapping):
        tensors = list(batch.values())
    elif not isinstance(batch, Tensor):
        tensors = list(batch)
    shapes = [
        tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__ for one in tensors
    ]
    if not tensors or not all(isinstance(one, Tensor) and one.ndim > 0 for one in tensors):
        raise InputError(
            f"a batch must be a tensor, or a mapping or sequence of tensors; got {shapes}. "
            "Give tensors whose first dimension is the row."
        )
    if len({len(one) for one in tensors}) != 1 or len(tensors[0]) == 0:
        raise InputError(
            f"the tensors of a batch must have one first dimension, of at least 1; got {shapes}."
            " Give as many rows of each."
        )
    return len(tensors[0])


def part_of(batch: Batch, start: int, stop: int) -> Batch:
    """The rows `start` to `stop` of a batch, as views."""
    if isinstance(batch, Tensor):
        return batch[start:stop]
    if isinstance(batch, Mapping):
        return {key: one[start:stop] for key, one in batch.items()}
    return [one[start:stop] for one in batch]


def first_output(output: Any) -> Tensor:
    """The leading tensor of what a model returns.

    Raises: `InputError` if there is none, or it is no tensor of floats.
    """
    found = first_tensor(output, "(model)", "output")
    if not found.is_floating_point():
        raise InputError(
            f"the model's output is {found.dtype}, which has no derivative. "
            "Choose an output of floats with `outputs`."
        )
    return found


def chosen_parameters(model: nn.Module, names: Sequence[str] | None = None) -> list[str]:
    """Names of the parameters that `names` (names or globs) keep; those that train if None.

    A tied parameter is there once, under its first name; any of its names selects it.

    Raises: `InputError` if a name matches nothing or no floats, or nothing is left.
    """
    every = dict(model.named_parameters(remove_duplicate=False))
    first = {id(one): name for name, one in reversed(every.items())}
    if names is None:
        kept = {id(one) for one in every.values() if one.requires_grad}
        if not kept:
            raise InputError(
                f"no parameter of {type(model).__name__} requires a gradient. "
                "Unfreeze some, or name them with `parameters`."
            )
    else:
        kept = set()
        for name in names:
            found = [key for key in every if fnmatch.fnmatchcase(key, name)]
            if not found:
                raise InputError(
                    f"no parameter matches {name!r}. The first are {', '.join(list(every)[:5])}."
                )
            solid = [key for key in found if not every[key].is_floating_point()]
            if solid:
                raise InputError(
                    f"parameter {solid[0]!r} is {every[solid[0]].dtype} and has no derivative. "
                    "Name parameters of floats."
                )
            kept |= {id(every[key]) for key in found}
    return [name for name in dict.fromkeys(first[id(one)] for one in every.values()) if
            id(every[name]) in kept]  # fmt: skip


def check_fixed(model: nn.Module, batch: Batch) -> None:
    """Refuse a model whose rows see each other or whose output is drawn anew at each call.

    Cost: two forwards of `batch`. Raises: `InputError`.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or not module.track_running_stats):
            raise InputError(
                f"{name or type(module).__name__!r} normalises by its batch, so a row's output "
                "is not a function of the row. Call model.eval() first."
            )
    with torch.no_grad():
        one, other = (first_output(run(model, batch)) for _ in range(2))
    if not torch.equal(one, other) and not (one.isnan().any() and other.isnan().any()):
        raise InputError(
            "the model's outputs change from call to call (dropout, or noise of its own). "
            "Call model.eval() first, or take the noise out."
        )


class _Called(nn.Module):
    """A model and a call of it as one module without arguments."""

    def __init__(self, model: nn.Module, forward: Callable[[], Any]) -> None:
        super().__init__()
        self.model = model
        self.call = forward

    def forward(self) -> Any:
        return self.call()


@dataclass(frozen=True)
class WeightsMap:
    """What a model gives on one batch as a function of the weights `names`.

    `forward` is one call of the model; `outputs` takes what it returns to a tensor. Buffers and
    other parameters stay as they are. A weight vector has (p,) entries, `at()` those of now.
    """

    model: nn.Module
    forward: Callable[[], Any]
    names: tuple[str, ...]
    outputs: Callable[[Any], Tensor] = first_output

    def at(self) -> Float[Tensor, " p"]:
        """The model's own weights, as a new vector. Memory: p values."""
        every = dict(self.model.named_parameters(remove_duplicate=False))
        return torch.cat([every[name].detach().flatten() for name in self.names])

    def named(self, weights: Float[Tensor, " p"]) -> dict[str, Tensor]:
        """The vector's pieces by name, in the shapes of the parameters, as views.

        Raises: `InputError` for a vector of another length.
        """
        every = dict(self.model.named_parameters(remove_duplicate=False))
        sizes = [every[name].numel() for name in self.names]
        if weights.shape != (sum(sizes),):
            raise InputError(
                f"expected a vector of {sum(sizes)} weights; got {tuple(weights.shape)}. "
                "Take one from `at()` of the same map."
            )
        pieces = torch.split(weights, sizes)
        return {
            name: piece.view(every[name].shape)
            for name, piece in zip(self.names, pieces, strict=True)
        }

    def value(self, weights: Float[Tensor, " p"]) -> Tensor:
        """f(x; w). Tied weights move together. Cost: one forward."""
        pieces = {f"model.{name}": piece for name, piece in self.named(weights).items()}
        return self.outputs(functional_call(_Called(self.model, self.forward), pieces, ()))

    def jvp(self, weights: Float[Tensor, " p"], v: Float[Tensor, " p"]) -> tuple[Tensor, Tensor]:
        """f(x; w) and J(w) v. Cost: two to three forwards. Call it inside `derivatives`."""
        return jvp(self.value, weights, v)

    def vjp(self, weights: Float[Tensor, " p"], u: Tensor) -> tuple[Tensor, Float[Tensor, " p"]]:
        """f(x; w) and J(w)'u, `u` in the shape of the output. Cost: three forwards."""
        with torch.enable_grad():
            leaf = weights.detach().requires_grad_()
            value = self.value(leaf)
            if u.shape != value.shape:
                raise InputError(
                    f"vjp: `u` must have the output's shape {tuple(value.shape)}; "
                    f"got {tuple(u.shape)}. Give one weight for each output."
                )
            (found,) = torch.autograd.grad(value, leaf, u, allow_unused=True)
        return value.detach(), torch.zeros_like(weights) if found is None else found
