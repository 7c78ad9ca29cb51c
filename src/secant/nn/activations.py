"""The activations that the debate names, beside those that torch has.

Holds: the functions ``kmax``, ``swish``, ``snake``, ``sine`` and the modules ``LinearSquash``,
``Exp``, ``KMax``, ``Swish``, ``Snake``, ``Sine``, ``Tunable``.
May import: torch, ``secant.errors``, ``secant.nn`` (units).

All but `KMax` act on each entry alone, keep shape and type, and take any shape. Where ``units``
is more than one, the places along ``dim`` have parameters of their own. float16 and bfloat16
inputs are computed in float32 and rounded once, at the end. Parameters are kept in the type of
the module, as torch's are.
"""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn

from secant.errors import InputError
from secant.nn.units import filled, in_float32, per_unit


@final
class LinearSquash(nn.Module):
    r"""scale x + shift: an affine squash, so any depth of it with linear layers is one matrix.

    With the defaults it takes [-1, 1] to [0, 1], as a sigmoid would. The negative control of
    every other activation. Not trained. No unit, any shape; the derivative is ``scale``.
    """

    def __init__(self, scale: float = 0.5, shift: float = 0.5) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift

    def forward(self, x: Tensor) -> Tensor:
        """The squashed entries."""
        return x * self.scale + self.shift

    def extra_repr(self) -> str:
        """What it was made with."""
        return f"scale={self.scale:g}, shift={self.shift:g}"


@final
class Exp(nn.Module):
    r"""exp(x), nothing clamped.

    Overflows to infinity past 11.09 in float16 and 88.72 in float32 and bfloat16, and there its
    derivative, itself, is infinite too: keep the inputs small, by normalisation or by a negative
    bias. Underflows to 0 far below 0.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The exponentials."""
        return x.exp()


def kmax(x: Tensor, k: int, dim: int = -1) -> Tensor:
    """x with all but its k largest entries along ``dim`` put to 0.

    Exactly k stay; of equal entries at the border those that torch's ``topk`` finds. The
    derivative is 1 at those kept and 0 elsewhere; at the border the map jumps, unless the
    entries there are 0. Cost: a partial sort along ``dim``.

    Raises: `InputError` if k is not between 1 and the size of ``dim``.
    """
    size = x.shape[dim]
    if not 1 <= k <= size:
        raise InputError(
            f"kmax: `k` must be from 1 to the {size} entries along dimension {dim}; got {k}. "
            "Give a smaller k, or the dimension of the features."
        )
    kept = x.topk(k, dim=dim).indices
    return torch.zeros_like(x).scatter(dim, kept, x.gather(dim, kept))


@final
class KMax(nn.Module):
    """Keeps the k largest entries along ``dim``, the features, and puts 0 for the others: `kmax`.

    With k = 1 it is the winner alone, with k = the width nothing. Not elementwise: an entry's
    fate depends on the others. Raises `InputError` at the first input with fewer than k entries.

    Source: k-winners-take-all; Xiao et al. 2019, arXiv:1905.10510.
    """

    def __init__(self, k: int, dim: int = -1) -> None:
        super().__init__()
        if k < 1:
            raise InputError(
                f"KMax: `k` must be at least 1; got {k}. Say how many entries are to stay."
            )
        self.k, self.dim = k, dim

    def forward(self, x: Tensor) -> Tensor:
        """The winners, in their places."""
        return kmax(x, self.k, self.dim)

    def extra_repr(self) -> str:
        """What it was made with."""
        return f"k={self.k}, dim={self.dim}"


def swish(x: Tensor, beta: Tensor) -> Tensor:
    """x sigmoid(beta x)."""
    return x * torch.sigmoid(beta * x)


def snake(x: Tensor, a: Tensor) -> Tensor:
    """x + sin²(a x) / a, written x + x sin(a x) sinc(a x): at a = 0 it is x, with derivatives."""
    turn = a * x
    return x + x * turn.sin() * torch.sinc(turn / math.pi)


def sine(x: Tensor, amplitude: Tensor, frequency: Tensor, phase: Tensor) -> Tensor:
    """amplitude sin(frequency x + phase)."""
    return amplitude * torch.sin(frequency * x + phase)


