"""The parts of a replacement: runs from the middle, costs, losses, refits, curves, healing.

Holds: tests of ``secant.uses.replace_*``.
May import: pytest, torch, transformers, ``secant``.
"""

import inspect
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from nets_to_replace import WIDTH, Block, Net, Still, data, net_of
from secant.engine.plan import Batch
from secant.load.data import Units
from secant.load.feed import Feed
from secant.load.models import load_model
from secant.maps.calls import first_tensor, intercept
from secant.uses.replace_costs import Costs, costs_of, measured_flops
from secant.uses.replace_curves import Curve, Point, Trail, differences, dropped, influence_order
from secant.uses.replace_heal import healed
from secant.uses.replace_parts import Map, Place, place_of, stand_in, standing
from secant.uses.replace_runs import Runner
from secant.uses.replace_scores import Losses, Scorer, increase, increase_interval
from secant.uses.replace_search import Candidate, Search
from secant.uses.replace_sites import candidate_sites, refitted, watched
from secant.uses.scores import Task


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def runner_of(model, x):
    loaded = load_model(model)
    feed = Feed(loaded, Units("data", tensor=x), groups=12, batch_size=32, seed=0)
    blocks = [f"blocks.{i}" for i in range(len(model.blocks))]
    runner = Runner(loaded.model, feed, blocks)
    found = watched(runner, candidate_sites(model, blocks), feed.batches, lambda *_: None)
    runner.find_chain()
    return runner, found


def test_sums_of_products_are_those_of_a_counted_forward():
    model, x = net_of(*[Block(nn.ReLU()) for _ in range(3)]), data(60)
    runner, found = runner_of(model, x)
    costs = costs_of(runner, list(found.fits))
    assert costs.whole == 2 * (3 * 2 * 8 * 32 + 8 * 4)
    assert costs.sites["blocks.1"] == 2 * 2 * 8 * 32
    forms = {
        "blocks.0": found.fits["blocks.0"].map("affine"),
        "blocks.2": found.fits["blocks.2"].map("rank", 2),
    }
    counted = measured_flops(runner, forms, [0, 1])
    assert costs.whole * (1 - costs.share(forms)) == pytest.approx(counted)


def test_a_run_from_the_middle_is_the_whole_run():
    model, x = net_of(*[Block(nn.ReLU()) for _ in range(4)]), data(80)
    runner, found = runner_of(model, x)
    assert runner.is_chain
    forms = {"blocks.0": found.fits["blocks.0"].map("affine")}
    both = forms | {"blocks.3": found.fits["blocks.3"].map("rank", 2)}
    for batch in runner.feed.batches[:3]:
        _, _, streams = runner.streams(batch, forms)
        whole, _ = runner.run(batch, both)
        part, _ = runner.run(batch, both, start=3, stream=streams[3])
        assert torch.equal(whole, part)


def test_blocks_that_are_read_elsewhere_are_no_chain():
    class Dense(Net):
        def forward(self, x):
            kept = []
            for block in self.blocks:
                x = block(x)
                kept.append(x)
            return self.head(sum(kept))

    runner, _ = runner_of(Dense(*[Block(nn.ReLU()) for _ in range(3)]).eval(), data(80))
    assert not runner.is_chain


def test_maps_fitted_anew_make_up_for_those_before_them():
    """The second of two equal sites of rank 0 would double the error of the first; refitted, it
    gives the model's own mean again. Beside it the same maps as first fitted."""
    model, x = net_of(*[Block(nn.Identity(), bias=1.0) for _ in range(3)]), data(200)
    runner, found = runner_of(model, x)
    wrong = Map("shift", True, (), torch.full((WIDTH,), 5.0, dtype=torch.float64), WIDTH)
    forms = {"blocks.0": wrong, "blocks.2": found.fits["blocks.2"].map("affine")}
    again = refitted(runner, forms, 1, runner.feed.batches, lambda *_: None)
    assert again["blocks.0"] is wrong
    assert again["blocks.2"] is not forms["blocks.2"]
    true = model(x).detach()

    def gap(now):
        with torch.no_grad(), standing(model, runner.stands_for(now)):
            return float((model(x) - true).square().mean())

    assert gap(again) < 0.1 * gap(forms)
    # Blocks are affine here, so a fit on the changed network can undo the constant wholly, and
    # what is left is only that the first block's own linear part is gone.
    is_chain = runner.is_chain
    runner.is_chain = False
    slow = refitted(runner, forms, 1, runner.feed.batches, lambda *_: None)
    assert is_chain
    for one, other in zip(again["blocks.2"].factors, slow["blocks.2"].factors, strict=True):
        assert torch.allclose(one, other)


