# SPDX-License-Identifier: Apache-2.0
"""The hidden directory in which a checkpoint is made, for one save at a time."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from .files import has_mounts, lock, make_alike, may_write
from .publishing import settle

STAGING = ".staging-save"


@contextlib.contextmanager
def staging(directory: Path) -> Iterator[Path]:
    """An empty directory to prepare files in for `publish`; it is gone afterwards in any case (clause ERR-001).

    Directories that are missing above ``directory`` are made (and removed again if they stay empty). What a killed save
    has left is settled first, as by `recover`.

    Raises:
        BlockingIOError: another save into ``directory`` is under way (clause ERR-009).
        OSError: ``directory`` cannot be made or written; the message names it (clause ERR-002).
    """
    directory = Path(os.path.realpath(directory))
    if directory.exists() and not directory.is_dir():
        raise NotADirectoryError(f"{directory} must be a directory, got a file: name another destination")
    if not directory.name:
        raise OSError(f"{directory} must be a directory with a name: name another destination")
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.parent.mkdir(parents=True, exist_ok=True)
    beside, inside = _roots(directory)
    is_bound = directory.exists() and (has_mounts(directory) or not may_write(directory.parent))
    root, process = inside if is_bound else beside, os.getpid()
    try:
        with contextlib.ExitStack() as held:
            mine = {root, *filter(Path.exists, (beside, inside))}
            for one in sorted(mine):
                held.enter_context(_held(one, directory))
                settle(one, directory)
            if any(one.exists() for one in {beside, inside} - mine):
                raise _under_way(directory)
            (root / "new").mkdir()
            if directory.exists() and may_write(directory):
                with contextlib.suppress(OSError):
                    make_alike(root / "new", directory)  # before files are made in it: they inherit its group
            try:
                yield root / "new"
            finally:
                if os.getpid() == process:  # not in a fork, which drops what its parent goes on using
                    settle(root, directory)
    finally:
        for made in missing if os.getpid() == process else ():
            with contextlib.suppress(OSError):
                made.rmdir()


def recover(directory: str | os.PathLike[str]) -> bool:
    """Settle what a killed save has left of and beside a checkpoint directory; the next save there does so as well.

    Afterwards the directory holds the earlier checkpoint whole, or the new one, and nobody's files are missing.

    Returns:
        Whether there was anything to settle.

    Raises:
        BlockingIOError: a save into ``directory`` is under way.
    """
    place = Path(os.path.realpath(directory))
    left = [root for root in _roots(place) if root.exists()]
    for root in left:
        with _held(root, place):
            settle(root, place)
    return bool(left)


@contextlib.contextmanager
def _held(root: Path, directory: Path) -> Iterator[None]:
    """Hold the lock of a staging directory, which is made, and removed if it is empty afterwards."""
    place, process = root / "lock", os.getpid()
    while True:
        root.mkdir(exist_ok=True)
        owners = {os.geteuid(), *([directory.stat().st_uid] if directory.exists() else [])}
        if root.is_symlink() or root.stat().st_uid not in owners:
            raise PermissionError(f"{root} must be a directory of this user, got another's or a link: remove it")
        with contextlib.suppress(FileNotFoundError):  # the save before is just removing it
            if (file := lock(place)) is None:
                raise _under_way(directory)
            if os.path.samestat(os.fstat(file.fileno()), place.stat()):
                break
            file.close()
    with file:
        try:
            yield
        finally:
            if os.getpid() == process:
                with contextlib.suppress(OSError):
                    place.unlink()
                    root.rmdir()


def _under_way(directory: Path) -> BlockingIOError:
    return BlockingIOError(
        f"{directory} must be saved to by one at a time, got a save that is still under way: wait for it "
        "(PendingSave.result), or name another directory"
    )


def _roots(directory: Path) -> tuple[Path, Path]:
    return _beside(directory), directory / STAGING


def _beside(directory: Path) -> Path:
    """Under a name that no reader takes for a checkpoint."""
    name = directory.name
    if len(os.fsencode(name)) > 200:  # of 255 bytes (clause ERR-007)
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return directory.with_name(f".{name}{STAGING}")
