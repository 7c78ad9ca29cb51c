"""Calls told apart, and the leading tensor read and replaced.

Holds: tests of ``secant.maps.calls``.
May import: pytest, torch, ``secant``.
"""

from typing import NamedTuple

import pytest
import torch
from torch import nn

from secant.errors import InputError
from secant.maps.calls import first_tensor, intercept, split_call, with_first
from secant.maps.features import watch


class Pair(NamedTuple):
    none: None
    hidden: torch.Tensor


class Shared(nn.Module):
    """One layer called three times, as ALBERT does, and another once."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x):
        for _ in range(3):
            x = self.layer(x)
        return self.last(x)


def seen(net, sites, times=1):
    found = []
    with watch(net, sites, lambda site, x, y: found.append((site, x, y))):
        for _ in range(times):
            net(torch.ones(1, 2))
    return found


def test_each_call_of_a_shared_module_is_a_site():
    net = Shared()
    found = seen(net, ["layer", "last"], times=2)
    assert [site for site, _, _ in found] == ["layer", "layer@2", "layer@3", "last"] * 2
    x = torch.ones(1, 2)
    for site, got, out in found[:4]:
        assert got.equal(x)
        x = net.get_submodule(site.split("@")[0])(x)
        assert out.equal(x)


@pytest.mark.parametrize(
    ("sites", "expected"),
    [
        (["layer@2"], ["layer@2"]),
        (["layer@3", "layer@1"], ["layer", "layer@3"]),
        (["layer", "layer@2"], ["layer", "layer@2", "layer@3"]),
    ],
)
def test_a_numbered_site_is_that_call_alone(sites, expected):
    assert [site for site, _, _ in seen(Shared(), sites)] == expected


def test_counting_starts_anew_after_a_forward_that_failed():
    net, found = Shared(), []
    with watch(net, ["layer"], lambda site, *_: found.append(site)):
        with pytest.raises(RuntimeError):
            net(torch.ones(1, 3))
        net(torch.ones(1, 2))
    assert found == ["layer", "layer@2", "layer@3"]


@pytest.mark.parametrize("site", ["layr", "layer@0", "last.weight"])
def test_an_unknown_site_names_the_nearest(site):
    with pytest.raises(InputError, match=r"no module of this Shared.*Nearest:.*Calls count from 1"):
        seen(Shared(), [site])


def test_what_the_interceptor_returns_replaces_the_output():
    net = Shared()
    with intercept(net, ["layer@2"], lambda *_: torch.zeros(1, 2)):
        got = net(torch.ones(1, 2))
    assert got.equal(net.last(net.layer(torch.zeros(1, 2))))


@pytest.mark.parametrize(
    ("site", "parts"),
    [("a.b", ("a.b", None)), ("a@12", ("a", 12)), ("a@b", ("a@b", None)), ("", ("", None))],
)
def test_split_call(site, parts):
    assert split_call(site) == parts


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x,
        lambda x: (x, "cache"),
        lambda x: [None, (x, x)],
        lambda x: {"none": None, "hidden": x, "other": 3},
        lambda x: Pair(None, x),
    ],
    ids=["tensor", "tuple", "nested list", "dict", "named tuple"],
)
def test_replacing_is_what_reading_finds(make):
    old, new = torch.zeros(2), torch.ones(2)
    value = make(old)
    other = with_first(value, new)
    assert type(other) is type(value)
    assert first_tensor(other, "site", "output") is new
    assert first_tensor(value, "site", "output") is old
    if isinstance(value, dict):
        assert list(other) == list(value)
