"""Products with the kernel, and its sketch, against the kernel itself and known variances.

Holds: tests of ``secant.uses.kernel_operator`` and ``secant.uses.kernel_sketch``.
May import: pytest, torch, scipy, ``secant``.
"""

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import cg, eigsh
from test_kernel import CASES, case, dense, drawn, mlp
from torch import nn

from secant.errors import InputError
from secant.uses.kernel import kernel
from secant.uses.kernel_operator import Jacobian, KernelOperator
from secant.uses.kernel_sketch import sketch_kernel


def matrix(found):
    """(n, m, c, d) as (n·c, m·d)."""
    n, m, c, d = found.shape
    return found.permute(0, 2, 1, 3).reshape(n * c, m * d)


@pytest.mark.parametrize("name", CASES)
def test_products_are_those_of_the_dense_kernel(name):
    model, x1, x2, _ = case(name)
    for other in (None, x2):
        expected = matrix(dense(model, x1, other)).numpy()
        found = KernelOperator(model, x1, other, batch_size=3)
        assert found.shape == expected.shape
        v, u = (drawn(size).numpy() for size in found.shape[::-1])
        # Llama's norms convert to float32 inside.
        tolerance = (1e-5 if name == "llama" else 1e-10) * np.abs(expected).sum()
        np.testing.assert_allclose(found @ v, expected @ v, rtol=0, atol=tolerance)
        np.testing.assert_allclose(found.T @ u, expected.T @ u, rtol=0, atol=tolerance)


def test_scipy_solves_and_finds_eigenvalues():
    model, x, _, _ = case("mlp")
    found, expected = KernelOperator(model, x), matrix(dense(model, x)).numpy()
    largest = eigsh(found, k=2, return_eigenvectors=False)
    np.testing.assert_allclose(largest, np.linalg.eigvalsh(expected)[-2:])
    b = np.ones(len(expected))
    solution, failed = cg(found, b, rtol=1e-12, maxiter=200)
    assert not failed
    np.testing.assert_allclose(expected @ solution, b, rtol=1e-8)


def test_chosen_outputs_parameters_and_tensors():
    model, x, _, _ = case("mlp")
    found = KernelOperator(model, x, outputs="logit 1", parameters=["4.*"])
    expected = kernel(model, x, outputs="logit 1", parameters=["4.*"])
    v = drawn(len(x), 1)
    torch.testing.assert_close(found.product(v), expected @ v)
    torch.testing.assert_close(Jacobian(model, x).values(), model(x).detach())


def test_bad_calls_are_named():
    with pytest.raises(InputError, match="'trace'"):
        KernelOperator(mlp().eval(), torch.ones(2, 6), outputs="trace")
    with pytest.raises(InputError, match=r"\(2, 3\); got \(3, 2\)"):
        KernelOperator(mlp().eval(), torch.ones(2, 6)).product(torch.ones(3, 2))
    with pytest.raises(InputError, match="batch_size must be at least 1"):
        KernelOperator(mlp().eval(), torch.ones(2, 6), batch_size=0)
    with pytest.raises(InputError, match="change from call to call"):
        KernelOperator(nn.Sequential(mlp(), nn.Dropout()), torch.ones(2, 6))
    with pytest.raises(InputError, match="at least 2"):
        sketch_kernel(mlp().eval(), torch.ones(2, 6), projections=1)


@pytest.mark.parametrize("outputs", ["logit 0", "full"])
def test_the_sketch_errs_by_what_is_stated(outputs):
    """Over many seeds: unbiased, of the variance in closed form, which it also estimates."""
    model, x1, x2, _ = case("mlp")
    seeds, k = 300, 8
    whole = kernel(model, torch.cat([x1, x2]), outputs="full")
    if outputs != "full":
        whole = whole[..., :1, :1]
    n = len(x1)
    own, theirs, cross = whole.diagonal(), whole.diagonal(), whole[:n, n:]
    own, theirs = own[..., :n], theirs[..., n:]
    variance = torch.einsum("cdn,cdm->nm", own, theirs)
    variance = (variance + torch.einsum("nmcd,nmdc->nm", cross, cross)) / k
    truth = cross.diagonal(dim1=2, dim2=3).sum(-1)
    found = [
        sketch_kernel(model, x1, x2, outputs, projections=k, seed=seed) for seed in range(seeds)
    ]
    values = torch.stack([one.values for one in found])
    stated = torch.stack([one.standard_error for one in found]).square()
    # The mean of 300 is within 4 of its standard errors; 12 entries are looked at.
    assert ((values.mean(0) - truth).abs() < 4 * (variance / seeds).sqrt()).all()
    # A variance of 300 draws is known to √(κ/300), 20 % for a product's tails; three of those.
    torch.testing.assert_close(values.var(0), variance, rtol=0.6, atol=0)
    assert abs(float((values.var(0) / variance).mean()) - 1) < 0.2
    assert abs(float((stated.mean(0) / variance).mean()) - 1) < 0.1


def test_a_sketch_converges_to_the_kernel():
    model, x, _, _ = case("cnn")
    truth = kernel(model, x)
    found = sketch_kernel(model, x, projections=800, batch_size=2)
    assert ((found.values - truth).abs() < 4.5 * found.standard_error).all()
    assert float((found.values - truth).norm() / truth.norm()) < 0.1
    assert found.values.equal(found.values.T)
    again = sketch_kernel(model, x, projections=800, batch_size=2)
    assert again.values.equal(found.values)
