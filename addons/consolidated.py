# SPDX-License-Identifier: Apache-2.0
"""Save a whole model as a Hugging Face checkpoint, through torch.distributed.checkpoint."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from . import hook_kwargs
from .files import publish, remove_tree
from .hf_config import CONFIG
from .hf_metadata import OWNED
from .hooks import ConsolidatedHFAddon
from .model_state import ModelState, hf_tensors
from .ranks import everywhere, gather, group_size, is_member, is_rank_zero, on_rank_zero
from .save import prepare_staging, staging_beside
from .tokenizer import TOKENIZER_FILES

WEIGHT_FILES = ("model*.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True)
class PendingSave:
    """A save whose weights are still being written; the destination stays as it was until `result`.

    Attributes:
        writing: the writing of the shards.
        publication: puts metadata and weights in place; collective.
        cleanup: removes the staging directory; collective.
    """

    writing: Future[Any]
    publication: Callable[[], None]
    cleanup: Callable[[], None]
    group: dist.ProcessGroup | None

    def result(self) -> None:
        """Wait for the weights and publish the checkpoint. Collective; what went wrong is raised on every rank."""
        try:
            gather(lambda: bool(self.writing.result()), self.group)
            self.publication()
        finally:
            self.cleanup()


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
) -> PendingSave | None:
    """Save ``model`` in ``directory`` as a checkpoint that ``from_pretrained`` loads.

    Every rank that holds a part of the model calls it. Shards, consolidated files and metadata are made in a staging
    directory beside ``directory``, always an empty one (torch.distributed.checkpoint merges the shards of an earlier
    and larger world into the weights without an error); then weights and metadata move in, ``config.json`` last.
    A save that fails leaves what was there (clauses IDX-001, POST-005, POST-007).

    Args:
        model: the model (sharded with FSDP2 or not, wrapped or not), or the list of this rank's parts.
        directory: where the checkpoint goes; made if missing. Files that are not the checkpoint's stay.
        tokenizer: saved along, when given.
        original_model_path: directory of the original model: its code is copied along, and with ``v4_compatible``
            its config.
        v4_compatible: the original config, and one weight per expert, as transformers 4 reads them.
        dtype: floating-point weights are cast to it on saving, and the config says so.
        max_shard_bytes: a weights file is closed before it grows over this size.
        process_group: the ranks that save together; None is the default group.
        asynchronous: return as soon as the weights are copied. The group then needs a CPU backend such as gloo.

    Returns:
        None, or with ``asynchronous`` a `PendingSave`, whose ``result()`` every rank has to call.

    Raises:
        TypeError, ValueError, OSError, PeerError: as `ConsolidatedHFAddon.pre_save`.
        CheckpointException: torch.distributed.checkpoint could not write the weights.
    """
    group = hook_kwargs.process_group({"process_group": process_group})
    if not is_member(group):
        return None
    model_state, destination = everywhere(lambda: (ModelState(model), Path(directory).resolve()), group)
    place, addon = staging_beside(destination), ConsolidatedHFAddon()
    output, metadata = place / "consolidated", place / ".hf_metadata"
    state: dict[str, torch.Tensor] = {}

    def sizes() -> dict[str, int]:
        state.update(tensors_to_save(model_state, dtype, v4_compatible))
        return {name: tensor.numel() * tensor.element_size() for name, tensor in state.items()}

    def publication() -> None:
        addon.post_save(consolidated_path=output, hf_metadata_dir=metadata, process_group=process_group)
        replaces = (*OWNED, *WEIGHT_FILES, *(TOKENIZER_FILES if tokenizer is not None else ()))
        on_rank_zero(lambda: remove_tree(output / "sharded"), group)
        on_rank_zero(lambda: publish(output, destination, marker=CONFIG, replaces=replaces), group)

    def cleanup() -> None:
        if is_rank_zero(group):
            remove_tree(place)

    on_rank_zero(lambda: prepare_staging(destination, place), group)
    try:
        indices = file_indices({n: size for rank in gather(sizes, group) for n, size in rank.items()}, max_shard_bytes)
        addon.pre_save(
            model_state=model_state,
            hf_metadata_dir=metadata,
            tokenizer=tokenizer,
            fqn_to_file_index_mapping=indices,
            original_model_path=original_model_path,
            v4_compatible=v4_compatible,
            dtype=dtype,
            process_group=process_group,
        )
        writing = write(state, output, indices, group, asynchronous)
    except BaseException:
        cleanup()
        raise
    pending = PendingSave(writing, publication, cleanup, group)
    if asynchronous:
        return pending
    pending.result()
    return None


def tensors_to_save(model_state: ModelState, dtype: torch.dtype | None, v4_compatible: bool) -> dict[str, torch.Tensor]:
    """This rank's tensors under Hugging Face names, contiguous, cast to ``dtype`` where they are floating-point."""
    tensors = hf_tensors(model_state.state_dict(), model_state.model, v4_compatible=v4_compatible)
    return {
        name: (tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in sorted(tensors.items())
    }


def file_indices(sizes: dict[str, int], max_shard_bytes: int) -> dict[str, int]:
    """Tensor name -> number of its weights file, from 1, filled in the order of names (clause IDX-003)."""
    indices, index, filled = {}, 1, 0
    for name in sorted(sizes):
        if filled and filled + sizes[name] > max_shard_bytes:
            index, filled = index + 1, 0
        filled += sizes[name]
        indices[name] = index
    return indices


class AnyPathWriter(HuggingFaceStorageWriter):
    """`HuggingFaceStorageWriter` for directories of any name (clause IDX-005).

    torch 2.13 finds the shards by a glob pattern made of the directory's name: with ``[`` or ``*`` in it none match,
    and the consolidated files are written without their tensors and without an error.
    """

    def finish(self, metadata: Any, results: Any) -> None:
        """Consolidate the shards."""
        plain, self.path = self.path, glob.escape(str(self.path))
        try:
            super().finish(metadata, results)
        finally:
            self.path = plain


def write(
    state: dict[str, torch.Tensor],
    output: Path,
    indices: dict[str, int],
    group: dist.ProcessGroup | None,
    asynchronous: bool,
) -> Future[Any]:
    """Write shards below ``output``/sharded and the consolidated files with their index into ``output``."""
    writer = AnyPathWriter(str(output), fqn_to_index_mapping=indices, save_distributed=True, enable_consolidation=True)
    alone = group_size(group) == 1
    if asynchronous:
        writing = async_save(state, storage_writer=writer, process_group=group, no_dist=alone)
        return writing if isinstance(writing, Future) else writing.upload_completion
    done: Future[Any] = Future()
    save(state, storage_writer=writer, process_group=group, no_dist=alone)
    done.set_result(None)
    return done
