"""Tuning: the probe against scikit-learn's ridge, splits, planted effects, and refusals.

Holds: tests of ``secant.uses.tune`` and its table.
May import: pytest, torch, sklearn, ``secant``; transformers where installed.
"""

import json

import pytest
import torch
from rich.console import Console
from sklearn.linear_model import Ridge
from test_kernel import bert, texts
from torch import nn
from torch.nn.functional import one_hot

from secant.engine.plan import group_of
from secant.errors import InputError
from secant.load.data import Units
from secant.load.demo import digits
from secant.load.loaded import Loaded
from secant.report.tune import plain_words, render_tune
from secant.uses.tune import Headed, tune
from toy_tokens import Digits

WAYS = ["tangent", "probe", "fine-tuning"]


def two_rings(rows=240):
    """Classes told apart by the radius, which no last layer on a random linear body can see."""
    draw = torch.Generator().manual_seed(0)
    angle = torch.rand(rows, generator=draw) * 2 * torch.pi
    label = torch.arange(rows) % 2
    radius = 1 + 1.5 * label + 0.1 * torch.randn(rows, generator=draw)
    x = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    return Units("rings", tensor=x, labels=label)


class Body(nn.Module):
    """The features are linear in x; a tanh path, silent so far, can be woken by training."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.line, self.first, self.second = nn.Linear(2, 4), nn.Linear(2, 32), nn.Linear(32, 4)
        with torch.no_grad():
            self.first.weight.mul_(3)
            self.second.weight.zero_()
            self.second.bias.zero_()

    def forward(self, x):
        return self.line(x) + self.second(self.first(x).tanh())


def test_the_tangent_sees_what_the_last_layer_cannot():
    found = tune(Body().eval(), two_rings(), rows=None)
    by_way = {reading.site: reading for reading in found.readings}
    assert list(by_way) == WAYS
    assert by_way["tangent"].value > 0.9
    assert by_way["probe"].value < 0.7
    difference = by_way["tangent"].controls["probe"]["difference"]
    assert difference["value"] == pytest.approx(by_way["tangent"].value - by_way["probe"].value)
    assert difference["interval"][0] > 0
    assert "The tangent is better than probe, at 95 %." in plain_words(found)


def test_the_probe_is_ridge_regression_on_the_same_half():
    """Against scikit-learn, with the intercept as one more feature, and the split made anew."""
    images, labels = digits()
    images, labels = images[:200], labels[:200]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(images[0].numel(), 16), nn.ReLU()).eval()
    found = tune(model, Units("some digits", tensor=images, labels=labels))
    groups = torch.tensor([group_of(row.float().numpy().tobytes(), 0, 20) for row in images])
    is_fitted = groups % 2 == 0
    features = model(images.float()).detach().double()
    features = torch.cat([features, torch.ones(200, 1)], 1).numpy()
    ridge = Ridge(found.choices["probe"]["strength"], fit_intercept=False)
    ridge.fit(features[is_fitted], one_hot(labels[is_fitted], 10).numpy())
    guess = torch.from_numpy(ridge.predict(features[~is_fitted])).argmax(1)
    expected = float((guess == labels[~is_fitted]).double().mean())
    probe = found.readings[1]
    assert probe.value == pytest.approx(expected, abs=0.011)  # a tie in float32 is one row
    assert found.units == {"fitted": int(is_fitted.sum()), "scored": int((~is_fitted).sum())}
    commonest = labels[is_fitted].mode().values
    share = float((labels[~is_fitted] == commonest).double().mean())
    assert probe.controls["commonest class"]["value"] == pytest.approx(share)


def test_a_classifier_keeps_its_last_layer_and_is_left_as_it_was():
    """A model whose logits are the one-hot labels already: nothing is left to fit."""
    x = torch.randn(120, 3, generator=torch.Generator().manual_seed(0))
    labels = x.argmax(1)
    model = nn.Sequential(nn.Identity(), nn.Linear(3, 3)).eval()
    with torch.no_grad():
        model[1].weight.copy_(4 * torch.eye(3))
        model[1].bias.zero_()
    before = model[1].weight.clone()
    found = tune(model, Units("corners", tensor=x, labels=labels))
    assert found.readings[2].value > 0.95  # fine-tuning began at the layer that is right
    assert model[1].weight.equal(before)
    assert all(one.requires_grad for one in model.parameters())


def test_padding_has_no_part_in_the_mean():
    model = Headed(bert().bert.eval(), nn.Linear(8, 2))
    batch = texts(3)
    alone = {key: one[1:2, :4] for key, one in batch.items()}
    assert not batch["attention_mask"][1, 4:].any()
    torch.testing.assert_close(model(**batch)[1:2], model(**alone), rtol=1e-4, atol=1e-5)


def test_a_headless_encoder_is_tuned_and_told(tmp_path):
    batch = texts(80, size=20)
    fields = {key: list(one) for key, one in batch.items()}
    labels = (batch["input_ids"] == 7).any(1).long()
    torch.manual_seed(0)
    units = Units("seven", fields=fields, labels=labels, classes=("without", "with"))
    found = tune(bert().bert.eval(), units, seed=1)
    again = tune(bert().bert.eval(), units, seed=1)
    assert [one.site for one in found.readings] == [one.site for one in again.readings]
    found.save(tmp_path / "tuned.json")
    told = json.loads((tmp_path / "tuned.json").read_text())
    assert told["classes"] == ["without", "with"]
    assert told["choices"]["tangent"]["how"] == "leave one out"
    console = Console(width=100, record=True, file=(tmp_path / "table").open("w"))
    console.print(render_tune(found))
    text = console.export_text()
    for reading in found.readings:
        assert f"{reading.site}" in text
        assert f"{reading.value:.3f}" in text
        assert 0 <= reading.interval[0] <= reading.value <= reading.interval[1] <= 1
        assert any("Few units" in one for one in reading.warnings)


class Reader(nn.Module):
    """Reads digits, and takes less than its tokenizer gives."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.word, self.mix = nn.Embedding(11, 8), nn.Linear(8, 8)

    def forward(self, input_ids):
        return self.mix(self.word(input_ids)).tanh()


