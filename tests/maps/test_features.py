"""Features in passing: which rows are counted, and that nothing stays behind.

Holds: tests of ``secant.maps.features``.
May import: pytest, torch, ``secant``.
"""

import math

import pytest
import torch
from torch import nn

from secant.errors import InputError
from secant.maps.derivatives import derivatives, prepared_copy
from secant.maps.features import capture, decoder, rows, watch
from secant.maps.inputs import inputs_map


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


def test_a_block_map_holds_the_rest_of_the_call_fixed():
    net = prepared_copy(Caller())
    x = torch.randn(5, 3)
    found = capture(net, ["tupled", "named"], lambda: net(x))
    other = torch.randn(5, 3).double()
    assert found["tupled"].value(other).equal(2 * other)
    assert found["named"].value(other).equal(other + 1)
    value, derivative = found["tupled"].jvp(other, other)
    assert value.equal(2 * other)
    assert derivative.equal(2 * other)
    assert found["tupled"].x.equal(x.double())
    assert found["named"].y.equal(2 * x.double() + 1)
    assert hooks(net) == 0


def test_a_decoder_runs_the_model_on_from_the_site():
    net = Caller()
    x = torch.randn(5, 3)
    found = decoder(net, "tupled", lambda: net(x))
    assert found.x.equal(2 * x)
    assert found.y.equal(2 * x + 1)
    assert found.value(x).equal(x + 1)
    assert found.jvp(x, 3 * x)[1].equal(3 * x)
    assert hooks(net) == 0


def test_a_decoder_of_a_later_call_leaves_the_earlier_ones():
    net = nn.Module()
    net.double_it = Tupled()
    net.forward = lambda x: net.double_it(net.double_it(x)[0] + x)[0]
    found = decoder(net, "double_it@2", lambda: net(torch.ones(1, 1)))
    assert found.x.item() == 6
    assert found.value(torch.full((1, 1), 5.0)).item() == 5
    first = decoder(net, "double_it", lambda: net(torch.ones(1, 1)))
    assert first.value(torch.full((1, 1), 5.0)).item() == 12


def test_a_site_that_does_not_run_is_an_input_error():
    net = Caller()
    net.idle = nn.Linear(1, 1)
    for take in (lambda: capture(net, ["idle"], forward), lambda: decoder(net, "idle", forward)):

        def forward():
            return net(torch.zeros(2, 2))

        with pytest.raises(InputError, match="'idle' was not called"):
            take()


def test_the_inputs_of_a_model_of_floats_are_its_leading_tensor():
    net = nn.Sequential(nn.Linear(3, 2), nn.Tanh())
    found = inputs_map(net, lambda: net(torch.ones(4, 3)))
    x = torch.randn(4, 3)
    assert found.value(x).equal(net(x))


def test_the_inputs_of_a_model_of_tokens_are_its_embeddings():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.word, self.place = nn.Embedding(5, 3), nn.Embedding(4, 3)

        def get_input_embeddings(self):
            return self.word

        def forward(self, *, input_ids, bias):
            return (self.word(input_ids) + self.place(torch.arange(4)) + bias).sin(), "rest"

    net, ids = Tokens(), torch.tensor([[1, 2, 3, 4]])
    found = inputs_map(net, lambda: net(input_ids=ids, bias=2.0))
    assert found.x.equal(net.word(ids))
    x = torch.randn(1, 4, 3)
    assert found.value(x).equal((x + net.place.weight + 2.0).sin())
    del Tokens.get_input_embeddings
    with pytest.raises(InputError, match=r"takes torch.int64 and has no `get_input_embeddings`"):
        inputs_map(net, lambda: net(input_ids=ids, bias=2.0))


def tiny(kind):
    transformers = pytest.importorskip("transformers")
    size = {
        "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 16, "vocab_size": 20,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "llama":
            config = transformers.LlamaConfig(**size, num_key_value_heads=1)
        elif kind == "bert":
            config = transformers.BertConfig(**size)
        else:
            config = transformers.AlbertConfig(**size, embedding_size=4)
        return transformers.AutoModel.from_config(config).eval()


@pytest.mark.parametrize(
    ("kind", "sites"),
    [
        ("bert", ["encoder.layer.0", "encoder.layer.1.attention"]),
        ("llama", ["layers.0", "layers.1.self_attn", "layers.1.mlp"]),
        ("albert", ["encoder.albert_layer_groups.0.albert_layers.0"]),
    ],
)
def test_hugging_face_blocks_give_back_their_output_and_its_derivative(kind, sites):
    """Masks, position embeddings, keyword inputs, tuples, caches and repeated calls."""
    model = tiny(kind)
    net = prepared_copy(model)
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])

    def forward():
        return net(input_ids=ids, attention_mask=mask)

    generator = torch.Generator().manual_seed(0)
    with derivatives():
        found = capture(net, sites, forward)
        assert len(found) == (2 if kind == "albert" else len(sites))
        whole = inputs_map(net, forward)
        for taken in [*found.values(), whole, decoder(net, sites[0], forward)]:
            v = torch.randn(taken.x.shape, generator=generator, dtype=torch.float64)
            value, derivative = taken.jvp(taken.x, v)
            # Llama's norms round to float32 whatever the model's dtype.
            step, tolerance = (1e-4, 2e-3) if kind == "llama" else (1e-5, 1e-6)
            apart = taken.value(taken.x + step * v) - taken.value(taken.x - step * v)
            kept = mask.bool()
            assert torch.allclose(value[kept], taken.y[kept], rtol=1e-12, atol=1e-12)
            gap = (apart / (2 * step) - derivative)[kept].norm() / derivative[kept].norm()
            assert math.isfinite(gap)
            assert gap < tolerance
    assert hooks(net) == hooks(model) == 0
    assert getattr(model.config, "use_cache", True) is True
