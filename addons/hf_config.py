# SPDX-License-Identifier: Apache-2.0
"""The contents of ``config.json`` and ``generation_config.json``: of the live model, or of the original one.

Everything is worked out on a copy: a save that edited the live config would do so on rank 0 only (clause HOOK-009).
"""

from __future__ import annotations

import copy
import json
import math
import os
import re
import warnings
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import nn

from .modules import ModelPart, class_name, sharded_kind
from .plain_json import json_safe, read_json

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
V5_NAMES = {CONFIG: "config.v5.json", GENERATION_CONFIG: "generation_config.v5.json"}

_QUANTISATION_KEYS = ("quantization_config", "compression_config")
# Eight bits or fewer an element, whatever the number format: nobody trains or saves plain weights in these.
_QUANTISED = re.compile(r"torch\.(u?int[1-8]|q.+|bits.+|float[48]_.+)")
# Wider integers are weights where the config's own method packs into them, and counters or indices elsewhere.
_PACKED = {
    torch.int16: ("aqlm", "awq", "gptq", "higgs", "vptq"),
    torch.int32: ("auto-round", "awq", "compressed-tensors", "gptq", "hqq", "quark", "sinq", "spqr", "vptq"),
    torch.uint32: ("metal",),
}
# What decides which tensors a model has, and their shapes, under the names that families give it.
_SHAPES = re.compile(
    r"architectures|id2label|head_dim|d_\w+|\w*(vocab|hidden|intermediate)_size|n(um)?_\w*(layers?|heads?|experts|embd|inner)"
)
# The lists of layers of most families: model.layers, transformer.h, bert.encoder.layer.
_LAYER = re.compile(r"(?P<list>(?:[^.\d][^.]*\.)*?(?:layers|layer|h|blocks|block))\.(?P<number>\d+)\.")
_OTHER_TOWER = re.compile("audio|image|vision|visual")
TRANSFORMERS_5 = int(transformers.__version__.partition(".")[0]) >= 5


def holds_quantised(parts: Iterable[ModelPart]) -> bool:
    """Whether a parameter or persistent buffer of this rank's parts is quantised (clauses CFG-005, CFG-015)."""
    for part in parts:
        inside = _with_inner(getattr(part.model, "config", None))
        methods = [entries.get("quant_method") for _, entries in inside]
        for dtype in {tensor.dtype for _, tensor in part.tensors()}:
            if _QUANTISED.fullmatch(str(dtype)) or any(method in _PACKED.get(dtype, ()) for method in methods):
                return True
    return False


def floating_dtypes(parts: Iterable[ModelPart]) -> Counter[str]:
    """Floating-point dtype (as configs spell it) -> number of elements, over the parts' saved tensors.

    Those of quantised tensors do not count: nothing can be computed in them (clause CFG-020).
    """
    found: Counter[str] = Counter()
    for part in parts:
        for _, tensor in part.tensors():
            if tensor.is_floating_point() and not _QUANTISED.fullmatch(str(tensor.dtype)):
                found[short_name(tensor.dtype)] += tensor.numel()
    return found


def config_content(
    model: nn.Module, dtype: str | None, quantised: bool, tied: bool | None = None
) -> dict[str, Any] | None:
    """The model's config as the content of ``config.json`` (clause CFG-001); None when it has none (clause CFG-013).

    All of it is written, defaults too (clause CFG-021), and of a dict-like config the items (clause CFG-012);
    ``architectures`` and ``model_type`` come from the classes where the config lacks them (clause CFG-002).

    Args:
        model: the model or its first part, free of wrappers.
        dtype: dtype of the saved weights as configs spell it; None leaves what the config says.
        quantised: whether saved tensors are quantised; if not, no quantisation settings are written (clause CFG-003).
        tied: whether embedding and head are saved as one tensor; None where the model does not have both.

    Raises:
        TypeError: a value has no JSON form; the message names it.
    """
    config = getattr(model, "config", None)
    if config is None:
        return None
    if not isinstance(config, Mapping):
        config = copy.deepcopy(config)
        if not quantised:
            # Before serialising: transformers 4 fails on a quantization_config that is None.
            strip_quantisation(config)
    content = _cleaned(json_safe(config, "config", short_name, _tagged), quantised)
    if not isinstance(config, Mapping):
        # The config of a model with a new head still names the old class (clause CFG-018).
        if isinstance(model, transformers.PreTrainedModel) or not content.get("architectures"):
            content["architectures"] = [class_name(model)]
        content.setdefault("model_type", getattr(config, "model_type", ""))
        if tied is not None:
            content.setdefault("tie_word_embeddings", tied)
    return with_tensors(content, dtype, tied)


