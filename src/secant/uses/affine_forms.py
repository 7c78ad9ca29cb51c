"""Affine maps of features as a graph has them: diagonal, dense, convolution; and their products.

Holds: ``Form``, ``Diagonal``, ``Dense``, ``Convolution``, ``Flat``, ``Flattened``; ``after``,
``summed``, ``operations``, ``operator_norm``.
May import: torch.

Weights are float64 and may be None while only shapes are asked for: what a product costs is known
before it is taken. ``error`` and ``shift_error`` bound what rounding has made of weight and shift,
in the Frobenius norm and in the Euclidean norm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

UNIT = 2.0**-53
ROUNDING = 64
"""Roundings of a joined map's own evaluation that its bound allows for, in units of its dtype."""


@dataclass(frozen=True)
class Form:
    """x to W x + b along one axis of features; `shift` is None where b is 0."""

    weight: Tensor
    shift: Tensor | None = None
    error: float = 0.0
    shift_error: float = 0.0

    @property
    def length(self) -> float:
        """The Frobenius norm of W, which bounds its spectral norm."""
        return float(self.weight.norm())

    def shift_norm(self) -> float:
        """‖b‖."""
        return 0.0 if self.shift is None else float(self.shift.norm())


@dataclass(frozen=True)
class Diagonal(Form):
    """W = diag(weight); of one entry, the same for every feature."""


@dataclass(frozen=True)
class Dense(Form):
    """W = weight, (out, in)."""


@dataclass(frozen=True)
class Convolution(Form):
    """W = weight, (out, in / groups, *kernel), at every place; padded with zeros."""

    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    @property
    def is_padded(self) -> bool:
        """Whether it reads zeros from outside."""
        return any(self.padding)


@dataclass(frozen=True)
class Flat(Form):
    """Channels and places, in order, as one axis of features; `weight` is 1."""


@dataclass(frozen=True)
class Flattened(Dense):
    """W = weight, (out, channels and places); `gain` bounds the norms of the maps on its way."""

    gain: float = 1.0


def operations(form: Form, outputs: int) -> int:
    """Products at one place; `outputs` features."""
    if isinstance(form, Diagonal):
        is_identity = form.shift is None and bool((form.weight == 1).all())
        return 0 if is_identity else outputs
    if isinstance(form, Flat):
        return 0
    return form.weight.numel()


def after(later: Form, earlier: Form) -> Form | None:
    """`later` after `earlier` as one form, None where there is none.

    A convolution that pads with zeros reads zeros where the earlier shift does not reach, so what
    it follows must have none; two convolutions are one where the later does not pad. A flatten
    changes the axis, see `affine_flatten`.
    """
    if isinstance(later, Flat) or isinstance(earlier, Flat):
        return None
    if isinstance(earlier, Diagonal):
        return _after_diagonal(later, earlier)
    if isinstance(later, Diagonal):
        return _diagonal_after(later, earlier)
    if isinstance(later, Dense) and isinstance(earlier, Dense):
        return _with_errors(
            Dense(later.weight @ earlier.weight, _shifted(later, later.weight, earlier)),
            later, earlier, later.weight.shape[1],
        )  # fmt: skip
    if isinstance(later, Dense) and isinstance(earlier, Convolution):
        if earlier.groups > 1:
            return None
        weight = torch.einsum("om,mi...->oi...", later.weight, earlier.weight)
        made = replace(earlier, weight=weight, shift=_shifted(later, later.weight, earlier))
        return _with_errors(made, later, earlier, later.weight.shape[1])
    if isinstance(later, Convolution):
        return _convolution_after(later, earlier)
    return None


