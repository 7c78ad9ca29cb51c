"""Linear states: exact where the recurrence is linear, told with its cost where it is not.

Holds: tests of ``secant.uses.linearize_state`` and its command.
May import: pytest, torch, ``secant``.
"""

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import secant
from secant.engine.plan import group_of
from secant.errors import InputError, LoadError
from secant.gauges.interval import GROUPS
from secant.load.feed import Feed
from secant.load.models import load_model
from secant.load.units import Units
from secant.nn.linear_state import LinearState
from secant.report.linear_state import plain_words, render_linear_state
from secant.uses.anatomy import mean_interval
from secant.uses.linearize_state import linearize_state, restore_state

DRAW = torch.Generator().manual_seed(0)
X = torch.rand(120, 12, 4, generator=DRAW)
UNITS = Units("sequences", tensor=X)
FEWER = UNITS.first(60)
CLASSES = Units("classes", tensor=X, labels=(X.sum((1, 2)) > 24).long())


class Reader(nn.Module):
    """A recurrence and the mean of what it hands on."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn
        self.head = nn.Linear(rnn.hidden_size * (2 if rnn.bidirectional else 1), 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0].mean(1))


def positive(layers=1, bidirectional=False):
    """ReLUs that never cut: all weights and inputs are positive, so the recurrence is linear."""
    torch.manual_seed(0)
    rnn = nn.RNN(4, 5, layers, nonlinearity="relu", batch_first=True, bidirectional=bidirectional)
    with torch.no_grad():
        for name, one in rnn.named_parameters():
            one.copy_(one.abs() * (0.25 if "weight_hh" in name else 1))
    return Reader(rnn).eval()


def curved(kind=nn.GRU):
    torch.manual_seed(1)
    return Reader(kind(4, 6, batch_first=True)).eval()


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_linear_recurrence_stays_the_same_function(layers, bidirectional):
    model = positive(layers, bidirectional)
    found = linearize_state(model, UNITS, batch_size=16)
    assert len(found.layers) == layers * (2 if bidirectional else 1)
    assert all(one.raw["value"] == pytest.approx(1, abs=1e-6) for one in found.layers)
    assert found.change["value"] < 1e-8
    torch.testing.assert_close(found.module(X), model(X), rtol=1e-4, atol=1e-4)
    assert isinstance(found.module.rnn, LinearState)
    assert isinstance(model.rnn, nn.RNN)


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_a_nonlinear_one_changes_and_says_so(kind):
    found = linearize_state(curved(kind), CLASSES, batch_size=16)
    (layer,) = found.layers
    assert 0.5 < layer.raw["value"] < 1
    assert layer.state == (12 if kind is nn.LSTM else 6)
    low, high = found.change["interval"]
    assert low <= found.change["value"] <= high
    assert found.units["fitted"] + found.units["scored"] == 120
    told = " ".join(plain_words(found))
    assert "nats" in told
    assert "ms ->" in told


def test_the_update_is_least_squares():
    """On the fitted half, against a plain solve over its rows in float64."""
    model = curved()
    found = linearize_state(model, UNITS, batch_size=16)
    layer = found.module.rnn.layers[0]
    states, _ = model.rnn(X)
    before = torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], 1)
    # what the update says of true states must beat any other row map on most of the data
    turned = layer(X, torch.zeros(len(X), 6))
    assert turned.shape == states.shape
    rows = torch.cat([before, X, torch.ones(*X.shape[:2], 1)], 2).flatten(0, 1).double()
    best = torch.linalg.lstsq(rows, states.flatten(0, 1).double()).solution
    one_step = torch.stack(
        [layer(X[:, [t]], before[:, t])[:, 0] for t in range(X.shape[1])], 1
    ).double()
    apart = (one_step - (rows @ best).view(states.shape)).norm() / states.double().norm()
    assert apart < 0.01


def test_a_budget_leaves_what_costs_more():
    model = Two()
    found = linearize_state(model, UNITS, batch_size=16, budget=1e-4)
    assert [one.site for one in found.layers] == ["straight"]
    assert list(found.left) == ["bent"]
    assert isinstance(found.module.bent, nn.GRU)
    assert "stays as it is" in " ".join(plain_words(found))
    with pytest.raises(InputError, match="no layer fits in the budget of 0"):
        linearize_state(curved(), UNITS, batch_size=16, budget=0.0)


class Two(nn.Module):
    """One recurrence that is linear and one that is not."""

    def __init__(self):
        super().__init__()
        self.straight, self.bent = positive().rnn, curved().rnn
        self.eval()

    def forward(self, x):
        return torch.cat([self.straight(x)[0], self.bent(4 * x)[0]], -1).mean(1)


def test_what_was_saved_comes_back(tmp_path):
    model = curved(nn.LSTM)
    found = linearize_state(model, CLASSES, batch_size=16)
    files = found.save(tmp_path)
    assert sorted(one.name for one in files) == ["linear_state.json", "model.safetensors"]
    again = restore_state(model, tmp_path)
    assert torch.equal(again(X), found.module(X))
    assert json.loads(files[1].read_text())["change"]["value"] == found.change["value"]
    with pytest.raises(LoadError, match="the model it was given"):
        restore_state(nn.Linear(3, 3), tmp_path)
    with pytest.raises(LoadError, match="cannot be read"):
        restore_state(model, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("model", "units", "words"),
    [
        (nn.Sequential(nn.Linear(4, 4)), UNITS, "has no nn.RNN, nn.GRU or nn.LSTM"),
        (curved(), Units("few", tensor=X[:12]), "Give some dozens"),
    ],
)
def test_what_cannot_be_done_is_refused(model, units, words):
    with pytest.raises(InputError, match=words):
        linearize_state(model, units)


def test_values_that_are_not_finite_are_refused():
    model = curved()
    x = X.clone()
    x[:, 3] = torch.inf
    with pytest.raises(InputError, match="not finite"):
        linearize_state(model, Units("spoilt", tensor=x), batch_size=16)


LENGTHS = torch.randint(2, 9, (120,), generator=DRAW).tolist()
PADDED = Units(
    "padded",
    fields={
        "x": [torch.rand(length, 4, generator=DRAW) for length in LENGTHS],
        "attention_mask": [torch.ones(length, dtype=torch.long) for length in LENGTHS],
    },
)


class Steps(nn.Module):
    """One row of outputs a position, padding among them."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x, attention_mask):
        return self.rnn(x)[0] + 3


