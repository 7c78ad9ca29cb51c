"""Number types: every rounding is torch's.

Holds: tests of ``secant.load.kinds``.
May import: pytest, numpy, torch, ``secant``.
"""

import numpy as np
import pytest
import torch

from secant.load.kinds import KINDS, all_finite, common_kind, narrowed, round_to, widened


def floats():
    """Float32 of all exponents, and exact ties between neighbouring bfloat16."""
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
    ties = bits[:50_000] & 0xFFFF0000 | 0x8000
    found = np.concatenate([bits, ties, ties + 1, ties - 1]).view(np.float32)
    return found[np.isfinite(found)]


@pytest.mark.parametrize("name", ["BF16", "F16", "F32", "F64"])
def test_narrowing_and_widening_are_torchs(name):
    kind, values = KINDS[name], floats()
    dtype = getattr(torch, kind.torch_name)
    expected = torch.from_numpy(values).to(dtype)
    stored = narrowed(values.astype(kind.working), kind)
    assert stored.tobytes() == expected.view(torch.uint8).numpy().tobytes()
    exact = expected.to(torch.float64 if name == "F64" else torch.float32).numpy()
    assert widened(stored, kind).tobytes() == exact.tobytes()
    assert round_to(values.astype(kind.working), kind).tobytes() == exact.tobytes()


def test_every_bfloat16_comes_back():
    stored = np.arange(2**16, dtype=np.uint16)
    values = widened(stored, KINDS["BF16"])
    finite = np.isfinite(values)
    assert (narrowed(values[finite].copy(), KINDS["BF16"]) == stored[finite]).all()


@pytest.mark.parametrize("name", ["BF16", "F16", "F32", "F64"])
@pytest.mark.parametrize("bad", [float("nan"), -float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_seen_among_the_largest(name, bad):
    dtype = getattr(torch, KINDS[name].torch_name)
    largest = torch.finfo(dtype).max
    values = torch.tensor([largest, -largest, 0.0, -0.0, 1.0, 1.0], dtype=dtype)

    def stored(tensor):
        return tensor.view(torch.uint8).numpy().view(KINDS[name].stored)

    assert all_finite(stored(values), KINDS[name])
    assert all_finite(stored(-values), KINDS[name])
    assert all_finite(stored(values[:0]), KINDS[name])
    values[3] = bad
    assert not all_finite(stored(values), KINDS[name])


@pytest.mark.parametrize("one", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("other", ["F64", "F32", "F16", "BF16"])
def test_common_types_are_torchs_promotion(one, other):
    both = torch.promote_types(*(getattr(torch, KINDS[k].torch_name) for k in (one, other)))
    assert f"torch.{common_kind([KINDS[one], KINDS[other]]).torch_name}" == str(both)
