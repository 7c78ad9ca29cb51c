"""Tangent and its radius against closed forms; no model."""

import math
import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from secant.errors import InputError
from secant.gauges.tangent import Radius, Tangent, radius, radius_bounds

Map = Callable[[Tensor], Tensor]
ROUNDING = 1e-9  # float64 with sums of a few dozen terms, and some cancellation


def square(x: Tensor) -> Tensor:
    return x.square()


def values(f: Map, x: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    base, jvp = torch.func.jvp(f, (x,), (step,))
    return base, f(x + step), jvp


def reading(f: Map, x: Tensor, step: Tensor, is_beyond: bool = False) -> float:
    gauge = Tangent(is_beyond=is_beyond)
    gauge.update(*values(f, x, step), *([step] if is_beyond else []))
    return gauge.compute().item()


def points(seed: int, rows: int = 6) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x, step = torch.randn(2, rows, 3, generator=draw, dtype=torch.float64)
    return x, step


def test_affine_is_exactly_zero_on_representable_numbers() -> None:
    x, step = torch.tensor([[-1.0, 4.0]]), torch.tensor([[3.0, 8.0]])
    assert reading(lambda x: 3 * x + 2, x, step) == 0
    assert reading(lambda x: 3 * x + 2, x, step, is_beyond=True) == 0


@pytest.mark.parametrize(("x", "h"), [(1.0, 2.0), (1.0, 1e-3), (-0.3, 0.2), (0.0, 5.0)])
def test_square_has_the_known_departure(x: float, h: float) -> None:
    """x²: departure h², change 2xh + h²."""
    got = reading(
        square, torch.tensor([x], dtype=torch.float64), torch.tensor([h], dtype=torch.float64)
    )
    assert got == pytest.approx(abs(h) / abs(2 * x + h), rel=ROUNDING)


@pytest.mark.parametrize(("x", "h", "expected"), [(-1, 2, 1), (1, -2, 1), (1, -4, 3), (1, 2, 0)])
def test_hinge_shows_only_when_the_step_crosses_it(x: float, h: float, expected: float) -> None:
    got = reading(torch.relu, torch.tensor([float(x)]), torch.tensor([float(h)]))
    assert got == expected


def test_sums_are_ratio_of_totals_not_mean_of_ratios() -> None:
    """x² from 0 by 1 and from 1 by 2: √((1 + 16) / (1 + 64))."""
    x, step = torch.tensor([[0.0], [1.0]]).double(), torch.tensor([[1.0], [2.0]]).double()
    assert reading(square, x, step) == pytest.approx(math.sqrt(17 / 65), rel=ROUNDING)


@pytest.mark.parametrize("epsilon", [1.0, 1e-3])
def test_beyond_is_blind_to_the_residual(epsilon: float) -> None:
    """x + εx² at 1 by 2: raw 4ε/(2 + 8ε) → 0 with ε, beyond 1/2 at every ε."""
    x, step = torch.tensor([1.0], dtype=torch.float64), torch.tensor([2.0], dtype=torch.float64)

    def block(x: Tensor) -> Tensor:
        return x + epsilon * x.square()

    assert reading(block, x, step) == pytest.approx(4 * epsilon / (2 + 8 * epsilon), rel=ROUNDING)
    assert reading(block, x, step, is_beyond=True) == pytest.approx(0.5, rel=ROUNDING)


@given(st.integers(0, 999), st.floats(0.01, 100), st.booleans())
def test_scale_shift_and_rotation_of_outputs_change_nothing(
    seed: int, scale: float, is_flipped: bool
) -> None:
    x, step = points(seed)
    turn, _ = torch.linalg.qr(points(seed + 1, rows=3)[0])
    scale = -scale if is_flipped else scale
    turned = reading(lambda x: scale * square(x) @ turn + 1, x, step)
    assert turned == pytest.approx(reading(square, x, step), rel=1e-6)  # the shift costs digits


@given(st.integers(0, 999), st.permutations([0, 1, 2]), st.booleans())
def test_batches_in_any_order_and_merged_states_agree(
    seed: int, order: list[int], is_beyond: bool
) -> None:
    x, step = points(seed)
    whole = reading(torch.tanh, x, step, is_beyond)
    streamed, left, right = (Tangent(is_beyond=is_beyond) for _ in range(3))
    streamed.update(*torch.eye(3), *[torch.ones(3)] * is_beyond)
    streamed.reset()
    for index in order:
        rows = slice(2 * index, 2 * index + 2)
        batch = [*values(torch.tanh, x[rows], step[rows]), *([step[rows]] if is_beyond else [])]
        streamed(*batch)
        (left if index else right).update(*batch)
    left.merge_state(right)
    assert streamed.compute().item() == pytest.approx(whole, rel=ROUNDING)
    assert left.compute().item() == pytest.approx(whole, rel=ROUNDING)


def test_pickling_keeps_state_and_settings() -> None:
    gauge = Tangent(is_beyond=True)
    x, step = points(0)
    gauge.update(*values(square, x, step), step)
    copy = pickle.loads(pickle.dumps(gauge))
    assert copy.is_beyond
    assert copy.compute() == gauge.compute()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_floats_are_summed_in_float64(dtype: torch.dtype) -> None:
    """A change of 1024 squared overflows float16; its tangent predicts half of it."""
    gauge = Tangent()
    gauge.update(*torch.tensor([[0.0], [1024.0], [512.0]], dtype=dtype))
    assert gauge.compute().dtype == torch.float64
    assert gauge.compute().item() == 0.5


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e200])
def test_what_is_no_number_reads_nan(bad: float) -> None:
    """1e200 is finite, its square is not; a departure of 0 over it is not a 0."""
    gauge = Tangent()
    gauge.update(*torch.tensor([[0.0], [bad], [bad]], dtype=torch.float64))
    assert math.isnan(gauge.compute().item())


