# SPDX-License-Identifier: Apache-2.0
"""Faults in saves that are interrupted, killed, or made twice at once (spec/errors.md)."""

from __future__ import annotations

from typing import Any

from spec_tests.mutants import editing_publishing as edit
from spec_tests.mutants.registry import mutant


@mutant(kills=["ERR-008"], also=("ERR", "POST"), source="this project, once: 14 of 14 places lost both checkpoints")
def moves_files_without_a_way_back(addons: Any) -> None:
    """Ctrl-C between two moves leaves a mixture of two saves."""
    edit.move_without_a_way_back(addons)


@mutant(kills=["ERR-010"], source="`os.replace`, file by file")
def moves_file_by_file_everywhere(addons: Any) -> None:
    """A job that is killed while it publishes leaves no checkpoint at all."""
    edit.change_no_places(addons)


@mutant(kills=["ERR-008"], also=("ERR", "POST"), source="`os.rename(temporary, directory)` over what was there")
def leaves_the_directories_of_others_behind(addons: Any) -> None:
    """The logs of a run are gone after its second save."""
    edit.follow_nothing(addons)


@mutant(kills=["ERR-010"], source="`shutil.rmtree(temporary)` at the start of a save")
def removes_what_a_killed_save_set_aside(addons: Any) -> None:
    """The next save takes the only copy of the earlier checkpoint for rubbish."""
    edit.settle_nothing(addons)


@mutant(kills=["ERR-009"], also=("ERR",), source="no lock, as everywhere")
def lets_two_saves_into_one_directory(addons: Any) -> None:
    """A run that was started twice writes a mixture."""
    edit.lock_nothing(addons)


@mutant(kills=["ERR-009"], also=("ERR",), source="a `Future` that nobody keeps; this project, once")
def forgets_a_save_that_nobody_waits_for(addons: Any) -> None:
    """The late writer of one rank writes into the checkpoint after its own."""
    edit.forget_saves_nobody_waits_for(addons)


@mutant(kills=["RANK-014"], source="`finally: shutil.rmtree(staging)` on rank 0, behind the last barrier")
def cleans_up_behind_the_last_barrier(addons: Any) -> None:
    """One rank fails, and the others train on until the next collective hangs."""
    edit.clean_up_on_one_rank(addons)
