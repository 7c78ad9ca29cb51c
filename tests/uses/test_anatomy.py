"""Anatomy: known operations have known effects, and a second computation agrees.

Holds: tests of ``secant.uses.anatomy`` and ``secant.uses.dissection``.
May import: pytest, numpy, torch, scipy, ``secant``.
"""

import json
import math
import sys

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional

import secant
from secant import cli
from secant.engine.plan import group_of
from secant.errors import InputError
from secant.gauges.interval import GROUPS
from secant.load.data import Units
from secant.load.demo import digits, load_demo
from secant.load.models import Loaded
from secant.uses.anatomy import anatomy, mean_interval
from secant.uses.dissection import TOGETHER


@pytest.fixture
def run(monkeypatch, capfd):
    """Run the program with arguments; gives exit code, stdout and stderr."""

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["secant", *map(str, args)])
        monkeypatch.setenv("COLUMNS", "120")
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capfd.readouterr()
        return end.value.code or 0, out, err

    return call


class Calls(nn.Module):
    """A function as a module."""

    def __init__(self, function, **parameters):
        super().__init__()
        self.function = function
        for name, value in parameters.items():
            setattr(self, name, nn.Parameter(value))

    def forward(self, x):
        return self.function(self, x)


def model_of(function, **parameters):
    return Calls(function, **parameters).eval()


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def halves(data, seed=0):
    """The documented split: even groups fit, odd ones score."""
    group = np.array([group_of(row.numpy().tobytes(), seed, 2 * GROUPS) for row in data])
    return group % 2 == 0, group % 2 == 1


def by_site(found, variant="output"):
    return {r.site: r for r in found.readings if r.variant == variant}


def only(found, variant="output"):
    (reading,) = by_site(found, variant).values()
    return reading


def test_a_deep_linear_net_has_nothing_to_replace():
    told = []
    found = anatomy("demo:linear", rows=100, progress=lambda *news: told.append(news))
    assert told[-1] == ("demo:linear", 100, 100)
    assert found.readings == []
    assert found.affine >= 6, "its linear layers"
    assert found.units["fitted"] + found.units["scored"] == 100


def test_relu_on_positive_data_is_replaced_without_loss():
    model = model_of(lambda self, x: functional.relu(x) @ self.w, w=normal(4, 3))
    reading = only(anatomy(model, normal(200, 4).abs()))
    assert reading.site == "(model) relu"
    assert reading.value == pytest.approx(0, abs=1e-12)
    assert reading.details["local_r2"] == pytest.approx(1, abs=1e-12)
    assert reading.controls["constant"]["value"] == pytest.approx(1, rel=1e-6)


def test_square_leaves_what_a_line_does_not_explain():
    """x² of symmetric data: the best line is nearly flat, and numpy's polyfit agrees exactly."""
    x = normal(1500, 1)
    reading = only(anatomy(model_of(lambda self, x: x * x), x, rows=None))
    fit, held = halves(x)
    line = np.polyfit(x[fit, 0].double().numpy(), x[fit, 0].double().numpy() ** 2, 1)
    truth = x[held, 0].double().numpy()
    residual = ((np.polyval(line, truth) - truth**2) ** 2).sum()
    total = ((truth**2 - (x[fit, 0].double().numpy() ** 2).mean()) ** 2).sum()
    # The model squares in float32.
    assert reading.value == pytest.approx(residual / total, rel=1e-5)
    assert reading.value == pytest.approx(1, abs=0.05)
    assert reading.details["local_r2"] == pytest.approx(1 - residual / total, abs=1e-5)
    assert reading.interval[0] < reading.value < reading.interval[1]
    assert reading.controls["constant"]["value"] == pytest.approx(1, rel=1e-9)


