"""Mamba against transformers' own, over every setting; its steps, masks, types and memory.

Holds: tests of ``secant.nn.recurrence.mamba`` and ``mamba_weights``.
May import: pytest, torch, safetensors, transformers, ``secant.nn``.
"""

import json

import pytest
import torch
from safetensors.torch import load_file

from secant.errors import InputError
from secant.nn.recurrence import Mamba, MambaLM, MambaMixer, MambaShape, TimeStep, mamba_from

transformers = pytest.importorskip("transformers", reason="needs secant[hf]")

SMALL = {"vocab_size": 37, "hidden_size": 20, "state_size": 5, "num_hidden_layers": 2}
SETTINGS = {
    "as it comes": {},
    "bias": {"use_bias": True},
    "no bias in the convolution": {"use_conv_bias": False},
    "bias, but none in the convolution": {"use_bias": True, "use_conv_bias": False},
    **{f"{name}": {"hidden_act": name} for name in (
        "relu", "gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "tanh", "sigmoid", "mish",
        "relu6", "relu2", "leaky_relu", "swish", "linear",
    )},
    "rank 7": {"time_step_rank": 7},
    "rank 1": {"time_step_rank": 1},
    "time steps": {"time_step_min": 0.05, "time_step_max": 0.9, "time_step_floor": 0.2,
                   "time_step_scale": 3.0},
    "constant time steps": {"time_step_init_scheme": "constant", "time_step_scale": 0.5},
    "rescaled": {"rescale_prenorm_residual": True},
    "residual not widened": {"residual_in_fp32": False},
    "head not tied": {"tie_word_embeddings": False},
    "one number a channel": {"state_size": 1},
    "16 numbers a channel": {"state_size": 16},
    "kernel 1": {"conv_kernel": 1},
    "kernel 2": {"conv_kernel": 2},
    "kernel 7": {"conv_kernel": 7, "use_bias": True},
    "not expanded": {"expand": 1},
    "expanded threefold": {"expand": 3},
    "one layer": {"num_hidden_layers": 1},
    "four layers": {"num_hidden_layers": 4},
    "large epsilon": {"layer_norm_epsilon": 0.1},
    "wider draws": {"initializer_range": 1.0},
}  # fmt: skip


def theirs(name="MambaForCausalLM", dtype=torch.float32, **settings):
    """A model of transformers' with weights that differ everywhere from their defaults."""
    torch.manual_seed(0)
    config = transformers.MambaConfig(**{**SMALL, **settings})
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for one in model.parameters():
            one.add_(0.05 * torch.randn_like(one))
    return model.to(dtype)


def tokens(rows=3, length=19):
    draw = torch.Generator().manual_seed(1)
    return torch.randint(SMALL["vocab_size"], (rows, length), generator=draw)


@torch.no_grad()
@pytest.mark.parametrize("case", SETTINGS)
def test_the_outputs_are_those_of_transformers(case):
    """To 1e-5: features and logits, of whole sequences and step by step."""
    model, x = theirs(**SETTINGS[case]), tokens()
    ours = mamba_from(model.config.to_dict(), model.state_dict())
    assert isinstance(ours, MambaLM)
    given = model(x, output_hidden_states=True)
    logits, _ = ours(x)
    scale = float(given.logits.abs().max())
    assert scale > 0.1
    assert torch.allclose(logits, given.logits, rtol=0, atol=1e-5 * max(1, scale))
    features, _ = ours.backbone(x)
    assert torch.allclose(features, given.hidden_states[-1], rtol=0, atol=1e-5)
    state = None
    for t in range(x.shape[1]):
        step, state = ours.step(x[:, t], state)
        assert torch.allclose(step, given.logits[:, t], rtol=0, atol=1e-5 * max(1, scale))


