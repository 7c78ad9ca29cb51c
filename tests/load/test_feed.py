"""Batches that models take: padding changes nothing, long and empty texts are said.

Holds: tests of ``secant.load.feed``.
May import: pytest, torch, ``secant``; Pillow where installed.
"""

import pytest
import torch
from torch import nn

from secant.errors import InputError
from secant.load.data import load_data
from secant.load.feed import Feed
from secant.load.models import load_model
from secant.load.options import LoadOptions
from secant.maps.features import watch

TEXTS = ["the film", "a good plot", "bad", "the dog ran and the cat was long", "a a a a"]


def feed_of(model, data, batch_size=3, groups=2, **options):
    options = LoadOptions(**options)
    return Feed(
        load_model(model, options), load_data(data), groups=groups, batch_size=batch_size, seed=0
    )


@torch.inference_mode()
def outputs(feed):
    """The output of every unit, the padding cut off, by its position in the data."""
    found = {}
    for batch in feed.batches:
        forward, mask = feed.forward(feed.loaded.model, batch)
        output = forward()
        output = output if isinstance(output, torch.Tensor) else output[0]
        for place, unit in enumerate(batch.units):
            found[unit] = output[place] if mask is None else output[place][mask[place]]
    return [found[unit] for unit in range(len(feed.units))]


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_batches_of_texts_equal_texts_alone(tiny, name):
    """The decoder's tokenizer has no padding token."""
    feed = feed_of(str(tiny / name), TEXTS)
    together = outputs(feed)
    for unit, text in enumerate(TEXTS):
        ids = feed.loaded.tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            alone = feed.loaded.model(input_ids=ids)[0][0]
        torch.testing.assert_close(together[unit], alone, atol=1e-5, rtol=1e-5)


def test_the_decoder_is_padded_on_the_right_with_its_end_token(tiny):
    feed = feed_of(str(tiny / "decoder"), TEXTS, groups=1, batch_size=9)
    assert feed.loaded.tokenizer.pad_token is None
    inputs, mask = feed.inputs(feed.batches[0])
    assert set(inputs) == {"input_ids", "attention_mask"}
    assert bool((inputs["input_ids"][~mask] == 2).all())
    assert bool((mask.int().diff(dim=1) <= 0).all())


@pytest.mark.parametrize(("name", "limit"), [("encoder", 24), ("decoder", 32)])
def test_long_texts_are_cut_at_the_models_maximum_and_said(tiny, name, limit):
    feed = feed_of(str(tiny / name), [*TEXTS, "cat " * 50, "dog " * limit])
    assert feed.loaded.max_length == limit
    assert max(map(len, feed.fields["input_ids"])) == limit
    assert feed.notes == [
        f"1 of 7 texts were longer than the model's {limit} tokens and were cut off there."
    ]
    outputs(feed)


def test_the_tokenizers_own_maximum_counts_too(tiny, tmp_path):
    import json
    import shutil

    folder = shutil.copytree(tiny / "encoder", tmp_path / "short")
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": 4}))
    assert load_model(str(folder)).max_length == 4


def test_positions_that_begin_after_the_padding_index(tiny):
    """RoBERTa's table of 20 holds 18 positions when the padding index is 1."""
    feed = feed_of(str(tiny / "roberta"), ["cat " * 50, *TEXTS])
    assert feed.loaded.max_length == 18
    outputs(feed)


def test_empty_texts_are_dropped_and_said_and_labels_follow(tiny):
    units = load_data([(["the film", "", "  ", "bad"], torch.tensor([4, 5, 6, 7]))])
    feed = Feed(load_model(str(tiny / "decoder")), units, groups=2, batch_size=2, seed=0)
    assert feed.units.texts == ["the film", "bad"]
    assert feed.units.labels.tolist() == [4, 7]
    assert feed.notes == ["2 of 4 texts were empty."]
    assert sorted(unit for batch in feed.batches for unit in batch.units) == [0, 1]


def test_only_empty_texts_are_an_error(tiny):
    with pytest.raises(InputError, match="every text is empty"):
        feed_of(str(tiny / "decoder"), ["", " "])


