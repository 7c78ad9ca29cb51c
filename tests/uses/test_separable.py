"""Separability of labelled data: XOR, lifts, controls, sites of a model, files, and refusals.

Holds: tests of ``secant.uses.separable``, ``secant.uses.lifts`` and the table.
May import: pytest, numpy, torch, sklearn, ``secant``; transformers where installed.
"""

import json
from itertools import product

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.preprocessing import PolynomialFeatures
from test_kernel import bert, texts
from torch import nn

from secant.errors import InputError
from secant.load.data import Units
from secant.load.demo import digits
from secant.load.feed import Feed
from secant.load.models import load_model
from secant.report.separable import plain_words, render_separable
from secant.uses import separable as module
from secant.uses.cover import chance
from secant.uses.lifts import LIFTS, lifted, site_features, size_of
from secant.uses.separable import separable
from secant.uses.separation import Certificate, check

XOR = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])
ODD = torch.tensor([0, 1, 1, 0])


def verdicts(lift):
    return [one.separation.verdict for one in lift.splits]


def shown(found):
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render_separable(found))
    return console.export_text()


def test_xor_needs_a_product_and_no_squash_helps():
    found = separable(XOR, labels=ODD, lifts=["none", "squash", "tanh", "degree-2", "random"])
    by_name = {lift.name: lift for lift in found.lifts}
    # Two values a feature stay two: what a squash does to them is affine, bent or not.
    for name in ("none", "squash", "tanh"):
        assert verdicts(by_name[name]) == ["not separable"]
        assert by_name[name].rank == 2
        assert by_name[name].chance == 14 / 16
    for name in ("degree-2", "random"):
        assert verdicts(by_name[name]) == ["separable"]
        assert by_name[name].chance == 1  # four points in four dimensions with the bias
        assert by_name[name].splits[0].shuffled == "separable"
    words = " ".join(plain_words(found))
    assert "degree-2: this says nothing of the labels. 4 points that span 3 dimensions" in words
    assert "none: not separable (combination, proven by bounds)." in words
    assert "none: this says little of the labels" in words
    assert "linear, so nothing changes" in words
    assert "yes" in shown(found)


def test_a_linear_squash_changes_nothing_and_a_bent_one_can():
    """A sloping plane in two features of other scales; in tanh of standard scores it is a curve.

    Elementwise maps of one feature keep its order, so on a line nothing changes at all.
    """
    draw = np.random.default_rng(0)
    rows = torch.from_numpy(draw.standard_normal((200, 2)))
    rows = rows * torch.tensor([[1000.0, 0.001]], dtype=torch.float64)
    labels = (rows[:, 0] / 1000 + rows[:, 1] / 0.001 > 0.3).long()
    found = separable(rows, labels=labels, lifts=["none", "squash", "tanh"])
    assert [verdicts(lift)[0] for lift in found.lifts] == [
        "separable", "separable", "not separable",
    ]  # fmt: skip
    assert all(lift.splits[0].shuffled == "not separable" for lift in found.lifts)
    one = separable(rows[:, :1], labels=(rows[:, 0] > 0).long(), lifts=["none", "tanh"])
    assert [verdicts(lift)[0] for lift in one.lifts] == ["separable", "separable"]


def test_lifts_are_what_they_say():
    rows = np.random.default_rng(0).integers(-4, 5, (30, 3)).astype(float)
    scale = 2.0 ** np.ceil(np.log2(np.abs(rows).max(0) + 1e-9))
    np.testing.assert_array_equal(lifted("squash", rows, 0), rows / scale)
    for degree in (2, 3):
        theirs = PolynomialFeatures(degree, include_bias=False).fit_transform(rows / scale)
        np.testing.assert_array_equal(lifted(f"degree-{degree}", rows, 0), theirs)
    for name in [*LIFTS, "random:7"]:
        assert lifted(name, rows, 0).shape == (30, size_of(name, 3))
    random = lifted("random:7", rows, 0)
    assert (random >= 0).all()
    assert (random == 0).any()
    np.testing.assert_array_equal(random, lifted("random:7", rows, 0))
    assert (random != lifted("random:7", rows, 1)).any()
    bent = lifted("tanh", rows, 0)
    assert (np.argsort(bent[:, 0], kind="stable") == np.argsort(rows[:, 0], kind="stable")).all()