def test_increase_is_paired_by_unit():
    g = torch.Generator().manual_seed(3)
    counts = torch.randint(5, 30, (40,), generator=g).double()
    base = 3 * counts + torch.randn(40, generator=g, dtype=torch.float64) * counts
    rises = 0.1 * counts
    before, now = Losses(base, counts), Losses(base + rises, counts)
    assert increase(now, before) == pytest.approx(0.1)
    low, high = increase_interval(now, before)
    assert high - low < 1e-9  # what the units share cancels
    noisy = Losses(base + rises + torch.randn(40, generator=g, dtype=torch.float64), counts)
    low, high = increase_interval(noisy, before)
    assert low < increase(noisy, before) < high
    assert increase_interval(Losses(base[:2], counts[:2]), Losses(base[:2], counts[:2])) is None


def test_the_interval_of_an_increase_covers_it():
    g = torch.Generator().manual_seed(5)
    hits, draws = 0, 400
    for _ in range(draws):
        counts = torch.randint(5, 40, (60,), generator=g).double()
        of_unit = 0.1 + 0.2 * torch.randn(60, generator=g, dtype=torch.float64)
        before = Losses(3 * counts, counts)
        now = Losses(3 * counts + of_unit * counts, counts)
        low, high = increase_interval(now, before)
        hits += low < 0.1 < high
    assert 0.91 <= hits / draws <= 0.985


def trail_of(name, saved, rises):
    points = [
        Point(number, [], share, float(rise.mean()), None)
        for number, (share, rise) in enumerate(zip(saved, rises, strict=True))
    ]
    return Trail(Curve(name, points), torch.stack(list(rises)))


def test_differences_at_a_budget():
    ones = torch.ones(50, dtype=torch.float64)
    ours = trail_of("replaced", [0, 0.2, 0.5], [0 * ones, 0.04 * ones, 0.2 * ones])
    other = trail_of("random", [0, 0.1], [0 * ones, 0.04 * ones])
    worse = trail_of("random", [0, 0.3], [0 * ones, 0.4 * ones])
    found = differences(ours, {"random": [other, worse]}, ones, 0.05, seed=0)
    assert found["saved"] == {"value": 0.2, "interval": [0.2, 0.2]}
    assert found["random"]["saved"] == pytest.approx(0.05)
    assert found["random"]["value"] == pytest.approx(0.15)
    # A rise that half of the resamples find beyond the budget makes the interval wide.
    g = torch.Generator().manual_seed(0)
    noisy = 0.05 + 0.3 * torch.randn(50, generator=g, dtype=torch.float64)
    ours = trail_of("replaced", [0, 0.2], [0 * ones, noisy - noisy.mean() + 0.0499])
    found = differences(ours, {"random": [worse]}, ones, 0.05, seed=0)
    assert found["random"]["interval"] == [0.0, 0.2]


def test_healing_brings_a_wrong_map_near_the_model_and_touches_nothing_else():
    """A shift 5 too large, and a factor that is all noise, where a constant is the right answer."""
    model, x = net_of(Still(), Still(), Block(nn.ReLU())), data(200)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    runner, _ = runner_of(model, x)
    noise = 0.3 * torch.randn(WIDTH, WIDTH, dtype=torch.float64)
    shift = torch.full((WIDTH,), 5.0, dtype=torch.float64)
    forms = {
        "blocks.0": Map("affine", True, (noise,), shift, WIDTH),
        "blocks.1": Map("drop", True, width=WIDTH),
    }
    made = healed(
        runner, forms, runner.feed.batches, 200, is_classes=False, seed=0, tell=lambda *_: None
    )
    scorer = Scorer(runner, None, runner.feed.batches)
    assert scorer.losses(made).mean < 0.02 * scorer.losses(forms).mean
    assert all(p.grad is None for p in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert healed(
        runner, {"blocks.1": forms["blocks.1"]}, runner.feed.batches, 5, is_classes=False, seed=0,
        tell=lambda *_: None,
    ) == {"blocks.1": forms["blocks.1"]}  # fmt: skip


def test_influence_order_is_by_the_cosine():
    model = net_of(Block(nn.ReLU(), scale=1.0), Still(), Block(nn.ReLU(), scale=0.1))
    _, found = runner_of(model, data(100))
    assert influence_order(found.fits, ["blocks.0", "blocks.1", "blocks.2"]) == [
        "blocks.1", "blocks.2", "blocks.0",
    ]  # fmt: skip


def test_a_stand_in_counts_the_tokens_of_a_cache():
    class Cache:
        def __init__(self):
            self.seen = []

        def get_seq_length(self):
            return sum(key.shape[-2] for key, _ in self.seen)

        def update(self, keys, values, layer):
            self.seen.append((keys, layer))

    place = Place("layer", 0, None, False, (WIDTH, WIDTH), 7, {})
    stand = stand_in(Map("drop", True, width=WIDTH), place, torch.zeros(1))
    cache, x = Cache(), torch.randn(2, 3, WIDTH)
    assert torch.equal(stand(x, past=cache), x)
    assert (cache.get_seq_length(), cache.seen[0][1]) == (3, 7)


def test_next_token_losses_are_the_models_own():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    ids = torch.randint(0, 50, (3, 7))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, 5:] = False
    with torch.no_grad():
        logits = model(ids, attention_mask=mask.long()).logits
        sums, counts = Task("next token").by_unit(logits, ids, mask, Batch(0, (0, 1, 2)))
        alone = model(ids[1:2, :5], labels=ids[1:2, :5]).loss
    assert counts.tolist() == [6, 4, 6]
    assert float(sums[1] / 4) == pytest.approx(float(alone), rel=1e-5)
    labels = torch.tensor([1, 0, 3])
    task = Task("cross-entropy", labels)
    sums, _ = task.by_unit(logits[:2, 0], None, None, Batch(0, (2, 0)))
    expected = functional.cross_entropy(logits[:2, 0], labels[[2, 0]], reduction="none")
    assert torch.allclose(sums.float(), expected)


