"""Collapse over a flatten: against both parts and against the matrix of unit inputs; refusals.

Holds: tests of ``secant.uses.affine_flatten`` through ``secant.uses.collapse``.
May import: pytest, torch, ``secant``, the tests of collapse.
"""

import random

import pytest
import torch
from test_collapse import agree, drawn, settled
from torch import nn

from secant.maps.affinity import op_name
from secant.uses.collapse import collapsed


def ends(model):
    """The operations of a collapsed graph that take products."""
    names = [op_name(node) for node in model.graph.nodes if node.op == "call_function"]
    return [one for one in names if one.startswith(("conv", "linear", "mul", "add"))]


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize(
    "setting",
    [{}, {"padding": 1}, {"stride": 2}, {"stride": 3, "padding": 2}, {"dilation": 2},
     {"groups": 2, "padding": 1}, {"kernel_size": 1}, {"bias": False, "stride": 2, "padding": 1}],
)  # fmt: skip
def test_a_convolution_behind_which_a_linear_map_reads_all_places(n, setting):
    """The joined weight is what the model makes of unit inputs, and no convolution is left."""
    size = (7, 6, 5)[:n]
    given = {"kernel_size": 3, **setting}
    first = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[n - 1](4, 6, **given)
    places = first(torch.zeros(1, 4, *size)).numel()
    model = settled(nn.Sequential(first, nn.Flatten(), nn.Linear(places, 2)))
    x = drawn(0, 3, 4, *size)
    found = collapsed(model, x)
    assert ends(found.module) == ["linear"]
    agree(model, found.module, x)
    agree(model, found.module, drawn(1, 5, 4, *size))
    (one,) = found.joined
    inputs = x[0].numel()
    assert one.work == 3 * 2 * inputs < one.work_before
    assert one.gap <= one.bound < 1e-6
    weight, bias = (dict(found.module.named_parameters())[f"joined_0_{what}"]
                    for what in ("weight", "bias"))  # fmt: skip
    with torch.no_grad():
        at_zero = model(torch.zeros(1, 4, *size, dtype=torch.float64))
        units = torch.eye(inputs, dtype=torch.float64).view(inputs, 4, *size)
        expected = model(units) - at_zero
    torch.testing.assert_close(weight.T, expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(bias, at_zero[0], rtol=1e-11, atol=1e-11)


def test_a_whole_head_of_convolutions_is_one_matrix():
    """BatchNorm before a padded convolution too: over fixed places its shift has its own entries.

    Two convolutions that pad, which no convolution is, and a linear map after the next.
    """
    model = settled(nn.Sequential(
        nn.BatchNorm2d(2), nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 36, 16), nn.Linear(16, 3),
    ))  # fmt: skip
    x = drawn(0, 4, 2, 6, 6)
    found = collapsed(model, x)
    assert ends(found.module) == ["linear"]
    agree(model, found.module, drawn(1, 3, 2, 6, 6))
    assert found.joined[-1].gap <= found.joined[-1].bound


class Head(nn.Module):
    """A convolution and a linear map with something between them, or another reader."""

    def __init__(self, kind, out=2):
        super().__init__()
        self.kind, self.conv = kind, nn.Conv2d(3, 6, 3, padding=1)
        width = {"places": 6 * 5, "pairs": 2 * 6 * 25, "last": 25}.get(kind, 6 * 25)
        self.line = nn.Linear(width, out)

    def forward(self, x):
        h = self.conv(x)
        if self.kind == "relu":
            h = h.relu()
        elif self.kind == "turned":
            h = h.permute(0, 2, 3, 1)
        if self.kind == "places":
            return self.line(h.reshape(h.shape[0] * 5, 30))
        if self.kind == "last":
            return self.line(h.flatten(2))
        y = self.line(h.reshape(h.shape[0], -1))
        return torch.cat([y, h.flatten(1).sigmoid()], 1) if self.kind == "read" else y


@pytest.mark.parametrize("kind", ["relu", "turned", "places", "last", "read"])
def test_what_is_no_plain_flatten_stays(kind):
    model, x = settled(Head(kind)), drawn(0, 4, 3, 5, 5)
    assert not collapsed(model, x).joined
    plain = settled(Head("plain"))
    assert len(collapsed(plain, x).joined) == 1