def test_product_of_two_branches_is_one_operation_of_two_inputs():
    """u·v with u of mean 3: the part 3·v is affine, so R² = 9·1 / (9·1 + 1·1) in expectation."""
    x = normal(3000, 2) + torch.tensor([3.0, 0.0])
    reading = only(anatomy(model_of(lambda self, x: x[:, :1] * x[:, 1:]), x, rows=None))
    assert reading.details["inputs"] == 2
    assert reading.details["local_r2"] == pytest.approx(0.9, abs=0.02)


def test_layer_norm_of_two_numbers_is_a_sign():
    """It gives ±1 by the sign of a - b, of which the best affine map explains 2/π."""
    model = nn.Sequential(nn.LayerNorm(2)).eval()
    reading = only(anatomy(model, normal(4000, 2), rows=None))
    assert reading.site == "0 layer_norm"
    assert reading.details["how"] == "each row from the whole row"
    assert reading.details["local_r2"] == pytest.approx(2 / math.pi, abs=0.02)
    assert reading.value == pytest.approx(1 - 2 / math.pi, abs=0.02)


def test_dead_relu_has_no_effect_and_the_live_one_has():
    def forward(self, x):
        return functional.relu(x @ self.a) * self.dead + functional.relu(x @ self.b)

    model = model_of(forward, a=normal(4, 4), b=normal(4, 4, seed=1), dead=torch.zeros(4))
    readings = by_site(anatomy(model, normal(300, 4)))
    assert readings["(model) relu #1"].value == 0
    assert readings["(model) relu #1"].controls["constant"]["value"] == 0
    assert readings["(model) relu #1"].details["local_r2"] < 0.9, "it is curved all the same"
    assert readings["(model) relu #2"].value > 0.05


def test_replacing_one_relu_agrees_with_hooks_on_the_demo():
    """numpy least squares for each feature, put back by a forward hook on the module itself."""
    images, labels = (part[:300] for part in digits())
    found = anatomy("demo:mlp", rows=300)
    fit, held = halves(images)
    model = load_demo("mlp")
    seen = {}
    relu = model.blocks[1][1]
    handle = relu.register_forward_hook(lambda m, args, out: seen.update(x=args[0], y=out))
    with torch.no_grad():
        mean = model(images[fit]).double().mean(0)
    x, y = (seen[key].double().numpy() for key in "xy")
    handle.remove()
    slope, offset = np.zeros(64), y.mean(0)
    for j in range(64):
        if np.ptp(x[:, j]) > 0:
            slope[j], offset[j] = np.polyfit(x[:, j], y[:, j], 1)
    line = torch.from_numpy(slope), torch.from_numpy(offset)
    with torch.no_grad():
        before = model(images[held]).double()
        relu.register_forward_hook(lambda m, args, out: (args[0] * line[0] + line[1]).float())
        after = model(images[held]).double()
    moved = (after - before).square().sum() / (before - mean).square().sum()
    reading = by_site(found)["blocks.1.1 relu"]
    assert reading.value == pytest.approx(float(moved), rel=1e-4)  # float32 forward passes
    wanted = labels[held]
    rise = functional.cross_entropy(after, wanted) - functional.cross_entropy(before, wanted)
    loss = by_site(found, "loss")["blocks.1.1 relu"]
    assert loss.value == pytest.approx(float(rise), rel=1e-3)
    assert loss.interval[0] <= loss.value <= loss.interval[1]
    kept = (after.argmax(1) == wanted).double().mean() - (
        before.argmax(1) == wanted
    ).double().mean()
    assert by_site(found, "accuracy")["blocks.1.1 relu"].value == pytest.approx(float(kept))
    assert found.baseline["loss"] == pytest.approx(float(functional.cross_entropy(before, wanted)))


def test_batch_size_changes_nothing():
    results = [by_site(anatomy("demo:mlp", rows=200, batch_size=size)) for size in (2, 32)]
    assert list(results[0]) == list(results[1])
    assert TOGETHER in results[0]
    for site, reading in results[0].items():
        assert reading.value == pytest.approx(results[1][site].value, rel=1e-6, abs=1e-9), site