def test_digits_one_against_the_rest_and_in_pairs(tmp_path):
    found = separable("demo:digits", rows=400, has_pairs=True)
    (lift,) = found.lifts
    assert found.classes == [str(n) for n in range(10)]
    assert (len(lift.splits), len(lift.pairs)) == (10, 45)
    rows = digits()[0][:400].reshape(400, -1).double().numpy()
    labels = digits()[1][:400].numpy()
    for one in lift.splits:
        proof = one.separation.certificate
        assert check(rows, labels == int(one.name), proof) == one.separation.verdict
        assert one.rows == ((labels == int(one.name)).sum(), (labels != int(one.name)).sum())
    for one in lift.pairs:
        assert one.separation.verdict == "separable"
        places = np.isin(labels, [int(one.name), int(one.other)])
        proof = one.separation.certificate
        assert check(rows[places], labels[places] == int(one.name), proof) == "separable"
    assert lift.rank == np.linalg.matrix_rank(rows - rows.mean(0))
    assert lift.chance == float(chance(lift.points, lift.rank + 1))
    found.save(tmp_path / "found.json")
    assert json.loads((tmp_path / "found.json").read_text()) == found.as_dict()
    kept = json.loads((tmp_path / "found.json").read_text())["lifts"][0]["splits"][3]
    again = Certificate(**kept["separation"]["certificate"])
    assert check(rows, labels == 3, again) == kept["separation"]["verdict"]
    assert "pairs: 45 of 45 separable" in " ".join(plain_words(found))
    assert f"{sum(v == 'separable' for v in verdicts(lift))} of 10" in shown(found)


def test_pairs_number_rows_in_the_whole_data():
    rows = torch.tensor([[0.0], [5], [1], [2], [1]])
    found = separable(rows, labels=torch.tensor([7, 9, 8, 7, 7]), has_pairs=True)
    pairs = {(one.name, one.other): one.separation for one in found.lifts[0].pairs}
    assert pairs["7", "8"].certificate.rows == [2, 4]
    assert pairs["7", "9"].verdict == "separable"
    assert pairs["8", "9"].verdict == "separable"
    words = plain_words(found)
    assert any("not: 7 from 8 (rows 3 and 5, counted from 1, are equal)" in one for one in words)


def test_what_the_model_makes_of_the_data():
    """XOR through a hidden layer that solves it, and the layer before, which does not."""
    model = nn.Sequential(nn.Identity(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 1], [1, 1]]))
        model[1].bias.copy_(torch.tensor([0.0, -1]))
    rows = torch.cat([XOR + 0.01 * step for step in range(8)])
    units = Units("corners", tensor=rows, labels=ODD.repeat(8))
    told = []
    found = separable(
        units, model=model, sites=["0", "1", "2"], lifts=["none"],
        progress=lambda *one: told.append(one),
    )  # fmt: skip
    assert [(lift.name, verdicts(lift)[0]) for lift in found.lifts] == [
        ("none", "not separable"), ("site 0", "not separable"), ("site 1", "not separable"),
        ("site 2", "separable"),
    ]  # fmt: skip
    assert told[-1] == ("separable", 4, 4)
    features = model[:3](rows).detach().double().numpy()
    proof = found.lifts[-1].splits[0].separation.certificate
    assert check(features, (ODD.repeat(8) == 1).numpy(), proof) == "separable"


def test_sequences_are_means_over_what_is_not_padding():
    batch = texts(30, size=20)
    lengths = batch["attention_mask"].sum(1)
    fields = {
        key: [row[:length] for row, length in zip(one, lengths, strict=True)]
        for key, one in batch.items()
    }
    labels = (batch["input_ids"] == 7).any(1).long()
    body = bert().bert.eval()
    units = Units("seven", fields=fields, labels=labels)
    found = separable(units, model=body, sites=["embeddings"], batch_size=4)
    assert (found.model, found.lifts[0].features) == ("BertModel", 8)
    feed = Feed(load_model(body), units, groups=5, batch_size=4, seed=0)
    features = site_features(feed, ["embeddings"], lambda done, total: None)["embeddings"]
    alone = [
        body.embeddings(row[None, :length])[0].detach().double().mean(0).numpy()
        for row, length in zip(batch["input_ids"], lengths, strict=True)
    ]
    np.testing.assert_allclose(features, alone, rtol=1e-5, atol=1e-6)
    proof = found.lifts[0].splits[0].separation
    assert check(features, (labels == 1).numpy(), proof.certificate) == proof.verdict


