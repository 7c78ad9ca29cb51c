"""Each recurrence as its paper writes it, in Python's loops and numbers; how each begins.

Holds: tests of ``secant.nn.recurrence``, layer by layer.
May import: pytest, torch, numpy, scipy, ``secant.nn``.
"""

import cmath
import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from secant.errors import InputError
from secant.nn.recurrence import (
    GILR,
    GILRLSTM,
    LRU,
    S6,
    DeltaNet,
    DiagonalRNN,
    LinearRNN,
    TimeStep,
    delta_rule,
    selective_scan,
)
from secant.nn.recurrence.delta import Asked
from secant.nn.recurrence.s6 import Selected

DOUBLE = torch.float64
TIGHT = {"rtol": 0, "atol": 1e-12}


def arrays(layer):
    """Its parameters as numpy's."""
    return {name: one.detach().double().numpy() for name, one in layer.named_parameters()}


def rows(*shape):
    return np.random.default_rng(0).normal(size=shape)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def close(found, expected):
    np.testing.assert_allclose(found.detach().numpy(), expected, **TIGHT)


def test_linear_rnn_is_its_formula():
    torch.manual_seed(0)
    layer = LinearRNN(3, 4, radius=0.7).double()
    w, x, h = arrays(layer), rows(9, 3), rows(4)
    found, last = layer(torch.tensor(x)[None], torch.tensor(np.array(h))[None])
    for t in range(9):
        h = w["weight_hh"] @ h + w["weight_ih"] @ x[t] + w["bias"]
        close(found[0, t], h)
    close(last[0], h)


@pytest.mark.parametrize("radius", [0.5, 1.0])
def test_linear_rnn_begins_as_a_rotation(radius):
    torch.manual_seed(0)
    layer = LinearRNN(256, 100, radius=radius)
    magnitudes = torch.linalg.eigvals(layer.weight_hh.detach().double()).abs()
    assert torch.allclose(magnitudes, torch.full_like(magnitudes, radius), atol=1e-5)
    # 25,600 weights: the standard error of their variance is 0.9 %.
    assert float(layer.weight_ih.detach().var()) == pytest.approx(1 / 256, rel=0.04)


def test_lru_is_its_formula():
    """With Python's complex numbers."""
    torch.manual_seed(0)
    layer = LRU(3, 4, r_min=0.4, r_max=0.95).double()
    with torch.no_grad():
        layer.gamma += 0.3  # the norm is trained, and no longer sqrt(1 - |λ|²)
    w, x = arrays(layer), rows(9, 3)
    h = [complex(*one) for one in rows(4, 2)]
    found, last = layer(torch.tensor(x)[None], torch.tensor(np.array(h))[None])
    for t in range(9):
        for n in range(4):
            eigenvalue = cmath.exp(-math.exp(w["nu"][n]) + 1j * math.exp(w["theta"][n]))
            into = sum(complex(*w["write"][n, j]) * x[t, j] for j in range(3))
            h[n] = eigenvalue * h[n] + math.exp(w["gamma"][n]) * into
        for j in range(3):
            y = sum(complex(*w["read"][j, n]) * h[n] for n in range(4)).real
            assert found[0, t, j].item() == pytest.approx(y + w["skip"][j] * x[t, j], abs=1e-12)
    close(last[0], np.array(h))


