# SPDX-License-Identifier: Apache-2.0
"""Bring files to their destination: all of them or none, whatever happens (clauses ERR-001, ERR-003, ERR-008).

A checkpoint is made in a staging directory beside its destination. In it lie

- ``lock``, which the save holds that is under way;
- ``new``, the files of the checkpoint;
- ``aside``, while old files are moved out of the way; it becomes ``old`` when all of them are;
- ``journal``, names of other people's directories, which follow when ``new`` and the destination have changed places.

What a killed process has left is settled by these names alone (clause ERR-010): see `_settle`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from .files import exchange, flush, has_mounts, is_working_directory, lock, make_alike, remove_tree, write_text

STAGING = ".staging-save"
_MARKERS = ("adapter_config.json", "config.json")


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
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.parent.mkdir(parents=True, exist_ok=True)
    beside, inside = _roots(directory)
    is_bound = directory.exists() and (has_mounts(directory) or not os.access(directory.parent, os.W_OK))
    root = inside if is_bound else beside
    try:
        with contextlib.ExitStack() as held:
            for one in sorted({root, *filter(Path.exists, (beside, inside))}):
                held.enter_context(_held(one, directory))
                _settle(one, directory)
            (root / "new").mkdir()
            try:
                yield root / "new"
            finally:
                _settle(root, directory)
    finally:
        for made in missing:
            with contextlib.suppress(OSError):
                made.rmdir()


def publish(source: Path, destination: Path, marker: str, replaces: Iterable[str] = (), whole: bool = False) -> None:
    """Move every file below ``source``, which `staging` gave, to the same relative place below ``destination``.

    Files in ``destination`` whose names match a pattern of ``replaces`` and are not among the new ones belong to an
    earlier save and are removed; all others stay (clause POST-005). Patterns are looked for below ``destination``, in
    whose own name ``[`` and ``*`` are letters (clause IDX-005).

    With ``whole`` the two directories change places in one step, where the filesystem can do that and nobody's work
    suffers; other people's files are the same files as before. Otherwise the files are moved one by one: ``marker``,
    by which readers recognise a checkpoint, is taken away first and comes last, so that at no time a directory with a
    marker holds a mixture of two saves. An error on the way moves everything back.

    The files get the modes that the umask gives new files: some writers (safetensors) create theirs with
    0600, which another user of a shared disk could not read (clause ERR-006).
    """
    destination = Path(os.path.realpath(destination))
    names = sorted(path.relative_to(source) for path in source.rglob("*") if not path.is_dir())
    names.sort(key=lambda name: str(name) == marker)
    _check_places(destination, names)
    mode = 0o666 & ~_umask(source.parent)
    for name in names:
        if stat.S_IMODE((source / name).stat().st_mode) != mode:
            (source / name).chmod(mode)
        flush(source / name)
    found = {path.relative_to(destination) for pattern in replaces for path in destination.glob(pattern)}
    stale = sorted(found - set(names))
    if not (whole and _changed_places(source, destination, {*names, *stale})):
        _moved(source, destination, names, [Path(marker), *stale])


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
            _settle(root, place)
    return bool(left)


def _settle(root: Path, destination: Path) -> None:
    """Finish what has begun, or undo it, by what lies in the staging directory; then empty that, but for the lock."""
    new, aside, old, journal = (root / name for name in ("new", "aside", "old", "journal"))
    if journal.exists():  # the directories have changed places, or not yet: then those of others are where they were
        for name in json.loads(journal.read_text(encoding="utf-8")):
            if os.path.lexists(new / name) and not os.path.lexists(destination / name):
                (new / name).rename(destination / name)
    if aside.exists():
        _move_all(aside, destination)
    if old.exists():
        _move_all(new, destination)
    for path in root.iterdir():
        if path.name != "lock":
            remove_tree(path)


def _moved(source: Path, destination: Path, names: list[Path], stale: list[Path]) -> None:
    aside, old = source.parent / "aside", source.parent / "old"
    destination.mkdir(exist_ok=True)
    aside.mkdir()
    for name in dict.fromkeys((*stale, *names)):
        if os.path.lexists(destination / name):
            _move(destination / name, aside / name)
    aside.rename(old)
    try:
        for name in names:
            _move(source / name, destination / name)
    except BaseException:
        for name in reversed(names):
            if not (source / name).exists():
                _move(destination / name, source / name)
        old.rename(aside)  # which `_settle` brings back
        raise
    flush(destination)


def _changed_places(source: Path, destination: Path, own: set[Path]) -> bool:
    """Complete the next directory with other people's files, and let it take the destination's place.

    Args:
        source: the next directory; the earlier one afterwards.
        destination: where the checkpoint goes.
        own: relative paths of the files of the checkpoint, old and new.

    Returns:
        Whether it did; otherwise the destination is as it was.
    """
    if not destination.exists():
        source.rename(destination)
        flush(destination.parent)
        return True
    if destination in source.parents or is_working_directory(destination) or has_mounts(destination):
        return False
    before, journal = destination.stat(), source.parent / "journal"
    try:
        follow = _linked(destination, source, own)
        make_alike(source, destination)
        if follow:
            draft = source.parent / "draft"
            write_text(draft, json.dumps(sorted(map(str, follow))))
            flush(draft)
            draft.rename(journal)
        flush(source)
        exchange(source, destination)
    except OSError:
        journal.unlink(missing_ok=True)
        for path in sorted(source.rglob("*")):
            if (path.is_symlink() or not path.is_dir()) and path.relative_to(source) not in own:
                path.unlink()  # a link to what is somebody's, who may change it before `_settle`
        return False
    finally:
        if not os.path.samestat(before, destination.stat()):
            _follow(source, destination, own)
    flush(destination)
    flush(destination.parent)
    return True


def _linked(earlier: Path, following: Path, own: set[Path], below: Path = Path()) -> list[Path]:
    """Give the next directory other people's files, and return their directories, which cannot be linked."""
    directories: list[Path] = []
    for path in sorted((earlier / below).iterdir()):
        name = below / path.name
        if name in own or (os.path.lexists(following / name) and not path.is_dir()):
            continue
        if path.is_symlink() or not path.is_dir():
            os.link(path, following / name, follow_symlinks=False)
        elif any(name in one.parents for one in own):
            (following / name).mkdir(exist_ok=True)
            make_alike(following / name, path)
            directories += _linked(earlier, following, own, name)
        elif not os.access(path, os.W_OK):
            raise PermissionError(f"{path} cannot be moved")
        else:
            directories.append(name)
    return directories


def _follow(earlier: Path, destination: Path, own: set[Path], below: Path = Path()) -> None:
    """Move what the destination still lacks: other people's directories, and what they have just made."""
    for path in sorted((earlier / below).iterdir()):
        name = below / path.name
        if not os.path.lexists(destination / name):
            if name not in own:
                path.rename(destination / name)
        elif path.is_dir() and not path.is_symlink():
            _follow(earlier, destination, own, name)


def _move_all(source: Path, destination: Path) -> None:
    names = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_symlink() or not path.is_dir())
    for name in sorted(names, key=lambda name: str(name) in _MARKERS):
        _move(source / name, destination / name)
    flush(destination)


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)


