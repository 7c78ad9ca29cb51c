"""Merges judged: small real training runs on the digits and on tokens, as files on disk.

Holds: tests of ``secant.uses.judge`` and its table.
May import: pytest, numpy, torch, safetensors, transformers, typer, ``test_paths``, ``secant``.
"""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_model
from test_paths import drawn, mlp, trained
from torch.nn import functional
from typer.testing import CliRunner

import secant
from secant.cli import app
from secant.errors import InputError
from secant.load.demo import digits, digits_split
from secant.readings import Report

FACTORY = "test_paths:mlp"
WARNING = "worse than every parent"


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    """A base, two fine-tunes of it, and a net trained apart: weights on disk."""
    folder = tmp_path_factory.mktemp("nets")
    base = trained(drawn(mlp, 0), 0)
    models = {
        "base": base,
        "one": trained(base, 5, steps=100, rate=1e-3),
        "two": trained(base, 6, steps=100, rate=1e-3),
        "apart": trained(drawn(mlp, 1), 1),
    }
    found = {}
    for name, model in models.items():
        found[name] = folder / f"{name}.safetensors"
        save_model(model, found[name])
    return found


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    """400 digits that no net was trained on, with labels and without."""
    folder = tmp_path_factory.mktemp("data")
    x, y = digits()
    kept = digits_split()[1][:400]
    np.savez(folder / "held_out.npz", x=x[kept].numpy(), label=y[kept].numpy())
    np.save(folder / "bare.npy", x[kept].numpy())
    return folder / "held_out.npz"


def loss_and_share(path, data):
    """By torch alone."""
    model = mlp().eval()
    model.load_state_dict(load_file(path))
    held = np.load(data)
    x, y = torch.from_numpy(held["x"]), torch.from_numpy(held["label"])
    with torch.no_grad():
        output = model(x).double()
    return functional.cross_entropy(output, y).item(), (output.argmax(1) == y).double().mean()


def judged(folder, parents, data, **more):
    return secant.judge(
        folder, parents, data, factory=FACTORY, column="x", label_column="label", **more
    )


def of(report, gauge, site):
    (one,) = [r for r in report.models[0].readings
              if (r.gauge, r.site) == (gauge, site) and "t" not in r.details]  # fmt: skip
    return one


def test_fine_tunes_merge_into_a_model_as_good(nets, held_out, tmp_path):
    parents = [nets["one"], nets["two"]]
    secant.merge(parents, tmp_path / "out", method="ties", base=nets["base"], density=0.5)
    report = judged(tmp_path / "out", parents, held_out, base=nets["base"])
    names = [*(f"parent {path}" for path in parents), "base", "merged"]
    files = [*parents, nets["base"], tmp_path / "out" / "model.safetensors"]
    own = {name: loss_and_share(file, held_out) for name, file in zip(names, files, strict=True)}
    for name in names:
        for place, gauge in enumerate(("loss", "accuracy")):
            one = of(report, gauge, name)
            assert one.variable == "weights"
            assert one.value == pytest.approx(float(own[name][place]), rel=1e-5)
            assert one.interval[0] < one.value < one.interval[1]
    merged = of(report, "loss", "merged")
    assert list(merged.controls) == names[:-1]
    for name, beside in merged.controls.items():
        gap = own["merged"][0] - own[name][0]
        assert beside["difference"]["value"] == pytest.approx(gap, abs=1e-6)
        widths = [high - low for low, high in (merged.interval, beside["interval"])]
        low, high = beside["difference"]["interval"]
        # Paired: what groups share cancels, so less is left than of two losses not paired.
        assert high - low < math.hypot(*widths)
    assert all(one["difference"]["interval"][0] < 0.01 for one in merged.controls.values())
    barrier = [r for r in report.models[0].readings if (r.gauge, r.variant) == ("barrier", "loss")]
    assert barrier[0].interval[1] < 0.01
    assert not any(WARNING in note for note in report.models[0].notes)
    assert Report.load(tmp_path / "out" / "judgement.json").as_dict() == report.as_dict()


def test_nets_trained_apart_merge_into_one_that_is_warned_of(nets, held_out, tmp_path):
    parents = [nets["base"], nets["apart"]]
    secant.merge(parents, tmp_path / "out")
    report = judged(tmp_path / "out", parents, held_out)
    merged = of(report, "loss", "merged")
    assert all(one["difference"]["interval"][0] > 0.3 for one in merged.controls.values())
    barrier, error = (r for r in report.models[0].readings if r.gauge == "barrier")
    assert barrier.interval[0] > 0.3
    assert error.interval[0] > 0.1
    (halfway,) = [r for r in report.models[0].readings
                  if r.gauge == "loss" and r.details.get("t") == 0.5]  # fmt: skip
    assert halfway.value == pytest.approx(merged.value, rel=1e-4), "the mean is half of the way"
    assert WARNING in report.models[0].notes[0]


def test_a_merge_worse_than_one_parent_only_is_not_warned_of(nets, held_out, tmp_path):
    """One parent is the other shrunk to a blur; between them the loss lies between theirs."""
    blurred = tmp_path / "blurred.safetensors"
    model = mlp()
    model.load_state_dict(load_file(nets["base"]))
    with torch.no_grad():
        for one in model.parameters():
            one.mul_(0.2)
    save_model(model, blurred)
    parents = [nets["base"], blurred]
    secant.merge(parents, tmp_path / "out", weight=[1, 3])
    report = judged(tmp_path / "out", parents, held_out)
    gaps = [one["difference"]["interval"] for one in of(report, "loss", "merged").controls.values()]
    assert gaps[0][0] > 0 > gaps[1][1]
    assert not any(WARNING in note for note in report.models[0].notes)


