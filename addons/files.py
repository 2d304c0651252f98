# SPDX-License-Identifier: Apache-2.0
"""What one file or directory needs: writing, flushing, removing, locking, and taking another's place."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import weakref
from pathlib import Path
from typing import BinaryIO

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 with plain newlines, whatever the locale; otherwise as `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file; directories that are missing above it are created. `publish` flushes it to the disk."""
    with new_file(path) as file:
        file.write(content)


def new_file(path: Path) -> BinaryIO:
    """An empty file, open for writing; directories that are missing above it are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The LoRA of experts are many small tensors.
    return path.open("wb", buffering=2**20)


def remove_tree(path: Path) -> None:
    """Remove ``path`` and all below it; nothing happens when it does not exist."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def exchange(one: Path, other: Path) -> None:
    """Let two directories change places, in one step of the filesystem (Linux: ``renameat2``).

    Raises:
        OSError: the system, or this filesystem, cannot; nothing has changed then.
    """
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        raise OSError(errno.ENOSYS, "this system has no renameat2", str(one)) from None
    if rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(one), None, str(other))


_locked: weakref.WeakSet[BinaryIO] = weakref.WeakSet()


def _close_in_a_fork() -> None:
    # A child that outlives a killed parent would hold its locks.
    for file in list(_locked):
        file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_a_fork)


def lock(path: Path) -> BinaryIO | None:
    """Hold ``path``, a file that is made for it, until what is returned is closed, or this process has ended.

    None where another holds it. Where files cannot be locked (Windows, some shared disks) nobody ever does.
    """
    file = path.open("ab")
    _locked.add(file)
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        return file
    except BlockingIOError:
        file.close()
        return None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL):
            file.close()
            raise
    return file


def may_write(directory: Path) -> bool:
    """Whether this process may make and remove files in a directory."""
    return os.access(directory, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids)


def make_alike(new: Path, old: Path) -> None:
    """Give a new directory the mode, attributes and owner of an old one (clause POST-014), or raise OSError."""
    shutil.copystat(old, new)
    if (old.stat().st_uid, old.stat().st_gid) != (new.stat().st_uid, new.stat().st_gid):
        os.chown(new, old.stat().st_uid, old.stat().st_gid)


def is_working_directory(directory: Path) -> bool:
    """Whether this process works in a directory or below it."""
    try:
        return directory in (Path.cwd(), *Path.cwd().parents)
    except FileNotFoundError:
        return False


def has_mounts(directory: Path) -> bool:
    """Whether something is mounted on a directory or below it: a file system, or a directory of the same one."""
    table = Path("/proc/self/mountinfo")
    if not table.exists():
        return os.path.ismount(directory)
    points = (re.sub(rb"\\(\d{3})", _octal, line.split()[4]) for line in table.read_bytes().splitlines())
    return any(directory in (point, *point.parents) for point in (Path(os.fsdecode(one)) for one in points))


def _octal(found: re.Match[bytes]) -> bytes:
    return bytes([int(found[1], 8)])


def flush(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
