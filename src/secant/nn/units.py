"""Parameters that every unit has its own of, and the arithmetic they are used in.

Holds: ``per_unit``, ``filled``, ``in_float32``.
May import: torch, ``secant.errors``.

A unit is a place along one dimension: the last for layers of rows and tokens, the second for
convolutions. One unit means that all places share the parameter.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secant.errors import InputError


def filled(value: float | Tensor, units: int, *more: int) -> nn.Parameter:
    """A parameter (units, *more), each unit's entries `value`.

    Raises: `InputError` if there is no unit.
    """
    if units < 1:
        raise InputError(
            f"an activation must have at least one unit; got {units}. "
            "Give the number of units, or 1 for a parameter that all share."
        )
    return nn.Parameter(torch.as_tensor(value).expand(units, *more).clone())


def per_unit(parameter: Tensor, x: Tensor, dim: int) -> Tensor:
    """The parameter (units,) as a tensor that broadcasts against x along `dim`.

    Raises: `InputError` if x has no such dimension, or another number of units there.
    """
    units = parameter.shape[0]
    if units == 1:
        return parameter[0]
    if not -x.ndim <= dim < x.ndim or x.shape[dim] != units:
        raise InputError(
            f"an activation of {units} units needs them along dimension {dim}; got an input of "
            f"shape {tuple(x.shape)}. Make it with that number of units, or give another `dim`."
        )
    shape = [1] * x.ndim
    shape[dim] = units
    return parameter.view(shape)


def in_float32(x: Tensor) -> Tensor:
    """x, with float16 and bfloat16 widened: their few bits are left to the last step."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
