# SPDX-License-Identifier: Apache-2.0
"""The package's names that faults in publishing need."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from spec_tests.mutants.editing import held, replace
from spec_tests.mutants.editing_whole import within


def change_no_places(package: Any) -> None:
    """Files are moved one by one wherever they go."""
    replace(package, held(package, "_changed_places"), lambda *_settings: False)


def move_without_a_way_back(package: Any) -> None:
    """Files are moved one by one, and what is moved stays where it is."""

    def moved(source: Path, destination: Path, names: list[Path], stale: list[Path]) -> None:
        destination.mkdir(exist_ok=True)
        for name in stale:
            (destination / name).unlink(missing_ok=True)
        for name in names:
            (destination / name).parent.mkdir(exist_ok=True)
            (source / name).replace(destination / name)

    change_no_places(package)
    replace(package, held(package, "_moved"), moved)


def follow_nothing(package: Any) -> None:
    """Other people's directories stay with the earlier checkpoint."""
    replace(package, held(package, "_follow"), lambda *_settings: None)


def settle_nothing(package: Any) -> None:
    """What a killed save has left is removed, whatever it is."""
    remove = held(package, "remove_tree")

    def settle(root: Path, _destination: Path) -> None:
        for path in root.iterdir():
            if path.name != "lock":
                remove(path)

    replace(package, held(package, "settle"), settle)


def lock_nothing(package: Any) -> None:
    """Any number of saves into one directory go on at once."""
    replace(package, held(package, "lock"), lambda path: path.open("ab"))


def forget_saves_nobody_waits_for(package: Any) -> None:
    """What a background save of this process still writes is not looked at before the next one."""
    within(package.staged.Staged, "write_later", _write_unseen)


def _write_unseen(original: Any, staged: Any, write: Any) -> None:
    original(staged, write)
    sys.modules[type(staged).__module__]._PENDING.clear()


def clean_up_on_one_rank(package: Any) -> None:
    """The staging directory is removed after the ranks have agreed that the save went well."""

    def changed(original: Any, staged: Any, *settings: Any, **more: Any) -> None:
        kept, staged._kept = staged._kept, SimpleNamespace(close=lambda: None)
        try:
            original(staged, *settings, **more)
        finally:
            staged._kept = kept

    within(package.staged.Staged, "publish", changed)


def make_nothing_alike(package: Any) -> None:
    """The next directory has what a new one has."""
    replace(package, held(package, "make_alike"), lambda *_paths: None)
