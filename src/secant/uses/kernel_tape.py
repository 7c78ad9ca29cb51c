"""One batch's gradients for a kernel, as factors, taken from a model as it runs.

Holds: ``Tape``, and ``Opened``, a batch that it has run.
May import: torch, ``secant.errors``, ``secant.maps``, ``secant.uses`` (kernel_factors,
kernel_gathered, kernel_modules).

A module of a known kind is watched: its input and the gradient of its output give those of its
parameters. That is trusted only where it gives the gradient that autograd gives, so a parameter
used in other ways as well is found out and taken row by row, as are those of other modules.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call, jacrev, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from secant.errors import InputError
from secant.maps.calls import out_of_place
from secant.maps.weights import Batch, part_of, rows_of, run
from secant.uses.kernel_factors import Factor, Rows
from secant.uses.kernel_gathered import Gathered
from secant.uses.kernel_modules import Call, factor_of, is_convolution, watched_modules

Outputs = Callable[[Any], Tensor]
"""What takes a model's output to a tensor whose first dimension is the row."""

CHECKED = 2
"""Rows on which factors are held against autograd."""

BACKS = 1 << 27
"""Bytes of derivatives that are held at once, before they are made into factors."""


class Run(NamedTuple):
    """One forward: the outputs, (n, c), and the calls of watched modules with their outputs."""

    values: Tensor
    calls: list[Call]
    edges: list[GradientEdge]


class Cost(NamedTuple):
    """Bytes of a row: its inputs of modules, what its forward keeps for the way back beside them,
    its factors for each output, and its derivatives for each."""

    intos: int
    forward: int
    factors: int
    backs: int


class Places:
    """Where derivatives are put: those that factors keep in one tensor for all rows, others in one
    that each part of the rows writes over. Fresh memory would take longer than what is put there.
    """

    def __init__(self, rows: int) -> None:
        self.rows, self.start = rows, 0
        self.found: dict[int, Tensor] = {}

    def take(self, number: int, call: Call, outputs: int, *, is_kept: bool) -> Tensor:
        """An empty tensor (n, outputs, *shape) for the derivatives of the call of this number.

        Entries of the last dimension of a linear map's or table's output lie side by side,
        positions of a convolution's.
        """
        n, *shape = call.shape
        dim = 1 if is_convolution(call.module) or not shape else -2
        laid = [*shape[:-1], outputs, *shape[-1:]] if dim == -2 else [outputs, *shape]
        start = self.start if is_kept else 0
        there = self.found.get(number)
        if there is None or list(there.shape[1:]) != laid or len(there) < start + n:
            there = call.into.new_empty((self.rows if is_kept else n, *laid), dtype=call.dtype)
            self.found[number] = there
        return there[start : start + n].movedim(dim, 1)


