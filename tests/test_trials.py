"""Trials: which units are drawn, who their partners are, and where steps lead.

Holds: tests of ``secant.trials``.
May import: pytest, torch, ``secant``.
"""

import pytest
import torch
from torch import nn

from secant.errors import InputError
from secant.trials import Design, Trials, draw_sample, features_at, positions, towards
from toy_tokens import feed_of

POINTS = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
NET = nn.Sequential(nn.Tanh())


def groups_of(feed):
    return {unit: batch.group for batch in feed.batches for unit in batch.units}


def test_the_sample_is_spread_over_the_groups_and_partners_stay_inside():
    feed = feed_of(NET, POINTS)
    sample = draw_sample(feed, Design(units=12))
    group = groups_of(feed)
    assert len({member.unit for member in sample}) == 12
    counts = [sum(member.group == place for member in sample) for place in range(5)]
    assert max(counts) - min(counts) <= 1
    for member in sample:
        assert len({member.unit, *member.partners}) == 3
        assert {group[unit] for unit in member.partners} == {group[member.unit]}


def test_it_depends_on_content_and_seed_not_on_order():
    def drawn(x, seed=0):
        sample = draw_sample(feed_of(NET, x), Design(units=12, seed=seed))
        return [(x[m.unit].tolist(), [x[p].tolist() for p in m.partners]) for m in sample]

    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    assert drawn(POINTS) == drawn(POINTS[order])
    assert drawn(POINTS) != drawn(POINTS, seed=1)


def test_duplicates_are_drawn_once():
    sample = draw_sample(feed_of(NET, POINTS[:30].repeat(3, 1)), Design(units=90))
    assert len(sample) <= 30
    assert len({member.code for member in sample}) == len(sample)
    for member in sample:
        assert len({member.unit % 30, *(unit % 30 for unit in member.partners)}) == 3


def test_too_few_units_are_an_input_error():
    with pytest.raises(InputError, match=r"3 groups of 3 distinct units each; got .* 4 distinct"):
        draw_sample(feed_of(NET, POINTS[:4].repeat(5, 1)), Design())


@pytest.mark.parametrize("design", [Design(units=2), Design(batch_size=0)])
def test_an_empty_design_is_an_input_error(design):
    with pytest.raises(InputError, match="at least 3 units and batches of 1"):
        draw_sample(feed_of(NET, POINTS), design)


def test_a_shorter_text_is_taken_again_from_its_start():
    x = torch.arange(8.0).view(1, 4, 2)
    other = 100 + torch.arange(6.0).view(1, 3, 2)
    here = torch.tensor([[False, True, True, True]])
    there = torch.tensor([[True, False, True]])
    ends = x + towards(x, here, other, there, "site")
    assert ends[0, 0].equal(x[0, 0])
    assert ends[0, 1:].equal(other[0, [0, 2, 0]])


def test_images_move_to_the_whole_partner():
    x, other = torch.randn(2, 3, 1, 4, 4)
    assert towards(x, None, other, None, "site").equal(other - x)
    with pytest.raises(InputError, match="two units must have one shape"):
        towards(x, None, other[..., 1:], None, "site")


def test_positions_must_be_the_masks():
    mask = torch.ones(2, 5, dtype=torch.bool)
    assert positions(torch.zeros(2, 5, 3), mask, "site") is mask
    assert positions(torch.zeros(2, 3), mask, "site") is None  # pooled: one row a unit
    with pytest.raises(InputError, match=r"must begin with the mask's \(2, 5\)"):
        positions(torch.zeros(2, 4, 3), mask, "site")


def test_steps_have_the_median_length():
    feed = feed_of(NET, POINTS)
    design = Design(units=15, batch_size=4)
    sample = draw_sample(feed, design)
    trials = Trials(NET, feed, features_at(["0"]), design)
    batches = [sample[:8], sample[8:]]
    steps = trials.steps(batches)
    lengths = [float((POINTS[m.partners[0]] - POINTS[m.unit]).double().norm()) for m in sample]
    assert steps["features", "0"] == pytest.approx(sorted(lengths)[7], rel=1e-6)
    for batch in batches:
        for key, trial in trials.of(batch, steps):
            for part in (trial.a, trial.b, trial.random):
                assert part.norm(dim=1).tolist() == pytest.approx([steps[key]] * len(batch))
            start = POINTS[[member.unit for member in batch]].double()
            for part, which in ((trial.a, 0), (trial.b, 1)):
                change = POINTS[[member.partners[which] for member in batch]].double() - start
                cosine = torch.nn.functional.cosine_similarity(part, change)
                assert cosine.tolist() == pytest.approx([1.0] * len(batch))
    assert trials.forwards_by_unit == 5 * 15
