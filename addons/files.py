# SPDX-License-Identifier: Apache-2.0
"""Crash-safe writes: the only module that creates, moves or removes files.

Everything is first written under a name nobody reads and then renamed, so that a reader (or the next
run after a crash) finds either the old file or the new one, never half of one (clause ERR-003).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

STAGING_PREFIX = ".staging-"


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 with plain newlines, whatever the locale; otherwise as `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file; directories that are missing above it are created. `publish` flushes it to the disk."""
    with new_file(path) as file:
        file.write(content)


def new_file(path: Path) -> BinaryIO:
    """An empty file, open for writing; directories that are missing above it are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # os.open applies the umask to 0o666, as for any file a user creates.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666)
    return os.fdopen(descriptor, "wb", buffering=2**20)


@contextlib.contextmanager
def staging(directory: Path) -> Iterator[Path]:
    """An empty directory inside ``directory`` to prepare files in; it is gone afterwards in any case (clause ERR-001).

    ``directory`` is created when missing (and removed again if it was made here and stays empty). What an
    interrupted earlier save left under the same name is removed first.

    Raises:
        OSError: ``directory`` cannot be made or written; the message names it (clause ERR-002).
    """
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    place = directory / f"{STAGING_PREFIX}addon"
    remove_tree(place)
    place.mkdir()
    try:
        yield place
    finally:
        remove_tree(place)
        with contextlib.suppress(OSError):
            for made in missing:
                made.rmdir()


def publish(source: Path, destination: Path, marker: str, replaces: Iterable[str] = ()) -> None:
    """Move every file below ``source`` to the same relative place below ``destination``, ``marker`` last.

    Files in ``destination`` whose names match a pattern of ``replaces`` and are not among the new ones belong to an
    earlier save and are removed; all others stay (clause POST-005). Patterns are looked for below ``destination``, in
    whose own name ``[`` and ``*`` are letters (clause IDX-005).

    The marker is the file by which readers recognise a checkpoint. An older marker is taken away first, so
    that at no time does a directory with a marker hold a mixture of two saves.

    The files get the modes that the umask gives new files: some writers (safetensors) create theirs with
    0600, which another user of a shared disk could not read (clause ERR-006).
    """
    names = sorted(path.relative_to(source) for path in source.rglob("*") if not path.is_dir())
    names.sort(key=lambda name: str(name) == marker)
    destination.mkdir(parents=True, exist_ok=True)
    for name in names:
        target = destination / name
        if target.is_dir() and not target.is_symlink():
            raise IsADirectoryError(f"{target} must be a file of the checkpoint, got a directory: remove it")
        for parent in (destination / path for path in name.parents):
            if parent.exists() and not parent.is_dir():
                raise NotADirectoryError(f"{parent} must be a directory of the checkpoint, got a file: remove it")
    mode = 0o666 & ~_umask(source)
    for name in names:
        if stat.S_IMODE((source / name).stat().st_mode) != mode:
            (source / name).chmod(mode)
        _flush(source / name)
    stale = [
        path for pattern in replaces for path in destination.glob(pattern) if path.relative_to(destination) not in names
    ]
    if marker in map(str, names):
        (destination / marker).unlink(missing_ok=True)
    for path in sorted(stale):
        path.unlink(missing_ok=True)
    for name in names:
        (destination / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).replace(destination / name)
    _flush(destination)


def remove_tree(path: Path) -> None:
    """Remove ``path`` and all below it; nothing happens when it does not exist."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _umask(directory: Path) -> int:
    # os.umask can only be read by changing it, which races with other threads: ask a new file instead.
    probe = directory / f"{STAGING_PREFIX}umask"
    descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        return 0o666 & ~os.fstat(descriptor).st_mode
    finally:
        os.close(descriptor)
        probe.unlink()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
