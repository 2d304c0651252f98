# SPDX-License-Identifier: Apache-2.0
"""Python values in the types that JSON has, and the text of a checkpoint's JSON files."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import numbers
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch


def json_text(content: Mapping[str, Any]) -> str:
    """``content`` as the JSON text of a checkpoint file: sorted keys, two spaces, final newline (clause HOOK-010).

    As `json.dumps` with these settings, but for long lists of text at the speed of its encoder in C.
    """
    return _text(content, "\n") + "\n"


def _text(value: Any, line: str) -> str:
    inner = f"{line}  "
    if isinstance(value, dict) and value:
        # Escaped to ASCII, as transformers does: a lone surrogate in a string could not be written otherwise.
        items = (f"{json.dumps(key)}: {_text(value[key], inner)}" for key in sorted(value))
        return f"{{{inner}{f',{inner}'.join(items)}{line}}}"
    if isinstance(value, (list, tuple)) and value:
        if set(map(type, value)) == {str}:
            return f"[{inner}{json.dumps(value, separators=(f',{inner}', ': '))[1:-1]}{line}]"
        return f"[{inner}{f',{inner}'.join(_text(item, inner) for item in value)}{line}]"
    return json.dumps(value)


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file, with or without a byte order mark (clause CFG-023).

    Raises:
        ValueError: it is no JSON object; the message names the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} must be JSON in UTF-8, got {error}: correct it") from error
    if not isinstance(content, dict):
        raise ValueError(  # noqa: TRY004 - as for a file that is no JSON
            f"{path} must hold a JSON object, got {type(content).__name__}: correct it"
        )
    return content


def no_form(value: float, where: str) -> Any:
    """What `json_safe` makes of an infinite float or NaN by default: an error, since JSON has no such number."""
    raise TypeError(f"{where} must be a finite number, which JSON has, got {value!r}: change or remove it")


def json_safe(
    value: Any,
    where: str,
    dtype_name: Callable[[torch.dtype], str] = str,
    non_finite: Callable[[float, str], Any] = no_form,
) -> Any:
    """``value`` in types that JSON has; ``where`` names it in an error.

    dtypes become what ``dtype_name`` says (clause META-002); paths strings, enums their value, sets sorted lists, and
    dataclasses and objects with ``to_dict`` dicts (clause META-005).

    Raises:
        TypeError: there is no plain form for it (clauses META-004, CFG-006).
    """

    def inside(item: Any, key: object) -> Any:
        return json_safe(item, f"{where}[{key!r}]", dtype_name, non_finite)

    if isinstance(value, torch.dtype):
        return dtype_name(value)
    value = _plain(value)
    if isinstance(value, Mapping):
        content = {str(key): inside(item, key) for key, item in value.items()}
        if len(content) < len(value):
            raise TypeError(f"{where} must have keys that differ as text, got {sorted(map(repr, value))}: rename one")
        return content
    if isinstance(value, (set, frozenset)):
        return _ordered([inside(item, item) for item in value])
    if isinstance(value, (list, tuple)):
        return [inside(item, index) for index, item in enumerate(value)]
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Real):
        number = int(value) if isinstance(value, numbers.Integral) else float(value)
        return number if math.isfinite(number) else non_finite(number, where)
    raise TypeError(
        f"{where} must be a value that JSON has, got {value!r} of type {type(value).__name__}: change or remove it"
    )


def _ordered(items: list[Any]) -> list[Any]:
    try:
        return sorted(items)
    except TypeError:  # no common order: text and numbers, say
        return sorted(items, key=json.dumps)


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, type):
        return value
    if callable(getattr(value, "to_dict", None)):
        return value.to_dict()
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return value
