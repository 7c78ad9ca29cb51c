"""The closed-form fit against ridge regression, refits without a row, and the dense solve.

Holds: tests of ``secant.uses.tangent_fit``.
May import: pytest, torch, hypothesis, ``secant``; transformers where installed.
"""

import pytest
import torch
from test_kernel import bert, case, drawn, mlp, texts
from torch import nn
from torch.nn.functional import one_hot

from secant.errors import InputError
from secant.uses.linearize import linearize
from secant.uses.tangent_fit import Eigen, Krylov, fit_tangent, folds, left_out


def ridge_regression(x, y, strength):
    """The textbook's, with the intercept penalised as any weight."""
    x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    return torch.linalg.solve(x.T @ x + strength * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)


@pytest.mark.parametrize("limit", [2048, 1], ids=["dense", "iterative"])
def test_a_linear_model_gives_ridge_regression(limit):
    """f is linear in its weights: the step is ridge regression of what w₀ leaves."""
    torch.manual_seed(0)
    model, x = nn.Linear(5, 3).double(), drawn(40, 5)
    y = drawn(40, 3, seed=1) + x[:, :3]
    linearised = linearize(model)
    found = fit_tangent(linearised, x, y, dense_limit=limit)
    expected = ridge_regression(x, y - model(x).detach(), found.strength)
    tolerance = {"rtol": 1e-4, "atol": 1e-6} if limit == 1 else {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(linearised.delta.weight.detach().T, expected[:5], **tolerance)
    torch.testing.assert_close(linearised.delta.bias.detach(), expected[5], **tolerance)
    assert (found.iterations > 0) == (limit == 1)


def test_left_out_is_leaving_out():
    """Block form: all outputs of the row go together, and its prediction is the others'."""
    model, x1, x2, _ = case("mlp")
    x, y = torch.cat([x1, x2]), drawn(7, 3, seed=5)
    linearised = linearize(model)
    found = fit_tangent(linearised, x, y, ridges=[0.03])
    errors = []
    for row in range(len(x)):
        others = torch.arange(len(x)) != row
        twin = linearize(model)
        jacobian_scale = fit_tangent(twin, x[others], y[others], ridges=[0.03])
        # The unit is that of the rows fitted; the strength must be the same one.
        ridge = 0.03 * found.strength / jacobian_scale.strength
        fit_tangent(twin, x[others], y[others], ridges=[ridge])
        errors.append((twin(x[row : row + 1]) - y[row]).detach())
    expected = float(torch.cat(errors).square().sum(1).mean())
    assert found.losses[0.03] == pytest.approx(expected, rel=1e-8)
    assert found.how == "leave one out"


def test_left_out_of_a_known_kernel():
    a, residual = drawn(12, 20), drawn(4, 3, seed=1)
    gram = a @ a.T
    alpha, errors = left_out(Eigen(*torch.linalg.eigh(gram)), residual, 0.5)
    lifted = gram + 0.5 * torch.eye(12, dtype=torch.float64)
    torch.testing.assert_close(lifted @ alpha.flatten(), residual.flatten())
    keep = torch.arange(12) >= 3
    weights = torch.linalg.solve(lifted[keep][:, keep], residual.flatten()[keep])
    torch.testing.assert_close(errors[0], residual[0] - gram[~keep][:, keep] @ weights)


def test_one_run_solves_for_every_ridge_and_predicts_the_rows_left():
    a, residual = drawn(30, 40), drawn(10, 3, seed=1)
    gram = a @ a.T
    used = torch.arange(10) < 8

    def product(u):
        return (gram @ u.flatten()).view_as(u)

    run = Krylov(product, residual, used, 0.1, 60, lambda done: None)
    assert len(run.basis) <= 24
    for strength in (0.1, 3.0, 100.0):
        alpha, images = run.solution(strength)
        lifted = gram[:24, :24] + strength * torch.eye(24, dtype=torch.float64)
        expected = torch.linalg.solve(lifted, residual[:8].flatten())
        torch.testing.assert_close(alpha[:8].flatten(), expected, rtol=1e-3, atol=1e-6)
        assert not alpha[8:].any()
        torch.testing.assert_close(images.flatten(), gram[:, :24] @ expected, rtol=1e-3, atol=1e-4)
    short = Krylov(product, residual, used, 0.1, 5, lambda done: None)
    alpha, _ = short.solution(0.1)
    true = (gram[:24, :24] + 0.1 * torch.eye(24)) @ alpha[:8].flatten() - residual[:8].flatten()
    assert short.gap(0.1) == pytest.approx(float(true.norm() / residual[:8].norm()), rel=1e-6)


@pytest.mark.parametrize("kind", ["mlp", "bert"])
def test_conjugate_gradients_equal_the_dense_solve(kind):
    torch.manual_seed(0)
    model, x = (mlp(), drawn(20, 6)) if kind == "mlp" else (bert(), texts(20))
    model, y = model.double().eval(), torch.arange(20) % 3
    dense, iterative = linearize(model), linearize(model)
    found = fit_tangent(iterative, x, y, dense_limit=1, ridges=[1e-2, 1.0])
    told = []
    # The iterative unit is that of all rows where there are few.
    unit = fit_tangent(dense, x, y, ridges=[1.0]).strength
    fit_tangent(dense, x, y, ridges=[found.strength / unit], progress=lambda *one: told.append(one))
    assert found.strength / found.ridge == pytest.approx(unit, rel=1e-6)
    assert told
    for one, two in zip(dense.delta.parameters(), iterative.delta.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)


def test_held_out_losses_are_those_of_fits_without_the_fold():
    torch.manual_seed(0)
    model, x = mlp().double().eval(), drawn(30, 6)
    y = one_hot(torch.arange(30) % 3, 3).double()
    found = fit_tangent(linearize(model), x, y, dense_limit=1, ridges=[0.1])
    fold, total = folds(x, 0), 0.0
    for k in fold.unique():
        twin = linearize(model)
        unit = fit_tangent(twin, x[fold != k], y[fold != k], ridges=[1.0]).strength
        fit_tangent(twin, x[fold != k], y[fold != k], ridges=[found.strength / unit])
        total += float((twin(x[fold == k]) - y[fold == k]).square().sum().detach())
    assert found.losses[0.1] == pytest.approx(total / 30, rel=1e-4)


def test_the_ridge_follows_the_noise():
    """Targets that the tangent can give want little ridge; noise wants much."""
    torch.manual_seed(0)
    model, x = mlp().double().eval(), drawn(40, 6)
    teacher = linearize(model)
    with torch.no_grad():
        for one in teacher.delta.parameters():
            one.normal_()
    clean = fit_tangent(linearize(model), x, teacher(x).detach())
    noise = model(x).detach() + drawn(40, 3, seed=3)
    loud = fit_tangent(linearize(model), x, noise)
    assert clean.ridge < 1e-3
    assert loud.ridge > 1
    assert set(clean.losses) == set(loud.losses)


def test_duplicates_share_a_fold():
    x = drawn(20, 3).repeat(2, 1)
    assert folds(x, 0)[:20].equal(folds(x, 0)[20:])
    assert len(folds(x, 0).unique()) > 1


def test_classes_are_fitted_as_one_hot_rows():
    model, x = mlp().eval(), drawn(9, 6).float()
    one, two = linearize(model), linearize(model)
    classes = torch.arange(9) % 3
    fit_tangent(one, x, classes)
    fit_tangent(two, x, one_hot(classes, 3).float())
    assert one(x).equal(two(x))


@pytest.mark.parametrize(
    ("labels", "given", "message"),
    [
        (torch.full((4,), 3), {}, r"one class below 3 for each of 4 rows"),
        (torch.ones(4, 2), {}, r"got \(4, 2\) of torch.float32"),
        (torch.full((4, 3), torch.nan), {}, "finite"),
        (torch.zeros(4).long(), {"ridges": [0.0]}, "ridges must be positive"),
        (torch.zeros(4).long(), {"dense_limit": 1, "iterations": 1, "ridges": [1e-9]}, "converged"),
    ],
)
def test_bad_calls_are_named(labels, given, message):
    with pytest.raises(InputError, match=message):
        fit_tangent(linearize(mlp().eval()), drawn(4, 6).float(), labels, **given)


def test_weights_that_move_nothing_are_named():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.idle = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.layer(x) + 0 * self.idle(x)

    with pytest.raises(InputError, match="kernel is 0"):
        fit_tangent(linearize(Idle(), ["idle.*"]), torch.ones(3, 2), torch.zeros(3).long())
