"""Mamba: blocks of a convolution, a selective state space and a gate; and models of them.

Holds: ``MambaMixer``, ``MambaBlock``, ``Mamba``, ``MambaLM``, their states, and ``MambaShape``.
May import: torch, ``secant.errors``, ``secant.nn.recurrence`` (inputs, s6).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from secant.errors import InputError
from secant.nn.recurrence.inputs import check_row, check_sequence, check_sizes, checked_state
from secant.nn.recurrence.s6 import CHUNK, S6, TimeStep


def _gelu_tanh(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


ACTIVATIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "silu": functional.silu,
    "swish": functional.silu,
    "gelu": functional.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": functional.relu,
    "relu6": functional.relu6,
    "leaky_relu": functional.leaky_relu,
    "relu2": lambda x: functional.relu(x).square(),
    "mish": functional.mish,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "linear": lambda x: x,
}
"""What may stand behind the convolution, by the names that transformers has for them."""


@dataclass(frozen=True)
class MambaShape:
    """What a mixer is made of.

    `features` go in and out, `expand` times as many channels are inside, with `state` numbers
    each; `rank` is that of Δ, None a sixteenth of the features, rounded up. `chunk` as `S6`.

    Raises: `InputError` for a size below 1, or an activation that `ACTIVATIONS` lacks.
    """

    features: int
    state: int = 16
    kernel: int = 4
    expand: int = 2
    rank: int | None = None
    has_bias: bool = False
    has_conv_bias: bool = True
    activation: str = "silu"
    time_step: TimeStep = field(default_factory=TimeStep)
    chunk: int | None = CHUNK

    def __post_init__(self) -> None:
        check_sizes(
            "MambaShape", features=self.features, kernel=self.kernel, expand=self.expand,
        )  # fmt: skip
        if self.activation not in ACTIVATIONS:
            raise InputError(
                f"MambaShape: `activation` must be one of {', '.join(ACTIVATIONS)}; got "
                f"{self.activation!r}. Choose one."
            )

    @property
    def width(self) -> int:
        """The channels inside."""
        return self.expand * self.features


class MixerState(NamedTuple):
    """What a mixer carries: the convolution's last inputs (batch, width, kernel - 1), and h."""

    window: Tensor
    hidden: Tensor


MambaState = tuple[MixerState, ...]


def _checked_mask(mask: Tensor | None, x: Tensor) -> Tensor | None:
    """The mask as a factor of x."""
    if mask is None:
        return None
    if mask.shape != x.shape[:2]:
        raise InputError(
            f"MambaMixer: the mask must be (batch, length), {tuple(x.shape[:2])}; got "
            f"{tuple(mask.shape)}. Give 1 where there is a token and 0 where there is padding."
        )
    return mask[..., None].to(x)


