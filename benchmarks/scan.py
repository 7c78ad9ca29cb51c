"""Scans beside copying the same bytes, and beside mambapy, JAX, torch's associative scan, a loop.

Run: python benchmarks/scan.py [ROUNDS] [THREADS] [SIZE ...] [slow] [cuda]; peers as far as they are
installed: `pip install mambapy jax numba`, and a C++ compiler for the compiled associative scan,
whose way back takes minutes to compile: it is measured where `slow` is among the arguments. With
`cuda` everything in torch runs on the CUDA device, whose name is printed.

Contestants take turns in one process, each once untimed and then timed, medians. With one thread
time is the process's own, which other programs on the machine do not lengthen. `copy` reads and
writes as many bytes as the forward scan does: into memory that is there already; into a fresh
result, as every contestant makes one; and into a fresh one of large pages, as ours asks for.
Forward without gradients, then forward and backward of a weighed sum. Contestants that take longer
than a second run once.

The limit: constant a moves 2 bytes for each of b's (b in, states out), time-varying a 3; back 3 and
5 (states and upstream in, gradients out): forward and backward 2.5 and 2.7 times forward.
"""

import ctypes
import importlib.util
import mmap
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from secant.nn import scan, scan_routes

Run = Callable[[Tensor, Tensor], Tensor]
SLOW_SECONDS = 1.0
SIZES = (
    ((8, 4096, 512), torch.float32),
    ((8, 4096, 512), torch.complex64),
    ((2, 2048, 256, 16), torch.float32),
)


