"""Tables of numbers from .csv and .jsonl, and what is wrong with bad ones.

Holds: tests of ``secant.load.tables``.
May import: pytest, torch, ``secant``.
"""

import pytest
import torch

from secant.errors import LoadError
from secant.load.tables import read_table

CSV = "x,class,y\n0.1,a,1\n-2e3,b,2\n"
JSONL = '{"x": 0.1, "class": "a", "y": 1}\n\n{"y": 2, "class": "b", "x": -2e3}\n'


@pytest.mark.parametrize(("name", "text"), [("t.csv", CSV), ("t.jsonl", JSONL)])
def test_every_column_but_the_labels_is_a_feature(name, text, tmp_path):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8-sig")
    units = read_table(path, "class", None)
    assert units.tensor.equal(torch.tensor([[0.1, 1], [-2e3, 2]], dtype=torch.float64))
    assert units.labels.tolist() == [0, 1]
    assert units.classes == ("a", "b")
    path.write_text(text.replace('"a"', "0").replace('"b"', "1").replace(",a,", ",0,")
                    .replace(",b,", ",1,"))  # fmt: skip
    assert len(read_table(path, "class", 1)) == 1
    assert read_table(path, None, None).tensor.shape == (2, 3)
    assert read_table(path, None, None).labels is None


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "x,class\n", "holds no records"),
        ("t.csv", "x,y\n1,2\n", "no label column 'class'"),
        ("t.csv", "class\na\n", "a column of numbers besides"),
        ("t.csv", "x,class\n1,a\ntwo,b\n", "record 2: column 'x' must hold numbers; got 'two'"),
        ("t.csv", "x,class\n1,a\n,b\n", "record 2: column 'x' must hold numbers; got ''"),
        ("t.jsonl", "[1, 2]\n", "record 1: a record must name its columns; got list"),
        ("t.jsonl", '{"x": 1, "class": 0}\n{"class": 1}\n', "record 2: columns must be those"),
        ("t.jsonl", '{"x": 1, "class": 0}\n3\n', "record 2: columns must be those"),
        ("t.jsonl", "{", "cannot be read"),
    ],
)
def test_bad_tables_are_named(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(LoadError, match=message):
        read_table(tmp_path / name, "class", None)