def test_all_together_is_the_affine_net():
    """Two squares in a row, each at its own line: the output is then a line of a line."""
    x = normal(400, 1) + 2
    found = anatomy(model_of(lambda self, x: (x * x) * (x * x)), x, rows=None)
    fit, held = halves(x)
    a, b = x[fit, 0].double().numpy(), x[held, 0].double().numpy()
    first, second = np.polyfit(a, a**2, 1), np.polyfit(a**2, a**4, 1)
    moved = ((np.polyval(second, np.polyval(first, b)) - b**4) ** 2).sum()
    total = ((b**4 - (a**4).mean()) ** 2).sum()
    assert by_site(found)[TOGETHER].value == pytest.approx(moved / total, rel=1e-4)


class Letters:
    """A tokenizer of letters, padding on the right with 0."""

    pad_token_id = eos_token_id = 0

    def __call__(self, texts):
        ids = [[ord(c) - 96 for c in text] for text in texts]
        return {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}


class Encoder(nn.Module):
    """One attention head and a gelu over letters; padding is masked as keys."""

    def __init__(self, query_scale=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(27, 6)
        self.mix = nn.Linear(6, 18)
        self.mlp = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6))
        self.query_scale = query_scale

    def forward(self, input_ids, attention_mask):
        x = self.embed(input_ids)
        query, key, value = self.mix(x).unsqueeze(1).chunk(3, -1)
        mask = attention_mask.bool()[:, None, None, :]
        mixed = functional.scaled_dot_product_attention(
            self.query_scale * query, key, value, attn_mask=mask
        )
        return self.mlp(x + mixed.squeeze(1))


def letters(count=200):
    generator = np.random.default_rng(0)
    return Units(
        "letters",
        texts=[
            "".join(generator.choice(list("abcdefgh"), n)) for n in generator.integers(2, 9, count)
        ],
    )


def test_padding_counts_nowhere():
    """Batches of 2 hold almost no padding, those of 32 much: the readings are the same."""
    loaded = Loaded("letters", Encoder().eval(), Letters(), Encoder)
    results = [by_site(anatomy(loaded, letters(), batch_size=size)) for size in (2, 32)]
    assert set(results[0]) == {"(model) attention", "mlp.1 gelu", TOGETHER}
    for site, reading in results[0].items():
        other = results[1][site]
        assert reading.value > 1e-3
        assert reading.value == pytest.approx(other.value, rel=1e-6), site
        assert reading.samples == other.samples


def test_attention_that_takes_the_mean_is_affine():
    """At a query of zero it is the mean of the values that it sees, whatever the length."""
    loaded = Loaded("letters", Encoder(query_scale=0.0).eval(), Letters(), Encoder)
    reading = by_site(anatomy(loaded, letters()))["(model) attention"]
    assert reading.details["local_r2"] == pytest.approx(1, abs=1e-9)
    assert reading.value == pytest.approx(0, abs=1e-9)
    assert reading.controls["constant"]["value"] > 1e-3


def largest_first(x):
    return x.sort(dim=-1, descending=True).values


KNOWN = {
    "max pool of windows led by their first entry": (
        lambda self, x: functional.max_pool2d(x, (1, 4)),
        largest_first(normal(200, 2, 3, 4)),
        "max_pool2d",
    ),
    "max over a row led by its first entry": (
        lambda self, x: x.amax(-1),
        largest_first(normal(200, 4)),
        "amax",
    ),
    "product with a factor that never changes": (
        lambda self, x: torch.bmm(x, (x * 0 + 1).mT),
        normal(200, 2, 3),
        "bmm",
    ),
    "clipping where nothing is clipped": (
        lambda self, x: x.clamp(-9, 9),
        normal(200, 4),
        "clamp",
    ),
    "a choice that always falls the same way": (
        lambda self, x: torch.where(x > -9, 2 * x, -x),
        normal(200, 4),
        "where",
    ),
    "a gated unit whose gate is open": (
        lambda self, x: functional.glu(torch.cat([x, 0 * x + 50], -1)),
        normal(200, 4),
        "glu",
    ),
    "attention of a single position": (
        lambda self, x: functional.scaled_dot_product_attention(x, x, x),
        normal(200, 2, 1, 3),
        "attention",
    ),
    "attention of a single position, heads sharing values": (
        lambda self, x: functional.scaled_dot_product_attention(
            x, x[:, :2], x[:, 2:], enable_gqa=True
        ),
        normal(200, 4, 1, 3),
        "attention",
    ),
    "largest of two, one always larger": (
        lambda self, x: torch.maximum(x, x + 1),
        normal(200, 4),
        "maximum",
    ),
    "values of a maximum with its place": (
        lambda self, x: x.max(-1).values,
        largest_first(normal(200, 4)),
        "max",
    ),
}


