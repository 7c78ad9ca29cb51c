"""Routes of scans: which there are, which is taken, and what is refused.

Holds: tests of ``secant.nn.scan_routes``, and of the scan's checks.
May import: pytest, torch, ``secant.nn``, ``scan_reference``.
"""

import subprocess
import sys
from importlib import import_module

import pytest
import torch

from scan_reference import drawn, naive
from secant.errors import InputError
from secant.nn import scan, scan_c, scan_numba, scan_routes
from secant.nn.scan_routes import kind_of
from secant.nn.scan_shares import in_shares


@pytest.fixture
def absent(monkeypatch):
    """Take routes away, as on a machine without them."""

    def take(*names):
        kept = {"c": scan_c, "numba": scan_numba}
        for name in names:
            monkeypatch.setattr(kept[name], "absence", lambda name=name: f"no {name} here.")

    return take


def test_every_place_has_one_default():
    found = scan_routes()
    assert list(found) == ["c", "numba", "triton", "chunked", "loop", "associative"]
    places = sorted(place for one in found.values() for place in one.default_for)
    kinds = ("diagonal", "matrices", "matrices over 128 that stay")
    expected = [f"{kind} {place}" for kind in kinds for place in ("elsewhere", "on the CPU")]
    assert places == sorted(expected)
    for name, one in found.items():
        assert one.name == name
        assert one.is_available == (one.absent is None)
        assert one.is_available or not one.default_for
        assert one.is_available or one.absent.endswith(".")
    assert found["loop"].is_available


def test_large_matrices_that_stay_go_in_chunks(monkeypatch):
    """The default by kind of transitions, with the C kernel there."""
    monkeypatch.setattr(scan_c, "absence", lambda: None)
    found = scan_routes()
    assert found["c"].default_for == ("diagonal on the CPU", "matrices on the CPU")
    assert "matrices over 128 that stay on the CPU" in found["chunked"].default_for
    for shape, kind in (((1, 9, 200, 200), "matrices"), ((1, 1, 128, 128), "matrices"),
                        ((1, 1, 200, 200), "matrices over 128 that stay")):  # fmt: skip
        assert kind_of(torch.empty(shape), True) == kind
    assert kind_of(torch.empty(1, 1, 200), False) == "diagonal"


def test_what_is_absent_gives_way(absent):
    """Without a compiled kernel numba, without both the chunks: the same states."""
    a, b = drawn((5,)), drawn((2, 30, 5), seed=1)
    absent("c", "numba")
    found = scan_routes()
    assert "diagonal on the CPU" in found["chunked"].default_for
    assert found["c"].absent == "no c here."
    assert torch.allclose(scan(a, b), naive(a, b), rtol=0, atol=1e-14)
    with pytest.raises(InputError, match=r"the route 'c' cannot run here\. no c here\."):
        scan(a, b, route="c")


def test_a_missing_numba_says_so(monkeypatch):
    monkeypatch.setattr(scan_numba, "find_spec", lambda name: None)
    assert "pip install 'secant[fast]'" in scan_numba.absence()


def test_a_missing_associative_scan_says_so(monkeypatch):
    # The function has the module's name, so only this finds the module.
    module = import_module("secant.nn.scan_routes")
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"has no associative_scan\. Update torch"):
        scan(torch.ones(3), torch.ones(1, 2, 3), route="associative")


ONES = torch.ones(2, 6, 4)


@pytest.mark.parametrize(
    ("a", "b", "how", "said"),
    [
        (torch.ones(3), ONES, {}, r"`a` of shape \(3,\) and `b` of shape \(2, 6, 4\)"),
        (torch.ones(2, 5, 4), ONES, {}, r"`a` of shape \(2, 5, 4\) and `b` of shape \(2, 6, 4\)"),
        (torch.ones(2, 2, 6, 4), ONES, {}, r"got `a` of shape \(2, 2, 6, 4\)"),
        (ONES, torch.ones(2, 1, 4), {}, r"`b` of shape \(2, 1, 4\)"),
        (torch.ones(4), ONES, {"is_matrix": True}, r"\(batch, length, ..., n, n\) = \(2, 6, 4,"),
        (torch.ones(4, 1), ONES, {"is_matrix": True}, r"got `a` of shape \(4, 1\)"),
        (torch.ones(4), torch.ones(4), {}, r"`b` must be \(batch, length, ...\); got shape \(4,\)"),
        (torch.ones(4, 4), torch.ones(6, 4), {"is_matrix": True}, r"\(batch, length, ..., n\)"),
        (torch.ones(4), ONES, {"initial": torch.ones(3)}, r"`initial` of shape \(3,\) and `b` of"),
        (torch.ones(4), ONES, {"initial": torch.ones(1, 2, 4)}, r"broadcast to \(2, 4\)"),
        (torch.ones(4).double(), ONES, {}, r"got `a` float64, `b` float32"),
        (torch.ones(4), ONES, {"initial": torch.ones(4).double()}, r"`initial` float64"),
        (torch.ones(4), ONES.int(), {}, r"`b` must hold floating-point .* got torch.int32"),
        (torch.ones(4), ONES, {"initial": torch.ones(4).cfloat()}, r"complex `initial` needs"),
        (torch.ones(4, device="meta"), ONES, {}, r"one device; got `a` on meta, `b` on cpu"),
        (torch.ones(4), ONES, {"route": "fast"}, r"`route` must be one of c, numba, .*got 'fast'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(a, b, how, said):
    with pytest.raises(InputError, match=said):
        scan(a, b, **how)


def test_fused_routes_refuse_what_they_cannot_take(monkeypatch):
    for module in (scan_c, scan_numba):
        monkeypatch.setattr(module, "absence", lambda: None)
    with pytest.raises(InputError, match="'numba' has diagonal transitions; got matrices"):
        scan(torch.eye(4), ONES, is_matrix=True, route="numba")
    for name in ("c", "numba"):
        with pytest.raises(InputError, match=f"'{name}' runs on the CPU; got tensors on meta"):
            scan(torch.ones(4, device="meta"), ONES.to("meta"), route=name)


def test_shares_cover_everything_once_and_pass_errors_on():
    seen = torch.zeros(3, 100, dtype=torch.int64)

    def work(batches, lanes):
        seen[slice(*batches), slice(*lanes)] += 1

    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        in_shares(work, 3, 100, 1 << 30)
        in_shares(work, 3, 100, 1)
        assert bool((seen == 2).all())

        def fails(batches, lanes):
            if lanes[0]:
                raise ValueError("a share failed")

        with pytest.raises(ValueError, match="a share failed"):
            in_shares(fails, 1, 100, 1 << 30)
    finally:
        torch.set_num_threads(threads)


def test_importing_compiles_nothing():
    """Neither numba nor the library is loaded before the first scan."""
    code = (
        "import sys, secant.nn; from secant.nn.scan_c import library;"
        "print('numba' in sys.modules, library.cache_info().currsize)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False", "0"]
