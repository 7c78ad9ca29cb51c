"""Alignment: copies come back, functions stay, assignments are the best, bad input is refused.

Holds: tests of ``secant.uses.align``, ``matching``, ``activations`` and ``secant align``.
May import: pytest, torch, scipy, safetensors, ``secant``, ``nets_to_align``.
"""

import copy
import itertools
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.optimize import linear_sum_assignment
from torch import nn

import secant
from nets_to_align import CASES, mlp, run_once, scrambled
from secant.errors import InputError
from secant.load.huggingface import quiet
from secant.load.units import Units
from secant.maps.graph import export
from secant.maps.symmetries import Symmetries, Symmetry, find_symmetries
from secant.uses import assignment, matching
from secant.uses.align import align, distance, weight_terms
from secant.uses.matching import Term, match

BACK = ["mlp", "residual CNN with BatchNorm", "BERT", "Llama", "demo transformer", "GPT-2"]
CASE = {case.name: case for case in CASES}


def some_data(args, kwargs, count):
    torch.manual_seed(1)
    if kwargs:
        return torch.randint(0, 40, (count, 5))
    return torch.randn(count, *args[0].shape[1:])


@pytest.mark.parametrize("method", ["weights", "activations"])
@pytest.mark.parametrize("name", BACK)
def test_a_permuted_copy_comes_back(name, method):
    model, args, kwargs = CASE[name].build(torch.float32)
    other = scrambled(model, args, kwargs)
    state = {key: value.clone() for key, value in other.state_dict().items()}
    found = align(model, other, some_data(args, kwargs, 60), method=method)
    assert found.before > 1
    assert found.after == 0
    assert found.difference < 1e-5
    for key, value in found.model.state_dict().items():  # buffers go along
        assert torch.equal(value, model.state_dict()[key]), key
        assert torch.equal(other.state_dict()[key], state[key]), "b was changed"


def test_orders_reach_the_best_of_all():
    """One hidden layer of five units: all 120 orders tried."""
    torch.manual_seed(0)
    a, b = mlp(3, 5, 2), mlp(3, 5, 2)
    found = align(a, b, torch.randn(4, 3))
    trials = []
    for order in map(list, itertools.permutations(range(5))):
        other = copy.deepcopy(b)
        with torch.no_grad():
            other[0].weight.copy_(b[0].weight[order])
            other[0].bias.copy_(b[0].bias[order])
            other[2].weight.copy_(b[2].weight[:, order])
        trials.append(distance(a, other))
    assert found.after == pytest.approx(min(trials), rel=1e-6)


def test_heads_reach_the_best_of_all():
    """Two heads of two entries: every order of heads and of the entries within each."""
    torch.manual_seed(0)
    layers = [nn.TransformerEncoderLayer(4, 2, 4, batch_first=True).eval() for _ in range(2)]
    with torch.no_grad():
        for layer in layers:
            for parameter in layer.parameters():
                parameter.normal_()
    found = align(*layers, torch.randn(4, 3, 4))
    (heads,) = (s for s in found.symmetries if s.size == 2 and not s.within)
    pairs = list(itertools.permutations(range(2)))
    values = []
    a, b = (layer.self_attn for layer in layers)
    for head in pairs:
        total = 0.0
        for x, y in enumerate(head):
            # Queries with keys, values with the output's columns: each pair of heads on its own.
            for parts, has_out in (((0, 1), False), ((2,), True)):
                total += max(
                    _products(a, b, parts, has_out, x, y, list(entries)) for entries in pairs
                )
        values.append(total)
    best = max(values)
    assert tuple(found.orders[heads.axis].tolist()) == pairs[values.index(best)]
    reached = _attention_product(a, found.model.self_attn)
    assert reached == pytest.approx(best, rel=1e-5)


def _products(a, b, parts, has_out, x, y, entries):
    total = 0.0
    for part in parts:
        for name in ("in_proj_weight", "in_proj_bias"):
            ours, theirs = (getattr(m, name).detach().unflatten(0, (3, 2, 2)) for m in (a, b))
            total += float((ours[part, x] * theirs[part, y][entries]).sum())
    if has_out:
        ours, theirs = (m.out_proj.weight.detach().unflatten(1, (2, 2)) for m in (a, b))
        total += float((ours[:, x] * theirs[:, y][:, entries]).sum())
    return total


def _attention_product(a, b):
    names = ("in_proj_weight", "in_proj_bias", "out_proj.weight")
    return sum(float((a.get_parameter(n) * b.get_parameter(n)).sum().detach()) for n in names)


