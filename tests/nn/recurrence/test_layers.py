"""What every recurrent layer keeps: a step is a scan of one, a cut changes nothing, types, errors.

Holds: tests of ``secant.nn.recurrence``, over all its layers.
May import: pytest, torch, ``secant.nn``.
"""

import pytest
import torch
from torch import nn

from secant.errors import InputError
from secant.nn.recurrence import (
    GILR,
    GILRLSTM,
    LRU,
    S6,
    DeltaNet,
    DiagonalRNN,
    LinearRNN,
    MambaBlock,
    MambaMixer,
    MambaShape,
)

DOUBLE = torch.float64
SMALL = MambaShape(4, state=3, kernel=3, chunk=4)
LAYERS = {
    "linear": lambda: LinearRNN(4, 5),
    "linear, no bias": lambda: LinearRNN(4, 5, bias=False),
    "lru": lambda: LRU(4, 5),
    "gilr": lambda: GILR(4, 5),
    "gilr, relu": lambda: GILR(4, 5, activation="relu"),
    "gilr-lstm": lambda: GILRLSTM(4, 5),
    "diagonal": lambda: DiagonalRNN(4, 5),
    "diagonal, positive": lambda: DiagonalRNN(4, 5, has_negative=False),
    "s6": lambda: S6(4, 3, chunk=4),
    "s6, whole, negative": lambda: S6(4, 3, chunk=None, has_negative=True),
    "delta": lambda: DeltaNet(4, 2, chunk=4),
    "delta, positive": lambda: DeltaNet(4, 1, has_negative=False, chunk=4),
    "delta, not normed": lambda: DeltaNet(4, 2, is_normed=False),
    "mixer": lambda: MambaMixer(SMALL),
    "block, kernel 1": lambda: MambaBlock(MambaShape(4, state=3, kernel=1, has_bias=True)),
}


def flat(state):
    """The tensors of a state."""
    return [state] if isinstance(state, torch.Tensor) else list(state)


def made(name, dtype=DOUBLE, length=11):
    torch.manual_seed(1)
    layer = LAYERS[name]()
    with torch.no_grad():
        for one in layer.parameters():
            # No parameter stays at a value where its part could be missing and not be missed.
            one.add_(0.1 * torch.randn_like(one))
    return layer.to(dtype), torch.randn(3, length, 4, dtype=DOUBLE).to(dtype)


