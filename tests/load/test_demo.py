"""The demo nets: shapes, skill, the affine control, errors and size.

Holds: tests of ``secant.load.demo``.
May import: pytest, torch, ``secant``.
"""

from importlib.resources import files

import pytest
import torch
from torch import nn

from secant.errors import LoadError
from secant.load.demo import DEMOS, digits, digits_split, load_demo

LEAST_ACCURACY = {"linear": 0.9, "mlp": 0.95, "cnn": 0.95, "transformer": 0.95, "gru": 0.94}
NAMES = sorted(DEMOS)


def test_registry_names():
    assert list(DEMOS) == ["linear", "mlp", "cnn", "transformer", "gru"]


def test_digits_shape_type_and_range():
    images, labels = digits()
    assert images.shape == (1797, 1, 8, 8)
    assert images.dtype == torch.float32
    assert (images.min().item(), images.max().item()) == (0.0, 1.0)
    assert labels.shape == (1797,)
    assert labels.dtype == torch.int64
    assert labels.unique().tolist() == list(range(10))


def test_split_is_a_seeded_partition():
    train, held_out = digits_split()
    assert len(held_out) == 539
    assert torch.cat([train, held_out]).sort().values.equal(torch.arange(1797))
    assert digits_split(0)[1].equal(held_out)
    assert not digits_split(1)[1].equal(held_out)


@pytest.mark.parametrize("name", NAMES)
def test_loads_in_eval_mode_and_leaves_the_seed_alone(name):
    before = torch.get_rng_state()
    net = load_demo(name)
    assert isinstance(net, DEMOS[name])
    assert not any(module.training for module in net.modules())
    assert torch.get_rng_state().equal(before)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_held_out_accuracy(name):
    images, labels = digits()
    _, held_out = digits_split()
    logits = load_demo(name)(images[held_out])
    assert logits.shape == (539, 10)
    hits = logits.argmax(dim=1) == labels[held_out]
    assert hits.double().mean().item() > LEAST_ACCURACY[name]


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in NAMES if name != "gru"])
@pytest.mark.parametrize("batch", [1, 3])
def test_blocks_keep_shape(name, batch):
    net = load_demo(name)
    shapes = []

    def note(_module, inputs, output):
        shapes.append((inputs[0].shape, output.shape))

    assert isinstance(net.blocks, nn.ModuleList)
    for block in net.blocks:
        block.register_forward_hook(note)
    assert net(torch.rand(batch, 1, 8, 8)).shape == (batch, 10)
    assert len(shapes) == len(net.blocks) >= 4
    assert all(before == after for before, after in shapes)


def affine_error(name):
    images, _ = digits()
    _, held_out = digits_split()
    left, right = images[held_out[:100]], images[held_out[100:200]]
    net = load_demo(name)
    with torch.no_grad():
        zero = net(torch.zeros(1, 1, 8, 8))
        return (net(left) + net(right) - zero - net(left + right)).abs().max().item()


def test_linear_net_is_affine():
    assert affine_error("linear") < 1e-4


@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer", "gru"])
def test_other_nets_are_not_affine(name):
    assert affine_error(name) > 0.1


def test_transformer_blocks_name_their_parts():
    for block in load_demo("transformer").blocks:
        assert isinstance(block.attention, nn.Module)
        assert isinstance(block.mlp, nn.Module)


def test_unknown_name_lists_names_and_the_nearest():
    with pytest.raises(LoadError, match="Did you mean 'transformer'") as caught:
        load_demo("transfomer")
    assert all(name in str(caught.value) for name in DEMOS)


def test_unknown_name_without_a_near_one():
    with pytest.raises(LoadError, match="Choose one of these"):
        load_demo("zzz")


def test_weights_are_small():
    folder = files("secant.load") / "weights"
    sizes = [len((folder / f"{name}.safetensors").read_bytes()) for name in DEMOS]
    assert sum(sizes) < 2_000_000
