"""Derivatives: right, under the same kernels as the values, and nothing left switched.

Holds: tests of ``secant.maps.derivatives``.
May import: pytest, torch, ``secant``.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional

from secant.engine.plan import Batch
from secant.errors import InputError
from secant.maps.derivatives import derivatives, jvp, prepared_copy
from secant.maps.inputs import inputs_map
from toy_tokens import Apply, Digits, TokenNet, feed_of


def reverse_jvp(function, x, v):
    """J v by reverse mode twice: the derivative along u of u -> Jᵀu is J itself."""
    x = x.clone().requires_grad_()
    y = function(x)
    u = torch.zeros_like(y, requires_grad=True)
    (back,) = torch.autograd.grad(y, x, u, create_graph=True)
    return torch.autograd.grad(back, u, v)[0]


def attention(x):
    return functional.scaled_dot_product_attention(x, x.flip(1), x + 1)


def maps():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        heads = nn.MultiheadAttention(4, 2, batch_first=True).double().eval()
        gru = nn.GRU(4, 4, batch_first=True).double()
        lstm = nn.LSTM(4, 4, batch_first=True).double()
        conv = nn.Sequential(nn.Conv1d(3, 3, 3, padding=1), nn.BatchNorm1d(3), nn.GELU())
        layer = nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True)
    return {
        "attention": attention,
        "multihead": lambda x: heads(x, x, x)[0],
        "encoder layer": layer.double().eval(),
        "gru": lambda x: gru(x)[0],
        "lstm": lambda x: lstm(x)[0],
        "conv": conv.double().eval(),
    }


@pytest.mark.parametrize("name", maps())
def test_forward_mode_agrees_with_reverse_mode_and_differences(name):
    function = maps()[name]
    x, v = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    with derivatives():
        y, got = jvp(function, x, v)
        step = 1e-6
        difference = (function(x + step * v) - function(x - step * v)) / (2 * step)
        assert y.equal(function(x))  # one set of kernels for value and derivative
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = reverse_jvp(function, x, v)
    assert torch.allclose(got, expected, rtol=1e-10, atol=1e-12)
    assert torch.allclose(got, difference, rtol=1e-5, atol=1e-8)


def test_an_output_that_does_not_depend_has_derivative_zero():
    x = torch.ones(2, 3)
    with derivatives():
        value, derivative = jvp(lambda x: torch.full_like(x, 2), x, x)
    assert value.eq(2).all()
    assert derivative.eq(0).all()


def switches():
    return (
        torch.backends.mkldnn.enabled,
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.is_grad_enabled(),
    )


def test_everything_is_restored_also_after_an_error():
    before = switches()
    assert before[0]
    assert before[1]
    within = []

    def fail():
        with derivatives():
            within.append(switches())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert within == [(False,) * 5]
    assert switches() == before


def test_what_was_off_stays_off():
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with derivatives():
            pass
        assert not torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_an_operation_without_derivative_is_an_input_error():
    x = torch.randn(3, 2)
    with derivatives(), pytest.raises(InputError, match=r"forward-mode derivative.*Choose a site"):
        jvp(lambda x: torch.cdist(x, x), x, x)


def test_a_model_without_derivative_is_not_said_to_refuse_the_data():
    """Its forward is run by the feed here, from the embeddings on; with `sin` it has one."""

    def derivative(function):
        net, reader = TokenNet(Apply(function)), Digits()
        feed = feed_of(net, ["123", "456"], tokenizer=reader)
        forward, _ = feed.forward(net, Batch(0, (0, 1)))
        with derivatives():
            found = inputs_map(net, forward)
            return found.jvp(found.x, torch.ones_like(found.x))[1]

    assert derivative(torch.sin).isfinite().all()
    with pytest.raises(InputError, match=r"^jvp.*forward-mode derivative.*Choose a site"):
        derivative(lambda x: torch.cdist(x, x))


@pytest.mark.parametrize(
    "v", [torch.ones(3), torch.ones(2).double(), torch.ones(2, dtype=torch.int64)]
)
def test_x_and_v_must_match(v):
    with pytest.raises(InputError, match="one shape and dtype"):
        jvp(torch.sin, torch.ones(2), v)
    with pytest.raises(InputError, match="must be floats"):
        jvp(torch.sin, torch.ones(2, dtype=torch.int64), torch.ones(2, dtype=torch.int64))


def test_the_copy_is_in_float64_and_the_model_is_untouched():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).bfloat16().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    copy = prepared_copy(net)
    y = copy(torch.ones(3, 2))  # float32 in: cast
    assert y.dtype == torch.float64
    assert not copy.training
    assert not any(p.requires_grad for p in copy.parameters())
    assert net.training
    assert not net._forward_pre_hooks
    assert all(p.requires_grad for p in net.parameters())
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
    assert all(value.equal(before[name]) for name, value in net.state_dict().items())
    weight = net[0].weight.double()
    expected = torch.ones(3, 2).double() @ weight.T + net[0].bias.double()
    assert torch.allclose(y, expected / (1 + 1e-5) ** 0.5, rtol=1e-12)


def test_integers_are_not_cast_and_floats_in_containers_are():
    class Take(nn.Module):
        def forward(self, parts, *, named):
            return parts[0].dtype, parts[1].dtype, named["x"].dtype, named["word"]

    got = prepared_copy(Take(), torch.float32)(
        (torch.ones(1).half(), torch.ones(1, dtype=torch.int64)),
        named={"x": torch.ones(1).double(), "word": "a"},
    )
    assert got == (torch.float32, torch.int64, torch.float32, "a")


def test_half_precision_is_refused():
    with pytest.raises(InputError, match=r"float64 or float32; got torch.bfloat16"):
        prepared_copy(nn.Linear(1, 1), torch.bfloat16)
