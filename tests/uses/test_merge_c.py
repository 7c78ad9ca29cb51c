"""Merges in C: the bits of numpy's way for whatever bits come in, and torch's roundings.

Holds: tests of ``secant.uses.merge_c`` and ``secant.uses.merge_blocks``.
May import: pytest, hypothesis, numpy, torch, ``secant``.
"""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secant.engine.native import Native
from secant.errors import InputError
from secant.load.kinds import KINDS, all_finite, narrowed, widened
from secant.uses import merge_c
from secant.uses import merge_methods as methods
from secant.uses.merge_blocks import Change, Drop, Join, Plain, Trim
from secant.uses.merge_c import TILE, Compiled, blocks

in_c = pytest.mark.skipif(
    merge_c.NATIVE.library() is None, reason=merge_c.NATIVE.absence() or "the library is there"
)
FLOATS = [KINDS[name] for name in ("BF16", "F16", "F32", "F64")]
COUNTS = st.one_of(
    st.integers(0, 70),
    st.sampled_from([TILE - 1, TILE, TILE + 1, 2 * TILE, 3 * TILE + 17]),
)
WEIGHTS = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, 1e-9, 1e30, -1e-30]), st.floats(-2, 2, allow_subnormal=False)
)


def drawn(kind, kinship, count, models, seed):
    """Stored values of a base and models, from any place in memory.

    `kinship`: "near" are normal and differ by a tenth, "few" have few values and many equal
    changes, "any" are all finite bits (subnormal and huge ones too), "wild" all bits.
    """
    random = np.random.default_rng(seed)
    found = []
    for model in range(models + 1):
        offset = int(random.integers(0, 9))
        if kinship in ("any", "wild"):
            raw = random.bytes((count + offset) * kind.size)
            stored = np.frombuffer(raw, kind.stored).copy()
            values = np.abs(widened(stored, kind))
            if kinship == "any":
                stored[~np.isfinite(values)] = 0
        else:
            values = np.random.default_rng(seed).normal(size=count + offset)
            values += 0.1 * random.normal(size=values.shape) * (model > 0)
            values = np.round(values * 4) / 4 if kinship == "few" else values * 0.02
            stored = narrowed(values.astype(kind.working), kind)
        found.append(stored[offset:])
    return found


def both(call, *given):
    """What either way makes of the same, as bytes; and the trims afterwards."""
    made = []
    for way in (Plain(), blocks()):
        own = copy.deepcopy(given)
        with np.errstate(all="ignore"):
            found = call(way, *own)
        made.append((None if found is None else found.tobytes(), own))
    return made


KINSHIPS = st.sampled_from(["near", "few", "any", "wild"])


@in_c
@pytest.mark.parametrize("kind", FLOATS, ids=lambda kind: kind.name)
@given(KINSHIPS, COUNTS, st.lists(WEIGHTS, min_size=1, max_size=4), st.booleans(), st.integers(0))
@settings(max_examples=80, deadline=None)
def test_mixed_blocks_are_numpys(kind, kinship, count, weights, normalise, seed):
    stored = drawn(kind, kinship, count, len(weights), seed)[1:]
    if np.asarray(weights, kind.working).sum(dtype=kind.working) == 0:
        normalise = False
    (plain, _), (ours, _) = both(
        lambda way, stored: way.mixed(stored, weights, kind, normalise=normalise), stored
    )
    assert ours == plain


def asked(what, stored, base, kind, draw, seed):
    """The changes of the models, with what one method takes from them."""
    random = np.random.default_rng(seed)
    changes = []
    for one in stored:
        if what == "trim":
            with np.errstate(all="ignore"):
                sizes = methods.magnitudes(
                    methods.change(
                        widened(one, kind).copy(), widened(base, kind), kind
                    ), kind,
                )  # fmt: skip
            limits = [0, methods.nothing(kind, 1).value, *sizes.tolist()]
            limit = limits[draw(st.integers(0, len(limits) - 1))]
            changes.append(Change(one, Trim(limit, draw(st.integers(0, 40)))))
        elif what == "drop":
            density = draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
            keep = random.random(one.size + 3)[3:] < density
            changes.append(Change(one, drop=Drop(keep, density, draw(st.booleans()))))
        else:
            changes.append(Change(one))
    return changes


@in_c
@pytest.mark.parametrize("what", ["whole", "trim", "drop"])
@pytest.mark.parametrize("kind", FLOATS, ids=lambda kind: kind.name)
@given(st.data(), KINSHIPS, COUNTS, st.lists(WEIGHTS, min_size=1, max_size=4), st.integers(0))
@settings(max_examples=80, deadline=None)
def test_joined_blocks_are_numpys(kind, what, data, kinship, count, weights, seed):
    base, *stored = drawn(kind, kinship, count, len(weights), seed)
    changes = asked(what, stored, base, kind, data.draw, seed)
    scale = data.draw(st.sampled_from([1.0, 0.9, -2.0]))
    join = Join(weights, data.draw(st.booleans()), scale, data.draw(st.booleans()))
    (plain, theirs), (ours, own) = both(
        lambda way, base, changes: way.joined(base, changes, join, kind), base, changes
    )
    assert ours == plain
    if plain is not None:
        for one, other in zip(theirs[1], own[1], strict=True):
            assert one.trim == other.trim


