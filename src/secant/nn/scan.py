"""A linear recurrence over time, h_t = a_t h_{t-1} + b_t, as a differentiable scan.

Holds: the function ``scan``.
May import: torch, ``secant.nn`` (the scan's checks, routes, rows and torch forms).
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from secant.nn import scan_torch
from secant.nn.scan_blocks import blocks_backward, blocks_forward
from secant.nn.scan_checks import are_finite, checked, is_finite_at_the_end, report_overflow
from secant.nn.scan_routes import asked_of, chosen_route, is_traced, passes_of
from secant.nn.scan_rows import as_type, work_dtype

IN_TORCH: Final = {
    "chunked": scan_torch.chunked,
    "loop": scan_torch.loop,
    "associative": scan_torch.associative,
}
TAKE_PRODUCTS: Final = ("triton", "chunked", "associative")


class Plan(NamedTuple):
    """How one scan runs; ``is_checked``: whether an overflow is an error."""

    route: str
    is_matrix: bool
    is_reverse: bool
    is_checked: bool

    def back(self) -> Plan:
        """That of the pass back: the other way, and gradients may leave the range."""
        return self._replace(is_reverse=not self.is_reverse, is_checked=False)


def _states(a: Tensor, b: Tensor, initial: Tensor | None, plan: Plan) -> Tensor:
    """All states, by the plan's route.

    Products of many coefficients may leave the range where no state does. Routes that take such
    products are run again as the loop, which takes none, where they are not finite: in chunks that
    reaches the last state, in tiles and trees, which make each row of other products, it may not.
    """
    if b.is_meta:  # shapes alone: nothing to add up, and no overflow to look for
        return torch.empty_like(b, dtype=torch.promote_types(a.dtype, b.dtype))
    passes = passes_of(plan.route)
    found: Tensor | None
    if plan.is_matrix and plan.route == "c":
        found = blocks_forward(a, b, initial, is_reverse=plan.is_reverse)
    elif passes is not None:
        found = passes.forward(a, b, initial, is_reverse=plan.is_reverse)
    else:
        with torch.autocast(b.device.type, enabled=False):
            found = IN_TORCH[plan.route](
                a, b, initial, is_matrix=plan.is_matrix, is_reverse=plan.is_reverse
            )
    if found is not None and _is_sound(found, plan):
        return found
    if plan.route in TAKE_PRODUCTS:
        return _states(a, b, initial, plan._replace(route="loop"))
    assert found is not None
    if are_finite(a, b, initial):
        report_overflow(a, found, plan.is_reverse)
    return found


def _is_sound(found: Tensor, plan: Plan) -> bool:
    """Whether states are finite, as far as their route and plan ask for a look at them."""
    if plan.route == "associative":
        return are_finite(found)
    if plan.route == "chunked" or (plan.is_checked and plan.route != "triton"):
        return is_finite_at_the_end(found, plan.is_reverse)
    return True  # the Triton kernel has looked itself


def _before(states: Tensor, initial: Tensor | None, is_reverse: bool) -> Tensor:
    """The state that each step starts from."""
    first = torch.zeros_like(states[:, :1]) if initial is None else initial.unsqueeze(1)
    first = first.to(states.dtype)
    if is_reverse:
        return torch.cat([states[:, 1:], first], dim=1)
    return torch.cat([first, states[:, :-1]], dim=1)


def _later(a: Tensor, is_reverse: bool) -> Tensor:
    """The coefficients of the step after each; of the last, zeros, which no step follows."""
    if a.shape[1] == 1:
        return a
    none = torch.zeros_like(a[:, :1])
    return torch.cat([none, a[:, :-1]] if is_reverse else [a[:, 1:], none], dim=1)


def _matrix_terms(grad: Tensor, before: Tensor, a: Tensor) -> Tensor:
    """Outer products of gradients and states, summed over all that shares a matrix."""
    if a.shape[1] > 1:
        terms = grad.unsqueeze(-1) * before.conj().unsqueeze(-2)
        return terms.sum_to_size(a.shape)
    rows, columns = grad.movedim(1, -1), before.conj().movedim(1, -2)
    return (rows @ columns).unsqueeze(1).sum_to_size(a.shape)


def _gradients(
    a: Tensor,
    upstream: Tensor,
    states: Tensor,
    initial: Tensor | None,
    plan: Plan,
    needs_a: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of a, b and the initial state, as a scan the other way: differentiable again."""
    upstream, states = (one.to(work_dtype(one.dtype)) for one in (upstream, states))
    if plan.is_matrix and plan.route == "c" and not torch.is_grad_enabled():
        grad = blocks_backward(a, upstream, is_reverse=plan.is_reverse)
    else:
        turned = _later(a, plan.is_reverse)
        turned = turned.mH if plan.is_matrix else turned.conj()
        grad = _scanned(turned, upstream, None, plan.back())
    grad_a = None
    if needs_a:
        before = _before(states, initial, plan.is_reverse)
        if plan.is_matrix:
            grad_a = _matrix_terms(grad, before, a)
        else:
            grad_a = (before.conj() * grad).sum_to_size(a.shape)
    edge = -1 if plan.is_reverse else 0
    first = a[:, edge].mH if plan.is_matrix else a[:, edge].conj()
    return grad_a, grad, scan_torch.apply(first, grad[:, edge], plan.is_matrix)


