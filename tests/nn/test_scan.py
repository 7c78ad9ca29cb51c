"""Scans: every route beside the naive loop, derivatives, laws, and what is not finite.

Holds: tests of ``secant.nn.scan`` and of its rows and torch forms.
May import: hypothesis, pytest, torch, ``secant.nn``, ``scan_reference``.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from scan_reference import drawn, naive, route_or_skip
from secant.errors import InputError
from secant.nn import scan
from secant.nn.scan_torch import doubled

ROUTES = ["c", "numba", "triton", "chunked", "loop", "associative"]
WITH_MATRICES = ["c", "chunked", "loop", "associative"]
# Shapes of a beside b of (2, 23, 3, 4): one number, still, still for each batch entry, still for
# some lanes; the same with time, and repeated over batch, lanes or both.
SHAPES = [
    (), (3, 4), (2, 1, 3, 4), (3, 1),
    (2, 23, 3, 4), (1, 23, 3, 4), (2, 23, 1, 1), (2, 23, 3, 1), (1, 23, 1, 4),
]  # fmt: skip


def weighed(states, weights):
    """A real number that depends on every state differently."""
    return (states * weights.conj()).real.sum()


def assert_same(found, expected):
    """To 1e-12 of the largest number, in float64."""
    scale = max(1.0, float(expected.detach().abs().max()))
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert float((found - expected).detach().abs().max()) <= 1e-12 * scale


def assert_as_naive(inputs, **how):
    """States and first gradients, as the naive loop has them."""
    route = how.pop("route")
    inputs = [one.requires_grad_() for one in inputs]
    weights = torch.randn(
        inputs[1].shape, dtype=inputs[1].dtype, generator=torch.Generator().manual_seed(3)
    )
    found, expected = scan(*inputs, route=route, **how), naive(*inputs, **how)
    assert_same(found, expected)
    grads = (torch.autograd.grad(weighed(one, weights), inputs) for one in (found, expected))
    for ours, theirs in zip(*grads, strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_every_route_is_the_naive_loop(route, shape, dtype):
    route_or_skip(route)
    a, b, first = drawn(shape, dtype), drawn((2, 23, 3, 4), dtype, 1), drawn((2, 3, 4), dtype, 2)
    assert_as_naive([a, b, first], route=route)
    assert_as_naive([a.detach(), b.detach()], route=route, reverse=True)


@pytest.mark.parametrize("route", WITH_MATRICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize(
    ("shape", "blocks"),
    [
        ((3, 3), ()),
        ((3, 3), (2,)),
        ((2, 3, 3), (2,)),
        ((1, 23, 1, 3, 3), (2,)),
        ((2, 23, 3, 3), ()),
        ((1, 23, 2, 1, 3, 3), (2, 2)),
        ((2, 23, 2, 2, 3, 3), (2, 2)),
        ((2, 1, 2, 19, 19), (2,)),
        ((2, 23, 19, 19), ()),
    ],
)
def test_matrices_are_the_naive_loop(route, dtype, shape, blocks):
    route_or_skip(route)
    n = shape[-1]
    # Divided by n, no row sums to more than 1: errors do not grow.
    a, b = drawn(shape, dtype) / n, drawn((2, 23, *blocks, n), dtype, 1)
    first = drawn((2, *blocks, n), dtype, 2)
    assert_as_naive([a, b, first], route=route, is_matrix=True)
    assert_as_naive([a.detach(), b.detach()], route=route, is_matrix=True, reverse=True)
    turned = a.detach().mH, b.detach().movedim(1, -1).contiguous().movedim(-1, 1)
    assert_as_naive(turned, route=route, is_matrix=True)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("lanes", [3, 10])
def test_a_transposed_first_state(route, lanes):
    """Kernels take it row by row, wherever its numbers lie."""
    route_or_skip(route)
    a, b = drawn((lanes,)), drawn((2, 5, lanes), seed=1)
    assert_as_naive([a, b, drawn((lanes, 2), seed=2).mT], route=route)


@pytest.mark.parametrize("route", ROUTES)
def test_conjugates_without_lanes(route):
    """(batch, length) alone, conjugated and negated lazily, in both passes."""
    route_or_skip(route)
    a, b = drawn((2, 6), torch.complex128), drawn((2, 6), torch.complex128, 1)
    assert_same(scan(a.conj(), b.conj(), route=route), naive(a.conj(), b.conj()))
    assert_same(scan(a.real, b.conj().imag, route=route), naive(a.real, b.conj().imag))
    b.requires_grad_()
    grads = (
        torch.autograd.grad((one.conj() * a).imag.sum(), b)[0]
        for one in (scan(a, b, route=route), naive(a, b))
    )
    assert_same(*grads)


@pytest.mark.parametrize("is_matrix", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [0, 1, 2, 7, 16])
def test_doubling_is_the_naive_loop(is_matrix, reverse, length):
    """What a trace is given in place of a kernel."""
    more = (3,) if is_matrix else ()
    for shape in ((1, 1, 3), (2, length, 3)):
        a, first = drawn((*shape, *more)), drawn((2, 3), seed=2)
        b = drawn((2, length, 3), torch.complex128, seed=1)
        if length == 0:
            found = doubled(a, b, first, is_matrix=is_matrix, is_reverse=reverse)
            assert found.shape == b.shape
            continue
        for initial in (None, first):
            found = doubled(a, b, initial, is_matrix=is_matrix, is_reverse=reverse)
            assert_same(found, naive(a, b, initial, is_matrix=is_matrix, reverse=reverse))


class Scanned(torch.nn.Module):
    """A scan as part of a model."""

    def forward(self, a, b):
        return 2 * scan(a, b, reverse=True)


def test_an_exported_scan_needs_no_kernel(tmp_path):
    """The program is torch's own operations, whoever loads it."""
    a, b = drawn((3,)), drawn((2, 9, 3), seed=1)
    torch.export.save(torch.export.export(Scanned(), (a, b)), tmp_path / "scan.pt2")
    program = torch.export.load(tmp_path / "scan.pt2")
    assert_same(program.module()(a, b), 2 * naive(a, b, reverse=True))


