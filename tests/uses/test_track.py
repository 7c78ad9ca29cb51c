"""The tracker against closed forms, and what it must leave alone.

Holds: tests of ``secant.uses.track``, ``secant.uses.motion`` and ``secant.uses.callbacks``.
May import: pytest, torch, ``secant``; transformers and lightning where installed.
"""

import copy
import itertools
import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

import secant
from secant.errors import InputError, LoadError
from secant.uses import motion as motions
from secant.uses.motion import kernel_alignment, kernel_drift
from secant.uses.track import SHARE, Cadence, Track, Tracker


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moved(model, by=0.3, seed=1):
    """Every weight moved by a normal step."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for one in model.parameters():
            one.add_(torch.randn(one.shape, generator=draw, dtype=one.dtype), alpha=by)


class Square(nn.Module):
    """f(x; w) = (w·x)²: quadratic in its weights."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(w.clone())

    def forward(self, x):
        return (x @ self.w).square()


def noisy():
    """Dropout, batch norm, and a draw that changes nothing, even in eval mode."""

    class Drawing(nn.Module):
        def forward(self, x):
            torch.rand(3)
            return x

    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), Drawing(), nn.Linear(8, 3)
    )


@pytest.mark.parametrize("by", [1e-3, 1.0, 100.0])
def test_a_model_linear_in_its_weights_never_leaves_its_start(by):
    model = nn.Linear(4, 3).double()
    tracker = Tracker(model, drawn(10, 4), every=1)
    moved(model, by)
    tracker.step()
    found = tracker.records[-1]
    assert found["first_order"] < 1e-12
    assert found["drift"] < 1e-30
    assert found["richness"] < 1e-12
    assert found["displacement"] > 0


def test_a_quadratic_has_the_known_numbers():
    """Δf = 2(w·x)(d·x) + (d·x)², the latter not first order; K = 4(w·x)(w·x')x·x'."""
    w, d, x = drawn(4), 0.4 * drawn(4, seed=1), drawn(7, 4, seed=2)
    model = Square(w)
    tracker = Tracker(model, x, every=3)
    with torch.no_grad():
        model.w += d
    for _ in range(3):
        tracker.step()
    assert [one["step"] for one in tracker.records] == [0, 3]
    found = tracker.records[-1]
    bend = (x @ d).square()
    expected = bend.norm() / (2 * (x @ w) * (x @ d) + bend).norm()
    assert found["first_order"] == pytest.approx(float(expected), rel=1e-10)

    def gram(at):
        return 4 * (x @ at).outer(x @ at) * (x @ x.T)

    k0, kt = gram(w), gram(w + d)
    drift = float(1 - (k0 * kt).sum() / k0.norm() / kt.norm())
    assert found["drift"] == pytest.approx(drift, rel=1e-9)
    assert found["velocity"] == pytest.approx(drift / 3, rel=1e-9)
    assert found["displacement"] == pytest.approx(float(d.norm() / w.norm()), rel=1e-12)
    assert found["layers"] == {"(model)": found["displacement"]}
    assert found["richness"] == max(found["drift"], found["first_order"])


def test_velocity_is_between_neighbouring_records():
    model, x = Square(drawn(4)), drawn(7, 4, seed=2)
    tracker = Tracker(model, x, every=2)
    grams = [secant.kernel(model, x)]
    for step in range(1, 5):
        moved(model, 0.1, seed=step)
        tracker.step()
        if step % 2 == 0:
            grams.append(secant.kernel(model, x))
    found = [one["velocity"] for one in tracker.records]
    expected = [kernel_drift(one, other) / 2 for one, other in itertools.pairwise(grams)]
    assert found[0] is None
    assert found[1:] == pytest.approx(expected, rel=1e-9)


def test_at_rest_nothing_has_changed_and_no_error_exists():
    tracker = Tracker(nn.Linear(3, 2), torch.randn(5, 3), every=1)
    tracker.step()
    found = tracker.records[-1]
    assert (found["displacement"], found["drift"], found["velocity"]) == (0, 0, 0)
    assert found["first_order"] is None
    assert found["richness"] is None


def test_layers_move_apart_and_zeros_have_no_relative_movement():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.LayerNorm(2))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.zero_()
    tracker = Tracker(model, torch.randn(5, 3), every=1)
    with torch.no_grad():
        model[0].weight *= 1.5
        model[0].bias *= 1.5
        model[1].bias += 1
    tracker.step()
    found = tracker.records[-1]["layers"]
    assert found == {"0": pytest.approx(0.5, rel=1e-6), "1": None, "2": 0}


