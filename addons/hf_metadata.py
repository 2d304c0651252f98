# SPDX-License-Identifier: Apache-2.0
"""What `ConsolidatedHFAddon` writes: gathered from every rank, written by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

from . import hf_config
from .custom_code import _maybe_save_custom_model_code, make_references_local
from .files import publish, staging, write_bytes, write_text
from .hf_config import CONFIG, GENERATION_CONFIG, V5_NAMES, config_content, generation_content
from .hook_kwargs import Keywords
from .json_content import json_text
from .lora_sites import unwrapped
from .tokenizer import save_tokenizer, tokenizer_files

INDEX_MAPPING = "fqn_to_file_index_mapping.json"
DTYPE_MAPPING = "fqn_to_dtype_mapping.json"
OWNED = (*V5_NAMES, *V5_NAMES.values())
INTERNAL = (INDEX_MAPPING, DTYPE_MAPPING)


@dataclass(frozen=True)
class RankView:
    """What one rank's parts of the model hold."""

    quantised: bool
    dtypes: Counter[str]
    v4_compatible: bool


def rank_view(save: Keywords) -> RankView:
    """This rank's view."""
    parts = save.model_state.model
    return RankView(hf_config.holds_quantised(parts), hf_config.floating_dtypes(parts), bool(save.v4_compatible))


def validated_exporter(save: Keywords) -> Any:
    """The model's own writer of metadata, which has found nothing wrong; None without one (clause HOOK-011)."""
    given = {"tokenizer": save.tokenizer, "original_model_path": save.original_model_path}
    make = getattr(unwrapped(save.model_state.model[0]), "_get_consolidated_hf_metadata_exporter", None)
    exporter = make(**given) if make else None
    if exporter is not None:
        exporter.validate(**given)
    return exporter


def write(save: Keywords, views: Sequence[RankView], exporter: Any) -> None:
    """Write the files whole into ``hf_metadata_dir``; earlier ones stay untouched when anything raises.

    An ``exporter`` writes all but the mappings, and nothing of what it wrote is changed (clause HOOK-012).

    Raises:
        ValueError: ranks disagree about ``v4_compatible``; or it is asked for, and there is nothing of the old form, or
            that is another model's.
    """
    if len({view.v4_compatible for view in views}) > 1:
        raise ValueError("v4_compatible is True on some ranks and False on others")
    files = mapping_files(save)
    if exporter is None:
        files |= json_files(save, any(view.quantised for view in views), saved_dtype(save, views))
    with staging(save.hf_metadata_dir) as place:
        if exporter is None:
            _maybe_save_custom_model_code(save.original_model_path, place, save.model_state.model[0])
            save_tokenizer(save.tokenizer, place, save.v4_compatible)
        else:
            given = {"tokenizer": save.tokenizer, "original_model_path": save.original_model_path}
            exporter.save(hf_metadata_dir=str(place), v4_compatible=bool(save.v4_compatible), **given)
        for name, content in files.items():
            write_text(place / name, json_text(content))
        if exporter is None:
            make_references_local(place)
        publish(place, save.hf_metadata_dir, marker=CONFIG, replaces=(*OWNED, *INTERNAL, *tokenizer_files(place)))


def json_files(save: Keywords, quantised: bool, dtype: str | None) -> dict[str, dict[str, Any]]:
    """File name -> content, of the config and the generation config."""
    model = unwrapped(save.model_state.model[0])
    live = {CONFIG: config_content(model, dtype, quantised), GENERATION_CONFIG: generation_content(model)}
    files: dict[str, dict[str, Any]] = {}
    for name, content in live.items():
        if content is None:
            continue
        files[name] = content
        if not save.v4_compatible:
            continue
        if save.original_model_path is not None and hf_config._config_exists(save.original_model_path, name):
            files[name] = hf_config.original_content(save.original_model_path, name, content, dtype)
            if name == CONFIG:
                hf_config.check_shapes(model.config, files[name], content)
            files[V5_NAMES[name]] = content
        elif name == CONFIG and not transformers.__version__.startswith("4."):
            raise ValueError(
                f"v4_compatible=True needs the original model's {name} in original_model_path "
                f"({save.original_model_path!r}): transformers {transformers.__version__} cannot write the form that "
                "version 4 reads"
            )
    return files


def mapping_files(save: Keywords) -> dict[str, dict[str, Any]]:
    """File name -> content, of what is for offline consolidation and does not go out (clauses IDX-002, IDX-006)."""
    files = {INDEX_MAPPING: save.fqn_to_file_index_mapping, DTYPE_MAPPING: save.fqn_to_dtype_mapping or None}
    return {name: content for name, content in files.items() if content is not None}


def saved_dtype(save: Keywords, views: Sequence[RankView]) -> str | None:
    """The dtype of most saved floating-point elements, which readers take for the model's; None without any."""
    if save.dtype is not None:
        return hf_config.short_name(save.dtype)
    total = sum((view.dtypes for view in views), Counter[str]())
    return max(sorted(total), key=lambda name: total[name], default=None)


def copy_out(copy: Keywords) -> None:
    """Copy the staged metadata, internal files apart, into the consolidated directory; the staging stays."""
    source, target = copy.hf_metadata_dir, copy.consolidated_path
    if target is None or target.resolve() == source.resolve():
        return
    if not source.is_dir():
        raise FileNotFoundError(f"{source} is no directory: pre_save stages the metadata there")
    with staging(target) as place:
        for path in staged_files(source, target):
            write_bytes(place / path, (source / path).read_bytes())
        publish(place, target, marker=CONFIG, replaces=(*OWNED, *tokenizer_files(place)))


def staged_files(source: Path, target: Path) -> list[Path]:
    """Relative paths of what goes out: not the internal files, nor the target's own when it lies in the source."""
    files = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    own = {path for path in files if source in target.parents and target in (source / path).parents}
    return sorted(files - own - {Path(name) for name in INTERNAL})
