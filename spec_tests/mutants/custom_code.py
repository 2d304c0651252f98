# SPDX-License-Identifier: Apache-2.0
"""Faults in copying the model's own code (spec/custom_code.md); of CODE-001 there is one more in tokenizer.py."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from spec_tests.mutants.editing_content import change_belongs, change_code, change_copied_code, change_own_code
from spec_tests.mutants.editing_whole import on_publish_by_hook, on_publish_metadata, on_publish_whole
from spec_tests.mutants.registry import mutant


def _change_copy(package: Any, change: Callable[..., None]) -> None:
    """``change(copy, source, destination)`` takes the place of the copying, for sources that are on the disk."""

    def changed(copy: Any, source: Any, destination: Path, model: Any) -> None:
        if source is None or not Path(source).exists():
            copy(source, destination, model)
        else:
            change(lambda *where: copy(*where, model), Path(source), destination)

    change_code(package, changed)


@mutant(kills=["CODE-002"], source="`if os.path.isdir(original_model_path)`")
def copies_no_single_file(addons: Any) -> None:
    """A model that is one file is saved without it."""

    def change(copy: Any, source: Path, destination: Path) -> None:
        if source.is_dir():
            copy(source, destination)

    _change_copy(addons, change)


@mutant(kills=["CODE-002"], source="`elif os.path.isfile(path): shutil.copy(path, destination)`")
def copies_a_single_file_of_any_kind(addons: Any) -> None:
    """A GGUF file of many gigabytes lies beside the adapter."""

    def change(copy: Any, source: Path, destination: Path) -> None:
        if source.is_file() and source.suffix != ".py":
            shutil.copyfile(source, destination / source.name)
        else:
            copy(source, destination)

    _change_copy(addons, change)


@mutant(kills=["CODE-002"], source="`os.path.dirname(original_model_path)`")
def takes_the_folder_of_a_single_file(addons: Any) -> None:
    """Whatever Python files lay beside the model's one are published with it."""

    def change(copy: Any, source: Path, destination: Path) -> None:
        copy(source.parent if source.is_file() else source, destination)

    _change_copy(addons, change)


@mutant(kills=["CODE-003"], source="`glob('**/*.py', recursive=True)`")
def copies_earlier_checkpoints(addons: Any) -> None:
    """Every save copies the code of all earlier ones: 1, 2, 4, 8 files."""

    def files(_own: Any, folder: Path, _destination: Path) -> Iterator[Path]:
        for path in sorted(folder.rglob("*.py")):
            hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
            if path.is_file() and not path.is_symlink() and not hidden:
                yield path

    change_own_code(addons, files)


@mutant(kills=["CODE-003"], source="`os.walk` of the model's folder")
def copies_hidden_files(addons: Any) -> None:
    """Hooks of git and other files that are no part of the model are published."""

    def files(own: Any, folder: Path, destination: Path) -> Iterator[Path]:
        yield from own(folder, destination)
        yield from (path for path in folder.glob(".*.py") if path.is_file())
        yield from (path for path in folder.glob(".git/**/*.py") if path.is_file())

    change_own_code(addons, files)


@mutant(kills=["CODE-003"], source="only the name `.venv` known")
def copies_the_environment_in_the_folder(addons: Any) -> None:
    """A checkpoint comes with the site-packages of whoever trained."""

    def files(own: Any, folder: Path, destination: Path) -> Iterator[Path]:
        yield from own(folder, destination)
        for environment in folder.glob("[!.]*/pyvenv.cfg"):
            yield from environment.parent.rglob("*.py")

    change_own_code(addons, files)


@mutant(kills=["CODE-004"], source="transformers#46279")
def follows_links_anywhere(addons: Any) -> None:
    """A link in a downloaded model publishes any file of this machine."""
    change_belongs(addons, lambda _belongs, path, _folder: path.is_file())


@mutant(kills=["CODE-004"], source="`if path.is_symlink(): continue`")
def leaves_out_every_link(addons: Any) -> None:
    """A model in the hub's cache, which consists of links, is saved without its code."""
    change_belongs(addons, lambda belongs, path, folder: not path.is_symlink() and belongs(path, folder))


@mutant(kills=["CODE-004"], source="`shutil.copy(..., follow_symlinks=False)`")
def copies_links_as_links(addons: Any) -> None:
    """The code of a model in the hub's cache is gone as soon as the cache is, or elsewhere."""

    def copyfile(source: Path, target: Path) -> None:
        target.unlink(missing_ok=True)
        if source.is_symlink():
            target.symlink_to(source.resolve())
        else:
            shutil.copyfile(source, target)

    change_copied_code(addons, copyfile)


@mutant(kills=["CODE-004"], also=("ERR",), source="`shutil.copy2`, and a move that keeps modes")
def keeps_the_modes_of_the_originals(addons: Any) -> None:
    """Code of a read-only model is read-only in the checkpoint: the next save straight into it fails."""
    change_copied_code(addons, lambda source, target: shutil.copy2(source, target) and None)

    def change(publish: Any, source: Path, destination: Path, more: dict[str, Any]) -> None:
        modes = {path.relative_to(source): path.stat().st_mode for path in source.rglob("*.py")}
        publish(source, destination, **more)
        for path, mode in modes.items():
            (destination / path).chmod(mode)

    on_publish_by_hook(addons, change)
    on_publish_metadata(addons, change)


@mutant(kills=["CODE-005", "CODE-001"], also=("POST", "TOK"), source="`config.auto_map` read for one file name")
def copies_the_modeling_file_alone(addons: Any) -> None:
    """The model loads where it was trained, whose cache has the rest of its code, and nowhere else."""
    change_own_code(addons, lambda own, *where: (path for path in own(*where) if path.name.startswith("modeling")))


@mutant(kills=["CODE-005"], also=("POST",), source="weights and JSON files copied out, by their suffixes")
def leaves_the_code_in_the_staging(addons: Any) -> None:
    """`trust_remote_code=True` finds no code beside the consolidated weights."""

    def change(publish: Any, source: Path, destination: Path, more: dict[str, Any]) -> None:
        for path in source.rglob("*.py"):
            path.unlink()
        publish(source, destination, **more)

    on_publish_whole(addons, change)


@mutant(kills=["CODE-001"], source="transformers: `shutil.copy` of each file into one directory")
def flattens_custom_code(addons: Any) -> None:
    """`from .parts.helper import y` fails: helper.py lies beside the model's own file."""

    def change(copy: Any, source: Path, destination: Path) -> None:
        copy(source, destination)
        for path in sorted(destination.rglob("*.py")):
            path.replace(destination / path.name)

    _change_copy(addons, change)


@mutant(kills=["CODE-001"], source="`shutil.copytree`")
def copies_the_whole_model(addons: Any) -> None:
    """The base model's weights and its config.json lie in the adapter's directory."""

    def change(_copy: Any, source: Path, destination: Path) -> None:
        if source.is_dir():
            shutil.copytree(source, destination, dirs_exist_ok=True)

    _change_copy(addons, change)
