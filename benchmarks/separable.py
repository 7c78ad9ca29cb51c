"""How long a verdict on separability takes, its certificate checked, beside a bare programme.

Run: python benchmarks/separable.py [ROUNDS]

One process, one thread. Sets of 1,000 normal points in 200 dimensions, a new one each round, in
turn: random labels (not separable, but for a chance of 1e-90 by Cover's law) and the labels of a
planted plane. `ours` is `secant.uses.separation.decide`, which finds and proves; `check` proves the
certificate again. The others are `scipy.optimize.linprog` on the same programme (largest t with
y (w·x + b) >= t and all of |w|, |b| at most 1), which prove nothing. Then one against the rest for
the ten digits, and the sets of the study of Cover's law.
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import linprog
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits

from secant.uses.separation import check, decide

COUNT, WIDTH = 1000, 200
METHODS = ("highs-ipm", "highs-ds", "highs")


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    found = run()
    return found, time.perf_counter() - started


def programme(rows: Any, labels: Any, method: str) -> Any:
    signed = np.where(labels, 1.0, -1.0)[:, None] * np.append(rows, np.ones((len(rows), 1)), 1)
    width = signed.shape[1]
    return linprog(
        np.append(np.zeros(width), -1.0),
        A_ub=np.append(-signed, np.ones((len(rows), 1)), 1),
        b_ub=np.zeros(len(rows)),
        bounds=[(-1, 1)] * width + [(None, 1)],
        method=method,
    )


def sets(seed: int) -> dict[str, tuple[Any, Any]]:
    draw = np.random.default_rng(seed)
    rows = draw.standard_normal((COUNT, WIDTH))
    plane = draw.standard_normal(WIDTH)
    return {
        "random labels": (rows, draw.random(COUNT) < 0.5),
        "planted plane": (rows, rows @ plane > 0.1),
    }


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    seconds: dict[tuple[str, str], list[float]] = {}
    said: dict[tuple[str, str], set[str]] = {}
    for turn in range(rounds + 1):
        for kind, (rows, labels) in sets(turn).items():
            found, took = timed(lambda rows=rows, labels=labels: decide(rows, labels))
            times = {"ours": took}
            proven, times["check"] = timed(
                lambda rows=rows, labels=labels, found=found: check(rows, labels, found.certificate)
            )
            assert proven == found.verdict
            said.setdefault((kind, "ours"), set()).add(
                f"{found.verdict}, {found.certificate.kind}, eps {found.eps:g}"
            )
            for method in METHODS:
                other, times[method] = timed(
                    lambda rows=rows, labels=labels, m=method: programme(rows, labels, m)
                )
                told = "no verdict" if other.status else f"t {-other.fun:.1e}"
                said.setdefault((kind, method), set()).add(told)
            if turn:
                for name, one in times.items():
                    seconds.setdefault((kind, name), []).append(one)
    print(f"{COUNT} points, {WIDTH} dimensions, {rounds} rounds, medians")
    for (kind, name), each in seconds.items():
        told = "; ".join(sorted(said.get((kind, name), {""}))[:3])
        middle, worst = statistics.median(each) * 1e3, max(each) * 1e3
        print(f"{kind:15s}{name:10s}{middle:8.1f} ms, worst {worst:7.1f}  {told}")
    data = load_digits()
    each = [timed(lambda n=n: decide(data.data, data.target == n)) for n in range(10)]
    verdicts = [found.verdict for found, _ in each]
    print(f"digits, one against the rest: {sum(took for _, took in each):.2f} s; not separable: "
          f"{[n for n, one in enumerate(verdicts) if one != 'separable']}")  # fmt: skip
    draw = np.random.default_rng(0)
    small = [(draw.standard_normal((40, 19)), draw.random(40) < 0.5) for _ in range(200)]
    each = [timed(lambda one=one: decide(*one))[1] for one in small]
    print(f"40 points, 19 dimensions: {statistics.median(each) * 1e3:.2f} ms")


if __name__ == "__main__":
    with threadpool_limits(1):
        main()