def test_three_parents_have_no_path(nets, held_out, tmp_path):
    parents = [nets["base"], nets["one"], nets["two"]]
    secant.merge(parents, tmp_path / "out")
    report = judged(tmp_path / "out", parents, held_out)
    assert {r.gauge for r in report.models[0].readings} == {"loss", "accuracy"}
    assert len(of(report, "loss", "merged").controls) == 3


def test_data_without_labels_says_what_it_can_judge(nets, held_out, tmp_path):
    bare, parents = held_out.with_name("bare.npy"), [nets["one"], nets["two"]]
    secant.merge(parents, tmp_path / "out")
    report = secant.judge(tmp_path / "out", parents, bare, factory=FACTORY)
    assert {r.gauge for r in report.models[0].readings} == {"chord"}
    assert "No loss along the path: the data has no labels. Outputs only." in report.models[0].notes

    def never():
        raise AssertionError("nothing is merged that cannot be judged")

    with pytest.raises(InputError, match=r"no labels.*only the outputs between two.*label-column"):
        secant.judge(never, [*parents, nets["base"]], bare, factory=FACTORY)
    with pytest.raises(InputError, match=r"no config\.json.*--model"):
        secant.judge(never, parents, bare)
    with pytest.raises(InputError, match="beside its parents; got none"):
        secant.judge(never, [], bare)


def test_a_hugging_face_merge_is_judged_on_the_next_token(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=16, n_embd=16, n_layer=1, n_head=2, n_positions=12, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    # Counting upwards modulo 16, from anywhere: the next token is known.
    ids = (torch.randint(0, 16, (300, 1), generator=generator) + torch.arange(10)) % 16
    noise = torch.randint(0, 16, ids.shape, generator=generator)
    ids = torch.where(torch.rand(ids.shape, generator=generator) < 0.1, noise, ids)
    np.save(tmp_path / "ids.npy", ids[200:].numpy())
    folders = []
    torch.manual_seed(0)
    base = transformers.GPT2LMHeadModel(config)
    for steps, seed in ((150, 0), (20, 1), (20, 2)):
        optimiser = torch.optim.Adam(base.parameters(), lr=1e-2 if seed == 0 else 1e-4)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            batch = ids[torch.randint(200, (32,), generator=generator)]
            optimiser.zero_grad()
            base(input_ids=batch, labels=batch).loss.backward()
            optimiser.step()
        folders.append(tmp_path / f"net{seed}")
        base.save_pretrained(folders[-1])
    secant.merge(folders[1:], tmp_path / "out", method="task_arithmetic", base=folders[0],
                 weight=0.5)  # fmt: skip
    report = secant.judge(tmp_path / "out", folders[1:], tmp_path / "ids.npy", base=folders[0])
    merged = of(report, "loss", "merged")
    assert merged.variant == "next token"
    assert merged.value < 2, "it has learnt to count; log 16 is 2.77"
    held = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        expected = held(input_ids=ids[200:], labels=ids[200:]).loss.item()
    assert merged.value == pytest.approx(expected, rel=1e-4)
    assert not any(WARNING in note for note in report.models[0].notes)


def run(*arguments):
    return CliRunner().invoke(app, [str(one) for one in ("merge", *arguments)])


def test_the_command_judges(nets, held_out, tmp_path):
    data = ["--data", held_out, "--column", "x", "--label-column", "label", "--rows", 300]
    out = tmp_path / "out"
    done = run(nets["base"], nets["apart"], "--out", out, "--model", FACTORY, *data)
    assert done.exit_code == 0, done.output
    report = Report.load(out / "judgement.json")
    assert report.models[0].units == 300
    assert f"{of(report, 'loss', 'merged').value:.3f} ±" in done.stdout
    assert "Between the parents. Barrier of the loss:" in done.stdout
    assert WARNING in " ".join(done.stdout.split())
    assert done.stdout.splitlines()[-1] == str(out / "judgement.json")


def test_slerp_has_its_base_among_the_parents(nets, held_out, tmp_path):
    data = ["--data", held_out, "--column", "x", "--label-column", "label", "--model", FACTORY]
    done = run(nets["one"], nets["two"], "--method", "slerp", "--t", 0.5, *data, "--out",
               tmp_path / "out")  # fmt: skip
    assert done.exit_code == 0, done.output
    controls = of(Report.load(tmp_path / "out" / "judgement.json"), "loss", "merged").controls
    assert list(controls) == [f"parent {nets['one']}", f"parent {nets['two']}"]


def test_the_command_merges_nothing_that_it_cannot_judge(nets, held_out, tmp_path):
    for more, words in (
        (["--data", held_out, "--column", "x"], "--model"),
        (["--data", tmp_path / "nonesuch.npz", "--model", FACTORY], "nonesuch"),
    ):
        done = run(nets["one"], nets["two"], "--out", tmp_path / "out", *more)
        assert isinstance(done.exception, secant.SecantError)
        assert words in str(done.exception)
        assert not (tmp_path / "out").exists()
