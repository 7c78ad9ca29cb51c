"""The model along a line: every kink where arithmetic by hand puts it, all else refused.

Holds: tests of ``secant.maps.line``, ``line_ops`` and ``line_grid``.
May import: pytest, torch, ``secant``.
"""

from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional

from secant.errors import InputError
from secant.gauges.pieces import affine_pieces
from secant.maps import line_grid
from secant.maps.line import polyline

NEAR = 1e-13  # a few float64 roundings of numbers near 1


def traced(model, start, end, limit=10_000):
    return polyline(model, torch.as_tensor(start), torch.as_tensor(end), limit=limit)


def kinks(model, low=-4.0, high=4.0):
    """Breakpoints found on a line of one number, as inputs."""
    t = traced(model, [low], [high]).t[1:-1]
    return (low + (high - low) * t).tolist()


@pytest.mark.parametrize(
    ("function", "at"),
    [
        (functional.relu, [0]),
        (torch.relu_, [0]),
        (functional.leaky_relu, [0]),
        (lambda x: functional.leaky_relu(x - 1, 0.3, inplace=True), [1]),
        (nn.PReLU(), [0]),
        (functional.relu6, [0, 6]),
        (functional.hardtanh, [-1, 1]),
        (nn.Hardtanh(-3, 2, inplace=True), [-3, 2]),
        (functional.hardsigmoid, [-3, 3]),
        (functional.softshrink, [-0.5, 0.5]),
        (lambda x: functional.threshold(x, 2, 2), [2]),
        (torch.abs, [0]),
        (lambda x: x.clamp(min=-1), [-1]),
        (lambda x: x.clamp(max=3), [3]),
        (lambda x: x.clamp(-2, 1.5), [-2, 1.5]),
        (lambda x: x.clamp_min(1), [1]),
        (lambda x: x.clamp_max_(1), [1]),
        (lambda x: x.clamp(torch.tensor([-2.0]), torch.tensor([3.0])), [-2, 3]),
        (lambda x: torch.maximum(x, 1 - x), [0.5]),
        (lambda x: torch.minimum(2 * x, torch.tensor([3.0], dtype=torch.float64)), [1.5]),
        (lambda x: torch.max(x, -x), [0]),
        (lambda x: torch.cat([x, 2 - x, x / 2], 1).amax(1), [1]),
        (lambda x: torch.cat([x, 2 - x, x / 2], 1).amin(1, keepdim=True), [0, 4 / 3]),
        (lambda x: torch.cat([x, 2 - x, x / 2], 1).max(1).values, [1]),
        (lambda x: torch.stack([torch.cat([y, -y, 0 * y + 1]).max() for y in x]), [-1, 1]),
        (lambda x: torch.stack([x, -x, 0 * x - 1], 2).min(2, keepdim=True)[0], [-1, 1]),
        (lambda x: (x + 1).abs() - (x.relu() - 2).relu(), [-1, 0, 2]),
    ],
)
def test_kinks_are_where_they_must_be(function, at):
    found = kinks(function, -4.0, 8.0)
    assert found == pytest.approx(at, abs=10 * NEAR)


def tent(x):
    """[0, 1] onto itself, twice: 2x up to 1/2, then 2 - 2x."""
    return 2 * functional.relu(x) - 4 * functional.relu(x - 0.5)


@pytest.mark.parametrize("depth", [1, 2, 5, 8])
def test_a_sawtooth_has_two_to_the_depth_teeth(depth):
    def sawtooth(x):
        for _ in range(depth):
            x = tent(x)
        return x

    line = traced(sawtooth, [0.0], [1.0])
    assert line.t.tolist() == [j / 2**depth for j in range(2**depth + 1)]
    assert line.values[:, 0].tolist() == [j % 2 for j in range(2**depth + 1)]


