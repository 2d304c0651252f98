# SPDX-License-Identifier: Apache-2.0
"""`ConsolidatedHFAddon`: what it takes, what its ranks agree on, and what it writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from .companions import replaced_tokenizer, write_metadata
from .files import write_bytes, write_text
from .hf_config import (
    CONFIG,
    GENERATION_CONFIG,
    TRANSFORMERS_5,
    V5_NAMES,
    check_end,
    check_layers,
    check_shapes,
    config_content,
    config_exists,
    floating_dtypes,
    generation_content,
    holds_quantised,
    original_content,
    short_name,
)
from .hf_names import check_original_names
from .hooks import check_alike, checked, form_asked_of, process_group
from .model_state import embedding_tensors
from .modules import ModelPart, model_parts, unwrapped
from .plain_json import json_text
from .publishing import publish
from .ranks import agree, everywhere, is_member, on_rank_zero
from .staging import staging

INDEX_MAPPING = "fqn_to_file_index_mapping.json"
DTYPE_MAPPING = "fqn_to_dtype_mapping.json"
OWNED = (*V5_NAMES, *V5_NAMES.values())
INTERNAL = (INDEX_MAPPING, DTYPE_MAPPING)
Views = Sequence[tuple[Sequence[int], "ModelView"]]
"""The distinct views, each with the ranks that have it."""


@dataclass(frozen=True)
class MetadataSave:
    """The keywords of `ConsolidatedHFAddon.pre_save`, checked."""

    hf_metadata_dir: Path
    model_state: Any
    tokenizer: Any
    original_model_path: str | None
    v4_compatible: bool
    dtype: torch.dtype | None
    fqn_to_file_index_mapping: dict[str, int] | None
    fqn_to_dtype_mapping: dict[str, str] | None


@dataclass(frozen=True)
class MetadataCopy:
    """The keywords of `ConsolidatedHFAddon.post_save`, checked."""

    hf_metadata_dir: Path
    consolidated_path: Path | None


@dataclass(frozen=True)
class ModelView:
    """What one rank says of the model.

    Attributes:
        quantised: whether its parts hold quantised tensors.
        dtypes: (floating-point dtype, elements) of its parts.
        embeddings: what its parts save of embedding and head, sorted.
        settings: what has to be the same on all ranks, by name.
    """

    quantised: bool
    dtypes: tuple[tuple[str, int], ...]
    embeddings: tuple[str, ...]
    settings: tuple[tuple[str, Any], ...]


class ConsolidatedHFAddon:
    """Writes what makes a directory with consolidated weights a Hugging Face checkpoint.

    The metadata is staged in a directory of its own, where it stays: consolidating the shards later needs it, and
    the original model's files do not know what training changed.
    """

    def pre_save(self, **kwargs: Any) -> None:
        """Write config, generation config, tokenizer files, custom model code and the file index into the staging.

        Collective over ``process_group``; its rank 0 writes, every rank returns after that or raises. A model with a
        method ``_get_consolidated_hf_metadata_exporter(tokenizer=, original_model_path=)`` that returns no None has its
        metadata written by what it returns, which has ``validate`` and ``save`` (clauses HOOK-011 to HOOK-014).

        Args:
            **kwargs: ``model_state`` (`ModelState`), ``hf_metadata_dir``; optional ``tokenizer``,
                ``fqn_to_file_index_mapping`` (name -> file number from 1), ``fqn_to_dtype_mapping`` (name -> dtype, as
                offline consolidation spells it), ``original_model_path``, ``v4_compatible``, ``dtype`` (of the saved
                weights, where it is not the model's), ``process_group``.

        Raises:
            TypeError: a keyword is missing or of the wrong type; a config value cannot be written as JSON.
            ValueError: ``v4_compatible`` without the original model's config (clause CFG-009).
            OSError: the directory cannot be written.
            PeerError: another rank failed.
        """
        group = process_group(kwargs)
        if is_member(group):
            save, views = agree(group, _prepare, kwargs)
            exporter = everywhere(group, validated_exporter, save)
            on_rank_zero(group, _write, save, views, exporter)

    def post_save(self, **kwargs: Any) -> None:
        """Copy the staged metadata beside the consolidated weights, ``config.json`` last (clause POST-001).

        The file index is internal and does not go out (clause POST-002). Nothing happens when only shards are saved
        (clause POST-003). Collective, as `pre_save`.

        Args:
            **kwargs: ``consolidated_path`` (falsy: only shards are saved), ``hf_metadata_dir`` (or
                ``hf_metadata_path``); optional ``process_group``.

        Raises:
            TypeError, OSError, PeerError: as `pre_save`.
        """
        group = process_group(kwargs)
        if is_member(group):
            on_rank_zero(group, _copy_out, everywhere(group, metadata_copy, kwargs))


def metadata_save(kwargs: Mapping[str, Any]) -> MetadataSave:
    """The keywords of `ConsolidatedHFAddon.pre_save`; raises TypeError as `checked`."""
    mappings = ("fqn_to_file_index_mapping", "fqn_to_dtype_mapping")
    optional = ("tokenizer", "original_model_path", "v4_compatible", "dtype", *mappings)
    return MetadataSave(**checked(kwargs, ("hf_metadata_dir", "model_state"), optional))


def metadata_copy(kwargs: Mapping[str, Any]) -> MetadataCopy:
    """The keywords of `ConsolidatedHFAddon.post_save`; raises TypeError as `checked`.

    The metadata directory is ``hf_metadata_dir``, as in `pre_save`, or ``hf_metadata_path``, as callers say (clause
    POST-006).
    ``consolidated_path`` may be falsy, and is None then, but not left out.
    """
    if "consolidated_path" not in kwargs:
        raise TypeError(
            "the save hook's keyword 'consolidated_path' must be a path, or None or '' when only shards are saved, got "
            "nothing: pass it"
        )
    source = kwargs.get("hf_metadata_dir")
    source = kwargs.get("hf_metadata_path") if source is None else source
    more = {"hf_metadata_dir": source, "consolidated_path": kwargs["consolidated_path"] or None}
    return MetadataCopy(**checked({**kwargs, **more}, ("hf_metadata_dir",), ("consolidated_path",)))


def model_view(save: MetadataSave, parts: Sequence[ModelPart], **settings: Any) -> ModelView:
    """This rank's view."""
    own = {"v4_compatible": bool(save.v4_compatible), "dtype": save.dtype}
    dtypes = tuple(sorted(floating_dtypes(parts).items()))
    embeddings = tuple(sorted(frozenset[str]().union(*map(embedding_tensors, parts))))
    return ModelView(holds_quantised(parts), dtypes, embeddings, tuple({**own, **settings}.items()))


def check_views(views: Views) -> None:
    """Raise ValueError when ranks disagree about the settings."""
    check_alike((ranks, dict(view.settings)) for ranks, view in views)


def validated_exporter(save: MetadataSave) -> Any:
    """The model's own writer of metadata, which has found nothing wrong; None without one (clause HOOK-011)."""
    given = {"tokenizer": save.tokenizer, "original_model_path": save.original_model_path}
    make = getattr(unwrapped(save.model_state.model[0]), "_get_consolidated_hf_metadata_exporter", None)
    exporter = make(**given) if make else None
    if exporter is not None:
        exporter.validate(**given)
    return exporter


def write_files(save: MetadataSave, views: Views, exporter: Any, directory: Path, names: Iterable[str] = ()) -> None:
    """Write all files but the weights into an empty directory.

    An ``exporter`` writes all but the mappings, and nothing of what it wrote is changed (clause HOOK-012).

    Args:
        save: the keywords.
        views: of all ranks.
        exporter: the model's own, if it has one.
        directory: where the files go.
        names: of all saved tensors, where they are known.

    Raises:
        ValueError: ranks disagree about the settings; the model lacks a layer; or ``v4_compatible`` is asked for, and
            there is nothing of the old form, or that is another model's.
    """
    check_views(views)
    if exporter is None:
        files = json_files(save, views)
        model = unwrapped(save.model_state.model[0])
        check_layers(model, files.get(V5_NAMES[CONFIG], files.get(CONFIG, {})), names)
        check_end(files, save.tokenizer)
        check_original_names(names, save.original_model_path if save.v4_compatible else None)
        write_metadata(directory, files, model, save.tokenizer, save.original_model_path, save.v4_compatible)
        return
    given = {"tokenizer": save.tokenizer, "original_model_path": save.original_model_path}
    exporter.save(hf_metadata_dir=str(directory), **given, **form_asked_of(exporter, bool(save.v4_compatible)))


def json_files(save: MetadataSave, views: Views) -> dict[str, dict[str, Any]]:
    """File name -> content, of the config and the generation config; with ``v4_compatible`` of both forms.

    The original's have the usual names then, and the live ones those of `V5_NAMES` (clauses CFG-008, GEN-003).
    """
    model = unwrapped(save.model_state.model[0])
    quantised, dtype, tied = any(view.quantised for _, view in views), saved_dtype(save, views), saved_tied(views)
    live = {CONFIG: config_content(model, dtype, quantised, tied), GENERATION_CONFIG: generation_content(model)}
    files: dict[str, dict[str, Any]] = {}
    for name, content in live.items():
        if content is None:
            continue
        files[name] = content
        if not save.v4_compatible:
            continue
        if save.original_model_path is not None and config_exists(save.original_model_path, name):
            files[name] = original_content(save.original_model_path, name, content, dtype, tied)
            if name == CONFIG:
                check_shapes(model.config, files[name], content)
            files[V5_NAMES[name]] = content
        elif name == CONFIG and TRANSFORMERS_5:
            raise ValueError(
                f"original_model_path must hold the original model's {name} with v4_compatible=True, got "
                f"{save.original_model_path!r}: transformers {transformers.__version__} cannot write the form that "
                "version 4 reads"
            )
    return files


def mapping_files(save: MetadataSave) -> dict[str, dict[str, Any]]:
    """File name -> content, of what is for offline consolidation and does not go out (clauses IDX-002, IDX-006)."""
    files = {INDEX_MAPPING: save.fqn_to_file_index_mapping, DTYPE_MAPPING: save.fqn_to_dtype_mapping or None}
    return {name: content for name, content in files.items() if content is not None}


def saved_dtype(save: MetadataSave, views: Views) -> str | None:
    """The dtype of most saved floating-point elements, which readers take for the model's; None without any."""
    if save.dtype is not None:
        return short_name(save.dtype)
    total = sum((Counter({name: len(ranks) * n for name, n in view.dtypes}) for ranks, view in views), Counter[str]())
    return max(sorted(total), key=lambda name: total[name], default=None)


def saved_tied(views: Views) -> bool | None:
    """Whether embedding and head are saved as one tensor; None where the model does not have both."""
    saved = {one for _, view in views for one in view.embeddings}
    return True if "one" in saved else False if {"embedding", "head"} <= saved else None


def staged_files(source: Path, target: Path) -> list[Path]:
    """Relative paths of what goes out: not the internal files, nor the target's own when it lies in the source."""
    files = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    own = {path for path in files if source in target.parents and target in (source / path).parents}
    return sorted(files - own - {Path(name) for name in INTERNAL})


def _prepare(kwargs: Mapping[str, Any]) -> tuple[MetadataSave, ModelView]:
    save = metadata_save(kwargs)
    return save, model_view(save, model_parts(save.model_state.model))


def _write(save: MetadataSave, views: Views, exporter: Any) -> None:
    with staging(save.hf_metadata_dir) as place:
        write_files(save, views, exporter, place)
        for name, content in mapping_files(save).items():
            write_text(place / name, json_text(content))
        publish(place, save.hf_metadata_dir, marker=CONFIG, replaces=(*OWNED, *INTERNAL, *replaced_tokenizer(place)))


def _copy_out(copy: MetadataCopy) -> None:
    """Copy the staged metadata, internal files apart; the staging stays (clause POST-004).

    Raises:
        FileNotFoundError: nothing was staged; the message names the directory (clause POST-009).
    """
    source, target = copy.hf_metadata_dir, copy.consolidated_path
    if target is None or target.resolve() == source.resolve():
        return
    if not source.is_dir():
        raise FileNotFoundError(f"{source} must be the directory where pre_save staged the metadata, got none there")
    names = staged_files(source, target)
    with staging(target) as place:
        for path in names:
            write_bytes(place / path, (source / path).read_bytes())
        publish(place, target, marker=CONFIG, replaces=(*OWNED, *replaced_tokenizer(place)))
