"""New weights for a module whose constructor is unknown.

Holds: ``seeded``, ``reinitialised``.
May import: torch, ``secant.errors``.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from secant.errors import ControlError


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from `seed` within, and leave the caller's random state as it was."""
    has_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if has_cuda else ()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def _resetter(module: nn.Module) -> Callable[[], Any] | None:
    """The module's own way to draw its parameters anew, if it has one without arguments."""
    for name in ("reset_parameters", "_reset_parameters"):  # attention has the private name
        method = getattr(module, name, None)
        if callable(method):
            try:
                inspect.signature(method).bind()
            except TypeError:
                continue
            return method  # type: ignore[no-any-return]
    return None


def reinitialised(model: nn.Module, seed: int) -> nn.Module:
    """A deep copy whose parameters were all drawn anew by their modules' `reset_parameters`.

    Children come first, so that a parent's own rule has the last word. Every parameter is
    filled with NaN before and must be finite after: a method that leaves one out is noticed.
    Buffers that no such method touches (position tables, masks) keep their values.

    Raises: `ControlError` naming the first parameter that no method draws anew.
    """
    other = copy.deepcopy(model)
    for name, parameter in other.named_parameters():
        if not parameter.is_floating_point():
            raise ControlError(
                f"parameter {name!r} holds {parameter.dtype}, which cannot be drawn anew. "
                "Name the model as package.module:factory to have this control."
            )
        parameter.data.fill_(float("nan"))
    with seeded(seed), torch.no_grad():
        for module in reversed(list(other.modules())):
            reset = _resetter(module)
            if reset is not None:
                reset()
    for name, parameter in other.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            owner = other.get_submodule(name.rpartition(".")[0])
            raise ControlError(
                f"parameter {name!r} is not drawn anew by any reset_parameters method of its "
                f"{type(owner).__name__}. Add one, or name the model as package.module:factory."
            )
    return other
