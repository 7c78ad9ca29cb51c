"""Modules passed from Python, fresh copies of them, device and dtype.

Holds: tests of ``secant.load.models``, ``secant.load.loaded`` and ``secant.load.fresh``.
May import: pytest, torch, ``secant``.
"""

import operator

import pytest
import torch
from torch import nn

import secant
from secant.errors import ControlError, InputError, LoadError
from secant.load.fresh import reinitialised
from secant.load.models import load_model, shuffled
from secant.load.options import LoadOptions


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


class Bare(nn.Module):
    """A parameter that no method draws anew."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.scale * self.inner(x)


def test_a_module_in_eval_mode_is_used_as_it_is():
    model = small().eval()
    loaded = load_model(model)
    assert loaded.model is model
    assert loaded.name == "Sequential"


@pytest.mark.parametrize("options", [{}, {"dtype": "float64"}, {"device": "cpu"}])
def test_the_callers_module_is_never_changed(options):
    model = small().train()
    loaded = load_model(model, LoadOptions(**options))
    assert loaded.model is not model
    assert not loaded.model.training
    assert model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    wanted = getattr(torch, options.get("dtype", "float32"))
    for module in (loaded.model, loaded.fresh(0)):
        assert {p.dtype for p in module.parameters()} == {wanted}


def test_a_half_module_stays_half_unless_asked():
    model = small().eval().bfloat16()
    assert load_model(model).dtype == torch.bfloat16
    assert load_model(model, LoadOptions(dtype="keep")).model is model
    assert load_model(model, LoadOptions(dtype="float32")).dtype == torch.float32
    assert model[0].weight.dtype == torch.bfloat16


def test_a_module_that_cannot_be_copied_is_refused():
    model = small()
    model.kept = model[0].weight * 2
    with pytest.raises(LoadError, match="cannot be copied"):
        load_model(model)


def test_fresh_weights_of_a_module_equal_its_constructors_draw():
    """Children are drawn in reverse order, so one layer is compared with its own constructor."""
    layer = nn.Linear(5, 7).eval()
    found = load_model(layer).fresh(11)
    torch.manual_seed(11)
    wanted = nn.Linear(5, 7)
    assert found.weight.equal(wanted.weight)
    assert found.bias.equal(wanted.bias)


def test_fresh_resets_running_statistics():
    model = small()
    model(torch.randn(64, 3) * 9)
    fresh = load_model(model).fresh(0)
    assert fresh[1].running_mean.equal(torch.zeros(4))
    assert fresh[1].running_var.equal(torch.ones(4))


@pytest.mark.parametrize(
    "model",
    [
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        nn.LSTM(4, 4),
        nn.Sequential(nn.Conv2d(3, 3, 3), nn.GroupNorm(1, 3), nn.PReLU(), nn.Embedding(3, 3)),
    ],
    ids=["transformer", "lstm", "layers"],
)
def test_torchs_own_layers_can_be_drawn_anew(model):
    before = torch.get_rng_state()
    one, other = reinitialised(model, 0), reinitialised(model, 1)
    assert torch.get_rng_state().equal(before)
    flat = [torch.cat([p.flatten() for p in m.parameters()]) for m in (one, other)]
    assert bool(torch.isfinite(flat[0]).all())
    assert not flat[0].equal(flat[1])


def test_a_parents_rule_has_the_last_word():
    class Zeroed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def reset_parameters(self):
            nn.init.zeros_(self.inner.weight)

    assert reinitialised(Zeroed(), 0).inner.weight.equal(torch.zeros(3, 3))


def test_ties_survive_a_fresh_draw():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    fresh = reinitialised(model, 0)
    assert fresh[0].weight is fresh[1].weight


def test_a_parameter_without_a_rule_is_named():
    with pytest.raises(ControlError, match=r"'scale' is not drawn anew.*Bare"):
        load_model(Bare().eval()).fresh(0)


def test_a_rule_that_forgets_a_parameter_is_noticed():
    class Forgetful(Bare):
        def reset_parameters(self):
            self.inner.reset_parameters()

    with pytest.raises(ControlError, match="'scale'"):
        reinitialised(Forgetful(), 0)


def test_whole_number_parameters_cannot_be_drawn():
    model = nn.Linear(2, 2)
    model.steps = nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False)
    with pytest.raises(ControlError, match=r"torch\.int64"):
        reinitialised(model, 0)


def test_a_survey_says_which_control_is_missing_and_why():
    torch.manual_seed(0)
    report = secant.survey([Bare()], torch.randn(80, 3), sites=["inner"], gauges=["fit", "chord"])
    assert {reading.gauge for reading in report.models[0].readings} == {"fit", "chord"}
    for reading in report.models[0].readings:
        assert reading.controls["fresh"]["value"] is None
        assert "'scale'" in reading.controls["fresh"]["missing"]
        assert reading.controls["shuffled"]["value"] is not None
        if reading.gauge == "fit":
            assert any("No fresh control" in warning for warning in reading.warnings)


def test_a_survey_takes_modules_and_tensors():
    torch.manual_seed(0)
    report = secant.survey([small()], torch.randn(80, 3), sites=["0"], has_controls=False)
    raw = [r.value for r in report.models[0].readings if (r.gauge, r.variant) == ("fit", "raw")]
    assert raw == [pytest.approx(1.0, abs=1e-6)]


@pytest.mark.parametrize("name", ["nonesuch", "cuda:99", "meta", "vulkan"])
def test_devices_that_cannot_be_used(name):
    with pytest.raises(InputError, match=f"{name}.*--device cpu"):
        load_model("demo:linear", LoadOptions(device=name))


def test_an_unknown_dtype():
    with pytest.raises(InputError, match=r"float32, float64.*'int8'"):
        load_model("demo:linear", LoadOptions(dtype="int8"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_parameters_must_be_finite(value):
    model = small().eval()
    model[3].bias.data[1] = value
    with pytest.raises(LoadError, match=r"'3\.bias'.*not finite"):
        load_model(model)


def test_buffers_must_not_be_nan_but_may_be_infinite():
    model = small().eval()
    model.register_buffer("mask", torch.full((3,), float("-inf")))
    load_model(model)
    model[1].running_mean[0] = float("nan")
    with pytest.raises(LoadError, match=r"'1\.running_mean' holds NaN"):
        load_model(model)


def test_names_that_are_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    for source in ("nonesuch", str(tmp_path / "empty"), str(tmp_path / "no" / "folder")):
        with pytest.raises(LoadError, match="none of demo:NAME"):
            load_model(source)


def test_call_is_found_by_name_or_passed():
    assert load_model("demo:linear", LoadOptions(call="operator:call")).call is operator.call
    assert load_model("demo:linear", LoadOptions(call=max)).call is max
    with pytest.raises(LoadError, match=r"package\.module:function"):
        load_model("demo:linear", LoadOptions(call="no colon"))


def test_shuffling_keeps_every_value():
    model = small()
    other = shuffled(model, 0)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert one.flatten().sort().values.equal(two.flatten().sort().values)
    assert not model[0].weight.equal(other[0].weight)
