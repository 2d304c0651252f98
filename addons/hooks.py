# SPDX-License-Identifier: Apache-2.0
"""The hooks that run around the backend's IO."""

from __future__ import annotations

from typing import Any, Protocol

from . import adapter_metadata
from .hook_kwargs import peft_save, process_group
from .ranks import gather, is_member, on_rank_zero


class CheckpointAddon(Protocol):
    """Optional hooks around the IO of a checkpoint backend (clause HOOK-001).

    Every rank of the model calls both hooks with the same keywords. Hooks ignore keywords they do not know.
    """

    def pre_save(self, **kwargs: Any) -> None:
        """Runs before the backend writes the weights."""

    def post_save(self, **kwargs: Any) -> None:
        """Runs after the backend has written the weights."""


class PeftAddon:
    """Writes what makes a directory with adapter weights a PEFT checkpoint."""

    def pre_save(self, **kwargs: Any) -> None:
        """Write adapter_config.json, automodel_peft_config.json, tokenizer files and custom model code.

        Collective over ``process_group``; its rank 0 writes, every rank returns after that or raises.

        Args:
            **kwargs: ``model_path`` (directory), ``model_state`` (`ModelState`), ``peft_config``; optional
                ``tokenizer``, ``original_model_path``, ``v4_compatible``, ``process_group``.

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