def test_extra_tokenizer_output_is_not_given_to_a_model_that_lacks_it(tiny):
    feed = feed_of(str(tiny / "encoder"), TEXTS)
    feed.fields["nonesuch"] = feed.fields["input_ids"]
    inputs, _ = feed.inputs(feed.batches[0])
    assert "nonesuch" not in inputs
    outputs(feed)


def test_dict_batches_equal_the_texts(tiny):
    by_text = feed_of(str(tiny / "encoder"), TEXTS)
    tokenizer = by_text.loaded.tokenizer
    batches = [dict(tokenizer(TEXTS[:2], padding=True, return_tensors="pt")),
               dict(tokenizer(TEXTS[2:], padding=True, return_tensors="pt"))]  # fmt: skip
    by_dict = feed_of(str(tiny / "encoder"), batches)
    for one, other in zip(outputs(by_text), outputs(by_dict), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_rows_of_token_numbers_reach_an_embedding_whole(tiny):
    ids = torch.randint(3, 12, (6, 5))
    for model in (str(tiny / "encoder"), nn.Sequential(nn.Embedding(40, 4)).eval()):
        inputs, _ = feed_of(model, ids).inputs(feed_of(model, ids).batches[0])
        assert inputs.dtype == torch.int64
    feed = feed_of(nn.Linear(5, 2).eval(), ids)
    assert feed.inputs(feed.batches[0])[0].dtype == torch.float32


def test_the_plan_is_the_same_for_any_dtype():
    rows = torch.randn(50, 3, dtype=torch.float64)
    feeds = [feed_of(nn.Linear(3, 2), rows, dtype=d) for d in ("float32", "float64", "bfloat16")]
    assert feeds[0].batches == feeds[1].batches == feeds[2].batches
    kinds = [feed.inputs(feed.batches[0])[0].dtype for feed in feeds]
    assert kinds == [torch.float32, torch.float64, torch.bfloat16]
    exact = feeds[1].inputs(feeds[1].batches[0])[0]
    assert exact.equal(rows[list(feeds[1].batches[0].units)])


def test_units_that_hold_nan_are_said():
    rows = torch.ones(6, 3)
    rows[2] = torch.nan
    assert feed_of(nn.Linear(3, 3), rows).notes == [
        "1 of 6 units of the data hold NaN or infinity."
    ]
    assert feed_of(nn.Linear(3, 3), torch.ones(6, 3)).notes == []


REASONS = [
    RuntimeError("stack expects"), ValueError("x"), KeyError("k"), AttributeError("a"), OSError("o")
]  # fmt: skip


@pytest.mark.parametrize("error", REASONS, ids=lambda error: type(error).__name__)
def test_an_error_of_our_own_hooks_is_not_blamed_on_the_model(error):
    """The same error from the model itself is a refusal, but for one that no model gives."""

    def fails(*_):
        raise error

    net = nn.Sequential(nn.Linear(3, 3)).eval()
    feed = feed_of(net, torch.randn(12, 3))
    forward, _ = feed.forward(net, feed.batches[0])
    with pytest.raises(type(error)) as caught, watch(net, ["0"], fails):
        forward()
    assert caught.value is error
    assert not any(part._forward_hooks for part in net.modules())
    net[0].forward = fails
    kind = OSError if isinstance(error, OSError) else InputError
    with pytest.raises(kind, match=r"o|refuses the data"), watch(net, ["0"], lambda *_: None):
        forward()


def test_a_refusal_of_our_own_hooks_stays_one():
    def refuses(*_):
        raise InputError("say why")

    net = nn.Sequential(nn.Linear(3, 3)).eval()
    feed = feed_of(net, torch.randn(12, 3))
    with pytest.raises(InputError, match=r"^say why$"), watch(net, ["0"], refuses):
        feed.forward(net, feed.batches[0])[0]()


def test_hooks_that_lack_memory_tell_what_to_do():
    def fails(*_):
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried")

    net = nn.Sequential(nn.Linear(3, 3)).eval()
    feed = feed_of(net, torch.randn(12, 3))
    with pytest.raises(InputError, match=r"out of memory.*--batch-size"), watch(net, ["0"], fails):
        feed.forward(net, feed.batches[0])[0]()


class Odd(nn.Module):
    """A forward that no one else has: two arguments, a dict with the answer inside."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def forward(self, scale, x):
        return {"answer": [self.inner(scale * x)], "note": "unused"}


def test_call_adapts_an_unusual_forward():
    rows = torch.randn(8, 3)
    model = Odd().eval()
    feed = feed_of(model, rows, call=lambda net, batch: net(2.0, batch)["answer"][0])
    wanted = model.inner(2 * rows)
    for one, other in zip(outputs(feed), wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_call_gets_the_padded_dict(tiny):
    seen = []

    def call(model, batch):
        seen.append(batch)
        return model(**{key: batch[key] for key in ("input_ids", "attention_mask")})

    outputs(feed_of(str(tiny / "encoder"), TEXTS, call=call))
    assert all(batch["input_ids"].shape == batch["attention_mask"].shape for batch in seen)


@pytest.mark.parametrize("answer", [None, "text", 3.0, {"a": []}])
def test_a_model_without_a_tensor_is_refused(answer):
    feed = feed_of(nn.Linear(3, 2), torch.randn(8, 3), call=lambda model, batch: answer)
    forward, _ = feed.forward(feed.loaded.model, feed.batches[0])
    with pytest.raises(InputError, match=rf"must return a tensor.*{type(answer).__name__}.*--call"):
        forward()


@pytest.mark.parametrize(
    "error", [RuntimeError("no"), ValueError("no"), TypeError("no"), IndexError("no"), KeyError()]
)
def test_what_a_model_raises_becomes_one_line(error):
    def refuse(model, batch):
        raise error

    feed = feed_of(nn.Linear(3, 2), torch.randn(8, 3), call=refuse)
    with pytest.raises(InputError, match="'Linear' refuses the data"):
        feed.forward(feed.loaded.model, feed.batches[0])[0]()


def test_running_out_of_memory_is_not_blamed_on_shapes():
    def refuse(model, batch):
        raise torch.OutOfMemoryError("no memory left")

    feed = feed_of(nn.Linear(3, 2), torch.randn(8, 3), call=refuse)
    with pytest.raises(InputError, match="--batch-size"):
        feed.forward(feed.loaded.model, feed.batches[0])[0]()


def test_models_and_data_of_different_kinds(tiny):
    with pytest.raises(InputError, match=r"has no tokenizer.*holds texts"):
        feed_of("demo:linear", TEXTS)
    with pytest.raises(InputError, match=r"reads text.*torch\.float32"):
        feed_of(str(tiny / "encoder"), torch.randn(8, 3))


def test_rows_of_several_lengths_need_a_mask():
    batches = [{"input": torch.randn(4, 3)}, {"input": torch.randn(4, 5)}]
    feed = feed_of(nn.Linear(3, 2), batches, groups=1, batch_size=8)
    with pytest.raises(InputError, match="attention_mask"):
        feed.inputs(feed.batches[0])


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_image_models_take_tensors(tiny, name):
    found = outputs(feed_of(str(tiny / name), torch.randn(5, 3, 8, 8)))
    assert [tuple(row.shape) for row in found] == [(3,)] * 5


def test_folders_of_images_go_through_the_models_processor(tiny, tmp_path):
    image = pytest.importorskip("PIL.Image")
    colours = [(0, 0, 0), (255, 0, 0), (0, 255, 255)]
    for place, colour in enumerate(colours):
        image.new("RGB", (20, 12), colour).save(tmp_path / f"{place}.png")
    feed = feed_of(str(tiny / "vit"), str(tmp_path), groups=1, batch_size=8)
    inputs, mask = feed.inputs(feed.batches[0])
    assert mask is None
    wanted = torch.tensor(colours)[list(feed.batches[0].units)] / 255 * 2 - 1
    assert inputs["pixel_values"].shape == (3, 3, 8, 8)
    torch.testing.assert_close(inputs["pixel_values"][:, :, 3, 3], wanted)
    outputs(feed)
    with pytest.raises(InputError, match="no image processor"):
        feed_of(str(tiny / "resnet"), str(tmp_path))
    (tmp_path / "3.png").write_bytes((tmp_path / "2.png").read_bytes()[:40])
    feed = feed_of(str(tiny / "vit"), str(tmp_path))
    with pytest.raises(InputError, match=r"3\.png.*cannot be read"):
        outputs(feed)