@final
class Swish(nn.Module):
    r"""x sigmoid(beta x) with a trainable beta; 1 is SiLU, 0 is x / 2, infinity is ReLU.

    Parameter: ``beta``, (units,). Smooth everywhere.

    Raises: `InputError` for an input without ``units`` places along ``dim``.

    Source: Ramachandran et al. 2017, arXiv:1710.05941.
    """

    def __init__(self, units: int = 1, *, beta: float = 1.0, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim
        self.beta = filled(beta, units)

    def forward(self, x: Tensor) -> Tensor:
        """The gated entries."""
        return swish(in_float32(x), per_unit(self.beta, x, self.dim)).to(x.dtype)


@final
class Snake(nn.Module):
    r"""x + sin²(a x) / a with a trainable a: a straight line with a ripple of period pi / a.

    Monotone, with slope 1 + sin(2 a x) between 0 and 2; at a = 0 it is x and trains on. The
    paper starts at a between 5 and 50 for periodic data. Past some 2^22 / a a float32 input no
    longer tells where in the ripple it is.

    Parameter: ``a``, (units,).

    Raises: `InputError` for an input without ``units`` places along ``dim``.

    Source: Ziyin et al. 2020, arXiv:2006.08195, equation 3.
    """

    def __init__(self, units: int = 1, *, a: float = 1.0, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim
        self.a = filled(a, units)

    def forward(self, x: Tensor) -> Tensor:
        """The rippled entries."""
        return snake(in_float32(x), per_unit(self.a, x, self.dim)).to(x.dtype)


@final
class Sine(nn.Module):
    r"""amplitude sin(frequency x + phase), all three trainable, of each unit its own.

    Parameters: ``amplitude``, ``frequency``, ``phase`` (radians), (units,) each. Of size at most
    the amplitude, however large the input; past some 2^22 / frequency the phase of a float32
    input is lost in its rounding.

    Raises: `InputError` for an input without ``units`` places along ``dim``.

    Source: Fourier series; as an activation Sitzmann et al. 2020, arXiv:2006.09661.
    """

    def __init__(
        self,
        units: int,
        *,
        amplitude: float = 1.0,
        frequency: float = 1.0,
        phase: float = 0.0,
        dim: int = -1,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.amplitude = filled(amplitude, units)
        self.frequency = filled(frequency, units)
        self.phase = filled(phase, units)

    def forward(self, x: Tensor) -> Tensor:
        """The waves."""
        parts = (per_unit(part, x, self.dim) for part in self.parameters())
        return sine(in_float32(x), *parts).to(x.dtype)


@final
class Tunable(nn.Module):
    r"""Any elementwise activation with four trainable numbers a unit; untrained, as it was.

    .. math:: y_u = d_u\, \phi(a_u x_u + b_u) + e_u

    with (a, b, d, e) = (1, 0, 1, 0) at first, where the outputs are those of ``activation``, bit
    for bit. Its own parameters, if it has any, stay trainable.

    Parameters: ``input_scale``, ``input_shift``, ``output_scale``, ``output_shift``, (units,).
    Give each unit its own where units do different work; with ``units=1`` the four are shared.
    At a kink the derivative is what the activation's own is there.

    Raises: `InputError` for an input without ``units`` places along ``dim``.

    Source: after He et al. 2015, arXiv:1502.01852 (a slope a channel); the four numbers ours.
    """

    def __init__(self, activation: nn.Module, units: int = 1, *, dim: int = -1) -> None:
        super().__init__()
        self.activation = activation
        self.dim = dim
        self.input_scale, self.output_scale = filled(1.0, units), filled(1.0, units)
        self.input_shift, self.output_shift = filled(0.0, units), filled(0.0, units)

    def forward(self, x: Tensor) -> Tensor:
        """The activation of the rescaled entries, rescaled."""
        scale, shift, out_scale, out_shift = (
            per_unit(part, x, self.dim)
            for part in (self.input_scale, self.input_shift, self.output_scale, self.output_shift)
        )
        hidden = self.activation((in_float32(x) * scale + shift).to(x.dtype))
        return (in_float32(hidden) * out_scale + out_shift).to(x.dtype)
