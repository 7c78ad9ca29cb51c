"""The images of the package animal-shape-mnist as an .npz, without running what they come in.

Run: pip download --no-deps animal-shape-mnist==0.39 -d FOLDER
     python scripts/animal_shapes.py FOLDER/animal_shape_mnist-0.39-py3-none-any.whl shapes.npz
Writes: `x`, (10000, 1, 28, 28) uint8, and `label`, (10000,) int64: bear, bird, cat, cow, dog,
elephant, giraffe, horse, sheep, zebra, 1,000 each. The package is MIT-licensed.

The arrays are pickles, which may run code when they are loaded. Here the opcodes are only read:
their sequence must be that of one plain NumPy array, and the numbers are taken from its bytes.
May import: the standard library, numpy.
"""

import gzip
import pickletools
import sys
import zipfile
from pathlib import Path
from typing import Final

import numpy as np

FOLDER: Final = "animal_shape_mnist/data/Animal Shape"
HOMES: Final = ("numpy.core.multiarray", "numpy._core.multiarray")
# What a pickle of one array is, opcode by opcode: before its shape, and from there on.
HEAD: Final = """SHORT_BINUNICODE SHORT_BINUNICODE=_reconstruct STACK_GLOBAL SHORT_BINUNICODE=numpy
    SHORT_BINUNICODE=ndarray STACK_GLOBAL BININT1=0 TUPLE1 SHORT_BINBYTES TUPLE3 REDUCE MARK
    BININT1=1"""
TAIL: Final = """BINGET SHORT_BINUNICODE=dtype STACK_GLOBAL SHORT_BINUNICODE NEWFALSE NEWTRUE TUPLE3
    REDUCE MARK BININT1=3 SHORT_BINUNICODE NONE NONE NONE BININT=-1 BININT=-1 BININT1=0 TUPLE BUILD
    NEWFALSE BINBYTES TUPLE BUILD STOP"""
KINDS: Final = {"u1": np.dtype("u1"), "i8": np.dtype("<i8")}


def plain_array(pickled: bytes) -> np.ndarray:
    """The array in a pickle of exactly one C-ordered NumPy array of uint8 or int64.

    Raises: `ValueError` for anything else.
    """
    ops = [
        (op.name, value)
        for op, value, _ in pickletools.genops(pickled)
        if op.name not in {"PROTO", "FRAME", "MEMOIZE"}
    ]
    head, tail = len(HEAD.split()), len(TAIL.split())
    before, sides, after = ops[:head], ops[head:-tail], ops[-tail:]
    is_plain = (
        _follows(before, HEAD)
        and _follows(after, TAIL)
        and before[0][1] in HOMES
        and after[3][1] in KINDS
        and [name for name, _ in sides[-1:]] == [f"TUPLE{len(sides) - 1}"]
        and all(name in {"BININT1", "BININT2"} for name, _ in sides[:-1])
    )
    if not is_plain:
        names = " ".join(name for name, _ in ops[:50])
        raise ValueError(f"expected a pickle of one uint8 or int64 array; got {names}. Look at it.")
    return np.frombuffer(after[-4][1], KINDS[after[3][1]]).reshape([side for _, side in sides[:-1]])


def _follows(ops: list[tuple[str, object]], pattern: str) -> bool:
    """Whether the opcodes are those of the pattern, with its values where it has any."""
    wanted = pattern.split()
    said = [f"{name}={value}" if "=" in one else name
            for (name, value), one in zip(ops, wanted, strict=False)]  # fmt: skip
    return said == wanted


def main() -> None:
    wheel, out = Path(sys.argv[1]), Path(sys.argv[2])
    with zipfile.ZipFile(wheel) as archive:
        x, labels = (
            plain_array(gzip.decompress(archive.read(f"{FOLDER}/animal_{name}_version_3.gz")))
            for name in ("data", "label")
        )
    np.savez_compressed(out, x=x[:, None], label=labels)
    print(f"{out}: {x.shape[0]} images, {len(np.unique(x, axis=0))} different, ", end="")
    print(f"{np.bincount(labels).tolist()} a class")


if __name__ == "__main__":
    main()
