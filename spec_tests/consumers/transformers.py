# SPDX-License-Identifier: Apache-2.0
"""transformers: what it makes of a checkpoint directory. Executed, not modelled."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spec_tests.consumers.clean_process import in_clean_process
from spec_tests.consumers.complaints import complaints


@dataclass(frozen=True)
class Reload:
    """What came of loading a checkpoint.

    Attributes:
        model_class: name of the class that the auto class chose.
        missing: keys of the model that no file has a tensor for, sorted.
        unexpected: keys of the files that the model has no place for, sorted.
        mismatched: keys whose tensor has another shape than the model's, sorted.
        errors: what else went wrong with single tensors.
        complaints: every warning, by `warnings` or by a logger.
        dtype: of the model as it says itself, as config.json spells it.
        dtypes: of all its parameters, sorted.
        tied: groups of parameters that are one tensor in memory, each sorted.
        config: the loaded config as a dict, dtypes spelled as in config.json.
        generation_config: settings that differ from the defaults; None where the model has none.
        outputs: float32 logits, or the last hidden state where there are none, as nested lists.
    """

    model_class: str
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]
    errors: list[str]
    complaints: list[str]
    dtype: str
    dtypes: list[str]
    tied: list[list[str]]
    config: dict[str, Any]
    generation_config: dict[str, Any] | None
    outputs: Any


def reload(
    directory: Path,
    auto_class: str,
    inputs: Mapping[str, Any],
    trust_remote_code: bool = False,
    *,
    dtype: str = "auto",
) -> Reload:
    """Load ``directory`` in a clean process by ``auto_class``, such as "AutoModelForCausalLM", and run ``inputs``.

    ``dtype`` "auto" takes the checkpoint's own. Nothing is fetched from the hub.
    """
    # As lists: a tensor would travel as shared memory, which ends with the process that made it.
    plain = {name: (tensor.tolist(), _spelled(tensor.dtype)) for name, tensor in inputs.items()}
    return in_clean_process(_reload, str(directory), auto_class, plain, trust_remote_code, dtype)


def read_config(directory: Path, trust_remote_code: bool = False) -> tuple[dict[str, Any], list[str]]:
    """AutoConfig's reading of config.json as a dict, and what it complained about."""
    return in_clean_process(_read_config, str(directory), trust_remote_code)


def read_generation_config(directory: Path) -> tuple[dict[str, Any], list[str]]:
    """The reading of generation_config.json, as what differs from the defaults, and the complaints about it."""
    return in_clean_process(_read_generation_config, str(directory))


def _reload(
    directory: str, auto_class: str, inputs: dict[str, tuple[Any, str]], trust_remote_code: bool, dtype: str
) -> Reload:
    import torch
    import transformers

    given = {name: torch.tensor(numbers, dtype=getattr(torch, kind)) for name, (numbers, kind) in inputs.items()}
    with complaints() as heard, torch.no_grad():
        model, info = getattr(transformers, auto_class).from_pretrained(
            directory,
            trust_remote_code=trust_remote_code,
            dtype=dtype,
            attn_implementation="eager",
            output_loading_info=True,
        )
        model.eval()
        given = {name: one.to(model.dtype) if one.is_floating_point() else one for name, one in given.items()}
        found = model(**given)
    outputs = found.logits if "logits" in found else found.last_hidden_state
    generation = getattr(model, "generation_config", None)
    return Reload(
        model_class=type(model).__name__,
        missing=sorted(info["missing_keys"]),
        unexpected=sorted(info["unexpected_keys"]),
        # A key, or the key with both shapes.
        mismatched=sorted(key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]),
        errors=[str(message) for message in info["error_msgs"]],
        complaints=heard,
        dtype=_spelled(model.dtype),
        dtypes=sorted({_spelled(parameter.dtype) for parameter in model.parameters()}),
        tied=_tied(model),
        config=_plain(model.config.to_dict()),
        generation_config=None if generation is None else _plain(generation.to_diff_dict()),
        outputs=outputs.float().tolist(),
    )


def _read_config(directory: str, trust_remote_code: bool) -> tuple[dict[str, Any], list[str]]:
    import transformers

    with complaints() as heard:
        config = transformers.AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
    return _plain(config.to_dict()), heard


def _read_generation_config(directory: str) -> tuple[dict[str, Any], list[str]]:
    import transformers

    with complaints() as heard:
        config = transformers.GenerationConfig.from_pretrained(directory)
    return _plain(config.to_diff_dict()), heard


def _tied(model: Any) -> list[list[str]]:
    names = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[parameter.data_ptr()].append(name)
    return sorted(sorted(group) for group in names.values() if len(group) > 1)


def _plain(value: Any) -> Any:
    """``value`` without objects that a process without torch could not read."""
    import torch

    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return _spelled(value) if isinstance(value, torch.dtype) else value


def _spelled(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