@final
class MambaMixer(nn.Module):
    r"""The middle of a Mamba block: project, convolve, select, gate, project back.

    .. math::
        (u, z) = W_{in} x, \quad y = W_{out}(\mathrm{S6}(\phi(\mathrm{conv}(u))) \odot
        \mathrm{silu}(z))

    The convolution is causal, of ``kernel`` steps, each channel by itself. φ is the shape's
    activation; the gate's is silu whatever φ is, as in transformers.

    ``mask``, (batch, length), is 0 at padding: there x is 0, and so is what goes into S6, so that
    padding on the left leaves h at 0. With ``has_bias`` the convolution sees the bias at padded
    places, which is how transformers has it: padding is then not quite the same as no padding.

    Shapes: x (batch, length, features); gives y as x is, and a `MixerState`. Types and memory as
    `S6`. Parameters are named as in transformers, those of S6 within ``core``.

    Raises: `InputError` for an input, a state or a mask of another shape.

    Source: Gu and Dao 2023, arXiv:2312.00752, section 3.4 and figure 3.
    """

    def __init__(self, shape: MambaShape) -> None:
        super().__init__()
        self.shape = shape
        rank = math.ceil(shape.features / 16) if shape.rank is None else shape.rank
        self.in_proj = nn.Linear(shape.features, 2 * shape.width, bias=shape.has_bias)
        self.conv1d = nn.Conv1d(
            shape.width, shape.width, shape.kernel, groups=shape.width, bias=shape.has_conv_bias
        )
        self.core = S6(shape.width, shape.state, rank, time_step=shape.time_step, chunk=shape.chunk)
        self.out_proj = nn.Linear(shape.width, shape.features, bias=shape.has_bias)
        self.activation = ACTIVATIONS[shape.activation]

    def _start(self, state: MixerState | None, x: Tensor) -> tuple[Tensor, Tensor | None]:
        window = None if state is None else state.window
        wanted = (len(x), self.shape.width, self.shape.kernel - 1)
        return checked_state("MambaMixer", window, wanted, x), state and state.hidden

    def forward(
        self, x: Tensor, state: MixerState | None = None, *, mask: Tensor | None = None
    ) -> tuple[Tensor, MixerState]:
        """Every y and the last state, for whole sequences."""
        check_sequence("MambaMixer", x, self.shape.features)
        keep = _checked_mask(mask, x)
        inside, gate = self.in_proj(x if keep is None else x * keep).chunk(2, dim=-1)
        window, hidden = self._start(state, inside)
        seen = torch.cat([window, inside.mT], dim=-1)
        mixed = self.activation(self.conv1d(seen)).mT
        found, hidden = self.core(mixed if keep is None else mixed * keep, hidden)
        out = self.out_proj(found * functional.silu(gate))
        return out, MixerState(_last(seen, self.shape.kernel - 1), hidden)

    def step(self, x: Tensor, state: MixerState | None = None) -> tuple[Tensor, MixerState]:
        """One y, (batch, features), and the state."""
        check_row("MambaMixer", x, self.shape.features)
        inside, gate = self.in_proj(x).chunk(2, dim=-1)
        window, hidden = self._start(state, inside)
        seen = torch.cat([window, inside[..., None]], dim=-1)
        mixed = (seen * self.conv1d.weight[:, 0]).sum(-1)
        if self.conv1d.bias is not None:
            mixed = mixed + self.conv1d.bias
        found, hidden = self.core.step(self.activation(mixed), hidden)
        out = self.out_proj(found * functional.silu(gate))
        return out, MixerState(_last(seen, self.shape.kernel - 1), hidden)


def _last(seen: Tensor, count: int) -> Tensor:
    """The last `count` steps, which may be none."""
    return seen[..., seen.shape[-1] - count :]


