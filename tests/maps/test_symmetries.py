"""Symmetries: what is found is one, what is not one is not found, and none is missed.

Holds: tests of ``secant.maps.symmetries``, ``axes``, ``axis_rules`` and ``permutations``.
May import: pytest, torch, transformers, ``secant``, ``nets_to_align``.
"""

import copy
from collections import Counter

import pytest
import torch
from torch import nn

from nets_to_align import CASES, mlp, run_once, scrambled
from secant.maps.graph import export
from secant.maps.permutations import permute, random_orders
from secant.maps.symmetries import find_symmetries


def found_in(model, args=(), kwargs=None):
    return find_symmetries(export(model, "m", args, kwargs or {}), model)


def outline(symmetries):
    """How many symmetries there are of each size, orders and depth."""
    return Counter((s.size, s.copies, len(s.within)) for s in symmetries)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_symmetry_leaves_the_function_as_it_is(case):
    """All together, and each alone moves at least one tensor."""
    model, args, kwargs = case.build(torch.float64)
    symmetries = found_in(model, args, kwargs)
    assert outline(symmetries) == case.expected
    before = run_once(model, args, kwargs)
    orders = random_orders(symmetries, torch.Generator().manual_seed(0))
    moved = copy.deepcopy(model)
    permute(moved, symmetries, orders)
    # Hugging Face's RMSNorm takes its root in float32, whatever the model's dtype.
    tolerance = 1e-6 if case.has_float32 else 1e-10
    difference = (run_once(moved, args, kwargs) - before).abs().max() / before.abs().max()
    assert difference < tolerance
    for symmetry in symmetries:
        alone = copy.deepcopy(model)
        identity = {a: torch.arange(o.shape[-1]).expand_as(o) for a, o in orders.items()}
        permute(alone, symmetries, identity | {symmetry.axis: identity[symmetry.axis].flip(-1)})
        names = [
            name
            for (name, p), q in zip(model.named_parameters(), alone.parameters(), strict=True)
            if not torch.equal(p, q)
        ]
        assert set(names) <= {name for name, _ in symmetry.places}
        assert len(names) >= 1


def test_a_wrong_order_is_no_symmetry():
    """Swapping two units in one tensor alone changes the function: the check above can fail."""
    model, args, kwargs = CASES[0].build(torch.float64)
    before = run_once(model, args, kwargs)
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight.flip(0))
    assert (run_once(model, args, kwargs) - before).abs().max() > 1e-3


def test_an_mlp_has_its_hidden_layers_and_says_what_stays():
    found = found_in(mlp(64, 512, 512, 10), (torch.randn(2, 64),))
    assert [(s.size, s.places) for s in found] == [
        (512, (("0.weight", 0), ("0.bias", 0), ("2.weight", 1))),
        (512, (("2.weight", 0), ("2.bias", 0), ("4.weight", 1))),
    ]
    assert {(p.size, p.why) for p in found.pinned} == {
        (64, "it is the input's"), (10, "it is the output's"),
    }  # fmt: skip


class Calls(nn.Module):
    """Two linear layers around a function of the hidden units."""

    def __init__(self, function, width=8, out=None):
        super().__init__()
        self.first, self.last = nn.Linear(4, width), nn.Linear(out or width, 3)
        self.function = function
        self.register_buffer("wave", torch.arange(float(width)), persistent=False)
        self.register_buffer("flat", torch.ones(width), persistent=False)

    def forward(self, x):
        return self.last(self.function(self.first(x), self))


PINNED = {
    "a constant that varies": lambda h, m: h * m.wave,
    "cumulative sum": lambda h, m: h.cumsum(-1),
    "flip": lambda h, m: h + h.flip(-1),
    "roll": lambda h, m: h + h.roll(1, -1),
    "strided slices": lambda h, m: torch.cat([h[:, ::2], -h[:, 1::2]], -1),
    "sort": lambda h, m: h.sort(-1).values,
    "unknown": lambda h, m: torch.fft.rfft(h).abs().repeat_interleave(2, -1)[:, :8],
    "first half alone": lambda h, m: h[:, :4].repeat(1, 2),
}


@pytest.mark.parametrize("name", PINNED)
def test_what_counts_on_order_is_pinned(name):
    found = found_in(Calls(PINNED[name]).eval(), (torch.randn(2, 4),))
    sizes = [s.size for s in found]
    assert 8 not in sizes
    assert any(("first.weight", 0) in p.places for p in found.pinned)


def test_blocks_that_do_not_fit_are_pinned():
    function = lambda h, m: (h.view(-1, 3, 2) + h.view(-1, 2, 3).mT).flatten(1)  # noqa: E731
    found = found_in(Calls(function, width=6).eval(), (torch.randn(2, 4),))
    assert len(found) == 0
    assert any("blocks" in p.why for p in found.pinned)


def test_bits_that_are_all_one_axis():
    """(4, 2) tied to its own (2, 4): three axes of size 2 in one order, so only a reversal."""
    function = lambda h, m: (h.view(-1, 4, 2) + h.view(-1, 2, 4).mT).flatten(1)  # noqa: E731
    (symmetry,) = found_in(Calls(function).eval(), (torch.randn(2, 4),))
    assert symmetry.size == 2


FREE = {
    "a constant that does not": lambda h, m: h * m.flat,
    "softmax": lambda h, m: h.softmax(-1),
    "layer norm": lambda h, m: nn.functional.layer_norm(h, (8,)),
    "sum and norm": lambda h, m: h / h.norm(dim=-1, keepdim=True) + h.sum(-1, keepdim=True),
    "to and fro": lambda h, m: h.t().clone().mT,
    "where": lambda h, m: torch.where(h > 0, h, h.exp()),
    "einsum with itself": lambda h, m: h * torch.einsum("bi,bi->b", h, h)[:, None],
}


@pytest.mark.parametrize("name", FREE)
def test_what_does_not_is_free(name):
    found = found_in(Calls(FREE[name]).eval(), (torch.randn(2, 4),))
    assert [s.size for s in found] == [8]


def test_halves_that_are_added_go_together():
    """Gates as in SwiGLU, cut from one layer: one order for both halves."""
    found = found_in(
        Calls(lambda h, m: h[:, :4].sigmoid() * h[:, 4:], out=4).eval(), (torch.randn(2, 4),)
    )
    assert [(s.size, len(s.places)) for s in found] == [(4, 3)]


def test_positions_beyond_the_example_hold_the_stream_together():
    """A position table is permuted whole, however much of it the example reads."""

    class Places(nn.Module):
        def __init__(self):
            super().__init__()
            self.word, self.place = nn.Embedding(9, 8), nn.Parameter(torch.randn(1, 20, 8))
            self.head = nn.Linear(8, 3)

        def forward(self, ids):
            return self.head(self.word(ids) + self.place[:, : ids.shape[1]])

    model = Places()
    (symmetry,) = found_in(model, (torch.randint(0, 9, (2, 5)),))
    moved = copy.deepcopy(model)
    found = found_in(model, (torch.randint(0, 9, (2, 5)),))
    permute(moved, found, random_orders(found, torch.Generator().manual_seed(0)))
    longer = torch.randint(0, 9, (2, 20))
    torch.testing.assert_close(moved(longer), model(longer))
    assert ("place", 2) in symmetry.places


def test_scrambled_models_differ():
    """The helper that other tests rely on moves what it says."""
    model, args, kwargs = CASES[0].build(torch.float32)
    other = scrambled(model, args, kwargs)
    assert not torch.equal(model[0].weight, other[0].weight)