def test_nan_weights_are_no_numbers():
    model = nn.Linear(3, 2)
    tracker = Tracker(model, torch.randn(5, 3), every=1)
    with torch.no_grad():
        model.weight.fill_(math.inf)
    tracker.step()
    found = tracker.records[-1]
    assert found["displacement"] is None
    assert found["first_order"] is None
    json.dumps(tracker.records, allow_nan=False)


def test_drift_of_known_kernels():
    one = torch.eye(2, dtype=torch.float64)
    assert kernel_drift(one, 5 * one) == pytest.approx(0, abs=1e-30)
    corner = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).double()
    assert kernel_drift(one, corner) == pytest.approx(1 - 0.5**0.5, rel=1e-14)
    assert kernel_drift(corner, one - corner) == pytest.approx(1, rel=1e-14)
    assert kernel_drift(one, 0 * one) is None


def test_alignment_of_known_kernels():
    y = torch.tensor([1.0, 1.0, -1.0, -1.0]).double()[:, None]
    assert kernel_alignment(y @ y.T + 3, y) == pytest.approx(1, rel=1e-12)
    z = torch.tensor([1.0, -1.0, 1.0, -1.0]).double()[:, None]
    assert kernel_alignment(z @ z.T, y) == pytest.approx(0, abs=1e-15)
    # For centred K and y: y'Ky / (|K| |y|²).
    k = 2 * y @ y.T + z @ z.T
    expected = float(y.T @ k @ y / k.norm() / y.square().sum())
    assert kernel_alignment(k, y) == pytest.approx(expected, rel=1e-12)
    assert kernel_alignment(k, torch.ones_like(y)) is None


def test_alignment_of_classes_is_that_of_their_columns():
    model, x = nn.Linear(4, 3).double(), drawn(9, 4)
    labels = torch.tensor([0, 1, 2] * 3)
    tracker = Tracker(model, x, labels)
    columns = functional.one_hot(labels).double()
    expected = kernel_alignment(3 * (x @ x.T + 1), columns)
    assert tracker.records[0]["alignment"] == pytest.approx(expected, rel=1e-12)
    floats = Tracker(model, x, columns).records[0]["alignment"]
    assert floats == pytest.approx(expected, rel=1e-12)
    assert Tracker(model, x).records[0]["alignment"] is None


def test_model_mode_gradients_buffers_and_random_state_are_untouched():
    model, x = noisy().train(), torch.randn(12, 5)
    model[2].eval()  # a mode of its own
    model(x).sum().backward()
    before = copy.deepcopy(model.state_dict())
    gradients = [one.grad.clone() for one in model.parameters()]
    modes = [one.training for one in model.modules()]
    hooks = [len(one._forward_hooks) for one in model.modules()]
    state = torch.get_rng_state()
    tracker = Tracker(model, x, torch.zeros(12, dtype=torch.int64), every=1)
    tracker.step()
    assert torch.equal(torch.get_rng_state(), state)
    for name, one in model.state_dict().items():
        assert torch.equal(one, before[name]), name
    for one, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.equal(one.grad, gradient)
        assert one.requires_grad
    assert [one.training for one in model.modules()] == modes
    assert [len(one._forward_hooks) for one in model.modules()] == hooks
    assert torch.backends.mkldnn.enabled
    assert torch.is_grad_enabled()


def test_training_is_the_same_with_and_without_a_tracker():
    def trained(is_tracked):
        model, x = noisy().train(), torch.randn(32, 5, generator=torch.Generator().manual_seed(5))
        optimiser = torch.optim.SGD(model.parameters(), 0.1)
        tracker = Tracker(model, x, every=1) if is_tracked else None
        torch.manual_seed(3)
        for _ in range(5):
            optimiser.zero_grad()
            model(x).square().mean().backward()
            optimiser.step()
            if tracker is not None:
                tracker.step()
        return model.state_dict()

    with_one, without = trained(True), trained(False)
    assert all(torch.equal(with_one[name], without[name]) for name in without)


