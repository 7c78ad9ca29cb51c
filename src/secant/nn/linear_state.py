"""A drop-in for torch's recurrences whose every layer is linear in its state, run as a scan.

Holds: ``LinearLayer``, ``LinearState``.
May import: torch, jaxtyping, ``secant.errors``, ``secant.nn.scan``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, final

import torch
from jaxtyping import Float64
from torch import Tensor, nn
from torch.nn import functional

from secant.errors import InputError
from secant.nn.scan import scan

WORST_BASIS: Final = 1e3
"""Condition of the eigenvectors up to which they are used: float32 then keeps four digits."""


@final
class LinearLayer(nn.Module):
    r"""One layer in one direction, by the eigenvalues of its state map where they can be had.

    .. math:: h_t = A h_{t-1} + B u_t + b = V \Lambda V^{-1} h_{t-1} + B u_t + b

    In the basis of V the state is a diagonal scan of complex numbers, one of each conjugate pair.
    Where V is conditioned worse than `WORST_BASIS` the full matrix is kept, and scanned as one.

    Shapes: u (batch, length, inputs), state (batch, state), real; gives every state and takes a
    first one. Cost a step, products: state · (2 inputs + 2 state) by eigenvalues, and
    state · (inputs + state) one step after another by the matrix.
    """

    def __init__(self, size: tuple[int, int], pairs: int | None) -> None:
        super().__init__()
        inputs, state = size
        self.inputs, self.state, self.pairs = inputs, state, pairs
        if pairs is None:
            self.transition = nn.Parameter(torch.empty(state, state))
            self.write = nn.Parameter(torch.empty(state, inputs))
            self.bias = nn.Parameter(torch.empty(state))
            return
        self.eigenvalues = nn.Parameter(torch.empty(pairs, 2))
        self.enter = nn.Parameter(torch.empty(2 * pairs, state))
        self.write = nn.Parameter(torch.empty(2 * pairs, inputs))
        self.bias = nn.Parameter(torch.empty(2 * pairs))
        self.leave = nn.Parameter(torch.empty(state, 2 * pairs))

    @classmethod
    def of(
        cls,
        a: Float64[Tensor, "state state"],
        b: Float64[Tensor, "state inputs"],
        bias: Float64[Tensor, " state"],
    ) -> LinearLayer:
        """The layer with these matrices, columns on the right, in float32."""
        values, vectors = torch.linalg.eig(a.cpu())
        size = (b.shape[1], len(a))
        is_good = bool(torch.linalg.cond(vectors) <= WORST_BASIS)
        kept = values.imag >= 0
        layer = cls(size, int(kept.sum()) if is_good else None)
        with torch.no_grad():
            if not is_good:
                for name, value in (("transition", a), ("write", b), ("bias", bias)):
                    layer.get_parameter(name).copy_(value)
                return layer
            inverse = torch.linalg.inv(vectors)[kept]
            # A pair's other half is the conjugate, so twice the real part stands for both.
            twice = torch.where(values[kept].imag > 0, 2.0, 1.0)
            out = vectors[:, kept] * twice
            driven = inverse @ torch.cat([b.cpu(), bias.cpu()[:, None]], 1).to(inverse.dtype)
            layer.eigenvalues.copy_(torch.view_as_real(values[kept]))
            layer.enter.copy_(torch.cat([inverse.real, inverse.imag]))
            layer.write.copy_(torch.cat([driven.real, driven.imag])[:, :-1])
            layer.bias.copy_(torch.cat([driven.real, driven.imag])[:, -1])
            layer.leave.copy_(torch.cat([out.real, -out.imag], 1))
        return layer

    @property
    def is_diagonal(self) -> bool:
        """Whether it runs by its eigenvalues."""
        return self.pairs is not None

    def forward(self, u: Tensor, state: Tensor) -> Tensor:
        """Every state, (batch, length, state)."""
        driven = functional.linear(u, self.write, self.bias)
        if self.pairs is None:
            return scan(self.transition, driven, state, is_matrix=True)
        real, imaginary = torch.split(driven, self.pairs, -1)
        first = torch.complex(*torch.split(functional.linear(state, self.enter), self.pairs, -1))
        turn = torch.view_as_complex(self.eigenvalues)
        z = scan(turn, torch.complex(real, imaginary), first)
        return functional.linear(torch.cat([z.real, z.imag], -1), self.leave)

    def extra_repr(self) -> str:
        """What it was made with."""
        how = "by its matrix" if self.pairs is None else f"by {self.pairs} eigenvalues"
        return f"{self.inputs}, {self.state}, {how}"


@final
class LinearState(nn.Module):
    """Linear layers in the place of an ``nn.RNN``, ``nn.GRU`` or ``nn.LSTM``, called as it is.

    `layers` in torch's order (forward and reverse of the first, of the second, ...); `outputs` is
    how many leading entries of a layer's state it hands on. An LSTM's state is (h, c) side by
    side, and comes and goes as two tensors.

    Shapes: as of torch's module with the same `batch_first`. Half precision runs in float32.

    Raises: `InputError` for a ``PackedSequence`` or an input without a batch.
    """

    def __init__(
        self, layers: Sequence[LinearLayer], *, outputs: int, ways: int, batch_first: bool
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.outputs, self.ways, self.batch_first = outputs, ways, batch_first

    def forward(self, x: Any, hx: Any = None) -> tuple[Tensor, Any]:
        """What the last layer hands on at every step, and the last states of all."""
        if not isinstance(x, Tensor) or x.ndim != 3:
            what = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise InputError(
                f"LinearState: expected a tensor with batch, length and features; got {what}. "
                "Give it padded sequences, not packed ones."
            )
        hidden = (x if self.batch_first else x.transpose(0, 1)).float()
        starts = self._starts(hx, hidden)
        ends = []
        for place in range(0, len(self.layers), self.ways):
            handed = []
            for way in range(self.ways):
                layer = self.layers[place + way]
                states = layer(hidden.flip(1) if way else hidden, starts[place + way])
                ends.append(states[:, -1])
                out = states[..., : self.outputs]
                handed.append(out.flip(1) if way else out)
            hidden = torch.cat(handed, -1)
        last = torch.stack(ends).to(x.dtype)
        output = (hidden if self.batch_first else hidden.transpose(0, 1)).to(x.dtype)
        if last.shape[-1] == self.outputs:
            return output, last
        return output, (last[..., : self.outputs], last[..., self.outputs :])

    def _starts(self, hx: Any, x: Tensor) -> list[Tensor]:
        if hx is None:
            sizes = [int(layer.state) for layer in self.layers]  # type: ignore[arg-type]
            return [x.new_zeros(len(x), size) for size in sizes]
        whole = torch.cat(hx, -1) if isinstance(hx, tuple) else hx
        return list(whole.to(x.dtype))
