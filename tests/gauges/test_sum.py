"""Sum and Homogeneity against closed forms; no model."""

import math
import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from secant.errors import InputError
from secant.gauges.sum import Homogeneity, Sum, sum_sums

Map = Callable[[Tensor], Tensor]
ROUNDING = 1e-9  # float64 with sums of a few dozen terms, and some cancellation
SCALES = st.floats(-3, 3).filter(lambda s: abs(s) > 0.05 and abs(s - 1) > 0.05)


def square(x: Tensor) -> Tensor:
    return x.square()


def column(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64).unsqueeze(1)


def parts(f: Map, x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return f(x + a + b) - f(x), f(x + a) - f(x), f(x + b) - f(x)


def added(f: Map, x: Tensor, a: Tensor, b: Tensor, is_beyond: bool = False) -> float:
    gauge = Sum(is_beyond=is_beyond)
    gauge.update(*parts(f, x, a, b), *([a, b] if is_beyond else []))
    return gauge.compute().item()


def scaled(f: Map, x: Tensor, u: Tensor, s: float, is_beyond: bool = False) -> float:
    gauge = Homogeneity(is_beyond=is_beyond)
    gauge.update(f(x + s * u) - f(x), f(x + u) - f(x), s, *([u] if is_beyond else []))
    return gauge.compute().item()


def points(seed: int, rows: int = 6) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(3, rows, 3, generator=draw, dtype=torch.float64)


@pytest.mark.parametrize("is_beyond", [False, True])
def test_affine_is_exactly_zero_on_representable_numbers(is_beyond: bool) -> None:
    x, a, b = column(1, -4), column(2, 8), column(-5, 3)
    assert added(lambda x: 3 * x + 2, x, a, b, is_beyond) == 0
    assert scaled(lambda x: 3 * x + 2, x, a, -1.5, is_beyond) == 0


@pytest.mark.parametrize(("x", "a", "b"), [(0.0, 1.0, 1.0), (1.0, 2.0, -0.5), (-3.0, 0.1, 4.0)])
def test_square_has_the_known_interaction(x: float, a: float, b: float) -> None:
    """x²: interaction 2ab, parts 2xa + a² and 2xb + b²; √2 at x = 0, a = b."""
    expected = 2 * abs(a * b) / math.hypot(2 * x * a + a * a, 2 * x * b + b * b)
    assert added(square, column(x), column(a), column(b)) == pytest.approx(expected, rel=ROUNDING)


@pytest.mark.parametrize(("x", "u", "s"), [(0.0, 1.0, 2.0), (1.0, 2.0, -1.0), (-3.0, 0.1, 0.5)])
def test_square_has_the_known_departure_from_scaling(x: float, u: float, s: float) -> None:
    """x²: departure s(s - 1)u², scaled change s(2xu + u²)."""
    expected = abs(s - 1) * abs(u) / abs(2 * x + u)
    assert scaled(square, column(x), column(u), s) == pytest.approx(expected, rel=ROUNDING)


def test_hinge_scales_forward_but_neither_backward_nor_adds() -> None:
    """relu at 0, a = 1, b = -1: Δ_ab = 0, Δ_a = 1, Δ_b = 0."""
    zero, one = column(0), column(1)
    assert added(torch.relu, zero, one, -one) == 1
    assert added(torch.relu, zero, one, one) == 0
    assert scaled(torch.relu, zero, one, 3) == 0
    assert scaled(torch.relu, zero, one, -1) == 1


def test_product_of_two_inputs_shows_only_in_what_acts_on_both() -> None:
    """F(p, q) = pq at (1, 1), a = (1, 0), b = (0, 1): 4-1-1-1 = 1 over √2."""

    def product(x: Tensor) -> Tensor:
        return x.prod(dim=1, keepdim=True)

    x = torch.ones(1, 2).double()
    a, b = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.0, 1.0]]).double()
    assert added(product, x, a, b) == pytest.approx(1 / math.sqrt(2), rel=ROUNDING)
    assert added(lambda x: x.square(), x, a, b) == 0


def test_sums_are_ratios_of_totals_not_means_of_ratios() -> None:
    """x² at 0: (1, 1) gives 2 over 1, 1 and (1, 2) gives 4 over 1, 4; u = 1 and 2 at x = 1, 0."""
    got = added(square, column(0, 0), column(1, 1), column(1, 2))
    assert got == pytest.approx(math.sqrt((4 + 16) / (2 + 17)), rel=ROUNDING)
    got = scaled(square, column(1, 0), column(1, 2), 2)
    assert got == pytest.approx(math.sqrt((2**2 + 8**2) / (6**2 + 8**2)), rel=ROUNDING)


@pytest.mark.parametrize("epsilon", [1.0, 1e-3])
def test_beyond_is_blind_to_the_residual(epsilon: float) -> None:
    """x + εx² at 0, steps of 1: raw √2 ε/(1 + ε) and ε/(1 + ε), beyond √2 and 1 at every ε."""
    zero, one = column(0), column(1)

    def block(x: Tensor) -> Tensor:
        return x + epsilon * x.square()

    raw = epsilon / (1 + epsilon)
    assert added(block, zero, one, one) == pytest.approx(math.sqrt(2) * raw, rel=ROUNDING)
    assert added(block, zero, one, one, True) == pytest.approx(math.sqrt(2), rel=ROUNDING)
    assert scaled(block, zero, one, 2) == pytest.approx(raw, rel=ROUNDING)
    assert scaled(block, zero, one, 2, True) == pytest.approx(1, rel=ROUNDING)


