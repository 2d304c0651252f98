# SPDX-License-Identifier: Apache-2.0
"""``python -m spec_tests zoo``: save every family of transformers, and compare with what the peers save.

The peers are PEFT, for adapters, and transformers, for whole models. A line a family, and a table at the end. The exit
code is 1 when a case is wrong, when a refusal has no reason in the list (`refusals`), or when more is refused, or less
is equal, than the recorded result says.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from spec_tests.harness.quiet import quiet
from spec_tests.zoo import record
from spec_tests.zoo.refusals import REFUSALS, reason_of
from spec_tests.zoo.verdict import OUTCOMES, Verdict


@dataclass(frozen=True)
class _Order:
    """What a worker does with a family."""

    family: str
    impl: str
    cases: tuple[str, ...]
    keep: Path | None


@dataclass
class Walk:
    """What a run has found.

    Attributes:
        verdicts: of all cases.
        unbuilt: family -> why it could not be built.
    """

    verdicts: list[Verdict] = field(default_factory=list)
    unbuilt: dict[str, str] = field(default_factory=dict)

    def wrong(self) -> list[str]:
        """What is to be mended."""
        lines = [f"{one.family}, {one.case}: {one.detail}" for one in self.verdicts if one.outcome == "wrong"]
        refused = [one for one in self.verdicts if one.outcome == "refused"]
        lines += [
            f"{one.family}, {one.case}: refused without a known reason: {one.detail}"
            for one in refused
            if not reason_of(one)
        ]
        return lines

    def table(self) -> list[str]:
        """The counts, a line a case; and the refusals by reason."""
        from spec_tests.zoo.cases import CASES

        count = Counter((one.case, one.outcome) for one in self.verdicts)
        walked = [case for case in CASES if any(count[case, outcome] for outcome in OUTCOMES)]
        lines = [f"{'':24}" + "".join(f"{outcome:>16}" for outcome in OUTCOMES)]
        lines += [f"{case:24}" + "".join(f"{count[case, outcome]:16}" for outcome in OUTCOMES) for case in walked]
        total = Counter(one.outcome for one in self.verdicts)
        lines.append(f"{'all':24}" + "".join(f"{total[outcome]:16}" for outcome in OUTCOMES))
        refused = [one for one in self.verdicts if one.outcome == "refused"]
        for name, refusal in REFUSALS.items():
            found = [one for one in refused if reason_of(one) == name]
            if found:
                able = sum(one.peer_can for one in found)
                lines.append(f"refused, {name}: {len(found)}, of which the peer can save {able}: {refusal.reason}")
        return lines


def main(arguments: Sequence[str]) -> int:
    """Walk; 0 when nothing is wrong."""
    options = _parser().parse_args(arguments)
    quiet()
    if options.read:
        from spec_tests.zoo.reading import read_all

        return read_all(options.read)
    from spec_tests.zoo.cases import CASES
    from spec_tests.zoo.registry import families

    known, cases = families(), tuple(options.case or CASES)
    if unknown := [one for one in (*options.families, *cases) if one not in known and one not in CASES]:
        print(f"{unknown[0]}: no family of the installed transformers, and no case", file=sys.stderr)
        return 2
    wanted = options.families or known
    walk = _walk([_Order(family, options.impl, cases, options.keep) for family in wanted], options.jobs)
    print("\n".join(walk.table()))
    print(f"families: {len(wanted) - len(walk.unbuilt)} built, {len(walk.unbuilt)} not")
    wrong = walk.wrong()
    if not options.families and not options.case:
        wrong += record.compared(walk.verdicts, walk.unbuilt, options.impl)
        if options.record:
            print(f"recorded {record.write(walk.verdicts, walk.unbuilt, options.impl)}")
    print("\n".join(f"WRONG {line}" for line in wrong) if wrong else "nothing is wrong")
    return int(bool(wrong))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m spec_tests zoo", description=__doc__, allow_abbrev=False)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="a model type of transformers; default all")
    parser.add_argument("--impl", default="reference", help="the implementation (default reference)")
    parser.add_argument("--case", action="append", metavar="NAME", help="a line of the table; default all")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes (default 2)")
    parser.add_argument("--record", action="store_true", help="write the result beside the others of this project")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the checkpoints of whole models there")
    parser.add_argument("--read", type=Path, metavar="DIR", help="read what --keep kept, perhaps with other versions")
    return parser


def _walk(orders: Sequence[_Order], jobs: int) -> Walk:
    walk, start = Walk(), time.monotonic()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=jobs, mp_context=context, initializer=quiet) as pool:
        for number, (order, (verdicts, unbuilt)) in enumerate(zip(orders, pool.map(_family, orders), strict=True), 1):
            count = Counter(one.outcome for one in verdicts)
            said = (
                ", ".join(f"{count[outcome]} {outcome}" for outcome in OUTCOMES if count[outcome])
                or f"not built: {unbuilt}"
            )
            print(f"[{number}/{len(orders)}, {time.monotonic() - start:.0f} s] {order.family}: {said}", flush=True)
            walk.verdicts += verdicts
            if unbuilt:
                walk.unbuilt[order.family] = unbuilt
    return walk


def _family(order: _Order) -> tuple[list[Verdict], str]:
    from spec_tests.loading import load
    from spec_tests.zoo.build import build, inputs
    from spec_tests.zoo.cases import CASES
    from spec_tests.zoo.overrides import CANNOT

    impl = load(order.impl)
    try:
        inputs(build(order.family))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a family raises is why it is not in the zoo
        return [], CANNOT.get(order.family) or f"{type(error).__name__}: {error}"[:200]
    verdicts = []
    for case in order.cases:
        with _place(order, case) as directory:
            try:
                verdicts.append(CASES[case](impl, order.family, directory))
            except Exception as error:  # noqa: BLE001 - a family that nobody tried must not end the walk
                verdicts.append(Verdict(order.family, case, "wrong", f"crashed: {type(error).__name__}: {error}"[:300]))
    return verdicts, ""


@contextlib.contextmanager
def _place(order: _Order, case: str) -> Iterator[Path]:
    if order.keep is not None:
        place = order.keep / order.family / case
        place.mkdir(parents=True)
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="zoo-") as place_of_now:
        yield Path(place_of_now)