@pytest.mark.parametrize("batch_size", [1, 32])
@pytest.mark.parametrize("is_padded", [True, False])
def test_the_change_is_a_share_of_the_variance_of_what_counts(batch_size, is_padded):
    """Against each unit alone, without batches or padding, about one mean."""
    if is_padded:
        model, units = Steps(curved().rnn).eval(), PADDED
        rows = list(zip(PADDED.fields["x"], PADDED.fields["attention_mask"], strict=True))
        contents = [x.numpy().tobytes() + mask.numpy().tobytes() for x, mask in rows]
        inputs = [(x[None], mask[None]) for x, mask in rows]
    else:
        model, units = curved(), UNITS
        contents = [x.numpy().tobytes() for x in X]
        inputs = [(x[None],) for x in X]
    found = linearize_state(model, units, batch_size=batch_size)
    scored = [place for place, one in enumerate(contents) if group_of(one, 0, 2 * GROUPS) % 2]
    assert len(scored) == found.units["scored"]
    with torch.no_grad():
        kept, new = ([one(*inputs[unit]).double().flatten(0, -2) for unit in scored]
                     for one in (model, found.module))  # fmt: skip
    mean = torch.cat(kept).mean(0)
    groups = torch.tensor([group_of(contents[unit], 0, GROUPS) for unit in scored])
    moved = torch.stack([(a - b).square().sum() for a, b in zip(new, kept, strict=True)])
    total = torch.stack([(a - mean).square().sum() for a in kept])
    moved, total = (
        torch.stack([one[groups == group].sum() for group in groups.unique()])
        for one in (moved, total)
    )
    assert found.change["value"] == pytest.approx(float(moved.sum() / total.sum()), rel=1e-4)
    assert found.change["interval"] == pytest.approx(mean_interval(moved, total), rel=1e-3)


class OneNumber(nn.Module):
    """One number a unit, (batch,), beside a large constant."""

    def __init__(self, offset):
        super().__init__()
        self.rnn, self.offset = curved().rnn, offset

    def forward(self, x):
        return self.rnn(x.double())[0].sum((1, 2)) + self.offset