def envelope_kinks(lines):
    """Kinks inside (0, 1) of the maximum of lines a + b t, by all pairs, in exact arithmetic."""
    exact = [(Fraction(a), Fraction(b)) for a, b in lines]
    found = set()
    for i, (a, b) in enumerate(exact):
        for c, d in exact[:i]:
            if b != d:
                t = (c - a) / (b - d)
                if 0 < t < 1 and a + b * t == max(e + f * t for e, f in exact):
                    found.add(t)
    return sorted(found)


@pytest.mark.parametrize("seed", range(6))
def test_max_pool_is_the_upper_envelope_of_its_window(seed):
    """12 lines tangent to a parabola, so that many lead in turn; no point between the ends."""
    at = torch.rand(12, generator=torch.Generator().manual_seed(seed))
    at = (at * 1024).round() / 1024
    start, end = -at.square(), 2 * at - at.square()
    lines = [
        (a, b - a) for a, b in zip(start.double().tolist(), end.double().tolist(), strict=True)
    ]
    expected = envelope_kinks(lines)
    assert len(expected) > 3
    t = traced(nn.MaxPool1d(12), start[None], end[None]).t[1:-1]
    assert t.tolist() == pytest.approx([float(kink) for kink in expected], abs=NEAR)


@pytest.mark.parametrize(
    ("pool", "shape"),
    [
        (nn.MaxPool1d(3, 2, padding=1), (2, 9)),
        (nn.MaxPool1d(2, ceil_mode=True), (1, 7)),
        (nn.MaxPool2d(2), (2, 4, 6)),
        (nn.MaxPool2d((3, 2), (1, 2), padding=(1, 0), dilation=(2, 1)), (1, 6, 5)),
        (nn.MaxPool2d(3, 2, padding=1, ceil_mode=True), (2, 6, 6)),
        (nn.MaxPool3d((2, 3, 2), 2, padding=(0, 1, 1)), (1, 4, 5, 4)),
    ],
)
def test_max_pool_follows_stride_padding_dilation_and_ceiling(pool, shape):
    """Kinks by exact arithmetic, over windows that a pooling of the positions names."""
    draw = torch.Generator().manual_seed(0)
    start, end = torch.randint(-64, 64, (2, *shape), generator=draw).double()
    cells = torch.eye(start.numel()).view(-1, *shape)
    windows = pool(cells).flatten(1).T > 0  # a cell lies in a window if it alone raises it
    pairs = list(zip(start.flatten().tolist(), (end - start).flatten().tolist(), strict=True))
    expected = set()
    for window in windows:
        expected |= set(envelope_kinks([pairs[i] for i in window.nonzero()[:, 0].tolist()]))
    line = traced(pool, start, end)
    assert line.t[1:-1].tolist() == pytest.approx([float(t) for t in sorted(expected)], abs=NEAR)
    assert line.units == len(windows)


class Residual(nn.Module):
    def __init__(self, is_in_place):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(2)
        self.prelu = nn.PReLU(2)
        self.relu = nn.ReLU(inplace=is_in_place)

    def forward(self, x):
        x = x + self.norm(self.conv(x))
        hidden = self.relu(self.prelu(self.norm(x)) + x)
        return {"loss": None, "logits": functional.avg_pool2d(hidden, 2).flatten(1) @ self.head()}

    def head(self):
        return torch.ones(8, 3, dtype=self.conv.weight.dtype)


@pytest.mark.parametrize("is_in_place", [False, True])
def test_values_are_the_model_s_and_affine_in_between(is_in_place):
    torch.manual_seed(0)
    model = Residual(is_in_place).double()
    model(torch.randn(4, 2, 4, 4, dtype=torch.float64))
    model.eval()
    start, end = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    line = traced(model, start, end)
    assert len(line.t) > 10
    dense = torch.cat([line.t, torch.linspace(0, 1, 500, dtype=torch.float64)]).unique()
    left = (torch.searchsorted(line.t, dense, right=True) - 1).clamp_max(len(line.t) - 2)
    share = (dense - line.t[left]) / (line.t[left + 1] - line.t[left])
    expected = torch.lerp(line.values[left], line.values[left + 1], share[:, None])
    with torch.no_grad():
        found = model(torch.stack([torch.lerp(start, end, t) for t in dense]))["logits"]
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    assert (line.rounding < 1e-13).all()


