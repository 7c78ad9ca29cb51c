"""The wide-net study: its closed forms, its slopes, a small run, and going on after a kill.

Holds: tests of ``secant.studies.wide_nets`` and ``secant.report.findings``.
May import: pytest, torch, scipy, ``secant``.
"""

import json
import math

import pytest
import torch
from scipy.integrate import quad

from secant.studies import STUDIES, wide_nets
from secant.studies.wide_nets import (
    ACTIVATIONS,
    LIMITS,
    POINTS,
    WideNet,
    exponent,
    judged,
    limit_kernel,
    measure,
    study,
    task,
    top_share,
)
from secant.uses.kernel import kernel


def density(z):
    return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)


@pytest.mark.parametrize("name", ["tanh", "relu", "exp"])
def test_entrywise_activations_keep_the_scale(name):
    def square(z):
        return float(ACTIVATIONS[name](torch.tensor(z, dtype=torch.float64))) ** 2 * density(z)

    total = quad(square, -12, 0)[0] + quad(square, 0, 12)[0]
    assert total == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize(("name", "share"), [("top-50 %", 0.5), ("top-10 %", 0.1)])
def test_top_share_keeps_the_largest_and_the_scale(name, share):
    z = torch.randn(20, 4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept = top_share(share)(z)
    assert ((kept != 0).sum(1) == share * 4000).all()
    assert (z[kept == 0].max() <= z.sort(1).values[:, -round(share * 4000)].max()).all()
    assert torch.equal(kept[kept != 0], z[kept != 0])
    # 80,000 draws: the mean of squares has a standard error below 1 %.
    assert float(ACTIVATIONS[name](z).square().mean()) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("name", LIMITS)
def test_duals_are_the_integrals(name):
    """E φ(u)φ(v) and E φ'(u)φ'(v), against a fine grid over two dimensions."""
    # An even count: no point lies on ReLU's kink.
    grid = torch.linspace(-9, 9, 1200, dtype=torch.float64)
    cell = (grid[1] - grid[0]) ** 2
    a, b = torch.meshgrid(grid, grid, indexing="ij")
    weight = torch.exp(-(a**2 + b**2) / 2) / (2 * math.pi) * cell
    for rho in (-0.6, 0.0, 0.7):
        u = a.clone().requires_grad_()
        v = (rho * a + (1 - rho**2) ** 0.5 * b).requires_grad_()
        left, right = ACTIVATIONS[name](u), ACTIVATIONS[name](v)
        (du,) = torch.autograd.grad(left.sum(), u)
        (dv,) = torch.autograd.grad(right.sum(), v)
        expected = [
            float((weight * one * two).sum().detach()) for one, two in ((left, right), (du, dv))
        ]
        found = [float(one) for one in LIMITS[name](torch.tensor(rho, dtype=torch.float64))]
        assert found == pytest.approx(expected, abs=2e-3)


def test_the_first_kernel_nears_its_limit():
    """ReLU: the distance is a mean over the width's entries, so it falls as n^-1/2."""
    x, _ = task(0)
    limit = limit_kernel(x, LIMITS["relu"])
    apart = {}
    for width in (64, 1024):
        found = []
        for seed in range(4):
            draw = torch.Generator().manual_seed(seed)
            net = WideNet(x.shape[1], width, ACTIVATIONS["relu"], draw)
            found.append(float((kernel(net, x) - limit).norm() / limit.norm()))
        apart[width] = sum(found) / 4
    assert apart[1024] < 0.12
    assert 2 < apart[64] / apart[1024] < 8  # four, were there no draw


def test_a_trained_head_is_linear_and_a_product_of_layers_is_not(monkeypatch):
    """Without activation f is linear in each layer, not in all; in the head alone it is."""
    monkeypatch.setitem(ACTIVATIONS, "frozen", lambda z: z.detach().tanh() + 0 * z)
    found = measure("frozen", 64, 0)
    assert found["gap"] < 1e-12
    assert found["change"] < 1e-15
    # After a few steps: in the end both are the least squares map, for want of inputs.
    monkeypatch.setattr(wide_nets, "STEPS", 5)
    monkeypatch.setitem(ACTIVATIONS, "none", lambda z: z)
    assert measure("none", 64, 0)["gap"] > 1e-4


def test_descent_on_outputs_is_descent_on_the_linearised_weights():
    """The linearisation trained as a model of weights, by autograd on f0 + J(w - w0)."""
    x, y = task(3)
    net = WideNet(x.shape[1], 16, ACTIVATIONS["tanh"], torch.Generator().manual_seed(0))
    weights = list(net.parameters())
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(one, weights, retain_graph=True)])
        for one in net(x)
    ]
    jacobian = torch.stack(rows)
    torch.testing.assert_close(kernel(net, x), jacobian @ jacobian.T)
    start = net(x).detach()
    gram = jacobian @ jacobian.T
    rate = 0.5 / float(torch.linalg.eigvalsh(gram[:POINTS, :POINTS])[-1])
    moved, outputs = torch.zeros(jacobian.shape[1]).double(), start.clone()
    for _ in range(20):
        error = (start + jacobian @ moved)[:POINTS] - y
        moved = moved - rate * jacobian[:POINTS].T @ error
        outputs = outputs - rate * gram[:, :POINTS] @ (outputs[:POINTS] - y)
    torch.testing.assert_close(outputs, start + jacobian @ moved)


