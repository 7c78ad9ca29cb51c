"""The weights map: values, derivatives and tied weights against closed forms.

Holds: tests of ``secant.maps.weights``.
May import: pytest, torch, hypothesis, ``secant``.
"""

import pytest
import torch
from torch import nn

from secant.errors import InputError
from secant.maps.derivatives import derivatives
from secant.maps.weights import (
    WeightsMap,
    check_fixed,
    chosen_parameters,
    first_output,
    part_of,
    rows_of,
    run,
)


class Tied(nn.Module):
    """x A'A: quadratic in the weights of a matrix that is used twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4, bias=False)
        self.second = nn.Linear(3, 4, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.first(x) @ self.second.weight


def map_of(model, x, names=None):
    return WeightsMap(model, lambda: run(model, x), tuple(chosen_parameters(model, names)))


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_linear_model_is_linear_in_its_weights():
    model, x = nn.Linear(3, 2).double(), drawn(5, 3)
    found = map_of(model, x)
    w, v = found.at(), drawn(8, seed=1)
    with derivatives():
        value, derivative = found.jvp(w, v)
        moved = found.value(w + 0.7 * v)
    torch.testing.assert_close(value, model(x).detach())
    torch.testing.assert_close(moved, value + 0.7 * derivative)
    expected = x @ v[:6].view(2, 3).T + v[6:]
    torch.testing.assert_close(derivative, expected)


def test_a_matrix_used_twice_moves_in_both_places():
    model, x = Tied().double(), drawn(5, 3)
    found = map_of(model, x)
    assert found.names == ("first.weight",)
    w, v = found.at(), drawn(12, seed=1)
    a, b = w.view(4, 3), v.view(4, 3)
    with derivatives():
        _, derivative = found.jvp(w, v)
        moved = found.value(w + v)
    torch.testing.assert_close(derivative, x @ (a.T @ b + b.T @ a))
    torch.testing.assert_close(moved, x @ (a + b).T @ (a + b))


def test_the_two_derivatives_are_adjoint():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 2)).double()
    found = map_of(model, drawn(5, 3))
    v, u = drawn(len(found.at()), seed=1), drawn(5, 2, seed=2)
    with derivatives():
        _, forward = found.jvp(found.at(), v)
        value, back = found.vjp(found.at(), u)
    torch.testing.assert_close((forward * u).sum(), back @ v)
    torch.testing.assert_close(value, found.value(found.at()))


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    before = {key: one.clone() for key, one in model.state_dict().items()}
    found = map_of(model.eval(), drawn(5, 3))
    with derivatives():
        found.value(found.at() + 1)
        found.vjp(found.at(), drawn(5, 4))
    assert all(torch.equal(before[key], one) for key, one in model.state_dict().items())
    assert all(one.grad is None for one in model.parameters())


def test_names_globs_and_frozen_parameters():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    assert chosen_parameters(model, ["1.*"]) == ["1.weight", "1.bias"]
    assert chosen_parameters(model, ["1.bias", "0.weight"]) == ["0.weight", "1.bias"]
    model[0].requires_grad_(False)
    assert chosen_parameters(model) == ["1.weight", "1.bias"]
    assert chosen_parameters(model, ["0.bias"]) == ["0.bias"]
    assert chosen_parameters(Tied(), ["second.weight"]) == ["first.weight"]
    with pytest.raises(InputError, match=r"no parameter matches '2\.\*'.*0\.weight"):
        chosen_parameters(model, ["2.*"])
    with pytest.raises(InputError, match="requires a gradient"):
        chosen_parameters(model.requires_grad_(False))


def test_integers_have_no_derivative():
    model = nn.Linear(2, 2)
    model.table = nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False)
    with pytest.raises(InputError, match=r"'table' is torch.int64"):
        chosen_parameters(model, ["t*"])
    with pytest.raises(InputError, match=r"torch.int64, which has no derivative"):
        first_output(torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize(
    "batch", [{}, [], torch.zeros(()), torch.zeros(0, 2), [torch.zeros(2), torch.zeros(3)]]
)
def test_batches_without_rows_are_refused(batch):
    with pytest.raises(InputError, match="batch"):
        rows_of(batch)


def test_parts_of_a_batch():
    x = torch.arange(6).view(3, 2)
    assert part_of(x, 1, 2).tolist() == [[2, 3]]
    assert part_of({"x": x}, 1, 5)["x"].tolist() == [[2, 3], [4, 5]]
    assert part_of((x, x[:, 0]), 0, 1)[1].tolist() == [0]


def test_a_vector_of_another_length_is_refused():
    found = map_of(nn.Linear(2, 2), torch.zeros(1, 2))
    with pytest.raises(InputError, match=r"vector of 6 weights; got \(5,\)"):
        found.value(torch.zeros(5))
    with pytest.raises(InputError, match=r"output's shape \(1, 2\); got \(2,\)"):
        found.vjp(found.at(), torch.zeros(2))


def test_what_is_random_or_looks_at_other_rows_is_refused():
    x = torch.ones(4, 3)
    with pytest.raises(InputError, match=r"change from call to call.*model\.eval"):
        check_fixed(nn.Dropout(0.5), x)
    with pytest.raises(InputError, match=r"'0' normalises by its batch"):
        check_fixed(nn.Sequential(nn.BatchNorm1d(3)), x)
    check_fixed(nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5)).eval(), x)
