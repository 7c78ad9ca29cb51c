"""What all recurrent layers ask of their inputs, and the arithmetic that they work in.

Holds: ``check_sizes``, ``check_sequence``, ``check_row``, ``checked_state``, ``widened``,
``without_autocast``.
May import: torch, ``secant.errors``, ``secant.nn`` (units).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.amp.autocast_mode import is_autocast_available

from secant.errors import InputError
from secant.nn.units import in_float32


def check_sizes(what: str, **sizes: int) -> None:
    """Every size is at least 1.

    Raises: `InputError` for one that is not.
    """
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"{what}: `{name}` must be at least 1; got {size}. Give more.")


def check_sequence(what: str, x: Tensor, features: int) -> None:
    """x is (batch, length, features) of floats, with a step to take.

    Raises: `InputError` for another shape or type.
    """
    if x.ndim != 3 or x.shape[2] != features or x.shape[1] < 1:
        raise InputError(
            f"{what}: sequences must be (batch, length, {features}), of at least one step; got "
            f"{tuple(x.shape)}. Reshape them; for one step without the length call `step`."
        )
    _check_floats(what, x)


def check_row(what: str, x: Tensor, features: int) -> None:
    """x is (batch, features) of floats: one step of every sequence.

    Raises: `InputError` for another shape or type.
    """
    if x.ndim != 2 or x.shape[1] != features:
        raise InputError(
            f"{what}: one step must be (batch, {features}); got {tuple(x.shape)}. Reshape it; "
            "for whole sequences call the layer itself."
        )
    _check_floats(what, x)


def _check_floats(what: str, x: Tensor) -> None:
    if not x.is_floating_point():
        raise InputError(
            f"{what}: inputs must be real floats; got {x.dtype}. Embed or convert them first."
        )


def checked_state(what: str, state: Tensor | None, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """The state as `like`'s type, on its device; zeros if there is none.

    Raises: `InputError` for another shape than `shape`, or complex numbers where `like` has none.
    """
    if state is None:
        return like.new_zeros(shape)
    if state.is_complex() and not like.is_complex():
        raise InputError(
            f"{what}: the state must be real; got {state.dtype}. Pass what the last call gave."
        )
    if tuple(state.shape) != shape:
        raise InputError(
            f"{what}: the state must be {shape}; got {tuple(state.shape)}. Pass what the last "
            "call gave for sequences of the same batch, or None to begin anew."
        )
    return state.to(like)


def widened(x: Tensor, *parameters: Tensor | None) -> tuple[Tensor, ...]:
    """x and the parameters in x's type, half precision as float32; a missing one stays out."""
    wide = in_float32(x)
    return wide, *(one.to(wide.dtype) for one in parameters if one is not None)


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A context in which products keep the type of their factors: a state adds up what it loses."""
    kind = x.device.type
    if not is_autocast_available(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)
