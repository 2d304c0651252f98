# SPDX-License-Identifier: Apache-2.0
"""What travels beside the weights: JSON files, the tokenizer, and the Python files that belong to the model."""

from __future__ import annotations

import inspect
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from .compat_guards import guarded
from .files import write_bytes, write_text
from .plain_json import json_text

# A directory that holds one of these is a checkpoint or an environment of its own, not a part of the model's code.
_FOREIGN = frozenset({"config.json", "adapter_config.json", "pyvenv.cfg"})


TOKENIZER_FILES = (
    "added_tokens.json",
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


def write_metadata(
    directory: Path,
    files: Mapping[str, Mapping[str, Any]],
    model: nn.Module,
    tokenizer: Any,
    original_model_path: str | None,
    v4_compatible: bool,
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
    """
    save_model_code(original_model_path, directory, model)
    save_tokenizer(tokenizer, directory, v4_compatible)
    for path in sorted(directory.glob("*config*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
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
        foreign = here != folder and not _FOREIGN.isdisjoint(files)
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
    """Save the tokenizer (clause TOK-001), if there is one (clause TOK-002).

    It is whatever has ``save_pretrained``, and may write any files below the directory (clause TOK-004).
    With ``v4_compatible`` the settings are spelled as versions 4 and 5 of transformers both read them (clause TOK-005).
    """
    if tokenizer is None:
        return
    tokenizer.save_pretrained(str(directory))
    path = directory / "tokenizer_config.json"
    if v4_compatible and path.is_file():
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("tokenizer_class") == "TokenizersBackend":
            content["tokenizer_class"] = "PreTrainedTokenizerFast"
        if isinstance(content.get("extra_special_tokens"), list):
            content["additional_special_tokens"] = content.pop("extra_special_tokens")
        write_text(path, json_text(content))


def replaced_tokenizer(directory: Path) -> tuple[str, ...]:
    """The names that the tokenizer in ``directory`` replaces where it is published.

    Without one nothing is replaced: the files that are there may have been put there by somebody else.
    """
    return TOKENIZER_FILES if any((directory / name).exists() for name in TOKENIZER_FILES) else ()
