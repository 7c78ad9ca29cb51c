"""Swapping activations: the four demo models, what is found and not, what is kept.

Holds: tests of ``secant.nn.swap``.
May import: pytest, torch, ``secant.nn``, ``secant.load.demo``.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional

from secant.errors import InputError
from secant.load.demo import digits, load_demo
from secant.nn import KMax, LeakyReLU, PReLU, Snake, Spline, Tunable, swap
from secant.nn.swap import MAKERS

IMAGES = digits()[0][:40]
DEMOS = {
    "mlp": (nn.ReLU, 64, -1, 5),
    "cnn": (nn.ReLU, 16, 1, 4),
    "transformer": (nn.GELU, 128, -1, 4),
}


@pytest.mark.parametrize("name", DEMOS)
@pytest.mark.parametrize("new", MAKERS)
def test_demo_models(name, new):
    """What keeps ReLU or GELU at each place keeps the model; the model given is untouched."""
    kind, units, dim, count = DEMOS[name]
    model = load_demo(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = swap(model, {kind: new}, IMAGES)
    assert len(found.places) == count
    assert {(one.units, one.dim, one.calls) for one in found.places} == {(units, dim, 1)}
    assert not any(type(part) is kind for part in found.model.modules()) or new in (
        "relu",
        "tunable",
    )
    with torch.no_grad():
        off = float((found.model(IMAGES) - model(IMAGES)).abs().max())
    exact = {"relu", "leaky_relu", "prelu", "spline", "tunable"} if kind is nn.ReLU else {"tunable"}
    assert all(one.is_kept == (new in exact) for one in found.places)
    assert (off == 0) == (new in exact)
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())
    assert [key for key, _ in model.named_modules()] == [
        key for key, _ in load_demo(name).named_modules()
    ]


@pytest.mark.parametrize("name", ["mlp", "cnn"])
@pytest.mark.parametrize("new", ["spline", "tunable", "prelu", "swish"])
def test_what_comes_trains(new, name):
    _, units, _, _ = DEMOS[name]
    found = swap(load_demo(name), {nn.ReLU: new}, IMAGES)
    functional.cross_entropy(found.model(IMAGES), digits()[1][:40]).backward()
    for place in found.places:
        for parameter in place.new.parameters():
            assert parameter.shape[0] == units
            assert parameter.grad.abs().sum() > 0


def test_the_error_is_that_of_the_start():
    """GELU by lines 1/4 apart: max |f''| h² / 8 at 0, where f'' = 2 φ(0)."""
    found = swap(load_demo("transformer"), {nn.GELU: "spline"}, IMAGES)
    bound = 2 / (2 * torch.pi) ** 0.5 * 0.25**2 / 8
    assert all(0.9 * bound < one.error < bound for one in found.places)
    assert "blocks.0.mlp.1: GELU -> Spline, 128 units along dimension -1; changes" in str(found)
    assert "off by at most 0.0061 on the example and on [-4, 4]" in str(found)


def test_functions_are_counted_and_left_alone():
    found = swap(load_demo("cnn"), {nn.ReLU: "leaky_relu"}, IMAGES)
    assert found.functional == {(f"blocks.{place}", "relu"): 1 for place in range(4)}
    assert "blocks.3: runs relu as a function, once: left alone" in str(found)
    assert swap(load_demo("mlp"), {nn.ReLU: "leaky_relu"}, IMAGES).functional == {}


class Gelu(nn.Module):
    """A class of somebody's own around a function, as Hugging Face has them."""

    def forward(self, x):
        return functional.gelu(x)


def test_a_function_inside_of_what_is_swapped_is_no_call_that_is_left():
    model = nn.Sequential(nn.Linear(3, 4), Gelu())
    assert swap(model, {Gelu: "tunable"}, torch.randn(2, 3)).functional == {}
    with pytest.raises(InputError, match="as functions it calls: gelu"):
        swap(model, {nn.GELU: "tunable"}, torch.randn(2, 3))


