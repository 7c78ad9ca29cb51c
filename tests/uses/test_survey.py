"""A survey that is killed and resumed is the survey that was not, to the last bit."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from secant.engine.checkpoint import Checkpoint
from secant.errors import InputError, StateError
from secant.load.models import shuffled
from secant.readings import Report
from secant.surveys import digest_of_output
from secant.uses.survey import survey
from toy_tokens import feed_of

MODELS = ["demo:transformer", "demo:cnn"]


@pytest.fixture(autouse=True)
def kept_at_every_batch(monkeypatch):
    monkeypatch.setattr(Checkpoint, "is_due", lambda self: True)


def readings(report):
    models = json.loads(report.to_json())["models"]
    return [{key: value for key, value in model.items() if key != "cost"} for model in models]


def run(out, stop_at=None, resume=False, **options):
    """Survey; raise KeyboardInterrupt at the given call of the progress bar."""
    calls = []

    def progress(label, done, total):
        calls.append((label, done))
        if stop_at is not None and len(calls) == stop_at:
            raise KeyboardInterrupt

    report = survey(
        MODELS, rows=60, gauges=["fit"], batch_size=16, progress=progress, out=out,
        resume=resume, **options,
    )  # fmt: skip
    return report, calls


@pytest.fixture(scope="module")
def whole():
    report = survey(MODELS, rows=60, gauges=["fit"], batch_size=16)
    return readings(report)


def test_a_report_that_cannot_be_written_is_not_lost(tmp_path, whole, monkeypatch):
    """What the readings were made from stays, and the same command with resume writes them."""
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(Report, "save", refused)
        with pytest.raises(InputError, match="cannot write"):
            run(out)
    report, calls = run(out, resume=True)
    assert readings(report) == readings(Report.load(out / "report.json")) == whole
    assert not calls, "nothing is done again"


def refused(report, folder):
    raise InputError("cannot write: the disk is full. Make room.")


@pytest.mark.parametrize("stop_at", [1, 17, 45])
def test_a_killed_and_resumed_survey_gives_the_same_bits(tmp_path, whole, stop_at):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(out, stop_at)
    assert (out / ".states").is_dir()
    report, calls = run(out, resume=True)
    assert readings(report) == whole
    assert readings(Report.load(out / "report.json")) == whole
    assert not (out / ".states").exists(), "a finished run leaves its report alone"
    batches = [label for label, _ in calls if "solving" not in label]
    assert len(batches) < 60, "what was kept is not done again"


def test_curves_and_pieces_are_kept_whole(tmp_path):
    """Killed among the controls' curves: those that were done are read from the folder."""
    options = {"rows": 60, "has_controls": True, "gauges": ["tangent", "pieces"]}
    expected = readings(survey(["demo:mlp"], **options))
    out, calls = tmp_path / "out", []

    def progress(label, done, total):
        calls.append(label)
        if "fresh weights, curves" in label and not resuming:
            raise KeyboardInterrupt

    resuming = False
    with pytest.raises(KeyboardInterrupt):
        survey(["demo:mlp"], **options, progress=progress, out=out)
    resuming, calls[:] = True, []
    found = survey(["demo:mlp"], **options, progress=progress, out=out, resume=True)
    assert readings(found) == expected
    assert not any("trained" in label for label in calls)
    assert {one.gauge for one in found.models[0].readings} == {"tangent", "pieces"}
    assert {"fresh", "shuffled"} <= set(found.models[0].readings[0].controls)


def test_a_gauge_that_was_named_must_be_readable():
    with pytest.raises(InputError, match="none of fit, chord"):
        survey(["demo:linear"], gauges=["nonesuch"])
    with pytest.raises(InputError, match="native_layer_norm"):
        survey(["demo:transformer"], rows=60, gauges=["pieces"], has_controls=False)
    found = survey(["demo:transformer"], rows=60, has_controls=False)
    assert any("native_layer_norm" in note for note in found.models[0].notes)
    assert {one.gauge for one in found.models[0].readings} == {
        "fit", "chord", "tangent", "sum", "homogeneity", "kernel",
    }  # fmt: skip


