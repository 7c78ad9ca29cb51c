"""Image folders as units; each file is opened when its batch comes.

Holds: ``read_folder``, ``open_image``.
May import: torch, Pillow (extra ``images``), ``secant.errors``, ``secant.load``.
"""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path
from typing import Any, Final

from secant.errors import LoadError
from secant.load.units import Units, encode_labels

SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg"})
FORMATS: Final = ("PNG", "JPEG")  # Pillow would try all that it knows, whatever the suffix


def read_folder(folder: Path) -> Units:
    """The .png and .jpg files of a folder; the names of its subfolders are the labels.

    Classes take turns (a's first, b's first, a's second …), so that the first so many units
    hold all of them.

    Raises: `LoadError` if there are none, or some lie in subfolders and some do not.
    """
    _need_pillow(folder)
    try:
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    except OSError as error:
        raise LoadError(
            f"data {str(folder)!r} cannot be listed ({error.strerror}). Check its permissions."
        ) from error
    owners = [path.relative_to(folder).parts[0] for path in files if path.parent != folder]
    if not files:
        raise LoadError(
            f"data {str(folder)!r} holds no units: no .png or .jpg file in it or below. "
            "Name a folder of images, or a data file."
        )
    if not owners:
        return Units(folder.name, images=files)
    if len(owners) < len(files):
        loose = next(path for path in files if path.parent == folder)
        raise LoadError(
            f"data {str(folder)!r}: {loose.name!r} lies beside subfolders, whose names are "
            "labels. Put every image in a subfolder, or none."
        )
    turns: dict[str, int] = {}
    order = []
    for path, owner in zip(files, owners, strict=True):
        turns[owner] = turns.get(owner, -1) + 1
        order.append((turns[owner], owner, path))
    order.sort()
    names = tuple(sorted(turns))
    labels, _ = encode_labels([names.index(owner) for _, owner, _ in order], str(folder))
    images = [path for _, _, path in order]
    return Units(folder.name, images=images, labels=labels, classes=names)


def _need_pillow(folder: Path) -> None:
    if importlib.util.find_spec("PIL") is None:
        raise LoadError(
            f"data {str(folder)!r}: image folders need Pillow, which is not installed. "
            "Install with `pip install 'secant[images]'`."
        )


def open_image(path: Path, mode: str) -> Any:
    """The image as Pillow's, decoded, in `mode` (`RGB`, or `L` for one channel).

    Raises: `LoadError` for a file that is not a whole PNG or JPEG image.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.convert(mode)
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise LoadError(
            f"image {str(path)!r} cannot be read ({error}). "
            "Save it again as PNG or JPEG, or take it out of the folder."
        ) from error