class Mixed(nn.Module):
    """Shared, unused and in-place activations, functions, keywords, and a kind of one's own."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 6)
        self.act = nn.ReLU(inplace=True)
        self.again = self.act
        self.unused = nn.ReLU()
        self.norm = nn.BatchNorm1d(6)
        self.last = nn.Sequential(nn.Dropout(0.5), nn.Sigmoid())

    def forward(self, x, scale=1.0):
        x = self.act(self.norm(self.first(x)))
        x = self.again(self.second(x))
        return self.last(torch.tanh(x) * scale + x.sigmoid() + functional.gelu(x).relu_())


def test_shared_unused_and_functions():
    torch.manual_seed(0)
    model = Mixed().train()
    stats = model.norm.running_mean.clone()
    x = torch.randn(8, 4)
    found = swap(model, {nn.ReLU: "tunable", nn.Sigmoid: lambda place: nn.Tanh()}, {"x": x})
    assert [(one.name, one.calls) for one in found.places] == [("act", 2), ("last.1", 1)]
    assert found.unreached == ["unused"]
    assert "unused: not run by the example: left alone" in str(found)
    assert found.functional == {("", name): 1 for name in ("tanh", "sigmoid", "gelu", "relu")}
    assert found.model.act is found.model.again
    assert isinstance(found.model.act, Tunable)
    assert isinstance(found.model.act.activation, nn.ReLU)
    assert type(found.model.unused) is nn.ReLU
    assert type(found.model.last[1]) is nn.Tanh
    assert found.model.training
    assert found.model.norm.running_mean.equal(stats)
    assert all(part.training for part in found.model.modules())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in found.model.modules())
    assert type(swap(model, {nn.ReLU: "swish"}, (x, 2.0)).model.act).__name__ == "Swish"


def test_units_are_where_the_maker_puts_them():
    """One-dimensional convolutions have theirs second, tokens last; `dim` says otherwise."""
    conv = nn.Sequential(nn.Conv1d(3, 5, 2), nn.ReLU())
    (place,) = swap(conv, {nn.ReLU: "snake"}, torch.randn(2, 3, 9)).places
    assert (place.units, place.dim) == (5, 1)
    assert isinstance(place.new, Snake)
    tokens = nn.Sequential(nn.Linear(3, 5), nn.ReLU())
    (place,) = swap(tokens, {nn.ReLU: "prelu"}, torch.randn(2, 7, 3)).places
    assert (place.units, place.dim) == (5, -1)
    assert place.new.num_parameters == 1  # torch's are along dimension 1, or one for all
    assert place.is_kept
    (place,) = swap(tokens, {nn.ReLU: "spline"}, torch.randn(2, 7, 3), dim=1).places
    assert (place.units, place.dim) == (7, 1)


def test_the_model_may_be_the_activation_and_of_another_type():
    found = swap(nn.ReLU(), {nn.ReLU: "spline"}, torch.randn(3, 4))
    assert isinstance(found.model, Spline)
    half = nn.Sequential(nn.Linear(3, 4), nn.ReLU()).to(torch.bfloat16)
    found = swap(half, {nn.ReLU: "tunable"}, torch.randn(2, 3).bfloat16())
    assert {one.dtype for one in found.model.parameters()} == {torch.bfloat16}
    x = torch.randn(2, 3).bfloat16()
    assert torch.equal(found.model(x), half(x))


def test_only_the_class_itself_is_swapped():
    model = nn.Sequential(nn.ReLU(), nn.ReLU6())  # ReLU6 is a Hardtanh, PReLU a Module
    found = swap(model, {nn.ReLU: "leaky_relu"}, torch.randn(3, 4))
    assert [type(part) for part in found.model] == [LeakyReLU, nn.ReLU6]
    found = swap(model, {nn.ReLU6: lambda place: KMax(2)}, torch.randn(3, 4))
    assert [type(part) for part in found.model] == [nn.ReLU, KMax]


def twice():
    act = nn.ReLU()
    return nn.Sequential(nn.Linear(4, 6), act, nn.Linear(6, 5), act)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: swap(load_demo("linear"), {nn.ReLU: "prelu"}, IMAGES),
            r"to be changed \(ReLU\); it runs none\. It holds Flatten, Linear; as functions it "
            r"calls: none\. Name another class",
        ),
        (
            lambda: swap(load_demo("cnn"), {nn.GELU: "prelu"}, IMAGES),
            r"It holds .*ReLU; as functions it calls: relu\. .*make modules of the functions",
        ),
        (lambda: swap(load_demo("mlp"), {}, IMAGES), r"\(no class\); it runs none"),
        (
            lambda: swap(load_demo("mlp"), {nn.ReLU: "nonesuch"}, IMAGES),
            r"ReLU must become one of identity, .*got 'nonesuch'\. Choose",
        ),
        (
            lambda: swap(load_demo("mlp"), {nn.ReLU: "prelu"}, [1, 2]),
            r"a tensor, a tuple of arguments or a dict of keywords; got list\. Give",
        ),
        (
            lambda: swap(twice(), {nn.ReLU: "prelu"}, torch.randn(2, 4)),
            r"'1' must read its units along one dimension.*\(2, 6\), \(2, 5\).*module of its own",
        ),
        (
            lambda: swap(nn.Sequential(PReLU(4)), {PReLU: "spline"}, torch.randn(2, 4)),
            r"'0' must be one function of numbers.*PReLU has parameters of each unit.*`tunable`",
        ),
        (
            lambda: swap(nn.ReLU(), {nn.ReLU: lambda place: nn.Flatten()}, torch.randn(2, 3, 4)),
            r"must keep the shape \(2, 3, 4\); it gives \(2, 12\)\. Make another",
        ),
    ],
)
def test_messages(make, message):
    with pytest.raises(InputError, match=message):
        make()
