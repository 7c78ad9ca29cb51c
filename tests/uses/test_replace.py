"""Blocks replaced: nets whose affine blocks are known, decoders that generate, files, messages.

Holds: tests of ``secant.uses.replace`` and its result.
May import: pytest, torch, transformers, ``secant``.
"""

import json

import pytest
import torch
from torch import nn

import secant
from nets_to_replace import Block, Net, Still, data, net_of
from secant.errors import InputError, LoadError
from secant.load.data import Units
from secant.load.models import load_model
from secant.uses.replace import replace
from secant.uses.replace_parts import StandIn
from secant.uses.replace_result import Replacement


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


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
    assert first[0].beyond == pytest.approx(1, abs=1e-6)
    assert found.beyond["blocks.0"] < 0.999


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


@pytest.mark.parametrize("heal", [1, 40])
def test_healing_is_kept_where_it_helps_on_the_choosing_units(heal):
    model = net_of(*[Block(nn.ReLU(), scale=1.5) for _ in range(3)])
    found = replace(model, data(), budgets=[0.3], draws=1, heal=heal)
    one, met = found.healing, found.budgets[0]
    assert one.before == pytest.approx(met.increase)
    assert one.interval[0] < one.increase < one.interval[1]
    plain = replace(model, data(), budgets=[0.3], draws=1)
    pairs = zip(found.module.parameters(), plain.module.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs) != one.is_kept


def test_healing_goes_round_what_nothing_comes_through():
    """With so large a budget the last block becomes a constant: those before it have no slope."""
    model = net_of(*[Block(nn.ReLU(), scale=1.5) for _ in range(3)])
    found = replace(model, data(), budgets=[10.0], draws=1, heal=2)
    assert found.healing.steps == 2


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
    with torch.no_grad():
        broken = net_of(Still(), Still())
        broken.head.weight.fill_(3e38)  # overflows
    labelled = Units("data", tensor=data(), labels=torch.ones(400, dtype=torch.int64))
    with pytest.raises(InputError, match="own loss on this data is not a finite number"):
        replace(broken, labelled, budgets=[0.1])
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
    assert "model.layers.1.self_attn" in found.beyond
    ids = batches[0]["input_ids"][:2, :5]
    args = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": False}
    with_cache = found.module.generate(ids, use_cache=True, **args)
    without = found.module.generate(ids, use_cache=False, **args)
    assert torch.equal(with_cache, without)
    assert found.files == ["model.safetensors", "model.pt2"]
    program = torch.export.load(tmp_path / "model.pt2").module()
    given = {name: one[:2] for name, one in batches[3].items()}
    ours = found.module(**given, use_cache=False).logits
    theirs = program(**given)
    assert torch.allclose(theirs["logits"], ours, atol=1e-4)
    found.save(tmp_path, "page")
    again = Replacement.load(tmp_path, model)
    assert torch.equal(again(ids).logits, found.module(ids).logits)