def _after_diagonal(later: Form, earlier: Diagonal) -> Form | None:
    if isinstance(later, Diagonal):
        shift = _sum(None if earlier.shift is None else later.weight * earlier.shift, later.shift)
        made: Form = Diagonal(later.weight * earlier.weight, shift)
    elif isinstance(later, Dense):
        made = Dense(later.weight * earlier.weight, _shifted(later, later.weight, earlier))
    else:
        assert isinstance(later, Convolution)
        if later.is_padded and earlier.shift is not None:
            return None
        taps = later.weight.flatten(2)
        scale = earlier.weight
        if scale.numel() > 1:  # of each group's own inputs
            per_group = scale.view(later.groups, -1)
            scale = per_group.repeat_interleave(len(taps) // later.groups, 0)[:, :, None]
        shift = later.shift
        if earlier.shift is not None:
            inputs = taps.shape[1] * later.groups
            per_group = earlier.shift.expand(inputs).view(later.groups, -1)
            per_output = per_group.repeat_interleave(len(taps) // later.groups, 0)
            shift = _sum((taps.sum(2) * per_output).sum(1), later.shift)
        made = replace(later, weight=(taps * scale).view(later.weight.shape), shift=shift)
    return _with_errors(made, later, earlier, later.weight[0].numel() if later.weight.ndim else 1)


def _diagonal_after(later: Diagonal, earlier: Form) -> Form:
    scale = later.weight
    if scale.numel() > 1:
        scale = scale.view(-1, *[1] * (earlier.weight.ndim - 1))
    shift = _sum(None if earlier.shift is None else later.weight * earlier.shift, later.shift)
    made = replace(earlier, weight=scale * earlier.weight, shift=shift)
    return _with_errors(made, later, earlier, 1)


def _convolution_after(later: Convolution, earlier: Form) -> Form | None:
    if later.groups > 1 or (later.is_padded and earlier.shift is not None):
        return None
    shift = _shifted(later, later.weight.flatten(2).sum(2), earlier)
    terms = later.weight[0].numel()
    if isinstance(earlier, Dense):
        weight = torch.einsum("om...,mi->oi...", later.weight, earlier.weight)
        return _with_errors(replace(later, weight=weight, shift=shift), later, earlier, terms)
    assert isinstance(earlier, Convolution)
    is_dilated = any(one != 1 for one in (*later.dilation, *earlier.dilation))
    if later.is_padded or earlier.groups > 1 or is_dilated:
        return None
    # Tap b of the later reads the earlier's place b·stride, whose tap a reads b·stride + a.
    transposed = getattr(functional, f"conv_transpose{len(later.stride)}d")
    weight = transposed(later.weight, earlier.weight, stride=earlier.stride)
    stride = tuple(a * b for a, b in zip(earlier.stride, later.stride, strict=True))
    made = replace(earlier, weight=weight, shift=shift, stride=stride)
    return _with_errors(made, later, earlier, terms)


def _shifted(later: Form, weight: Tensor, earlier: Form) -> Tensor | None:
    """`weight` b₁ + b₂, `weight` being W₂ as it acts on what is the same everywhere."""
    if earlier.shift is None:
        return later.shift
    return _sum(weight @ earlier.shift.expand(weight.shape[1]), later.shift)


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return one if other is None else other
    return one + other


def _with_errors(made: Form, later: Form, earlier: Form, terms: int) -> Form:
    """The product with its error bounds: Higham, eq. 3.13, by Frobenius norms."""
    gamma = 2 * terms * UNIT
    scales = [_norm_of(one) for one in (later, earlier)]
    error = scales[0] * earlier.error + later.error * (scales[1] + earlier.error)
    error += gamma * scales[0] * scales[1]
    known = earlier.shift_norm() * math.sqrt(_spread(later, earlier))
    shift_error = scales[0] * earlier.shift_error + later.error * (known + earlier.shift_error)
    shift_error += gamma * scales[0] * known + later.shift_error + UNIT * made.shift_norm()
    return replace(made, error=error * 1.0001, shift_error=shift_error * 1.0001)


def _norm_of(form: Form) -> float:
    """A bound of the spectral norm that is no larger than it must be for a diagonal."""
    return float(form.weight.abs().max()) if isinstance(form, Diagonal) else form.length


def operator_norm(form: Form) -> float:
    """A bound of the spectral norm over all places: a convolution is a sum over its taps."""
    taps = form.weight[0, 0].numel() if isinstance(form, Convolution) else 1
    return _norm_of(form) * math.sqrt(taps)


def _spread(later: Form, earlier: Form) -> int:
    """How many inputs of `later` one entry of the earlier shift stands for."""
    if earlier.shift is None or earlier.shift.numel() > 1:
        return max(1, later.weight[0, 0].numel()) if later.weight.ndim > 2 else 1
    return max(1, later.weight[0].numel()) if later.weight.ndim > 1 else 1


def summed(one: Form, other: Form, sign: float, width: int) -> Form | None:
    """x to `one`(x) + sign · `other`(x) on `width` features; None for convolutions."""
    if isinstance(one, Convolution) or isinstance(other, Convolution):
        return None
    shift = _sum(one.shift, None if other.shift is None else sign * other.shift)
    if isinstance(one, Diagonal) and isinstance(other, Diagonal):
        made: Form = Diagonal(one.weight + sign * other.weight, shift)
    else:
        made = Dense(_square(one, width) + sign * _square(other, width), shift)
    error = one.error + other.error + UNIT * made.length
    shift_error = one.shift_error + other.shift_error + UNIT * made.shift_norm()
    return replace(made, error=error, shift_error=shift_error)


def _square(form: Form, width: int) -> Tensor:
    return form.weight if isinstance(form, Dense) else form.weight.expand(width).diag()
