"""Chord against closed forms; no model."""

import math
import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from secant.errors import InputError
from secant.gauges.chord import Chord

Map = Callable[[Tensor], Tensor]
ROUNDING = 1e-9  # float64 with sums of a few dozen terms, and some cancellation in the bend
FRACTIONS = st.floats(0.05, 0.95)


def square(x: Tensor) -> Tensor:
    return x.square()


def ends(seed: int, rows: int = 6) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x0, x1 = torch.randn(2, rows, 3, generator=draw, dtype=torch.float64)
    return x0, x1


def values(f: Map, x0: Tensor, x1: Tensor, t: float) -> tuple[Tensor, Tensor, Tensor]:
    return f(x0), f((1 - t) * x0 + t * x1), f(x1)


def reading(f: Map, x0: Tensor, x1: Tensor, t: float, is_beyond: bool = False) -> float:
    gauge = Chord(t, is_beyond=is_beyond)
    gauge.update(*values(f, x0, x1, t), *([x1 - x0] if is_beyond else []))
    return gauge.compute().item()


def test_affine_is_exactly_zero_on_representable_numbers() -> None:
    x0, x1 = torch.tensor([[-1.0, 4.0]]), torch.tensor([[3.0, 8.0]])
    assert reading(lambda x: 3 * x + 2, x0, x1, 0.25) == 0
    assert reading(lambda x: 3 * x + 2, x0, x1, 0.25, is_beyond=True) == 0


@pytest.mark.parametrize("t", [0.1, 0.5, 0.8])
@pytest.mark.parametrize(("a", "b"), [(1.0, 3.0), (-0.5, 2.0)])
def test_square_reads_difference_over_sum_of_the_ends_at_every_t(
    a: float, b: float, t: float
) -> None:
    """x²: bend t(1-t)(b-a)², chord t(1-t)|b²-a²|."""
    x0, x1 = torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64)
    assert reading(square, x0, x1, t) == pytest.approx(abs(b - a) / abs(a + b), rel=ROUNDING)


def test_sums_are_ratio_of_totals_not_mean_of_ratios() -> None:
    """Ends (0, 1) and (1, 3) under x²: √((1⁴ + 2⁴) / (1² + 8²))."""
    x0, x1 = torch.tensor([[0.0], [1.0]]).double(), torch.tensor([[1.0], [3.0]]).double()
    assert reading(square, x0, x1, 0.5) == pytest.approx(math.sqrt(17 / 65), rel=ROUNDING)


@pytest.mark.parametrize("t", [0.25, 0.5, 0.75])
def test_hinge_astride_zero(t: float) -> None:
    """relu on [-1, 1]: bend min(t, 1-t), so 1 / max(t, 1-t)."""
    x0, x1 = torch.tensor([-1.0], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)
    assert reading(torch.relu, x0, x1, t) == pytest.approx(1 / max(t, 1 - t), rel=ROUNDING)
    assert reading(torch.relu, x0 + 2, x1 + 2, t) == 0


@pytest.mark.parametrize("epsilon", [1.0, 1e-3])
def test_beyond_is_blind_to_the_residual(epsilon: float) -> None:
    """x + εx² on (1, 3): raw 2ε/(1 + 4ε) → 0 with ε, beyond 1/2 at every ε."""
    x0, x1 = torch.tensor([1.0], dtype=torch.float64), torch.tensor([3.0], dtype=torch.float64)

    def block(x: Tensor) -> Tensor:
        return x + epsilon * x.square()

    expected = 2 * epsilon / (1 + 4 * epsilon)
    assert reading(block, x0, x1, 0.5) == pytest.approx(expected, rel=ROUNDING)
    assert reading(block, x0, x1, 0.5, is_beyond=True) == pytest.approx(0.5, rel=ROUNDING)


@given(st.integers(0, 999), FRACTIONS, st.floats(0.01, 100), st.booleans())
def test_scale_shift_and_rotation_of_outputs_change_nothing(
    seed: int, t: float, scale: float, is_flipped: bool
) -> None:
    x0, x1 = ends(seed)
    turn, _ = torch.linalg.qr(ends(seed + 1, rows=3)[0])
    scale = -scale if is_flipped else scale
    plain = reading(square, x0, x1, t)
    turned = reading(lambda x: scale * square(x) @ turn + 1, x0, x1, t)
    assert turned == pytest.approx(plain, rel=1e-6)  # the shift cancels up to 100 times its size


