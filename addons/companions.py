# SPDX-License-Identifier: Apache-2.0
"""What travels beside the weights: JSON files, the tokenizer, and the Python files that belong to the model."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import transformers
from torch import nn

from .compat_guards import guarded
from .files import write_bytes, write_text
from .plain_json import json_text, read_json

# A directory that holds one of these is a checkpoint or an environment of its own, not a part of the model's code.
_FOREIGN = frozenset({"config.json", "adapter_config.json", "pyvenv.cfg", "conda-meta"})


TOKENIZER_FILES = (
    "added_tokens.json",
    "additional_chat_templates/*.jinja",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
"""What tokenizers of transformers write. Another tokenizer's left over beside the new one would be read with it."""

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
"""What processors write besides, likewise."""

_CLASS_KEYS = ("feature_extractor_type", "image_processor_type", "processor_class", "tokenizer_class")
_PARTS = ("feature_extractor", "image_processor", "video_processor")
"""Attributes of a processor, besides its tokenizer, which is saved in files of its own."""


def write_metadata(
    directory: Path,
    files: Mapping[str, Mapping[str, Any]],
    model: nn.Module,
    tokenizer: Any,
    original_model_path: str | None,
    v4_compatible: bool,
    *,
    code: bool = True,
) -> None:
    """Write everything but the weights, on one rank alone (clause TOK-003).

    The code comes first: what refers to it is made local where it is there (clause CODE-005).

    Args:
        directory: an empty one.
        files: name -> content of the JSON files.
        model: whose code travels along.
        tokenizer: as of `save_tokenizer`.
        original_model_path: directory of the base model, for its code.
        v4_compatible: as of `save_tokenizer`.
        code: whether code travels along at all.
    """
    if code:
        save_model_code(original_model_path, directory, model)
    save_tokenizer(tokenizer, directory, v4_compatible)
    for path in sorted(directory.glob("*config*.json")):
        content: Mapping[str, Any] = read_json(path)
        if (local := with_local_references(content, directory)) != content:
            write_text(path, json_text(local))
    for name, content in sorted(files.items()):
        write_text(directory / name, json_text(with_local_references(content, directory)))


def save_model_code(
    original_model_path: str | os.PathLike[str] | None, directory: Path, model: nn.Module | None
) -> None:
    """Copy the original model's own ``.py`` files, keeping their directory structure (clauses CODE-001 to CODE-004).

    Where that gives none (None, a hub id), the code that transformers took from the hub for ``model`` is copied (clause
    CODE-008); none at all for a model that is exported as one of transformers' own (clause CODE-009).
    """
    if getattr(model, "_export_as_stock_model", False):
        return
    source = Path(original_model_path or os.devnull)
    if source.suffix == ".py" and source.is_file():
        source, found = source.parent, [source]
    else:
        found = sorted(own_code(source, directory))
    if not found and (taken := hub_folder(model)):
        # transformers makes packages of the folders, by empty files; the hub's own it does not fetch.
        source, found = taken, [path for path in sorted(own_code(taken, directory)) if path.stem != "__init__"]
    for path in found:
        copy_guarded(path, directory / path.relative_to(source))


def copy_guarded(source: Path, target: Path) -> None:
    """Copy the content, guarded against what newer transformers lacks, and not the mode.

    A copy of a read-only file that is read-only too could not be replaced by the next save.
    """
    write_bytes(target, guarded(source.read_bytes()))


def hub_folder(model: nn.Module | None) -> Path | None:
    """The folder in transformers' cache of remote code that holds the model's class; None for any other class."""
    # A base: FSDP2 puts a class of its own in front.
    bases = (base for base in type(model).__mro__ if base.__module__.startswith("transformers_modules."))
    return next((Path(inspect.getfile(base)).parent for base in bases), None)


def own_code(folder: Path, destination: Path) -> Iterator[Path]:
    """The ``.py`` files of a model's folder, without hidden ones, caches and earlier checkpoints below it."""
    for directory, inner, files in os.walk(folder):
        here = Path(directory)
        foreign = here != folder and not _FOREIGN.isdisjoint([*files, *inner])
        if foreign or here.resolve() == destination.resolve():
            inner.clear()
            continue
        inner[:] = [name for name in inner if not name.startswith(".") and name != "__pycache__"]
        for name in files:
            path = here / name
            if name.endswith(".py") and not name.startswith(".") and _belongs(path, folder):
                yield path


