"""Rounding as the only activation: linear layers computed in few bits, and the map they stand for.

Holds: ``Rounding``, the function ``rounded``, the layer ``RoundedLinear``, and ``flatten``.
May import: torch, ``secant.errors``, ``secant.nn`` (activations).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, cast, final

import torch
from torch import Tensor, nn
from torch.amp.autocast_mode import is_autocast_available
from torch.nn import functional

from secant.errors import InputError
from secant.nn.activations import LinearSquash

DTYPES: Final = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Rounding:
    r"""A chain of affine steps in few bits, each of which rounds to ``dtype``.

    .. math:: u_0 = s z + c, \quad u_{t+1} = u_t + d\, u_t, \quad r(z) = (u_T - c) / s

    with s ``scale``, c ``offset``, d ``step`` and T ``times``. In real numbers r is affine,
    r(z) = ``slope`` z + ``shift``, and with no step it is z. In floating point it bends:

    - An offset leaves only the bits that fit above it: r is a staircase. With float16 and offset
      64 its steps are 1/16 for z > 0 and 1/32 for z < 0, so that [-1, 1] becomes 49 values. On
      the scale of many steps it is still straight.
    - A scale of 2^-149 in float32, or 2^-24 in float16, lands among the denormals, whose steps
      are all alike: z becomes a whole number.
    - A step smaller than half the type's resolution moves only numbers with a large mantissa. In
      float16, d = -3/8192 leaves mantissas up to 4/3 where they are and takes the rest down a
      bit at a time: after 700 times, with offset 1365 and scale 64, r(z) = min(z, 0) for z
      between -5.3 and 10.7, to 1/64. That is ReLU, mirrored, by rounding alone.
    - d = -1/2048, 500 times, without offset: Murphy's grad1, slopes 1/2 and 1 in each octave.

    ``window``: the derivative is that of the real map, ``slope``, everywhere (straight through)
    if it is 0; else (r(z + window) - r(z - window)) / (2 window), the slope of the secant, which
    sees how r bends over many of its steps.

    Raises: `InputError` for another ``dtype`` than float16, bfloat16 or float32, a scale that is
    no power of two from 2^-149 to 2^127, an offset or a step that ``dtype`` has no number for, a
    negative number of times, or a window that is negative or not finite.

    Source: Murphy 2023 (SIGBOVIK, "GradIEEEnt half decent"); denormals, OpenAI blog 2017-09-29;
    straight through, Bengio et al. 2013, arXiv:1308.3432. The chain that clips is ours.
    """

    dtype: torch.dtype = torch.float16
    scale: float = 1.0
    offset: float = 0.0
    step: float = 0.0
    times: int = 0
    window: float = 0.0

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError(
                "Rounding: `dtype` must be torch.float16, torch.bfloat16 or torch.float32; got "
                f"{self.dtype}. Choose one of these."
            )
        mantissa, exponent = math.frexp(self.scale)
        if mantissa != 0.5 or not -149 <= exponent - 1 <= 127:
            raise InputError(
                "Rounding: `scale` must be a power of two from 2**-149 to 2**127, so that scaling "
                f"itself rounds nothing; got {self.scale}. Choose the nearest."
            )
        for name, value in (("offset", self.offset), ("step", self.step)):
            if math.isinf(value) or torch.tensor(value, dtype=self.dtype).item() != value:
                raise InputError(
                    f"Rounding: `{name}` must be a finite number of {self.dtype}; got {value}. "
                    "Choose one with few bits: whole multiples of a power of two."
                )
        if self.times < 0 or not 0 <= self.window < math.inf:
            raise InputError(
                "Rounding: `times` and `window` must not be negative, nor infinite; got "
                f"{self.times} and {self.window}. Give 0 for no step, or straight through."
            )

    @property
    def power(self) -> int:
        """The scale's power of two."""
        return math.frexp(self.scale)[1] - 1

    @property
    def slope(self) -> float:
        """The slope of the chain in real numbers, (1 + d)^T."""
        return (1 + self.step) ** self.times

    @property
    def shift(self) -> float:
        """The value of the chain at 0 in real numbers, c ((1 + d)^T - 1) / s."""
        return self.offset * (self.slope - 1) / self.scale

    @property
    def quantum(self) -> tuple[float, float]:
        """The widths of the staircase's steps just below z = 0 and just above.

        Without an offset this is the step of the denormals; further out the steps grow with z.
        """
        info = torch.finfo(self.dtype)
        if not self.offset:
            step = info.tiny * info.eps * 2.0**-self.power
            return step, step
        mantissa, exponent = math.frexp(abs(self.offset))
        outward = 2.0 ** (exponent - 1) * info.eps * 2.0**-self.power
        inward = outward / 2 if mantissa == 0.5 else outward
        return (inward, outward) if self.offset > 0 else (outward, inward)


