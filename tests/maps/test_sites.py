"""Sites: default blocks, globs, and the nearest name on a miss.

Holds: tests of ``secant.maps.sites``.
May import: pytest, torch, ``secant``.
"""

import pytest
from torch import nn

from secant.errors import InputError
from secant.maps.sites import default_sites, find_sites


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        self.few = nn.ModuleList([nn.Linear(2, 2) for _ in range(2)])
        self.blocks = nn.ModuleList([nn.Linear(2, 2) for _ in range(11)])
        self.head = nn.Linear(2, 1)


BLOCKS = [f"blocks.{number}" for number in range(11)]


def test_default_is_the_longest_run_of_one_kind():
    assert default_sites(Net()) == BLOCKS
    assert find_sites(Net()) == find_sites(Net(), []) == BLOCKS


def test_default_in_a_bare_sequential_has_no_leading_dot():
    assert default_sites(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))) == ["0", "1"]


def test_default_without_repeats_is_the_children():
    assert default_sites(nn.Sequential(nn.Linear(2, 2), nn.ReLU())) == ["0", "1"]
    net = nn.Module()
    net.one, net.two = nn.Linear(1, 1), nn.ReLU()
    assert default_sites(net) == ["one", "two"]


def test_globs_give_the_models_order_without_repeats():
    found = find_sites(Net(), ["head", "blocks.1*", "blocks.10", "stem"])
    assert found == ["stem", "blocks.1", "blocks.10", "head"]


def test_an_exact_name_is_no_prefix():
    assert find_sites(Net(), ["blocks.1"]) == ["blocks.1"]


@pytest.mark.parametrize(
    ("pattern", "near"), [("blocs.3", "blocks.3"), ("heads", "head"), ("HEAD", "head")]
)
def test_a_glob_without_match_names_the_nearest(pattern, near):
    with pytest.raises(InputError) as caught:
        find_sites(Net(), ["head", pattern])
    assert repr(pattern) in str(caught.value)
    if pattern != "HEAD":  # no letters in common, so any site may be near
        assert near in str(caught.value).split("Nearest:")[1]
