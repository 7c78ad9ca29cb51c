"""Exact pieces along a segment of a 3 x 256 ReLU net, against sampling it.

Run: python benchmarks/pieces.py [THREADS]

One process, in float64, after one run each to warm up: three rounds of ten runs of ours, one of
each sampling; medians. The net: 16 inputs, He initialisation, biases of size 0.1, 10 outputs; the
segment: between two normal inputs of size 3. The sampling counts a new piece wherever the
activation pattern of neighbouring samples differs, 4,096 samples a batch, and keeps nothing else.

The limit. A layer must be computed at the kinks of the layers before it: with k1, k2, k3 kinks in
all after each layer that is 256 x 256 x 2 x (k1 + k2) floating-point operations for the two wide
layers, about 60 million for 120 and 250 kinks, and 9 million for the check at 32 inputs: 2 ms at
the 40 Gflop/s that one core's float64 matrix product reaches here. The sampling needs 28,000
million. The last lines print this bound for the kinks found and the speed measured.
"""

import copy
import statistics
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from secant.maps.line import CHECKED, polyline
from secant.segments import pieces

WIDTH, DEPTH, INPUTS = 256, 3, 16
BATCH = 4096
ROUNDS = 3
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


def timed(run: Callable[[], T], repeats: int) -> tuple[T, list[float]]:
    """The last result, and the seconds of each run."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        result = run()
        seconds.append(time.perf_counter() - started)
    return result, seconds


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    model = net()
    start, end = 3 * torch.randn(2, INPUTS, dtype=torch.float64)
    narrow = copy.deepcopy(model).float()
    rivals: dict[str, tuple[Callable[[], int], int]] = {
        "exact": (lambda: pieces(model, start, end).count, 10),
        "1,001 samples": (lambda: sampled(model, start, end, 1_001), 1),
        "100,001 samples": (lambda: sampled(model, start, end, 100_001), 1),
        "100,001 in float32": (
            lambda: sampled(narrow, start.float(), end.float(), 100_001), 1,
        ),
    }  # fmt: skip
    counts = {name: run() for name, (run, _) in rivals.items()}
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(ROUNDS):
        for name, (run, repeats) in rivals.items():
            seconds[name] += timed(run, repeats)[1]
    median = {name: statistics.median(each) for name, each in seconds.items()}
    ours = median["exact"]
    print(f"threads {torch.get_num_threads()}, torch {torch.__version__}")
    for name, count in counts.items():
        share = median[name] / ours
        print(f"{name:19s}{count:5d} pieces {median[name] * 1e3:9.2f} ms {share:6.1f} x exact")
    print_bound(model, start, end, ours)


def print_bound(model: nn.Sequential, start: Tensor, end: Tensor, ours: float) -> None:
    """The time that the matrix products alone would take."""
    by_depth = [
        len(polyline(model[: 2 * depth], start, end, limit=10_000).t) for depth in (1, 2, 3)
    ]
    a = torch.randn(512, WIDTH, dtype=torch.float64)
    b = torch.randn(WIDTH, WIDTH, dtype=torch.float64)
    speed = 2 * a.numel() * WIDTH / statistics.median(timed(lambda: a @ b, 30)[1])
    wide = 2 * WIDTH * WIDTH
    layers = wide * (by_depth[0] + by_depth[1]) + 20 * WIDTH * by_depth[2]
    check = CHECKED * (2 * wide + 2 * WIDTH * (INPUTS + 10))
    print(f"points after each layer {by_depth}; product {speed / 1e9:.0f} Gflop/s")
    bound = (layers + check) / speed
    print(f"bound {bound * 1e3:.2f} ms: layers {layers / 1e6:.0f}, check {check / 1e6:.0f} Mflop")
    print(f"exact / bound {ours / bound:.1f}")


if __name__ == "__main__":
    main()
