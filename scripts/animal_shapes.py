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
NAMED: Final = ["numpy.core.multiarray", "_reconstruct", "numpy", "ndarray", "dtype"]
KINDS: Final = {"u1": np.dtype("u1"), "i8": np.dtype("<i8")}


def plain_array(pickled: bytes) -> np.ndarray:
    """The array in a pickle of exactly one C-ordered NumPy array of uint8 or int64.

    Raises: `ValueError` for anything else.
    """
    ops = [(op.name, value) for op, value, _ in pickletools.genops(pickled)]
    texts = [value for name, value in ops if name == "SHORT_BINUNICODE"]
    bodies = [value for name, value in ops if name == "BINBYTES"]
    reduced = sum(name == "REDUCE" for name, _ in ops)
    kind = texts[5] if len(texts) > 5 else ""
    if texts[:5] != NAMED or kind not in KINDS or len(bodies) != 1 or reduced != 2:
        raise ValueError(f"expected a pickle of one uint8 or int64 array; got {texts}. Look at it.")
    # The shape stands between the version of the state and the name `dtype`: K1, then its sides.
    end = ops.index(("SHORT_BINUNICODE", "dtype"))
    start = max(at for at, (name, _) in enumerate(ops[:end]) if name == "REDUCE")
    sides = [value for name, value in ops[start:end] if name in {"BININT1", "BININT2"}][1:]
    return np.frombuffer(bodies[0], KINDS[kind]).reshape(sides)


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