def test_a_large_matrix_stays_and_is_told():
    """Strides leave few places: 3 x 64 inputs to 40 outputs are more than both parts."""
    conv = nn.Conv2d(3, 4, 4, stride=4)
    model = settled(nn.Sequential(conv, nn.Flatten(), nn.Linear(16, 40), nn.ReLU()))
    found = collapsed(model, drawn(0, 4, 3, 8, 8))
    assert not found.joined
    assert found.left == ["0 and 2: joining them would save no work"]


def test_readers_share_a_flatten():
    """Each of two linear maps takes its own matrix only if both together save."""

    class Two(nn.Module):
        def __init__(self, out):
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3, padding=1)
            self.a, self.b = nn.Linear(6 * 25, out), nn.Linear(6 * 25, out)

        def forward(self, x):
            h = self.conv(x).flatten(1)
            return torch.cat([self.a(h).tanh(), self.b(h)], 1)

    x = drawn(0, 4, 3, 5, 5)
    model = settled(Two(2))
    found = collapsed(model, x)
    assert [one.parts[-1] for one in found.joined] == ["a", "b"]
    agree(model, found.module, x)


class Framed(nn.Module):
    """Random steps on channels, a flatten, random steps on features."""

    def __init__(self, draw):
        super().__init__()
        parts, channels, size = [], 3, 7
        for _ in range(draw.randint(1, 4)):
            kind = draw.choice(["conv", "conv", "depth", "norm", "curved", "idle"])
            if kind == "conv":
                out, kernel = draw.choice([2, 6, 9]), draw.choice([1, 2, 3])
                stride, pad = draw.choice([1, 1, 2]), draw.choice([0, 1])
                bias = draw.random() < 0.7
                parts.append(nn.Conv2d(channels, out, kernel, stride, pad, bias=bias))
                channels, size = out, (size + 2 * pad - kernel) // stride + 1
                if size < 3:
                    break
            elif kind == "depth":
                parts.append(nn.Conv2d(channels, 2 * channels, 3, padding=1, groups=channels))
                channels *= 2
            elif kind == "norm":
                parts.append(nn.BatchNorm2d(channels))
            else:
                parts.append(nn.Tanh() if kind == "curved" else nn.LeakyReLU(1.0))
        width = channels * size * size
        parts.append(nn.Flatten())
        for _ in range(draw.randint(0, 3)):
            out = draw.choice([1, 3, 20])
            parts += [nn.Linear(width, out, bias=draw.random() < 0.7)]
            parts += [draw.choice([nn.Tanh, nn.Identity, nn.Dropout])()]
            width = out
        self.parts = nn.Sequential(*parts)

    def forward(self, x):
        return self.parts(x)


class Frames(nn.Module):
    def __init__(self, draw, count):
        super().__init__()
        self.frames = nn.ModuleList(Framed(draw) for _ in range(count))

    def forward(self, x):
        return torch.cat([one(x) for one in self.frames], 1)


@pytest.mark.parametrize("seed", range(2))
def test_random_frames_keep_their_function(seed):
    """Fifty of them; what is not affine is as often there as before."""
    model = settled(Frames(random.Random(seed), 25), seed)
    x = drawn(seed, 3, 3, 7, 7)
    found = collapsed(model, x)
    agree(model, found.module, x)
    agree(model, found.module, drawn(seed + 100, 5, 3, 7, 7))
    names = [op_name(node) for node in found.module.graph.nodes if node.op == "call_function"]
    assert names.count("tanh") == sum(isinstance(one, nn.Tanh) for one in model.modules())
    flattens = {name for name, one in model.named_modules() if isinstance(one, nn.Flatten)}
    across = [one for one in found.joined if any(
        part in flattens for part in one.parts)]  # fmt: skip
    assert len(across) > 3
    assert all(one.work < one.work_before for one in found.joined)
    assert all(one.gap is None or one.gap <= one.bound for one in found.joined)


def test_a_joined_pointwise_convolution_keeps_the_layout_that_a_view_needs():
    """Two 1 x 1 convolutions, of which one strides, then a convolution that stays, and a view."""
    model = settled(nn.Sequential(
        nn.Conv2d(6, 9, 1, bias=False), nn.Conv2d(9, 9, 1, stride=2, padding=1),
        nn.Conv2d(9, 18, 3, padding=1, groups=9), nn.Flatten(),
    ))  # fmt: skip
    x = drawn(0, 2, 6, 7, 7)
    found = collapsed(model, x)
    assert [one.parts for one in found.joined] == [["0", "1"]]
    agree(model, found.module, x)
