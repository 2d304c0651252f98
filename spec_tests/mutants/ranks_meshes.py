# SPDX-License-Identifier: Apache-2.0
"""Faults in putting shards together, and with ranks that are gone (spec/ranks.md, RANK-015, RANK-016)."""

from __future__ import annotations

from typing import Any

from spec_tests.mutants import editing_saving as edit
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
    edit.say_what_the_backend_says(addons)