def test_buffers_of_now_are_measured_with():
    """Batch norm's statistics follow the model; one that never runs keeps those of the start."""
    model, x = noisy().double().train(), drawn(12, 5)
    tracker = Tracker(model, x, every=1)
    moved(model, 0.1)
    tracker.step()
    with torch.no_grad():
        model[1].running_mean += 0.5
    tracker.step()
    first, second = tracker.records[-2:]
    assert first["displacement"] == second["displacement"]
    assert first["first_order"] != second["first_order"]
    expected = kernel_drift(tracker.motion.gram, secant.kernel(model.eval(), x))
    assert second["drift"] == pytest.approx(expected, rel=1e-9)


def test_same_seed_same_numbers_and_another_draws_other_rows():
    def found(seed):
        torch.manual_seed(7)
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 40))
        tracker = Tracker(model, drawn(100, 4).float(), every=1, seed=seed)
        moved(model, 0.2)
        tracker.step()
        return tracker

    one, again, other = found(0), found(0), found(1)
    assert one.records == again.records
    assert one.records != other.records
    track = one.track()
    assert (track.rows, track.outputs, track.sketched) == (motions.ROWS, 40, motions.MOST_OUTPUTS)


def test_the_sketch_has_the_kernel_in_the_mean():
    model, x = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 40)).double(), drawn(6, 3)
    expected = secant.kernel(model, x)
    grams = torch.stack([Tracker(model, x, seed=seed).motion.gram for seed in range(200)])
    spread = grams.std(0) / 200**0.5
    assert ((grams.mean(0) - expected).abs() <= 4.5 * spread + 1e-9).all()
    few = nn.Linear(3, motions.MOST_OUTPUTS).double()
    assert torch.equal(Tracker(few, x).motion.gram, secant.kernel(few, x))


def test_half_precision_is_measured_in_float32():
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).bfloat16()
    x = torch.randn(5, 4)
    tracker = Tracker(model, x.bfloat16(), every=1)
    moved(model, 0.2)
    tracker.step()
    assert tracker.motion.gram.dtype == torch.float64
    assert 0 < tracker.records[-1]["first_order"] < 2
    assert tracker.records[-1]["rounding"] < 1e-5


def test_part_of_the_parameters():
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    tracker = Tracker(model, drawn(5, 4), parameters=["2.*"], every=1)
    moved(model, 0.3)
    tracker.step()
    found = tracker.records[-1]
    assert list(found["layers"]) == ["2"]
    assert found["first_order"] < 1e-12


# Cadence -----------------------------------------------------------------------------------


def test_the_cadence_keeps_to_its_share():
    """Steps of 1 s, a start of 8 s and records of 4 s: never more than a tenth of the time."""
    cadence, taken = Cadence(None, own_seconds=8.0), []
    cadence.cost_seconds = 8.0
    for step in range(1, 3000):
        cadence.run_seconds += 1.0
        if cadence.is_due(step) and cadence.is_affordable():
            taken.append(step)
            cadence.own_seconds += 4.0
            cadence.measured(step, 4.0)
            assert cadence.own_seconds <= SHARE * cadence.run_seconds
    assert taken[0] == 160  # 8 s of start and 8 s, the best guess at a record, are a tenth of it
    assert {b - a for a, b in itertools.pairwise(taken[3:])} == {80}


def test_what_comes_too_early_is_put_off():
    cadence, taken = Cadence(None), []
    for step in range(1, 1000):
        cadence.run_seconds += 1.0
        if cadence.is_due(step) and cadence.is_affordable():
            taken.append(step)
            cadence.own_seconds += 5.0
            cadence.measured(step, 5.0)
    assert taken[0] == 1
    assert taken[1] == 100  # 2 was too early: 10 s for a tenth of the time
    assert all(b - a == 100 for a, b in itertools.pairwise(taken[1:]))


def test_log_spaced_until_the_distance_costs_half_of_the_share():
    """Records of 5 s, steps of 1 s: a distance of 100 steps takes a twentieth of the time."""
    following = []
    for step in (1, 2, 7, 64, 100, 128, 1000):
        cadence = Cadence(None, run_seconds=float(step))
        cadence.measured(step, 5.0)
        following.append(cadence.next_step)
    assert following == [2, 4, 14, 128, 200, 228, 1100]


def test_a_given_cadence_is_kept_whatever_it_costs():
    tracker = Tracker(nn.Linear(3, 2), torch.randn(5, 3), every=2)
    for _ in range(5):
        tracker.step()
    assert [one["step"] for one in tracker.records] == [0, 2, 4]
    with pytest.raises(InputError, match="at least 1 step; got 0"):
        Tracker(nn.Linear(3, 2), torch.randn(5, 3), every=0)


