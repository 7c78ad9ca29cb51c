"""A model that is ready to run, whatever it was loaded from.

Holds: ``Loaded``, ``as_asked``, ``check_values``, ``dtype_of``, ``device_of``.
May import: torch, ``secant.errors``, ``secant.load.options``.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from secant.errors import InputError, LoadError
from secant.load.options import DTYPES, LoadOptions


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode, its name, what prepares its input, and fresh copies of it.

    `fresh(seed)` builds the same architecture with new weights, on the same device and in the
    same dtype; it raises `ControlError`, with the reason, where that cannot be done.
    `tokenizer` reads texts and `processor` images, each None where the model has none;
    `reader_error` says why if it should have one. `max_length` is the most tokens that the
    model takes. `call` replaces `model(batch)`. `notes` are what a reader of the survey must
    know about the loading.
    """

    name: str
    model: nn.Module
    tokenizer: Any | None
    fresh: Callable[[int], nn.Module]
    processor: Any | None = None
    max_length: int | None = None
    call: Callable[[Any, Any], Any] | None = None
    notes: tuple[str, ...] = ()
    reader_error: str = ""

    @property
    def device(self) -> torch.device:
        """Where the model's first parameter or buffer lies; the CPU if it has none."""
        return device_of(self.model)

    @property
    def dtype(self) -> torch.dtype:
        """The floating type of the model's first parameter or buffer; float32 if none."""
        return dtype_of(self.model)


def device_of(model: nn.Module) -> torch.device:
    """Where the first parameter or buffer lies; the CPU if there is none."""
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def dtype_of(model: nn.Module) -> torch.dtype:
    """The type of the first floating parameter or buffer; float32 if there is none."""
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        if tensor.is_floating_point():
            return tensor.dtype
    return torch.float32


def chosen_device(name: str | None) -> torch.device | None:
    """The device of that name, tried out with one float64; None if none was named.

    Raises: `InputError` for a device that torch does not know or cannot use here.
    """
    if name is None:
        return None
    try:
        device = torch.device(name)
        torch.empty(1, dtype=torch.float64, device=device)  # sums are float64 everywhere
    # A CPU build of torch says AssertionError for cuda, mps TypeError for float64; unknown names
    # are RuntimeError.
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise InputError(
            f"device {name!r} cannot be used here ({str(error).splitlines()[0]}). "
            "Use --device cpu, or a device that this torch and this machine have."
        ) from error
    if device.type == "meta":
        raise InputError("device 'meta' holds no values. Use --device cpu, or cuda.")
    return device


def chosen_dtype(name: str | None) -> torch.dtype | None:
    """The torch type of that name; None for None and `keep`.

    Raises: `InputError` for a name that is not one of `DTYPES`.
    """
    if name is None or name == "keep":
        return None
    if name not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}; got {name!r}. Choose one.")
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def check_values(name: str, model: nn.Module) -> None:
    """Raise `LoadError` if a parameter is unset or not finite, or a buffer holds NaN.

    Buffers may be infinite: attention masks are.
    """
    for key, parameter in model.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise LoadError(
                f"model {name!r}: parameter {key!r} of a lazy module has no values yet. "
                "Run one forward pass before you hand the model over."
            )
        if parameter.is_floating_point() and not bool(torch.isfinite(parameter).all()):
            raise LoadError(
                f"model {name!r}: parameter {key!r} holds values that are not finite. "
                "Load a checkpoint from before training diverged, or a wider --dtype."
            )
    for key, buffer in model.named_buffers():
        if isinstance(buffer, UninitializedBuffer):
            continue  # its module's parameters are lazy as well, or it runs without it
        if buffer.is_floating_point() and bool(torch.isnan(buffer).any()):
            raise LoadError(
                f"model {name!r}: buffer {key!r} holds NaN. "
                "Load a checkpoint from before training diverged."
            )


def as_asked(loaded: Loaded, options: LoadOptions) -> Loaded:
    """`loaded` on the device and in the dtype of `options`, in eval mode, fresh copies too.

    The model itself is changed only if nothing is asked that it is not already; a caller that
    must keep its own model untouched passes a copy (see `detached`).
    """
    device = chosen_device(options.device)
    dtype = chosen_dtype(options.dtype)
    model = _moved(loaded.model, device, dtype)
    device, dtype = device_of(model), dtype_of(model)

    def fresh(seed: int) -> nn.Module:
        return _moved(loaded.fresh(seed), device, dtype)

    return replace(loaded, model=model, fresh=fresh)


def _moved(model: nn.Module, device: torch.device | None, dtype: torch.dtype | None) -> nn.Module:
    if device is not None and device_of(model) != device:
        model = model.to(device)
    if dtype is not None and any(_differs(p, dtype) for p in model.parameters()):
        model = model.to(dtype)
    return model.eval()


def _differs(parameter: nn.Parameter, dtype: torch.dtype) -> bool:
    return parameter.is_floating_point() and parameter.dtype != dtype


def detached(name: str, model: nn.Module) -> nn.Module:
    """A deep copy of a caller's model, so that it can be moved, cast and put in eval mode.

    Raises: `LoadError` if a tensor of it cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise LoadError(
            f"model {name!r} cannot be copied ({str(error).splitlines()[0]}). "
            "Detach the tensors that it keeps from an earlier forward pass."
        ) from error
