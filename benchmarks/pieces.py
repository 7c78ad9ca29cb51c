"""Exact pieces along a segment of a 3 x 256 ReLU net, against sampling it.

Run: python benchmarks/pieces.py [THREADS]

One process. Ours is the median of 30 runs, the sampling of 3; both in turn, in float64, after one
run each to warm up. The net: 16 inputs, He initialisation, biases of size 0.1, 10 outputs; the
segment: between two normal inputs of size 3. The sampling counts a new piece wherever the
activation pattern of neighbouring samples differs, 4,096 samples a batch, and keeps nothing else.

The limit. A layer must be computed at the kinks of the layers before it: with k1, k2, k3 kinks in
all after each layer that is 256 x 256 x 2 x (k1 + k2) floating-point operations for the two wide
layers, about 60 million for 120 and 250 kinks, and 18 million for the check at 64 inputs: 2 ms at
the 40 Gflop/s that one core's float64 matrix product reaches here. The sampling needs 28,000
million. The last lines print this bound for the kinks found and the speed measured.
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from secant.maps.line import polyline
from secant.segments import pieces

WIDTH, DEPTH, INPUTS = 256, 3, 16
BATCH = 4096
T = TypeVar("T")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before in (INPUTS, *[WIDTH] * (DEPTH - 1)):
        layer = nn.Linear(before, WIDTH)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.normal_(layer.bias, std=0.1)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 10)).double()


def sampled(model: nn.Sequential, start: Tensor, end: Tensor, samples: int) -> int:
    """Pieces seen by so many equally spaced samples."""
    changes, before = 0, None
    with torch.inference_mode():
        for t in torch.linspace(0, 1, samples, dtype=start.dtype).split(BATCH):
            x, on = torch.lerp(start, end, t[:, None]), []
            for layer in model[:-1]:
                x = layer(x)
                if isinstance(layer, nn.ReLU):
                    on.append(x > 0)
            pattern = torch.cat(on, 1)
            if before is not None:
                changes += int((pattern[0] != before).any())
            changes += int((pattern[1:] != pattern[:-1]).any(1).sum())
            before = pattern[-1]
    return changes + 1


def timed(run: Callable[[], T], repeats: int) -> tuple[T, float]:
    """The result and the median time in seconds."""
    seconds = []
    result = run()
    for _ in range(repeats):
        started = time.perf_counter()
        result = run()
        seconds.append(time.perf_counter() - started)
    return result, statistics.median(seconds)


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    model = net()
    start, end = 3 * torch.randn(2, INPUTS, dtype=torch.float64)
    found, ours = timed(lambda: pieces(model, start, end), 30)
    _, few_seconds = few = timed(lambda: sampled(model, start, end, 1_001), 3)
    _, many_seconds = many = timed(lambda: sampled(model, start, end, 100_001), 3)
    found_again, ours_again = timed(lambda: pieces(model, start, end), 30)
    assert found_again.count == found.count
    ours = statistics.median([ours, ours_again])
    narrow = model.float()
    single, single_seconds = timed(lambda: sampled(narrow, start.float(), end.float(), 100_001), 3)
    model.double()
    print(f"threads {torch.get_num_threads()}, torch {torch.__version__}")
    print(f"exact              {found.count:5d} pieces  {ours * 1e3:8.2f} ms")
    print(f"1,001 samples      {few[0]:5d} pieces  {few_seconds * 1e3:8.2f} ms")
    print(f"100,001 samples    {many[0]:5d} pieces  {many_seconds * 1e3:8.2f} ms")
    print(f"100,001 in float32 {single:5d} pieces  {single_seconds * 1e3:8.2f} ms")
    print(f"100,001 samples / exact            {many_seconds / ours:6.0f} x")
    print(f"100,001 samples in float32 / exact {single_seconds / ours:6.0f} x")
    by_depth = [
        len(polyline(model[: 2 * depth], start, end, limit=10_000).t) for depth in (1, 2, 3)
    ]
    a = torch.randn(512, WIDTH, dtype=torch.float64)
    b = torch.randn(WIDTH, WIDTH, dtype=torch.float64)
    _, product_seconds = timed(lambda: a @ b, 30)
    speed = 2 * a.numel() * WIDTH / product_seconds
    wide = 2 * WIDTH * WIDTH
    layers = wide * (by_depth[0] + by_depth[1]) + 20 * WIDTH * by_depth[2]
    check = 64 * (2 * wide + 2 * WIDTH * (INPUTS + 10))
    print(f"points after each layer {by_depth}; product {speed / 1e9:.0f} Gflop/s")
    bound = (layers + check) / speed
    print(f"bound {bound * 1e3:.2f} ms: layers {layers / 1e6:.0f}, check {check / 1e6:.0f} Mflop")
    print(f"exact / bound {ours / bound:.1f}")


if __name__ == "__main__":
    main()
