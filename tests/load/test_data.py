"""Data files and objects as units, with labels that line up.

Holds: tests of ``secant.load.data`` and the readers under it.
May import: pytest, numpy, torch, safetensors, ``secant``; Pillow and pyarrow where installed.
"""

import csv
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader, TensorDataset

from secant.errors import InputError, LoadError
from secant.load.data import Units, load_data
from secant.load.options import LoadOptions
from secant.load.units import encode_labels

RECORDS = [
    {"text": "good film", "stars": 5, "tone": "kind"},
    {"text": "bad, long\nfilm", "stars": 1, "tone": "harsh"},
    {"text": "no", "stars": 3, "tone": "kind"},
]


def write_jsonl(path):
    path.write_text("\n".join(json.dumps(record) for record in RECORDS))


def write_csv(path):
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["text", "stars", "tone"])
        writer.writeheader()
        writer.writerows(RECORDS)


def write_parquet(path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(RECORDS), path)


WRITERS = {"x.jsonl": write_jsonl, "x.csv": write_csv, "x.parquet": write_parquet}


@pytest.mark.parametrize("name", WRITERS)
def test_records_give_texts_and_labels(tmp_path, name):
    WRITERS[name](tmp_path / name)
    source = str(tmp_path / name)
    units = load_data(source, options=LoadOptions(label_column="stars"))
    assert units.texts == [record["text"] for record in RECORDS]
    assert units.labels.tolist() == [5, 1, 3]
    assert (units.labels.dtype, units.classes) == (torch.int64, None)
    units = load_data(source, options=LoadOptions(label_column="tone"), rows=2)
    assert units.labels.tolist() == [1, 0]
    assert units.classes == ("harsh", "kind")
    assert load_data(source, "tone").texts == ["kind", "harsh", "kind"]
    assert load_data(source).labels is None
    with pytest.raises(LoadError, match="--label-column"):
        load_data(source, options=LoadOptions(label_column="nonesuch"))
    with pytest.raises(LoadError, match="--column"):
        load_data(source, "nonesuch")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    monkeypatch.setattr("secant.load.records.importlib.util.find_spec", lambda name: None)
    with pytest.raises(LoadError, match=r"pyarrow.*secant\[parquet\]"):
        load_data(str(tmp_path / "x.parquet"))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_cut_parquet_is_refused(tmp_path, share):
    file = tmp_path / "x.parquet"
    write_parquet(file)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(LoadError, match="not a whole parquet file"):
        load_data(str(file))


def test_text_lines_and_long_cells(tmp_path):
    (tmp_path / "x.txt").write_text("one\n\n  two  \n")
    assert load_data(str(tmp_path / "x.txt")).texts == ["one", "two"]
    long = "word " * 100_000
    (tmp_path / "x.csv").write_text(f"text\n{long}\n")
    limit = csv.field_size_limit()
    assert load_data(str(tmp_path / "x.csv")).texts == [long]
    assert csv.field_size_limit() == limit


def arrays():
    torch.manual_seed(0)
    return torch.randn(6, 3), torch.arange(6).flip(0)


def test_npz_and_safetensors_choose_by_name(tmp_path):
    rows, labels = arrays()
    np.savez(tmp_path / "x.npz", rows=rows.numpy(), y=labels.numpy(), other=np.zeros(2))
    save_file({"rows": rows, "y": labels, "other": torch.zeros(2)}, tmp_path / "x.safetensors")
    for name in ("x.npz", "x.safetensors"):
        units = load_data(str(tmp_path / name), "rows", LoadOptions(label_column="y"), rows=4)
        assert units.tensor.equal(rows[:4])
        assert units.labels.equal(labels[:4])
        with pytest.raises(LoadError, match=r"\['other', 'rows', 'y'\].*--column"):
            load_data(str(tmp_path / name))
        with pytest.raises(LoadError, match="no array 'z'"):
            load_data(str(tmp_path / name), "rows", LoadOptions(label_column="z"))
        with pytest.raises(InputError, match="2 labels for 6 units"):
            load_data(str(tmp_path / name), "rows", LoadOptions(label_column="other"))


def test_one_array_needs_no_name_and_labels_may_be_words(tmp_path):
    rows, _ = arrays()
    np.savez(tmp_path / "x.npz", rows=rows.numpy(), y=np.array(list("bababa")))
    units = load_data(str(tmp_path / "x.npz"), options=LoadOptions(label_column="y"))
    assert units.tensor.equal(rows)
    assert units.labels.tolist() == [1, 0, 1, 0, 1, 0]
    assert units.classes == ("a", "b")


