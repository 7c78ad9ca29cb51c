"""The studies of recurrences: sizes, tasks, verdicts, small runs, and going on after a kill.

Holds: tests of ``secant.studies`` (sequences, parity, recall, keeps).
May import: pytest, torch, ``secant``.
"""

import json

import pytest
import torch
from torch import nn

from secant.errors import InputError
from secant.studies import keeps, parity, recall
from secant.studies.parity import Arm, at_chance, judged
from secant.studies.sequences import (
    CORES,
    IGNORED,
    Reader,
    combined,
    sized,
    trained,
    weights_in,
)


@pytest.fixture(autouse=True)
def one_thread():
    """These tensors are so small that more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


STUDIES = {"parity": parity, "recall": recall, "keeps": keeps}


@pytest.mark.parametrize("name", CORES)
def test_cores_are_causal_of_one_form_and_as_near_in_size_as_can_be(name):
    torch.manual_seed(0)
    core = sized(name, 12, 900)
    near = [weights_in(CORES[name](12, hidden)) for hidden in range(1, 60)]
    assert max(near) > 900
    assert abs(weights_in(core) - 900) == min(abs(one - 900) for one in near)
    x = torch.randn(2, 9, 12)
    moved = x.clone()
    moved[:, 5] += 1
    one, other = core(x), core(moved)
    assert one.shape == x.shape
    assert torch.allclose(one[:, :5], other[:, :5], atol=1e-6)
    assert not torch.allclose(one[:, 5:], other[:, 5:])


def test_a_size_draws_nothing():
    torch.manual_seed(0)
    CORES["LSTM"](4, 1)
    expected = torch.rand(3)
    torch.manual_seed(0)
    core = sized("LSTM", 4, 1)
    assert torch.equal(torch.rand(3), expected)
    assert weights_in(core) == weights_in(CORES["LSTM"](4, 1))


def test_training_learns_and_ignores_what_is_not_asked():
    """The last bit told, at places after which nothing is labelled."""
    torch.manual_seed(0)
    net = Reader(nn.Embedding(2, 6), CORES["diagonal in [0, 1]"](6, 6), 6, 2)

    def batch():
        x = torch.randint(2, (16, 5))
        labels = torch.full((16, 5), IGNORED)
        labels[:, 2] = x[:, 1]
        return x, labels

    assert trained(net, batch, rate=0.03, steps=100) < 0.1
    x, labels = batch()
    assert torch.equal(net(x)[:, 2].argmax(-1), labels[:, 2])
    # Smoothed by 0.2, the best loss of two classes is the entropy of (0.9, 0.1).
    assert trained(net, batch, rate=0.02, steps=150, smoothing=0.2) == pytest.approx(
        0.325, abs=0.02
    )
    with torch.no_grad():
        net.out[1].bias.fill_(float("nan"))
    with pytest.raises(InputError, match=r"loss finite; got nan at rate 0\.02.*Lower"):
        trained(net, batch, rate=0.02, steps=1)


def test_verdicts_together():
    assert combined(["supported", "undecided", "supported"]) == "supported"
    assert combined(["refuted", "undecided"]) == "refuted"
    assert combined(["supported", "refuted"]) == combined(["depends"]) == "depends"
    assert combined(["undecided"]) == combined([]) == "undecided"


CHANCE, PERFECT = [0.499, 0.501, 0.5005], [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("positive", "signed", "errors", "verdict"),
    [
        (CHANCE, PERFECT, [0, 0, 0], "supported"),
        (CHANCE, [1.0, 0.9999, 1.0], [0, 3, 0], "depends"),
        ([0.6, 0.61, 0.6], PERFECT, [0, 0, 0], "depends"),
        (CHANCE, [0.45, 0.44, 0.45], [9, 9, 9], "refuted"),
        (CHANCE, [1.0, 0.5, 0.5], [0, 9, 9], "undecided"),
        (CHANCE[:1], PERFECT[:1], [0], "undecided"),
    ],
)
def test_parity_is_judged_by_intervals(positive, signed, errors, verdict):
    assert judged(Arm(positive, [9] * len(positive)), Arm(signed, errors)) == verdict


def test_chance_is_inside_an_interval_or_not():
    assert at_chance((0.49, 0.51)) == at_chance((0.5, 0.6)) == "supported"
    assert at_chance((0.51, 0.6)) == at_chance((0.3, 0.4)) == "refuted"
    assert at_chance(None) == "undecided"


def test_tasks():
    """Labels by a loop; what nobody asks is ignored."""
    draw = torch.Generator().manual_seed(0)
    x, labels = parity.bits(4, 30, draw)
    for row, told in zip(x.tolist(), labels.tolist(), strict=True):
        assert told == [sum(row[: k + 1]) % 2 for k in range(30)]
    x, labels = recall.pairs(20, draw)
    for row, told in zip(x.tolist(), labels.tolist(), strict=True):
        known = dict(map(tuple, row[: recall.PAIRS]))
        assert len(known) == recall.PAIRS
        assert told[: recall.PAIRS] == [IGNORED] * recall.PAIRS
        assert told[recall.PAIRS :] == [known[key] for key, _ in row[recall.PAIRS :]]
        assert {value for _, value in row[recall.PAIRS :]} == {recall.VALUES}
    x, labels = keeps.copies(20, draw)
    assert torch.equal(labels[:, -keeps.SYMBOLS :], x[:, : keeps.SYMBOLS])
    assert (labels[:, : -keeps.SYMBOLS] == IGNORED).all()
    assert (x[:, keeps.SYMBOLS : -keeps.SYMBOLS] == keeps.ALPHABET).all()


def test_what_needs_no_key(monkeypatch):
    """Two pairs and two values: both alike half the time, so 3/4 of the answers."""
    monkeypatch.setattr(recall, "PAIRS", 2)
    monkeypatch.setattr(recall, "VALUES", 2)
    assert recall.commonest() == pytest.approx(75, abs=1)


def test_a_state_that_turns_round_counts_and_one_that_fades_does_not(monkeypatch):
    """A short course: eight bits learnt; asked about 8 to 24."""
    for name, value in {"TRAINED": 8, "TESTED": 24, "SEQUENCES": 200, "STEPS": 200,
                        "LENGTHS": (8, 24)}.items():  # fmt: skip
        monkeypatch.setattr(parity, name, value)
    signed = parity.measure("diagonal in [-1, 1]", 0.03, 0)
    faded = parity.measure("diagonal in [0, 1]", 0.03, 0)
    assert signed["within"] > 0.99
    assert signed["score"] > 0.95
    # Of 200 guesses the standard error is 0.035. Nine bits and ten it may still manage.
    assert abs(faded["at"]["24"] - 0.5) < 0.14
    assert signed["at"]["24"] > 0.9
    assert signed["errors"] == round((1 - signed["score"]) * 200 * 17)


def shrink(patch, study):
    """A course of a few steps with two seeds and one rate."""
    patch.setattr(study, "SEEDS", 2)
    patch.setattr(study, "RATES", (0.01,))
    patch.setattr(study, "SEQUENCES", 20)
    if study is parity:
        patch.setattr(study, "STEPS", 3)
        patch.setattr(study, "TESTED", 64)
        patch.setattr(study, "LENGTHS", (10, 64))
    elif study is recall:
        patch.setattr(study, "STEPS", 3)
        patch.setattr(study, "PAIRS", 4)
    else:
        patch.setattr(study, "STEPS", {"digits": 3, "copy": 2})
        patch.setattr(study, "WAIT", 6)


@pytest.mark.parametrize("name", STUDIES)
def test_a_small_run_is_written_down_and_goes_on_after_a_kill(tmp_path, monkeypatch, name):
    study = STUDIES[name]
    shrink(monkeypatch, study)
    total = 3 * len(study.ARMS)

    def stop(label, done, of):
        assert (label, of) == (name, total)
        if done == total - 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.study(out=tmp_path / "out", progress=stop)
    once, calls = study.measure, []
    monkeypatch.setattr(
        study, "measure", lambda *one, **more: calls.append(one) or once(*one, **more)
    )
    found = study.study(out=tmp_path / "out", resume=True)
    assert len(calls) == 2
    data = json.loads((tmp_path / "out" / "study.json").read_text())
    assert data == found.as_dict()
    assert study.study().numbers == found.numbers
    page = (tmp_path / "out" / "study.html").read_text()
    # arms have no order, so only the study over lengths draws a line
    assert ('<svg class="plot"' in page) == (name == "parity")
    assert found.command == f"secant study {name} --seed 0 --out DIR"
    # Figures are means over the two seeds that follow one tuning seed.
    for place, arm in enumerate(study.ARMS):
        scores = [one["score"] for one in found.numbers if one["arm"] == arm][1:]
        mean = next(one for one in found.figures if one.name.startswith(arm + ","))
        assert len(scores) == 2, place
        assert mean.value == pytest.approx(sum(scores) / 2)
        assert mean.interval[0] <= mean.value <= mean.interval[1]


def fake(scores, **more):
    """A measurement by arm, a little different from seed to seed."""

    def measure(arm, rate, seed, **_):
        return {
            "arm": arm, "rate": rate, "seed": seed, "loss": 0.0, "weights": 5, "errors": 0,
            "within": 1.0, "at": {"10": 0.5, "64": 0.5},
            "score": scores[arm] + 0.001 * (seed % 3),
        } | more  # fmt: skip

    return measure


@pytest.mark.parametrize(
    ("scores", "verdict"),
    [
        ({"LRU": 10, "LSTM": 30, "attention": 99, "DeltaNet in [-1, 1]": 98}, "supported"),
        ({"LRU": 60, "LSTM": 30, "attention": 20, "DeltaNet in [-1, 1]": 98}, "refuted"),
        ({"LRU": 60, "LSTM": 30, "attention": 99, "DeltaNet in [-1, 1]": 98}, "depends"),
    ],
)
def test_recall_is_judged_by_both_rivals(monkeypatch, scores, verdict):
    shrink(monkeypatch, recall)
    monkeypatch.setattr(recall, "measure", fake(scores))
    found = recall.study(seeds=3)
    assert found.verdict == verdict
    by_name = {one.name: one for one in found.figures}
    assert by_name["attention over LRU, points"].published == pytest.approx(88.4)
    assert by_name["LSTM over LRU, points"].value == pytest.approx(scores["LSTM"] - scores["LRU"])
    assert by_name["DeltaNet in [-1, 1], right, %"].published is None


def test_a_tie_is_no_loss():
    ends = [(0.1, 2.0), (-2.0, -0.1), (0.0, 0.0), (-1.0, 1.0), None]
    assert [keeps.leads(one) for one in ends] == [
        "supported", "refuted", "undecided", "undecided", "undecided",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("copy", "digits", "verdict"),
    [
        ((99, 40, 13), (95, 95, 94), "supported"),
        ((99, 40, 13), (90, 95, 94), "depends"),
        ((20, 40, 30), (90, 95, 94), "refuted"),
    ],
)
def test_what_is_kept_is_judged_on_every_task(monkeypatch, copy, digits, verdict):
    shrink(monkeypatch, keeps)
    scores = {f"{what}: {name}": score for what, row in (("digits", digits), ("copy", copy))
              for name, score in zip(keeps.CORES_OF, row, strict=True)}  # fmt: skip
    monkeypatch.setattr(keeps, "measure", fake(scores))
    found = keeps.study(seeds=3)
    assert found.verdict == verdict
    by_name = {one.name: one for one in found.figures}
    assert by_name["copy: LRU over LSTM, points"].value == pytest.approx(copy[0] - copy[1])


def test_digits_for_the_rate_are_not_the_test_s(monkeypatch):
    """Each measurement asks about one part; the net is not trained, so that it answers at once."""
    parts = keeps.task("demo:digits", "x", None, 0)
    asked = []
    monkeypatch.setattr(keeps, "trained", lambda *_, **__: 0.0)
    once = keeps.digits
    monkeypatch.setattr(
        keeps, "digits", lambda of, rows: asked.append(len(of.rows)) or once(of, rows)
    )
    keeps.measure("digits: LRU", 0.01, 3)
    keeps.measure("digits: LRU", 0.01, keeps.TUNING_SEED)
    assert asked == [len(parts.test.rows), len(parts.validation.rows)]
    x, labels = once(parts.train, torch.arange(4))
    assert x.shape == (4, 8, 8)
    assert torch.equal(x.flatten(1), parts.train.rows[:4])
    assert torch.equal(labels[:, -1], parts.train.classes[:4])
    assert (labels[:, :-1] == IGNORED).all()


def test_the_command(run, tmp_path, monkeypatch):
    shrink(monkeypatch, recall)
    code, out, err = run("study", "recall", "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    assert "attention over LRU" in out
    code, _, err = run("study", "parity", "--data", "demo:digits", "--out", tmp_path / "other")
    assert code == 2
    assert "makes its own data" in err