def test_gains_mended_and_made_anew_agree():
    """No single order gives more in the end, with gains computed from nothing."""
    torch.manual_seed(0)
    a, b = mlp(8, 40, 40, 40, 3), mlp(8, 40, 40, 40, 3)
    found = align(a, b, torch.randn(4, 8))
    again = align(a, found.model, torch.randn(4, 8))
    assert found.after < 0.98 * found.before
    for layer in (0, 2, 4):
        ours, theirs = ([m[layer].weight, m[layer].bias[:, None], m[layer + 2].weight.T]
                        for m in (a, found.model))  # fmt: skip
        gain = torch.cat(ours, 1).double() @ torch.cat(theirs, 1).double().T
        gain = gain.detach()
        rows, columns = linear_sum_assignment(gain.numpy(), maximize=True)
        best = float(gain[rows, columns].sum())
        assert float(gain.diagonal().sum()) == pytest.approx(best, rel=1e-5)
    assert again.before == pytest.approx(found.after)


def test_gains_are_mended_by_what_changed():
    """Three axes in terms of up to three, one twice in a term: after any orders, as made anew."""
    sizes = {0: 6, 1: 7, 2: 8}
    found = Symmetries(
        tuple(Symmetry(axis, str(axis), size, (), 1, ()) for axis, size in sizes.items()),
        (), {}, sizes, {},
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    axes = [(0, 1, 2), (0, 1), (2, 0), (1, 1), (2,)]
    terms = [
        Term(one, *(torch.randn(*(sizes[a] for a in one), 3, generator=generator) for _ in "ab"))
        for one in axes
    ]
    descent = matching._Descent(matching._Tree(found, generator), terms, list(sizes), 0)
    for moved in ([0], [1, 2], [0], [1], [], [2], [0, 1, 2]):
        for axis in moved:
            descent.orders[axis] = torch.randperm(sizes[axis], generator=generator)
        for axis, size in sizes.items():
            expected = torch.zeros(size, size)
            for term in terms:
                for dim in (d for d, a in enumerate(term.axes) if a == axis):
                    b = term.b
                    for other, a in enumerate(term.axes):
                        if other != dim and a in descent.orders:
                            b = b.index_select(other, descent.orders[a])
                    pair = [each.movedim(dim, 0).flatten(1) for each in (term.a, b)]
                    expected += pair[0] @ pair[1].T
            gain, has_changed = descent._gain(axis, descent.of[axis])
            assert torch.allclose(gain.matrix, expected, rtol=0, atol=1e-4)
            again, has_more = descent._gain(axis, descent.of[axis])
            assert again is gain
            assert not has_more
            neighbours = {0: {1, 2}, 1: {0, 1, 2}, 2: {0, 1}}[axis]
            assert has_changed == (not gain.assignment or bool(neighbours.intersection(moved)))
            gain.assignment = gain.assignment or assignment.assign(gain.matrix)


def test_no_gain_is_assigned_twice(monkeypatch):
    """An axis whose neighbours stayed has its best order already."""
    torch.manual_seed(0)
    a, b = mlp(8, 30, 30, 30, 3), mlp(8, 30, 30, 30, 3)
    seen = []

    def watched(gain, begin):
        assert not any(torch.equal(gain, one) for one in seen)
        seen.append(gain.clone())
        return assignment.assign(gain, begin)

    monkeypatch.setattr(matching, "assign", watched)
    found = align(a, b, torch.randn(4, 8))
    assert len(seen) > len(found.orders)


def test_without_compiled_c_scipy_assigns(monkeypatch):
    """As near from either, where two optima of random gains do not tie."""
    torch.manual_seed(0)
    a, b = mlp(8, 40, 40, 3), mlp(8, 40, 40, 3)
    found = align(a, b, torch.randn(4, 8))
    monkeypatch.setattr(assignment, "_library", lambda: None)
    other = align(a, b, torch.randn(4, 8))
    assert other.after == found.after
    assert all(torch.equal(other.orders[axis], order) for axis, order in found.orders.items())


def test_weights_whose_products_leave_the_range_are_refused():
    a, b = (mlp(4, 5, 2) for _ in range(2))
    with torch.no_grad():
        for model in (a, b):
            model[0].weight.fill_(1e30)
    with pytest.raises(InputError, match=r"25 of 25 pairs are not\. Products of weights leave"):
        align(a, b, torch.randn(4, 4))


def test_a_seed_draws_one_result():
    torch.manual_seed(0)
    a, b = mlp(8, 30, 30, 3), mlp(8, 30, 30, 3)
    first, second = (align(a, b, torch.randn(4, 8), seed=3) for _ in range(2))
    assert first.after == second.after
    assert all(torch.equal(first.orders[axis], second.orders[axis]) for axis in first.orders)


def test_a_layer_between_equal_streams_never_gets_worse():
    """x + W x has the stream on both sides of W: not a linear assignment, so gains are checked."""

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.mix = nn.Linear(4, 12), nn.Linear(12, 12)
            self.last = nn.Linear(12, 3)

        def forward(self, x):
            x = self.first(x)
            return self.last(x + self.mix(x).relu())

    torch.manual_seed(0)
    a, b = Residual().eval(), Residual().eval()
    found = align(a, b, torch.randn(4, 4))
    assert [s.size for s in found.symmetries] == [12]
    assert found.after < found.before
    back = align(a, scrambled(a, (torch.randn(2, 4),), {}), torch.randn(4, 4))
    assert back.after == 0


def test_texts_of_several_lengths_are_never_padded():
    """Rows of tokens of two lengths: the activations of short ones are those without padding."""
    model, args, kwargs = CASE["BERT"].build(torch.float32)
    rows = [torch.randint(0, 40, (5 + unit % 2,)) for unit in range(30)]
    masks = [torch.ones_like(row) for row in rows]
    units = Units("ids", fields={"input_ids": rows, "attention_mask": masks})
    found = align(model, scrambled(model, args, kwargs), units, method="activations")
    assert found.after == 0


def test_half_precision_is_checked_in_single():
    model, args, kwargs = CASE["mlp"].build(torch.bfloat16)
    found = align(model, scrambled(model, args, kwargs), torch.randn(4, 6))
    assert found.after == 0
    assert found.model[0].weight.dtype == torch.bfloat16
    assert found.difference < 1e-5


def test_other_tensors_are_named():
    with pytest.raises(InputError, match=r"2 differ: 0.weight \(8, 6\) and \(9, 6\)"):
        align(mlp(6, 8), mlp(6, 9), torch.randn(2, 6))


def test_more_than_ten_are_counted():
    with pytest.raises(InputError, match=r"and 2 more\. Align models of one architecture"):
        align(mlp(*[6] * 7), mlp(*[7] * 7), torch.randn(2, 6))


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else x


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.layer(x) + torch.randn_like(x))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (Branching, {}, "cannot be exported"),
        (Noisy, {}, "must give the same outputs"),
        (lambda: mlp(4, 5, 2), {"method": "feelings"}, "must be one of weights, activations"),
    ],
)
def test_refusals(model, options, message):
    with pytest.raises(InputError, match=message):
        align(model().eval(), model().eval(), torch.randn(4, 4), **options)