def in_large_pages(x: Tensor) -> Tensor:
    """A fresh result like x, asked for 2 MB at a time where the system (Linux) has such pages."""
    fresh = torch.empty_like(x)
    if sys.platform == "linux":
        low, high = fresh.data_ptr(), fresh.data_ptr() + fresh.nbytes
        low = -(-low // mmap.PAGESIZE) * mmap.PAGESIZE
        size = (high - low) // mmap.PAGESIZE * mmap.PAGESIZE
        ctypes.CDLL(None).madvise(ctypes.c_void_p(low), ctypes.c_size_t(size), mmap.MADV_HUGEPAGE)
    return fresh


def python_loop(a: Tensor, b: Tensor) -> Tensor:
    """As anybody would write it."""
    state, states = torch.zeros_like(b[:, 0]), []
    # Taken apart at once: the derivative of b[:, step] would be as large as b.
    now = a.unbind(1) if a.shape == b.shape else [a] * b.shape[1]
    for coefficient, term in zip(now, b.unbind(1), strict=True):
        state = coefficient * state + term
        states.append(state)
    return torch.stack(states, dim=1)


def joined(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return right[0] * left[0], right[0] * left[1] + right[1]


def torch_associative(a: Tensor, b: Tensor) -> Tensor:
    from torch._higher_order_ops.associative_scan import associative_scan

    pair = (a.expand(b.shape).contiguous(), b)
    return associative_scan(joined, pair, dim=1, combine_mode="generic")[1]


def in_jax(a: Tensor, b: Tensor) -> dict[str, Callable[[], object]]:
    """Both passes, on arrays of JAX's own, compiled, without the copies there and back."""
    import jax
    from jax import numpy as jnp

    def run(a, b):
        pair = (jnp.broadcast_to(a, b.shape), b)
        return jax.lax.associative_scan(joined, pair, axis=1)[1]

    ours, theirs = jnp.asarray(a.detach().numpy()), jnp.asarray(b.detach().numpy())
    forward = jax.jit(run)
    back = jax.jit(jax.grad(lambda a, b, w: jnp.real(run(a, b) * w).sum(), argnums=(0, 1)))
    return {
        "forward": lambda: forward(ours, theirs).block_until_ready(),
        "both": lambda: jax.block_until_ready(back(ours, theirs, theirs)),
    }


def contestants(b: Tensor) -> dict[str, Run]:
    """Everybody who can run in torch."""
    found: dict[str, Run] = {}
    for route in scan_routes().values():
        runs_there = route.devices in ("any", b.device.type)
        if route.is_available and runs_there and route.name not in ("loop", "associative"):
            found[f"ours, {route.name}"] = lambda a, b, name=route.name: scan(a, b, route=name)
    found["Python loop"] = python_loop
    if importlib.util.find_spec("mambapy") is not None and not b.is_complex():
        from mambapy.pscan import pscan

        # Its sequences are (batch, length, features, state).
        def mambapy(a: Tensor, b: Tensor) -> Tensor:
            wide = b if b.ndim == 4 else b.unsqueeze(-1)
            full = a.expand(b.shape)
            return pscan(full if b.ndim == 4 else full.unsqueeze(-1), wide).view(b.shape)

        found["mambapy pscan"] = mambapy
    return found


def timed(run: Callable[[], object], is_cuda: bool) -> float:
    alone = torch.get_num_threads() == 1 and not is_cuda
    clock = time.process_time if alone else time.perf_counter
    started = clock()
    run()
    if is_cuda:
        torch.cuda.synchronize()
    return clock() - started


def medians(
    runs: dict[str, Callable[[], object]], rounds: int, *, is_cuda: bool
) -> dict[str, float]:
    """Medians in seconds; who cannot run here is named and left out."""
    times: dict[str, list[float]] = {}
    for name, run in runs.items():
        try:
            run()  # compiled and warmed
            times[name] = [timed(run, is_cuda)]
        except Exception as error:  # a peer that cannot run here is named, and the others go on
            print(f"  {name} does not run here: {str(error).strip().splitlines()[0]}")
    for _ in range(rounds):
        for name, kept in times.items():
            if kept[0] < SLOW_SECONDS:
                runs[name]()  # its own memory, not that of the one before it
                kept.append(timed(runs[name], is_cuda))
    return {name: statistics.median(kept) for name, kept in times.items()}


def show(what: str, found: dict[str, float], base: str) -> None:
    print(f"  {what}")
    for name, seconds in found.items():
        print(f"    {name}: {1e3 * seconds:.1f} ms, {seconds / found[base]:.2f}")


def measure(b: Tensor, a: Tensor, rounds: int, *, is_slow: bool) -> None:
    """One size: forward, then forward and backward."""
    moved = b if a.shape != b.shape else torch.cat([b, b[: len(b) // 2]])
    warm = moved.clone()
    runs: dict[str, Callable[[], object]] = {
        "copy, into memory that is there": lambda: warm.copy_(moved),
        "copy, into a fresh result": moved.clone,
    }
    if not b.is_cuda:
        runs["copy, into fresh large pages"] = lambda: in_large_pages(moved).copy_(moved)
    running = contestants(b)
    with torch.no_grad():
        for name, run in running.items():
            runs[name] = lambda run=run: run(a, b)
        if not b.is_complex():  # inductor has no complex numbers
            compiled = torch.compile(torch_associative)
            runs["torch associative_scan, compiled"] = lambda: compiled(a, b)
        has_jax = importlib.util.find_spec("jax") is not None and not b.is_cuda
        jax = in_jax(a, b) if has_jax else None
        if jax is not None:
            runs["JAX associative_scan"] = jax["forward"]
        found = medians(runs, rounds, is_cuda=b.is_cuda)
        show("forward, and times a fresh copy", found, "copy, into a fresh result")
    weights = torch.randn_like(b)
    needs = [one.clone().requires_grad_() for one in (a, b)]

    def both(run: Run) -> object:
        return torch.autograd.grad(run(*needs), needs, grad_outputs=weights)

    (first, *_) = running
    runs = {f"{first}, forward only": lambda: running[first](*needs)}
    for name, run in running.items():
        runs[name] = lambda run=run: both(run)
    if is_slow and not b.is_complex():
        with_backward = torch.compile(torch_associative)
        runs["torch associative_scan, compiled"] = lambda: both(with_backward)
    if jax is not None:
        runs["JAX associative_scan"] = jax["both"]
    found = medians(runs, rounds, is_cuda=b.is_cuda)
    show("forward and backward, and times forward", found, next(iter(runs)))


def main() -> None:
    words, is_slow = ("slow", "cuda"), "slow" in sys.argv
    given = [int(one) for one in sys.argv[1:] if one not in words]
    device = torch.device("cuda" if "cuda" in sys.argv else "cpu")
    if device.type == "cuda":
        print(torch.cuda.get_device_name())
    rounds = given[0] if given else 9
    torch.set_num_threads(given[1] if len(given) > 1 else torch.get_num_threads())
    torch.manual_seed(0)
    chosen = [SIZES[one] for one in given[2:]] or SIZES
    for shape, dtype in chosen:
        for kind in ("constant", "time-varying"):
            print(f"{shape}, {dtype}, {kind} a, {torch.get_num_threads()} threads")
            b = torch.randn(shape, dtype=dtype, device=device)
            a = torch.rand(shape[2:] if kind == "constant" else shape, device=device).to(dtype)
            measure(b, a, rounds, is_slow=is_slow)


if __name__ == "__main__":
    main()
