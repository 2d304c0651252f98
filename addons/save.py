# SPDX-License-Identifier: Apache-2.0
"""Save a whole checkpoint in one call: what the hooks write, and the weights.

Everything is made in a staging directory beside the destination and moved in with the file last by which readers
recognise a checkpoint, so that a reader sees a whole checkpoint or none; a save that fails leaves what was there
(clauses ERR-001, ERR-003 to ERR-005, POST-005, POST-007).
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from . import hf_addon, peft_addon
from .adapter_config import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from .experts import Form
from .files import write_text
from .gathering import agreed_order, gathered
from .hf_config import CONFIG
from .holdings import Holdings, check_readable, holdings
from .hooks import process_group as checked_group
from .merging import check_mergeable, merged_parts
from .model_state import AdapterContent, ModelState, PublishedModel, hf_tensors
from .modules import ModelPart, model_parts
from .plain_json import json_text
from .ranks import agree, everywhere, group_size, is_member, on_rank_zero
from .staged import Staged, destination_of
from .targets import Adapter, check_tensors
from .weights import INDEX, Layout, WeightsWriter, write_safetensors

_NUMBER = "[0-9]" * 5
WEIGHTS = ("model.safetensors", f"model-{_NUMBER}-of-{_NUMBER}.safetensors", INDEX)
MODEL_FILES = (*hf_addon.OWNED, *WEIGHTS)
"""What a checkpoint of a whole model owns in its directory, besides the tokenizer's (clauses IDX-001, POST-012)."""


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
    into_other_checkpoint: bool = False,
) -> None:
    """Save the LoRA of ``model`` as a PEFT adapter in ``directory``: the hooks' files and the weights (clause ADP-019).

    Every rank that holds a part of the model calls it, with the same arguments; rank 0 of ``process_group`` gathers the
    adapter and writes.

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
        into_other_checkpoint: write also where a model is: ``from_pretrained`` will apply the adapter to that.

    Raises:
        TypeError, ValueError, OSError, PeerError: as `PeftAddon.pre_save`; ranks were given different arguments.
        ValueError: ``directory`` holds a model.
    """
    group = checked_group({"process_group": process_group})
    if not is_member(group):
        return
    keywords = {
        "peft_config": peft_config,
        "tokenizer": tokenizer,
        "original_model_path": original_model_path,
        "v4_compatible": v4_compatible,
        "legacy_paramwrapper_layout": legacy_paramwrapper_layout,
        "process_group": process_group,
    }

    def prepare() -> tuple[tuple[peft_addon.AdapterSave, AdapterContent, Path], tuple[Any, Holdings]]:
        destination = destination_of(directory, (CONFIG, *WEIGHTS), into_other_checkpoint)
        state = ModelState(model, pp_group=pp_group)
        save = peft_addon.adapter_save({**keywords, "model_path": destination, "model_state": state})
        content = AdapterContent.of(model_parts(state.model))
        check_readable(content.tensors())
        view = peft_addon.adapter_view(save, content, group, **_settings(save, destination))
        return (save, content, destination), (view, holdings(content.tensors(), group))

    (save, content, destination), said = agree(group, prepare)
    plan = on_rank_zero(group, peft_addon.agreed_adapter, _views(said, 0))
    order = agreed_order(group, _views(said, 1), pp_group)
    native: dict[str, torch.Tensor] = {}
    with Staged(destination, group) as staged:
        gathered(content.tensors(), order, group, lambda name, tensor, _start: native.update({name: tensor}))
        on_rank_zero(group, _write_adapter, staged, save, content, plan, native)


