"""Taint: which operations of a graph are affine in the data.

Holds: tests of ``secant.maps.affinity`` and ``secant.maps.graph``.
May import: pytest, torch, ``secant``.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional

from secant.errors import InputError
from secant.maps.affinity import operations
from secant.maps.graph import capture


class Calls(nn.Module):
    """A function of x and two parameters as a module; its child keeps it from being one call."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.child = nn.Identity()
        generator = torch.Generator().manual_seed(1)
        self.w = nn.Parameter(torch.randn(4, 4, generator=generator))
        self.k = nn.Parameter(torch.randn(2, 2, 3, 3, generator=generator))

    def forward(self, x):
        return self.function(x, self.w, self.k)


def graded(module, x):
    return operations(capture(module.eval(), "m", (x,), {}, has_length=False))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


ROWS = normal(5, 4)
IMAGES = normal(5, 2, 6, 6)

AFFINE = {
    "times a parameter": (lambda x, w, k: x * w[0], ROWS),
    "over a parameter": (lambda x, w, k: x / w[0], ROWS),
    "matmul with a parameter": (lambda x, w, k: w @ x.mT, ROWS),
    "linear": (lambda x, w, k: functional.linear(x, w, w[1]), ROWS),
    "data as the weight": (lambda x, w, k: functional.linear(w, x), ROWS),
    "addmm": (lambda x, w, k: torch.addmm(x, x, w), ROWS),
    "einsum": (lambda x, w, k: torch.einsum("ni,ij->nj", x, w), ROWS),
    "a curved function of a parameter": (lambda x, w, k: x * w.exp()[0].softmax(0), ROWS),
    "sum, mean, cumsum": (lambda x, w, k: x.sum(1, True) + x.mean(1, True) + x.cumsum(1), ROWS),
    "shapes": (lambda x, w, k: torch.cat([x[:, :2].reshape(-1, 2), x.flip(1)[:, 1:]], 1), ROWS),
    "split": (lambda x, w, k: torch.stack([*x.split(2, 1)], 1).flatten(1), ROWS),
    "gather by a constant": (lambda x, w, k: x[:, torch.tensor([2, 0])], ROWS),
    "where by a constant": (lambda x, w, k: torch.where(w[0] > 0, x, 1 - x), ROWS),
    "masked by a constant": (lambda x, w, k: x.masked_fill(w[0] > 0, 3.0), ROWS),
    "in place": (lambda x, w, k: x.clone().add_(1).mul_(w[0]), ROWS),
    "constant entries": (lambda x, w, k: torch.zeros_like(x).exp() + x, ROWS),
    "convolution": (lambda x, w, k: functional.conv2d(x, k, padding=1), IMAGES),
    "transposed convolution": (lambda x, w, k: functional.conv_transpose2d(x, k), IMAGES),
    "average pool": (lambda x, w, k: functional.avg_pool2d(x, 2), IMAGES),
    "adaptive average": (lambda x, w, k: functional.adaptive_avg_pool2d(x, 2), IMAGES),
    "padding": (lambda x, w, k: functional.pad(x, (1, 1, 1, 1), mode="reflect"), IMAGES),
    "upsampling": (lambda x, w, k: functional.interpolate(x, scale_factor=2), IMAGES),
    "bilinear upsampling": (
        lambda x, w, k: functional.interpolate(x, scale_factor=2, mode="bilinear"),
        IMAGES,
    ),
    "pixel shuffle": (lambda x, w, k: functional.pixel_unshuffle(x, 2), IMAGES),
    "unfold": (lambda x, w, k: functional.unfold(x, 2), IMAGES),
}


class Together(nn.Module):
    """Functions of rows and images side by side, so that one export serves them all."""

    def __init__(self, cases):
        super().__init__()
        self.cases = cases
        self.calls = nn.ModuleList(Calls(function) for function, *_ in cases.values())

    def forward(self, x):
        rows, images = x[:, :4], x[:, 4:].reshape(-1, 2, 6, 6)
        given = [images if case[1] is IMAGES else rows for case in self.cases.values()]
        return tuple(call(part) for call, part in zip(self.calls, given, strict=True))


def test_affine_is_left_alone_and_is_affine():
    """Nothing is found, and each function keeps a combination that sums to one."""
    module = Together(AFFINE)
    x, other = normal(5, 76), normal(5, 76, seed=7)
    found = graded(module, x)
    names = list(AFFINE)
    assert [names[int(o.path.split(".")[1])] for o in found.operations] == []
    assert found.affine >= len(AFFINE)
    with torch.no_grad():
        mixed = module(1.7 * x - 0.7 * other)
        for name, m, a, b in zip(AFFINE, mixed, module(x), module(other), strict=True):
            straight = 1.7 * a - 0.7 * b
            torch.testing.assert_close(m, straight, rtol=1e-4, atol=1e-4, msg=name)


