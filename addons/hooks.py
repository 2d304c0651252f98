# SPDX-License-Identifier: Apache-2.0
"""The hooks that run around the backend's IO."""

from __future__ import annotations

from typing import Any, Protocol

from . import adapter_metadata, hf_metadata
from .hook_kwargs import metadata_copy, metadata_save, peft_save, process_group
from .ranks import everywhere, gather, is_member, on_rank_zero


class CheckpointAddon(Protocol):
    """Optional hooks around the IO of a checkpoint backend (clause HOOK-001).

    Every rank of the model calls both hooks with the same keywords. Hooks ignore keywords they do not know.
    """

    def pre_save(self, **kwargs: Any) -> None:
        """Runs before the backend writes the weights."""

    def post_save(self, **kwargs: Any) -> None:
        """Runs after the backend has written the weights."""


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
            ValueError: ``v4_compatible`` without the original model's config.
            OSError: the directory cannot be written.
            PeerError: another rank failed.
        """
        group = process_group(kwargs)
        if is_member(group):
            views = gather(lambda: hf_metadata.rank_view(metadata_save(kwargs)), group)
            exporter = everywhere(lambda: hf_metadata.validated_exporter(metadata_save(kwargs)), group)
            on_rank_zero(lambda: hf_metadata.write(metadata_save(kwargs), views, exporter), group)

    def post_save(self, **kwargs: Any) -> None:
        """Copy the staged metadata beside the consolidated weights, ``config.json`` last.

        The file index is internal and does not go out. Nothing happens when only shards are saved. Collective, as
        `pre_save`.

        Args:
            **kwargs: ``consolidated_path`` (falsy: only shards are saved), ``hf_metadata_dir`` (or
                ``hf_metadata_path``); optional ``process_group``.

        Raises:
            TypeError, OSError, PeerError: as `pre_save`.
        """
        group = process_group(kwargs)
        if is_member(group):
            gather(lambda: metadata_copy(kwargs), group)
            on_rank_zero(lambda: hf_metadata.copy_out(metadata_copy(kwargs)), group)


class PeftAddon:
    """Writes what makes a directory with adapter weights a PEFT checkpoint."""

    def pre_save(self, **kwargs: Any) -> None:
        """Write adapter_config.json, automodel_peft_config.json, tokenizer files and custom model code.

        Collective over ``process_group``; its rank 0 writes, every rank returns after that or raises.

        Args:
            **kwargs: ``model_path`` (directory), ``model_state`` (`ModelState`), ``peft_config``; optional
                ``tokenizer``, ``original_model_path``, ``v4_compatible``, ``legacy_paramwrapper_layout``,
                ``process_group``.

        Raises:
            TypeError: a keyword is missing or of the wrong type; the PEFT config cannot be written as JSON.
            ValueError: the model's LoRA cannot be expressed as a PEFT checkpoint; the message says why.
            OSError: the directory cannot be written.
            PeerError: another rank failed.
        """
        group = process_group(kwargs)
        if is_member(group):
            views = gather(lambda: adapter_metadata.rank_view(peft_save(kwargs), group), group)
            on_rank_zero(lambda: adapter_metadata.write(peft_save(kwargs), views), group)

    def post_save(self, **kwargs: Any) -> None:
        """Nothing is left to do once the weights are written (clause HOOK-006)."""
