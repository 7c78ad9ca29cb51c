"""What `secant.Tracker` costs at its default cadence: at most a tenth of the training.

Run: python benchmarks/track.py [SECONDS [ROUNDS]]

Three small real trainings on the digits (the demo nets mlp, cnn and transformer, AdamW, batches of
64), each for as many steps as take about SECONDS untracked, then with and without a tracker in
turn, ROUNDS times, from the same seed; medians. Overhead is time with over time without, less 1;
the tracker's own clock says what it thinks it took. Fails where the claim does. A run must last
ten times as long as the tracker's start, which cannot be put off.
"""

import statistics
import sys
import time

import torch
from torch.nn import functional

import secant
from secant.load.demo import DEMOS, digits

BATCH = 64
MOST = 0.10


def train(name: str, steps: int, is_tracked: bool) -> tuple[float, "secant.Tracker | None"]:
    """Seconds of so many steps, the tracker's start included."""
    images, labels = digits()
    torch.manual_seed(0)
    net = DEMOS[name]().train()
    optimiser = torch.optim.AdamW(net.parameters(), 2e-3)
    draw = torch.Generator().manual_seed(0)
    started = time.perf_counter()
    tracker = secant.Tracker(net, images[-256:], labels[-256:]) if is_tracked else None
    for _ in range(steps):
        rows = torch.randint(len(images) - 256, (BATCH,), generator=draw)
        loss = functional.cross_entropy(net(images[rows]), labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if tracker is not None:
            tracker.step()
    return time.perf_counter() - started, tracker


def main() -> None:
    torch.set_num_threads(1)
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    print(f"torch {torch.__version__}, 1 thread, {rounds} rounds")
    missed = []
    for name in ("mlp", "cnn", "transformer"):
        train(name, 20, True)
        steps = max(1, round(100 * seconds / train(name, 100, False)[0]))
        plain, tracked, shares, counts = [], [], [], []
        for _ in range(rounds):
            plain.append(train(name, steps, False)[0])
            taken, tracker = train(name, steps, True)
            assert tracker is not None
            tracked.append(taken)
            shares.append(tracker.cadence.own_seconds / tracker.cadence.run_seconds)
            counts.append(len(tracker.records))
        overhead = statistics.median(
            one / other - 1 for one, other in zip(tracked, plain, strict=True)
        )
        missed += [name] if overhead > MOST else []
        print(
            f"{name:12s} {steps:6d} steps, {statistics.median(plain):6.2f} s without, "
            f"overhead {100 * overhead:5.1f} %, by its own clock {100 * max(shares):4.1f} % at "
            f"most, {statistics.median(counts):.0f} records"
        )
    if missed:
        sys.exit(f"more than {100 * MOST:.0f} %: {', '.join(missed)}")


if __name__ == "__main__":
    main()