def test_messages_for_what_update_cannot_use() -> None:
    x = torch.ones(2, 3)
    with pytest.raises(
        InputError, match=r"one shape; got \(2, 3\), \(2, 1\), \(2, 3\).*same batch"
    ):
        Tangent().update(x, x[:, :1], x)
    with pytest.raises(InputError, match=r"floating point; got .*int64.*\.double\(\)"):
        Tangent().update(x, x, x.long())
    with pytest.raises(InputError, match=r"needs `input_change`; got none. Pass how far"):
        Tangent(is_beyond=True).update(x, x, x)
    with pytest.raises(InputError, match=r"takes `input_change`; got `input_change`. Construct"):
        Tangent().update(x, x, x, x)
    with pytest.raises(InputError, match=r"one shape; got \(2, 3\), \(2, 1\)"):
        Tangent(is_beyond=True).update(x, x, x, x[:, :1])


def test_message_when_nothing_changes() -> None:
    gauge = Tangent()
    gauge.update(torch.ones(2), torch.ones(2), torch.zeros(2))
    with pytest.raises(InputError, match=r"tangent: .*all have length 0. Draw distinct points"):
        gauge.compute()
    identity = Tangent(is_beyond=True)
    identity.update(torch.zeros(2), torch.ones(2), torch.ones(2), torch.ones(2))
    with pytest.raises(InputError, match="all have length 0"):
        identity.compute()


def test_radius_of_the_square() -> None:
    """x² at 1 reads ρ/(2 + ρ), which is 0.1 at ρ = 2/9."""
    rhos = torch.logspace(-3, 1, 401, dtype=torch.float64)
    got = radius(rhos.tolist(), (rhos / (2 + rhos)).tolist())
    assert not got.is_censored
    assert got.value == pytest.approx(2 / 9, rel=1e-4)  # squared log spacing 0.023² / 8 at most
    assert got.lower <= got.value <= got.upper


@given(st.floats(0.02, 0.99), st.floats(0.3, 3.0))
def test_radius_is_exact_for_a_power_law(threshold: float, power: float) -> None:
    """The value (ρ / 100)^p passes c at 100 c^(1/p), however coarse the grid."""
    rhos = [1e-6, 1e-3, 1.0, 100.0]
    got = radius(rhos, [(rho / 100) ** power for rho in rhos], threshold)
    if got.value is None:  # passed before the grid began: c^(1/p) below 1e-8
        assert 100 * threshold ** (1 / power) < 1e-6
    else:
        assert got.value == pytest.approx(100 * threshold ** (1 / power), rel=ROUNDING)


@given(st.floats(0.02, 0.99))
def test_radius_after_a_zero_is_linear_in_the_logarithm(threshold: float) -> None:
    """The value rises from 0 to 1 over ρ = 1 to 10000, so it passes c at 10000^c."""
    got = radius([1.0, 10000.0], [0.0, 1.0], threshold)
    assert got.value == pytest.approx(10000**threshold, rel=ROUNDING)


@given(st.floats(1e-3, 1e3))
def test_radius_scales_with_the_grid(scale: float) -> None:
    rhos, curve = [0.1, 1.0, 10.0], [0.01, 0.05, 0.4]
    one, other = radius(rhos, curve).value, radius([scale * rho for rho in rhos], curve).value
    assert one is not None
    assert other == pytest.approx(scale * one, rel=ROUNDING)


