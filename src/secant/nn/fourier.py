"""Networks whose weights are frequencies: Fourier layers, Fourier features, sine networks.

Holds: ``FourierLayer``, ``FourierFeatures``, ``SirenLayer``, and the function ``siren``.
May import: torch, ``secant.errors``, ``secant.nn`` (units).
"""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from secant.errors import InputError
from secant.nn.units import in_float32


def _check_sizes(what: str, **sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"{what}: `{name}` must be at least 1; got {size}. Give more.")


@final
class FourierLayer(nn.Module):
    r"""A layer whose every connection is a Fourier series of its input, not a multiple of it.

    .. math:: y_j = b_j + \sum_i \sum_{k=1}^{K} a_{jik} \sin(w_{jik} x_i + p_{jik})

    Where a linear layer has one weight, this has K amplitudes a, frequencies w and phases p (in
    radians), all trainable; a network of such layers needs no other activation. At first the
    frequencies are the harmonics k times ``base``, the phases uniform over the circle and the
    amplitudes normal with variance 2 / (inputs K): each output then has mean 0 and variance 1
    over the draw, whatever the input. With base pi / 2 the first harmonic is one wave over
    [-2, 2].

    Shapes: (..., in_features) to (..., out_features), of the input's type; float16 and bfloat16
    are computed in float32. Parameters: ``amplitude``, ``frequency``, ``phase``, (out, in, K),
    and ``bias``, (out,). Cost: in * out * K sines a row, which are all kept for the derivative.

    Raises: `InputError` for a size below 1.

    Source: the debate's; cosine networks, Gallant and White 1988.
    """

    def __init__(
        self, in_features: int, out_features: int, components: int, *, base: float = math.pi / 2
    ) -> None:
        super().__init__()
        _check_sizes(
            "FourierLayer",
            in_features=in_features,
            out_features=out_features,
            components=components,
        )
        shape = (out_features, in_features, components)
        spread = (2 / (in_features * components)) ** 0.5
        self.amplitude = nn.Parameter(spread * torch.randn(shape))
        harmonics = base * torch.arange(1, components + 1, dtype=torch.get_default_dtype())
        self.frequency = nn.Parameter(harmonics.expand(shape).clone())
        self.phase = nn.Parameter(torch.empty(shape).uniform_(-math.pi, math.pi))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Tensor) -> Tensor:
        """The sums of waves."""
        turn = in_float32(x)[..., None, :, None] * self.frequency + self.phase
        return ((self.amplitude * turn.sin()).sum((-2, -1)) + self.bias).to(x.dtype)


@final
class FourierFeatures(nn.Module):
    r"""Rows as cosines and sines of random frequencies, fixed: (cos 2 pi B x, sin 2 pi B x).

    B is (features, in_features), normal with standard deviation ``sigma`` in waves a unit of
    input, drawn from ``seed`` and kept as the buffer ``frequency``. The mean product of two rows'
    features is near exp(-2 pi² sigma² |x - y|²), with standard error below
    1 / sqrt(2 features): a linear model of them is one of a Gaussian kernel.

    Shapes: (..., in_features) to (..., 2 features), of the input's type.

    Raises: `InputError` for a size below 1, or a sigma that is not positive.

    Source: Tancik et al. 2020, arXiv:2006.10739, section 5; Rahimi and Recht 2007.
    """

    frequency: Tensor

    def __init__(self, in_features: int, features: int, *, sigma: float, seed: int) -> None:
        super().__init__()
        _check_sizes("FourierFeatures", in_features=in_features, features=features)
        if not 0 < sigma < float("inf"):
            raise InputError(
                f"FourierFeatures: `sigma` must be positive and finite; got {sigma}. "
                "Give it in waves a unit of input: the paper tries 1, 10 and 100 on [0, 1]."
            )
        draw = torch.Generator().manual_seed(seed)
        self.register_buffer(
            "frequency", sigma * torch.randn(features, in_features, generator=draw)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The features."""
        turn = 2 * math.pi * functional.linear(in_float32(x), self.frequency.to(in_float32(x)))
        return torch.cat([turn.cos(), turn.sin()], dim=-1).to(x.dtype)


@final
class SirenLayer(nn.Module):
    r"""sin(omega W x + b), drawn so that depth changes neither the spread nor the shape.

    The first layer (``is_first``) draws W from U(-1/n, 1/n), for inputs in [-1, 1] and n of
    them; later ones from U(-sqrt(6/n)/omega, sqrt(6/n)/omega). In the paper what goes into the
    later sines is standard normal and what comes out arcsine distributed, of variance 1/2, at any
    depth. More exactly, in wide layers it is normal with a variance that follows
    v -> 1 - exp(-2 v) from layer to layer, and so settles at 0.797, and at 0.398 after the sine.
    Biases are U(-1/sqrt(n), 1/sqrt(n)); omega does not multiply them, as in the paper's formula
    and unlike its code, where they would add omega²/(3n) to the variance.

    Shapes: (..., in_features) to (..., out_features), of the input's type. Parameters:
    ``weight`` (out, in), ``bias`` (out,).

    Raises: `InputError` for a size below 1, or an omega that is not positive.

    Source: Sitzmann et al. 2020, arXiv:2006.09661, section 3.2 and theorem 1.8.
    """

    def __init__(
        self, in_features: int, out_features: int, *, is_first: bool, omega: float = 30.0
    ) -> None:
        super().__init__()
        _check_sizes("SirenLayer", in_features=in_features, out_features=out_features)
        if not 0 < omega < float("inf"):
            raise InputError(
                f"SirenLayer: `omega` must be positive and finite; got {omega}. The paper has 30."
            )
        self.omega, self.is_first = omega, is_first
        reach = 1 / in_features if is_first else (6 / in_features) ** 0.5 / omega
        self.weight = nn.Parameter(torch.empty(out_features, in_features).uniform_(-reach, reach))
        shift = in_features**-0.5
        self.bias = nn.Parameter(torch.empty(out_features).uniform_(-shift, shift))

    def forward(self, x: Tensor) -> Tensor:
        """The sines."""
        wide = in_float32(x)
        turn = functional.linear(wide, self.omega * self.weight.to(wide), self.bias.to(wide))
        return turn.sin().to(x.dtype)

    def extra_repr(self) -> str:
        """What it was made with."""
        out, into = self.weight.shape
        return f"{into}, {out}, is_first={self.is_first}, omega={self.omega:g}"


def siren(
    in_features: int, width: int, depth: int, out_features: int, *, omega: float = 30.0
) -> nn.Sequential:
    """``depth`` sine layers of one width and a linear layer, drawn as the paper draws them.

    The last weights are U(-sqrt(6/n)/omega, sqrt(6/n)/omega) too, as in the authors' code.

    Raises: `InputError` as `SirenLayer`, and for no layer.
    """
    _check_sizes("siren", depth=depth)
    layers: list[nn.Module] = [
        SirenLayer(width if place else in_features, width, is_first=place == 0, omega=omega)
        for place in range(depth)
    ]
    last = nn.Linear(width, out_features)
    reach = (6 / width) ** 0.5 / omega
    nn.init.uniform_(last.weight, -reach, reach)
    return nn.Sequential(*layers, last)