def test_outputs_of_one_number_a_unit_have_a_share_whatever_their_mean():
    small, large = (
        linearize_state(OneNumber(offset).double(), UNITS, batch_size=16).change
        for offset in (0, 1e6)
    )
    assert 0 < small["value"] < 1
    assert large["value"] == pytest.approx(small["value"], rel=1e-6)


class Total(nn.Module):
    """No output of a unit, or rows that are as wide as the longest of the batch."""

    def __init__(self, is_total):
        super().__init__()
        self.rnn, self.is_total = curved().rnn, is_total

    def forward(self, x, attention_mask):
        out = self.rnn(x)[0].sum(2)
        return out.sum() if self.is_total else out


@pytest.mark.parametrize(
    ("is_total", "words"), [(True, "one number a batch"), (False, "rows of one width; got")]
)
def test_outputs_without_rows_are_refused(is_total, words):
    with pytest.raises(InputError, match=words):
        linearize_state(Total(is_total).eval(), PADDED, batch_size=8)


def test_empty_texts_move_no_unit_to_the_other_half(monkeypatch):
    """Every unit lies in the half that its own content says, whatever was dropped before it."""
    seen = []

    class Watched(Feed):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            seen.append(self.units.texts)

    monkeypatch.setattr("secant.uses.linearize_state.Feed", Watched)
    texts = [text for number in range(60) for text in ("", f"a{number} text")]
    model = Words().eval()
    loaded = replace(load_model(model), tokenizer=Letters())
    found = linearize_state(loaded, Units("texts", texts=texts))
    _, *halves = seen
    for half, of_half in enumerate(halves):
        assert of_half == [
            text for text in texts[1::2]
            if group_of(text.encode(), 0, 2 * GROUPS) % 2 == half
        ]  # fmt: skip
    assert found.units == {"fitted": len(halves[0]), "scored": len(halves[1])}
    assert "60 of 120 texts were empty." in found.notes


class Letters:
    """A tokenizer with a token a letter."""

    pad_token_id, eos_token_id = 0, None

    def __call__(self, texts):
        ids = [[ord(letter) % 32 for letter in text] for text in texts]
        return {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}


class Words(nn.Module):
    """A recurrence on letters, whose decoder has the embedding's weights where it is tied."""

    def __init__(self, is_tied=False):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.rnn = nn.Embedding(32, 6), nn.GRU(6, 6, batch_first=True)
        self.decode = nn.Linear(6, 32, bias=False)
        if is_tied:
            self.decode.weight = self.embed.weight

    def forward(self, input_ids, attention_mask=None):
        return self.decode(self.rnn(self.embed(input_ids))[0])


def test_tied_weights_are_saved_and_come_back_tied(tmp_path):
    model = Words(is_tied=True).eval()
    units = Units("letters", tensor=torch.randint(1, 32, (60, 9), generator=DRAW))
    found = linearize_state(model, units, batch_size=16)
    found.save(tmp_path)
    again = restore_state(model, tmp_path)
    assert again.decode.weight is again.embed.weight
    assert torch.equal(again(units.tensor), found.module(units.tensor))
    (tmp_path / "model.safetensors").write_bytes(b"spoilt")
    with pytest.raises(LoadError, match="cannot be read"):
        restore_state(model, tmp_path)


class Packed(nn.Module):
    """What a recurrence hands on of packed sequences, and its last states."""

    def __init__(self, rnn, is_sorted):
        super().__init__()
        self.rnn, self.is_sorted = rnn, is_sorted

    def forward(self, x, attention_mask):
        lengths = attention_mask.sum(1)
        order = torch.arange(len(x))
        if self.is_sorted:
            order = lengths.argsort(descending=True, stable=True)
        self.rnn.flatten_parameters()
        packed = pack_padded_sequence(
            x[order], lengths[order], batch_first=True, enforce_sorted=self.is_sorted
        )
        out, last = self.rnn(packed)
        rows, _ = pad_packed_sequence(out, batch_first=True, total_length=x.shape[1])
        last = last.transpose(0, 1).flatten(1)
        whole = torch.cat([rows, last[:, None].expand(-1, x.shape[1], -1)], 2)
        return whole[order.argsort()]


@pytest.mark.parametrize("is_sorted", [True, False])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_packed_sequences_of_a_linear_recurrence_stay_the_same(bidirectional, is_sorted):
    model = Packed(positive(2, bidirectional).rnn, is_sorted).eval()
    found = linearize_state(model, PADDED, batch_size=16)
    assert not found.left
    assert len(found.layers) == (4 if bidirectional else 2)
    assert all(one.raw["value"] == pytest.approx(1, abs=1e-6) for one in found.layers)
    assert found.change["value"] < 1e-8


