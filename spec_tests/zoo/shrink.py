# SPDX-License-Identifier: Apache-2.0
"""Tiny configurations: the defaults of a family, made small by rules on the names and the types of their attributes.

The default configuration is written to a dictionary, each number in it is replaced by what ``rules`` say for its name,
and the configuration class reads the dictionary back. What a family needs beyond that is in ``overrides``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from spec_tests.zoo import rules
from spec_tests.zoo.overrides import DROP, OVERRIDES
from spec_tests.zoo.rules import FEW, HEAD_DIM, HIDDEN, IMAGE, VOCAB, WIDE_HEAD_DIM

_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
# State space models: how many times wider than the model they are, and into how many heads of which size that is cut.
_STATES = (
    ("mamba_expand", "mamba_n_heads", "mamba_d_head"),
    ("mamba_expand", "n_mamba_heads", "mamba_headdim"),
    ("expand", "num_heads", "head_dim"),
)
# What a configuration class works out for itself.
_STALE = ("stage_names", "transformers_version", "architectures", "torch_dtype", "dtype")


class _Shrinker:
    """One configuration being made tiny: remembers which large token ids it has seen."""

    def __init__(self) -> None:
        self.ids: dict[int, int] = {}

    def token(self, value: Any) -> Any:
        """A special token: below the vocabulary's size, and still another one than the other special tokens."""
        if isinstance(value, list):
            return [self.token(item) for item in value]
        if not isinstance(value, int) or value < FEW * 8:
            return value
        return self.ids.setdefault(value, VOCAB - 2 - len(self.ids) % 60)

    def config(self, given: dict[str, Any]) -> dict[str, Any]:
        """The dictionary of one configuration, with those that are inside it."""
        layers, chosen = _choose_layers(given)
        widths = _widths(given)
        tiny: dict[str, Any] = {}
        for name, value in given.items():
            if isinstance(value, dict):
                tiny[name] = self.inner(name, value, given, chosen)
            elif isinstance(value, list) and layers and rules.INDICES.fullmatch(name):
                tiny[name] = _places(value, layers, len(chosen) or _depth(given), least=int(name == "out_indices"))
            elif isinstance(value, list) and chosen and len(value) == layers:
                tiny[name] = [self.value(name, value[place]) for place in chosen]
            elif isinstance(value, int) and name in _LAYERS:
                tiny[name] = min(value, len(chosen) or _depth(given))
            elif isinstance(value, int) and value in widths and rules.number(name, HIDDEN * 3) == HIDDEN:
                tiny[name] = rules.stage(value)
            else:
                tiny[name] = self.value(name, value)
        return _consistent(given, tiny)

    def inner(self, name: str, value: dict[str, Any], given: Mapping[str, Any], chosen: list[int]) -> dict[Any, Any]:
        """A dictionary inside a configuration: another configuration, or settings of positions, layers or labels."""
        if name == "per_layer_config":
            own = {int(place): settings for place, settings in value.items()}
            return {new: self.config(own[old]) for new, old in enumerate(chosen) if old in own}
        if "rope" in name:
            return _rope(value, given)
        if name in {"id2label", "label2id", "task_specific_params"} or not all(isinstance(key, str) for key in value):
            return value
        return self.config(value)

    def value(self, name: str, value: Any) -> Any:
        """One attribute that is no dictionary."""
        if isinstance(value, float) and rules.DROPPED_OUT.fullmatch(name):
            return 0.0
        if isinstance(value, bool) or not isinstance(value, (int, list)):
            return value
        if rules.IDS.fullmatch(name):
            return self.token(value)
        if isinstance(value, list):
            kept = rules.KEPT.fullmatch(name) and not name.endswith("channels")
            return value if kept else rules.items(name, value)
        return value if rules.KEPT.fullmatch(name) or value <= 0 else rules.number(name, value)


def _widths(given: Mapping[str, Any]) -> set[int]:
    """The widths of the stages of a model: a single width that is one of them shrinks as they do."""
    lists = [value for name, value in given.items() if isinstance(value, list) and rules.WIDTHS.fullmatch(name)]
    return {item for value in lists for item in value if isinstance(item, int) and item > HEAD_DIM}


def _choose_layers(given: Mapping[str, Any]) -> tuple[int, list[int]]:
    """The number of layers, and which of them keep a layer of each kind (none where layers are all of one kind)."""
    if isinstance(given.get("depths"), list):
        return 0, []
    layers = next((given[name] for name in (*_LAYERS, "depth") if isinstance(given.get(name), int)), 0)
    kinds = [
        value
        for name, value in given.items()
        if isinstance(value, list) and len(value) == layers > 2 and not isinstance(value[0], list)
        if not rules.INDICES.fullmatch(name)
    ]
    if not kinds:
        return layers, []
    seen: list[set[Any]] = [set() for _ in kinds]
    chosen: list[int] = []
    for place in range(layers):
        fresh = [value[place] not in known for value, known in zip(kinds, seen, strict=True)]
        if any(fresh) and len(chosen) < FEW:
            chosen.append(place)
            for value, known in zip(kinds, seen, strict=True):
                known.add(value[place])
    spare = [place for place in range(layers) if place not in chosen]
    return layers, sorted(chosen + spare[: max(0, 2 - len(chosen))])


