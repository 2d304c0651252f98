# SPDX-License-Identifier: Apache-2.0
"""The underscored functions that the API page of NeMo AutoModel's add-on module names."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn

from .adapter_config import adapter_config, automodel_peft_metadata
from .companions import save_model_code, write_metadata
from .experts import Form
from .files import write_text
from .hf_addon import json_files, metadata_save, model_view
from .hf_config import config_exists, holds_quantised, original_content, strip_quantisation
from .model_state import AdapterContent, ModelState
from .modules import model_parts, unwrapped
from .plain_json import json_text
from .ranks import agree, everywhere, share
from .targets import Adapter, adapter_of, united


def _get_hf_peft_config(peft_config: Any, model_state: Any, v4_compatible: bool = False) -> dict[str, Any]:
    """The minimal PEFT dict for a model state (clause ADP-008); collective over its ``pp_group``, if it has one."""
    plan = _plan(model_state.model, v4_compatible, getattr(model_state, "pp_group", None))
    return adapter_config(peft_config, unwrapped(model_state.model[0]), plan)


def _get_automodel_peft_metadata(peft_config: Any) -> dict[str, Any]:
    """The whole PEFT config, JSON-safe, minus what ``adapter_config.json`` already holds (clause META-001)."""
    return automodel_peft_metadata(peft_config)


def _extract_target_modules(
    model: nn.Module | Sequence[nn.Module],
    v4_compatible: bool = False,
    pp_group: dist.ProcessGroup | None = None,
) -> list[str]:
    """Sorted names of the modules that carry LoRA, over all parts and the ranks of ``pp_group``."""
    return _plan(model, v4_compatible, pp_group).target_modules


def _extract_target_parameters(
    model: nn.Module | Sequence[nn.Module],
    v4_compatible: bool = False,
    pp_group: dist.ProcessGroup | None = None,
) -> list[str]:
    """Parameters that the config lists: fused experts' unless they are exported one by one, and misread dense ones."""
    return _plan(model, v4_compatible, pp_group).target_parameters


def _maybe_strip_quantization_config(model_part: nn.Module) -> None:
    """Remove quantisation settings from the live config when nothing is quantised (clause CFG-004)."""
    config = getattr(unwrapped(model_part), "config", None)
    if config is not None and not holds_quantised(model_parts([model_part])):
        strip_quantisation(config)


def _config_exists(original_model_path: str | os.PathLike[str] | None, config_name: str) -> bool:
    """Whether that file is in that local directory; False for None and for a hub id."""
    return config_exists(original_model_path, config_name)


def _save_original_config_json(
    original_model_path: str | os.PathLike[str], hf_metadata_dir: str | os.PathLike[str], config_name: str
) -> None:
    """Write the original file, if any, minus quantisation settings, into ``hf_metadata_dir`` (clause CFG-011)."""
    if config_exists(original_model_path, config_name):
        content = original_content(os.fspath(original_model_path), config_name, live={}, dtype=None)
        write_text(Path(hf_metadata_dir) / config_name, json_text(content))


def _save_generated_hf_assets(
    model_part: nn.Module,
    metadata_reference_path: str | os.PathLike[str] | None,
    hf_metadata_dir: str | os.PathLike[str],
    tokenizer: Any,
    v4_compatible: bool,
    model_config: Any = None,
    save_custom_model_code: bool = True,
) -> None:
    """What `ConsolidatedHFAddon` writes of one part by itself, for the part's own exporter (clause HOOK-015).

    Args:
        model_part: whose metadata it is.
        metadata_reference_path: directory of the original model.
        hf_metadata_dir: where the files go.
        tokenizer: saved along, when given.
        v4_compatible: as in `ConsolidatedHFAddon.pre_save`.
        model_config: in place of the part's own.
        save_custom_model_code: False: no ``.py`` file is copied.

    Raises:
        TypeError, ValueError, OSError: as `ConsolidatedHFAddon.pre_save`.
    """
    model = unwrapped(model_part)
    if model_config is not None:
        model = copy.copy(model)
        model.config = model_config
    place = {"hf_metadata_dir": hf_metadata_dir, "original_model_path": metadata_reference_path or None}
    more = {"model_state": ModelState(model), "tokenizer": tokenizer, "v4_compatible": v4_compatible}
    save = metadata_save({**place, **more})
    files = json_files(save, [([0], model_view(save, model_parts([model])))])
    given = (save.tokenizer, save.original_model_path, bool(v4_compatible))
    write_metadata(save.hf_metadata_dir, files, model, *given, code=save_custom_model_code)


def _maybe_save_custom_model_code(
    original_model_path: str | os.PathLike[str] | None,
    hf_metadata_dir: str | os.PathLike[str],
    model_part: nn.Module | None = None,
) -> None:
    """Copy the model's own ``.py`` files, as `save_model_code` says."""
    model = None if model_part is None else unwrapped(model_part)
    save_model_code(original_model_path, Path(hf_metadata_dir), model)


def _plan(model: nn.Module | Sequence[nn.Module], v4_compatible: bool, pp_group: dist.ProcessGroup | None) -> Adapter:
    parts = [model] if isinstance(model, nn.Module) else list(model)

    def local() -> tuple[None, Adapter]:
        return None, adapter_of(AdapterContent.of(model_parts(parts)), Form.of(v4_compatible))

    if pp_group is None:
        return local()[1]
    _, plans = agree(pp_group, local)
    whole = everywhere(pp_group, united, [plan for _, plan in plans or []])
    return share(pp_group, whole)
