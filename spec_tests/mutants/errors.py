# SPDX-License-Identifier: Apache-2.0
"""Faults in how files get to the disk (spec/errors.md)."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import Any

from spec_tests.mutants.editing import held, replace
from spec_tests.mutants.registry import mutant


@mutant(kills=["ERR-001", "ERR-003"], also=("TOK", "HOOK", "RANK"), source="`json.dump` into the final file")
def writes_straight_into_the_directory(addons: Any) -> None:
    """A save that fails half way leaves half a file where a good one was."""

    @contextlib.contextmanager
    def staging(directory: Path) -> Any:
        directory.mkdir(parents=True, exist_ok=True)
        yield directory

    replace(addons, held(addons, "staging"), staging)
    addons.adapter_metadata.publish = lambda _source, _destination, **_more: None


@mutant(kills=["ERR-001"], source="`shutil.rmtree` before every save")
def removes_the_old_files_first(addons: Any) -> None:
    """A save that fails takes the last good checkpoint with it."""
    original = addons.adapter_metadata.staging

    def broken(directory: Path) -> Any:
        if directory.is_dir():
            for path in directory.iterdir():
                if path.is_file():
                    path.unlink()
        return original(directory)

    addons.adapter_metadata.staging = broken


@mutant(kills=["ERR-002"], source="`except OSError: raise RuntimeError`")
def hides_which_directory_cannot_be_written(addons: Any) -> None:
    """The log says that the save failed, not where."""
    original = addons.adapter_metadata.write

    def broken(save: Any, views: Any) -> None:
        try:
            original(save, views)
        except OSError:
            raise RuntimeError("the checkpoint could not be saved") from None

    addons.adapter_metadata.write = broken


@mutant(kills=["ERR-003"], also=("ERR",), source="Lightning#19970")
def shows_the_metadata_before_it_is_whole(addons: Any) -> None:
    """A watcher of the directory reads a file that is still being written."""
    original = addons.adapter_metadata._maybe_save_custom_model_code

    def broken(source: Any, place: Path) -> None:
        # The new name is taken from the start, and filled at the end.
        (place.parent / held(addons, "AUTOMODEL_PEFT_CONFIG")).write_text("{")
        original(source, place)

    addons.adapter_metadata._maybe_save_custom_model_code = broken


def _publish(package: Any, change: Any) -> None:
    """``change(move, source, destination, marker)`` takes the place of the move in save_adapter."""
    original = package.save.publish

    def publish(source: Path, destination: Path, marker: str, **more: Any) -> None:
        def move() -> None:
            original(source, destination, marker=marker, **more)

        change(move, source, destination, marker)

    package.save.publish = publish


@mutant(kills=["ERR-004"], source="files moved in the order of their names")
def publishes_the_marker_first(addons: Any) -> None:
    """A process killed between two moves leaves the new config beside the old weights."""

    def first(move: Any, source: Path, destination: Path, marker: str) -> None:
        destination.mkdir(parents=True, exist_ok=True)
        os.replace(source / marker, destination / marker)  # noqa: PTH105
        move()

    _publish(addons, first)


@mutant(kills=["ERR-004"], source="every file replaced atomically, one after the other")
def leaves_the_old_marker_while_weights_change(addons: Any) -> None:
    """A process killed between two moves leaves the old config beside the new weights."""

    def kept(move: Any, source: Path, destination: Path, _marker: str) -> None:
        weights = "adapter_model.safetensors"
        destination.mkdir(parents=True, exist_ok=True)
        os.replace(source / weights, destination / weights)  # noqa: PTH105
        move()

    _publish(addons, kept)


@mutant(kills=["ERR-005"], source="`tempfile.mkdtemp` for every save")
def stages_under_a_new_name_each_time(addons: Any) -> None:
    """Every killed save leaves a directory beside the adapter, and no later one removes it."""
    original = held(addons, "staging_beside")

    def broken(destination: Path) -> Path:
        place = original(destination)
        return place.with_name(f"{place.name}-{secrets.token_hex(4)}")

    replace(addons, original, broken)


@mutant(kills=["ERR-005", "ERR-001"], source="a clean-up that only success reaches")
def leaves_its_staging_directory_after_a_failure(addons: Any) -> None:
    """A failed save leaves a directory beside the adapter."""
    remove, pre_save = held(addons, "remove_tree"), addons.PeftAddon.pre_save
    failed = []

    def saving(self: Any, **kwargs: Any) -> None:
        try:
            pre_save(self, **kwargs)
        except Exception:
            failed.append(True)
            raise

    def removing(path: Path) -> None:
        if failed:
            failed.clear()
        else:
            remove(path)

    addons.PeftAddon.pre_save = saving
    replace(addons, remove, removing)


@mutant(kills=["ERR-006"], source="safetensors: `save_file` makes 0600")
def keeps_the_mode_of_safetensors(addons: Any) -> None:
    """Nobody but the user who trained can read the weights."""
    flush = held(addons, "_flush")

    def broken(path: Path) -> None:
        if path.suffix == ".safetensors":
            path.chmod(0o600)
        flush(path)

    replace(addons, flush, broken)


@mutant(kills=["ERR-006"], source="`os.chmod(path, 0o644)`")
def makes_every_file_readable_by_all(addons: Any) -> None:
    """A site whose umask keeps files private finds them open."""
    replace(addons, held(addons, "_umask"), lambda _directory: 0o022)
