"""The tangent model against dense Jacobians and closed forms, and as the module that it is.

Holds: tests of ``secant.uses.linearize`` and ``secant.maps.duals``.
May import: pytest, torch, ``secant``; transformers where installed.
"""

import copy
import pickle

import pytest
import torch
from test_kernel import CASES, bert, case, drawn, jacobian, llama, mlp, texts
from torch import nn
from torch.nn import functional

from secant.errors import InputError
from secant.maps.weights import first_output, run
from secant.uses.linearize import linearize

# Llama's norms convert to float32 inside, whatever the model is in.
DIGITS = {"llama": 1e-4}


def moved(linearised, seed=0):
    """Draw Δw and give it as one vector."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for one in linearised.delta.parameters():
            one.normal_()
    return torch.cat([one.detach().flatten() for one in linearised.delta.parameters()])


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_those_of_the_dense_jacobian(name):
    model, x, _, _ = case(name)
    linearised = linearize(model)
    plain, dense = first_output(run(model, x)).flatten(1).detach(), jacobian(model, x)
    at_zero = first_output(run(linearised, x)).flatten(1)
    tolerance = {"rtol": DIGITS.get(name, 1e-10), "atol": DIGITS.get(name, 1e-10)}
    torch.testing.assert_close(at_zero, plain, **tolerance)
    delta = moved(linearised)
    found = first_output(run(linearised, x)).flatten(1)
    torch.testing.assert_close(found, plain + dense @ delta, **tolerance)
    weights = drawn(*found.shape)
    gradients = torch.autograd.grad(found, list(linearised.delta.parameters()), weights)
    expected = torch.einsum("nc,ncp->p", weights, dense)
    torch.testing.assert_close(
        torch.cat([one.flatten() for one in gradients]), expected, **tolerance
    )
    assert not any(one.requires_grad for one in linearised.model.parameters())


class Parts(nn.Module):
    """Every rule with each of its operands moving or not."""

    def __init__(self):
        super().__init__()
        self.linear, self.conv = nn.Linear(4, 6), nn.Conv1d(6, 6, 3, padding=1, groups=2)
        self.batch, self.layer = nn.BatchNorm1d(6), nn.LayerNorm(6)
        self.plain, self.last = nn.LayerNorm(6, elementwise_affine=False), nn.Linear(6, 2)
        self.batch.running_mean.normal_()
        self.batch.running_var.uniform_(0.5, 2)

    def forward(self, x):
        x = self.layer(self.batch(self.conv(self.linear(x).mT)).mT)
        q, k, v = x[:, None], self.plain(x)[:, None], x.sin()[:, None]
        hidden = torch.ones(5, 5, dtype=torch.bool).triu()
        hidden[2] = False  # a row that sees nothing
        one = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)
        two = functional.scaled_dot_product_attention(q, k, v, attn_mask=hidden)
        q = q.expand(-1, 4, -1, -1)
        three = functional.scaled_dot_product_attention(
            q, k.expand(-1, 2, -1, -1), v.expand(-1, 2, -1, -1), enable_gqa=True
        )
        return self.last(one + two + three.sum(1, keepdim=True)).sum((1, 2))


@pytest.mark.parametrize(
    "names",
    [["linear.*"], ["conv.weight"], ["conv.bias"], ["linear.bias"], ["batch.*"], ["batch.bias"],
     ["layer.weight"], ["layer.bias"], ["last.*"], ["*"]],
)  # fmt: skip
def test_rules_hold_whatever_moves(names):
    torch.manual_seed(0)
    model, x = Parts().double().eval(), drawn(3, 5, 4)
    linearised = linearize(model, names)
    chosen = dict(linearised.delta.named_parameters())
    for name, one in model.named_parameters():
        one.requires_grad_(name in chosen)
    delta = moved(linearised)
    torch.testing.assert_close(linearised(x), (model(x) + jacobian(model, x) @ delta).detach())


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers(kind):
    torch.manual_seed(0)
    model = nn.Sequential(kind(4, 3, batch_first=True)).double()
    linearised, x = linearize(model), drawn(2, 5, 4)
    delta = moved(linearised)
    found = linearised(x)
    expected = model(x)[0].flatten(1) + jacobian(model, x) @ delta
    torch.testing.assert_close(found[0].flatten(1), expected)
    assert type(found) is tuple


def test_a_model_linear_in_its_weights_is_its_own_tangent():
    linearised, x = linearize(nn.Linear(4, 2).double()), drawn(3, 4)
    moved(linearised)
    torch.testing.assert_close(linearised(x), linearised.merged()(x))


def test_any_optimiser_trains_it_to_the_least_squares():
    """A tangent model is linear in Δw, so the end is known: lstsq's residual."""
    torch.manual_seed(0)
    model, x, y = mlp().double(), drawn(12, 6), drawn(12, 3, seed=1)
    linearised = linearize(model, ["4.*"])
    optimiser = torch.optim.LBFGS(linearised.parameters(), max_iter=200, tolerance_grad=1e-12)

    def loss():
        optimiser.zero_grad()
        value = (linearised(x) - y).square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    hidden = model[:4](x).detach()
    design = torch.cat([hidden, torch.ones(12, 1, dtype=torch.float64)], 1)
    residual = y - design @ torch.linalg.lstsq(design, y).solution
    torch.testing.assert_close(loss().detach(), residual.square().sum(), rtol=1e-6, atol=0)