def test_fake_tensors_have_shapes_and_no_numbers():
    with FakeTensorMode():
        found = scan(torch.ones(3), torch.ones(2, 9, 3, dtype=torch.complex64))
    assert found.shape == (2, 9, 3)
    assert found.dtype == torch.complex64


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("length", [0, 1, 2])
@pytest.mark.parametrize("places", [(), (1,), (5,)])
def test_short_sequences(route, length, places):
    route_or_skip(route)
    a = drawn((2, length, *places)).requires_grad_()
    b, first = drawn((2, length, *places), seed=1), drawn((2, *places), seed=2).requires_grad_()
    found = scan(a, b, first, route=route)
    assert found.shape == b.shape
    grad_a, grad_first = torch.autograd.grad(found.sum(), (a, first))
    assert grad_a.shape == a.shape
    if length == 0:
        assert not grad_first.any()
    else:
        assert_same(found, naive(a, b, first))
        assert_same(grad_first, torch.autograd.grad(naive(a, b, first).sum(), first)[0])


@pytest.mark.parametrize("route", ["c", "numba"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("shape", [(9000,), (3, 7, 9000), (3, 7, 1)])
def test_lanes_past_a_block_and_threads(route, dtype, shape):
    """More lanes than the kernel holds at once, and more threads than batch entries."""
    route_or_skip(route)
    threads = torch.get_num_threads()
    torch.set_num_threads(5)
    try:
        assert_as_naive([drawn(shape, dtype), drawn((3, 7, 9000), dtype, 1)], route=route)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("route", ["c", "numba"])
def test_sequences_past_a_piece(route):
    """Inputs that need buffers, over several of them, both ways."""
    route_or_skip(route)
    a, b = drawn((50, 900, 1)), drawn((50, 900, 7), seed=1)
    for reverse in (False, True):
        assert_as_naive([a.detach(), b.detach()], route=route, reverse=reverse)


@pytest.mark.parametrize("route", ROUTES)
def test_inputs_in_any_layout(route):
    """Transposed, strided, flipped and conjugated views; a gradient that is one number."""
    route_or_skip(route)
    base, whole = drawn((5, 20, 2), torch.complex128), drawn((2, 20, 5), torch.complex128, 1)
    views = [base.movedim(0, 2).movedim(1, 0).conj(), whole.mT.contiguous().mT, whole.conj()]
    views += [drawn((4, 40, 10), torch.complex128, 2)[::2, 1::2, ::2], -whole.conj().imag + 0j]
    for a in (*views, base[:, 0, 0].conj(), whole[:, :1].conj()):
        for b in views:
            assert_same(scan(a, b, route=route), naive(a, b))
    a, b = (one.real.clone().requires_grad_() for one in views[:2])
    grads = [torch.autograd.grad(run(a, b).sum(), (a, b))
             for run in (lambda a, b: scan(a, b, route=route), naive)]  # fmt: skip
    for ours, theirs in zip(*grads, strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize(
    ("route", "is_matrix"), [("c", False), ("c", True), ("chunked", False), ("chunked", True)]
)
@pytest.mark.parametrize(("dtype", "reverse"), [(torch.float64, True), (torch.complex128, False)])
def test_derivatives_of_every_order(route, is_matrix, dtype, reverse):
    """Backward, double backward, forward and forward over backward, against differences."""
    route_or_skip(route)
    places = (2, 2) if is_matrix else (2,)
    b, first = drawn((1, 3, 2), dtype, 1).requires_grad_(), drawn((1, 2), dtype, 2).requires_grad_()

    def run(a, b, first):
        return scan(a, b, first, is_matrix=is_matrix, reverse=reverse, route=route)

    for shape in (places, (1, 3, *places)):
        a = (drawn(shape, dtype, 4) / 2).requires_grad_()
        # A derivative along random directions shows any error, in a tenth of the time.
        assert gradcheck(run, (a, b, first), check_forward_ad=True, fast_mode=True)
        assert gradgradcheck(run, (a, b, first), check_fwd_over_rev=True, fast_mode=True)


def test_functional_derivatives():
    """vmap over any of the inputs; Jacobians of both kinds; a Hessian."""
    a, b, first = drawn((3,)), drawn((4, 2, 6, 3), seed=1), drawn((4, 2, 3), seed=2)
    many = torch.stack([scan(a, x) for x in b])
    assert torch.equal(torch.vmap(lambda x: scan(a, x))(b), many)
    assert torch.equal(torch.vmap(lambda x: scan(a, x), in_dims=2, out_dims=2)(b.movedim(0, 2)),
                       many.movedim(0, 2))  # fmt: skip
    moving = drawn((4, 2, 6, 3), seed=5)
    found = torch.vmap(lambda m, i: scan(m, b[0], i))(moving, first)
    assert torch.equal(found, torch.stack([scan(m, b[0], i) for m, i in zip(moving, first)]))  # noqa: B905

    def total(a):
        return scan(a, b[0]).square().sum()

    def naive_total(a):
        return naive(a, b[0]).square().sum()

    assert_same(torch.func.jacfwd(total)(a), torch.func.jacrev(naive_total)(a))
    assert_same(torch.func.jacrev(total)(a), torch.func.jacrev(naive_total)(a))
    assert_same(torch.func.hessian(total)(a), torch.func.hessian(naive_total)(a))


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_carries_float32(route, dtype):
    """Each state is the float32 one, rounded once: half a unit in the last place.

    Triton's interpreter cuts float32 off where a device rounds it, by up to a whole unit.
    """
    route_or_skip(route)
    a, b = torch.tensor(0.984375, dtype=dtype), drawn((2, 900, 3), torch.float32).to(dtype)
    a.requires_grad_()
    exact = naive(a.double(), b.double())
    found = scan(a, b, route=route)
    assert found.dtype == dtype
    unit = torch.finfo(dtype).eps / (1 if route == "triton" and dtype == torch.bfloat16 else 2)
    # The float32 carry adds some 1e-5 of the largest state.
    assert bool(((found.double() - exact).abs() <= 1.01 * unit * exact.abs() + 1e-4).all())
    (grad,) = torch.autograd.grad(found.float().sum(), a)
    (wide,) = torch.autograd.grad(exact.sum(), a)
    assert grad.dtype == dtype
    assert float(grad) == pytest.approx(float(wide), rel=4 * unit)


@pytest.mark.parametrize("route", ROUTES)
def test_types_that_meet(route):
    route_or_skip(route)
    real, b = drawn((5,)), drawn((2, 9, 5), torch.complex128, 1)
    assert_same(scan(real, b, route=route), naive(real.to(b.dtype), b))
    turned = drawn((2, 9, 5), torch.complex128, 2)
    assert_same(scan(turned, b.real, route=route), naive(turned, b.real.to(b.dtype)))
    a, c = (one.clone().requires_grad_() for one in (real, turned.real))
    grads = torch.autograd.grad(weighed(scan(a, b + c, route=route), turned), (a, c))
    for ours, theirs in zip(
        grads, torch.autograd.grad(weighed(naive(a, b + c), turned), (a, c)), strict=True
    ):
        assert_same(ours, theirs)
    # A real sequence among complex coefficients has a real gradient.
    grads = torch.autograd.grad(weighed(scan(turned, c, route=route), b), c)
    theirs = torch.autograd.grad(weighed(naive(turned, c.to(b.dtype)), b), c)
    assert_same(grads[0], theirs[0])
    assert scan(torch.ones(5), torch.ones(2, 9, 5).bfloat16(), route=route).dtype == torch.float32


@pytest.mark.parametrize("route", ROUTES)
def test_near_one_and_zero_are_as_exact_as_the_loop(route):
    """a = 1 counts, a = 0 forgets, 1 - 1e-12 has a closed form; no route divides or takes logs."""
    route_or_skip(route)
    ones = torch.ones(1, 1000, 1, dtype=torch.float64)
    count = torch.arange(1.0, 1001.0, dtype=torch.float64).view(1, -1, 1)
    assert torch.equal(scan(torch.ones(1).double(), ones, route=route), count)
    b = drawn((1, 1000, 1))
    assert torch.equal(scan(torch.zeros(1).double(), b, route=route), b)
    near = torch.tensor([1 - 1e-12], dtype=torch.float64)
    closed = -torch.expm1(count * near.log()) / (1 - near)
    # 1 - near is known to 1e-4 of itself only, and cancels to first order: n - n² 1e-12 / 2.
    assert torch.allclose(scan(near, ones, route=route), closed, rtol=1e-9)
    forgets = torch.ones(1, 1000, 1, dtype=torch.float64)
    forgets[0, 500] = 0
    assert torch.equal(scan(forgets, ones, route=route)[0, 500:], count[0, :500])


@pytest.mark.parametrize("route", ROUTES)
def test_a_nan_harms_nothing_before_it(route):
    route_or_skip(route)
    a, b = drawn((2, 60, 9)) * 0.5 + 0.4, drawn((2, 60, 9), seed=1)
    clean = scan(a, b, route=route)
    for spoiled, reverse in ((a, False), (b, False), (b, True)):
        hurt = spoiled.clone()
        hurt[1, 33, 4] = float("nan")
        given = (hurt, b) if spoiled is a else (a, hurt)
        found = scan(*given, reverse=reverse, route=route)
        after = slice(None, 34) if reverse else slice(33, None)
        bad = torch.zeros_like(b, dtype=torch.bool)
        bad[1, after, 4] = True
        assert torch.equal(found.isnan(), bad)
        if not reverse:
            assert_same(found[~bad], clean[~bad])


def test_gradients_before_a_nan_coefficient_are_unharmed():
    """What a state is asked for comes from later steps; a nan at time 0 is in none of them."""
    a, b = drawn((1, 20, 9)), drawn((1, 20, 9), seed=1).requires_grad_()
    a[0, 0] = float("nan")
    for route in ("loop", "chunked"):
        (grad,) = torch.autograd.grad(scan(a, b, route=route)[0, 0].sum(), b, retain_graph=True)
        assert torch.equal(grad[0, 0], torch.ones(9).double())


@pytest.mark.parametrize("route", ROUTES)
def test_overflow_names_the_first_step(route):
    """2^t leaves float32 at 2^128, float16 at 2^16; the state is 2^(t+1) - 1 at time t."""
    route_or_skip(route)
    ones = torch.ones(2, 300, 1)
    ones[0] = 0
    where = r"at time 127 \(step 128 of 300, batch entry 1\), where entries of `a` reach 2 in"
    with pytest.raises(InputError, match="range of float32; finite inputs left it " + where):
        scan(torch.tensor(2.0), ones, route=route)
    with pytest.raises(InputError, match=r"at time 172 \(step 128 of 300"):
        scan(torch.tensor(2.0), ones, reverse=True, route=route)
    with pytest.raises(InputError, match=r"range of float16.* at time 15 "):
        scan(torch.tensor(2.0).half(), ones.half(), route=route)
    # A state in half precision may be small again at the end.
    falls = torch.cat([torch.full((1, 20, 1), 2.0), torch.full((1, 20, 1), 0.25)], dim=1).half()
    with pytest.raises(InputError, match=r"at time 15 "):
        scan(falls, ones[1:, :40].half(), route=route)


@pytest.mark.parametrize("route", ROUTES)
def test_what_came_infinite_is_passed_on(route):
    route_or_skip(route)
    b = torch.ones(1, 300, 3)
    b[0, 5, 1] = float("inf")
    found = scan(torch.tensor(0.5), b, route=route)
    assert torch.equal(found.isinf(), (torch.arange(300) >= 5).view(1, -1, 1) & b[:, 5:6].isinf())


@pytest.mark.parametrize("route", ROUTES)
def test_products_may_leave_the_range_where_no_state_does(route):
    route_or_skip(route)
    a, b = torch.full((1, 400, 1), 1e3), torch.zeros(1, 400, 1)
    assert not scan(a, b, route=route).any()
    b[0, -1] = 1
    assert float(scan(a, b, route=route).sum()) == 1


@pytest.mark.parametrize("route", ["c", "numba"])
def test_a_million_steps_take_memory_for_their_states_only(route):
    """No tensor but the states is larger than 10 MB, where a float32 copy would be 16 MB more."""
    route_or_skip(route)
    b, made = torch.ones(1, 1_000_000, 8, dtype=torch.bfloat16), {}

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.untyped_storage().nbytes() > 10 << 20:
                made[out.untyped_storage().data_ptr()] = out.dtype
            return out

    with Watch(), torch.no_grad():
        found = scan(torch.tensor(0.5, dtype=torch.bfloat16), b, route=route)
    assert set(made) - {b.untyped_storage().data_ptr()} == {found.untyped_storage().data_ptr()}
    assert bool((found[0, 20:] == 2).all())


@pytest.mark.parametrize("route", ROUTES)
def test_autocast_leaves_the_scan_alone(route):
    route_or_skip(route)
    is_matrix = route in WITH_MATRICES
    a, b = drawn((3, 3) if is_matrix else (3,), torch.float32) / 3, drawn((2, 50, 3), torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = scan(a, b, is_matrix=is_matrix, route=route)
    assert torch.equal(found, scan(a, b, is_matrix=is_matrix, route=route))


LAWS = settings(deadline=None, max_examples=25)
SIZES = st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 20))
KINDS = st.tuples(
    st.sampled_from(["c", "numba", "chunked", "loop"]),
    st.booleans(),
    st.sampled_from([torch.float64, torch.complex128]),
    st.integers(0, 10_000),
)


def case(sizes, kind):
    """A route that is here, coefficients (still or not), a sequence and a first state."""
    route, is_still, dtype, seed = kind
    if route in ("c", "numba"):
        route = None
    batch, _, places = sizes
    a = drawn((places,) if is_still else sizes, dtype, seed)
    return route, a, drawn(sizes, dtype, seed + 1), drawn((batch, places), dtype, seed + 2)


@given(SIZES, KINDS, st.integers(0, 40))
@LAWS
def test_splitting_and_carrying_the_state_changes_nothing(sizes, kind, at):
    route, a, b, first = case(sizes, kind)
    at = min(at, sizes[1])
    parts = (a, a) if a.ndim == 1 else (a[:, :at], a[:, at:])
    head = scan(parts[0], b[:, :at], first, route=route)
    tail = scan(parts[1], b[:, at:], head[:, -1] if at else first, route=route)
    assert_same(torch.cat([head, tail], dim=1), scan(a, b, first, route=route))


@given(SIZES, KINDS, st.floats(-3, 3))
@LAWS
def test_states_are_linear_in_sequence_and_first_state(sizes, kind, factor):
    route, a, b, first = case(sizes, kind)
    other, start = b.flip(1), first.flip(0)
    joined = scan(a, b + factor * other, first + factor * start, route=route)
    apart = scan(a, b, first, route=route) + factor * scan(a, other, start, route=route)
    assert_same(joined, apart)


@given(SIZES, KINDS)
@LAWS
def test_reverse_is_the_scan_of_the_flipped(sizes, kind):
    route, a, b, first = case(sizes, kind)
    turned = a if a.ndim == 1 else a.flip(1)
    found = scan(a, b, first, reverse=True, route=route)
    assert_same(found, scan(turned, b.flip(1), first, route=route).flip(1))