@given(st.integers(0, 999), st.floats(0.01, 100), st.booleans(), SCALES)
def test_scale_shift_and_rotation_of_outputs_change_nothing(
    seed: int, scale: float, is_flipped: bool, s: float
) -> None:
    x, a, b = points(seed)
    turn, _ = torch.linalg.qr(points(seed + 1, rows=3)[0])
    scale = -scale if is_flipped else scale

    def turned(x: Tensor) -> Tensor:
        return scale * square(x) @ turn + 1

    # The shift costs digits.
    assert added(turned, x, a, b) == pytest.approx(added(square, x, a, b), rel=1e-6)
    assert scaled(turned, x, a, s) == pytest.approx(scaled(square, x, a, s), rel=1e-6)


@given(st.integers(0, 999))
def test_exchanging_the_two_changes_changes_nothing(seed: int) -> None:
    x, a, b = points(seed)
    swapped = added(torch.tanh, x, b, a)
    assert added(torch.tanh, x, a, b) == pytest.approx(swapped, rel=ROUNDING)


@given(st.integers(0, 999), st.permutations([0, 1, 2]), st.booleans())
def test_batches_in_any_order_and_merged_states_agree(
    seed: int, order: list[int], is_beyond: bool
) -> None:
    x, a, b = points(seed)
    both, first, second = parts(torch.tanh, x, a, b)
    twice = torch.tanh(x + 2 * a) - torch.tanh(x)
    total = [both, first, second, *([a, b] if is_beyond else [])]
    ray = [twice, first, 2.0, *([a] if is_beyond else [])]
    for gauge, whole in ((Sum, total), (Homogeneity, ray)):
        reference, streamed, left, right = (gauge(is_beyond=is_beyond) for _ in range(4))
        reference.update(*whole)
        streamed.update(*whole)
        streamed.reset()
        for index in order:
            rows = slice(2 * index, 2 * index + 2)
            batch = [entry if isinstance(entry, float) else entry[rows] for entry in whole]
            streamed(*batch)
            (left if index else right).update(*batch)
        left.merge_state(right)
        expected = pytest.approx(reference.compute().item(), rel=ROUNDING)
        assert streamed.compute().item() == expected
        assert left.compute().item() == expected


def test_pickling_keeps_state_and_settings() -> None:
    x, a, b = points(0)
    total, ray = Sum(is_beyond=True), Homogeneity(is_beyond=True)
    total.update(*parts(square, x, a, b), a, b)
    ray.update(b, a, 2.0, x)
    for gauge in (total, ray):
        copy = pickle.loads(pickle.dumps(gauge))
        assert copy.is_beyond
        assert copy.compute() == gauge.compute()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_floats_are_summed_in_float64(dtype: torch.dtype) -> None:
    """1024² overflows float16."""
    total, ray = Sum(), Homogeneity()
    total.update(*torch.tensor([[0.0], [1024.0], [0.0]], dtype=dtype))
    ray.update(*torch.tensor([[4096.0], [1024.0]], dtype=dtype), 2.0)
    for gauge in (total, ray):
        assert gauge.compute().dtype == torch.float64
        assert gauge.compute().item() == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e200])
def test_what_is_no_number_reads_nan(bad: float) -> None:
    """1e200 is finite, its square is not; a departure of 0 over it is not a 0."""
    total, ray = Sum(), Homogeneity()
    total.update(column(bad), column(bad), column(0))
    ray.update(column(0.5 * bad), column(bad), 0.5)
    assert math.isnan(total.compute().item())
    assert math.isnan(ray.compute().item())


def test_messages_for_what_update_cannot_use() -> None:
    x = torch.ones(2, 3)
    with pytest.raises(
        InputError, match=r"one shape; got \(2, 3\), \(2, 1\), \(2, 3\).*same batch"
    ):
        Sum().update(x, x[:, :1], x)
    with pytest.raises(InputError, match=r"floating point; got .*int64.*\.double\(\)"):
        Sum().update(x, x, x.long())
    with pytest.raises(InputError, match=r"`input_change_b`; got `input_change_a`. Pass how far"):
        Sum(is_beyond=True).update(x, x, x, x)
    with pytest.raises(InputError, match=r"`input_change_b`; got `input_change_a`. Pass how far"):
        sum_sums(x, x, x, x)
    with pytest.raises(InputError, match=r"got `input_change_a`, `input_change_b`. Construct"):
        Sum().update(x, x, x, x, x)
    with pytest.raises(InputError, match=r"homogeneity: .*one shape; got \(2, 3\), \(2, 1\)"):
        Homogeneity().update(x, x[:, :1], 2.0)
    with pytest.raises(InputError, match=r"needs `input_change`; got none. Pass how far"):
        Homogeneity(is_beyond=True).update(x, x, 2.0)
    for s in (0, 1, math.nan, math.inf):
        with pytest.raises(InputError, match=r"neither 0 nor 1; got .*take another, such as 2"):
            Homogeneity().update(x, x, s)


def test_messages_when_nothing_changes() -> None:
    one, zero = torch.ones(2), torch.zeros(2)
    total, branch, ray = Sum(), Sum(is_beyond=True), Homogeneity()
    total.update(one, zero, zero)
    branch.update(one, one, one, one, one)
    ray.update(one, zero, 2.0)
    for name, gauge in (("sum", total), ("sum", branch), ("homogeneity", ray)):
        with pytest.raises(InputError, match=f"{name}: .*all have length 0. Draw distinct points"):
            gauge.compute()
