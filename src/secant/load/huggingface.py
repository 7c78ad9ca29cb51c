"""Hugging Face models: a local directory, a hub id, or a GGUF file that transformers reads.

Holds: ``load_directory``, ``load_hub``, ``load_gguf``, ``quiet``.
May import: torch, safetensors, transformers and huggingface_hub (extra ``hf``), gguf and
accelerate (extra ``gguf``), ``secant.errors``, ``secant.load``.

The class is the one that the configuration names, so that a head is there and is a site.
Weights are safetensors, or a .bin file that transformers 5 reads with torch's restricted
unpickler (its default, asked for here as well): a pickle with code is refused. Python files
beside the weights are run only with ``trust_remote_code``.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import inspect
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from torch import nn

from secant.errors import LoadError
from secant.load.factory import UNREADABLE
from secant.load.fresh import seeded
from secant.load.loaded import Loaded, chosen_dtype
from secant.load.options import LoadOptions

LEAST_SILLY_LENGTH: Final = 10**9  # tokenizers without a maximum say 10**30
HUB_FILES: Final = ["*.json", "model*.safetensors", "*.txt", "*.model", "*.jinja"]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars and warnings within; restore them after.

    The GGUF reader's bar heeds no setting, so the standard error stream is put aside as well.
    """
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging as noise

    verbosity, has_bars = noise.get_verbosity(), noise.is_progress_bar_enabled()
    has_hub_bars = not are_progress_bars_disabled()
    hub = logging.getLogger("huggingface_hub")
    hub_level = hub.level
    noise.set_verbosity_error()
    noise.disable_progress_bar()
    hub.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        noise.set_verbosity(verbosity)
        hub.setLevel(hub_level)
        if has_bars:
            noise.enable_progress_bar()
        if has_hub_bars:
            enable_progress_bars()


