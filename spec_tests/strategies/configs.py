# SPDX-License-Identifier: Apache-2.0
"""Descriptions of model configs with values as trainers set them, and the plain JSON form of those values.

A value and its form are made side by side: the oracle never looks at the value that it is the answer for.
"""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from hypothesis import strategies as st

from spec_tests.builders.families import IMAGE_TOKEN
from spec_tests.builders.hf import SIZES
from spec_tests.builders.plain_models import FrozenDict

Form = Literal["plain", "nested", "nested_dict", "frozen"]
FORMS: tuple[Form, ...] = ("plain", "nested", "nested_dict", "frozen")


class Scheme(enum.Enum):
    """A setting as trainers declare them: no string itself."""

    NONE = "unquantised"
    BLOCKS = "blocks of 32"


class Level(enum.IntEnum):
    """A setting that is a number as well."""

    LOW = 1
    HIGH = 10


class Mode(str, enum.Enum):
    """A setting that is a string as well."""

    FAST = "fast"


@dataclass(frozen=True)
class Given:
    """A config value and the JSON value that stands for it on disk."""

    value: Any
    json: Any


@dataclass(frozen=True)
class ConfigSpec:
    """A config: its form, the settings it gets beyond its own, and those of its ``text_config`` in nested forms."""

    form: Form = "plain"
    extra: Mapping[str, Given] = field(default_factory=dict)
    inner: Mapping[str, Given] = field(default_factory=dict)

    def build(self) -> Any:
        """A LlamaConfig; one with ``text_config`` (a LlamaConfig, or a dict of no known type); a `FrozenDict`."""
        values = {name: given.value for name, given in self.extra.items()}
        inner = {name: given.value for name, given in self.inner.items()}
        if self.form == "frozen":
            return FrozenDict(_class_name="TinyTransformer2DModel", sample_size=8, **values)
        if self.form == "nested":
            config = transformers.LlavaConfig(image_token_index=IMAGE_TOKEN, text_config={"model_type": "llama"})
            _set(config.text_config, inner)
        else:
            config = transformers.LlamaConfig(**SIZES)
        if self.form == "nested_dict":
            values["text_config"] = inner
        # Set later, as in training: a constructor has its own ideas about some keywords.
        _set(config, values)
        return config

    def expected(self) -> dict[str, Any]:
        """The settings as config.json has to hold them, among those that the config has by itself."""
        plain = {name: given.json for name, given in self.extra.items()}
        if self.form in {"nested", "nested_dict"}:
            plain["text_config"] = {name: given.json for name, given in self.inner.items()}
        return plain

    def found_in(self, written: Mapping[str, Any]) -> dict[str, Any]:
        """That part of a written config.json which `expected` speaks of."""
        found = {name: written[name] for name in self.extra if name in written}
        if self.form in {"nested", "nested_dict"}:
            text = written.get("text_config", {})
            found["text_config"] = {name: text[name] for name in self.inner if name in text}
        return found


def same_json(first: Any, second: Any) -> bool:
    """Whether two JSON values are the same, where 1, 1.0 and true differ and NaN is itself."""
    # Not by ==: True == 1 == 1.0 there, and a NaN differs from itself.
    return json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)


