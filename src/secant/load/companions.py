"""What lies beside a model's weights: its configuration and its tokenizer, as plain files.

Holds: ``config_of``, ``config_differences``, ``vocabulary_of``, ``companion_files``.
May import: ``secant.errors``. Runs no code that comes with a model, and copies none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from secant.errors import LoadError

INDEX: Final = ".index.json"
KEPT: Final = (".json", ".txt", ".model", ".jinja", ".tiktoken")
# Of a configuration: how it was saved, which says nothing of what it computes.
COSMETIC: Final = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache"}
BINARY: Final = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


def config_of(folder: Path | None) -> dict[str, Any] | None:
    """The configuration of the model in a folder, None without one."""
    if folder is None or not (folder / "config.json").is_file():
        return None
    found = _json(folder / "config.json")
    if not isinstance(found, dict):
        raise LoadError(
            f"{str(folder / 'config.json')!r} must be a table; got {type(found).__name__}. "
            "Get the whole checkpoint again."
        )
    return found


def config_differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Keys of two configurations that differ, but for those of how the model was saved."""
    keys = sorted((one.keys() | other.keys()) - COSMETIC)
    return [key for key in keys if one.get(key) != other.get(key)]


def vocabulary_of(folder: Path | None) -> dict[str, Any] | None:
    """Each token's number, None without a tokenizer; of a binary file its digest alone."""
    if folder is None:
        return None
    found: dict[str, Any] = {}
    if (folder / "tokenizer.json").is_file():
        whole = _json(folder / "tokenizer.json")
        try:
            listed = whole["model"]["vocab"]
            if isinstance(listed, list):  # of Unigram models: token and score
                listed = {entry[0]: number for number, entry in enumerate(listed)}
            found = listed | {one["content"]: one["id"] for one in whole.get("added_tokens") or ()}
        except (KeyError, TypeError, IndexError) as error:
            raise LoadError(
                f"{str(folder / 'tokenizer.json')!r} has no vocabulary. Get the tokenizer again."
            ) from error
    elif (folder / "vocab.json").is_file():
        found = _json(folder / "vocab.json")
    elif (folder / "vocab.txt").is_file():
        lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
        found = {token: number for number, token in enumerate(lines)}
    else:
        for name in BINARY:
            if (folder / name).is_file():
                found[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    if found and (folder / "added_tokens.json").is_file():
        found = found | _json(folder / "added_tokens.json")
    return found or None


def companion_files(folder: Path) -> list[Path]:
    """Files of the folder that belong to configuration and tokenizer; no weights, no code."""
    return sorted(
        one
        for one in folder.iterdir()
        if one.is_file() and one.suffix in KEPT and not one.name.endswith(INDEX)
    )


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError(
            f"{str(path)!r} cannot be read ({error}). Get the whole checkpoint again."
        ) from error
