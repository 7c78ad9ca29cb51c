"""The kernel against neural-tangents and the torch.func tutorial, in turn.

Run: python benchmarks/kernel.py PEER_PYTHON [ROUNDS [CASE ...]]

PEER_PYTHON is the interpreter of an environment of its own for neural-tangents:
`pip install neural-tangents==0.6.5 jax==0.4.23 jaxlib==0.4.23 'numpy<2' 'scipy<1.13'`.
Each contestant is a process that holds the same float32 weights and rows and answers one request
at a time, so that they take turns; the first round, which compiles, is not counted, except of one
that took a minute for it: that is its time. Kernels are compared before times are. Peak memory is
that of the whole process.

The limit. For each case the products that the job needs are counted: a forward, a backward for
each output, and for each layer what `secant.kernel` says it costs, half of it where the kernel is
symmetric. Their rate is set beside that of a large matrix product in the same run.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from kernel_nets import CASES, case

HERE = Path(__file__).parent
OWN = {"secant", "torch"}
TOO_LONG = 60.0
"""Seconds of a first round after which a contestant is not asked again."""


def operations(name: str) -> float:
    """Floating-point operations of the job: 2 a product."""
    model, rows, outputs = case(name)
    n, found, positions = len(rows), 0.0, 1
    with torch.no_grad():
        hooks, shapes = [], {}
        for part in model.modules():
            if isinstance(part, torch.nn.Linear | torch.nn.Conv2d):
                hooks.append(
                    part.register_forward_hook(lambda m, _, y: shapes.update({m: y.shape}))
                )
        c = model(rows[:1]).shape[1]
    for part, shape in shapes.items():
        width, inner = part.weight.shape[0], part.weight[0].numel()
        positions = shape.numel() // width
        weights = width * inner
        found += 2 * n * positions * weights * (1 + c)  # forward, and a backward for each output
        pairs = n * n / 2 * (c * c if outputs == "full" else c)
        if positions == 1:
            found += 2 * (n * n / 2 * inner + pairs * width)
        else:
            found += 2 * (n * c * positions * weights + pairs * weights)
    return found


class Contestant:
    """A process that answers requests."""

    def __init__(self, name: str, python: str, file: Path) -> None:
        self.name, self.times, self.peak = name, [], 0.0
        script = HERE / ("kernel_ours.py" if name == "secant" else "kernel_peers.py")
        self.process = subprocess.Popen(
            [python, str(script), name, str(file)], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def ask(self) -> tuple[float, float] | None:
        """One evaluation: two numbers of its kernel; None if it fell over."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return None
        answer = self.process.stdout.readline().split()
        if not answer:
            return None
        self.times.append(float(answer[0]))
        self.peak = float(answer[3])
        return float(answer[1]), float(answer[2])

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def product_rate() -> float:
    """Floating-point operations a second of a large float32 matrix product."""
    a, times = torch.randn(2048, 2048), []
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return 2 * 2048**3 / statistics.median(times)


def main() -> None:
    peer_python, rounds = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 5
    for name in sys.argv[3:] or CASES:
        model, rows, outputs = case(name)
        weights = {key: one.detach().numpy() for key, one in model.named_parameters()}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "case.npz"
            np.savez(file, rows=rows.numpy(), name=name, outputs=outputs, **weights)
            found: dict[str, dict[str, float]] = {}
            first = None
            running = [
                Contestant(peer, sys.executable if peer in OWN else peer_python, file)
                for peer in ("secant", "structured", "contraction", "torch")
            ]
            try:
                for _ in range(rounds + 1):
                    for one in list(running):
                        answer = one.ask()
                        if answer is None:
                            running.remove(one)
                            one.end()
                            print(f"{name}: {one.name} ran out of memory or failed", flush=True)
                            continue
                        first = first or answer
                        np.testing.assert_allclose(answer, first, rtol=1e-4)
                        times = one.times[1:] or one.times
                        seconds = statistics.median(times)
                        found[one.name] = {"seconds": seconds, "peak_mb": one.peak}
                        if seconds > TOO_LONG:
                            running.remove(one)
                            one.end()
            finally:
                for one in running:
                    one.end()
        ours = found["secant"]["seconds"]
        ratios = {peer: round(one["seconds"] / ours, 2) for peer, one in found.items()}
        rate = operations(name) / ours / product_rate()
        print(json.dumps({"case": name, "found": found, "peer / ours": ratios,
                          "of the product rate": round(rate, 2)}), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
