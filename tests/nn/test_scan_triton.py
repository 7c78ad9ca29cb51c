"""The scan on CUDA devices: the kernel in Triton's interpreter, assembled, and on trial.

Holds: tests of ``secant.nn.scan_triton``, ``scan_triton_kernel`` and ``scan_trial``.
May import: numpy, pytest, torch, ``secant.nn``, ``scan_reference``.

The kernel's numbers are those of ``test_scan.py``, whose routes hold "triton". Here is what only
it has: segments, and what it takes to be the default on a device.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode

from scan_reference import drawn, naive, route_or_skip
from secant.errors import InputError
from secant.nn import scan, scan_routes, scan_trial, scan_triton
from secant.nn.scan_routes import Asked, chosen_route

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


@pytest.fixture
def fresh():
    """No verdict of another test."""
    scan_trial.fault.cache_clear()
    yield
    scan_trial.fault.cache_clear()


@pytest.fixture
def small(monkeypatch, fresh):
    """A trial that the interpreter runs in a second."""
    route_or_skip("triton")
    monkeypatch.setattr(scan_trial, "LENGTH", 35)


@pytest.fixture
def as_on_a_device(monkeypatch):
    """Rows of a tile joined in pairs, fours, ...: the interpreter takes one after the other."""
    route_or_skip("triton")
    from triton.runtime.interpreter import ScanOps

    def in_pairs(self, inputs):
        rows = [one.handle.data.copy() for one in inputs]
        step = 1
        while step < len(rows[0]):
            left = [self.to_tensor(np.roll(x, step, 0), inputs[0].dtype) for x in rows]
            right = [self.to_tensor(x.copy(), inputs[0].dtype) for x in rows]
            for x, found in zip(rows, self.combine_fn.fn(*left, *right), strict=True):
                x[step:] = found.handle.data[step:]
            step *= 2
        return [self.to_tensor(x, inputs[0].dtype) for x in rows]

    monkeypatch.setattr(ScanOps, "generic_scan", in_pairs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("shape", [(3,), (2, 100, 3), (1, 100, 1)])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("has_first", [False, True])
def test_segments_change_nothing(monkeypatch, dtype, shape, reverse, has_first):
    """Time cut for a device with more processors than rows: states and gradients stay."""
    route_or_skip("triton")
    monkeypatch.setattr(scan_triton, "_processors", lambda device: 12)
    monkeypatch.setattr(scan_triton, "LEAST_TILES", 1)
    monkeypatch.setattr(scan_triton, "TILE_BYTES", 16 * 4 * dtype.itemsize)
    tile = scan_triton.tile_of(torch.Size((2, 100, 3)), dtype, CPU)
    assert (tile.times, tile.lanes, tile.steps) == (16, 4, 32)
    b = drawn((2, 100, 3), dtype, 1)
    inputs = [drawn(shape, dtype), b, *([drawn((2, 3), dtype, 2)] if has_first else [])]
    inputs = [one.requires_grad_() for one in inputs]
    found = scan(*inputs, route="triton", reverse=reverse)
    expected = naive(*inputs, reverse=reverse)
    weights = drawn(b.shape, dtype, 3)
    pairs = [(found, expected)]
    grads = (torch.autograd.grad(one, inputs, weights) for one in (found, expected))
    for ours, theirs in [*pairs, *zip(*grads, strict=True)]:
        scale = max(1.0, float(theirs.detach().abs().max()))
        assert float((ours - theirs).detach().abs().max()) <= 1e-12 * scale


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        # 8 x 16 programs keep 132 processors busy; 2 do not, but 100 steps are not worth cutting.
        ((8, 4096, 512), torch.float32, (64, 32, 4096)),
        ((8, 4096, 512), torch.complex64, (32, 32, 4096)),
        ((8, 4096, 512), torch.complex128, (16, 32, 4096)),
        ((2, 100, 32), torch.float32, (64, 32, 128)),
        # 2 x 132 programs: segments of 7,576 steps, in whole tiles.
        ((2, 1_000_000, 32), torch.float32, (64, 32, 7616)),
        # At most one segment for every 4 tiles: 244, of 5 tiles when they are whole.
        ((1, 1_000_000, 1), torch.float32, (1024, 1, 5120)),
        ((1, 1, 1), torch.float32, (16, 1, 16)),
    ],
)
def test_tiles_and_segments(monkeypatch, shape, dtype, expected):
    monkeypatch.setattr(scan_triton, "_processors", lambda device: 132)
    tile = scan_triton.tile_of(torch.Size(shape), dtype, CPU)
    assert tile == expected
    assert tile.steps % tile.times == 0


WIDE = torch.ones(1, 16, 1)


@pytest.mark.parametrize(
    ("steps", "b"),
    [
        # A product of two leaves the range, the state, 0, does not.
        ([1, 1e30, 1e30, 1e-30], torch.zeros(1, 16, 1)),
        ([0.5, 1e20, 1e20, 1e-20, 1e-20, 0.5], (torch.arange(16) >= 8).float().view(1, 16, 1)),
        # The sum of two terms does, all states do not.
        ([1], torch.tensor([-3e38, 3e38, 3e38, -3e38, *[0.0] * 12]).view(1, 16, 1)),
    ],
)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid")
def test_pieces_that_leave_the_range_are_seen(as_on_a_device, steps, b, reverse):
    """Each row is made of other pieces, so that what left the range may be back at the end."""
    a = WIDE.clone()
    a[0, : len(steps), 0] = torch.tensor(steps)
    if reverse:
        a, b = a.flip(1), b.flip(1)
    for route in ("triton", "associative"):
        found = scan(a, b, route=route, reverse=reverse)
        assert torch.equal(found, scan(a, b, route="loop", reverse=reverse))


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid")
def test_pieces_of_gradients_that_leave_the_range_are_seen(as_on_a_device):
    a, upstream = WIDE.clone(), torch.zeros(1, 16, 1)
    a[0, -5:-1, 0] = torch.tensor([1e-30, 1e30, 1e30, 1])
    upstream[0, 0] = 1
    b = torch.zeros(1, 16, 1, requires_grad=True)
    found, expected = (
        torch.autograd.grad(scan(a, b, route=route), b, upstream)[0] for route in ("triton", "loop")
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_the_order_of_pieces_changes_nothing_else(as_on_a_device, dtype):
    a, b, first = drawn((2, 40, 3), dtype), drawn((2, 40, 3), dtype, 1), drawn((2, 3), dtype, 2)
    inputs = [one.requires_grad_() for one in (a, b, first)]
    found, expected = (scan(*inputs, route="triton"), naive(*inputs))
    grads = (
        torch.autograd.grad(one, inputs, drawn(b.shape, dtype, 3)) for one in (found, expected)
    )
    for ours, theirs in [(found, expected), *zip(*grads, strict=True)]:
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("a_dtype", "b_dtype"),
    [
        (torch.float64, torch.float64), (torch.complex128, torch.complex128),
        (torch.float64, torch.complex128), (torch.complex64, torch.float32),
        (torch.float32, torch.bfloat16), (torch.float16, torch.float16),
    ],
)  # fmt: skip
@pytest.mark.parametrize("lanes", [1, 3])
def test_a_sound_kernel_passes_its_trial(small, as_on_a_device, a_dtype, b_dtype, lanes):
    assert scan_trial.fault(CPU, a_dtype, b_dtype, lanes) is None


@pytest.mark.parametrize("mode", ["vmap", "grad", "meta", "fake", "inference"])
def test_a_trial_inside_a_mode_is_as_outside(small, as_on_a_device, mode):
    """The verdict is kept: it must not be about what the first call happened to be inside of."""

    def verdict(x):
        assert scan_trial.fault(CPU, torch.float64, torch.float64, 2) is None
        return x.sum()

    x = torch.ones(2, 3)
    if mode == "vmap":
        torch.vmap(verdict)(x)
    elif mode == "grad":
        torch.func.grad(verdict)(x)
    else:
        modes = {
            "meta": lambda: torch.device("meta"),
            "fake": FakeTensorMode,
            "inference": torch.inference_mode,
        }
        with modes[mode]():
            verdict(torch.ones(2))


class Wrong:
    """Passes with one gradient off by a thousandth."""

    def forward(self, *given, **how):
        return scan_triton.TritonPasses().forward(*given, **how)

    def backward(self, *given, **how):
        grad_a, grad_b, first = scan_triton.TritonPasses().backward(*given, **how)
        return grad_a * 1.001, grad_b, first


class Lost(Wrong):
    """Passes whose states are no numbers."""

    def forward(self, *given, **how):
        return super().forward(*given, **how) * torch.nan


class Broken(Wrong):
    """Passes that do not compile."""

    def forward(self, *given, **how):
        raise RuntimeError("no such instruction")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Wrong, r"differs from the loop there by 0\.001 of the largest number"),
        (Lost, r"differs from the loop there by nan of the largest number"),
        (Broken, r"does not run there: RuntimeError: no such instruction"),
    ],
)
def test_a_faulty_kernel_is_found_and_said(monkeypatch, small, kind, said):
    monkeypatch.setattr(scan_trial, "TritonPasses", kind)
    with pytest.warns(RuntimeWarning, match=f"float64 on cpu {said}.*'chunked' is taken"):
        found = scan_trial.fault(CPU, torch.float64, torch.float64, 3)
    assert found is not None


def test_the_default_on_a_device_is_the_kernel_that_passed(monkeypatch):
    """Diagonal scans by Triton if it compiles and its trial went well, all others in chunks."""
    monkeypatch.setattr(scan_triton, "absence", lambda: None)
    monkeypatch.setattr(scan_triton, "is_interpreted", lambda: False)
    routes = sys.modules["secant.nn.scan_routes"]
    tried = []
    diagonal = Asked(CUDA, "diagonal", torch.float32, torch.bfloat16, 12)
    for fault, expected in ((None, "triton"), ("wrong.", "chunked")):
        monkeypatch.setattr(routes, "fault", lambda *of, fault=fault: tried.append(of) or fault)
        assert chosen_route(None, diagonal) == expected
        assert chosen_route(None, diagonal._replace(kind="matrices")) == "chunked"
    assert tried == [(CUDA, torch.float32, torch.bfloat16, 16)] * 2
    monkeypatch.setattr(routes, "fault", lambda *of: None)
    monkeypatch.setattr(scan_triton, "is_interpreted", lambda: True)
    assert chosen_route(None, diagonal) == "chunked"
    monkeypatch.setattr(scan_triton, "is_interpreted", lambda: False)
    monkeypatch.setattr(scan_triton, "absence", lambda: "none here.")
    assert chosen_route(None, diagonal) == "chunked"


def test_what_it_cannot_take_is_refused(monkeypatch):
    monkeypatch.setattr(scan_triton, "absence", lambda: None)
    with pytest.raises(InputError, match="'triton' runs on CUDA devices; got tensors on meta"):
        scan(torch.ones(4, device="meta"), torch.ones(2, 6, 4, device="meta"), route="triton")
    with pytest.raises(InputError, match="'triton' has diagonal transitions; got matrices"):
        chosen_route("triton", Asked(CUDA, "matrices", torch.float32, torch.float32, 4))


def test_a_missing_triton_or_device_says_so(monkeypatch):
    monkeypatch.setattr(scan_triton, "is_interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(scan_triton, "find_spec", lambda name: "there")
    assert scan_triton.absence() == "Triton's kernel runs on CUDA devices; there is none here."
    with pytest.raises(InputError, match=r"cannot run here\. Triton's kernel runs on CUDA devices"):
        scan(torch.ones(4), torch.ones(2, 6, 4), route="triton")
    monkeypatch.setattr(scan_triton, "find_spec", lambda name: None)
    assert "comes with torch's builds for CUDA" in scan_triton.absence()

    def broken():
        raise ImportError("libcuda.so.1")

    monkeypatch.setattr(scan_triton, "find_spec", lambda name: "there")
    monkeypatch.setattr(scan_triton, "is_interpreted", broken)
    assert scan_triton.absence().startswith("Triton cannot be imported: libcuda.so.1.")


ASSEMBLE = """
import triton.language as tl
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from secant.nn.scan_triton_kernel import walk