# Records -----------------------------------------------------------------------------------


def a_run(tracker, model, steps, start=0):
    for step in range(start, start + steps):
        moved(model, 0.05, seed=step)
        tracker.step()


def test_records_are_handed_on_once(tmp_path):
    model = nn.Linear(3, 2).double()
    tracker = Tracker(model, drawn(5, 3), every=1)
    heard, late = [], []
    a_run(tracker, model, 1)
    tracker.log(lambda *one: heard.append(one))
    tracker.log(lambda *one: late.append(one))
    assert [step for name, _, step in heard if name == "secant/displacement"] == [0, 1]
    a_run(tracker, model, 1, 1)
    assert [step for name, _, step in heard if name == "secant/drift"] == [0, 1, 2]
    assert {step for _, _, step in late} == {2}
    names = {name for name, _, _ in heard}
    assert "secant/displacement/(model)" in names
    assert "secant/alignment" not in names  # no labels, no number


def test_a_run_that_goes_on_has_the_same_records(tmp_path):
    def fresh():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()

    x, labels = drawn(8, 4), torch.tensor([0, 1] * 4)
    model = fresh()
    whole = Tracker(model, x, labels, every=2)
    a_run(whole, model, 6)
    model = fresh()
    first = Tracker(model, x, labels, every=2)
    a_run(first, model, 3)
    torch.save([model.state_dict(), first.state_dict()], tmp_path / "kept.pt")
    weights, state = torch.load(tmp_path / "kept.pt", weights_only=True)
    model = fresh()
    model.load_state_dict(weights)
    second = Tracker(model, x, labels, every=2)
    second.load_state_dict(state)
    a_run(second, model, 3, 3)
    assert second.records == whole.records
    assert second.cadence.run_seconds > state["cadence"]["run_seconds"]


@pytest.mark.parametrize(
    ("other", "word"),
    [
        (lambda model, x: Tracker(model, x + 1), "batch"),
        (lambda model, x: Tracker(model, x, seed=1), "seed"),
        (lambda model, x: Tracker(model, x, parameters=["bias"]), "names"),
        (lambda model, x: Tracker(nn.Linear(3, 5).double(), x), "shapes"),
    ],
)
def test_a_state_of_another_run_is_refused(other, word):
    model, x = nn.Linear(3, 2).double(), drawn(5, 3)
    state = Tracker(model, x).state_dict()
    with pytest.raises(InputError, match=word):
        other(model, x).load_state_dict(state)


def test_a_track_is_saved_and_read_again(tmp_path):
    model = nn.Linear(3, 2).double()
    tracker = Tracker(model, drawn(5, 3), torch.arange(5) % 2, every=1)
    a_run(tracker, model, 2)
    tracker.save(tmp_path / "run.json")
    found = Track.load(tmp_path / "run.json")
    assert found == tracker.track()
    assert (found.schema, found.sketched) == (1, None)
    assert {"torch", "secant", "python"} <= found.versions.keys()
    data = json.loads((tmp_path / "run.json").read_text())
    for change, word in [
        ({"schema": 2}, "schema 1"),
        ({"records": [{"step": 0}]}, r"records\[0\] lacks"),
        ({"more": 1}, "unknown field 'more'"),
    ]:
        (tmp_path / "bad.json").write_text(json.dumps(data | change))
        with pytest.raises(LoadError, match=word):
            Track.load(tmp_path / "bad.json")
    with pytest.raises(LoadError, match="cannot be read"):
        Track.load(tmp_path / "nonesuch.json")