def _check_places(destination: Path, names: Iterable[Path]) -> None:
    for name in names:
        target = destination / name
        if target.is_dir() and not target.is_symlink():
            raise IsADirectoryError(f"{target} must be a file of the checkpoint, got a directory: remove it")
        for parent in (destination / path for path in name.parents):
            if parent.exists() and not parent.is_dir():
                raise NotADirectoryError(f"{parent} must be a directory of the checkpoint, got a file: remove it")


@contextlib.contextmanager
def _held(root: Path, directory: Path) -> Iterator[None]:
    """Hold the lock of a staging directory, which is made, and removed if it is empty afterwards."""
    place = root / "lock"
    while True:
        root.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # the save before is just removing it
            if (file := lock(place)) is None:
                raise BlockingIOError(
                    f"{directory} must be saved to by one at a time, got a save that is still under way: wait for it "
                    "(PendingSave.result), or name another directory"
                )
            if os.path.samestat(os.fstat(file.fileno()), place.stat()):
                break
            file.close()
    with file:
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                place.unlink()
                root.rmdir()


def _roots(directory: Path) -> tuple[Path, Path]:
    return _beside(directory), directory / STAGING


def _beside(directory: Path) -> Path:
    """Under a name that no reader takes for a checkpoint."""
    name = directory.name
    if len(os.fsencode(name)) > 200:  # of 255 bytes (clause ERR-007)
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return directory.with_name(f".{name}{STAGING}")


def _umask(directory: Path) -> int:
    # os.umask can only be read by changing it, which races with other threads: ask a new file instead.
    probe = directory / "umask"
    descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        return 0o666 & ~os.fstat(descriptor).st_mode
    finally:
        os.close(descriptor)
        probe.unlink()