@torch.no_grad()
def test_cached_generation_is_that_of_transformers():
    """Their cache step by step, ours carried by `step` and by whole pieces, all from a prefix."""
    model, x = theirs(use_bias=True), tokens()
    ours = mamba_from(model.config.to_dict(), model.state_dict())
    whole, end = ours(x)
    logits, state = ours(x[:, :8])
    cached = model(x[:, :8], use_cache=True)
    _, in_one_piece = ours(x[:, 8:], state)
    for t in range(8, x.shape[1]):
        cached = model(x[:, t : t + 1], cache=cached.cache, use_cache=True)
        logits, state = ours.step(x[:, t], state)
        assert torch.allclose(logits, cached.logits[:, 0], rtol=0, atol=1e-5)
        assert torch.allclose(logits, whole[:, t], rtol=0, atol=1e-5)
    for layer in range(2):
        hidden = cached.cache.layers[layer].recurrent_states[0]
        assert torch.allclose(state[layer].hidden, hidden, rtol=0, atol=1e-5)
        for other in (end, in_one_piece):
            assert torch.allclose(state[layer].hidden, other[layer].hidden, rtol=0, atol=1e-5)
            assert torch.allclose(state[layer].window, other[layer].window, rtol=0, atol=1e-5)
    # Greedy, as their own generate() has it.
    made = model.generate(x[:, :8], max_new_tokens=6, do_sample=False, eos_token_id=None)
    logits, state = ours(x[:, :8])
    found, logits = [], logits[:, -1]
    for _ in range(6):
        found.append(logits.argmax(-1))
        logits, state = ours.step(found[-1], state)
    assert torch.equal(torch.stack(found, 1), made[:, 8:])


@torch.no_grad()
@pytest.mark.parametrize("has_bias", [False, True])
def test_padding_is_that_of_transformers(has_bias):
    """On the left, right and within; without a bias, left padding is no padding at all."""
    model, x = theirs(use_bias=has_bias), tokens()
    ours = mamba_from(model.config.to_dict(), model.state_dict())
    mask = torch.ones_like(x)
    mask[0, :5] = mask[1, -4:] = mask[2, 7:9] = 0
    found, _ = ours(x, mask=mask)
    assert torch.allclose(found, model(x, attention_mask=mask).logits, rtol=0, atol=1e-5)
    short, _ = ours(x[:1, 5:])
    gap = float((found[:1, 5:] - short).abs().max())
    assert gap > 1e-3 if has_bias else gap < 1e-5
    with pytest.raises(InputError, match=r"mask must be \(batch, length\), \(3, 19\).*padding"):
        ours(x, mask=mask[:, :4])


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("is_wide", [True, False])
def test_half_precision(dtype, is_wide):
    """As far from their float32 as theirs is, or nearer: our state and D stay float32."""
    model, x = theirs(residual_in_fp32=is_wide), tokens()
    exact = model(x).logits
    model = model.to(dtype)
    ours = mamba_from(model.config.to_dict(), model.state_dict())
    found, state = ours(x)
    assert found.dtype == torch.float32
    assert state[0].hidden.dtype == torch.float32
    assert state[0].window.dtype == ours.backbone.embeddings.weight.dtype == dtype
    own, other = ((one - exact).norm() / exact.norm() for one in (found, model(x).logits))
    assert float(own) < max(1.5 * float(other), 1e-3)


@torch.no_grad()
def test_a_backbone_and_saved_weights(tmp_path):
    """From what save_pretrained leaves, where a tied head is not written."""
    bare = theirs("MambaModel")
    ours = mamba_from(bare.config.to_dict(), bare.state_dict())
    assert isinstance(ours, Mamba)
    features, _ = ours(tokens())
    expected = bare(tokens()).last_hidden_state
    assert torch.allclose(features, expected, rtol=0, atol=1e-5)
    for is_tied in (True, False):
        model = theirs(tie_word_embeddings=is_tied)
        model.save_pretrained(tmp_path / str(is_tied))
        config = json.loads((tmp_path / str(is_tied) / "config.json").read_text())
        weights = load_file(tmp_path / str(is_tied) / "model.safetensors")
        assert ("lm_head.weight" in weights) == (not is_tied)
        ours = mamba_from(config, weights)
        assert torch.allclose(ours(tokens())[0], model(tokens()).logits, rtol=0, atol=1e-5)
        shared = ours.lm_head.weight is ours.backbone.embeddings.weight
        assert shared == is_tied
    # The name that the authors' first checkpoints have.
    old = {name.replace("embeddings.", "embedding."): one for name, one in weights.items()}
    assert torch.equal(mamba_from(config, old)(tokens())[0], ours(tokens())[0])