def test_what_lies_in_a_dropped_block_goes_with_it():
    _, found = runner_of(net_of(Block(nn.ReLU()), Still()), data(100))
    fits = dict.fromkeys(("a", "a.b", "a.c", "d"), found.fits["blocks.0"])
    stages = dropped(fits, ["a.b", "a", "a.c", "d"])
    assert [list(one) for one in stages] == [["a.b"], ["a"], ["a", "d"]]


@pytest.mark.parametrize("site", ["model.layers.0", "model.layers.0.self_attn"])
def test_a_decoder_whose_first_attention_is_gone_reads_its_cache(site):
    """Token by token with the cache against the whole text without; the cache counts its tokens,
    and so the positions, by the first layer."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=40, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=1, initializer_range=0.5, pad_token_id=0,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    ids = torch.randint(1, 50, (2, 9), generator=torch.Generator().manual_seed(0))
    found = {}

    def keep(name, _, args, kwargs, output):
        x = first_tensor(args if args else kwargs, name, "input")
        found[name] = place_of(model, name, 0, x, output)

    with torch.no_grad(), intercept(model, [site], keep):
        model(ids)
    stand = stand_in(Map("drop", site == "model.layers.0", width=16), found[site], torch.zeros(1))
    with torch.no_grad(), standing(model, {site: stand}):
        whole = model(ids, use_cache=False).logits
        cache, parts = transformers.DynamicCache(config=config), []
        taken = inspect.signature(transformers.LlamaModel.forward).parameters
        name = "cache" if "cache" in taken else "past_key_values"  # as versions call it
        for token in ids.split(1, 1):
            parts.append(model(token, use_cache=True, **{name: cache}).logits)
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-4)


class Table:
    """Losses that add, by site; stands for a scorer. What lies before `start` is not told apart."""

    def __init__(self, rises):
        self.rises = rises

    def losses(self, forms, *, start=0):
        total = 1 + sum(self.rises[site] for site in forms)
        return Losses(torch.full((4,), total, dtype=torch.float64), torch.ones(4).double())

    def remember(self, forms):
        return self.losses(forms)


def steps_of(rises, saved, budgets, most=10):
    """The sites that a search takes, one after another, where all may only be dropped."""
    places = {site: Place(site, 0, None, False, (1, 1), None, {}) for site in rises}
    fits = {site: SimpleNamespace(map=lambda *_: Map("drop", True, width=1)) for site in rises}
    costs = Costs(sum(saved.values()), saved, dict.fromkeys(saved, 1.0))
    search = Search(
        SimpleNamespace(places=places), Table(rises), [], costs, budgets, lambda *_: None
    )
    candidates = [Candidate(site, "drop", None, saved[site], 0.0) for site in rises]
    found = search.steps(candidates, fits, most)
    return [(step.site, round(step.increase, 6)) for step in found]


def test_the_search_takes_what_saves_most_for_its_loss_within_each_budget():
    """a: 10 for 0.09, too dear for 0.05, so b: 4 for 0.04 comes first. c: 0.1 for 0.005 could still
    be had then, but is worth a fifth of what a is, so it waits for the larger budget."""
    rises, saved = {"a": 0.09, "b": 0.04, "c": 0.005}, {"a": 10.0, "b": 4.0, "c": 0.1}
    assert steps_of(rises, saved, [0.05, 0.2]) == [("b", 0.04), ("a", 0.13), ("c", 0.135)]
    assert steps_of(rises, saved, [0.2]) == [("a", 0.09), ("b", 0.13), ("c", 0.135)]
    # Looked at one by one, each for itself: what comes late is still found.
    assert [site for site, _ in steps_of(rises, saved, [0.2], most=1)] == ["a", "b", "c"]


def test_a_part_is_replaced_before_its_block_and_goes_with_it():
    rises, saved = {"x": 0.1, "x.y": 0.01}, {"x": 10.0, "x.y": 5.0}
    assert steps_of(rises, saved, [0.2]) == [("x.y", 0.01), ("x", 0.1)]
    assert steps_of({"x": 0.01, "x.y": 0.1}, saved, [0.2]) == [("x", 0.01)]