def _first_gradients(
    a: Tensor,
    b_dtype: torch.dtype,
    upstream: Tensor,
    states: Tensor,
    initial: Tensor | None,
    plan: Plan,
    needs_a: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """`_gradients` in their own types: in one fused pass where the route has one and no second
    derivative is asked for."""
    passes = passes_of(plan.route)
    if passes is not None and not plan.is_matrix and not torch.is_grad_enabled():
        found = passes.backward(
            *(a, b_dtype, upstream, states, initial), is_reverse=plan.is_reverse, needs_a=needs_a
        )
        if found is not None:
            return found
        plan = plan._replace(route="loop")
    grad_a, grad_b, first = _gradients(a, upstream, states, initial, plan, needs_a)
    return None if grad_a is None else as_type(grad_a, a.dtype), as_type(grad_b, b_dtype), first


def _scanned(a: Tensor, b: Tensor, initial: Tensor | None, plan: Plan) -> Tensor:
    found: Tensor = _Scan.apply(a, b, initial, plan)  # type: ignore[no-untyped-call]
    return found


class _Scan(torch.autograd.Function):
    """The scan with its derivatives, each of them a scan; vmap joins its dimension to the batch."""

    @staticmethod
    def forward(a: Tensor, b: Tensor, initial: Tensor | None, plan: Plan) -> Tensor:
        if b.numel() == 0:
            return b.new_empty(b.shape, dtype=torch.promote_types(a.dtype, b.dtype))
        return _states(a, b, initial, plan)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        a, b, initial, plan = inputs
        ctx.plan, ctx.b_dtype = plan, b.dtype
        ctx.save_for_backward(a, initial, output)
        ctx.save_for_forward(a, initial, output)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        a, initial, states = ctx.saved_tensors
        if states.numel() == 0:
            none = None if initial is None else torch.zeros_like(initial)
            return (
                torch.zeros_like(a),
                upstream.new_zeros(states.shape, dtype=ctx.b_dtype),
                none,
                None,
            )
        grad_a, grad_b, first = _first_gradients(
            a, ctx.b_dtype, upstream, states, initial, ctx.plan, ctx.needs_input_grad[0]
        )
        return grad_a, grad_b, None if initial is None else as_type(first, initial.dtype), None

    @staticmethod
    def jvp(
        ctx: Any, a_dot: Tensor | None, b_dot: Tensor | None, initial_dot: Tensor | None, _: None
    ) -> Tensor:
        a, initial, states = ctx.saved_tensors
        dot = torch.zeros_like(states) if b_dot is None else b_dot.to(states.dtype)
        if a_dot is not None:
            before = _before(states, initial, ctx.plan.is_reverse)
            dot = dot + scan_torch.apply(a_dot, before, ctx.plan.is_matrix).to(dot.dtype)
        return _scanned(a, dot, initial_dot, ctx.plan._replace(is_checked=False))

    @staticmethod
    def vmap(
        info: Any,
        in_dims: Any,
        a: Tensor,
        b: Tensor,
        initial: Tensor | None,
        plan: Plan,
    ) -> tuple[Tensor, int]:
        at_a, at_b, at_initial, _ = in_dims
        size = info.batch_size

        def joined(x: Tensor, at: int | None, batch: int) -> Tensor:
            x = x.unsqueeze(0) if at is None else x.movedim(at, 0)
            return x.expand(size, batch, *x.shape[2:]).flatten(0, 1)

        batch = b.shape[0] if at_b is None else b.movedim(at_b, 0).shape[1]
        if at_a is not None or a.shape[0] != 1:
            a = joined(a, at_a, batch)
        b = joined(b, at_b, batch)
        initial = None if initial is None else joined(initial, at_initial, batch)
        found = _scanned(a, b, initial, plan)
        return found.view(size, batch, *found.shape[1:]), 0


def scan(
    a: Tensor,
    b: Tensor,
    initial: Tensor | None = None,
    *,
    is_matrix: bool = False,
    reverse: bool = False,
    route: str | None = None,
) -> Tensor:
    r"""All states of a linear recurrence.

    .. math:: h_t = a_t h_{t-1} + b_t

    ``b``: (batch, length, ...), time is dimension 1. ``a`` broadcasts to b's shape: (features,)
    for coefficients that stay, (batch or 1, length, ...) for those that change. With
    ``is_matrix`` the last dimension n of b is a vector and ``a`` broadcasts to (batch, length, ...,
    n, n): blocks and heads are dimensions before it. ``initial``, the state before the first step,
    broadcasts to b's shape without time; it is zero where it is left out. ``reverse`` runs from
    the last time to the first: h_t = a_t h_{t+1} + b_t. Returns the states, of b's shape.

    Numbers: float32, float64, complex64, complex128, float16, bfloat16; real and complex may meet,
    half and single precision too (the result has torch's promoted type), single and double not.
    The state is carried in float32 at least; results in half precision are rounded from it. No
    route divides by coefficients or takes their logarithm: a = 0 and \|a\| near 1 are exact.

    Derivatives: any number of times, backward and forward, through ``torch.func`` too. A first
    backward is one fused pass on the routes "c", "numba" and "triton" (of coefficients that stay,
    summed over time in float64, a few steps at a time), with matrices a scan and products.
    Gradients that leave the range are infinite, as elsewhere in torch.

    Not finite: nan or infinity in the inputs harms its own place from there on (with
    ``is_matrix`` the places it is multiplied into) and nothing before. If finite inputs lead out
    of the range it is an error that names the step. The look at the last state that finds this
    waits for the device.

    Traced by ``torch.export`` or with fake tensors, whatever the route, the scan goes into the
    graph as log2(length) products of whole sequences, with no look at their range.

    ``route``: one of `scan_routes`; all give the same numbers to rounding. Cost: reading inputs and
    writing states once on the fused routes; some passes more elsewhere. Memory: inputs and states,
    and a constant; float copies of half precision in the torch routes, and on CUDA devices terms of
    b's size for coefficients that the batch shares but time does not.

    Raises: `InputError` for shapes, types or devices that do not fit, a route that cannot run, or
    an overflow. Source: Martin and Cundy 2018, arXiv:1709.04057, for the recurrence as a scan and
    its gradient as one; the fused pass and the chunks are ours.
    """
    a, initial = checked(a, b, initial, is_matrix)
    if is_traced(b):
        return scan_torch.doubled(a, b, initial, is_matrix=is_matrix, is_reverse=reverse)
    chosen = chosen_route(route, asked_of(a, b, is_matrix))
    return _scanned(a, b, initial, Plan(chosen, is_matrix, reverse, is_checked=True))
