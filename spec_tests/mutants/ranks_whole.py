# SPDX-License-Identifier: Apache-2.0
"""Faults in comparing what ranks of `save_consolidated` were told, and hold (spec/ranks.md, RANK-010 and RANK-011)."""

from __future__ import annotations

from typing import Any

from spec_tests.mutants.editing_whole import compare_no_tensors, leave_out_of_the_agreement
from spec_tests.mutants.registry import mutant


@mutant(kills=["RANK-010"], source="executed with two directories: both ranks returned, and all tensors were wrong")
def lets_ranks_save_in_two_directories(addons: Any) -> None:
    """Each directory has a part of the weights, or one of them all and the other rank's are nowhere."""
    leave_out_of_the_agreement(addons, "directory")


@mutant(kills=["RANK-010"], source="a setting taken from whichever rank writes")
def lets_ranks_cast_to_two_dtypes(addons: Any) -> None:
    """Files of one checkpoint are of two dtypes, or the error speaks of a tensor and not of the setting."""
    leave_out_of_the_agreement(addons, "dtype")


@mutant(kills=["RANK-010"], source="a cut that each rank works out for itself")
def lets_ranks_cut_into_other_files(addons: Any) -> None:
    """Ranks wait for each other's tensors, or write files that the index does not know."""
    leave_out_of_the_agreement(addons, "max_shard_bytes")


@mutant(kills=["RANK-010"], source="`if asynchronous:` around a collective")
def lets_one_rank_save_in_the_background(addons: Any) -> None:
    """One rank waits for the others, which have left, for the whole timeout."""
    leave_out_of_the_agreement(addons, "asynchronous")


@mutant(kills=["RANK-011"], source="executed: a rank that was cast alone saved without an error")
def takes_a_tensor_as_the_first_rank_has_it(addons: Any) -> None:
    """Whose tensor is saved is a matter of chance."""
    compare_no_tensors(addons)