def test_objects_in_npz_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "x.npz", rows=np.array([{}, 1], dtype=object))
    with pytest.raises(LoadError, match="objects"):
        load_data(str(tmp_path / "x.npz"))


@pytest.mark.parametrize("name", ["x.npy", "x.txt"])
def test_files_without_columns_have_no_labels(tmp_path, name):
    np.save(tmp_path / "x.npy", np.zeros((3, 2)))
    (tmp_path / "x.txt").write_text("a\nb\n")
    with pytest.raises(LoadError, match="label column"):
        load_data(str(tmp_path / name), options=LoadOptions(label_column="y"))


def test_digits_bring_labels():
    from secant.load.demo import digits

    images, labels = digits()
    units = load_data("demo:digits", rows=7)
    assert units.tensor.equal(images[:7])
    assert units.labels.equal(labels[:7])
    with pytest.raises(LoadError, match="labels of its own"):
        load_data("demo:digits", options=LoadOptions(label_column="y"))


@pytest.fixture
def pictures(tmp_path):
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "pictures"
    for place, name in enumerate(["cat/1.png", "cat/2.png", "cat/3.jpg", "dog/1.png"]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.new("RGB", (9, 7), (40 * place, 0, 0)).save(folder / name)
    return folder


def test_image_folders_take_turns(pictures):
    units = load_data(str(pictures))
    assert [path.relative_to(pictures).as_posix() for path in units.images] == [
        "cat/1.png", "dog/1.png", "cat/2.png", "cat/3.jpg",
    ]  # fmt: skip
    assert units.labels.tolist() == [0, 1, 0, 0]
    assert units.classes == ("cat", "dog")
    flat = load_data(str(pictures / "cat"))
    assert (len(flat), flat.labels) == (3, None)


def test_image_folders_that_are_not(pictures, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(LoadError, match="no units"):
        load_data(str(tmp_path / "empty"))
    (pictures / "cat" / "1.png").rename(pictures / "loose.png")
    with pytest.raises(LoadError, match=r"'loose\.png'"):
        load_data(str(pictures))


def test_image_folders_without_pillow_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("secant.load.images.importlib.util.find_spec", lambda name: None)
    with pytest.raises(LoadError, match=r"Pillow.*secant\[images\]"):
        load_data(str(tmp_path))


def test_tensors_and_texts_from_python():
    rows, _ = arrays()
    assert load_data(rows.requires_grad_(), rows=2).tensor.equal(rows[:2].detach())
    assert load_data(["a", "b"]).texts == ["a", "b"]
    units = Units("mine", tensor=rows.detach())
    assert load_data(units) is units


def test_a_data_loader_gives_rows_and_labels():
    rows, labels = arrays()
    units = load_data(DataLoader(TensorDataset(rows, labels), batch_size=4))
    assert units.tensor.equal(rows)
    assert units.labels.equal(labels)
    assert load_data(DataLoader(TensorDataset(rows), batch_size=4)).tensor.equal(rows)
    assert load_data(DataLoader(rows, batch_size=4)).labels is None


def test_a_loader_without_end_is_read_up_to_rows():
    def endless():
        while True:
            yield torch.ones(4, 2), torch.zeros(4)

    assert len(load_data(endless(), rows=10)) == 10


def test_a_data_loader_of_texts():
    pairs = [("good", 1), ("bad", 0), ("long", 1)]
    units = load_data(DataLoader(pairs, batch_size=2))
    assert units.texts == ["good", "bad", "long"]
    assert units.labels.tolist() == [1, 0, 1]
    units = load_data(DataLoader([{"text": t, "label": n} for t, n in pairs], batch_size=2))
    assert (units.texts, units.labels.tolist()) == (["good", "bad", "long"], [1, 0, 1])


def test_padding_of_dict_batches_is_cut_at_both_ends():
    one = {"input_ids": torch.tensor([[5, 6, 0, 0], [5, 7, 8, 0]]), "labels": torch.tensor([1, 0])}
    two = {"input_ids": torch.tensor([[0, 0, 5, 6]]), "labels": torch.tensor([1])}
    for batch in (one, two):
        batch["attention_mask"] = (batch["input_ids"] > 0).long()
        batch["extra"] = torch.ones(len(batch["labels"]), 9)
    units = load_data([one, two])
    assert [row.tolist() for row in units.fields["input_ids"]] == [[5, 6], [5, 7, 8], [5, 6]]
    assert [len(row) for row in units.fields["extra"]] == [9, 9, 9]
    assert units.labels.tolist() == [1, 0, 1]
    first = units.take([2, 0])
    assert first.labels.tolist() == [1, 1]
    assert len(first) == 2


BATCHES = {
    "object": (3, "got int"),
    "mapping": ({"a": torch.ones(3)}, "DataLoader; got dict"),
    "batch of objects": ([object()], "collate_fn"),
    "three parts": ([(torch.ones(2), torch.ones(2), torch.ones(2))], "collate_fn"),
    "scalar": ([torch.tensor(1.0)], "collate_fn"),
    "labels of another count": ([(torch.ones(2, 3), torch.ones(3))], "3 labels for 2 units"),
    "labels now and then": ([(torch.ones(2), torch.ones(2)), torch.ones(2)], "same parts"),
    "texts, then tensors": ([["a", "b"], torch.ones(2)], "same parts"),
    "other keys": ([{"a": torch.ones(2)}, {"b": torch.ones(2)}], "same parts"),
    "rows of two shapes": ([torch.ones(2, 3), torch.ones(2, 4)], r"\(3,\) and \(4,\)"),
    "unequal parts": ([{"a": torch.ones(2), "b": torch.ones(3)}], "one first dimension"),
    "empty mask": ([{"attention_mask": torch.zeros(1, 3)}], "attention_mask of unit 1"),
    "complex": ([torch.ones(2, 2, dtype=torch.complex64)], "real"),
    "nothing": ([], "no units"),
}


@pytest.mark.parametrize("case", BATCHES)
def test_batches_that_cannot_be_used(case):
    data, word = BATCHES[case]
    with pytest.raises(InputError, match=word):
        load_data(data)


def test_named_labels_must_be_there():
    with pytest.raises(InputError, match="no labels 'y'"):
        load_data([{"a": torch.ones(2)}], options=LoadOptions(label_column="y"))


@pytest.mark.parametrize(
    ("values", "wanted", "dtype", "classes"),
    [
        ([3, 1], [3, 1], torch.int64, None),
        (["3", "-1"], [3, -1], torch.int64, None),
        ([0.5, 1], [0.5, 1.0], torch.float32, None),
        (["0.5", "1e3"], [0.5, 1000.0], torch.float32, None),
        (["b", "a", "b"], [1, 0, 1], torch.int64, ("a", "b")),
        (["1", "x"], [0, 1], torch.int64, ("1", "x")),
        ([True, False], [1, 0], torch.int64, None),
    ],
)
def test_labels_are_numbers_or_named_classes(values, wanted, dtype, classes):
    labels, names = encode_labels(values, "data")
    assert labels.tolist() == wanted
    assert (labels.dtype, names) == (dtype, classes)


@pytest.mark.parametrize("value", [None, "", float("nan"), [1]])
def test_a_missing_label_is_named(value):
    with pytest.raises(InputError, match="unit 2"):
        encode_labels([1, value], "data")


NAN = float("nan")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (torch.full((40, 3), NAN), r"every value of all 40 units, of shape \(3,\), is NaN"),
        (torch.full((40,), -float("inf")), r"every value of all 40 units, of shape \(\), is NaN"),
        (
            [{"x": torch.full((4, 2), NAN), "n": torch.ones(4)}] * 3,
            r"in 'x' of all 12 units, of shape \(2,\), is NaN",
        ),
    ],
    ids=["tensor", "scalars", "field"],
)
def test_data_without_a_number_says_so(source, message):
    with pytest.raises(LoadError, match=rf"^data '.*{message} or infinite.*fill in"):
        load_data(source)


def test_units_with_nan_are_counted_and_whole_numbers_have_none():
    rows = torch.ones(6, 2)
    rows[1, 0], rows[4, 1] = NAN, float("inf")
    assert load_data(rows).not_finite() == 2
    assert load_data([{"x": rows, "n": torch.arange(6)}]).not_finite() == 2
    assert load_data(torch.ones(6, 2, dtype=torch.int64)).not_finite() == 0
    assert load_data(["a", "b"]).not_finite() == 0


def test_a_file_without_a_number_says_so(tmp_path):
    np.save(tmp_path / "x.npy", np.full((40, 64), np.nan))
    with pytest.raises(LoadError, match=r"x\.npy' must hold numbers; every value of all 40 units"):
        load_data(str(tmp_path / "x.npy"))