class Tape:
    """A model, the chosen parameters of it, and how each of them is taken.

    `plain` are those that no watched module explains; they are taken row by row.
    """

    def __init__(
        self, model: nn.Module, names: Sequence[str], outputs: Outputs, batch: Batch
    ) -> None:
        self.model, self.outputs = model, outputs
        every = dict(model.named_parameters(remove_duplicate=False))
        self.parameters = {name: every[name] for name in names}
        # Each tied one once: `functional_call` ties the others to it.
        self.every = {name: one.detach() for name, one in model.named_parameters()}
        self.watched = watched_modules(model, self.parameters)
        self.kept: set[nn.Module] = set()
        self.is_copying = False
        self.plain: list[str] = []
        self.why_loop: str | None = None
        self._prepare(part_of(batch, 0, CHECKED))

    def _prepare(self, few: Batch) -> None:
        """Hold the factors against autograd. Cost: forwards and derivatives of a few rows."""
        ran = self._run(few)
        draw = torch.Generator().manual_seed(0)
        weights = torch.randn(ran.values.shape, generator=draw, dtype=torch.float64)
        weights = weights.to(ran.values)
        self.outputs_each = ran.values.shape[1]
        true = self._gradients(few, weights)
        calls = self._backs(ran, weights[:, None], Places(CHECKED))
        eps = torch.finfo(ran.values.dtype).eps
        # What is less than rounding of the whole cannot be told from 0, and adds nothing either:
        # attention's key bias, which moves no output.
        norms = {name: one.norm() for name, one in true.items()}
        rounding = 100 * eps * torch.stack(list(norms.values())).norm()
        explained: set[str] = set()
        factors: dict[tuple[str, ...], Factor] = {}
        for one in self.watched:
            factor = factor_of(one, calls)
            if factor is None:
                continue
            factors[one.names] = factor
            expected = one.as_written({name: true[name] for name in one.names})
            whole = torch.stack([norms[name] for name in one.names]).norm()
            if bool(_apart(factor.summed(), expected) <= eps**0.5 * whole + rounding):
                explained |= set(one.names)
        self.watched = [one for one in self.watched if set(one.names) <= explained]
        self.plain = [name for name in self.parameters if name not in explained]
        self.kept = {
            owner for one in self.watched if factors[one.names].has_backs for owner in one.owners
        }
        self.cost = self._cost(ran, [factors[one.names] for one in self.watched])
        if self.plain:
            self._choose_fallback(few)

    def _cost(self, ran: Run, factors: Sequence[Factor]) -> Cost:
        size, rows = ran.values.element_size(), len(ran.values)
        outs = sum(call.shape.numel() for call in ran.calls)
        intos = sum(call.into.numel() for call in ran.calls)
        plain = sum(self.parameters[name].numel() for name in self.plain)
        values = sum(Gathered.values(one) for one in factors)
        widest = max((one.widest() for one in factors), default=0)
        return Cost(
            intos * size // rows,
            2 * outs * size // rows,
            (values // rows + widest + plain) * size,
            outs * size // rows,
        )

    def open(self, batch: Batch, outputs: int) -> Opened:
        """A batch whose derivatives are taken for `outputs` of the outputs at once.

        Rows go through in parts, so that the derivatives of a part fit into `BACKS` bytes. Where
        all outputs are taken at once no forward is kept.
        """
        step = max(1, BACKS // max(1, outputs * self.cost.backs))
        rows = rows_of(batch)
        parts = [part_of(batch, start, start + step) for start in range(0, rows, step)]
        if outputs >= self.outputs_each:
            return Opened(self, parts, None)
        return Opened(self, parts, [self._ran(part) for part in parts])

    def _ran(self, batch: Batch) -> Run | None:
        return self._run(batch) if self.watched else None

    def factors(self, batch: Batch, ran: Run | None, span: slice, places: Places) -> list[Factor]:
        """J of the outputs in `span` for the rows of `batch`, by blocks of parameters."""
        found: list[Factor] = []
        if ran is not None:
            weights = torch.eye(ran.values.shape[1], dtype=ran.values.dtype)[span]
            calls = self._backs(ran, weights.to(ran.values)[None], places)
            for one in self.watched:
                factor = factor_of(one, calls)
                assert factor is not None, "it was there when the tape was prepared"
                found.append(factor)
        if self.plain:
            found.append(self._rows(batch, span))
        return found

    def _run(self, batch: Batch) -> Run:
        """Forward, with weights held fixed and watched modules' outputs as places to derive by.

        Where the model writes over an input or output later, all are copied in a second run.
        """
        rows = rows_of(batch)
        modules = dict.fromkeys(owner for one in self.watched for owner in one.owners)
        calls: list[Call] = []
        edges: list[GradientEdge] = []
        kept: list[tuple[Tensor, int]] = []

        def listen(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if not args or not isinstance(args[0], Tensor) or not isinstance(output, Tensor):
                return None
            into = args[0].detach()
            if self.is_copying:
                into = into.clone()
            kept.append((args[0], args[0]._version))
            if len(output) == 1 != rows and len(into) == 1:  # shared by all rows: a table of places
                output, into = (
                    output.expand(rows, *output.shape[1:]),
                    into.expand(rows, *into.shape[1:]),
                )
            if not output.requires_grad:
                output = output.detach().requires_grad_()
            edges.append(get_gradient_edge(output))
            calls.append(Call(module, into, output.shape, output.dtype, None))
            # A leaf may not be written over in place, and a view loses its place by it.
            if output.is_leaf or self.is_copying:
                return output.clone()
            kept.append((output, output._version))
            return output

        handles = [module.register_forward_hook(listen) for module in modules]
        try:
            with torch.enable_grad(), out_of_place(self.model):
                called = _Call(self.model, batch)
                pieces = {f"model.{name}": one for name, one in self.every.items()}
                values = self._flat(functional_call(called, pieces, ()), rows)
        finally:
            for handle in handles:
                handle.remove()
        if not self.is_copying and any(one._version != was for one, was in kept):
            self.is_copying = True
            return self._run(batch)
        return Run(values, calls, edges)

    def _flat(self, output: Any, rows: int) -> Tensor:
        """The outputs as (n, c)."""
        values = self.outputs(output)
        if not isinstance(values, Tensor) or values.ndim == 0 or len(values) != rows:
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise InputError(
                f"kernel: the outputs must be a tensor of one row for each of {rows} inputs; got "
                f"{shape}. Give `outputs` a function that keeps the rows."
            )
        return values.flatten(1) if values.ndim > 1 else values[:, None]

    def _backs(self, ran: Run, weights: Tensor, places: Places) -> list[Call]:
        """The calls with the derivative of each weighted output, `weights` (n or 1, k, c)."""
        count, rows = weights.shape[1], len(ran.values)
        backs = [
            places.take(number, call, count, is_kept=call.module in self.kept)
            if call.shape[0] == rows
            else None
            for number, call in enumerate(ran.calls)
        ]
        for place in range(count):
            found: Sequence[Tensor | None] = [None] * len(ran.edges)
            if ran.values.requires_grad:
                found = torch.autograd.grad(
                    ran.values, ran.edges, weights[:, place].expand_as(ran.values),
                    retain_graph=True, allow_unused=True,
                )  # fmt: skip
            for back, one in zip(backs, found, strict=True):
                if back is not None:
                    back[:, place] = 0 if one is None else one
        places.start += rows
        return [call._replace(back=back) for call, back in zip(ran.calls, backs, strict=True)]

    def _gradients(self, batch: Batch, weights: Tensor) -> dict[str, Tensor]:
        """Autograd's gradient of the weighted outputs, by parameter."""
        leaves = {name: one.detach().requires_grad_() for name, one in self.parameters.items()}
        with torch.enable_grad():
            values = self._value(leaves, batch)
            found = torch.autograd.grad(
                values, list(leaves.values()), weights, allow_unused=True, materialize_grads=True
            )
        return dict(zip(leaves, found, strict=True))

    def _value(self, parameters: dict[str, Tensor], batch: Batch) -> Tensor:
        pieces = {f"model.{name}": one for name, one in (self.every | parameters).items()}
        with out_of_place(self.model):
            output = functional_call(_Call(self.model, batch), pieces, ())
        return self._flat(output, rows_of(batch))

    def _choose_fallback(self, few: Batch) -> None:
        """Rows at once where torch can, else one after another; says which."""
        listed = ", ".join(self.plain[:3]) + (", …" if len(self.plain) > 3 else "")
        try:
            self._rows_at_once(few, slice(0, 1))
        except (RuntimeError, ValueError, TypeError, NotImplementedError, IndexError) as error:
            self.why_loop = str(error).splitlines()[0]
        how = "rows at once" if self.why_loop is None else f"row by row ({self.why_loop})"
        warnings.warn(
            f"kernel: {len(self.plain)} of {len(self.parameters)} parameters ({listed}) are used "
            f"in ways without a structure known here; their gradients are taken {how}.",
            stacklevel=4,
        )

    def _rows(self, batch: Batch, span: slice) -> Rows:
        """J of the plain parameters, written out."""
        if self.why_loop is None:
            return self._rows_at_once(batch, span)
        found = []
        for row in range(rows_of(batch)):
            leaves = {name: self.parameters[name].detach().requires_grad_() for name in self.plain}
            with torch.enable_grad():
                values = self._value(leaves, part_of(batch, row, row + 1))[0, span]
                of_row = []
                for place, value in enumerate(values):
                    gradients = torch.autograd.grad(
                        value, list(leaves.values()), retain_graph=place < len(values) - 1,
                        allow_unused=True, materialize_grads=True,
                    )  # fmt: skip
                    of_row.append(torch.cat([one.flatten() for one in gradients]))
            found.append(torch.stack(of_row))
        return Rows((torch.stack(found),))

    def _rows_at_once(self, batch: Batch, span: slice) -> Rows:
        leaves = {name: self.parameters[name].detach() for name in self.plain}

        def outputs(parameters: dict[str, Tensor], row: Any) -> Tensor:
            one: Batch = tree_map(lambda part: part[None], row)
            return self._value(parameters, one)[0, span]

        rows = dict(batch) if isinstance(batch, Mapping) else batch
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no rule for rows at once
            found = vmap(jacrev(outputs), in_dims=(None, 0))(leaves, rows)
        return Rows(tuple(found[name].flatten(2) for name in self.plain))


def _apart(ours: list[Tensor], expected: list[Tensor]) -> Tensor:
    """Distance of vectors in pieces; writes over `ours`."""
    if [one.shape for one in ours] != [one.shape for one in expected]:
        ours, expected = [torch.cat(ours)], [torch.cat(expected)]
    pieces = [a.sub_(b).norm() for a, b in zip(ours, expected, strict=True)]
    found: Tensor = torch.stack(pieces).norm()
    return found


class Opened:
    """Rows of a batch in parts: each with its forward, or, if there is one span, with none."""

    def __init__(self, tape: Tape, parts: Sequence[Batch], runs: Sequence[Run | None] | None):
        self.tape, self.parts, self.runs = tape, parts, runs
        self.only: list[Factor] | None = None

    def factors(self, span: slice) -> list[Factor]:
        """J of the outputs in `span` for all rows, by blocks of parameters."""
        if self.only is not None:
            return self.only
        rows = sum(rows_of(part) for part in self.parts)
        places = Places(rows)
        found: list[Gathered] = []
        for number, part in enumerate(self.parts):
            ran = self.tape._ran(part) if self.runs is None else self.runs[number]
            factors = self.tape.factors(part, ran, span, places)
            found = found or [Gathered(rows) for _ in factors]
            for block, factor in zip(found, factors, strict=True):
                block.add(factor)
        whole = [block.whole() for block in found]
        if self.runs is None:
            self.only = whole
        return whole


class _Call(nn.Module):
    """A model and its batch as one module without arguments."""

    def __init__(self, model: nn.Module, batch: Batch) -> None:
        super().__init__()
        self.model, self.batch = model, batch

    def forward(self) -> Any:
        return run(self.model, self.batch)
