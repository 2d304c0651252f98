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
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import addons
from spec_tests.mutation import hits, judge
from spec_tests.mutation.edits import Edit, edits, lines_of
from spec_tests.mutation.equivalent import equivalent
from spec_tests.mutation.swap import COPIED

_PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; 0 only where every edit was noticed or stands, with its reason, in equivalent.toml."""
    parser = argparse.ArgumentParser(prog="python -m spec_tests mutation", description=__doc__)
    parser.add_argument("files", nargs="*", metavar="FILE", help="files of addons, by name; without any: all")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="of the edits every Nth only")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="with --every: begin with this one")
    parser.add_argument("--seconds", type=float, default=30.0, help="of tests for one edit (30)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (2)")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="keep what each test runs in DIR, or take it from there"
    )
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="mutation-") as scratch:
        kept = options.keep or Path(scratch, "hits")
        tests = _tests(kept, options.jobs)
        chosen = list(itertools.islice(_all(options.files), options.first, None, options.every))
        print(f"{len(chosen)} edits, {len({t for found in tests.values() for t in found})} tests", flush=True)
        results = _run(chosen, tests, options, Path(scratch))
    return _report(chosen, results)


def _all(names: Sequence[str]) -> Iterator[Edit]:
    folder = Path(addons.__file__).parent
    for path in [folder / name for name in names] or sorted(folder.glob("*.py")):
        yield from edits(path)


def _tests(directory: Path, jobs: int) -> dict[str, list[hits.Timed]]:
    if not directory.exists():
        directory.mkdir(parents=True)
        environment = {**os.environ, hits.DIRECTORY: str(directory), "HYPOTHESIS_PROFILE": "mutants"}
        subprocess.run([*_PYTEST, "-n", str(jobs), "-p", hits.__name__], env=environment, check=False)
    return hits.read(directory)


def _reaching(edit: Edit, tests: dict[str, list[hits.Timed]]) -> list[str]:
    file, (first, last) = edit.file, edit.lines
    if file in COPIED:
        file, function = COPIED[file]
        first, last = lines_of(Path(addons.__file__).with_name(file), function)
    return hits.in_turns(test for line in range(first, last + 1) for test in tests.get(f"{file} {line}", ()))


def _run(
    chosen: Sequence[Edit], tests: dict[str, list[hits.Timed]], options: argparse.Namespace, scratch: Path
) -> list[judge.Result]:
    started = []
    for job in range(options.jobs):
        plan = scratch / f"plan-{job}.json"
        mine = [
            (at, asdict(edit), _reaching(edit, tests)) for at, edit in enumerate(chosen) if at % options.jobs == job
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
        started.append((plan, subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)))
    for _, process in started:
        process.wait()
    return sorted(
        (result for plan, _ in started for result in judge.read(plan.with_suffix(".results"))),
        key=lambda result: result.number,
    )


def _report(chosen: Sequence[Edit], results: Sequence[judge.Result]) -> int:
    known, open_ones = equivalent(), 0
    counts: dict[str, Counter[str]] = {}
    for result in results:
        edit = chosen[result.number]
        outcome = result.outcome
        if outcome != judge.KILLED and (edit.file, edit.function, edit.before, edit.after) in known:
            outcome = "equivalent"
        counts.setdefault(edit.file, Counter())[outcome] += 1
        if outcome not in {judge.KILLED, "equivalent"}:
            open_ones += 1
            print(f"{outcome} ({result.ran} tests): {edit}")
    outcomes = (judge.KILLED, judge.SURVIVED, judge.CUT, judge.UNTESTED, "equivalent", judge.NOT_SWAPPED)
    print(f"{'file':<22}" + "".join(f"{outcome:>17}" for outcome in outcomes))
    for file, found in [*sorted(counts.items()), ("all", sum(counts.values(), Counter()))]:
        print(f"{file:<22}" + "".join(f"{found[outcome]:>17}" for outcome in outcomes))
    missing = len(chosen) - len(results)
    if missing:
        print(f"{missing} edits were not judged")
    return int(bool(open_ones or missing))
