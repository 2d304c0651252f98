# SPDX-License-Identifier: Apache-2.0
"""``python -m spec_tests mutants``: whether the tests of the specification catch what is broken."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from spec_tests import where
from spec_tests.harness.selection import listed
from spec_tests.mutants import children, judging, killers, soon
from spec_tests.mutants.children import Done, Job
from spec_tests.mutants.registry import PREFIX, Mutant, selected

WORKERS = 2
# Of one run: the unbroken package runs every clause that any chosen mutant is about, in one process.
TIMEOUT, TIMEOUT_FULL = 600.0, 900.0
BASELINE = "(unbroken)"
FIRST_FAILURES = ("-p", soon.__name__)
"""Options of a run that ends where every clause has failed; with `--full` it goes on, and shows what else fails."""
_SHOWN = 30


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tests against every mutant; 0 only when each is caught and the unbroken package passes."""
    options = _options(argv)
    try:
        chosen = selected(options.names, listed(options.area))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if options.list:
        for one in chosen:
            print(f"{one.name}: {', '.join(one.kills)}\n    {one.doc}\n    {one.source}")
        return 0
    if not hasattr(os, "fork"):
        print("mutants are run in forked processes, which this system does not have", file=sys.stderr)
        return 2
    started = time.monotonic()
    children.warm()
    print(f"{len(chosen)} mutants; imports took {time.monotonic() - started:.0f} s", flush=True)
    return _report(chosen, options, started)


def alone(one: Mutant) -> dict[str, Mutant]:
    """The mutant once for each clause that it claims, by a name of its own: each then has to fail by itself."""
    if len(one.kills) == 1:
        return {one.name: one}
    return {f"{one.name}, {clause}": replace(one, kills=(clause,)) for clause in one.kills}


def check(
    by_name: Mapping[str, Mutant],
    *,
    full: bool,
    workers: int,
    timeout: float,
    baseline: bool = True,
    noticed: dict[str, list[str]] | None = None,
) -> list[str]:
    """Run the tests against the mutants, print a line each, and return the names of those that are not caught.

    With ``baseline`` the first run is against the unbroken package: what fails there catches nothing. Which tests
    failed for those that are caught goes to ``noticed``.
    """
    chosen, before = by_name.values(), killers.read(killers.FILE)
    jobs = []
    for name, one in by_name.items():
        first = [f"--first={test}" for test in before.get(one.name, ())]
        jobs.append(_job(name, PREFIX + one.name, *(((),) if full else (one.kills, *FIRST_FAILURES, *first))))
    if baseline:
        clauses = () if full else sorted({clause for one in chosen for clause in one.kills})
        jobs.insert(0, _job(BASELINE, "reference", clauses))
    uncaught = []
    for number, done in enumerate(children.run(jobs, workers, timeout), start=1):
        which = f"[{number}/{len(jobs)}] {done.job.name}"
        good, text = _judged(by_name.get(done.job.name), done)
        print(f"{which}: {text} ({done.seconds:.1f} s)", flush=True)
        if good and not full and noticed is not None and done.report is not None and done.job.name in by_name:
            noticed.setdefault(by_name[done.job.name].name, []).extend(judging.tests(done.report))
        if not good:
            uncaught.append(done.job.name)
            _explain(by_name.get(done.job.name), done)
    return uncaught


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m spec_tests mutants",
        description="Run the conformance tests against deliberately broken copies of the bundled implementation. "
        "To look at one by hand: python -m spec_tests --impl mutant:NAME --clause ID.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="these mutants only")
    parser.add_argument("--area", action="append", default=[], help="mutants with clauses of this area, or of A,B")
    parser.add_argument("--full", action="store_true", help="all tests for each, to see what else fails")
    parser.add_argument("--alone", action="store_true", help="each clause of a mutant in a run of its own")
    parser.add_argument("--jobs", type=int, default=WORKERS, help=f"runs at a time (default {WORKERS})")
    parser.add_argument(
        "--timeout", type=float, help=f"seconds a run (default {TIMEOUT:g}, with --full {TIMEOUT_FULL:g})"
    )
    parser.add_argument("--record", action="store_true", help=f"write which tests noticed what to {killers.FILE.name}")
    parser.add_argument("--list", action="store_true", help="say what there is, and run nothing")
    return parser.parse_args(sys.argv[1:] if argv is None else list(argv))


def _report(chosen: Sequence[Mutant], options: argparse.Namespace, started: float) -> int:
    timeout = options.timeout or (TIMEOUT_FULL if options.full else TIMEOUT)
    parts = [alone(one) if options.alone else {one.name: one} for one in chosen]
    by_name = {name: one for part in parts for name, one in part.items()}
    noticed = dict[str, list[str]]()
    uncaught = check(by_name, full=options.full, workers=max(1, options.jobs), timeout=timeout, noticed=noticed)
    if options.record:
        killers.write(killers.read(killers.FILE) | noticed, killers.FILE)
    survived = len([part for part in parts if part.keys() & set(uncaught)])
    print(f"{len(chosen) - survived} of {len(chosen)} mutants caught in {time.monotonic() - started:.0f} s")
    if BASELINE in uncaught:
        print("the unbroken package fails too: where it does, nothing was caught")
    if uncaught:
        print(f"not as expected: {', '.join(uncaught)}")
    return 1 if uncaught or not chosen else 0


def _job(name: str, implementation: str, clauses: Sequence[str], *options: str) -> Job:
    """A run of these clauses, or of all; reading the files of the others takes longer than most mutants live."""
    files = sorted({place.path for clause in clauses for place in where.in_tests(clause)})
    words = ("--impl", implementation, *(word for clause in clauses for word in ("--clause", clause)))
    return Job(name, (*words, *options), tuple(files))


def _judged(one: Mutant | None, done: Done) -> tuple[bool, str]:
    if done.report is None:
        return False, judging.Judgement(problem=done.problem).text
    if one is not None:
        judgement = judging.judged(one, done.report)
        return judgement.caught, judgement.text
    reasons = done.report["verdict"]["reasons"]
    return not reasons, f"FAILS: {'; '.join(reasons)}" if reasons else "passes"


def _explain(one: Mutant | None, done: Done) -> None:
    if one is not None:
        print(f"    {one.doc}")
        print(f"    python -m spec_tests --impl {PREFIX}{one.name} --clause {' --clause '.join(one.kills)}", flush=True)
    if done.report is None:
        print(textwrap.indent("\n".join(done.output.splitlines()[-_SHOWN:]), "    | "), flush=True)
