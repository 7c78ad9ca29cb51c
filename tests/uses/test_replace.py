"""Blocks replaced: nets whose affine blocks are known, decoders that generate, files, messages.

Holds: tests of ``secant.uses.replace`` and its parts.
May import: pytest, torch, transformers, ``secant``.
"""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional

import secant
from secant.engine.plan import Batch
from secant.errors import InputError, LoadError
from secant.load.data import Units
from secant.load.feed import Feed
from secant.load.models import load_model
from secant.uses.replace import Replacement, replace
from secant.uses.replace_costs import costs_of, measured_flops
from secant.uses.replace_curves import Curve, Point, Trail, differences, influence_order
from secant.uses.replace_heal import healed
from secant.uses.replace_parts import Map, Place, StandIn, stand_in, standing
from secant.uses.replace_runs import Runner
from secant.uses.replace_scores import Losses, Scorer, increase, increase_interval
from secant.uses.replace_sites import candidate_sites, refitted, watched
from secant.uses.scores import Task

WIDTH = 8


class Block(nn.Module):
    """x + W₂ φ(W₁ x + b): affine without φ, or where every hidden unit is on."""

    def __init__(self, act, bias=0.0, scale=0.3):
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.act = act
        with torch.no_grad():
            self.up.bias.fill_(bias)
            self.down.weight.mul_(scale * 4)

    def forward(self, x):
        return x + self.down(self.act(self.up(x)))


