"""Root ratios of two sums: what the gauges chord, tangent and sum share.

Holds: ``as_doubles`` (one check at the edge), ``check_input_changes``,
``squared_norm`` and ``root_ratio``.
May import: torch, jaxtyping, ``secant.errors``, ``secant.gauges._shapes``.
"""

import torch
from jaxtyping import Float64
from torch import Tensor

from secant.errors import InputError
from secant.gauges._shapes import Scalar


def as_doubles(gauge: str, **tensors: Tensor) -> list[Float64[Tensor, "*shape"]]:
    """The tensors in float64; they must be real floats of one shape."""
    names = ", ".join(f"`{name}`" for name in tensors)
    if not all(tensor.is_floating_point() for tensor in tensors.values()):
        dtypes = ", ".join(str(tensor.dtype) for tensor in tensors.values())
        raise InputError(
            f"{gauge}: {names} must be real floating point; got {dtypes}. "
            "Convert them, for instance with `.double()`."
        )
    if len({tensor.shape for tensor in tensors.values()}) != 1:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors.values())
        raise InputError(
            f"{gauge}: {names} must have one shape; got {shapes}. "
            "Pass the same batch throughout; `beyond` needs a map whose input and "
            "output have one shape."
        )
    return [tensor.double() for tensor in tensors.values()]


def check_input_changes(gauge: str, is_beyond: bool, **changes: Tensor | None) -> None:
    """Input changes come with every update of a `beyond` gauge, and with no other."""
    names = ", ".join(f"`{name}`" for name in changes)
    given = [f"`{name}`" for name, change in changes.items() if change is not None]
    if is_beyond and len(given) < len(changes):
        raise InputError(
            f"{gauge}: with `is_beyond=True` each update needs {names}; "
            f"got {', '.join(given) or 'none'}. Pass how far the input moved."
        )
    if not is_beyond and given:
        raise InputError(
            f"{gauge}: with `is_beyond=False` no update takes {names}; got {', '.join(given)}. "
            "Construct the gauge with `is_beyond=True`, or leave them out."
        )


def squared_norm(tensor: Float64[Tensor, "..."]) -> Scalar:
    """Sum of squares over all entries, so over the batch too."""
    return tensor.square().sum()


def root_ratio(gauge: str, gap: Scalar, length: Scalar) -> Scalar:
    """Root of the ratio of the two sums; nan where either is not finite."""
    if length == 0:
        raise InputError(
            f"{gauge}: some change in the denominator must be nonzero; all have length 0. "
            "Draw distinct points, or take a map (for `beyond`, a branch) that is not constant."
        )
    # An overflowed denominator would otherwise read as 0, that is, as perfectly linear.
    is_number = torch.isfinite(gap) & torch.isfinite(length)
    return torch.where(is_number, (gap / length).sqrt(), torch.nan)
