"""The rounding study: its data, a task that only a bend solves, a small run, its script.

Holds: tests of ``secant.studies.rounding`` and ``scripts/animal_shapes.py``.
May import: pytest, torch, numpy, scipy, ``secant``.
"""

import importlib.util
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import t as student

from secant.errors import InputError
from secant.studies import rounding
from secant.studies.rounding import RECIPES, Set, Task, gains, interval, judged, measure, task

SCRIPT = Path(__file__).parents[2] / "scripts" / "animal_shapes.py"


def reader():
    spec = importlib.util.spec_from_file_location("animal_shapes", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.plain_array


def rings(rows, seed):
    """Two classes that no line parts: inside a circle and outside it."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 2, generator=draw)
    return Set(x, (x.square().sum(1) > 1.4).long())


def test_only_a_bend_parts_the_rings(monkeypatch):
    """Identity is near the commonest class; the chain that clips is not, unless it is flattened."""
    monkeypatch.setattr(rounding, "STEPS", 200)
    monkeypatch.setattr(rounding, "CHECKS", 4)
    data = Task(rings(1500, 0), rings(400, 1), rings(1000, 2))
    common = max(float((data.test.classes == one).double().mean()) for one in (0, 1))
    found = {
        name: measure(RECIPES[name], data, 3e-2, 0)
        for name in ("identity", "the chain in real numbers", "clip, secants", "ReLU")
    }
    for name in ("identity", "the chain in real numbers"):
        assert found[name]["test"] < common + 0.12
        assert found[name]["flattened"] == pytest.approx(found[name]["test"], abs=0.005)
    assert found["clip, secants"]["test"] > 0.93
    assert found["clip, secants"]["flattened"] < common + 0.12
    assert found["ReLU"]["test"] > 0.93
    assert "flattened" not in found["ReLU"]


def test_the_split_is_by_content(tmp_path):
    draw = np.random.default_rng(0)
    x = draw.integers(0, 255, (900, 2, 3), dtype=np.uint8)
    x = np.concatenate([x, x[:200]])
    y = np.arange(1100) % 3
    y[900:] = y[:200]
    np.savez(tmp_path / "rows.npz", x=x, label=y)
    parts = task(tmp_path / "rows.npz", "x", "label", 0)
    assert sum(len(one.rows) for one in parts) == 1100
    assert 0.15 < len(parts.test.rows) / 1100 < 0.25
    seen = [{tuple(row) for row in one.rows.tolist()} for one in parts]
    assert not seen[0] & seen[1]
    assert not seen[1] & seen[2]
    assert not seen[0] & seen[2]
    assert parts.train.rows.mean(0).abs().max() < 1e-5
    assert float(parts.train.rows.square().mean()) == pytest.approx(1, abs=1e-5)
    other = task(tmp_path / "rows.npz", "x", "label", 1)
    assert len(other.test.rows) != len(parts.test.rows)


def test_intervals_and_verdicts():
    values = [1.0, 2.0, 4.0, 5.0]
    low, high = student.interval(0.95, 3, loc=3, scale=np.std(values, ddof=1) / 2)
    assert interval(values) == pytest.approx((low, high))
    assert interval(values[:1]) is None
    above, below, across = (0.5, 2.0), (-2.0, 0.0), (-1.0, 1.0)
    assert [gains(one) for one in (above, below, across, None)] == [
        "supported", "refuted", "undecided", "undecided",
    ]  # fmt: skip
    assert judged(above, below) == judged(above, across) == judged(above, None) == "supported"
    assert judged(above, above) == "depends"
    assert judged(below, below) == "refuted"
    assert judged(across, below) == judged(None, above) == "undecided"


def shrink(patch):
    names = ("identity", "the chain in real numbers", "offset 64", "clip, secants", "ReLU")
    patch.setattr(rounding, "STEPS", 20)
    patch.setattr(rounding, "CHECKS", 3)
    patch.setattr(rounding, "SEEDS", 2)
    patch.setattr(rounding, "RATES", (3e-3,))
    patch.setattr(rounding, "OFFSETS", (64.0,))
    patch.setattr(rounding, "RECIPES", {name: RECIPES[name] for name in names})
    patch.setattr(rounding, "DESIGNS", ["offset 64", "clip, secants"])


def test_a_small_run_is_written_down_and_goes_on(tmp_path, monkeypatch):
    shrink(monkeypatch)

    def stop(label, done, total):
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rounding.study(out=tmp_path / "out", progress=stop)
    calls, once = [], rounding.measure
    monkeypatch.setattr(rounding, "measure", lambda *one: calls.append(one) or once(*one))
    found = rounding.study(out=tmp_path / "out", resume=True)
    assert len(calls) == 15 - 7
    data = json.loads((tmp_path / "out" / "study.json").read_text())
    assert data == found.as_dict()
    whole = rounding.study()
    assert whole.numbers == found.numbers
    assert data["settings"]["chosen"] in rounding.DESIGNS
    tuned = [one for one in data["numbers"] if one["seed"] == rounding.TUNING_SEED]
    of = {name: max(o["validation"] for o in tuned if o["recipe"] == name) for name in RECIPES
          if name in rounding.DESIGNS}  # fmt: skip
    assert of[data["settings"]["chosen"]] == max(of.values())
    base, gain, flat = found.figures[:3]
    tests = {
        name: [o["test"] for o in data["numbers"] if o["recipe"] == name and o not in tuned]
        for name in ("identity", data["settings"]["chosen"])
    }
    means = [100 * sum(one) / 2 for one in tests.values()]
    assert base.value == pytest.approx(means[0])
    assert gain.value == pytest.approx(means[1] - means[0])
    assert found.verdict == judged(gain.interval, flat.interval)
    assert "--data demo:digits --seed 0" in found.command
    page = (tmp_path / "out" / "study.html").read_text()
    assert found.verdict in page
    assert "flattened" in page


def test_digits_say_that_they_leave_little(monkeypatch):
    said = rounding._words(
        "clip", [0.95, 0.96], [1.0, 1.0], [-9.0, -9.0],
        {"data": "demo:digits", "rows": {"test": 361}, "seeds": 2},
    )  # fmt: skip
    assert "95.5 % of 361 test rows" in said
    assert "+1.0 points, and -9.0" in said
    assert "leaves little to gain here" in said


def test_the_command(run, tmp_path, monkeypatch):
    shrink(monkeypatch)
    draw = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=draw.normal(size=(700, 4)), y=np.arange(700) % 2)
    where = ("--data", tmp_path / "d.npz", "--label-column", "y", "--out", tmp_path / "out")
    code, out, err = run("study", "rounding", *where)
    assert (code, err) == (0, "")
    assert "identity, accuracy" in out
    assert "--label-column y" in (tmp_path / "out" / "study.json").read_text()
    code, _, err = run("study", "wide-nets", "--data", "demo:digits", "--out", tmp_path / "other")
    assert code == 2
    assert "makes its own data" in err
    assert "rounding" in err


@pytest.mark.parametrize(
    ("rows", "label", "message"),
    [
        (700, None, r"rows of numbers with whole-number or word classes.*lacks them"),
        (100, "y", r"at least 50 rows in each of training, validation and test; got \[\d+, "),
    ],
)
def test_data_that_will_not_do(tmp_path, rows, label, message):
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(0).normal(size=(rows, 4)))
    if label:
        np.savez(tmp_path / "d.npz", x=np.eye(rows), y=np.arange(rows) % 2)
    with pytest.raises(InputError, match=message):
        task(tmp_path / "d.npz", "x", label, 0)


def test_the_script_reads_arrays_and_nothing_else():
    plain_array = reader()
    x = np.arange(2 * 300 * 2, dtype=np.uint8).reshape(2, 300, 2)
    labels = np.arange(300) * 2**40
    assert np.array_equal(plain_array(pickle.dumps(x, 4)), x)
    assert np.array_equal(plain_array(pickle.dumps(labels, 4)), labels)
    # Short arrays, and protocol 5, are written otherwise; the package has neither.
    with pytest.raises(ValueError, match="expected a pickle of one"):
        plain_array(pickle.dumps(x, 5))
    for other in ([1, 2], {"x": x}, (x, x), x.astype(object), x.astype(float), x[:, :2], print):
        with pytest.raises(ValueError, match="expected a pickle of one uint8 or int64 array"):
            plain_array(pickle.dumps(other, 4))
    fortran = pickle.dumps(np.asfortranarray(x), 4)
    with pytest.raises(ValueError, match="expected a pickle"):
        plain_array(fortran)