def generation_content(model: nn.Module) -> dict[str, Any] | None:
    """The model's generation config as the content of its file (clause GEN-001); None without one (clause GEN-004).

    The settings are written as they are: ``save_pretrained`` refuses some that models are published with (clause
    GEN-002).
    """
    config = getattr(model, "generation_config", None)
    if config is None:
        return None
    return cast("dict[str, Any]", json.loads(config.to_json_string()))


def config_exists(original_model_path: str | os.PathLike[str] | None, name: str) -> bool:
    """Whether that file is in that local directory; False for None and for a hub id (clause CFG-010)."""
    return original_model_path is not None and (Path(original_model_path) / name).is_file()


def original_content(
    original_model_path: str, name: str, live: dict[str, Any], dtype: str | None, tied: bool | None = None
) -> dict[str, Any]:
    """A file of the original model, with the quantisation settings of the ``live`` content (clause CFG-016)."""
    content = read_json(Path(original_model_path) / name)
    return with_tensors(_quantised_as(_cleaned(content, quantised=False), live), dtype, tied)


def check_shapes(config: Any, original: dict[str, Any], live: dict[str, Any]) -> None:
    """Compare the original's settings with the live ones, as far as tensors depend on them (clause CFG-017).

    Raises:
        ValueError: one differs; the message has both values.
    """
    # As the class of the live config reads them: what it has renamed since, or fills in, is no difference.
    read = getattr(config, "from_dict", dict)(copy.deepcopy(original))
    said = _shapes(json_safe(read, "config", short_name, _tagged))
    for name, value in _shapes(live).items():
        if said.get(name, value) != value:
            raise ValueError(
                f"{name} must be {value!r}, as the model that is saved has it, in the original model's {CONFIG}, which "
                f"v4_compatible=True writes, got {said[name]!r}: correct the original, or save without v4_compatible"
            )


def check_layers(model: nn.Module, content: Mapping[str, Any], names: Iterable[str]) -> None:
    """Compare the number of layers that a config counts with the tensors that are saved (clause IDX-010).

    Args:
        model: the model or its first part, free of wrappers.
        content: of ``config.json``.
        names: of all tensors. Layers are looked for under the usual names of their lists; other models pass.

    Raises:
        ValueError: a layer that ``num_hidden_layers``, or what the family has in its place, counts is not there.
    """
    lists = _lists(names)
    words = getattr(getattr(model, "config", None), "attribute_map", None) or {}  # GPT-2: n_layer
    called = words.get("num_hidden_layers", "num_hidden_layers")
    for config in (content, content.get("text_config")):
        count: Any = config.get(called, config.get("num_hidden_layers")) if isinstance(config, Mapping) else None
        short = _short(lists, count) if isinstance(count, int) else {}
        if not short or len(lists) - len(short) >= _whole_lists(model, count):
            continue
        name, found = max(short.items(), key=lambda item: (len(item[1]), item[0]))
        raise ValueError(
            f"the model must hold every layer that its config counts (num_hidden_layers, here {called}), got no layer "
            f"{min(set(range(count)) - found)} in {name!r}: pass all parts of the model, or correct the config"
        )


def check_end(files: Mapping[str, Mapping[str, Any]], tokenizer: Any) -> None:
    """Warn where generation would not stop at the token that ends a text for the tokenizer (clause GEN-005)."""
    end = getattr(tokenizer, "eos_token_id", None)
    said = files.get(GENERATION_CONFIG, {}).get("eos_token_id")
    if end is not None and said is not None and end not in (said if isinstance(said, list) else [said]):
        warnings.warn(
            f"eos_token_id of the generation config must hold the tokenizer's {end}, got {said!r}: a model that was "
            "trained to end with it never stops",
            stacklevel=2,
        )


def _lists(names: Iterable[str]) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for name in names:
        if (match := _LAYER.match(name)) and not _OTHER_TOWER.search(match["list"]):
            found.setdefault(match["list"], set()).add(int(match["number"]))
    return found