class Branch(nn.Module):
    """Overflows where its first weight is the large one, as it may be when shuffled."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([0.0, 2000.0]))

    def forward(self, x):
        return x.tanh() * torch.exp(self.scale[0])


def test_a_control_that_overflows_is_missing_and_says_why():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), Branch(), nn.Linear(4, 4))
    for seed in range(20):  # a seed whose permutation swaps the two
        if shuffled(model, seed)[1].scale[0] > 0:
            break
    report = survey([model], torch.randn(80, 4), gauges=["fit"], seed=seed)
    (found,) = report.models
    assert {one.site for one in found.readings} == {"0", "1", "2"}
    spoiled = [one.controls["shuffled"] for one in found.readings if one.site == "1"]
    assert all(control["value"] is None for control in spoiled)
    assert all(
        "NaN or infinity for every one of 80 units" in control["missing"] for control in spoiled
    )


def test_sites_that_pool_are_passed_over_unless_named():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1),
        nn.Flatten(), nn.Linear(36, 5),
    )  # fmt: skip
    images = torch.randn(80, 1, 8, 8)
    (found,) = survey([model], images, gauges=["fit"], has_controls=False).models
    assert {one.site for one in found.readings} == {"1", "2", "4"}
    assert any("site '0' turns" in note for note in found.notes)
    with pytest.raises(InputError, match="site '0' turns"):
        survey([model], images, gauges=["fit"], sites=["0"], has_controls=False)


@pytest.mark.parametrize("kept", [{"readings": [], "extra": 1}, [], "readings"])
def test_readings_of_another_form_are_said_to_be_spoiled(tmp_path, kept):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 17)
    done = tmp_path / ".states" / "0-trained-fit.json"
    assert done.is_file()
    done.write_text(json.dumps(kept))
    with pytest.raises(StateError, match=r"0-trained-fit.*cannot be read.*without --resume"):
        run(tmp_path, resume=True)


def test_sums_of_another_form_are_said_to_be_spoiled(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 5)
    Checkpoint(tmp_path / ".states").save_sums("0-trained-fit", {"x": torch.zeros(1)}, {"sites": 3})
    with pytest.raises(StateError, match=r"0-trained-fit.*cannot be read"):
        run(tmp_path, resume=True)


def test_killed_twice(tmp_path, whole):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(out, 5)
    with pytest.raises(KeyboardInterrupt):
        run(out, 12, resume=True)
    assert readings(run(out, resume=True)[0]) == whole


def test_other_settings_or_data_do_not_resume(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(out, 5)
    with pytest.raises(InputError, match=r"differs from this one in seed"):
        run(out, resume=True, seed=1)
    with pytest.raises(InputError, match=r"another fingerprint at '0-data'"):
        survey(MODELS, rows=59, gauges=["fit"], batch_size=16, out=out, resume=True)
    with pytest.raises(InputError, match="another fingerprint"):
        survey(MODELS[::-1], rows=60, gauges=["fit"], batch_size=16, out=out, resume=True)
    assert (out / ".states").is_dir(), "what was kept is still there"


def test_resume_needs_the_folder_of_a_run():
    with pytest.raises(InputError, match="got resume without `out`"):
        survey(["demo:linear"], resume=True)


@pytest.mark.parametrize("step", ["1-trained-fit", "0-fresh-fit", "1-shuffled-fit"])
def test_a_full_disk_ends_the_run_which_then_goes_on(tmp_path, whole, monkeypatch, step):
    """Also while a control is read, whose own failures are only named beside the readings."""
    out = tmp_path / "out"
    replace = os.replace

    def full(source, target):
        if Path(target).name == f"{step}.safetensors":
            raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(StateError, match=r"No space left on device.*--resume"):
            run(out)
    assert readings(run(out, resume=True)[0]) == whole
    assert not (out / ".states").exists()


def test_sums_go_once_their_readings_are_kept(tmp_path):
    """At any time the sums of one pass alone are on the disk."""
    out, seen = tmp_path / "out", []

    def progress(label, done, total):
        seen.append(sorted(path.stem for path in out.glob(".states/*.safetensors")))

    survey(MODELS, rows=60, gauges=["fit"], batch_size=16, progress=progress, out=out)
    assert max(map(len, seen)) == 1
    assert {steps[0] for steps in seen} == {
        f"{place}-{what}-fit" for place in (0, 1) for what in ("trained", "fresh", "shuffled")
    }


class Twisted(nn.Sequential):
    """The modules, weights and buffers of another `nn.Sequential`, with another forward."""

    def __repr__(self):
        return super().__repr__().replace("Twisted", "Sequential", 1)

    def forward(self, x):
        return super().forward(x) + 1e-3 * x.sin()


def test_another_forward_of_the_same_modules_does_not_resume(tmp_path):
    torch.manual_seed(0)
    parts, data = [nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)], torch.randn(80, 4)

    def go(model, **options):
        return survey([model], data, gauges=["fit"], out=tmp_path / "out", **options)

    def stop(label, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(nn.Sequential(*parts), progress=stop)
    with pytest.raises(InputError, match=r"another fingerprint at '0-output'"):
        go(Twisted(*parts), resume=True)
    assert go(nn.Sequential(*parts), resume=True).models


class Drawing(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


def test_a_model_that_draws_at_random_has_no_fingerprint_of_its_output():
    data = torch.randn(80, 4)
    feed = feed_of(nn.Sequential(nn.Linear(4, 4)), data)
    assert digest_of_output(feed) == digest_of_output(feed)
    assert digest_of_output(feed_of(nn.Sequential(nn.Linear(4, 4), Drawing()), data)) is None


class Answers(nn.Module):
    """Says something before its answer, which is the only tensor."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return {"note": "unused", "answer": [self.factor * x]}


def test_the_fingerprint_is_of_every_tensor_that_comes_out():
    data = torch.randn(80, 4)
    one, same, other = (digest_of_output(feed_of(Answers(f), data)) for f in (1.0, 1.0, 1.5))
    assert one == same != other


@pytest.mark.parametrize(("units", "is_few"), [(49, True), (50, False)])
def test_few_units_are_told_once_a_model(units, is_few):
    report = survey(["demo:linear", "demo:mlp"], rows=units, gauges=["fit"], has_controls=False)
    for model in report.models:
        told = [note for note in model.notes if note.startswith("Few units: 49")]
        assert len(told) == is_few
        assert all("At least 50 are wanted" in note for note in told)
        assert not any("Few units" in text for one in model.readings for text in one.warnings)


def test_bad_input_keeps_nothing(tmp_path):
    with pytest.raises(InputError, match="at least 3 folds"):
        survey(["demo:linear"], rows=1, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_same_survey_twice_gives_the_same_bits(whole):
    before = torch.random.get_rng_state()
    assert readings(survey(MODELS, rows=60, gauges=["fit"], batch_size=16)) == whole
    assert torch.equal(before, torch.random.get_rng_state()), "a survey draws from nobody's seed"
