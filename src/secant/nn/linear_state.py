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
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

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

    Numbers: in the type of its parameters, whatever comes; where that is of half precision, in
    float32, also under autocast.
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
        dtype: torch.dtype = torch.float32,
    ) -> LinearLayer:
        """The layer with these matrices, columns on the right, in `dtype`."""
        values, vectors = torch.linalg.eig(a.cpu())
        size = (b.shape[1], len(a))
        is_good = bool(torch.linalg.cond(vectors) <= WORST_BASIS)
        kept = values.imag >= 0
        layer = cls(size, int(kept.sum()) if is_good else None).to(dtype)
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

    @property
    def dtype(self) -> torch.dtype:
        """The type that it computes in: that of its parameters, of half precision float32."""
        return torch.promote_types(self.write.dtype, torch.float32)

    def forward(self, u: Tensor, state: Tensor) -> Tensor:
        """Every state, (batch, length, state)."""
        with torch.autocast(u.device.type, enabled=False):
            return self._states(u.to(self.dtype), state.to(self.dtype))

    def _states(self, u: Tensor, state: Tensor) -> Tensor:
        driven = functional.linear(u, self.write.to(u), self.bias.to(u))
        if self.pairs is None:
            return scan(self.transition.to(u), driven, state, is_matrix=True)
        real, imaginary = torch.split(driven, self.pairs, -1)
        entered = functional.linear(state, self.enter.to(u))
        first = torch.complex(*torch.split(entered, self.pairs, -1))
        turn = torch.view_as_complex(self.eigenvalues.to(u))
        z = scan(turn, torch.complex(real, imaginary), first)
        return functional.linear(torch.cat([z.real, z.imag], -1), self.leave.to(u))

    def extra_repr(self) -> str:
        """What it was made with."""
        how = "by its matrix" if self.pairs is None else f"by {self.pairs} eigenvalues"
        return f"{self.inputs}, {self.state}, {how}"