def _belongs(path: Path, folder: Path) -> bool:
    # A link may point anywhere on the machine, and a copy would publish what is there. The hub's cache is known:
    # its snapshots/<revision>/ folders are links into blobs/ beside them.
    if not path.is_file():  # also false for a link to nothing, or to itself, which cannot be resolved
        return False
    target, home = path.resolve(), folder.resolve()
    return home in target.parents or target.parent == home.parent.parent / "blobs"


def with_local_references(content: Mapping[str, Any], directory: Path) -> Mapping[str, Any]:
    """``content`` with ``org/repo--module.Class`` in its ``auto_map`` as ``module.Class`` where the code is there.

    The hub may be out of reach where the checkpoint is read, or hold other code by then (clause CODE-006).
    Local code that is not there may be transformers' own: a warning names it, and it is no error (clause CODE-007).
    """
    return {**content, "auto_map": _local(content["auto_map"], directory)} if "auto_map" in content else content


def _local(value: Any, directory: Path) -> Any:
    if isinstance(value, dict):
        return {key: _local(item, directory) for key, item in value.items()}
    if isinstance(value, list):
        return [_local(item, directory) for item in value]
    if not isinstance(value, str):
        return value
    from transformers.dynamic_module_utils import get_relative_import_files

    reference = value.rpartition("--")[2]
    try:
        # As transformers will: with all that the module imports from beside it.
        get_relative_import_files(directory / f"{reference.partition('.')[0]}.py")
    except (OSError, UnicodeError) as error:
        if reference == value:
            warnings.warn(f"auto_map names {value}, which this checkpoint does not hold: {error}", stacklevel=2)
        return value
    return reference


def save_tokenizer(tokenizer: Any, directory: Path, v4_compatible: bool) -> None:
    """Save the tokenizer or processor (clause TOK-001), if there is one (clause TOK-002).

    It is whatever has ``save_pretrained``, and may write any files below the directory (clause TOK-004).
    With ``v4_compatible`` versions 4 and 5 of transformers both read them (clauses TOK-005, TOK-007).
    """
    if tokenizer is None:
        return
    if v4_compatible:
        # transformers 5 writes all of a processor into one file; version 4 looks for a file for each part.
        for name in _PARTS:
            part: Any = getattr(tokenizer, name, None)
            if hasattr(part, "save_pretrained"):
                part.save_pretrained(str(directory))
    tokenizer.save_pretrained(str(directory))
    classes = _public_classes(tokenizer)
    for path in sorted(directory.glob("*config.json")):
        content = read_json(path)
        changed = _with_classes(content, classes)
        if path.name == "tokenizer_config.json" and (v4_compatible or "additional_special_tokens" in changed):
            changed = _as_version_4_reads(changed)
        if changed != content:
            write_text(path, json_text(changed))


def replaced_tokenizer(directory: Path) -> tuple[str, ...]:
    """The names that the tokenizer or processor in ``directory`` replaces where it is published (clause TOK-006).

    Without one nothing is replaced: the files that are there may have been put there by somebody else.
    """
    return tuple(
        name
        for names in (TOKENIZER_FILES, PROCESSOR_FILES)
        if any(any(directory.glob(pattern)) for pattern in names)
        for name in names
    )


def _as_version_4_reads(content: dict[str, Any]) -> dict[str, Any]:
    content = dict(content)
    if content.get("tokenizer_class") == "TokenizersBackend":
        content["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(content.get("extra_special_tokens"), list):
        both = [*(content.get("additional_special_tokens") or []), *content.pop("extra_special_tokens")]
        # Under both names version 5 drops the one without a word (huggingface/transformers#47838; clause TOK-008).
        content["additional_special_tokens"] = [one for at, one in enumerate(both) if one not in both[:at]]
    return content


def _public_classes(tokenizer: Any) -> dict[str, str]:
    """Class name -> the name of the first class of transformers among it and its bases, or its own if there is none.

    Wrappers of trainers save under names that no reader can import (clause TOK-009).
    """
    found = {}
    for one in (tokenizer, *(getattr(tokenizer, name, None) for name in ("tokenizer", *_PARTS))):
        names = [base.__name__ for base in type(one).__mro__]
        found[names[0]] = next(filter(_is_saved_by, names), names[0])
    return found


def _is_saved_by(name: str) -> bool:
    # Not hasattr: it raises ImportError where transformers lacks what its class of that name needs.
    return "save_pretrained" in dir(getattr(transformers, name, None))


def _with_classes(content: dict[str, Any], classes: Mapping[str, str]) -> dict[str, Any]:
    if "auto_map" in content:
        return content  # its code travels
    return {
        key: _with_classes(value, classes)
        if isinstance(value, dict)
        else classes.get(value, value)
        if key in _CLASS_KEYS and isinstance(value, str)
        else value
        for key, value in content.items()
    }