class Still(nn.Module):
    """A block that does nothing, at some cost."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, x):
        return x + self.down(self.up(x).relu())


class Net(nn.Module):
    def __init__(self, *blocks):
        super().__init__()
        self.blocks, self.head = nn.ModuleList(blocks), nn.Linear(WIDTH, 4)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def net_of(*blocks):
    return Net(*blocks).eval()


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def data(units=400):
    return torch.randn(units, WIDTH, generator=torch.Generator().manual_seed(1))


def runner_of(model, x):
    loaded = load_model(model)
    feed = Feed(loaded, Units("data", tensor=x), groups=12, batch_size=32, seed=0)
    blocks = [f"blocks.{i}" for i in range(len(model.blocks))]
    runner = Runner(loaded.model, feed, blocks)
    found = watched(runner, candidate_sites(model, blocks), feed.batches, lambda *_: None)
    runner.find_chain()
    return runner, found


def test_a_linear_residual_net_collapses_at_no_loss():
    """Every block is affine: all are replaced, and the outputs stay."""
    model = net_of(*[Block(nn.Identity()) for _ in range(4)])
    found = replace(model, data(), budgets=[1e-6], draws=2)
    (met,) = found.budgets
    assert sorted(one.site for one in met.chosen) == [f"blocks.{i}" for i in range(4)]
    assert {one.kind for one in met.chosen} <= {"affine", "rank"}
    assert met.increase < 1e-6
    gap = (found.module(data()) - model(data())).abs().max()
    assert gap < 1e-3 * model(data()).abs().max()
    # Of a block's 2·8·32 products at least 2·8·8 stay; the head has 8·4.
    assert met.saved >= 4 * (512 - 64) / (4 * 512 + 32) - 1e-9
    assert found.what == "squared change of the outputs"


def test_the_block_whose_units_are_always_on_is_found_first():
    on, off = Block(nn.ReLU(), bias=50.0), [Block(nn.ReLU(), scale=1.0) for _ in range(2)]
    model = net_of(off[0], on, off[1])
    found = replace(model, data(), budgets=[1e-4, 0.3], draws=2)
    ours = found.curves[0]
    assert ours.points[1].sites == ["blocks.1"]
    assert ours.points[1].increase < 1e-6
    first = found.budgets[0].chosen
    assert [(one.site, one.kind) for one in first] == [("blocks.1", "affine")]
    assert first[0].explained == pytest.approx(1, abs=1e-6)
    assert found.explained["blocks.0"] < 0.999


def test_a_block_that_does_nothing_is_dropped():
    model = net_of(Block(nn.ReLU(), scale=1.0), Still(), Block(nn.ReLU(), scale=1.0))
    found = replace(model, data(), budgets=[1e-6], draws=2)
    (met,) = found.budgets
    (one,) = met.chosen
    assert (one.site, one.kind, one.label) == ("blocks.1", "drop", "dropped (identity)")
    assert met.increase == pytest.approx(0, abs=1e-12)
    assert met.before["parameters"] - met.after["parameters"] == 32 * 8 * 2 + 32 + 8
    assert torch.equal(found.module(data()), model(data()))
    by_influence = next(one for one in found.curves if one.name == "block influence")
    assert by_influence.points[1].sites == ["blocks.1"]
    # Both curves drop that block, so neither saves more than the other.
    assert met.against["block influence"]["value"] == pytest.approx(0)


def test_the_callers_model_is_as_it_was():
    model = net_of(Still(), Block(nn.Identity()))
    before = {name: one.clone() for name, one in model.state_dict().items()}
    kinds = [type(one) for one in model.modules()]
    replace(model, data(), budgets=[0.1], draws=1)
    assert [type(one) for one in model.modules()] == kinds
    for name, one in model.state_dict().items():
        assert torch.equal(one, before[name])
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in model.modules())


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


class Pair(nn.Module):
    """Returns a tuple, takes its tensor by keyword, and has attributes that others read."""

    kind = "full"

    def __init__(self, extra=None):
        super().__init__()
        self.inner, self.attention_type, self.extra = Still(), "full", extra

    def forward(self, *, hidden, scale=1.0):
        return self.inner(hidden) * scale, self.extra


class Caller(Net):
    def forward(self, x):
        for block in self.blocks:
            assert block.attention_type == "full"
            x, _ = block(hidden=x, scale=1.0)
        return self.head(x)


def test_tuples_keywords_and_attributes_are_kept():
    model = Caller(Pair(), Pair()).eval()
    found = replace(model, data(), budgets=[1e-6], draws=1, sites=["blocks.0", "blocks.1"])
    assert isinstance(found.module.blocks[0], StandIn)
    assert torch.equal(found.module(data()), model(data()))


def test_what_cannot_be_stood_in_for_is_left_with_a_reason():
    class Twice(Net):
        def forward(self, x):
            x = self.blocks[0](x)
            x, _ = self.blocks[1](hidden=self.blocks[0](x))
            return self.head(self.blocks[2](x))

    model = Twice(Still(), Pair(torch.ones(1)), Still()).eval()
    found = replace(model, data(), budgets=[1e-6], draws=1)
    assert {one.site for one in found.budgets[0].chosen} == {"blocks.1.inner", "blocks.2"}
    assert found.left["blocks.0"] == "it is called several times in one forward"
    assert found.left["blocks.1"] == "it returns more than one tensor"


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


@pytest.mark.parametrize("heal", [1, 40])
def test_healing_is_kept_where_it_helps_on_the_choosing_units(heal):
    model = net_of(*[Block(nn.ReLU(), scale=1.5) for _ in range(3)])
    found = replace(model, data(), budgets=[10.0], draws=1, heal=heal)
    one, met = found.healing, found.budgets[0]
    assert one.before == pytest.approx(met.increase)
    assert one.interval[0] < one.increase < one.interval[1]
    plain = replace(model, data(), budgets=[10.0], draws=1)
    pairs = zip(found.module.parameters(), plain.module.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs) != one.is_kept


def test_healing_refuses_half_precision():
    model = net_of(Still(), Still()).bfloat16()
    with pytest.raises(InputError, match=r"healing takes steps that torch.bfloat16 cannot hold"):
        replace(model, data(), budgets=[0.1], heal=3, draws=1)


def test_images_are_mapped_pixel_by_pixel():
    class Conv(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.narrow = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 3, 1)

        def forward(self, x):
            return x + self.narrow(self.wide(x))

    model = nn.Sequential(*[Conv() for _ in range(3)]).eval()
    x = torch.randn(200, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    found = replace(model, x, budgets=[1e-6], sites=["0", "1", "2"], draws=1)
    assert len(found.budgets[0].chosen) == 3
    assert torch.allclose(found.module(x), model(x), atol=1e-3)
    # 3·12·2 products a pixel become 3·3.
    assert found.budgets[0].saved == pytest.approx(1 - 9 / 72)


def test_labels_give_cross_entropy(tmp_path):
    found = secant.replace("demo:transformer", rows=400, budgets=[0.3], draws=1, most=6,
                           out=tmp_path)  # fmt: skip
    assert isinstance(found, Replacement)
    assert (found.what, found.unit) == ("cross-entropy", "nats")
    assert sum(found.units.values()) == 400
    (met,) = found.budgets
    assert met.increase <= 0.5
    assert met.interval[0] < met.increase < met.interval[1]
    # The program that plain torch loads gives what the module gives, and the weights too.
    x = torch.rand(5, 1, 8, 8)
    program = torch.export.load(tmp_path / "model.pt2").module()
    assert torch.allclose(program(x), found.module(x), atol=1e-5)
    found.save(tmp_path, "page")
    base = load_model("demo:transformer").model
    again = Replacement.load(tmp_path, base)
    assert torch.equal(again(x), found.module(x))
    assert not torch.equal(base(x), found.module(x))
    kept = json.loads((tmp_path / "replace.json").read_text())
    assert kept["budgets"][0]["saved"] == met.saved
    assert (tmp_path / "replace.html").read_text() == "page"
    with pytest.raises(LoadError, match="weights do not fit the model"):
        Replacement.load(tmp_path, load_model("demo:cnn").model)
    (tmp_path / "replace.json").write_text("{}")
    with pytest.raises(LoadError, match=r"not whole.*Give a folder that `secant replace` wrote"):
        Replacement.load(tmp_path, base)
    with pytest.raises(LoadError, match="cannot be read"):
        Replacement.load(tmp_path / "none", base)


def test_the_program_is_left_out_where_the_model_cannot_be_exported(tmp_path):
    class Branches(Net):
        def forward(self, x):
            return super().forward(x) if float(x.sum()) < 1e9 else x

    model = Branches(Still(), Block(nn.ReLU())).eval()
    found = replace(model, data(), budgets=[1e-6], draws=1, out=tmp_path)
    assert found.files == ["model.safetensors"]
    assert any("model.pt2 was not written: the model cannot be exported" in n for n in found.notes)


def test_messages(tmp_path):
    model = net_of(*[Block(nn.ReLU(), scale=3.0) for _ in range(2)])
    with pytest.raises(InputError, match=r"budget of 1e-09\. The least rise .*'blocks\.\d"):
        replace(model, data(), budgets=[1e-9], draws=1)
    with pytest.raises(InputError, match=r"numbers above 0; got \[-1\]"):
        replace(model, data(), budgets=[-1])
    with pytest.raises(InputError, match=r"hash gives .* Give some hundred"):
        replace(model, data(6), budgets=[0.1])
    with pytest.raises(InputError, match="nothing can be replaced here"):
        replace(nn.Sequential(nn.ReLU(), nn.ReLU()).eval(), data(), budgets=[0.1])
    with pytest.raises(InputError, match="one call of a module that has several"):
        replace(model, data(), budgets=[0.1], sites=["blocks.0@2"])
    with pytest.raises(InputError, match="same output for every unit"):
        replace(_constant(), data(), budgets=[0.1])


def _constant():
    model = net_of(Still(), Still())
    nn.init.zeros_(model.head.weight)
    return model


def test_few_rows_and_unmet_budgets_are_told():
    model = net_of(*[Block(nn.ReLU(), scale=0.1) for _ in range(3)])
    found = replace(model, data(60), budgets=[1e-12, 0.5], draws=1)
    assert any("rows to fit 8 dimensions" in note for note in found.notes)
    assert any(note.startswith("Few units") for note in found.notes)
    assert not found.budgets[0].chosen
    assert any("Budget 1e-12: No choice stays within it" in note for note in found.notes)


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


def test_decoder_generates_with_a_cache(tmp_path):
    """A random Llama: the cache counts tokens by its first layer, whose block is replaced."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=40, num_hidden_layers=4,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
        pad_token_id=0, bos_token_id=1, eos_token_id=49, tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    g = torch.Generator().manual_seed(0)
    batches = [{"input_ids": torch.randint(1, 48, (4, 6 + n % 5), generator=g)} for n in range(40)]
    batches = [one | {"attention_mask": torch.ones_like(one["input_ids"])} for one in batches]
    found = replace(model, batches, budgets=[0.5], draws=2, most=20, out=tmp_path, batch_size=16)
    assert (found.what, found.unit) == ("next token", "nats a token")
    sites = [one.site for one in found.budgets[0].chosen]
    assert any(site.startswith("model.layers.0") for site in sites)
    assert "model.layers.1.self_attn" in found.explained
    ids = batches[0]["input_ids"][:2, :5]
    args = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": False}
    with_cache = found.module.generate(ids, use_cache=True, **args)
    without = found.module.generate(ids, use_cache=False, **args)
    assert torch.equal(with_cache, without)
    if "model.pt2" in found.files:
        program = torch.export.load(tmp_path / "model.pt2").module()
        given = {name: one[:2] for name, one in batches[3].items()}
        ours = found.module(**given, use_cache=False).logits
        theirs = program(**given)
        assert torch.allclose(theirs["logits"], ours, atol=1e-4)
    found.save(tmp_path, "page")
    again = Replacement.load(tmp_path, model)
    assert torch.equal(again(ids).logits, found.module(ids).logits)


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