@pytest.mark.parametrize("name", LAYERS)
def test_a_step_is_a_scan_of_one_and_a_cut_changes_nothing(name):
    """In float64 to 1e-12: rounding, in another order."""
    layer, x = made(name)
    whole, last = layer(x)
    state, found = None, []
    for row in x.unbind(1):
        out, state = layer.step(row, state)
        found.append(out)
    stepped = torch.stack(found, dim=1)
    assert torch.allclose(stepped, whole, rtol=0, atol=1e-12)
    assert float(whole.detach().std()) > 1e-3
    for cut in (1, 4, 6, 10):
        left, between = layer(x[:, :cut])
        right, after = layer(x[:, cut:], between)
        assert torch.allclose(torch.cat([left, right], 1), whole, rtol=0, atol=1e-12)
        for one, other, third in zip(flat(after), flat(last), flat(state), strict=True):
            assert one.shape == other.shape == third.shape
            assert torch.allclose(one, other, rtol=0, atol=1e-12)
            assert torch.allclose(third, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_the_state_matters_and_is_causal(name):
    layer, x = made(name)
    whole, last = layer(x)
    moved = x.clone()
    moved[:, 6] += 1
    other, _ = layer(moved)
    assert torch.equal(other[:, :6], whole[:, :6])
    assert not torch.allclose(other[:, 6:], whole[:, 6:])
    again, _ = layer(x, last)
    assert not torch.allclose(again, whole)


@pytest.mark.parametrize("name", LAYERS)
def test_derivatives(name):
    """By differences in float64 along random directions: input, state, parameters; second too."""
    layer, x = made(name, length=6)
    x = x[:1]
    _, state = layer(x)
    begins = [one.detach().requires_grad_() for one in flat(state)]
    names = [key for key, _ in layer.named_parameters()]
    shape = type(state)

    def run(x, *rest):
        given = rest[: len(begins)]
        start = given[0] if isinstance(state, torch.Tensor) else shape(*given)
        values = dict(zip(names, rest[len(begins) :], strict=True))
        out, after = torch.func.functional_call(layer, values, (x, start))
        return (out, *(torch.view_as_real(a) if a.is_complex() else a for a in flat(after)))

    given = (x.requires_grad_(), *begins, *(one.detach().clone().requires_grad_()
                                            for one in layer.parameters()))  # fmt: skip
    assert torch.autograd.gradcheck(run, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(
        lambda x: run(x, *given[1:])[0].square().sum(), (given[0],), atol=1e-4, fast_mode=True
    )


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_types(name, dtype):
    """Outputs are of the input's type; h is float32 at least, so half precision does not add up.

    Rounding of inputs and weights alone makes a relative error of a few times 2^-9 in bfloat16.
    """
    layer, x = made(name, dtype, length=40)
    out, state = layer(x)
    assert out.dtype == (dtype if not isinstance(layer, MambaBlock) else torch.float32)
    last = flat(state)[-1]
    assert last.dtype == (torch.complex64 if isinstance(layer, LRU) else torch.float32)
    wide = LAYERS[name]().double()
    wide.load_state_dict(layer.state_dict())
    exact, _ = wide(x.double())
    allowed = {torch.float32: 1e-5, torch.bfloat16: 0.06, torch.float16: 0.01}[dtype]
    error = (out.double() - exact).norm() / exact.norm()
    assert float(error.detach()) < allowed
    stepped, _ = layer.step(x[:, 0])
    assert stepped.dtype == out.dtype


@pytest.mark.parametrize("name", LAYERS)
def test_autocast_leaves_the_state_wide(name):
    layer, x = made(name, torch.float32)
    exact, _ = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, state = layer(x)
    assert flat(state)[-1].dtype in (torch.float32, torch.complex64)
    assert float(((out.float() - exact).norm() / exact.norm()).detach()) < 0.05


@pytest.mark.parametrize("name", LAYERS)
def test_seeds_and_state_dicts(name):
    torch.manual_seed(0)
    one = LAYERS[name]()
    torch.manual_seed(0)
    two = LAYERS[name]()
    three = LAYERS[name]()
    x = torch.randn(2, 5, 4)
    assert torch.equal(one(x)[0], two(x)[0])
    assert not torch.equal(one(x)[0], three(x)[0])
    three.load_state_dict(one.state_dict())
    assert torch.equal(one(x)[0], three(x)[0])
    assert repr(one)
    assert len(list(nn.Sequential(one).parameters())) == len(list(one.parameters()))


@pytest.mark.parametrize("name", LAYERS)
def test_what_will_not_do(name):
    layer, x = made(name)
    for bad in (x[0], x[..., :3], x[:, :0]):
        with pytest.raises(InputError, match=r"sequences must be \(batch, length, 4\).*`step`"):
            layer(bad)
    for bad in (x, x[:, 0, :3]):
        with pytest.raises(InputError, match=r"one step must be \(batch, 4\).*layer itself"):
            layer.step(bad)
    with pytest.raises(InputError, match=r"real floats; got torch\.int64.*Embed"):
        layer(x.long())
    with pytest.raises(InputError, match=r"real floats; got torch\.complex128"):
        layer.step(x[:, 0] + 0j)
    _, state = layer(x)
    narrow = [one[:2] for one in flat(state)]
    wrong = narrow[0] if isinstance(state, torch.Tensor) else type(state)(*narrow)
    for call, row in ((layer, x), (layer.step, x[:, 0])):
        with pytest.raises(InputError, match=r"the state must be \(3, .*got \(2, .*None to begin"):
            call(row, wrong)


@pytest.mark.parametrize("name", LAYERS)
def test_all_of_it_is_where_the_input_is(name):
    """On the device without storage a tensor that was left behind is an error."""
    layer, x = made(name, torch.float32)
    layer = layer.to("meta")
    out, state = layer(x.to("meta"))
    assert out.shape == layer(x.to("meta"), state)[0].shape
    step, after = layer.step(x[:, 0].to("meta"), state)
    for one in (out, step, *flat(state), *flat(after)):
        assert one.device.type == "meta"


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "mixer"])
def test_torch_func_s_transforms(name):
    """Derivatives a sequence each, forward and backward, against autograd's; S6 needs no chunks."""
    layer, x = made(name, length=5)
    if isinstance(layer, S6):
        layer.chunk = None

    def total(row):
        return layer(row[None])[0].square().sum()

    expected = torch.stack([torch.autograd.grad(total(r), r)[0] for r in x.requires_grad_()])
    rows = x.detach()
    found = torch.func.vmap(torch.func.grad(total))(rows)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-11)
    along = torch.randn_like(rows[0])
    _, slope = torch.func.jvp(total, (rows[0],), (along,))
    sloped = (expected[0].detach() * along).sum()
    assert float(slope.detach()) == pytest.approx(float(sloped), rel=1e-8)


def test_a_complex_state_of_a_real_layer():
    layer, x = made("gilr")
    with pytest.raises(InputError, match=r"GILR: the state must be real; got torch\.complex128"):
        layer(x, torch.zeros(3, 5, dtype=torch.complex128))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearRNN(0, 2), "LinearRNN: `input_size` must be at least 1; got 0"),
        (lambda: LinearRNN(2, 2, radius=0.0), r"`radius` must be positive and finite; got 0\.0"),
        (lambda: LRU(2, 0), "LRU: `hidden_size` must be at least 1; got 0"),
        (lambda: LRU(2, 2, r_min=0.5, r_max=0.5), r"0 <= r_min < r_max <= 1; got 0\.5 and 0\.5"),
        (lambda: LRU(2, 2, r_max=1.1), "r_max <= 1"),
        (lambda: LRU(2, 2, max_phase=7.0), r"at most 2 pi; got 7\.0"),
        (lambda: GILR(2, 0), "GILR: `hidden_size`"),
        (lambda: GILR(2, 2, activation="nonesuch"), "must start from one of"),
        (lambda: GILRLSTM(0, 2), "GILRLSTM: `input_size`"),
        (lambda: DiagonalRNN(0, 2), "DiagonalRNN: `input_size`"),
        (lambda: S6(2, 0), "S6: `state` must be at least 1"),
        (lambda: S6(2, chunk=0), "S6: `chunk` must be at least 1"),
        (lambda: DeltaNet(6, 4), "`heads` must divide `features`; got 4 and 6"),
        (lambda: MambaShape(0), "MambaShape: `features`"),
        (lambda: MambaShape(2, kernel=0), "MambaShape: `kernel`"),
        (lambda: MambaShape(2, activation="x"), "`activation` must be one of silu.*got 'x'"),
    ],
)
def test_layers_that_cannot_be_made(make, message):
    with pytest.raises(InputError, match=message):
        make()