@final
class LinearState(nn.Module):
    """Linear layers in the place of an ``nn.RNN``, ``nn.GRU`` or ``nn.LSTM``, called as it is.

    `layers` in torch's order (forward and reverse of the first, of the second, ...); `outputs` is
    how many leading entries of a layer's state it hands on. An LSTM's state is (h, c) side by
    side, and comes and goes as two tensors. `mode`, `bias` and `dropout` are those of the module
    it stands for; its sizes have torch's names too. Dropout falls between layers in training.

    Shapes: as of torch's module with the same `batch_first`, and as there a ``PackedSequence``
    gives one back: the reverse direction starts at each sequence's end. It computes in the type of
    its parameters, of half precision in float32, and gives the type that came.

    Raises: `InputError` for an input without a batch or without a step, and states that do not fit.
    """

    def __init__(
        self,
        layers: Sequence[LinearLayer],
        *,
        mode: str,
        outputs: int,
        ways: int,
        batch_first: bool,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.mode, self.outputs, self.ways, self.batch_first = mode, outputs, ways, batch_first
        self.bias, self.dropout = bias, dropout

    @property
    def bidirectional(self) -> bool:
        """Whether it goes both ways."""
        return self.ways == 2

    @property
    def num_layers(self) -> int:
        """How many layers lie on one another; two directions are one layer."""
        return len(self.layers) // self.ways

    @property
    def input_size(self) -> int:
        """Features of its input."""
        return self._layer(0).inputs

    @property
    def hidden_size(self) -> int:
        """Entries of h; of an LSTM's c, where h is a projection."""
        state = self._layer(0).state
        return state - self.outputs if self.mode == "LSTM" else state

    @property
    def proj_size(self) -> int:
        """Entries of h where it is a projection, else 0."""
        return 0 if self.outputs == self.hidden_size else self.outputs

    @property
    def dtype(self) -> torch.dtype:
        """The type that it computes in."""
        return self._layer(0).dtype

    def flatten_parameters(self) -> None:
        """Nothing: its parameters have no memory to share. Models call it on torch's."""

    def forward(self, x: Any, hx: Any = None) -> tuple[Any, Any]:
        """What the last layer hands on at every step, and the last states of all."""
        lengths = None
        if isinstance(x, PackedSequence):
            rows, counts = pad_packed_sequence(x, batch_first=True)
            lengths = counts.to(rows.device)
        else:
            self._check(x)
            rows = x if self.batch_first else x.transpose(0, 1)
        hidden = rows.to(self.dtype)
        hidden, ends = self.run(hidden, self._starts(hx, hidden), lengths)
        hidden, last = hidden.to(rows.dtype), torch.stack(ends).to(rows.dtype)
        output: Any = hidden if self.batch_first else hidden.transpose(0, 1)
        if isinstance(x, PackedSequence):
            output = _packed_like(x, hidden, counts)
        if self.mode != "LSTM":
            return output, last
        h, c = torch.split(last, [self.outputs, last.shape[-1] - self.outputs], -1)
        return output, (h.contiguous(), c.contiguous())

    def run(
        self, hidden: Tensor, starts: Sequence[Tensor], lengths: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """What the last layer hands on and each one's last state, from its first.

        `hidden` (batch, length, inputs); `lengths` (batch,) says how many steps of each sequence
        count, all if None. What comes out past them means nothing.
        """
        ends: list[Tensor] = []
        for place in range(0, len(self.layers), self.ways):
            if place and self.dropout:
                hidden = functional.dropout(hidden, self.dropout, self.training)
            handed = []
            for way in range(self.ways):
                steps = _turned(hidden, lengths) if way else hidden
                states = self.layers[place + way](steps, starts[place + way])
                ends.append(_last(states, lengths))
                out = states[..., : self.outputs]
                handed.append(_turned(out, lengths) if way else out)
            hidden = torch.cat(handed, -1)
        return hidden, ends

    def _layer(self, place: int) -> LinearLayer:
        layer = self.layers[place]
        assert isinstance(layer, LinearLayer)
        return layer

    def _check(self, x: Any) -> None:
        if isinstance(x, Tensor) and x.ndim == 3 and x.shape[1 if self.batch_first else 0]:
            return
        what = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise InputError(
            "LinearState: expected a tensor with batch, length and features, of one step at least, "
            f"or a PackedSequence; got {what}. Give it a batch of sequences."
        )

    def _starts(self, hx: Any, x: Tensor) -> list[Tensor]:
        """The first state of each layer and direction; zeros if none was given."""
        state = self._layer(0).state
        if hx is None:
            return [x.new_zeros(len(x), state) for _ in self.layers]
        parts = list(hx) if isinstance(hx, tuple | list) else [hx]
        sizes = [self.outputs, state - self.outputs] if self.mode == "LSTM" else [state]
        wanted = [(len(self.layers), len(x), size) for size in sizes]
        came = [tuple(part.shape) for part in parts]
        if came != wanted:
            raise InputError(
                f"LinearState: expected first states of shapes {wanted} (layers and directions, "
                f"batch, entries); got {came}. Give those of an {self.mode}, or none for zeros."
            )
        return list(torch.cat([part.to(x.dtype) for part in parts], -1))


def _turned(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Each sequence backwards within its length; what lies past it stays."""
    if lengths is None:
        return x.flip(1)
    place = torch.arange(x.shape[1], device=x.device)
    back = lengths[:, None] - 1 - place
    return x.gather(1, torch.where(back >= 0, back, place)[..., None].expand_as(x))


def _last(states: Tensor, lengths: Tensor | None) -> Tensor:
    """The state after each sequence's last step."""
    if lengths is None:
        return states[:, -1]
    return states[torch.arange(len(states), device=states.device), lengths - 1]


def _packed_like(x: PackedSequence, rows: Tensor, lengths: Tensor) -> PackedSequence:
    """The rows packed in the order of `x`."""
    if x.sorted_indices is not None:
        order = x.sorted_indices
        rows, lengths = rows.index_select(0, order), lengths[order.to(lengths.device)]
    data = pack_padded_sequence(rows, lengths, batch_first=True).data
    return PackedSequence(data, x.batch_sizes, x.sorted_indices, x.unsorted_indices)