def save_consolidated(
    model: nn.Module | Sequence[nn.Module],
    directory: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    original_model_path: str | None = None,
    v4_compatible: bool = False,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5 * 10**9,
    process_group: dist.ProcessGroup | None = None,
    asynchronous: bool = False,
    merge_lora: bool = False,
    into_other_checkpoint: bool = False,
) -> PendingSave | None:
    """Save ``model`` in ``directory`` as a checkpoint that ``from_pretrained`` loads (clause LOAD-003).

    Every rank that holds a part of the model calls it, with the same arguments. The weights files are dealt over the
    ranks, and each is written once, by one rank, as its tensors are gathered one at a time.

    Args:
        model: the model (sharded with FSDP2 or not, wrapped or not), or the list of this rank's parts.
        directory: where the checkpoint goes; made if missing. Files that are not the checkpoint's stay.
        tokenizer: saved along, when given.
        original_model_path: directory of the original model: its code is copied along, and with ``v4_compatible``
            its config.
        v4_compatible: the original config, and one weight per expert, as transformers 4 reads them.
        dtype: floating-point weights are cast to it on saving, and the config says so (clause LOAD-004).
        max_shard_bytes: a weights file is closed before it grows over this size.
        process_group: the ranks that save together; None is the default group.
        asynchronous: return as soon as the weights are copied to the CPU, and write in the background.
        merge_lora: write a model with LoRA as one without, the LoRA in its weights; the live model stays as it is
            (clause MRG-002). By default such a model is refused.
        into_other_checkpoint: write also where an adapter is, which ``from_pretrained`` will apply to this model.

    Returns:
        None, or with ``asynchronous`` a `PendingSave`, whose ``result()`` every rank has to call.

    Raises:
        TypeError, ValueError, OSError, PeerError: as `ConsolidatedHFAddon.pre_save`; ranks were given different
            arguments; a tensor has a dtype that safetensors does not hold.
    """
    group = checked_group({"process_group": process_group})
    if not is_member(group):
        return None
    keywords = {
        "tokenizer": tokenizer,
        "original_model_path": original_model_path,
        "v4_compatible": v4_compatible,
        "dtype": dtype,
        "process_group": process_group,
    }

    def prepare() -> tuple[tuple[hf_addon.MetadataSave, list[ModelPart], Path], Any]:
        destination = destination_of(directory, (ADAPTER_CONFIG,), into_other_checkpoint)
        place = {"hf_metadata_dir": destination, "model_state": ModelState(model)}
        save = hf_addon.metadata_save({**keywords, **place})
        parts = model_parts(save.model_state.model)
        for part in parts:
            check_readable(dict(part.tensors()))  # before anything is gathered to be converted
            if merge_lora:
                check_mergeable(part)
        if type(max_shard_bytes) is not int or max_shard_bytes < 1:
            raise ValueError(f"max_shard_bytes must be a whole number from 1, got {max_shard_bytes!r}: correct it")
        more = {"max_shard_bytes": max_shard_bytes, "asynchronous": bool(asynchronous), "merge_lora": bool(merge_lora)}
        view = hf_addon.model_view(save, parts, **_settings(save, destination), **more)
        return (save, parts, destination), view

    def convert() -> tuple[dict[str, torch.Tensor], tuple[Any, Holdings]]:
        tensors = published.tensors()
        check_readable(tensors)
        return tensors, (hf_addon.model_view(save, parts), holdings(tensors, group, dtype))

    # A conversion may gather: ranks agree first that all of them come to it (clause RANK-003).
    (save, parts, destination), told = agree(group, prepare)
    on_rank_zero(group, hf_addon.check_views, told)
    parts = everywhere(group, merged_parts, parts) if merge_lora else parts
    published = everywhere(group, PublishedModel, parts, Form.of(v4_compatible))
    everywhere(group, published.gather)
    tensors, said = agree(group, convert)
    views = _views(said, 0)
    layout = everywhere(group, Layout.of, agreed_order(group, _views(said, 1)), max_shard_bytes, group_size(group))
    exporter = everywhere(group, hf_addon.validated_exporter, save)
    staged = Staged(destination, group)
    with contextlib.ExitStack() as cleanup:
        cleanup.enter_context(staged)
        on_rank_zero(group, _write_metadata, staged, save, views, exporter, layout)
        writer = WeightsWriter(layout, staged.place, group)
        if asynchronous:
            writer.copy(tensors)
            cleanup.pop_all()  # the pending save's from here
            return PendingSave(staged, staged.write_later(writer.write_copies))
        writer.write(tensors)
        on_rank_zero(group, staged.publish, CONFIG, MODEL_FILES)
    return None


class PendingSave:
    """A save whose weights are still being written; the destination stays as it is until `result` (clause POST-008)."""

    def __init__(self, staged: Staged, writing: Future[None]) -> None:
        self._staged, self._writing, self._waiting = staged, writing, True

    def result(self) -> None:
        """Wait for the weights and publish the checkpoint, once; a later call does nothing.

        Collective; what went wrong is raised on every rank.
        """
        if not self._waiting:
            return
        self._waiting = False
        with self._staged as staged:
            everywhere(staged.group, self._writing.result)
            on_rank_zero(staged.group, staged.publish, CONFIG, MODEL_FILES)


def _settings(save: peft_addon.AdapterSave | hf_addon.MetadataSave, destination: Path) -> dict[str, Any]:
    return {
        "directory": str(destination),
        "original_model_path": save.original_model_path,
        "whether there is a tokenizer": save.tokenizer is not None,
    }


def _views(said: Sequence[tuple[list[int], tuple[Any, ...]]], at: int) -> list[tuple[list[int], Any]]:
    return [(ranks, content[at]) for ranks, content in said]


def _write_adapter(
    staged: Staged,
    save: peft_addon.AdapterSave,
    content: AdapterContent,
    plan: Adapter,
    native: dict[str, torch.Tensor],
) -> None:
    peft_addon.write_files(save, plan, staged.place)
    tensors = hf_tensors(native, content.parts, save.form)
    _check_changes(native)
    check_tensors(plan, tensors)
    write_safetensors(staged.place / ADAPTER_WEIGHTS, tensors)
    staged.publish(ADAPTER_CONFIG)


def _check_changes(tensors: Mapping[str, torch.Tensor]) -> None:
    # Clause ADP-030. A magnitude of DoRA may have been trained alone.
    ends = ("lora_B.weight", "_B", "lora_magnitude_vector")
    if not any(bool(tensor.any()) for name, tensor in tensors.items() if name.endswith(ends)):
        warnings.warn("every lora_B is zero: the adapter changes nothing. Save after training", stacklevel=2)


def _write_metadata(
    staged: Staged, save: hf_addon.MetadataSave, views: Sequence[Any], exporter: Any, layout: Layout
) -> None:
    hf_addon.write_files(save, views, exporter, staged.place, layout.held)
    write_text(staged.place / INDEX, json_text(layout.index()))
