"""The selective state space: a diagonal recurrence whose step, input and output the input chooses.

Holds: the function ``selective_scan``, the layer ``S6``, and ``TimeStep``, how its steps begin.
May import: torch, ``secant.errors``, ``secant.nn`` (scan), ``secant.nn.recurrence`` (inputs).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from secant.errors import InputError
from secant.nn.recurrence.inputs import (
    check_row,
    check_sequence,
    check_sizes,
    checked_state,
    widened,
    without_autocast,
)
from secant.nn.scan import scan

CHUNK = 128


@dataclass(frozen=True)
class TimeStep:
    """How the steps Δ begin: log-uniform from `low` to `high`, never below `floor`.

    The weights that let the input change them are of size `scale` / sqrt(rank): uniform between
    both signs of it, or all equal to it if the `scheme` is constant.

    Raises: `InputError` for a span that is not 0 < low <= high, or another scheme.
    """

    low: float = 0.001
    high: float = 0.1
    floor: float = 1e-4
    scale: float = 1.0
    scheme: str = "random"

    def __post_init__(self) -> None:
        if not (0 < self.low <= self.high < math.inf and self.floor >= 0):
            raise InputError(
                "TimeStep: needs 0 < low <= high, finite, and floor >= 0; got "
                f"{self.low}, {self.high} and {self.floor}. The paper has 0.001 and 0.1."
            )
        if self.scheme not in ("random", "constant"):
            raise InputError(
                f"TimeStep: `scheme` must be 'random' or 'constant'; got {self.scheme!r}. "
                "Choose one."
            )


class Selected(NamedTuple):
    """What the input chose at each step: `size` Δ (..., width), `write` B and `read` C (...,
    state)."""

    size: Tensor
    write: Tensor
    read: Tensor


def _discrete(
    x: Tensor, chosen: Selected, rates: Tensor, has_negative: bool
) -> tuple[Tensor, Tensor]:
    """Transition and input of the state, (..., width, state)."""
    kept = (chosen.size[..., None] * rates).exp()
    written = (chosen.size * x)[..., None] * chosen.write[..., None, :]
    return 2 * kept - 1 if has_negative else kept, written


def selective_scan(
    x: Tensor,
    chosen: Selected,
    rates: Tensor,
    state: Tensor,
    *,
    has_negative: bool = False,
    chunk: int | None = CHUNK,
) -> tuple[Tensor, Tensor]:
    r"""Outputs y and the last state of Mamba's recurrence, without its skip.

    .. math::
        h_t = \exp(\Delta_t A) \odot h_{t-1} + (\Delta_t x_t) B_t^T, \quad y_t = h_t C_t

    x and Δ (batch, length, width), B and C (batch, length, state), `rates` A (width, state), the
    initial `state` and h (batch, width, state). A is discretised by zero-order hold and B by
    Euler's rule, as the authors' code does. With `has_negative` the transition is
    2 exp(Δ A) - 1, from -1 to 1.

    Memory: h over the whole length would be `state` times as large as x. It is made `chunk` steps
    at a time, each carrying its last h to the next, and what a derivative needs of a chunk is made
    again when it is asked for. Beside x-sized numbers there are then one chunk's h and one h a
    chunk. None makes all h at once, which torch.func's transforms need.

    Source: Gu and Dao 2023, arXiv:2312.00752, algorithm 2 and section 3.6; negative eigenvalues,
    Grazzi et al. 2024, arXiv:2411.12537.
    """

    def part(
        x: Tensor, size: Tensor, write: Tensor, read: Tensor, rates: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        kept, written = _discrete(x, Selected(size, write, read), rates, has_negative)
        found = scan(kept, written, state)
        return (found @ read[..., None])[..., 0], found[:, -1]

    length = x.shape[1]
    if chunk is None or length <= chunk:
        return part(x, *chosen, rates, state)
    run: Callable[..., tuple[Tensor, Tensor]] = part
    if torch.is_grad_enabled():

        def run(*given: Tensor) -> tuple[Tensor, Tensor]:
            return checkpoint(part, *given, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]

    found = []
    for begin in range(0, length, chunk):
        now = slice(begin, begin + chunk)
        out, state = run(x[:, now], *(one[:, now] for one in chosen), rates, state)
        found.append(out)
    return torch.cat(found, dim=1), state


@final
class S6(nn.Module):
    r"""Mamba's selective state space: ``state`` numbers for each of ``width`` channels.

    .. math::
        (\delta_t, B_t, C_t) = W_x x_t, \quad \Delta_t = \mathrm{softplus}(W_\Delta \delta_t + b),
        \quad A = -\exp(A_{\log})

    .. math::
        h_t = \exp(\Delta_t A) \odot h_{t-1} + (\Delta_t x_t) B_t^T, \quad
        y_t = h_t C_t + D \odot x_t

    δ has ``rank`` numbers, by default a sixteenth of ``width``, rounded up. At first A is -1 to
    -``state`` in every channel, D is 1, and Δ begins as ``time_step`` says. With
    ``has_negative`` the transition is 2 exp(Δ A) - 1.

    Shapes: x (batch, length, width), state (batch, width, state); gives y as x is, and the last h.
    In half precision W_x and W_Δ are applied in x's type, all else in float32, and the state is
    float32. Parameters: ``x_proj``, ``dt_proj``, ``A_log``, ``D``, named as in checkpoints of
    Mamba. Cost and memory as `selective_scan`, whose ``chunk`` this takes.

    Raises: `InputError` for a size below 1, or an input or a state of another shape.

    Source: Gu and Dao 2023, arXiv:2312.00752, algorithm 2.
    """

    def __init__(
        self,
        width: int,
        state: int = 16,
        rank: int | None = None,
        *,
        time_step: TimeStep | None = None,
        has_negative: bool = False,
        chunk: int | None = CHUNK,
    ) -> None:
        super().__init__()
        rank = math.ceil(width / 16) if rank is None else rank
        check_sizes("S6", width=width, state=state, rank=rank, chunk=1 if chunk is None else chunk)
        self.width, self.state, self.rank = width, state, rank
        self.has_negative, self.chunk = has_negative, chunk
        self.time_step = time_step or TimeStep()
        self.x_proj = nn.Linear(width, rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(rank, width)
        self.A_log = nn.Parameter(torch.empty(width, state))
        self.D = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw them anew, from torch's generator."""
        self.x_proj.reset_parameters()
        self.A_log.copy_(torch.arange(1, self.state + 1).log().expand_as(self.A_log))
        nn.init.ones_(self.D)
        begin, reach = self.time_step, self.time_step.scale * self.rank**-0.5
        if begin.scheme == "constant":
            nn.init.constant_(self.dt_proj.weight, reach)
        else:
            nn.init.uniform_(self.dt_proj.weight, -reach, reach)
        where = torch.rand(self.width, dtype=torch.float64)
        size = torch.exp(math.log(begin.low) + where * math.log(begin.high / begin.low))
        size = size.clamp(min=begin.floor)
        # Softplus turned round: log(exp(size) - 1), which keeps its digits when size is small.
        self.dt_proj.bias.copy_(size + (-torch.expm1(-size)).log())

    def _chosen(self, x: Tensor) -> tuple[Tensor, Selected, Tensor, Tensor]:
        """x, what it chose, A and D, all as wide as the state."""
        like = self.x_proj(x)
        steps, write, read = like.split([self.rank, self.state, self.state], dim=-1)
        steps = functional.linear(steps, self.dt_proj.weight)
        wide, log_rates, skip, shift = widened(x, self.A_log, self.D, self.dt_proj.bias)
        size = functional.softplus(steps.to(wide) + shift)
        return wide, Selected(size, write.to(wide), read.to(wide)), -log_rates.exp(), skip

    def _start(self, state: Tensor | None, wide: Tensor) -> Tensor:
        return checked_state("S6", state, (len(wide), self.width, self.state), wide)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Every y and the last h, for whole sequences."""
        check_sequence("S6", x, self.width)
        wide, chosen, rates, skip = self._chosen(x)
        with without_autocast(x):
            found, last = selective_scan(
                wide, chosen, rates, self._start(state, wide),
                has_negative=self.has_negative, chunk=self.chunk,
            )  # fmt: skip
            return (found + skip * wide).to(x.dtype), last

    def step(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One y, (batch, width), and h."""
        check_row("S6", x, self.width)
        wide, chosen, rates, skip = self._chosen(x)
        with without_autocast(x):
            kept, written = _discrete(wide, chosen, rates, self.has_negative)
            last = kept * self._start(state, wide) + written
            found = (last @ chosen.read[..., None])[..., 0]
            return (found + skip * wide).to(x.dtype), last

    def extra_repr(self) -> str:
        """What it was made with."""
        return f"{self.width}, {self.state}, {self.rank}, has_negative={self.has_negative}"
