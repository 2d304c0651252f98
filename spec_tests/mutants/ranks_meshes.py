# SPDX-License-Identifier: Apache-2.0
"""Faults in putting shards together, and with ranks that are gone (spec/ranks.md, RANK-015 to RANK-017)."""

from __future__ import annotations

from typing import Any

from spec_tests.mutants import editing_meshes as edit
from spec_tests.mutants import editing_saving as saving
from spec_tests.mutants.registry import mutant


@mutant(kills=["RANK-015"], source="shards put together in the order of ranks")
def takes_shards_of_shards_for_shards(addons: Any) -> None:
    """FSDP2 over tensor parallel: every row is there, in another place."""
    edit.take_strided_shards_for_plain(addons)


@mutant(kills=["RANK-015"], also=("RANK", "IDX"), source="`torch.tensor_split` where FSDP2 cuts as `torch.chunk`")
def cuts_unevenly_in_another_way(addons: Any) -> None:
    """On three ranks rows are lost or doubled."""
    edit.cut_in_even_parts(addons)


@mutant(kills=["RANK-016"], source="every exporter: gloo's and NCCL's own text")
def says_no_more_than_a_broken_connection(addons: Any) -> None:
    """Which save of which group it was is a matter of reading a thousand logs."""
    saving.say_what_the_backend_says(addons)


@mutant(kills=["RANK-017"], source="every exporter that calls full_tensor() in a loop")
def leaves_the_others_in_an_exchange(addons: Any) -> None:
    """Experts that are split, and weights that LoRA is merged into, are whole on every rank for a moment."""
    edit.exchange_without_agreement(addons)


@mutant(kills=["RANK-017"], also=("RANK", "ERR"), source="every exporter whose error ends its loop over tensors")
def leaves_in_the_middle_of_the_tensors(addons: Any) -> None:
    """The others wait for the next one."""
    edit.leave_the_walk_at_once(addons)
