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


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.Linear(2, 2)
        self.mlp = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.Dropout())


class Other(Block):
    pass


class Stage(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.down = nn.Linear(2, 2)


class Holder(nn.Module):
    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def test_blocks_of_two_kinds_in_one_list_are_all_found():
    net = Holder(layers=nn.ModuleList([Block(), Other(), Block()]), head=nn.Linear(2, 2))
    assert default_sites(net) == ["layers.0", "layers.1", "layers.2"]


def test_blocks_within_stages_are_preferred_to_the_stages():
    net = Holder(stem=nn.Linear(2, 2), stages=nn.ModuleList([Stage(2), Stage(3)]))
    expected = [*(f"stages.0.blocks.{i}" for i in range(2))]
    expected += [f"stages.1.blocks.{i}" for i in range(3)]
    assert default_sites(net) == expected


def test_sequential_stages_side_by_side_are_one_group():
    stages = {f"layer{i}": nn.Sequential(Block(), Block()) for i in (1, 2, 3)}
    net = Holder(stem=nn.Linear(2, 2), **stages, head=nn.Linear(2, 2))
    assert default_sites(net) == [f"layer{i}.{j}" for i in (1, 2, 3) for j in (0, 1)]


def test_the_layers_inside_a_block_do_not_outnumber_the_blocks():
    """Two blocks with four layers each in their MLPs."""
    net = Holder(layers=nn.ModuleList([Block(), Block()]), head=nn.Linear(2, 2))
    assert default_sites(net) == ["layers.0", "layers.1"]


def test_blocks_inside_a_bare_sequential():
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(*(Block() for _ in range(4))), nn.ReLU())
    assert default_sites(net) == [f"1.{place}" for place in range(4)]


def test_alternating_layers_give_the_children():
    layers = [nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU()]
    assert default_sites(nn.Sequential(*layers)) == ["0", "1", "2", "3"]
    assert default_sites(Holder(net=nn.Sequential(*layers))) == [f"net.{i}" for i in range(4)]


def test_a_mixed_head_is_not_taken_for_the_blocks():
    net = Holder(one=nn.Conv2d(1, 1, 1), two=nn.ReLU(), head=nn.Sequential(nn.ReLU(), nn.Tanh()))
    assert default_sites(net) == ["one", "two", "head"]


def test_a_single_shared_block_is_found():
    group = Holder(layers=nn.ModuleList([Block()]))
    net = Holder(embed=nn.Linear(2, 2), groups=nn.ModuleList([group]), pool=nn.Linear(2, 2))
    assert default_sites(net) == ["groups.0.layers.0"]


def test_attention_and_mlp_can_be_chosen_by_glob():
    net = Holder(layers=nn.ModuleList([Block(), Block()]))
    assert find_sites(net, ["*.attention"]) == ["layers.0.attention", "layers.1.attention"]
    assert find_sites(net, ["layers.*.mlp"]) == ["layers.0.mlp", "layers.1.mlp"]


def test_a_later_call_can_be_chosen_and_call_zero_cannot():
    assert find_sites(Net(), ["head@2", "head", "head@2"]) == ["head@2", "head"]
    with pytest.raises(InputError, match="'head@0' matches no module"):
        find_sites(Net(), ["head@0"])