class Beside(nn.Module):
    """The known functions, each on its own columns, their outputs side by side."""

    def __init__(self):
        super().__init__()
        self.calls = nn.ModuleList(model_of(function) for function, *_ in KNOWN.values())
        self.shapes = [data.shape[1:] for _, data, _ in KNOWN.values()]

    def forward(self, x):
        parts = x.split([shape.numel() for shape in self.shapes], 1)
        outputs = [
            call(part.reshape(-1, *shape))
            for call, part, shape in zip(self.calls, parts, self.shapes, strict=True)
        ]
        return torch.cat([out.reshape(x.shape[0], -1) for out in outputs], 1)


def test_an_operation_that_is_affine_on_its_data_is_replaced_without_loss():
    data = torch.cat([data.flatten(1) for _, data, _ in KNOWN.values()], 1)
    found = by_site(anatomy(Beside().eval(), data, rows=None))
    del found[TOGETHER]
    names = [f"calls.{place} {name}" for place, (*_, name) in enumerate(KNOWN.values())]
    assert list(found) == names
    for case, reading in zip(KNOWN, found.values(), strict=True):
        assert reading.details["local_r2"] == pytest.approx(1, abs=1e-9), case
        assert reading.value == pytest.approx(0, abs=1e-9), case
        assert reading.controls["constant"]["value"] > 1e-4, case


def test_what_does_not_reach_the_output_is_said():
    model = model_of(lambda self, x: (x + 0, x.tanh()))
    reading = only(anatomy(model, normal(100, 2)))
    assert reading.value is None
    assert "does not lead to the measured output" in reading.warnings[0]


def test_an_operation_without_a_known_fit_keeps_its_control():
    model = model_of(lambda self, x: torch.fft.rfft(x, dim=-1).abs())
    reading = only(anatomy(model, normal(100, 4)))
    assert reading.value is None
    assert "No affine fit is made" in reading.warnings[0]
    assert reading.controls["constant"]["value"] == pytest.approx(1, rel=1e-6)


def test_few_rows_are_warned_of():
    reading = only(anatomy(nn.Sequential(nn.LayerNorm(30)).eval(), normal(100, 30)))
    assert "at least 300 are wanted" in reading.warnings[0]


def test_mean_interval_is_the_t_interval_of_equal_groups():
    sums = normal(10).double()
    low, high = mean_interval(sums, torch.full((10,), 4.0, dtype=torch.float64))
    means = (sums / 4).numpy()
    wanted = stats.t.interval(0.95, 9, loc=means.mean(), scale=stats.sem(means))
    assert (low, high) == pytest.approx(wanted, rel=1e-9)


def test_mean_interval_covers():
    """Units in clusters of twelve to a group, heavy-tailed: 95 % is between 92 and 98."""
    draws = torch.from_numpy(np.random.default_rng(0).standard_t(4, (600, 10, 12)) + 0.3)
    counts = torch.full((10,), 12.0, dtype=torch.float64)
    reached = [mean_interval(draw.sum(1), counts) for draw in draws]
    covered = np.mean([low <= 0.3 <= high for low, high in reached])
    assert 0.92 <= covered <= 0.98


