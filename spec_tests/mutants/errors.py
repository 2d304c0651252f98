# SPDX-License-Identifier: Apache-2.0
"""Faults in how files get to the disk (spec/errors.md)."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spec_tests.mutants import editing_peft as edit
from spec_tests.mutants.editing_whole import (
    change_clean_up,
    change_place,
    change_staging,
    on_publish_adapter,
    on_publish_by_hook,
    on_publish_whole,
)
from spec_tests.mutants.registry import mutant


@mutant(kills=["ERR-001", "ERR-003"], also=("TOK", "HOOK", "RANK"), source="`json.dump` into the final file")
def writes_straight_into_the_directory(addons: Any) -> None:
    """A save that fails half way leaves half a file where a good one was."""

    @contextlib.contextmanager
    def staging(_original: Any, directory: Path) -> Any:
        directory.mkdir(parents=True, exist_ok=True)
        yield directory

    change_staging(addons, staging)
    on_publish_by_hook(addons, lambda *_settings: None)


@mutant(kills=["ERR-001"], source="`shutil.rmtree` before every save")
def removes_the_old_files_first(addons: Any) -> None:
    """A save that fails takes the last good checkpoint with it."""

    def change(staging: Any, directory: Path) -> Any:
        if directory.is_dir():
            for path in directory.iterdir():
                if path.is_file():
                    path.unlink()
        return staging(directory)

    change_staging(addons, change)


@mutant(kills=["ERR-002"], source="`except OSError: raise RuntimeError`")
def hides_which_directory_cannot_be_written(addons: Any) -> None:
    """The log says that the save failed, not where."""
    original = addons.PeftAddon.pre_save

    def pre_save(self: Any, **kwargs: Any) -> None:
        try:
            original(self, **kwargs)
        except OSError:
            raise RuntimeError("the checkpoint could not be saved") from None

    addons.PeftAddon.pre_save = pre_save


@mutant(kills=["ERR-003"], also=("ERR",), source="Lightning#19970")
def shows_the_metadata_before_it_is_whole(addons: Any) -> None:
    """A watcher of the directory reads a file that is still being written."""

    def change(staging: Any, directory: Path) -> Any:
        # The new name is taken from the start, and filled at the end.
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "automodel_peft_config.json").write_text("{")
        return staging(directory)

    change_staging(addons, change)


@mutant(kills=["ERR-004"], source="files moved in the order of their names")
def publishes_the_marker_first(addons: Any) -> None:
    """A process killed between two moves leaves the new config beside the old weights."""

    def first(publish: Any, source: Path, destination: Path, more: dict[str, Any]) -> None:
        destination.mkdir(parents=True, exist_ok=True)
        os.replace(source / more["marker"], destination / more["marker"])  # noqa: PTH105
        publish(source, destination, **more)

    on_publish_adapter(addons, first)


@mutant(kills=["ERR-004"], source="every file replaced atomically, one after the other")
def leaves_the_old_marker_while_weights_change(addons: Any) -> None:
    """A process killed between two moves leaves the old config beside the new weights."""

    def kept(publish: Any, source: Path, destination: Path, more: dict[str, Any]) -> None:
        weights = "adapter_model.safetensors"
        destination.mkdir(parents=True, exist_ok=True)
        os.replace(source / weights, destination / weights)  # noqa: PTH105
        publish(source, destination, **more)

    on_publish_adapter(addons, kept)


@mutant(kills=["ERR-005"], source="`tempfile.mkdtemp` for every save")
def stages_under_a_new_name_each_time(addons: Any) -> None:
    """Every killed save leaves a directory beside the adapter, and no later one removes it."""
    change_place(addons, lambda place: place.with_name(f"{place.name}-{secrets.token_hex(4)}"))


@mutant(kills=["ERR-005", "ERR-001"], source="a clean-up that only success reaches")
def leaves_its_staging_directory_after_a_failure(addons: Any) -> None:
    """A failed save leaves a directory beside the adapter."""
    change_clean_up(addons, lambda remove, failed: None if failed else remove())


def _modes(package: Any, change: Callable[[Path], None]) -> None:
    """``change(path)`` sets the modes of the files of a checkpoint that was saved in one call."""

    def changed(publish: Any, source: Path, destination: Path, more: dict[str, Any]) -> None:
        publish(source, destination, **more)
        for path in destination.iterdir():
            change(path)

    on_publish_adapter(package, changed)
    on_publish_whole(package, changed)


@mutant(kills=["ERR-006"], source="safetensors: `save_file` makes 0600")
def keeps_the_mode_of_safetensors(addons: Any) -> None:
    """Nobody but the user who trained can read the weights."""
    _modes(addons, lambda path: path.chmod(0o600) if path.suffix == ".safetensors" else None)


@mutant(kills=["ERR-006"], source="`os.chmod(path, 0o644)`")
def makes_every_file_readable_by_all(addons: Any) -> None:
    """A site whose umask keeps files private finds them open."""
    _modes(addons, lambda path: path.chmod(0o644))


@mutant(kills=["ERR-007"], source='`f".{name}.staging"`')
def stages_under_a_longer_name(addons: Any) -> None:
    """A long name of a run cannot be saved to."""
    edit.stage_under_the_whole_name(addons)
