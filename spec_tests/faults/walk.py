# SPDX-License-Identifier: Apache-2.0
"""One row of the table: a kind of save with a history, on some ranks, failed at every call in turn."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from spec_tests.builders.training import shard_whole
from spec_tests.faults.saves import NEW, OLD, OTHER_PROJECTS, OTHERS, WHOLE, Kind, kinds_of
from spec_tests.faults.tracing import Body, Fault, calls_of, run
from spec_tests.harness.export import snapshot
from spec_tests.loading import load

ERRORS = ("ENOSPC", "EIO", "EROFS", "EACCES", "ENAMETOOLONG", "EDQUOT")
"""In turns: a disk that is full, fails, is mounted read-only, or denies; a name that is too long; a used-up quota."""
FAULTS = ("kill", "interrupt", "error")
HISTORIES = ("first", "again", "after a crash")
OUTCOMES = ("old", "new", "none", "incomplete", "broken", "others lost", "next save fails", "hung")
"""What a directory holds: the earlier checkpoint or the new one, whole; none yet, where there was none; none any more;
one that readers take and that is neither. Then: other people's files are gone; the next save does not put all right; a
rank has not ended."""
WRONG = OUTCOMES[3:]


@dataclass(frozen=True)
class Row:
    """What is walked.

    Attributes:
        contender: an implementation, as ``--impl`` takes it, or one of `OTHER_PROJECTS`.
        kind: ``adapter`` or ``model``.
        history: one of `HISTORIES`.
        ranks: how many save together.
        failing: which of them the fault befalls.
    """

    contender: str
    kind: str
    history: str
    ranks: int = 1
    failing: int = 0

    @property
    def title(self) -> str:
        """For people."""
        where = f", rank {self.failing} of {self.ranks}" if self.ranks > 1 else ""
        return f"{self.kind}, {self.history}{where}"


@dataclass
class Found:
    """What a row came to.

    Attributes:
        points: fault -> at how many calls it was tried.
        outcomes: fault -> how often each of `OUTCOMES` was seen.
        examples: the points with an outcome of `WRONG`, with what was seen.
        seconds: the longest time until all ranks had ended.
    """

    points: Counter[str] = field(default_factory=Counter)
    outcomes: dict[str, Counter[str]] = field(default_factory=lambda: {fault: Counter() for fault in FAULTS})
    examples: list[str] = field(default_factory=list)
    seconds: float = 0.0


def walk(row: Row) -> Found:
    """Try every fault at every call of a row."""
    kind = next(kind for kind in kinds_of(row.contender) if kind.name == row.kind)
    recover = None if row.contender in OTHER_PROJECTS else load(row.contender).recover
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        return _Walk(row, kind, recover, Path(folder)).all()


class _Walk:
    def __init__(self, row: Row, kind: Kind, recover: Callable[..., Any] | None, parent: Path) -> None:
        self.row, self.kind, self.recover, self.parent = row, kind, recover, parent
        self.place, self.log = parent / "work" / "out", parent / "log"
        self.found, self.number = Found(), itertools.count()
        self.live = {number: kind.live(number) for number in (OLD, NEW)}
        kind.save(self.live[NEW], parent / "new")  # in this process, whose forks are quick then
        if kind.numbers(parent / "new") != {NEW}:
            raise RuntimeError(f"an undisturbed save must be read as it was saved, got {kind.numbers(parent / 'new')}")
        self.earlier = parent / "earlier"
        self._make_earlier()

    def all(self) -> Found:
        self._restore()
        for at, (call, number) in enumerate(calls_of(self._bodies(), self.row.failing, self.log, self.place.parent)):
            for what in FAULTS:
                name = {"kill": "SIGKILL", "interrupt": "SIGINT", "error": ERRORS[at % len(ERRORS)]}[what]
                self._restore()
                self._try(what, Fault(call, number, name))
        return self.found

    def _make_earlier(self) -> None:
        if self.row.history == "first":
            self.earlier.mkdir()
            return
        self.kind.save(self.live[OLD], self.earlier / "out")
        for name, content in OTHERS.items():
            (self.earlier / "out" / name).parent.mkdir(exist_ok=True)
            (self.earlier / "out" / name).write_text(content)
        if self.row.history == "after a crash":
            self._restore()
            calls = calls_of(self._bodies(), self.row.failing, self.log, self.place.parent)
            self._restore()
            call, number = calls[len(calls) * 2 // 3]
            run(self._bodies(), self.row.failing, self.log, Fault(call, number, "SIGKILL"))
            shutil.rmtree(self.earlier)
            shutil.copytree(self.place.parent, self.earlier, symlinks=True)

    def _restore(self) -> None:
        shutil.rmtree(self.place.parent, ignore_errors=True)
        shutil.copytree(self.earlier, self.place.parent, symlinks=True)

    def _bodies(self) -> list[Body]:
        store = self.parent / f"store-{next(self.number)}"  # each group its own
        return [self._body(rank, store) for rank in range(self.row.ranks)]

    def _body(self, rank: int, store: Path) -> Body:
        def body() -> Any:
            torch.set_num_threads(1)
            live = self.live[NEW]
            if self.row.ranks > 1:
                os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
                os.environ["RANK"] = str(rank)
                settings = {"rank": rank, "world_size": self.row.ranks, "timeout": timedelta(minutes=10)}
                dist.init_process_group("gloo", init_method=f"file://{store}", **settings)
                live = shard_whole(live) if self.kind.name == WHOLE else live
                dist.barrier()
            return lambda: self.kind.save(live, self.place)

        return body

    def _try(self, what: str, fault: Fault) -> None:
        ended = run(self._bodies(), self.row.failing, self.log, fault)
        self.found.points[what] += 1
        self.found.seconds = max(self.found.seconds, *(one.seconds for one in ended))
        seen = list(self._seen(what == "kill"))
        seen += ["hung"] if any(one.how == "hung" for one in ended) else []
        self.found.outcomes[what].update(seen)
        if wrong := [one for one in seen if one in WRONG]:
            self.found.examples.append(f"{self.row.title}: {fault.what} at {fault.call} {fault.number}: {wrong[0]}")

    def _seen(self, killed: bool) -> Iterator[str]:
        yield self._state()
        if killed and self.recover is not None:
            self.recover(self.place)
            yield from {self._state()} & {"incomplete", "broken"}
        if not killed and not self._has_others():
            yield "others lost"
        again = all(one.how == "done" for one in run(self._bodies(), None, self.log))
        if killed and not self._has_others():
            yield "others lost"
        if not again or self._state() != "new" or len(list(self.place.parent.iterdir())) > 1:
            yield "next save fails"

    def _state(self) -> str:
        if not (self.place / self.kind.marker).exists():
            return "none" if self.row.history == "first" else "incomplete"
        try:
            numbers = self.kind.numbers(self.place)
        except Exception:  # noqa: BLE001 - what a reader raises is the finding: it could not read
            return "broken"
        return {(OLD,): "old", (NEW,): "new"}.get(tuple(numbers), "broken")

    def _has_others(self) -> bool:
        if self.row.history == "first":
            return True
        found = snapshot(self.place)
        return all(found.get(name) == content.encode() for name, content in OTHERS.items())