def test_the_result_is_saved_as_json(tmp_path):
    found = secant.anatomy("demo:mlp", rows=100)
    found.save(tmp_path / "a.json")
    saved = json.loads((tmp_path / "a.json").read_text())
    assert saved["model"] == "demo:mlp"
    assert {r["variant"] for r in saved["readings"]} == {"output", "loss", "accuracy"}
    assert saved["readings"][0]["value"] == found.readings[0].value


def branches(self, x):
    return x if x.sum() > 0 else -x


BAD = {
    "control flow": (model_of(branches), normal(60, 2), {}, "torch.where"),
    "training": (nn.Sequential(nn.BatchNorm1d(2)).train(), normal(60, 2), {}, "eval"),
    "random": (model_of(lambda self, x: x + torch.rand_like(x)), normal(60, 2), {}, "random"),
    "no tensor": (model_of(lambda self, x: x > 0), normal(60, 2), {}, "floating tensor"),
    "few units": (model_of(lambda self, x: x.relu()), normal(3, 2), {}, "some dozens"),
    "label count": (
        model_of(lambda self, x: x.relu()),
        normal(60, 2),
        {"labels": torch.zeros(59, dtype=torch.int64)},
        "one int64 class a unit",
    ),
    "label classes": (
        model_of(lambda self, x: x.relu()),
        normal(60, 2),
        {"labels": torch.full((60,), 2)},
        "as many classes",
    ),
    "labels below 0": (
        model_of(lambda self, x: x.relu()),
        normal(60, 2),
        {"labels": torch.full((60,), -1)},
        "as many classes",
    ),
    "one number for all": (
        model_of(lambda self, x: x.relu().sum()),
        normal(60, 2),
        {},
        "one output a unit",
    ),
    "refused": (nn.Linear(3, 2).eval(), normal(60, 2), {}, "refuses the data"),
    "batches of one": (
        model_of(lambda self, x: x.relu()),
        normal(60, 2),
        {"batch_size": 1},
        "at least 2 units",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_done_is_said(case):
    model, data, options, words = BAD[case]
    with pytest.raises(InputError, match=words):
        anatomy(model, data, **options)


def test_demos_run_from_the_command_line(run, tmp_path):
    for name, count in [("cnn", 8), ("transformer", 17)]:
        out = tmp_path / f"{name}.json"
        code, printed, err = run("anatomy", f"demo:{name}", "--rows", 40, "--out", out)
        assert (code, err) == (0, "")
        assert f"{count} operations are not affine" in printed
        saved = json.loads(out.read_text())
        sites = {r["site"] for r in saved["readings"]}
        assert len(sites) == count + 1
        assert TOGETHER in sites
        assert all(r["value"] is not None for r in saved["readings"])


def test_a_linear_demo_is_said_to_be_affine(run):
    code, printed, _ = run("anatomy", "demo:linear", "--rows", 60)
    assert code == 0
    assert "every operation is affine" in printed


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nonesuch"], ["nonesuch", "config.json"]),
        (["demo:mlp", "--data", "nonesuch.npy"], ["no such file"]),
        (["demo:mlp", "--rows", 2], ["some dozens"]),
        (["demo:mlp", "--batch-size", 1, "--rows", 60], ["at least 2 units"]),
    ],
    ids=["model", "data", "few", "batch"],
)
def test_bad_arguments_are_one_line(run, tmp_path, args, words):
    code, printed, err = run("anatomy", *args, "--out", tmp_path / "a.json")
    assert code == 2
    assert err.startswith("secant: ")
    assert len(err.splitlines()) == 1, err
    assert "Traceback" not in printed + err
    assert all(word in err for word in words)
    assert not list(tmp_path.iterdir())


def test_out_under_a_file_is_one_line(run, tmp_path):
    (tmp_path / "file").write_text("kept")
    code, _, err = run("anatomy", "demo:mlp", "--out", tmp_path / "file" / "a.json")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert "--out" in err