def _need(packages: tuple[str, ...], extra: str, source: str, what: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise LoadError(
            f"{source!r} is {what}, which needs {' and '.join(missing)}. "
            f"Install with `pip install 'secant[{extra}]'`."
        )


def load_directory(source: str, options: LoadOptions) -> Loaded:
    """The model of a local directory that holds a `config.json`."""
    _need(("transformers",), "hf", source, "a Hugging Face model")
    return _load(_Place(source, source, {}), Path(source).name or source, options)


def load_gguf(source: str, options: LoadOptions) -> Loaded:
    """The model of a `.gguf` file, dequantised; its language-model head is kept."""
    _need(("transformers",), "hf", source, "a GGUF file")
    _need(("gguf", "accelerate"), "gguf", source, "a GGUF file")
    path = Path(source)
    return _load(_Place(source, str(path.parent), {"gguf_file": path.name}), path.name, options)


def load_hub(source: str, options: LoadOptions) -> Loaded:
    """The model of a hub id `owner/name`, fetched once into Hugging Face's cache.

    Only configuration, tokenizer and safetensors are fetched; Python files with
    `trust_remote_code`; `pytorch_model*.bin` if there are no safetensors.
    """
    _need(("transformers",), "hf", source, "a hub id")
    from huggingface_hub import snapshot_download

    patterns = HUB_FILES + (["*.py"] if options.trust_remote_code else [])
    try:
        with quiet():
            folder = snapshot_download(source, allow_patterns=patterns)
            if not any(Path(folder).glob("*.safetensors")):
                folder = snapshot_download(source, allow_patterns=[*patterns, "pytorch_model*.bin"])
    except (OSError, ValueError) as error:  # the hub's errors are OSError, a bad id ValueError
        raise LoadError(
            f"model {source!r} is no folder here with a config.json, and was not got from the "
            f"hub ({_line(error)}). Check the name and the connection."
        ) from error
    return _load(_Place(source, folder, {}), source, options)


@dataclass(frozen=True)
class _Place:
    """Where a model lies: what the user called it, its folder, and the GGUF file if it is one."""

    source: str
    folder: str
    more: dict[str, str]


def _errors() -> tuple[type[Exception], ...]:
    from huggingface_hub.errors import StrictDataclassError

    return (*UNREADABLE, SafetensorError, ImportError, StrictDataclassError)


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


def _load(place: _Place, name: str, options: LoadOptions) -> Loaded:
    asked: dict[str, Any] = {
        "local_files_only": True,
        "trust_remote_code": options.trust_remote_code,  # None would ask on the terminal
        **place.more,
    }
    with quiet():
        try:
            from transformers import AutoConfig

            config = AutoConfig.from_pretrained(place.folder, **asked)
            kind = _class_of(config, place, options)
            model, info = kind.from_pretrained(
                place.folder, config=config, dtype=chosen_dtype(options.dtype) or "auto",
                weights_only=True, output_loading_info=True, ignore_mismatched_sizes=True, **asked,
            )  # fmt: skip
        except LoadError:
            raise
        except _errors() as error:
            raise _refusal(place, error) from error
        notes = _check_complete(place.source, type(model).__name__, info)
        _forget_quantisation(model)
        tokenizer = processor = None
        if getattr(model, "main_input_name", "input_ids") == "input_ids":
            tokenizer, why = _reader("AutoTokenizer", place, asked)
        else:
            processor, why = _reader("AutoImageProcessor", place, asked)
    # Generation reuses keys and values; a survey would only carry them along.
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False

    def fresh(seed: int) -> nn.Module:
        with quiet(), seeded(seed):
            return _build(type(model), kind, copy.deepcopy(model.config), options)

    return Loaded(
        name, model, tokenizer, fresh, processor, _max_length(model, tokenizer),
        notes=tuple(notes), reader_error=why,
    )  # fmt: skip


def _class_of(config: Any, place: _Place, options: LoadOptions) -> Any:
    """The class that the configuration names; a causal head for GGUF, which names none."""
    import transformers

    names = getattr(config, "architectures", None) or []
    auto = getattr(config, "auto_map", None) or {}
    if names:
        own = getattr(transformers, names[0], None)
        if inspect.isclass(own) and issubclass(own, transformers.PreTrainedModel):
            return own
        for key, path in auto.items():
            if str(path).rpartition(".")[2] == names[0] and hasattr(transformers, key):
                if options.trust_remote_code:
                    return getattr(transformers, key)
                raise LoadError(
                    f"model {place.source!r} comes with Python code of its own for class "
                    f"{names[0]!r}, which is not run. Read it, then pass --trust-remote-code."
                )
        raise LoadError(
            f"model {place.source!r}: config.json names the class {names[0]!r}, which "
            f"transformers {transformers.__version__} does not have. Install one that does."
        )
    if place.more and type(config) in transformers.AutoModelForCausalLM._model_mapping:
        return transformers.AutoModelForCausalLM
    return transformers.AutoModel


def _build(own: Any, kind: Any, config: Any, options: LoadOptions) -> nn.Module:
    """The architecture with new weights: through the auto class where it has the code."""
    import transformers

    if kind is own or not hasattr(kind, "from_config"):
        return own(config)  # type: ignore[no-any-return]
    code = options.trust_remote_code
    assert hasattr(transformers, kind.__name__)
    return kind.from_config(config, trust_remote_code=code)  # type: ignore[no-any-return]


def _refusal(place: _Place, error: Exception) -> LoadError:
    source, text = place.source, str(error)
    if "trust_remote_code" in text:
        return LoadError(
            f"model {source!r} comes with Python code of its own, which is not run. "
            "Read it, then pass --trust-remote-code."
        )
    if "weights_only" in text or "WeightsUnpickler" in text:
        return LoadError(
            f"model {source!r}: its .bin weights hold more than tensors and would need code to "
            "load, which is refused. Ask for safetensors, or convert where you trust them."
        )
    if place.more:
        return LoadError(
            f"model {source!r} cannot be loaded ({_line(error)}). The file is cut, corrupt or of "
            "an architecture that transformers does not read; get it again."
        )
    return LoadError(
        f"model {source!r} cannot be loaded ({_line(error)}). The directory needs a valid "
        "config.json and whole weights that fit it, best as model.safetensors."
    )


def _check_complete(source: str, kind: str, info: Any) -> list[str]:
    """Refuse weights that leave parts of the model random; note those that it does not use.

    A pooler may be missing: many encoders were published without one, and nothing that is
    usually surveyed comes after it.
    """
    missing = sorted(info["missing_keys"])
    vital = [key for key in missing if "pooler" not in key]
    if vital:
        raise LoadError(
            f"model {source!r}: {len(vital)} weights of {kind} are not in the checkpoint, first "
            f"{vital[0]!r}. They would be random; get the whole checkpoint."
        )
    for key, found, wanted in sorted(info["mismatched_keys"]):
        raise LoadError(
            f"model {source!r}: {key!r} must have shape {tuple(wanted)} by config.json; the "
            f"checkpoint has {tuple(found)}. Get the configuration that belongs to the weights."
        )
    notes = []
    if missing:
        notes.append(f"The checkpoint has no {missing[0]!r}: the pooler's weights are random.")
    unused = sorted(info["unexpected_keys"])
    if unused:
        notes.append(f"{len(unused)} weights of the checkpoint are not part of {kind}.")
    return notes


def _forget_quantisation(model: Any) -> None:
    """Let a dequantised GGUF model be cast, copied and built anew as any other."""
    if getattr(model, "hf_quantizer", None) is not None and getattr(
        model.config, "quantization_config", None
    ):
        method = str(getattr(model, "quantization_method", ""))
        if "gguf" not in method.lower():
            return
        del model.hf_quantizer
        del model.config.quantization_config
        model.is_quantized = False


def _reader(auto: str, place: _Place, asked: dict[str, Any]) -> tuple[Any | None, str]:
    """The tokenizer or image processor, or None and why there is none."""
    import transformers

    more = {"backend": "pil"} if auto == "AutoImageProcessor" else {}
    try:
        return getattr(transformers, auto).from_pretrained(place.folder, **more, **asked), ""
    except Exception as error:
        # The tokenizers package raises Exception itself for a file that it cannot read.
        if type(error) is not Exception and not isinstance(error, _errors()):
            raise
        return None, _line(error)


def _max_length(model: Any, tokenizer: Any | None) -> int | None:
    """The most tokens that the model takes: its position table's, or the tokenizer's if less."""
    if tokenizer is None:
        return None
    limits = [tokenizer.model_max_length]
    limits.append(getattr(model.config.get_text_config(), "max_position_embeddings", None))
    for name, module in model.named_modules():
        # RoBERTa and its kin count positions from the padding index on.
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            padding = module.padding_idx
            limits.append(module.num_embeddings - (0 if padding is None else padding + 1))
    sane = [limit for limit in limits if isinstance(limit, int) and 0 < limit < LEAST_SILLY_LENGTH]
    return min(sane, default=None)