@pytest.mark.parametrize(("low", "high", "phase"), [(0.0, 1.0, 2 * math.pi), (0.9, 0.999, 0.3)])
def test_lru_begins_on_the_ring(low, high, phase):
    """|λ|² and the phase are uniform (Kolmogorov and Smirnov; a fixed seed), and so in the disc."""
    torch.manual_seed(0)
    layer = LRU(2, 4000, r_min=low, r_max=high, max_phase=phase).double()
    values = layer.eigenvalues().detach().numpy()
    square = np.abs(values) ** 2
    assert kstest((square - low**2) / (high**2 - low**2), "uniform").pvalue > 0.01
    assert kstest(np.angle(values) % (2 * np.pi) / phase, "uniform").pvalue > 0.01
    np.testing.assert_allclose(np.exp(2 * layer.gamma.detach().numpy()), 1 - square, rtol=0.03)
    assert all(np.isfinite(one).all() for one in arrays(layer).values())


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.6), (0.97, 0.98)])
def test_lru_states_have_mean_square_one_under_white_noise(low, high):
    """However long the memory: 0.98^400 is 0.0003. 32 sequences of 64 features, 200 states."""
    torch.manual_seed(0)
    layer = LRU(64, 200, r_min=low, r_max=high)
    with torch.no_grad():
        _, last = layer(torch.randn(32, 200, 64))
    assert float(last.abs().square().mean()) == pytest.approx(1, abs=0.06)


def test_gilr_is_its_formula():
    torch.manual_seed(0)
    layer = GILR(3, 4).double()
    w, x, h = arrays(layer), rows(9, 3), rows(4)
    found, _ = layer(torch.tensor(x)[None], torch.tensor(h)[None])
    for t in range(9):
        gate = sigmoid(w["weight"][:4] @ x[t] + w["bias"][:4])
        impulse = np.tanh(w["weight"][4:] @ x[t] + w["bias"][4:])
        h = gate * h + (1 - gate) * impulse
        close(found[0, t], h)


def test_a_nearly_open_gate_still_lets_in():
    """In float32, σ(20) rounds to 1: the rest, 2.06e-9, is what the impulse is weighed by."""
    layer = GILR(1, 1)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor([20.0, 1.0]))
    found, _ = layer(torch.zeros(1, 1, 1))
    assert found.item() == pytest.approx(math.tanh(1) / (1 + math.exp(20)), rel=1e-5)


def test_gilr_lstm_is_its_formula():
    torch.manual_seed(0)
    layer = GILRLSTM(3, 4).double()
    w, x = arrays(layer), rows(9, 3)
    found, last = layer(torch.tensor(x)[None])
    stand_in, cell = np.zeros(4), np.zeros(4)
    for t in range(9):
        parts = w["weight_hh"] @ stand_in + w["weight_ih"] @ x[t] + w["bias"]
        forget, take, give = (sigmoid(parts[4 * k : 4 * k + 4]) for k in range(3))
        cell = forget * cell + take * np.tanh(parts[12:])
        close(found[0, t], give * cell)
        gate = sigmoid(w["surrogate.weight"][:4] @ x[t] + w["surrogate.bias"][:4])
        impulse = np.tanh(w["surrogate.weight"][4:] @ x[t] + w["surrogate.bias"][4:])
        stand_in = gate * stand_in + (1 - gate) * impulse
    close(last.surrogate[0], stand_in)
    close(last.cell[0], cell)


@pytest.mark.parametrize("has_negative", [False, True])
def test_diagonal_is_its_formula(has_negative):
    torch.manual_seed(0)
    layer = DiagonalRNN(3, 4, has_negative=has_negative).double()
    w, x, h = arrays(layer), rows(9, 3), rows(4)
    found, _ = layer(torch.tensor(x)[None], torch.tensor(h)[None])
    for t in range(9):
        gate = sigmoid(w["weight"][:4] @ x[t] + w["bias"][:4])
        h = (2 * gate - 1 if has_negative else gate) * h + w["weight"][4:] @ x[t] + w["bias"][4:]
        close(found[0, t], h)


def test_a_negative_eigenvalue_counts_to_two_and_a_positive_one_cannot():
    """Grazzi et al.: h turns round at every 1, by weights set by hand, over 2000 steps."""
    layer = DiagonalRNN(1, 1).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-80.0], [0.0]]))  # a = tanh(20) at 0, tanh(-20) at 1
        layer.bias.copy_(torch.tensor([40.0, 0.0]))
    bits = torch.randint(2, (4, 2000, 1), generator=torch.Generator().manual_seed(0))
    found, _ = layer(bits.double(), torch.ones(4, 1, dtype=DOUBLE))
    assert torch.equal(found.detach() < 0, bits.cumsum(1) % 2 == 1)
    layer.has_negative = False
    assert bool((layer(bits.double(), torch.ones(4, 1, dtype=DOUBLE))[0] >= 0).all())


