# SPDX-License-Identifier: Apache-2.0
"""``python -m spec_tests mutation``: edit every function of `addons` in every small way, and see which tests notice.

It runs in the root of a checkout, where mutmut and pytest find their settings.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import addons
from spec_tests.mutants.killers import read, write
from spec_tests.mutation import hits, judge, killers
from spec_tests.mutation.edits import Edit, edits, lines_of
from spec_tests.mutation.equivalent import equivalent
from spec_tests.mutation.report import Killed, Report
from spec_tests.mutation.swap import COPIED

_FOLDER = Path(addons.__file__).parent
_PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; 0 only where every edit was noticed or stands, with its reason, in equivalent.toml."""
    parser = argparse.ArgumentParser(prog="python -m spec_tests mutation", description=__doc__)
    parser.add_argument("files", nargs="*", metavar="FILE", help="files of addons, by name; without any: all")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="of the edits every Nth only")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="with --every: begin with this one")
    parser.add_argument("--seconds", type=float, default=60.0, help="of tests for one edit (60)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (2)")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="keep in DIR what tests run and notice, and begin with what is there"
    )
    parser.add_argument("--listed", action="store_true", help="those of equivalent.toml too: no test may notice one")
    parser.add_argument("--record", action="store_true", help=f"write which test noticed what to {killers.FILE.name}")
    options = parser.parse_args(argv)
    unknown = sorted({*options.files} - {path.name for path in _FOLDER.glob("*.py")})
    if unknown:
        parser.error(f"FILE must be the name of a file of addons, got {unknown}: give it without its directory")
    known = equivalent()
    with tempfile.TemporaryDirectory(prefix="mutation-") as scratch:
        kept = options.keep or Path(scratch, "kept")
        tests = _tests(kept / "hits", options.jobs)
        chosen = list(itertools.islice(_all(options.files), options.first, None, options.every))
        print(f"{len(chosen)} edits, {len({t for found in tests.values() for t in found})} tests", flush=True)
        killed = Killed(kept / "killed")
        report = Report(chosen, known, killed)
        asked = [at for at, edit in enumerate(chosen) if report.asks(edit, listed=options.listed)]
        for result in _results({at: chosen[at] for at in asked}, tests, options, Path(scratch)):
            report.add(result)
        if options.record:
            noticed = {killers.key(edit): [killed.by(edit)] for edit in chosen if edit in killed}
            write(read(killers.FILE) | noticed, killers.FILE)
    return report.end(len(asked))


def _all(names: Sequence[str]) -> Iterator[Edit]:
    for path in [_FOLDER / name for name in names] or sorted(_FOLDER.glob("*.py")):
        yield from edits(path)


def _tests(directory: Path, jobs: int) -> dict[str, list[hits.Timed]]:
    directory.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, hits.DIRECTORY: str(directory), "HYPOTHESIS_PROFILE": "mutants"}
    subprocess.run([*_PYTEST, "-n", str(jobs), "-p", hits.__name__], env=environment, check=False)
    return hits.read(directory)


def _reaching(
    edit: Edit, tests: dict[str, list[hits.Timed]], orders: dict[str, list[str]], seconds: float
) -> list[str]:
    file, (first, last) = edit.file, edit.lines
    if file in COPIED:
        file, function = COPIED[file]
        first, last = lines_of(_FOLDER / file, function)
    if file not in orders:
        orders[file] = hits.covering(tests, file)
    reaching = {test: took for line in range(first, last + 1) for took, test in tests.get(f"{file} {line}", ())}
    # Whatever takes longer than all are to take comes last.
    return sorted((test for test in orders[file] if test in reaching), key=lambda test: reaching[test] > seconds)


def _results(
    asked: Mapping[int, Edit], tests: dict[str, list[hits.Timed]], options: argparse.Namespace, scratch: Path
) -> Iterator[judge.Result]:
    """What the judges find, as they find it."""
    judges, orders, first = [], dict[str, list[str]](), read(killers.FILE)
    for job in range(options.jobs):
        plan = scratch / f"plan-{job}.json"
        mine = [
            (
                at,
                asdict(edit := asked[at]),
                _reaching(edit, tests, orders, options.seconds),
                first.get(killers.key(edit), []),
            )
            for at in list(asked)[job :: options.jobs]
        ]
        plan.write_text(json.dumps({"edits": mine, "seconds": options.seconds}), encoding="utf-8")
        environment = {
            **os.environ,
            judge.PLAN: str(plan),
            "HYPOTHESIS_PROFILE": "mutants",
            "ADDONS_SPEC_SOON": "5",
            "OMP_NUM_THREADS": "1",
        }
        command = [*_PYTEST, "-n0", "-p", judge.__name__]
        judges.append((plan, subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)))
    seen: set[int] = set()
    while True:
        running = any(process.poll() is None for _, process in judges)
        for plan, _ in judges:
            for result in judge.read(plan.with_suffix(".results")):
                if result.number not in seen:
                    seen.add(result.number)
                    yield result
        if not running:
            return
        time.sleep(1)