def _depth(given: Mapping[str, Any]) -> int:
    """How many layers to keep where they are all of one kind: more where several of them are taken out."""
    taken = [len(value) for name, value in given.items() if isinstance(value, list) and rules.INDICES.fullmatch(name)]
    return min(max([2, *taken]), FEW)


def _places(value: list[Any], layers: int, kept: int, *, least: int) -> list[Any]:
    """Numbers of layers, moved to where those layers are among the fewer."""
    if not all(isinstance(item, int) for item in value):
        return value
    high = max([layers, *value]) or 1
    return sorted({max(least, kept * item // high) if item >= 0 else max(item, -kept) for item in value})


def _free_heads(given: Mapping[str, Any]) -> bool:
    """Whether this is a language model whose heads need not be as wide, together, as the model."""
    own = "num_key_value_heads" in given and given.get("head_dim") and given.get("vocab_size")
    return bool(own) and not given.get("qk_rope_head_dim") and not ("expand" in given and "num_heads" in given)


def _rope(value: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of rotary positions: sections of the head sum up to half of the tiny head."""
    tiny = copy.deepcopy(value)
    for name, item in value.items():
        if isinstance(item, dict):
            tiny[name] = _rope(item, given)
        elif name == "rope_theta":
            tiny[name] = item or 10000.0
        elif name.startswith("mrope_section") and isinstance(item, list):
            share = value.get("partial_rotary_factor", given.get("partial_rotary_factor")) or 1.0
            half = int((WIDE_HEAD_DIM if _free_heads(given) else HEAD_DIM) * share) // 2
            sizes = [max(1, size * half // sum(item)) for size in item]
            tiny[name] = [half - sum(sizes[1:]), *sizes[1:]]
    return tiny


def _consistent(given: Mapping[str, Any], tiny: dict[str, Any]) -> dict[str, Any]:
    """Attributes that follow from others."""
    if given.get("head_dim") and given.get("qk_rope_head_dim"):
        same = [name for name in ("qk_rope_head_dim", "qk_head_dim") if given.get(name) == given["head_dim"]]
        tiny["head_dim"] = tiny[same[0]] if same else tiny["head_dim"]
    if _free_heads(given):
        tiny["head_dim"] = WIDE_HEAD_DIM
    if given.get("kv_lora_rank") and given.get("num_attention_heads") == given.get("num_key_value_heads"):
        tiny["num_key_value_heads"] = tiny["num_attention_heads"]
    for expand, count, size in _STATES:
        if all(isinstance(tiny.get(name), int) for name in (expand, count, size, "hidden_size")):
            tiny[count] = tiny[expand] * tiny["hidden_size"] // tiny[size]
    if isinstance(given.get("depths"), list) and given.get("patch_size") in (2, 4) and tiny.get("image_size") == IMAGE:
        tiny["image_size"] = 2 * IMAGE  # so that the last of several stages is still larger than a window
    if {"vocab_size", "text_config"} & set(tiny):
        tiny.setdefault("pad_token_id", None)  # some releases have models that ask for it and configurations without it
    stale = (*_STALE, "out_features") if "out_indices" in tiny else _STALE
    return {name: value for name, value in tiny.items() if not name.startswith("_") and name not in stale}


def _put(tiny: dict[str, Any], path: str, value: Any) -> None:
    """Set one attribute by its path through the configurations inside this one."""
    *parents, name = path.split(".")
    place = tiny
    for step in parents:
        old = step == "rope_parameters" and "rope_scaling" in place and step not in place  # before transformers 5
        parent = "rope_scaling" if old else step
        if not isinstance(place.get(parent), dict):
            place[parent] = {"rope_type": "default"} if old else {}
        place = place[parent]
    if value == DROP:
        place.pop(name, None)
    else:
        place[name] = copy.deepcopy(value)


def tiny_config(family: str | type[PretrainedConfig]) -> PretrainedConfig:
    """The family's configuration at its smallest, from its name or from its configuration class."""
    config_class = CONFIG_MAPPING[family] if isinstance(family, str) else family
    name = family if isinstance(family, str) else family.model_type
    tiny = _Shrinker().config(config_class().to_dict())
    for path, value in OVERRIDES.get(name, {}).items():
        _put(tiny, path, value)
    return config_class.from_dict(tiny)