@given(st.integers(0, 999), FRACTIONS)
def test_exchanging_the_ends_mirrors_t(seed: int, t: float) -> None:
    x0, x1 = ends(seed)
    there, back = reading(torch.tanh, x0, x1, t), reading(torch.tanh, x1, x0, 1 - t)
    assert there == pytest.approx(back, rel=1e-8)


@given(st.integers(0, 999), st.permutations([0, 1, 2]), st.booleans())
def test_batches_in_any_order_and_merged_states_agree(
    seed: int, order: list[int], is_beyond: bool
) -> None:
    x0, x1 = ends(seed)
    whole = reading(torch.tanh, x0, x1, 0.5, is_beyond)
    streamed, left, right = (Chord(0.5, is_beyond=is_beyond) for _ in range(3))
    streamed.update(
        torch.ones(1, 3), torch.zeros(1, 3), torch.zeros(1, 3), *[torch.ones(1, 3)] * is_beyond
    )
    streamed.reset()
    for index in order:
        rows = slice(2 * index, 2 * index + 2)
        start, stop = x0[rows], x1[rows]
        batch = [*values(torch.tanh, start, stop, 0.5), *([stop - start] if is_beyond else [])]
        streamed(*batch)
        (left if index else right).update(*batch)
    left.merge_state(right)
    assert streamed.compute().item() == pytest.approx(whole, rel=ROUNDING)
    assert left.compute().item() == pytest.approx(whole, rel=ROUNDING)


def test_pickling_keeps_state_and_settings() -> None:
    x0, x1 = ends(0)
    gauge = Chord(0.25)
    gauge.update(*values(square, x0, x1, 0.25))
    copy = pickle.loads(pickle.dumps(gauge))
    assert copy.t == 0.25
    assert copy.compute() == gauge.compute()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_floats_are_summed_in_float64(dtype: torch.dtype) -> None:
    """x² at 0, 16, 32: bend and quarter chord are 256, whose square overflows float16."""
    gauge = Chord()
    gauge.update(*torch.tensor([[0.0], [256.0], [1024.0]], dtype=dtype))
    assert gauge.compute().dtype == torch.float64
    assert gauge.compute().item() == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e200])
def test_what_is_no_number_reads_nan(bad: float) -> None:
    """1e200 is finite, its square is not; a bend of 0 over it is not a 0."""
    gauge = Chord()
    gauge.update(*torch.tensor([[-bad], [0.0], [bad]], dtype=torch.float64))
    assert math.isnan(gauge.compute().item())


@pytest.mark.parametrize("t", [0.0, 1.0, -0.5, math.nan])
def test_message_for_a_fraction_at_or_past_an_end(t: float) -> None:
    with pytest.raises(InputError, match=r"strictly between 0 and 1; got .*choose a point inside"):
        Chord(t)


def test_messages_for_what_update_cannot_use() -> None:
    x = torch.ones(2, 3)
    with pytest.raises(
        InputError, match=r"one shape; got \(2, 3\), \(2, 1\), \(2, 3\).*same batch"
    ):
        Chord().update(x, x[:, :1], x)
    with pytest.raises(InputError, match=r"floating point; got .*int64.*\.double\(\)"):
        Chord().update(x, x, x.long())
    with pytest.raises(InputError, match=r"needs `input_change`; got none. Pass how far"):
        Chord(is_beyond=True).update(x, x, x)
    with pytest.raises(InputError, match=r"takes `input_change`; got `input_change`. Construct"):
        Chord().update(x, x, x, x)
    with pytest.raises(InputError, match=r"one shape; got \(2, 3\), \(2, 1\)"):
        Chord(is_beyond=True).update(x, x, x, x[:, :1])


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_message_when_every_chord_has_length_zero() -> None:
    gauge = Chord()
    with pytest.raises(InputError, match=r"nonzero; all have length 0. Draw distinct points"):
        gauge.compute()
    gauge.update(torch.ones(2), torch.zeros(2), torch.ones(2))
    with pytest.raises(InputError, match=r"chord: .* all have length 0"):
        gauge.compute()
    identity = Chord(is_beyond=True)
    identity.update(torch.zeros(2), torch.ones(2), 2 * torch.ones(2), 2 * torch.ones(2))
    with pytest.raises(InputError, match="all have length 0"):
        identity.compute()