def test_whole_numbers_as_floats_are_classes():
    for labels in (ODD.float(), ODD.double() + 3, ODD.bool()):
        found = separable(XOR, labels=labels)
        assert verdicts(found.lifts[0]) == ["not separable"]


def test_large_lifts_are_left_out_and_named(monkeypatch):
    monkeypatch.setattr(module, "LARGEST_TABLE", 30)
    found = separable(XOR, labels=ODD, lifts=["none", "degree-3"])
    assert verdicts(found.lifts[0]) == ["not separable"]
    assert found.lifts[1].splits == []
    assert "Not made: 9 features of 4 rows are more than 30" in found.lifts[1].notes[0]
    assert found.as_dict()["lifts"][1]["chance"] is None
    assert "not made" in shown(found)


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        (XOR, None, "one class a unit; got no labels"),
        (XOR, torch.ones(4), "two classes; all 4 units have 1"),
        (XOR, ODD + 0.5, "whole numbers as classes; unit 1 has 0.5"),
        (XOR, torch.stack([ODD, ODD], 1), r"labels of shape \(4, 2\)"),
        (XOR, ODD[:3], "one label a unit; got 3 labels"),
        (XOR[:3], ODD, "one label a unit; got 4 labels"),
        (XOR / torch.tensor([[1.0, 0], [1, 1], [1, 1], [1, 1]]), ODD, "1 of 4 rows.*first row 1"),
        (torch.ones(4, 0), ODD, r"must hold numbers; every value of all 4 units, of shape \(0,\)"),
        (torch.full((4, 1), 2**53 + 1), ODD, "at most 2.53"),
        (1e300 * XOR.double() + 1, ODD, "from 1e-60"),
    ],
)
def test_bad_data_is_named(rows, labels, message):
    with pytest.raises(InputError, match=message):
        separable(rows, labels=labels)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"lifts": ["cube"]}, "a lift must be one of none, squash.*got 'cube'"),
        ({"lifts": ["random:0"]}, "got 'random:0'"),
        ({"lifts": ["none:3"]}, "got 'none:3'"),
        ({"sites": ["blocks.0"]}, "blocks.0 and no model"),
    ],
)
def test_bad_choices_are_named(more, message):
    with pytest.raises(InputError, match=message):
        separable(XOR, labels=ODD, **more)


def test_texts_need_a_model():
    units = Units("lines", texts=["a", "b"], labels=torch.tensor([0, 1]))
    with pytest.raises(InputError, match="must hold rows of numbers for a plane; it holds texts"):
        separable(units)


def test_a_site_that_gives_no_features_is_named():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused, self.used = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x)

    units = Units("corners", tensor=XOR, labels=ODD)
    with pytest.raises(InputError, match="'unused' must give each unit features of one size"):
        separable(units, model=Twice().eval(), sites=["unused"])

    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = nn.Identity()

        def forward(self, x):
            return self.part(x / x[:, :1])

    with pytest.raises(InputError, match="site 'part' must hold finite numbers; 2 of 4 rows"):
        separable(units, model=Broken().eval(), sites=["part"])


def test_the_command(run, tmp_path):
    lines = ["x,y,class"] + [
        f"{a},{b},{'odd' if a ^ b else 'even'}" for a, b in product([0, 1], repeat=2)
    ]
    table = tmp_path / "xor.csv"
    table.write_text("\n".join(lines))
    path = tmp_path / "new" / "found.json"
    lifts = ("--lift", "none", "--lift", "degree-2")
    code, out, err = run("separable", table, "--label-column", "class", *lifts, "--out", path)
    assert (code, err) == (0, "")
    assert "xor.csv: 4 rows, 2 classes" in out
    assert "none: not separable" in out
    assert "degree-2: separable (plane, every sign exact)" in out
    found = json.loads(path.read_text())
    assert found["classes"] == ["even", "odd"]
    code, out, err = run("separable", table)
    assert code == 2
    assert err.count("\n") == 1
    assert "must hold numbers; got 'even'" in err