def test_data_is_asked_for():
    with pytest.raises(InputError, match="needs data to run on"):
        align(mlp(4, 5, 2), mlp(4, 5, 2))


def test_command_writes_a_directory(tmp_path, run):
    model, args, kwargs = CASE["Llama"].build(torch.float32)
    other = scrambled(model, args, kwargs)
    for name, each in (("a", model), ("b", other)):
        with quiet():
            each.save_pretrained(tmp_path / name)
    (tmp_path / "b" / "tokenizer_config.json").write_text('{"kept": true}')
    code, out, err = run("align", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    assert "9 permutation symmetries" in out
    assert "0 after, by weights" in out
    assert "a constant varies along it" in out
    ours = load_file(tmp_path / "a" / "model.safetensors")
    theirs = load_file(tmp_path / "out" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    before, after = (json.loads((tmp_path / n / "config.json").read_text()) for n in ("b", "out"))
    assert before == after
    assert (tmp_path / "out" / "tokenizer_config.json").is_file()
    assert not [p for p in (tmp_path / "out").iterdir() if p.name.startswith(".")]


def test_command_takes_weights_files(tmp_path, run, monkeypatch):
    from secant.load.demo import load_demo

    model = load_demo("mlp")
    other = scrambled(model, (torch.rand(2, 1, 8, 8),), {})
    for name, each in (("a", model), ("b", other)):
        save_file(each.state_dict(), tmp_path / f"{name}.safetensors")
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    code, _, err = run("align", *files)
    assert code == 2
    assert "--model package.module:factory" in err
    code, out, _ = run(
        "align", *files, "--model", "secant.load.demo:ReluMLP", "--data", "demo:digits",
        "--method", "activations", "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 0
    assert "0 after, by activations" in out
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(found[key], value) for key, value in model.state_dict().items())


def test_public_names_are_the_same():
    assert secant.align is align


def test_terms_hold_each_parameter_once():
    """Products over the terms are those over all parameters that move."""
    model, args, kwargs = CASE["Llama"].build(torch.float64)
    found = find_symmetries(export(model, "m", args, kwargs), model)
    terms = weight_terms(model, model, found)
    total = sum(float((t.a * t.b).sum()) for t in terms)
    assert total == pytest.approx(sum(float(p.detach().square().sum()) for p in model.parameters()))
    orders = match(found, terms, torch.Generator().manual_seed(0))
    assert all(bool((o == torch.arange(o.shape[-1])).all()) for o in orders.values())
    assert run_once(model, args, kwargs).isfinite().all()
