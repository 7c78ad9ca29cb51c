"""Features in passing: which rows are counted, and that nothing stays behind.

Holds: tests of ``secant.maps.features``.
May import: pytest, torch, ``secant``.
"""

import pytest
import torch
from torch import nn

from secant.errors import InputError
from secant.maps.features import rows, watch


class Tupled(nn.Module):
    def forward(self, x, scale=2.0):
        return x * scale, "cache"


class Named(nn.Module):
    def forward(self, *, skipped=None, hidden):
        return {"none": None, "out": hidden + 1}


class Caller(nn.Module):
    def __init__(self):
        super().__init__()
        self.tupled, self.named = Tupled(), Named()

    def forward(self, x):
        return self.named(skipped=None, hidden=self.tupled(x)[0])["out"]


def seen(model, sites, x):
    found = {}
    with watch(model, sites, lambda site, *pair: found.update({site: pair})):
        model(x)
    return found


def hooks(model):
    return sum(len(part._forward_hooks) for part in model.modules())


def test_padded_rows_are_never_counted():
    x = torch.arange(24.0).view(2, 4, 3)
    mask = torch.tensor([[True, True, False, False], [True, True, True, False]])
    x[~mask] = float("nan")
    got, out = (rows(seen_, mask) for seen_ in seen(Caller(), ["tupled"], x)["tupled"])
    want = torch.stack([x[0, 0], x[0, 1], x[1, 0], x[1, 1], x[1, 2]])
    assert got.equal(want)
    assert out.equal(2 * want)


def test_left_padding_keeps_the_right_positions():
    x = torch.arange(6.0).view(1, 3, 2)
    assert rows(x, torch.tensor([[False, True, True]])).equal(x[0, 1:])


def test_a_mask_of_another_length_is_an_input_error():
    with pytest.raises(InputError, match="mask"):
        rows(torch.zeros(2, 5, 3), torch.ones(2, 4, dtype=torch.bool))


def test_tuple_outputs_and_keyword_inputs():
    x = torch.randn(5, 3)
    found = seen(Caller(), ["tupled", "named"], x)
    assert found["tupled"][0].equal(x)
    assert found["tupled"][1].equal(2 * x)
    assert found["named"][0].equal(2 * x)
    assert found["named"][1].equal(2 * x + 1)


def test_pixels_become_rows_of_channels():
    x = torch.randn(2, 3, 4, 5)
    got = rows(x, None)
    assert got.shape == (40, 3)
    assert got[1 * 20 + 2 * 5 + 3].equal(x[1, :, 2, 3])


def test_positions_become_rows_in_order():
    x = torch.randn(2, 3, 4)
    assert rows(x, None)[4].equal(x[1, 1])


@pytest.mark.parametrize("shape", [(3,), (1, 2, 3, 4, 5)])
def test_other_ranks_are_refused(shape):
    with pytest.raises(InputError, match="Choose another site"):
        rows(torch.zeros(shape), None)


def test_a_site_without_tensors_is_an_input_error():
    class Words(nn.Module):
        def forward(self, x):
            return "words"

    net = nn.Sequential(Words())
    with pytest.raises(InputError, match=r"'0'.*output"):
        seen(net, ["0"], torch.zeros(2, 2))
    assert hooks(net) == 0


def test_hooks_live_only_inside():
    net = Caller()
    with watch(net, ["tupled", "named"], lambda *_: None):
        assert hooks(net) == 2
    assert hooks(net) == 0


def test_hooks_go_after_an_error_inside():
    net = Caller()

    def listener(*_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), watch(net, ["tupled"], listener):
        net(torch.zeros(2, 2))
    assert hooks(net) == 0


def test_hooks_go_after_an_unknown_site():
    net = Caller()
    with (
        pytest.raises(InputError, match=r"'nonesuch'.*Nearest: "),
        watch(net, ["tupled", "nonesuch"], lambda *_: None),
    ):
        pass
    assert hooks(net) == 0