@in_c
@pytest.mark.parametrize("kind", FLOATS, ids=lambda kind: kind.name)
@given(st.sampled_from(["near", "few", "any"]), COUNTS, st.integers(0))
@settings(max_examples=30, deadline=None)
def test_counts_are_numpys(kind, kinship, count, seed):
    """Of every digit, for a prefix that is there."""
    base, stored = drawn(kind, kinship, count, 1, seed)
    found = []
    for shift in range(8 * kind.size - methods.DIGIT_BITS, -1, -methods.DIGIT_BITS):
        with np.errstate(all="ignore"):
            change = methods.change(widened(stored, kind).copy(), widened(base, kind), kind)
        bits = methods.magnitudes(change, kind)
        first = int(bits[0]) >> shift + methods.DIGIT_BITS if count else 0
        for way in (Plain(), blocks()):
            counts = np.ones(1 << methods.DIGIT_BITS, np.uint32)
            with np.errstate(all="ignore"):
                way.count(base.copy(), stored.copy(), kind, (first, shift), counts)
            found.append(counts)
        assert found[-2].tolist() == found[-1].tolist()
    assert found[0].sum() == found[0].size + count


@in_c
@pytest.mark.parametrize("weight", [1.0, 0.5, 2.0**-9, 1 / 3, 3.0, 1.1, 2.0**-24])
@pytest.mark.parametrize(("name", "dtype"), [("BF16", torch.bfloat16), ("F16", torch.float16)])
def test_every_short_number_is_widened_and_rounded_as_torch_does(name, dtype, weight):
    every = np.arange(2**16, dtype=np.uint16).view(KINDS[name].stored)
    values = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(dtype)
    wanted = (values.float() * torch.tensor(weight)).to(dtype)
    kept = torch.isfinite(wanted).numpy()
    found = blocks().mixed([every[kept]], [weight], KINDS[name], normalise=False)
    assert found.tobytes() == wanted.view(torch.int16).numpy()[kept].tobytes()
    assert kept.sum() > 50_000


@in_c
@pytest.mark.parametrize("kind", FLOATS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("bad", [float("nan"), -float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 15, 16, TILE, 2 * TILE + 4])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_what_is_not_finite_is_seen_whatever_is_taken_from_it(kind, bad, place):
    """In the base or in a model, dropped, trimmed or of weight 0."""
    zeros = np.zeros(2 * TILE + 5, kind.stored)
    spoiled = zeros.copy()
    spoiled[place] = narrowed(np.array([bad], kind.working), kind)[0]
    assert not all_finite(spoiled, kind)
    keep, limit = np.zeros(zeros.size, np.bool_), methods.nothing(kind, 1).value
    for way in (Plain(), blocks()):
        for base, model in ((spoiled, zeros), (zeros, spoiled)):
            pair = [base.copy(), model.copy()]
            assert way.mixed(pair, [0.0, 0.0], kind, normalise=False) is None
            for how in ({}, {"trim": Trim(limit, 0)}, {"drop": Drop(keep, 0.0, True)}):
                for elects in (True, False):
                    join = Join([0.0], True, 1.0, elects)
                    changes = [Change(model.copy(), **how)]
                    assert way.joined(base.copy(), changes, join, kind) is None
        assert way.mixed([zeros.copy()], [1.0], kind, normalise=True) is not None


@in_c
def test_a_sum_that_leaves_the_range_is_seen_and_a_mean_without_weights_refused():
    for kind in FLOATS:
        largest = narrowed(np.full(3, torch.finfo(getattr(torch, kind.torch_name)).max), kind)
        for way in (Plain(), blocks()):
            both = [largest.copy(), largest.copy()]
            with np.errstate(over="ignore"):
                assert way.mixed(both, [1.0, 1.0], kind, normalise=False) is None
            with pytest.raises(InputError, match="weights 1, -1 sum to 0"):
                way.mixed([largest.copy(), largest], [1.0, -1.0], kind, normalise=True)


def test_without_a_library_it_is_numpy(monkeypatch, tmp_path):
    assert isinstance(blocks(), Plain if merge_c.NATIVE.library() is None else Compiled)
    monkeypatch.setattr(merge_c, "NATIVE", Native(tmp_path / "_merge.c", 1))
    assert isinstance(blocks(), Plain)
