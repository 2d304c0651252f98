# SPDX-License-Identifier: Apache-2.0
"""Where a checkpoint goes, and the directory beside it in which it is made."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch.distributed as dist

from .companions import replaced_tokenizer
from .publishing import publish
from .ranks import on_rank_zero, share
from .staging import staging

_PENDING: weakref.WeakValueDictionary[Path, Staged] = weakref.WeakValueDictionary()


class Staged:
    """A directory in which a checkpoint is made, beside its destination.

    Collective: rank 0 makes and removes it. As a context manager it is gone afterwards in any case. Raises as
    `staging`.

    Args:
        destination: where the checkpoint will go.
        group: the ranks that save together.

    Attributes:
        place: the directory.
    """

    def __init__(self, destination: Path, group: dist.ProcessGroup | None) -> None:
        self.destination, self.group = destination, group
        self._kept = contextlib.ExitStack()
        self._writer = ThreadPoolExecutor()
        self.place: Path = share(group, on_rank_zero(group, self._make))

    def __enter__(self) -> Staged:  # noqa: PYI034 - typing.Self needs Python 3.11
        return self

    def __exit__(self, *_error: object) -> None:
        self.wait()
        self._kept.close()

    def write_later(self, write: Callable[[], None]) -> Future[None]:
        """Write in the background. The directory stays until that has ended, also when nobody asks for the result."""
        writing = self._writer.submit(lambda _self: write(), self)
        _PENDING[self.destination] = self
        return writing

    def wait(self) -> None:
        """Wait for what is written in the background: it would write into the next save's files."""
        self._writer.shutdown()

    def publish(self, marker: str, owned: Sequence[str] = ()) -> None:
        """Move the files to the destination, on rank 0; those of ``owned`` and tokenizers of earlier saves go."""
        replaces = (*owned, *replaced_tokenizer(self.place))
        publish(self.place, self.destination, marker=marker, replaces=replaces, whole=True)
        self._kept.close()  # here, where an error reaches every rank (clause RANK-014)

    def _make(self) -> Path:
        return self._kept.enter_context(staging(self.destination))


def destination_of(directory: str | os.PathLike[str], others: Sequence[str], into_other: bool) -> Path:
    """The destination, absolute and without links: ranks may spell it in several ways (clause RANK-012).

    Args:
        directory: as the caller spells it.
        others: patterns of files by which a checkpoint of the other kind is known: of a model, or of an adapter.
        into_other: whether the caller wants both in one directory.

    Raises:
        ValueError: it is empty, which would mean the working directory; or it holds a checkpoint of the other kind
            (clause POST-013).
    """
    if not os.fspath(directory):
        raise ValueError(f"directory must be the path of a directory, got {directory!r}: name the destination")
    place = Path(directory).resolve()
    if (earlier := _PENDING.get(place)) is not None:
        earlier.wait()
        del earlier  # one that was dropped ends here (clause ERR-009)
    there = [] if into_other else sorted(path.name for pattern in others for path in place.glob(pattern))
    if there:
        raise ValueError(
            f"{place} must not hold both a model and an adapter, got {there[0]} there: from_pretrained would apply the "
            "one to the other. Name another directory, or pass into_other_checkpoint=True"
        )
    return place