@pytest.mark.parametrize(
    ("labels", "word"),
    [
        (torch.zeros(4, dtype=torch.int64), r"each of 5 rows; got \(4,\)"),
        (torch.zeros(5, 2, dtype=torch.int64), "one a row"),
        (torch.tensor([0, 1, -100, 0, 1]), "least of -100"),
        ([0, 1, 0, 1, 0], "got list"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, word):
    with pytest.raises(InputError, match=word):
        Tracker(nn.Linear(3, 2), torch.randn(5, 3), labels)


def test_a_model_that_is_random_in_eval_mode_is_refused():
    class Noise(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return self.layer(x) + torch.rand(2)

    with pytest.raises(InputError, match="change from call to call"):
        Tracker(Noise(), torch.randn(5, 3))


# Other people's loops ----------------------------------------------------------------------


def sentences():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=12, max_position_embeddings=10, num_labels=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config)
    ids = torch.randint(1, 20, (16, 5), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": one, "labels": one[0] % 2} for one in ids]
    return transformers, model, ids, rows


def trainer(transformers, model, rows, tracker, folder, steps):
    args = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=4, save_steps=2,
        report_to=[], disable_tqdm=True, use_cpu=True, gradient_accumulation_steps=2, seed=1,
        data_seed=1,
    )  # fmt: skip
    return transformers.Trainer(
        model, args, train_dataset=rows, callbacks=[tracker.callback_for_trainer()]
    )


def test_hugging_face_trainer_steps_the_tracker_and_goes_on(tmp_path):
    pytest.importorskip("accelerate")
    transformers, model, ids, rows = sentences()
    whole = Tracker(model, {"input_ids": ids}, every=1)
    trainer(transformers, model, rows, whole, tmp_path, 4).train()
    assert [one["step"] for one in whole.records] == [0, 1, 2, 3, 4]
    assert whole.records[-1]["first_order"] > 0
    _, again, _, _ = sentences()
    tracker = Tracker(again, {"input_ids": ids}, every=1)
    runner = trainer(transformers, again, rows, tracker, tmp_path, 4)
    runner.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert tracker.records[:3] == whole.records[:3]
    assert [one["step"] for one in tracker.records] == [0, 1, 2, 3, 4]
    (tmp_path / "checkpoint-2" / "secant_tracker.pt").unlink()
    tracker = Tracker(again, {"input_ids": ids}, every=1)
    runner = trainer(transformers, again, rows, tracker, tmp_path, 4)
    with pytest.warns(UserWarning, match="measured from there"):
        runner.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_trainers_hooks_without_trainer(tmp_path):
    """The hooks as documented, called as Trainer calls them."""
    transformers, model, ids, _ = sentences()
    tracker = Tracker(model, {"input_ids": ids}, every=1)
    callback = tracker.callback_for_trainer()
    assert isinstance(callback, transformers.TrainerCallback)
    args = transformers.TrainingArguments.__new__(transformers.TrainingArguments)
    object.__setattr__(args, "output_dir", str(tmp_path))
    state, control = transformers.TrainerState(global_step=0), transformers.TrainerControl()
    callback.on_train_begin(args, state, control, model=model)
    for state.global_step in (1, 2):
        moved(model, 0.01, seed=state.global_step)
        callback.on_step_end(args, state, control, model=model)
    (tmp_path / "checkpoint-2").mkdir()
    callback.on_save(args, state, control)
    again = Tracker(model, {"input_ids": ids}, every=1)
    again.callback_for_trainer().on_train_begin(args, state, control)
    assert again.records == tracker.records
    assert [one["step"] for one in again.records] == [0, 1, 2]


def test_lightning_steps_the_tracker_and_keeps_its_state(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")

    class Net(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))

        def training_step(self, batch, _):
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=4)

    def fitted(tracker, net, epochs, path=None):
        runner = lightning.Trainer(
            max_epochs=epochs, accumulate_grad_batches=2, accelerator="cpu", logger=False,
            default_root_dir=tmp_path, enable_progress_bar=False, enable_model_summary=False,
            callbacks=[tracker.callback_for_lightning()],
        )  # fmt: skip
        runner.fit(net, loader, ckpt_path=path)
        return runner

    net = Net()
    tracker = Tracker(net.net, x, every=2)
    fitted(tracker, net, 1).save_checkpoint(tmp_path / "one.ckpt")
    assert [one["step"] for one in tracker.records] == [0, 2, 4]
    net = Net()
    again = Tracker(net.net, x, every=2)
    fitted(again, net, 2, tmp_path / "one.ckpt")
    assert again.records[:3] == tracker.records
    assert [one["step"] for one in again.records] == [0, 2, 4, 6, 8]


def test_a_missing_package_is_named(monkeypatch):
    tracker = Tracker(nn.Linear(3, 2), torch.randn(5, 3))
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning", "transformers"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(InputError, match="needs the package 'lightning'"):
        tracker.callback_for_lightning()
    with pytest.raises(InputError, match="needs the package 'transformers'"):
        tracker.callback_for_trainer()