def pieces_exactly(layers, start, end):
    """Breakpoints of a ReLU net by exact arithmetic: intervals cut at every zero, one by one.

    `layers` are (weight, bias) of integers; a hidden layer of the width before it adds its input.
    The net on an interval is a list of exact (value at 0, slope), and a point is a kink of the
    net if these differ between its two sides.
    """
    spans = [(Fraction(0), Fraction(1), [(a, b - a) for a, b in zip(start, end, strict=True)])]
    for depth, (weight, bias) in enumerate(layers):
        is_last, grown = depth == len(layers) - 1, []
        for low, high, h in spans:
            z = [
                (
                    sum((w * a for w, (a, _) in zip(row, h, strict=True)), shift),
                    sum(w * b for w, (_, b) in zip(row, h, strict=True)),
                )
                for row, shift in zip(weight, bias, strict=True)
            ]
            if is_last:
                grown.append((low, high, z))
                continue
            cuts = {-a / b for a, b in z if b != 0 and low < -a / b < high}
            for left, right in pairwise([low, *sorted(cuts), high]):
                middle = (left + right) / 2
                out = [(a, b) if a + b * middle > 0 else (Fraction(0), Fraction(0)) for a, b in z]
                if len(out) == len(h):
                    out = [(a + c, b + d) for (a, b), (c, d) in zip(out, h, strict=True)]
                grown.append((left, right, out))
        spans = grown
    return [left[1] for left, right in pairwise(spans) if left[2] != right[2]]


@pytest.mark.parametrize("seed", range(40))
def test_small_integer_nets_have_the_pieces_of_exact_arithmetic(seed):
    """Weights in -2..2: units that coincide, die, or lie on 0 for a while are common."""
    draw = torch.Generator().manual_seed(seed)
    widths = [2, 4, 4, 3, 3, 1]
    layers = [
        (
            torch.randint(-2, 3, (b, a), generator=draw),
            torch.randint(-2, 3, (b,), generator=draw),
        )
        for a, b in pairwise(widths)
    ]
    start, end = torch.randint(-5, 6, (2, 2), generator=draw)
    if start.equal(end):
        end = end + 1

    def model(x):
        for weight, bias in layers[:-1]:
            out = functional.relu(functional.linear(x, weight.double(), bias.double()))
            x = out + x if out.shape == x.shape else out
        weight, bias = layers[-1]
        return functional.linear(x, weight.double(), bias.double())

    exact = [([[*map(Fraction, row)] for row in w.tolist()], b.tolist()) for w, b in layers]
    expected = pieces_exactly(exact, *([*map(Fraction, v.tolist())] for v in (start, end)))
    line = traced(model, start.double(), end.double())
    found = affine_pieces(line.t, line.values, line.rounding)
    assert found.kinks.tolist() == pytest.approx([float(t) for t in expected], abs=NEAR)


def relu_stack(depth, width=16):
    torch.manual_seed(depth)
    layers = [part for _ in range(depth) for part in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, 1))


@pytest.mark.parametrize("depth", [1, 6])
def test_two_forward_passes_whatever_the_depth(depth):
    model, calls = relu_stack(depth), []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    traced(model, torch.full((16,), -3.0), torch.full((16,), 3.0))
    assert len(calls) == 2


def test_a_segment_cut_for_memory_gives_the_same_line(monkeypatch):
    model = relu_stack(3).double()
    draw = torch.Generator().manual_seed(0)
    ends = 5 * torch.randn(2, 16, generator=draw, dtype=torch.float64)
    whole = traced(model, *ends)
    monkeypatch.setattr(line_grid, "MOST_ELEMENTS", 128)
    cut = traced(model, *ends)
    assert len(whole.t) > 20  # 16 numbers each: more than twice what is allowed
    assert cut.units == whole.units == 48
    # A kink at a cut may be found once more a rounding beside it; the gauge knows it as one.
    found, expected = (affine_pieces(each.t, each.values, each.rounding) for each in (cut, whole))
    assert found.count == expected.count == len(whole.t) - 1
    assert found.t.tolist() == pytest.approx(expected.t.tolist(), abs=1e-12)
    assert torch.allclose(found.values, expected.values, rtol=0, atol=1e-12)


