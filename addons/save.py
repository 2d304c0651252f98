# SPDX-License-Identifier: Apache-2.0
"""Save a whole checkpoint: the hooks, and the weights between them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn

from . import hook_kwargs
from .adapter_config import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from .files import publish, remove_tree
from .hooks import PeftAddon
from .model_state import ModelState, saved_tensors
from .ranks import everywhere, gather, is_member, is_rank_zero, on_rank_zero
from .targets import check_tensors, targets, united
from .tokenizer import TOKENIZER_FILES


def save_adapter(
    model: nn.Module | Sequence[nn.Module],
    directory: str | os.PathLike[str],
    peft_config: Any,
    *,
    tokenizer: Any = None,
    original_model_path: str | None = None,
    v4_compatible: bool = False,
    legacy_paramwrapper_layout: bool = False,
    pp_group: dist.ProcessGroup | None = None,
    process_group: dist.ProcessGroup | None = None,
) -> None:
    """Save the LoRA of ``model`` as a PEFT adapter in ``directory``.

    Every rank that holds a part of the model calls it; rank 0 of ``process_group`` writes. Everything is made
    in a staging directory beside ``directory`` and moved in with ``adapter_config.json`` last, so that a reader
    sees a whole adapter or none; a save that fails leaves what was there (clauses ERR-003 to ERR-005).

    Args:
        model: the model, or the list of this rank's parts.
        directory: where the adapter goes; made if missing. Files that are not the adapter's stay.
        peft_config: ``dim``, ``alpha``, ``use_dora``, ``to_dict()``; or a `peft.LoraConfig`.
        tokenizer: saved along, when given.
        original_model_path: directory of the base model, whose ``.py`` files are copied along.
        v4_compatible: one LoRA pair per expert (transformers 4, vLLM, SGLang) instead of the fused form.
        legacy_paramwrapper_layout: the fused form as PEFT up to 0.19.0 reads it, instead of that of PEFT >= 0.19.1.
        pp_group: pipeline group whose ranks hold the other parts of the model.
        process_group: the ranks that save together; None is the default group.

    Raises:
        TypeError, ValueError, OSError, PeerError: as `PeftAddon.pre_save`.
    """
    group = hook_kwargs.process_group({"process_group": process_group})
    if not is_member(group):
        return

    def prepare() -> tuple[ModelState, Path]:
        return ModelState(model, is_peft=True, pp_group=pp_group), Path(directory).resolve()

    model_state, destination = everywhere(prepare, group)
    place = staging_beside(destination)
    form = {"v4_compatible": v4_compatible, "legacy_paramwrapper_layout": legacy_paramwrapper_layout}
    on_rank_zero(lambda: prepare_staging(destination, place), group)
    try:
        PeftAddon().pre_save(
            model_path=place,
            model_state=model_state,
            peft_config=peft_config,
            tokenizer=tokenizer,
            original_model_path=original_model_path,
            process_group=process_group,
            **form,
        )
        found = united(gather(lambda: targets(model_state.model, **form), group))
        native = everywhere(model_state.state_dict, group)
        replaces = TOKENIZER_FILES if tokenizer is not None else ()

        def write_weights_and_publish() -> None:
            tensors = saved_tensors(native, model_state.model, **form)
            check_tensors(found, tensors)
            save_file(tensors, place / ADAPTER_WEIGHTS, metadata={"format": "pt"})
            publish(place, destination, marker=ADAPTER_CONFIG, replaces=replaces)

        on_rank_zero(write_weights_and_publish, group)
    finally:
        if is_rank_zero(group):
            remove_tree(place)


def staging_beside(destination: Path) -> Path:
    """A directory on the same filesystem as ``destination``, under a name that no reader takes for a checkpoint."""
    if os.path.ismount(destination):
        return destination / ".staging-save"
    return destination.with_name(f".{destination.name}.staging-save")


def prepare_staging(destination: Path, place: Path) -> None:
    """Make ``place`` anew, which may hold what a killed save left; refuse a destination that is a file."""
    if destination.exists() and not destination.is_dir():
        raise NotADirectoryError(f"{destination} is not a directory: name one to save the checkpoint in")
    remove_tree(place)
    place.mkdir(parents=True)