SIZES = ("length", "lanes", "steps", "segments", "a_batch", "a_time", "a_lane", "b_batch", "b_time",
         "b_lane")
FLAGS = ("IS_REVERSE", "IS_BACK", "IS_STILL", "IS_TOTAL", "HAS_FIRST", "HAS_ENDS", "HAS_EDGE")
for major in (80, 90):
    for number, wide, state, parts, times, terms, flags in (
        ("fp32", "fp32", tl.float32, 1, 64, 0, ("IS_STILL", "HAS_FIRST", "HAS_ENDS")),
        ("bf16", "fp32", tl.float32, 1, 64, 0, ("HAS_ENDS",)),
        ("fp32", "fp32", tl.float32, 2, 32, 0, ("IS_TOTAL", "HAS_ENDS")),
        ("fp64", "fp64", tl.float64, 1, 32, 1, ("IS_BACK", "IS_REVERSE", "HAS_ENDS", "HAS_EDGE")),
        ("fp32", "fp32", tl.float32, 2, 32, 2, ("IS_BACK", "IS_STILL", "HAS_ENDS", "HAS_EDGE")),
    ):
        kinds = dict.fromkeys(walk.arg_names, "constexpr")
        kinds |= dict.fromkeys(("a", "b", "out", "before"), "*" + number)
        kinds |= dict.fromkeys(("first", "ends", "products", "edge"), "*" + wide)
        kinds |= dict.fromkeys(SIZES, "i32") | {"terms": "*fp64" if terms == 2 else "*" + number}
        fixed = {flag: flag in flags for flag in FLAGS} | {
            "TERMS": terms, "STATE": state, "PARTS": parts, "TIMES": times, "LANES": 32, "STAGES": 3
        }
        made = compile(
            ASTSource(walk, kinds, fixed), target=GPUTarget("cuda", major, 32),
            options={"num_warps": 4, "enable_fp_fusion": True},
        )
        assert len(made.asm["cubin"]) > 0
        # The least shared memory of devices that copy into it while they work, from 8.0 on.
        assert made.metadata.shared <= 96 << 10, made.metadata.shared
print("assembled")
"""


def test_the_kernel_assembles_for_devices(tmp_path):
    """Through Triton's compiler and NVIDIA's assembler, for compute capabilities 8.0 and 9.0."""
    pytest.importorskip("triton")
    ran = subprocess.run(
        [sys.executable, "-c", ASSEMBLE],
        capture_output=True,
        text=True,
        env=os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)},
    )
    assert ran.stdout.split() == ["assembled"], ran.stderr


# The compiled kernel's own numbers, which no interpreter has: asked for wherever a device is.
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("lanes", [1, 3, 40])
@pytest.mark.parametrize(
    ("a_dtype", "b_dtype"),
    [(torch.float32, torch.float32), (torch.complex128, torch.float64), (torch.float16,) * 2],
)
def test_a_device_agrees_with_the_loop(fresh, a_dtype, b_dtype, lanes):
    assert scan_trial.fault(CUDA, a_dtype, b_dtype, lanes) is None
    assert "diagonal elsewhere" in scan_routes()["triton"].default_for