def test_more_kinks_than_the_limit_are_refused_also_over_cuts(monkeypatch):
    model, ends = relu_stack(3), [torch.full((16,), s) for s in (-3.0, 3.0)]
    count = len(traced(model, *ends).t)
    traced(model, *ends, limit=count)
    with pytest.raises(InputError, match=r"at most 5 kinks.*Shorten the segment"):
        traced(model, *ends, limit=5)
    monkeypatch.setattr(line_grid, "MOST_ELEMENTS", 64)
    with pytest.raises(InputError, match="kinks may be followed"):
        traced(model, *ends, limit=count - 2)


class Stateful(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.calls += 1
        return self.norm(x).relu()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_model_stays_as_it_was(dtype):
    model = Stateful().to(dtype).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    traced(model, torch.zeros(3), torch.ones(3))
    model.train()
    with pytest.raises(InputError, match="batch_norm"):
        traced(model, torch.zeros(3, 2), torch.ones(3, 2))
    assert model.training
    for name, value in model.state_dict().items():
        assert value.equal(before[name])
        assert value.dtype == before[name].dtype


def test_float32_weights_are_taken_at_their_exact_values():
    """float32(0.1) x - float32(0.3): the kink is at the quotient of the rounded numbers."""
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU())
    nn.init.constant_(model[0].weight, 0.1)
    nn.init.constant_(model[0].bias, -0.3)
    exact = float(Fraction(model[0].bias.item()) / -Fraction(model[0].weight.item()))
    assert kinks(model) == pytest.approx([exact], abs=NEAR)
    assert abs(exact - 3) > 1e-8


def test_inference_mode_inside_and_outside():
    def model(x):
        with torch.inference_mode():
            return functional.linear(x, torch.ones(1, 1, dtype=torch.float64)).relu()

    assert kinks(model) == [0]
    with torch.inference_mode():
        assert kinks(model) == [0]


def test_affine_operations_of_many_kinds_add_no_kink():
    weight = torch.randn(4, 4, dtype=torch.float64)

    def model(x):
        x = torch.cat([x, x.flip(1)], 1)[:, None]
        y = functional.interpolate(functional.pad(x, (1, 1)), scale_factor=2, mode="linear")
        z = torch.stack(list(y.chunk(2, 2)), 1).transpose(1, 2).reshape(1, -1, 4)
        z = torch.where(weight > 0, z[:, :1], 2.0) @ weight + z.mean(1, keepdim=True).expand(
            1, 4, 4
        )
        z = torch.einsum("bij,jk->bik", z, weight).masked_fill(weight > 1, 0) / 3 - x.new_ones(4, 4)
        return torch.baddbmm(z, weight[None], z).cumsum(1)[..., [0, 2]].sum((1, 2))

    line = traced(model, torch.randn(2), torch.randn(2))
    assert line.t.tolist() == [0, 1]
    assert line.units == 0


def test_a_constant_output_is_a_level_line():
    line = traced(lambda x: torch.ones(len(x), 2, dtype=torch.float64), [0.0], [1.0])
    assert line.values.tolist() == [[1, 1], [1, 1]]


def draws(x):
    return x + torch.rand(1, dtype=torch.float64)


def writes(x):
    out = torch.zeros(1, 1, dtype=torch.float64)
    out[:, 0] = x[:, 0]
    return out