def test_radius_takes_the_first_crossing() -> None:
    got = radius([1.0, 10.0, 100.0, 1000.0], [0.0, 0.2, 0.0, 0.2])
    assert got.value == pytest.approx(math.sqrt(10), rel=ROUNDING)
    assert (got.lower, got.upper) == (1.0, 10.0)


def test_radius_beyond_either_end_is_censored_and_not_a_number_of_its_own() -> None:
    """Touching the threshold is not passing it."""
    assert radius([1.0, 10.0], [0.0, 0.1]) == Radius(None, True, 10.0, None, 0.1)
    assert radius([1.0, 10.0], [0.2, 0.4]) == Radius(None, True, 0.0, 1.0, 0.1)


@pytest.mark.parametrize("hole", [math.nan, math.inf])
def test_radius_is_nan_when_the_curve_breaks_before_it_passes(hole: float) -> None:
    got = radius([1.0, 10.0, 100.0], [0.0, hole, 0.5])
    assert math.isnan(got.value or 0.0)
    assert (got.is_censored, got.lower, got.upper) == (False, 1.0, 100.0)
    broken_to_the_end = radius([1.0, 10.0], [hole, 0.0])
    assert math.isnan(broken_to_the_end.value or 0.0)
    assert (broken_to_the_end.lower, broken_to_the_end.upper) == (0.0, None)
    assert radius([1.0, 10.0, 100.0], [0.0, 0.2, hole]).value == pytest.approx(math.sqrt(10))


@given(st.floats(0.02, 0.5), st.floats(0.3, 3.0), st.floats(1.1, 3.0))
def test_bounds_of_a_power_law_are_its_own_over_the_factor(
    threshold: float, power: float, factor: float
) -> None:
    """(ρ / 100)^p known to a factor k passes c between 100 (c / k)^(1/p) and 100 (c k)^(1/p)."""
    rhos = [1e-12, 1e-3, 1.0, 1e6]
    curve = [(rho / 100) ** power for rho in rhos]
    got = radius_bounds(
        rhos, [value / factor for value in curve], [value * factor for value in curve], threshold
    )
    expected = [100 * (threshold * end) ** (1 / power) for end in (1 / factor, factor)]
    assert got == pytest.approx(expected, rel=ROUNDING)


@pytest.mark.parametrize(
    ("lows", "highs", "expected"),
    [
        ([0.0, 0.0], [0.0, 0.1], (10.0, None)),  # it holds on the whole grid
        ([0.0, 0.01], [0.2, 0.4], (None, None)),  # it may pass anywhere, or nowhere
        ([0.2, 0.4], [0.3, 0.5], (None, 1.0)),  # it has passed at the first point
        ([0.01, 0.2], [0.11, 0.5], (None, 10 ** (math.log(10) / math.log(20)))),
    ],
)
def test_bounds_off_the_grid_are_none(
    lows: list[float], highs: list[float], expected: tuple[float | None, float | None]
) -> None:
    got = radius_bounds([1.0, 10.0], lows, highs)
    assert got == tuple(None if end is None else pytest.approx(end) for end in expected)


def test_a_low_end_of_zero_does_not_pass_before_the_next_point() -> None:
    got = radius_bounds([1.0, 10.0], [0.0, 0.2], [0.05, 0.4])
    assert got is not None
    assert got[1] == pytest.approx(10.0, rel=0.01)


def test_bounds_need_every_interval_before_they_pass() -> None:
    rhos, lows, highs = [1.0, 10.0, 100.0], [0.01, 0.2, 0.3], [0.02, 0.3, 0.4]
    whole = radius_bounds(rhos, lows, highs)
    assert whole is not None
    assert radius_bounds(rhos, [*lows[:2], math.nan], [*highs[:2], math.nan]) == whole
    assert radius_bounds(rhos, [math.nan, *lows[1:]], [math.nan, *highs[1:]]) is None
    assert radius_bounds(rhos, [lows[0], math.nan, lows[2]], highs) is None


def test_messages_of_radius() -> None:
    with pytest.raises(InputError, match=r"one length, at least 1; got 1 and 2. Pass one value"):
        radius([1.0], [0.1, 0.2])
    with pytest.raises(InputError, match="at least 1; got 0 and 0"):
        radius([], [])
    for rhos in ([1.0, 1.0], [2.0, 1.0], [0.0, 1.0], [1.0, math.nan], [1.0, math.inf]):
        with pytest.raises(InputError, match=r"positive, finite and increasing; got .*Sort them"):
            radius(rhos, [0.0, 1.0])
    for threshold in (0.0, math.nan, math.inf):
        with pytest.raises(InputError, match=r"`threshold` must be .*; got .*Pass a fraction"):
            radius([1.0, 2.0], [0.0, 1.0], threshold)
