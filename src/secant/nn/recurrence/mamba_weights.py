"""Mamba models from the configuration and weights that transformers writes.

Holds: ``mamba_from``.
May import: torch, ``secant.errors``, ``secant.nn.recurrence`` (mamba, s6).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from secant.errors import InputError
from secant.nn.recurrence.mamba import Mamba, MambaLM, MambaShape
from secant.nn.recurrence.s6 import TimeStep

CORE = re.compile(r"\.mixer\.(x_proj\.|dt_proj\.|A_log|D$)")
HEAD, BACKBONE = "lm_head.weight", "backbone."


def mamba_from(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Mamba | MambaLM:
    """The model of a `MambaModel` or `MambaForCausalLM`, in the weights' type.

    `config` is what `config.json` holds, or ``model.config.to_dict()``; `weights` are those of
    its safetensors, or ``model.state_dict()``. Names that begin with ``backbone.`` make a
    `MambaLM`, whose head may be missing where it is tied. The tensors are copied.

    Raises: `InputError` for another kind of model, a setting that has another form than
    transformers gives it, or weights that are missing, left over or of another shape.
    """
    if config.get("model_type", "mamba") != "mamba":
        raise InputError(
            f"mamba_from: `config` must be that of a Mamba; got {config['model_type']!r}. "
            "Mamba-2, Jamba and others have other layers, which are not here."
        )
    renamed = {CORE.sub(r".mixer.core.\1", _current(name)): one for name, one in weights.items()}
    has_head = any(name.startswith(BACKBONE) for name in renamed)
    is_tied = has_head and config.get("tie_word_embeddings", True)
    model: Mamba | MambaLM = _backbone(config)
    if has_head:
        model = MambaLM(model, is_tied=is_tied)  # type: ignore[arg-type]
        if is_tied and BACKBONE + "embeddings.weight" in renamed:
            renamed.setdefault(HEAD, renamed[BACKBONE + "embeddings.weight"])
    _check(model.state_dict(), renamed)
    first = next(iter(renamed.values()))
    model.to(first.dtype).load_state_dict(renamed)
    return model


def _current(name: str) -> str:
    """The name without what the authors' first checkpoints have otherwise."""
    return name.replace("embedding.", "embeddings.")


def _setting(config: Mapping[str, Any], name: str, default: Any) -> Any:
    value = config.get(name, default)
    kind = type(default)
    if isinstance(value, bool) != (kind is bool) or not isinstance(
        value, (int, float) if kind is float else kind
    ):
        raise InputError(
            f"mamba_from: `{name}` in the configuration must be {kind.__name__}; got {value!r}. "
            "Give config.json as transformers writes it."
        )
    return value


def _backbone(config: Mapping[str, Any]) -> Mamba:
    """The model without its head; what is not given has transformers' defaults."""
    rank = config.get("time_step_rank", "auto")
    shape = MambaShape(
        features=_setting(config, "hidden_size", 768),
        state=_setting(config, "state_size", 16),
        kernel=_setting(config, "conv_kernel", 4),
        expand=_setting(config, "expand", 2),
        rank=None if rank == "auto" else _setting(config, "time_step_rank", 1),
        has_bias=_setting(config, "use_bias", False),
        has_conv_bias=_setting(config, "use_conv_bias", True),
        activation=_setting(config, "hidden_act", "silu"),
        time_step=TimeStep(
            low=_setting(config, "time_step_min", 0.001),
            high=_setting(config, "time_step_max", 0.1),
            floor=_setting(config, "time_step_floor", 1e-4),
            scale=_setting(config, "time_step_scale", 1.0),
            scheme=_setting(config, "time_step_init_scheme", "random"),
        ),
    )
    return Mamba(
        shape,
        vocabulary=_setting(config, "vocab_size", 50280),
        layers=_setting(config, "num_hidden_layers", 32),
        epsilon=_setting(config, "layer_norm_epsilon", 1e-5),
        is_residual_float32=_setting(config, "residual_in_fp32", True),
        is_rescaled=_setting(config, "rescale_prenorm_residual", False),
    )


def _check(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Raises: `InputError` for weights that are missing, left over or of another shape."""
    missing, more = sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
    if missing or more:
        raise InputError(
            f"mamba_from: the weights must be those of the configuration; missing {missing[:3]}, "
            f"left over {more[:3]} ({len(missing)} and {len(more)} in all). Pass the configuration "
            "and the weights of one model."
        )
    for name, one in wanted.items():
        if one.shape != given[name].shape:
            raise InputError(
                f"mamba_from: {name!r} must be {tuple(one.shape)} by the configuration; got "
                f"{tuple(given[name].shape)}. Pass the configuration and the weights of one model."
            )