def writes_a_view(x):
    y = x * 1
    y[:, :1].relu_()
    return y


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (functional.gelu, r"aten\.gelu\.default is not\. Measure a part"),
        (torch.tanh, r"aten\.tanh\.default is not"),
        (lambda x: functional.softmax(x, 1), r"aten\._softmax"),
        (functional.silu, r"aten\.silu"),
        (functional.hardswish, r"aten\.hardswish"),
        (nn.LayerNorm(1), r"aten\.native_layer_norm"),
        (lambda x: functional.group_norm(torch.cat([x, -x], 1), 1), r"aten\.native_group_norm"),
        (nn.BatchNorm1d(1), r"refuses: Expected more than 1 value per channel when training"),
        (
            nn.Sequential(nn.Unflatten(1, (1, 1)), nn.ConstantPad1d(1, 0), nn.BatchNorm1d(1)),
            r"native_batch_norm\w*\.default is not in training mode.*Call `model\.eval\(\)`",
        ),
        (
            nn.Sequential(
                nn.Unflatten(1, (1, 1)),
                nn.ConstantPad1d(1, 0),
                nn.BatchNorm1d(1, track_running_stats=False),
            ).eval(),
            r"needs running statistics",
        ),
        (nn.Dropout(0.5), r"training mode \(dropout"),
        (nn.Dropout1d(0.5), r"training mode \(dropout"),
        (lambda x: functional.dropout(x, 0.5), r"training mode \(dropout"),
        (lambda x: x * x, r"aten\.mul\.Tensor is not where self and other depend"),
        (lambda x: x @ x.T, r"aten\.mm\.default is not where"),
        (lambda x: 1 / x, r"aten\.reciprocal"),
        (lambda x: x / (x + 9), r"aten\.div\.Tensor is not where self and other"),
        (lambda x: torch.div(x, 2, rounding_mode="floor"), r"aten\.div\.Tensor_mode is not"),
        (lambda x: x * (x > 0), r"aten\.gt\.Scalar is not"),
        (lambda x: x if x.sum() > 0 else -x, r"aten\.gt"),
        (lambda x: x * x.sum().item(), r"_local_scalar_dense.*a branch on a value may jump"),
        (lambda x: x.float(), r"casts to torch\.float32\. Leave the cast out"),
        (lambda x: x.round(), r"aten\.round"),
        (lambda x: functional.threshold(x, 0.1, 20), r"threshold 0\.1 and value 20 jumps"),
        (lambda x: torch.cat([x, -x], 1).argmax(1), r"aten\.argmax"),
        (lambda x: torch.cat([x, -x], 1).max(1).indices, r"continuous.*index of a largest entry"),
        (writes, r"constant tensor; aten\.copy_\.default does\. Build"),
        (writes_a_view, r"shares memory.*aten\.relu_\.default does"),
        (draws, r"off by .* Look for randomness"),
        (lambda x: x.relu() - x.mean(0), r"a mixing of the batch"),
        (lambda x: x.relu().sum().view(1, 1), r"one output an input; 2 inputs gave \(1, 1\)"),
        (lambda x: (x + 5).relu() * 1e200 * 1e200, r"finite along the segment; it gives nan"),
        (nn.Linear(3, 3), r"float64 batch of inputs of shape \(1,\); it refuses: mat1 and mat2"),
        (lambda x: x.numpy(), r"it refuses"),
        (lambda x: functional.linear(x, torch.ones(1, 1)), r"it refuses: .*dtype"),
        (lambda x: "words", r"\(model\).*output"),
    ],
)
def test_what_is_not_piecewise_affine_is_refused_by_name(model, message):
    with pytest.raises(InputError, match=message):
        traced(model, [-1.0], [2.0])


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        ([0.0], [0.0, 1.0], r"one shape; got .*\(1,\).*\(2,\).*without the batch"),
        ([0], [1], r"real float.*int64"),
        ([1.0], [1.0], r"finite and differ.*Draw two distinct"),
        ([float("nan")], [1.0], r"finite and differ"),
    ],
)
def test_ends_that_make_no_segment(start, end, message):
    with pytest.raises(InputError, match=message):
        traced(torch.relu, start, end)
