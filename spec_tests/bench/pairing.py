# SPDX-License-Identifier: Apache-2.0
"""Time two contenders in turn, so that what else the machine does hits both alike."""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from spec_tests.bench.rows import BenchError
from spec_tests.bench.written import flush


def nothing(*_args: Any) -> None:
    """Do nothing: the default of the untimed steps."""


@dataclass(frozen=True)
class Contender:
    """One way to do the work of a row.

    Attributes:
        run: the timed part; writes into the directory that it is given, which is new and empty.
        finish: the untimed rest, given what ``run`` returned.
        look: says what was written, after the warm-up; both contenders of a row have to say the same.
    """

    run: Callable[[Path], Any]
    finish: Callable[[Any], object] = nothing
    look: Callable[[Path], object] = nothing


@dataclass(frozen=True)
class Pairs:
    """How many pairs a row runs: ``least``, then more until ``most``, or until the timed parts took ``seconds``."""

    least: int = 3
    most: int = 11
    seconds: float = 6.0

    def enough(self, done: int, seconds: float) -> bool:
        """Whether to stop after so many pairs and seconds."""
        return done >= self.most or (done >= self.least and seconds >= self.seconds)


@dataclass(frozen=True)
class Alone:
    """How ranks run a contender together: here there is one process only."""

    first: bool = True

    def start(self) -> None:
        """Wait until every rank is here."""

    def slowest(self, seconds: float) -> float:
        """The longest time of any rank, the same on all; returns after the last of them has finished."""
        return seconds


@dataclass
class Paired:
    """The times (or other amounts) of both contenders, pair by pair."""

    subject: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """Subject over peer, pair by pair; of two zeros it is one, over a single zero without end."""
        return [ratio(mine, theirs) for mine, theirs in zip(self.subject, self.peer, strict=True)]

    @property
    def medians(self) -> tuple[float, float]:
        """The medians of subject and peer, each by itself."""
        return median(self.subject), median(self.peer)

    @property
    def ratio(self) -> float:
        """The median of the pairs' ratios, which is not the ratio of the medians: a slow minute hits both of a pair."""
        return median(self.ratios)


def ratio(mine: float, theirs: float) -> float:
    """``mine`` over ``theirs``."""
    if theirs:
        return mine / theirs
    return float("inf") if mine else 1.0


def in_turn(
    subject: Contender, peer: Contender, place: Path, pairs: Pairs | None = None, ranks: Alone | None = None
) -> Paired:
    """Run both once to warm up and to compare what they write, then in turn, each in a new directory in ``place``.

    Every rank of ``ranks`` calls it with the same ``place``.

    Raises:
        BenchError: the two did not write the same.
    """
    ranks, pairs = ranks or Alone(), pairs or Pairs()
    seen = [run_once(contender, place, ranks)[1] for contender in (subject, peer)]
    if ranks.first and seen[0] != seen[1]:
        raise BenchError(f"the contenders did not do the same work: {_first_difference(*seen)}")
    paired, total = Paired(), 0.0
    while not pairs.enough(len(paired.peer), total):
        for contender, times in ((subject, paired.subject), (peer, paired.peer)):
            # Of the ranks' agreed time only: so they all stop after the same pair.
            times.append(run_once(contender, place, ranks, look=False)[0])
            total += times[-1]
    return paired


def run_once(contender: Contender, place: Path, ranks: Alone, look: bool = True) -> tuple[float, object]:
    """Seconds of the slowest rank, and on the first rank what ``look`` saw, if it is to look."""
    directory, seen = place / "run", None
    if ranks.first:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
    gc.collect()
    ranks.start()
    started = time.perf_counter()
    returned = contender.run(directory)
    own = time.perf_counter() - started
    seconds = ranks.slowest(own)
    contender.finish(returned)
    del returned
    ranks.start()
    if ranks.first:
        seen = contender.look(directory) if look else None
        shutil.rmtree(directory)
        # The disk frees the blocks now, and not in the time of the other contender.
        flush(place)
    return seconds, seen


def _first_difference(mine: object, theirs: object) -> str:
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for key in sorted(mine.keys() | theirs.keys(), key=str):
            if mine.get(key) != theirs.get(key):
                return f"{key}: {_short(mine.get(key))} instead of {_short(theirs.get(key))}"
    return f"{_short(mine)} instead of {_short(theirs)}"


def _short(value: object, length: int = 200) -> str:
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}... ({len(text)} characters)"