def test_it_behaves_as_modules_do():
    model, x = mlp(), drawn(3, 6).float()
    linearised = linearize(model, ["0.*", "4.bias"])
    assert [name for name, _ in linearised.delta.named_parameters()] == [
        "0.weight", "0.bias", "4.bias",
    ]  # fmt: skip
    moved(linearised)
    expected = linearised(x)
    for twin in (pickle.loads(pickle.dumps(linearised)), copy.deepcopy(linearised)):
        assert twin(x).equal(expected)
    fresh = linearize(mlp(), ["0.*", "4.bias"])
    fresh.load_state_dict(linearised.state_dict())
    assert fresh(x).equal(expected)
    torch.testing.assert_close(fresh.double()(x.double()).float(), expected)
    assert fresh.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    with torch.no_grad():
        model[0].weight.zero_()  # the caller's own model may go on
    assert linearised(x).equal(expected)
    assert not linearised(x).detach().equal(linearised.merged()(x))


def test_merged_is_the_model_moved_and_trains_what_trained():
    model = mlp()
    model[0].requires_grad_(False)
    linearised = linearize(model)
    moved(linearised)
    merged = linearised.merged()
    assert torch.equal(merged[4].bias, model[4].bias + linearised.delta.get_parameter("4.bias"))
    assert torch.equal(merged[0].weight, model[0].weight)
    assert [one.requires_grad for one in merged.parameters()] == [
        one.requires_grad for one in model.parameters()
    ]
    assert type(merged) is type(model)


def test_dropout_stays_off_in_training():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    linearised, x = linearize(model).train(), torch.ones(2, 4)
    assert linearised.training
    assert linearised(x).equal(linearised(x))
    assert model.training


def test_hugging_face_outputs_keep_their_structure():
    model = bert().eval()
    linearised, x = linearize(model), texts(3)
    assert type(linearised(**x)) is type(model(**x))
    with pytest.raises(InputError, match="returned a loss"):
        linearised(**x, labels=torch.tensor([0, 1, 2]))
    causal = llama().eval()
    assert causal.config.use_cache
    assert linearize(causal)(**x).past_key_values is None
    with pytest.raises(InputError, match="Cache"):
        linearize(causal)(**x, use_cache=True)


def test_bad_parameters_and_operations_are_named():
    with pytest.raises(InputError, match="no parameter matches 'nothing'"):
        linearize(mlp(), ["nothing"])

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return torch.special.zeta(self.w * x, self.w)

    with pytest.raises(InputError, match=r"linearize: every operation .*zeta"):
        linearize(Odd())(torch.ones(3) + 1)