def test_what_cannot_be_loaded():
    model = theirs()
    config, weights = model.config.to_dict(), model.state_dict()
    for change, message in (
        ({"model_type": "mamba2"}, "must be that of a Mamba; got 'mamba2'"),
        ({"hidden_act": "nonesuch"}, "`activation` must be one of silu"),
        ({"state_size": "16"}, "`state_size` in the configuration must be int; got '16'"),
        ({"use_bias": 1}, "`use_bias` in the configuration must be bool; got 1"),
        ({"conv_kernel": True}, "`conv_kernel` in the configuration must be int; got True"),
        ({"layer_norm_epsilon": None}, "`layer_norm_epsilon` .* must be float; got None"),
        ({"num_hidden_layers": 3}, r"missing \['backbone.layers.2.*left over \[\] \(10 and 0"),
        ({"num_hidden_layers": 1}, r"missing \[\], left over \['backbone.layers.1"),
        ({"state_size": 6}, r"must be \(40, 6\) by the configuration; got \(40, 5\)"),
    ):
        with pytest.raises(InputError, match=message):
            mamba_from(config | change, weights)


def test_gradients_are_those_of_transformers():
    """Of the loss by every parameter, with chunks that make their states twice."""
    model, x = theirs(use_bias=True, tie_word_embeddings=False), tokens(length=30)
    ours = mamba_from(model.config.to_dict(), model.state_dict())
    for block in ours.backbone.layers:
        block.mixer.core.chunk = 8
    for one, logits in ((model, model(x).logits), (ours, ours(x)[0])):
        one.zero_grad()
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), x[:, 1:].flatten())
        loss.backward()
    expected = {name: one.grad for name, one in model.named_parameters()}
    for name, one in ours.named_parameters():
        other = expected[name.replace(".core.", ".")]
        assert torch.allclose(
            one.grad, other, rtol=1e-3, atol=1e-5 * float(other.abs().max()) + 1e-7
        )


def test_it_begins_rescaled_and_as_its_shape_says():
    shape = MambaShape(16, time_step=TimeStep(0.2, 0.4), rank=3)
    torch.manual_seed(0)
    plain = Mamba(shape, 10, 4)
    torch.manual_seed(0)
    scaled = Mamba(shape, 10, 4, is_rescaled=True)
    for one, other in zip(plain.layers, scaled.layers, strict=True):
        assert torch.allclose(one.mixer.out_proj.weight / 2, other.mixer.out_proj.weight)
        size = torch.nn.functional.softplus(one.mixer.core.dt_proj.bias.detach())
        assert bool(((size > 0.199) & (size < 0.401)).all())
        assert one.mixer.core.rank == 3
    assert MambaMixer(MambaShape(33)).core.rank == 3
    assert MambaShape(33, expand=3).width == 99


def test_bad_tokens_and_states():
    model = Mamba(MambaShape(4, state=2), 10, 2)
    _, state = model(torch.zeros(2, 3, dtype=torch.long))
    for bad, call, wanted in (
        (
            torch.zeros(2, 3),
            model,
            r"must be \(batch, length\).*got \(2, 3\) of torch.float",
        ),
        (torch.zeros(2, dtype=torch.long), model, r"\(batch, length\).*use MambaBlock"),
        (torch.zeros(2, 3, dtype=torch.long), model.step, r"tokens must be \(batch,\)"),
    ):
        with pytest.raises(InputError, match=wanted):
            call(bad)
    with pytest.raises(InputError, match="one of each of 2 blocks; got 1"):
        model(torch.zeros(2, 3, dtype=torch.long), state[:1])
    for make, message in (
        (lambda: Mamba(MambaShape(4), 0, 1), "`vocabulary` must be at least 1"),
        (lambda: Mamba(MambaShape(4), 5, 0), "`layers` must be at least 1"),
    ):
        with pytest.raises(InputError, match=message):
            make()