@pytest.mark.parametrize("has_negative", [False, True])
@pytest.mark.parametrize("chunk", [None, 1, 4, 9, 50])
def test_s6_is_its_formula(has_negative, chunk):
    """Algorithm 2, number by number, with the exponential of each step and state."""
    torch.manual_seed(0)
    layer = S6(5, 3, rank=2, has_negative=has_negative, chunk=chunk).double()
    with torch.no_grad():
        layer.D.copy_(torch.tensor(rows(5)))
        layer.dt_proj.bias += 3.0  # steps of about a half, so that the state forgets
    w, x, h = arrays(layer), rows(9, 5), rows(5, 3)
    found, last = layer(torch.tensor(x)[None], torch.tensor(np.array(h))[None])
    for t in range(9):
        low, b, c = np.split(w["x_proj.weight"] @ x[t], [2, 5])
        for d in range(5):
            size = math.log1p(math.exp(w["dt_proj.weight"][d] @ low + w["dt_proj.bias"][d]))
            for n in range(3):
                kept = math.exp(-size * math.exp(w["A_log"][d, n]))
                kept = 2 * kept - 1 if has_negative else kept
                h[d, n] = kept * h[d, n] + size * b[n] * x[t, d]
            assert found[0, t, d].item() == pytest.approx(h[d] @ c + w["D"][d] * x[t, d], abs=1e-12)
    close(last[0], h)


def test_s6_begins_as_the_paper_says():
    """A = -1 ... -state; Δ log-uniform (Kolmogorov and Smirnov); reach scale / sqrt(rank)."""
    torch.manual_seed(0)
    layer = S6(3000, 6, rank=9, time_step=TimeStep(0.01, 0.5, scale=2.0))
    rates = layer.A_log.detach().exp()
    assert torch.allclose(rates, torch.arange(1.0, 7).expand(3000, 6))
    assert torch.equal(layer.D.detach(), torch.ones(3000))
    size = torch.nn.functional.softplus(layer.dt_proj.bias.detach().double()).numpy()
    assert kstest(np.log(size / 0.01) / np.log(50), "uniform").pvalue > 0.01
    reach = layer.dt_proj.weight.detach().abs().max().item()
    assert 0.99 * 2 / 3 < reach <= 2 / 3
    same = S6(8, 6, rank=4, time_step=TimeStep(0.01, 0.5, floor=0.3, scheme="constant"))
    assert torch.equal(same.dt_proj.weight.detach(), torch.full((8, 4), 0.5))
    assert bool((torch.nn.functional.softplus(same.dt_proj.bias) > 0.2999).all())
    assert S6(33).rank == 3
    for bad, message in (
        ({"low": 0.0}, r"0 < low <= high.*got 0\.0"),
        ({"low": 1.0, "high": 0.5}, "0 < low <= high"),
        ({"scheme": "x"}, "`scheme` must be 'random' or 'constant'; got 'x'"),
    ):
        with pytest.raises(InputError, match=message):
            TimeStep(**bad)


def test_chunks_keep_no_state_for_the_derivative():
    """The largest tensor that autograd keeps is x-sized: not the states of all steps."""
    torch.manual_seed(0)
    x = torch.randn(1, 64, 4)

    def largest(chunk):
        layer, sizes = S6(4, 32, rank=1, chunk=chunk), []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda one: sizes.append(one.numel()) or one, lambda one: one
        ):
            out, _ = layer(x)
        out.sum().backward()
        return max(sizes), [one.grad.clone() for one in layer.parameters()]

    torch.manual_seed(1)
    whole, expected = largest(None)
    torch.manual_seed(1)
    cut, found = largest(8)
    assert whole == 64 * 4 * 32
    assert cut < whole / 2
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def naive_delta(query, key, value, rate, state):
    """One head: the matrices of the paper, multiplied out."""
    out = []
    for q, k, v, b in zip(query, key, value, rate, strict=True):
        state = state @ (np.eye(len(k)) - b * np.outer(k, k)) + b * np.outer(v, k)
        out.append(state @ q)
    return np.array(out), state


