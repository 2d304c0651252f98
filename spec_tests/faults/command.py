# SPDX-License-Identifier: Apache-2.0
"""``python -m spec_tests faults``: fail, interrupt and kill a save at every system call that changes the disk.

Needs strace and Linux. What is left is read by PEFT or transformers, and must be the earlier checkpoint or the new one,
whole, with other people's files beside it; the next save must work. A line a row, and a table at the end. The exit code
is 1 when anything else was seen.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from spec_tests.faults import readme
from spec_tests.faults.saves import OTHER_PROJECTS, WHOLE, kinds_of, version_of
from spec_tests.faults.tracing import missing_tool
from spec_tests.faults.walk import FAULTS, HISTORIES, OUTCOMES, Row, walk
from spec_tests.harness.quiet import quiet

_CONTENDERS = (
    "the implementation; `peers` are PEFT's and transformers' own saves, `nemo-checkpointer` is NeMo AutoModel's, "
    "where that is on the path"
)


def main(arguments: Sequence[str]) -> int:
    """Walk; 0 when nothing is lost."""
    parser = argparse.ArgumentParser(prog="python -m spec_tests faults", description=__doc__, allow_abbrev=False)
    parser.add_argument("--impl", default="reference", help=_CONTENDERS)
    parser.add_argument("--jobs", type=int, default=2, help="worker processes (default 2)")
    parser.add_argument("--row", action="append", metavar="WORDS", help="rows whose title begins so; default all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts there")
    parser.add_argument("--readme", action="store_true", help="print the README's section from the committed counts")
    options = parser.parse_args(arguments)
    if options.readme:
        print(readme.section())
        return 0
    if reason := missing_tool():
        print(f"faults: {reason}", file=sys.stderr)
        return 2
    quiet()
    rows = [row for row in _rows(options.impl) if row.title.startswith(tuple(options.row or [""]))]
    if not rows:
        print(f"faults: no row begins with {options.row}", file=sys.stderr)
        return 2
    result, wrong = _walked(options.impl, rows, options.jobs)
    print("\n".join(readme.table([result])))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print("\n".join(wrong[:40]) if wrong else "nothing is lost")
    return int(bool(wrong))


def _rows(contender: str) -> list[Row]:
    kinds = [kind.name for kind in kinds_of(contender)]
    rows = [Row(contender, kind, history) for kind in kinds for history in HISTORIES]
    if contender in OTHER_PROJECTS:  # the peers know no ranks; where one of NeMo's fails, the others wait
        return rows
    rows += [Row(contender, kind, "again", 2, 0) for kind in kinds]
    if WHOLE in kinds:  # of an adapter rank 0 writes all
        rows += [Row(contender, WHOLE, "again", ranks, failing) for ranks, failing in ((2, 1), (4, 3))]
    return rows


def _walked(contender: str, rows: Sequence[Row], jobs: int) -> tuple[dict[str, Any], list[str]]:
    points, outcomes, wrong, seconds, start = Counter[str](), Counter[str](), list[str](), 0.0, time.monotonic()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=jobs, mp_context=context, initializer=quiet) as pool:
        for number, (row, found) in enumerate(zip(rows, pool.map(walk, rows), strict=True), 1):
            total = sum(found.outcomes.values(), Counter())
            said = ", ".join(f"{total[one]} {one}" for one in OUTCOMES if total[one])
            print(f"[{number}/{len(rows)}, {time.monotonic() - start:.0f} s] {row.title}: {said}", flush=True)
            points += found.points
            outcomes += total
            wrong += found.examples
            if row.ranks > 1:
                seconds = max(seconds, found.seconds)
    result = {
        "contender": version_of(contender),
        "versions": {name: version(name) for name in ("peft", "torch", "transformers")},
        "rows": len(rows),
        "points": {fault: points[fault] for fault in FAULTS},
        "outcomes": {one: outcomes[one] for one in OUTCOMES},
        "ranks": sorted({row.ranks for row in rows}),
        "seconds": round(seconds, 2),
    }
    return result, wrong