def non_finite(value: float) -> Any:
    """How the installed transformers writes a float that JSON does not have."""
    if not hasattr(transformers.PretrainedConfig, "_encode_special_floats"):
        return value  # transformers 4: the words Infinity and NaN, which Python's reader takes
    return {"__float__": "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}


def deep(depth: int, innermost: Given | None = None) -> Given:
    """``innermost`` (null, if not given) within ``depth`` dicts and lists by turns."""
    inside = innermost or Given(None, None)
    value, plain = inside.value, inside.json
    for level in range(depth):
        value, plain = ([value], [plain]) if level % 2 else ({"in": value}, {"in": plain})
    return Given(value, plain)


def names() -> st.SearchStrategy[str]:
    """Names of settings that no config has by itself."""
    return st.from_regex(r"[a-z][a-z0-9_]{0,9}", fullmatch=True).map(lambda name: f"x_{name}")


def plain_values() -> st.SearchStrategy[Given]:
    """Values that JSON has."""
    texts = st.text(max_size=8) | st.sampled_from(["two\nlines", "Ωmega ☃ 𝄞", 'quote " and \\', "\x00\x7f\u2028"])
    whole = st.integers(-9, 9) | st.integers(-(2**70), 2**70)
    finite = st.floats(allow_nan=False, allow_infinity=False)
    return st.one_of(st.none(), st.booleans(), whole, finite, texts).map(lambda one: Given(one, one))


def python_values() -> st.SearchStrategy[Given]:
    """Values of Python and torch that JSON lacks, and non-finite floats."""
    dtypes = st.sampled_from(["bfloat16", "float16", "float32", "float8_e4m3fn", "uint8"])
    paths = st.sampled_from(["data/tokens", "/mnt/a b", "ünïcode/x.json"])
    return st.one_of(
        dtypes.map(lambda name: Given(getattr(torch, name), name)),
        st.sampled_from([math.inf, -math.inf, math.nan]).map(lambda one: Given(one, non_finite(one))),
        paths.map(lambda path: Given(Path(path), path)),
        st.sampled_from([*Scheme, *Level, *Mode]).map(lambda member: Given(member, member.value)),
        _sets(st.text(max_size=5)),
        # From 8 to 11 the order of numbers is not that of their digits.
        _sets(st.integers(-3, 30)),
        st.sets(dtypes, max_size=3).map(lambda kinds: Given({getattr(torch, one) for one in kinds}, sorted(kinds))),
    )


def config_values(leaves: st.SearchStrategy[Given] | None = None) -> st.SearchStrategy[Given]:
    """Values of any kind in dicts, lists and tuples, up to about six deep."""
    return st.recursive(plain_values() | python_values() if leaves is None else leaves, _containers, max_leaves=8)


def configs(
    forms: st.SearchStrategy[Form] | None = None, values: st.SearchStrategy[Given] | None = None
) -> st.SearchStrategy[ConfigSpec]:
    """Configs of every form with up to four settings outside and three inside."""
    drawn = config_values() if values is None else values
    return st.builds(
        ConfigSpec,
        form=st.sampled_from(FORMS) if forms is None else forms,
        extra=st.dictionaries(names(), drawn, max_size=4),
        inner=st.dictionaries(names(), drawn, max_size=3),
    )


def _containers(inside: st.SearchStrategy[Given]) -> st.SearchStrategy[Given]:
    # What stands under "dtype" transformers takes for a dtype at any depth, and writes 1.5 there as "5".
    keys = st.text(max_size=5).filter(lambda key: key != "dtype")
    # Labels by number, as id2label has them; one dict has keys of one type.
    numbered = st.dictionaries(st.integers(0, 12), inside, max_size=3)
    return st.one_of(
        st.lists(inside, max_size=3).map(lambda all_: Given(*_sides(all_))),
        st.lists(inside, max_size=3).map(lambda all_: Given(tuple(_sides(all_)[0]), _sides(all_)[1])),
        st.dictionaries(keys, inside, max_size=3).map(_mapping),
        numbered.map(_mapping),
        st.sampled_from(["bfloat16", "float16"]).map(lambda n: Given({"dtype": getattr(torch, n)}, {"dtype": n})),
    )


def _sides(items: list[Given]) -> tuple[list[Any], list[Any]]:
    return [one.value for one in items], [one.json for one in items]


def _mapping(items: Mapping[Any, Given]) -> Given:
    return Given({key: one.value for key, one in items.items()}, {str(key): one.json for key, one in items.items()})


def _sets(members: st.SearchStrategy[Any]) -> st.SearchStrategy[Given]:
    drawn = st.sets(members, max_size=4)
    return st.builds(lambda items, kind: Given(kind(items), sorted(items)), drawn, st.sampled_from([set, frozenset]))


def _set(config: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        setattr(config, name, value)