@pytest.mark.parametrize("chunk", [1, 3, 16, 64])
def test_the_delta_rule_is_its_formula(chunk):
    """Rates up to 2 and keys of length 1: reflections among the transitions; 40 steps."""
    query, key, value = rows(3, 40, 4)
    value = np.concatenate([value, value[:, :2] ** 2], axis=1)
    key /= np.linalg.norm(key, axis=1, keepdims=True)
    rate = np.linspace(0, 2, 40)
    start = rows(6, 4)
    given = Asked(*(torch.tensor(one)[None] for one in (query, key, value, rate)))
    found, last = delta_rule(given, torch.tensor(start)[None], chunk=chunk)
    expected, end = naive_delta(query, key, value, rate, start)
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=0, atol=1e-11)
    np.testing.assert_allclose(last[0].numpy(), end, rtol=0, atol=1e-11)


def test_the_delta_rule_stays_where_reflections_do_not_shrink():
    """4000 reflections in float32, 64 at once: the state's norm stays, to rounding."""
    draw = torch.Generator().manual_seed(0)
    key = torch.nn.functional.normalize(torch.randn(1, 4000, 8, generator=draw), dim=-1)
    state = torch.randn(1, 8, 8, generator=draw)
    given = Asked(key, key, torch.zeros(1, 4000, 8), torch.full((1, 4000), 2.0))
    _, last = delta_rule(given, state)
    assert float(last.norm() / state.norm()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("heads", "has_negative", "is_normed"),
    [(1, True, True), (2, True, True), (2, False, True), (3, True, False)],
)
def test_delta_net_is_its_formula(heads, has_negative, is_normed):
    torch.manual_seed(0)
    layer = DeltaNet(6, heads, has_negative=has_negative, is_normed=is_normed, chunk=4).double()
    if is_normed:
        with torch.no_grad():
            layer.norm.weight.copy_(torch.tensor(rows(6 // heads)))
    w, x = arrays(layer), rows(9, 6)
    found, last = layer(torch.tensor(x)[None])
    size = 6 // heads

    def silu(z):
        return z * sigmoid(z)

    parts = {name: silu(x @ w[f"{name}.weight"].T) for name in ("query", "key", "value")}
    rate = sigmoid(x @ w["rate.weight"].T + w["rate.bias"]) * (2 if has_negative else 1)
    read = []
    for head in range(heads):
        q, k, v = (one[:, head * size : (head + 1) * size] for one in parts.values())
        q = q / np.linalg.norm(q, axis=1, keepdims=True)
        k = k / np.linalg.norm(k, axis=1, keepdims=True)
        out, end = naive_delta(q, k, v, rate[:, head], np.zeros((size, size)))
        close(last[0, head], end)
        mean = (out**2).mean(1, keepdims=True)
        read.append(out / np.sqrt(mean + 1e-5) * w["norm.weight"] if is_normed else out)
    close(found[0], np.concatenate(read, axis=1) @ w["out.weight"].T)


def test_a_missing_step_size_makes_no_state():
    """Δ of 0 keeps h as it is, whatever x is."""
    state = torch.randn(2, 3, 4)
    zeros = torch.zeros(2, 5, 3)
    write = torch.ones(2, 5, 4)
    found, last = selective_scan(
        torch.randn(2, 5, 3), Selected(zeros, write, write), -torch.ones(3, 4), state
    )
    assert torch.equal(last, state)
    assert torch.allclose(found, state.sum(-1)[:, None].expand(2, 5, 3))