CURVED = {
    "times itself": (lambda x, w, k: x * x, ["mul"]),
    "times another": (lambda x, w, k: x * (x @ w), ["mul"]),
    "over data": (lambda x, w, k: w[0] / (x + 9), ["div"]),
    "matmul of two": (lambda x, w, k: (x[:, None] @ x[:, :, None]).flatten(1), ["matmul"]),
    "division that rounds": (lambda x, w, k: torch.div(x, 2, rounding_mode="floor"), ["div"]),
    "relu twice": (lambda x, w, k: (x.relu() @ w).relu(), ["relu #1", "relu #2"]),
    "in place": (lambda x, w, k: x.clone().relu_(), ["relu"]),
    "softmax": (lambda x, w, k: x.softmax(-1), ["softmax"]),
    "where by data": (lambda x, w, k: torch.where(x > 0, x, 2 * x), ["where"]),
    "times a comparison": (lambda x, w, k: x * (x > 0), ["mul"]),
    "masked by data": (lambda x, w, k: x.masked_fill(x > 0, 0.0), ["masked_fill"]),
    "rounded to integers": (lambda x, w, k: x.int().float() + x, ["_to_copy"]),
    "gather by data": (
        lambda x, w, k: x.gather(1, x.argmax(1, keepdim=True)),
        ["gather"],
    ),
    "sorted": (lambda x, w, k: x.sort(1).values, ["sort"]),
    "unknown": (lambda x, w, k: torch.special.i0(x), ["special_i0"]),
    "norm": (lambda x, w, k: functional.normalize(x), ["linalg_vector_norm", "clamp_min", "div"]),
    "layer norm": (lambda x, w, k: functional.layer_norm(x, (4,)), ["layer_norm"]),
}


def test_what_is_not_affine_is_found():
    found: dict[str, list[str]] = {case: [] for case in CURVED}
    names = list(CURVED)
    for operation in graded(Together(CURVED), normal(5, 76)).operations:
        found[names[int(operation.path.split(".")[1])]].append(operation.name)
    assert found == {case: names for case, (_, names) in CURVED.items()}


def test_batch_norm_in_eval_mode_is_affine():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Dropout())
    assert graded(net, IMAGES).operations == []


def test_ids_are_no_data_but_their_embeddings_are():
    """A parameter's gelu is constant; that of an embedding of ids is not."""

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.word, self.place = nn.Embedding(9, 4), nn.Embedding(9, 4)

        def forward(self, ids):
            place = functional.gelu(self.place(torch.arange(ids.shape[1])))
            return functional.gelu(self.word(ids)) * place

    captured = capture(
        Tokens().eval(), "m", (), {"ids": torch.randint(0, 9, (3, 5))}, has_length=True
    )
    found = operations(captured)
    assert [o.name for o in found.operations] == ["gelu"]
    assert captured.layout(found.operations[0].node) == ["batch", "length", "static"]


class RootNorm(nn.Module):
    """A norm written by hand."""

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class Bend(nn.Module):
    """An activation written by hand."""

    def forward(self, x):
        return 0.5 * x * (1 + torch.tanh(x))


def test_a_hand_written_norm_is_one_operation():
    net = nn.Sequential(nn.Linear(4, 4), RootNorm(), Bend())
    first, second = graded(net, ROWS).operations
    assert (first.path, first.name, first.is_entrywise) == ("1", "RootNorm", False)
    assert (second.path, second.name, second.is_entrywise) == ("2", "Bend", True)


def test_a_module_called_twice_has_two_sites():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.GELU()

        def forward(self, x):
            return self.act(self.act(x) + 1)

    found = graded(Twice(), ROWS).operations
    assert len({(o.path, o.name) for o in found}) == 2


def test_the_graph_runs_as_the_model_and_again_from_the_middle():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    captured = capture(net, "m", (ROWS,), {}, has_length=False)
    more = normal(11, 4)
    with torch.no_grad():
        values = captured.run((more,), {})
        captured.check(values, net(more))
        (relu,) = operations(captured).operations
        changed = dict(values) | {relu.node: torch.zeros(11, 4)}
        captured.evaluate(changed, captured.after({relu.node}))
        torch.testing.assert_close(changed[captured.output], net[2].bias.expand(11, 3))
        torch.testing.assert_close(values[captured.output], net(more))


def test_a_fixed_batch_is_refused():
    net = Calls(lambda x, w, k: (x + normal(5, 4)).relu()).eval()
    with pytest.raises(InputError, match="must take a batch of any size"):
        capture(net, "m", (ROWS,), {}, has_length=False)


def test_a_graph_that_differs_from_the_model_is_refused():
    net = nn.Linear(4, 3).eval()
    captured = capture(net, "m", (ROWS,), {}, has_length=False)
    with torch.no_grad():
        values = captured.run((ROWS,), {})
        for wrong in (net(ROWS) + 0.01, net(ROWS)[:2], net(ROWS) * float("nan")):
            with pytest.raises(InputError, match="must give the model's own output"):
                captured.check(values, wrong)