def test_what_fine_tuning_did_is_read_on_the_units_scored():
    """Texts of digits, labelled by whether they hold a 7; the tokenizer gives a mask as well."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 10, (160, 6), generator=draw)
    texts_of_digits = ["".join(map(str, row)) for row in rows.tolist()]
    units = Units("seven", texts=texts_of_digits, labels=(rows == 7).any(1).long())
    loaded = Loaded("reader", Reader().eval(), Digits(), lambda seed: Reader().eval())
    found = tune(loaded, units, rows=None)
    assert found.path.units == found.units["scored"]
    read = {(one.gauge, one.site, one.variant): one for one in found.path.readings}
    moved = read["displacement", "(model)", "relative"]
    explained = read["tangent", "(model)", "explained"]
    assert 0 < moved.value < 1
    assert explained.interval[0] <= explained.value <= explained.interval[1] <= 1
    assert explained.controls["random"]["value"] is not None
    words = " ".join(plain_words(found))
    assert "of their own norm apart" in words
    assert "The first order explains" in words
    accuracy = [one for one in found.path.readings if one.gauge == "accuracy"]
    end = next(one for one in accuracy if one.details["t"] == 1)
    assert end.value == pytest.approx(found.readings[2].value)


@pytest.mark.parametrize(
    ("units", "message"),
    [
        (Units("bare", tensor=torch.ones(9, 2)), "one class a unit.*got none"),
        (Units("sizes", tensor=torch.ones(9, 2), labels=torch.ones(9)), "float32"),
        (Units("one", tensor=torch.randn(60, 2), labels=torch.ones(60).long()), "two classes"),
        (Units("few", tensor=torch.randn(4, 2), labels=torch.arange(4)), "Give some dozens"),
    ],
)
def test_bad_data_is_named(units, message):
    with pytest.raises(InputError, match=message):
        tune(Body().eval(), units)