def test_slopes_of_powers():
    widths = [16, 64, 256]
    exact = [[3 * width**-0.7 for width in widths]] * 3
    slope, interval = exponent(widths, exact)
    assert slope == pytest.approx(-0.7, abs=1e-12)
    assert interval == pytest.approx((-0.7, -0.7), abs=1e-9)
    # Two seeds with slopes -1 and 0: mean -1/2, t(1) = 12.706 times a standard error of 1/2.
    two = [[1 / width for width in widths], [2.0] * 3]
    slope, interval = exponent(widths, two)
    assert slope == pytest.approx(-0.5)
    assert interval == pytest.approx((-0.5 - 12.706 / 2, -0.5 + 12.706 / 2), rel=1e-4)
    assert exponent(widths, [[1.0, None, 2.0]]) == (None, None)
    assert exponent(widths, exact[:1])[1] is None


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((-0.9, -0.5), "supported"),
        ((-0.49, -0.2), "refuted"),
        ((-0.7, -0.3), "undecided"),
        (None, "undecided"),
    ],
)
def test_verdicts(interval, verdict):
    assert judged(interval) == verdict


def finding(**more):
    return study(widths=(16, 128), seeds=3, **more)


def test_a_small_run_sees_the_law_and_is_written_down(tmp_path, monkeypatch):
    monkeypatch.setattr(wide_nets, "STEPS", 60)
    told = []
    found = finding(out=tmp_path / "out", progress=lambda *one: told.append(one))
    assert told[-1] == ("wide-nets", 30, 30)
    slopes = {one.name: one.value for one in found.figures}
    # Law and slack: the means of three seeds over two widths.
    assert -1.6 < slopes["output gap, tanh"] < -0.5
    assert -1.6 < slopes["kernel change, tanh"] < -0.5
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"study.json", "study.html"}
    data = json.loads((tmp_path / "out" / "study.json").read_text())
    assert data == found.as_dict()
    assert {"torch", "secant"} <= data["versions"].keys()
    assert len(data["numbers"]) == 30
    assert data["settings"]["steps"] == 60
    page = (tmp_path / "out" / "study.html").read_text()
    assert page.count('<svg class="plot"') == 3
    assert "<script" not in page
    assert found.verdict in page
    assert finding().numbers == found.numbers  # same seed, same numbers


def test_a_run_cut_off_goes_on_to_the_same_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(wide_nets, "STEPS", 5)
    whole = finding()

    def stop(label, done, total):
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finding(out=tmp_path, progress=stop)
    with monkeypatch.context() as patched:
        patched.setattr(wide_nets, "ACTIVATIONS", dict(ACTIVATIONS))
        calls = []
        once = wide_nets.measure
        patched.setattr(wide_nets, "measure", lambda *one: calls.append(one) or once(*one))
        again = finding(out=tmp_path, resume=True)
    assert len(calls) == 23
    assert again.numbers == whole.numbers


def test_the_command(run, tmp_path, monkeypatch):
    monkeypatch.setattr(wide_nets, "STEPS", 3)
    monkeypatch.setattr(wide_nets, "WIDTHS", (8, 16))
    monkeypatch.setattr(wide_nets, "SEEDS", 2)
    code, out, err = run("study", "wide-nets", "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    assert "output gap, tanh" in out
    assert str(tmp_path / "out" / "study.html") in out
    code, out, err = run("study", "nonesuch", "--out", tmp_path / "out")
    assert code == 2
    assert err.count("\n") == 1
    assert "wide-nets" in err
    code, _, err = run("study", "wide-nets", "--out", tmp_path / "other", "--resume")
    assert code == 2
    assert "nothing to resume" in err


def test_every_study_is_there():
    from importlib import import_module

    assert all(callable(import_module(module).study) for module in STUDIES.values())
