# SPDX-License-Identifier: Apache-2.0
"""Bring files to their destination: all of them or none, whatever happens (clauses ERR-001, ERR-003, ERR-008).

A checkpoint is made in a staging directory beside its destination. In it lie

- ``lock``, which the save holds that is under way;
- ``new``, the files of the checkpoint;
- ``aside``, while old files are moved out of the way; it becomes ``old`` when all of them are;
- ``journal``, by which what is other people's follows when ``new`` and the destination have changed places.

What a killed process has left is settled by these names alone (clause ERR-010): see `settle`.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from .files import exchange, flush, has_mounts, is_working_directory, make_alike, may_write, remove_tree, write_text

_MARKERS = ("adapter_config.json", "config.json")


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
    mode = _usual_mode(source.parent)
    for name in names:
        if stat.S_IMODE((source / name).stat().st_mode) != mode:
            (source / name).chmod(mode)
        flush(source / name)
    found = {path for pattern in replaces for path in destination.glob(pattern) if _is_file(path)}
    stale = sorted({path.relative_to(destination) for path in found} - set(names))
    if not (whole and _changed_places(source, destination, {*names, *stale})):
        _moved(source, destination, names, [Path(marker), *stale])


def settle(root: Path, destination: Path) -> None:
    """Finish what has begun, or undo it, by what lies in the staging directory; then empty that, but for the lock."""
    new, aside, old, journal = (root / name for name in ("new", "aside", "old", "journal"))
    if journal.exists():
        said = json.loads(journal.read_bytes())
        if new.stat().st_ino == said["before"]:  # the directories have changed places
            linked = {Path(name): inode for name, inode in said["linked"].items()}
            _follow(new, destination, {*map(Path, said["own"])}, linked)
        journal.unlink()  # before anything else: what is removed below must not look like removed by others
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
            if not os.path.lexists(source / name):
                _move(destination / name, source / name)
        old.rename(aside)  # which `settle` brings back
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
    if destination in source.parents or not may_write(destination):
        return False
    if is_working_directory(destination) or has_mounts(destination):
        return False
    before, journal, linked = destination.stat(), source.parent / "journal", dict[Path, int]()
    try:
        _link(destination, source, own, linked)
        make_alike(source, destination)  # again: what it cannot get is a reason to move the files instead
        draft = source.parent / "draft"
        said = {"before": before.st_ino, "own": sorted(map(str, own)), "linked": {str(n): i for n, i in linked.items()}}
        write_text(draft, json.dumps(said))
        flush(draft)
        draft.rename(journal)
        flush(source)
        exchange(source, destination)
    except OSError:
        if not os.path.samestat(before, destination.stat()):  # it came from a signal handler, after the exchange
            raise
        journal.unlink(missing_ok=True)
        for name in linked:
            (source / name).unlink()  # somebody may change the file before `settle`
        return False
    finally:
        if not os.path.samestat(before, destination.stat()):
            _follow(source, destination, own, linked)
    flush(destination)
    flush(destination.parent)
    return True


def _link(earlier: Path, following: Path, own: set[Path], linked: dict[Path, int], below: Path = Path()) -> None:
    """Give the next directory other people's files; ``linked`` gets their inodes. Their directories cannot be linked.

    Raises:
        OSError: a file may not be linked, or a directory may not be moved.
    """
    for path in sorted((earlier / below).iterdir()):
        name = below / path.name
        if name in own or (os.path.lexists(following / name) and not path.is_dir()):
            continue
        if _is_file(path):
            os.link(path, following / name, follow_symlinks=False)
            linked[name] = (following / name).lstat().st_ino
        elif any(name in one.parents for one in own):
            (following / name).mkdir(exist_ok=True)
            make_alike(following / name, path)
            _link(earlier, following, own, linked, name)
        elif not may_write(path):
            raise PermissionError(f"{path} cannot be moved")


def _follow(earlier: Path, destination: Path, own: set[Path], linked: dict[Path, int]) -> None:
    """Bring what the destination lacks of other people's: directories, and what they did since files were linked."""
    _move_missing(earlier, destination, own)
    for name, inode in linked.items():
        now, then = destination / name, earlier / name
        if os.path.lexists(now) and now.lstat().st_ino == inode:
            if not os.path.lexists(then):
                now.unlink()
            elif then.lstat().st_ino != inode:
                then.replace(now)


def _move_missing(earlier: Path, destination: Path, own: set[Path], below: Path = Path()) -> None:
    for path in sorted((earlier / below).iterdir()):
        name = below / path.name
        if not os.path.lexists(destination / name):
            if name not in own:
                path.rename(destination / name)
        elif path.is_dir() and not path.is_symlink():
            _move_missing(earlier, destination, own, name)


def _is_file(path: Path) -> bool:
    return path.is_symlink() or not path.is_dir()


def _move_all(source: Path, destination: Path) -> None:
    names = sorted(path.relative_to(source) for path in source.rglob("*") if _is_file(path))
    for name in sorted(names, key=lambda name: str(name) in _MARKERS):
        _move(source / name, destination / name)
    flush(destination)


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)


def _check_places(destination: Path, names: Iterable[Path]) -> None:
    for name in names:
        target = destination / name
        if not _is_file(target):
            raise IsADirectoryError(f"{target} must be a file of the checkpoint, got a directory: remove it")
        for parent in (destination / path for path in name.parents):
            if parent.exists() and not parent.is_dir():
                raise NotADirectoryError(f"{parent} must be a directory of the checkpoint, got a file: remove it")


def _usual_mode(directory: Path) -> int:
    # os.umask can only be read by changing it, which races with other threads: ask a new file instead.
    probe = directory / "umask"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    return mode