def _short(lists: Mapping[str, set[int]], count: int) -> dict[str, set[int]]:
    return {name: found for name, found in lists.items() if not found.issuperset(range(count))}


def _whole_lists(model: nn.Module, count: int) -> int:
    # Some families count otherwise, or have a second list: what a new model of the class has decides.
    if not isinstance(model, transformers.PreTrainedModel):
        return 1
    plain: Any = next(base for base in type(model).__mro__ if not issubclass(base, sharded_kind()))
    with torch.device("meta"):
        lists = _lists(name for name, _ in plain(model.config).named_parameters())
    return len(lists) - len(_short(lists, count))


def _shapes(content: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in content.items():
        if _SHAPES.fullmatch(key) and value is not None:
            found[where + key] = len(value) if key == "id2label" else value
        elif isinstance(value, Mapping):
            found |= _shapes(value, f"{where}{key}.")
    return found


def _quantised_as(content: dict[str, Any], live: Any) -> dict[str, Any]:
    if not isinstance(live, Mapping):
        return content
    inner = {key: _quantised_as(value, live.get(key)) for key, value in content.items() if isinstance(value, dict)}
    return {**content, **inner, **{key: live[key] for key in _QUANTISATION_KEYS if key in live}}


def _cleaned(content: dict[str, Any], quantised: bool) -> dict[str, Any]:
    # At any depth: readers fall back to the quantisation of a sub-config. _name_or_path is a path of the machine that
    # trained, means nothing elsewhere, and is absent in what transformers itself saves (clauses CFG-014, CFG-019).
    dropped = ("_name_or_path",) if quantised else ("_name_or_path", *_QUANTISATION_KEYS)
    return {
        key: _cleaned(value, quantised) if isinstance(value, dict) else value
        for key, value in content.items()
        if key not in dropped
    }


def with_tensors(content: dict[str, Any], dtype: str | None, tied: bool | None) -> dict[str, Any]:
    """``content`` as the saved tensors are.

    Args:
        content: of a config.
        dtype: in place of the one it names (``dtype``, or ``torch_dtype`` as of old; clause CFG-007); None leaves that.
        tied: in place of every ``tie_word_embeddings`` of the model and its text model; None leaves those.
    """
    found = {key: dtype or value if key in ("dtype", "torch_dtype") else value for key, value in content.items()}
    return found if tied is None else _with_tied(found, tied)


def _with_tied(content: dict[str, Any], tied: bool, words: bool = True) -> dict[str, Any]:
    # Transformers 4 writes the setting for vision models as well, which have no words.
    dicts = {key: value for key, value in content.items() if isinstance(value, dict)}
    inner = {key: _with_tied(value, tied, "vocab_size" in value) for key, value in dicts.items()}
    own = {"tie_word_embeddings": tied} if words and "tie_word_embeddings" in content else {}
    return {**content, **inner, **own}


def short_name(dtype: torch.dtype) -> str:
    """A dtype as configs spell it: ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


def strip_quantisation(config: Any) -> None:
    """Remove quantisation settings at any depth, from configs of transformers and dict-like ones, frozen or not."""
    for one, _ in _with_inner(config):
        for key in _QUANTISATION_KEYS:
            # A frozen dict refuses its own methods; its attributes mirror its keys.
            getattr(one, "__dict__", {}).pop(key, None)
            if not isinstance(one, MutableMapping) or key not in one:
                continue
            if isinstance(one, OrderedDict):
                OrderedDict.__delitem__(one, key)  # not `pop`: Python 3.10 then asks the frozen dict itself
            else:
                del one[key]


def _with_inner(config: Any) -> Iterator[tuple[Any, dict[Any, Any]]]:
    # The config and the configs and dicts in it, each with its entries: a dict may have attributes too.
    entries = {**getattr(config, "__dict__", {}), **(config if isinstance(config, Mapping) else {})}
    yield config, entries
    for value in entries.values():
        if isinstance(value, Mapping) or hasattr(value, "to_dict"):
            yield from _with_inner(value)


def _tagged(value: float, _where: str) -> Any:
    """An infinite float or NaN as the installed transformers writes and reads it."""
    if not TRANSFORMERS_5:
        return value
    return {"__float__": "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