@final
class RootMeanSquare(nn.Module):
    """x over its root mean square, times a weight a feature; the mean is taken in float32.

    As `nn.RMSNorm`, but that in half precision the quotient is rounded before the weight is
    applied, as in transformers. Float64 stays float64.
    """

    def __init__(self, features: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """The quotients."""
        wide = x if x.dtype == torch.float64 else x.float()
        scaled = wide * (wide.square().mean(-1, keepdim=True) + self.epsilon).rsqrt()
        return self.weight * scaled.to(x.dtype)


@final
class MambaBlock(nn.Module):
    """x + mixer(norm(x)); with ``is_residual_float32`` the sum is kept in float32 at least.

    Shapes, states and errors as `MambaMixer`.
    """

    def __init__(
        self, shape: MambaShape, *, epsilon: float = 1e-5, is_residual_float32: bool = True
    ) -> None:
        super().__init__()
        self.is_residual_float32 = is_residual_float32
        self.norm = RootMeanSquare(shape.features, epsilon)
        self.mixer = MambaMixer(shape)

    def _residual(self, x: Tensor) -> Tensor:
        return x.float() if self.is_residual_float32 and x.dtype != torch.float64 else x

    def forward(
        self, x: Tensor, state: MixerState | None = None, *, mask: Tensor | None = None
    ) -> tuple[Tensor, MixerState]:
        """Every sum and the last state, for whole sequences."""
        check_sequence("MambaBlock", x, self.mixer.shape.features)
        out, state = self.mixer(self.norm(x.to(self.norm.weight.dtype)), state, mask=mask)
        return self._residual(x) + out, state

    def step(self, x: Tensor, state: MixerState | None = None) -> tuple[Tensor, MixerState]:
        """One sum, (batch, features), and the state."""
        check_row("MambaBlock", x, self.mixer.shape.features)
        out, state = self.mixer.step(self.norm(x.to(self.norm.weight.dtype)), state)
        return self._residual(x) + out, state


@final
class Mamba(nn.Module):
    """Tokens to features: an embedding, ``layers`` blocks, a norm.

    With ``is_rescaled`` each block's last weights begin 1 / sqrt(layers) as large, so that depth
    does not widen what adds up.

    Shapes: tokens (batch, length), whole numbers below ``vocabulary``; gives (batch, length,
    features) and a `MixerState` a block. ``mask`` as `MambaMixer`; types and memory as `S6`.

    Raises: `InputError` for a size below 1, tokens, a mask or a state of another shape.

    Source: Gu and Dao 2023, arXiv:2312.00752, section 3.4.
    """

    def __init__(
        self,
        shape: MambaShape,
        vocabulary: int,
        layers: int,
        *,
        epsilon: float = 1e-5,
        is_residual_float32: bool = True,
        is_rescaled: bool = False,
    ) -> None:
        super().__init__()
        check_sizes("Mamba", vocabulary=vocabulary, layers=layers)
        self.embeddings = nn.Embedding(vocabulary, shape.features)
        self.layers = nn.ModuleList(
            MambaBlock(shape, epsilon=epsilon, is_residual_float32=is_residual_float32)
            for _ in range(layers)
        )
        self.norm_f = RootMeanSquare(shape.features, epsilon)
        if is_rescaled:
            with torch.no_grad():
                for block in self._blocks():
                    block.mixer.out_proj.weight.div_(layers**0.5)

    def _blocks(self) -> list[MambaBlock]:
        return [one for one in self.layers if isinstance(one, MambaBlock)]

    def _states(self, state: Sequence[MixerState] | None) -> Sequence[MixerState | None]:
        if state is None:
            return [None] * len(self.layers)
        if len(state) != len(self.layers):
            raise InputError(
                f"Mamba: the state must be one of each of {len(self.layers)} blocks; got "
                f"{len(state)}. Pass what the last call gave."
            )
        return state

    def forward(
        self, tokens: Tensor, state: MambaState | None = None, *, mask: Tensor | None = None
    ) -> tuple[Tensor, MambaState]:
        """Features at every place and the last state, for whole sequences."""
        x, after = self.embeddings(_checked_tokens(tokens, 2)), []
        for block, one in zip(self._blocks(), self._states(state), strict=True):
            x, one = block(x, one, mask=mask)
            after.append(one)
        return self.norm_f(x), tuple(after)

    def step(self, tokens: Tensor, state: MambaState | None = None) -> tuple[Tensor, MambaState]:
        """Features, (batch, features), of one token of every sequence, and the state."""
        x, after = self.embeddings(_checked_tokens(tokens, 1)), []
        for block, one in zip(self._blocks(), self._states(state), strict=True):
            x, one = block.step(x, one)
            after.append(one)
        return self.norm_f(x), tuple(after)


def _checked_tokens(tokens: Tensor, dimensions: int) -> Tensor:
    if tokens.ndim != dimensions or tokens.is_floating_point() or tokens.is_complex():
        wanted = "(batch, length)" if dimensions == 2 else "(batch,)"
        raise InputError(
            f"Mamba: tokens must be {wanted}, whole numbers; got {tuple(tokens.shape)} of "
            f"{tokens.dtype}. For features instead of tokens use MambaBlock."
        )
    return tokens


@final
class MambaLM(nn.Module):
    """Tokens to the next token's logits: a `Mamba` and a linear map, tied to the embedding or not.

    Shapes: tokens (batch, length) to logits (batch, length, vocabulary), float32 at least, and a
    state. Errors as `Mamba`.
    """

    def __init__(self, backbone: Mamba, *, is_tied: bool = True) -> None:
        super().__init__()
        self.backbone = backbone
        vocabulary, features = backbone.embeddings.weight.shape
        self.lm_head = nn.Linear(features, vocabulary, bias=False)
        if is_tied:
            self.lm_head.weight = backbone.embeddings.weight

    def _logits(self, x: Tensor) -> Tensor:
        found: Tensor = self.lm_head(x.to(self.lm_head.weight.dtype))
        return found if found.dtype == torch.float64 else found.float()

    def forward(
        self, tokens: Tensor, state: MambaState | None = None, *, mask: Tensor | None = None
    ) -> tuple[Tensor, MambaState]:
        """Logits at every place and the last state, for whole sequences."""
        x, state = self.backbone(tokens, state, mask=mask)
        return self._logits(x), state

    def step(self, tokens: Tensor, state: MambaState | None = None) -> tuple[Tensor, MambaState]:
        """Logits, (batch, vocabulary), after one token of every sequence, and the state."""
        x, state = self.backbone.step(tokens, state)
        return self._logits(x), state