def _times(z: Tensor, power: int) -> Tensor:
    """z 2^power in two factors, since 2^-149 and its inverse are not both float32 numbers."""
    half = power // 2
    return z * 2.0**half * 2.0 ** (power - half)


def _stepped(u: Tensor, step: float, times: int) -> Tensor:
    for _ in range(times):
        u = (u.float() + step * u.float()).to(u.dtype)
    return u


@lru_cache(maxsize=16)
def _table(dtype: torch.dtype, step: float, times: int) -> Tensor:
    """The bits that each of a type's 65,536 numbers ends as, in the order of its own bits."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    return _stepped(bits.view(dtype), step, times).view(torch.int16)


def _chain(z: Tensor, how: Rounding) -> Tensor:
    u = _times(z, how.power).to(how.dtype)
    u = u + how.offset if how.offset else u
    if how.times and how.dtype == torch.float32:
        u = _stepped(u, how.step, how.times)
    elif how.times:
        table = _table(how.dtype, how.step, how.times).to(z.device)
        u = table[u.view(torch.int16).int() + 2**15].view(how.dtype)
    u = u - how.offset if how.offset else u
    return _times(u.to(z.dtype), -how.power)


class _Rounded(torch.autograd.Function):
    """The chain, with a derivative of our own, forwards and backwards."""

    @staticmethod
    def forward(z: Tensor, how: Rounding) -> Tensor:
        return _chain(z, how)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Rounding], output: Tensor) -> None:
        z, ctx.how = inputs
        ctx.save_for_backward(z)
        ctx.save_for_forward(z)

    @staticmethod
    def slope(ctx: Any) -> Tensor | float:
        z: Tensor
        (z,), how = ctx.saved_tensors, cast(Rounding, ctx.how)
        if not how.window:
            return how.slope
        ends = rounded(z + how.window, how) - rounded(z - how.window, how)
        return ends / (2 * how.window)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * _Rounded.slope(ctx), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return tangent * _Rounded.slope(ctx)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None], z: Tensor, how: Rounding) -> tuple[Tensor, int]:
        return rounded(z, how), in_dims[0]


def rounded(z: Tensor, how: Rounding) -> Tensor:
    """The chain r of each entry, which `Rounding` gives; its derivative is not its own.

    ``z`` float32 or float64, any shape; the result has its type. A chain in 16 bits is a function
    of 65,536 numbers and is looked up, so that its cost does not grow with ``times``; in float32
    it is run.

    Raises: `InputError` for z of another type.
    """
    if z.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"rounded: `z` must be float32 or float64, to have bits to lose; got {z.dtype}. "
            "Convert it first."
        )
    out: Tensor = _Rounded.apply(z, how)  # type: ignore[no-untyped-call]
    return out


PLAIN: Final = Rounding()
"""To float16 and back."""


def _check_denormals(device: torch.device) -> None:
    least = torch.full((8,), 2.0**-126, device=device) * 2.0**-23
    if not bool((least * 2.0**100 > 0).all()):
        raise InputError(
            "RoundedLinear: a float32 layer needs denormal numbers; here they are flushed to 0. "
            "Call torch.set_flush_denormal(False), or give its rounding an `offset`."
        )


@final
class RoundedLinear(nn.Module):
    r"""A linear layer computed in few bits, whose rounding is its only nonlinearity.

    .. math:: y = r(W x + b)

    W, b and x are rounded to the type of ``rounding``, products are summed in float32, as matrix
    units do, and the sums go through its chain r. In real numbers the layer is
    ``slope`` (W x + b) + ``shift``, and any depth of it is one matrix: `flatten` gives it. How
    much it bends is said by the spread of W x + b beside r's steps or kinks: far wider or far
    finer, and nothing happens.

    Shapes: (..., in_features) to (..., out_features), of the input's type. ``weight`` and
    ``bias`` are named, shaped and drawn as nn.Linear's, and kept and trained in float32: their
    derivatives, and the input's, are those of the layer without rounding but for the chain's,
    which `Rounding` gives.

    Numerics: float16 overflows where |s z + c| passes 65504, and gives infinities. Denormals of
    float32 are kept by torch unless `torch.set_flush_denormal(True)`.

    Raises: `InputError` in a forward through float32 denormals that are flushed to 0.

    Source: as `Rounding`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        rounding: Rounding = PLAIN,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.rounding = rounding
        drawn = nn.Linear(in_features, out_features, bias, device=device)
        self.weight = nn.Parameter(drawn.weight)
        self.bias: nn.Parameter | None
        self.register_parameter("bias", drawn.bias if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's outputs."""
        how = self.rounding
        if how.dtype == torch.float32 and not how.offset:
            _check_denormals(x.device)
        entry = Rounding(how.dtype)
        kind = x.device.type
        with torch.autocast(kind, enabled=False) if is_autocast_available(kind) else nullcontext():
            x_, weight = (rounded(part.float(), entry) for part in (x, self.weight))
            bias = None if self.bias is None else rounded(self.bias.float(), entry)
            return rounded(functional.linear(x_, weight, bias), how).to(x.dtype)

    def extra_repr(self) -> str:
        """What it was made with."""
        return (
            f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, "
            f"{self.rounding}"
        )


def _layers(net: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    if isinstance(net, nn.Sequential):
        for key, child in net.named_children():
            yield from _layers(child, f"{name}.{key}".lstrip("."))
    else:
        yield name, net


@torch.no_grad()
def flatten(net: nn.Module) -> nn.Linear:
    """The one affine map that the layers of ``net`` would be in real numbers, in float64.

    ``net`` is nn.Linear, `RoundedLinear`, nn.Identity, `LinearSquash`, or nn.Sequential of these,
    nested or not. Weights are multiplied in float64; nothing is rounded to fewer bits, so a
    net whose only nonlinearity is rounding loses it. The control of such a net.

    Raises: `InputError` for any other layer, by name, and for a net without a linear layer.
    Cost: one product of matrices a layer.
    """
    weight: Tensor | None = None
    bias: Tensor | None = None
    for name, layer in _layers(net):
        if isinstance(layer, nn.Linear | RoundedLinear):
            own = layer.weight.double()
            shift = own.new_zeros(len(own)) if layer.bias is None else layer.bias.double()
            if isinstance(layer, RoundedLinear):
                own = layer.rounding.slope * own
                shift = layer.rounding.slope * shift + layer.rounding.shift
            bias = shift if bias is None else own @ bias + shift
            weight = own if weight is None else own @ weight
        elif isinstance(layer, LinearSquash) and weight is not None and bias is not None:
            weight, bias = layer.scale * weight, layer.scale * bias + layer.shift
        elif not isinstance(layer, nn.Identity):
            raise InputError(
                "flatten: `net` must be made of nn.Linear, RoundedLinear, nn.Identity and, after "
                f"the first of these, LinearSquash; {name or 'net'!r} is {type(layer).__name__}. "
                "Take the part of the net that is affine but for rounding."
            )
    if weight is None or bias is None:
        raise InputError(
            "flatten: `net` must hold a linear layer; got none. Pass the layers to be multiplied."
        )
    flat = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64, device=weight.device)
    flat.weight.copy_(weight)
    flat.bias.copy_(bias)
    return flat