class Called(nn.Module):
    """A recurrence called on pieces of the sequence, each from the state that the last one left."""

    def __init__(self, rnn, length, is_fresh=False):
        super().__init__()
        self.rnn, self.length, self.is_fresh = rnn, length, is_fresh

    def forward(self, x, attention_mask=None):
        state, outputs = None, []
        for piece in x.split(self.length, 1):
            out, state = self.rnn(piece, None if self.is_fresh else state)
            outputs.append(out)
        return torch.cat(outputs, 1)


@pytest.mark.parametrize(("length", "layers"), [(1, 2), (5, 1)])
def test_a_recurrence_called_piece_by_piece_is_fitted_as_in_one(layers, length):
    torch.manual_seed(1)
    rnn = nn.GRU(4, 6, layers, batch_first=True)
    whole = linearize_state(Called(rnn, 12).eval(), FEWER, batch_size=32)
    pieces = linearize_state(Called(rnn, length).eval(), FEWER, batch_size=32)
    for one, other in zip(whole.layers, pieces.layers, strict=True):
        assert one.site == other.site
        assert other.raw["value"] == pytest.approx(one.raw["value"], rel=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(pieces.module(X), whole.module(X), rtol=1e-3, atol=1e-3)


def test_calls_that_start_afresh_are_one_fit():
    """As of twelve times the units, of one step each."""
    rnn = curved().rnn
    found = linearize_state(Called(rnn, 1, is_fresh=True).eval(), UNITS, batch_size=32)
    fitted = [x for x in X if group_of(x.numpy().tobytes(), 0, 2 * GROUPS) % 2 == 0]
    rows = torch.cat(fitted)
    after = rnn(rows[:, None])[0][:, 0].detach().double()
    wide = torch.cat([rows.double(), torch.ones(len(rows), 1, dtype=torch.float64)], 1)
    best = wide @ torch.linalg.lstsq(wide, after).solution
    mine = found.module.rnn(rows[:, None])[0][:, 0].detach().double()
    torch.testing.assert_close(mine, best, rtol=1e-3, atol=1e-3)


class Decoder(nn.Module):
    """A recurrence that reads the whole and then goes on alone, from its own outputs."""

    def __init__(self, rnn, steps):
        super().__init__()
        self.rnn, self.steps = rnn, steps
        self.back = nn.Linear(rnn.hidden_size, 4)
        with torch.no_grad():
            self.back.weight.abs_().mul_(0.3)
            self.back.bias.abs_()

    def forward(self, x, attention_mask=None):
        out, state = self.rnn(x)
        outputs = [out[:, -1:]]
        for _ in range(self.steps):
            out, state = self.rnn(self.back(outputs[-1]), state)
            outputs.append(out)
        return torch.cat(outputs[1:], 1).flatten(1)


def test_a_decoder_that_calls_it_step_by_step_comes_out_right():
    found = linearize_state(Decoder(positive(2).rnn, 5).eval(), FEWER, batch_size=32)
    assert found.change["value"] < 1e-8


def test_calls_that_cannot_be_told_from_padding_are_left():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.reader, self.decoder = Steps(positive().rnn), Decoder(curved().rnn, 3)

        def forward(self, x, attention_mask):
            late = self.decoder(x)[:, None].expand(-1, x.shape[1], -1)
            return torch.cat([self.reader(x, attention_mask), late], 2)

    found = linearize_state(Both().eval(), PADDED, batch_size=16)
    assert [one.site for one in found.layers] == ["reader.rnn"]
    assert list(found.left) == ["decoder.rnn"]
    assert "padding cannot be told" in found.left["decoder.rnn"]
    assert isinstance(found.module.decoder.rnn, nn.GRU)
    with pytest.raises(InputError, match=r"no layer can be replaced: rnn: its calls take .*Give"):
        linearize_state(Decoder(curved().rnn, 3).eval(), PADDED, batch_size=16)


def test_pieces_share_the_mask_of_the_whole():
    """Rows of padding would spoil the fit of an exactly linear recurrence cut at ReLUs."""
    found = linearize_state(Called(positive().rnn, 2).eval(), PADDED, batch_size=16)
    assert found.layers[0].raw["value"] == pytest.approx(1, abs=1e-6)
    assert found.change["value"] < 1e-8


def test_a_module_that_no_forward_calls_is_left():
    model = curved()
    model.spare = nn.GRU(3, 3)
    found = linearize_state(model, UNITS, batch_size=16)
    assert found.left == {"spare": "no forward calls it"}


def test_a_module_with_two_names_is_replaced_under_both(tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = self.other = nn.GRU(4, 4, batch_first=True)

        def forward(self, x):
            return self.other(self.one(x)[0])[0].mean(1)

    torch.manual_seed(0)
    model = Twice().eval()
    found = linearize_state(model, UNITS, batch_size=16)
    assert isinstance(found.module.one, LinearState)
    assert found.module.other is found.module.one
    found.save(tmp_path)
    again = restore_state(model, tmp_path)
    assert again.other is again.one
    assert torch.equal(again(X), found.module(X))


@pytest.mark.parametrize("layers", [1, 2])
def test_a_recurrence_that_is_the_model_is_replaced_whole(tmp_path, layers):
    torch.manual_seed(0)
    model = nn.GRU(4, 6, layers, batch_first=True).eval()
    found = linearize_state(model, UNITS, batch_size=16)
    assert isinstance(found.module, LinearState)
    assert [one.site for one in found.layers] == (
        ["(model)"] if layers == 1 else ["(model).l0", "(model).l1"]
    )
    assert render_linear_state(found).row_count == layers
    found.save(tmp_path)
    assert torch.equal(restore_state(model, tmp_path)(X)[0], found.module(X)[0])
    with pytest.raises(InputError, match=r"\(model\): it would bring"):
        linearize_state(model, UNITS, batch_size=16, budget=0.0)


def test_the_linear_model_can_be_surveyed():
    """In float64, as the experiments are: a linear state bends no chord."""
    found = linearize_state(curved(), UNITS, batch_size=16)
    report = secant.survey([found.module], UNITS, gauges=["chord"])
    chords = {one.site: one.value for one in report.models[0].readings if one.variant == "raw"}
    assert max(chords.values()) < 1e-6
    double = copy.deepcopy(found.module).double()
    torch.testing.assert_close(double(X.double()).float(), found.module(X), rtol=1e-4, atol=1e-4)


def test_a_float64_model_has_linear_states_of_float64(tmp_path):
    model = positive(2).double()
    found = linearize_state(model, UNITS, batch_size=16)
    assert {one.dtype for one in found.module.parameters()} == {torch.float64}
    x = X.double()
    torch.testing.assert_close(found.module(x), model(x), rtol=1e-9, atol=1e-9)
    found.save(tmp_path)
    assert torch.equal(restore_state(model, tmp_path)(x), found.module(x))


def test_a_model_of_half_precision_keeps_its_type_outside():
    """Its linear states are float32; fitted on rounded states, they are as near as those are."""
    model, x = Called(positive(2).rnn, 2).eval(), X[:60, :4]
    short = Units("short", tensor=x)  # torch's own steps of half precision take long
    found = linearize_state(copy.deepcopy(model).bfloat16(), short, batch_size=32)
    assert {one.dtype for one in found.module.rnn.parameters()} == {torch.float32}
    out = found.module(x.bfloat16())
    assert out.dtype == torch.bfloat16
    apart = (out.float() - model(x)).norm() / model(x).norm()
    assert apart < 0.02


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
def test_what_comes_back_lies_where_the_model_does(tmp_path):
    """On torch's `meta`, a device that every machine has."""
    model = curved()
    linearize_state(model, UNITS, batch_size=16).save(tmp_path)
    again = restore_state(copy.deepcopy(model).to("meta"), tmp_path)
    assert {one.device.type for one in again.parameters()} == {"meta"}


def test_the_command_says_what_it_costs_and_writes_it(run, tmp_path):
    code, out, _ = run("linearize-state", "demo:gru", "--rows", 200, "--out", tmp_path / "linear")
    assert code == 0
    assert "the loss changes by" in out
    model = load_model("demo:gru").model
    images = torch.rand(3, 1, 8, 8)
    assert restore_state(model, tmp_path / "linear")(images).shape == model(images).shape
    code, _, err = run("linearize-state", "demo:mlp", "--out", tmp_path / "none")
    assert code == 2
    assert "no nn.RNN" in err
    assert not (tmp_path / "none").exists()
