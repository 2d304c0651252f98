# SPDX-License-Identifier: Apache-2.0
"""``python -m spec_tests --exporter "COMMAND"``: judge any exporter by what readers make of its files."""

from __future__ import annotations

import argparse
import os
import shlex
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from spec_tests.exporters.cases import BY_ID, CATALOGUE
from spec_tests.exporters.running import Result, judged, prepare, run_exporter
from spec_tests.harness import environment
from spec_tests.harness.clauses import load_clauses, spec_version
from spec_tests.harness.outcomes import Conditions, Verdict, fold, verdict
from spec_tests.harness.report import Run, as_dict, as_json, summary, table

JOBS = 2


def main(arguments: Sequence[str]) -> int:
    """Run the cases; 0 exactly when nothing stands against the exporter."""
    options = _options(arguments)
    command = shlex.split(options.exporter)
    wanted = [BY_ID[name] for name in options.case] or CATALOGUE
    if options.report_json is not None and not options.report_json.parent.is_dir():
        raise SystemExit(f"--report-json {options.report_json}: {options.report_json.parent} must be a directory")
    quieten()
    results: dict[str, Result] = {}
    with tempfile.TemporaryDirectory(prefix="exporter-") as scratch, ThreadPoolExecutor(max(1, options.jobs)) as pool:
        ready = [prepare(case, options.keep_trees or Path(scratch)) for case in wanted]
        started = {pool.submit(run_exporter, one, command): one for one in ready}
        for future in as_completed(started):
            result = judged(started[future], *future.result())
            results[result.case.id] = result
            print(f"[{len(results)}/{len(wanted)}] {_line(result)}", flush=True)
    ordered = [results[case.id] for case in wanted]
    report, reached = _report(options.name or options.exporter, options.version, ordered)
    print(report)
    if options.report_json is not None:
        options.report_json.write_text(_json(options, ordered), encoding="utf-8")
    return int(not reached.conformant)


def quieten() -> None:
    """No progress bars, here and in what is started from here."""
    import transformers

    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    transformers.utils.logging.disable_progress_bar()


def folded(results: Sequence[Result]) -> tuple[list, Verdict]:
    """The outcome of each clause that the cases are about, and the verdict."""
    cases = [case for result in results for case in result.cases()]
    named = {clause for case in cases for clause in case.clauses}
    clauses = [clause for clause in load_clauses().values() if clause.id in named]
    # What a clause needs of hooks says nothing about an exporter.
    conditions = Conditions(claims=frozenset(name for clause in clauses for name in clause.needs))
    found = fold(clauses, cases, conditions)
    return found, verdict(found, cases, partial=True)


def _report(name: str, version: str, results: Sequence[Result]) -> tuple[str, Verdict]:
    found, reached = folded(results)
    counts = {said: sum(result.said == said for result in results) for said in dict.fromkeys(r.said for r in results)}
    cases = ", ".join(f"{count} {said}" for said, count in sorted(counts.items()))
    return "\n".join([table(found), f"exporter: {name} {version}; cases: {cases}", summary(found, reached)]), reached


def _json(options: argparse.Namespace, results: Sequence[Result]) -> str:
    found, reached = folded(results)
    clauses = load_clauses()
    run = Run(
        implementation=options.exporter,
        name=options.name or "exporter",
        version=options.version,
        origin="an exporter, judged by its files",
        spec_version=spec_version(clauses),
        seed=None,
        packages=environment.versions(),
    )
    said = {
        result.case.id: {
            "said": result.said,
            "findings": [{"clauses": list(one.clauses), "text": one.text} for one in result.findings],
            "text": result.text,
        }
        for result in results
    }
    return as_json({**as_dict(run, found, reached), "cases": said})


def _line(result: Result) -> str:
    lines = [f"{result.case.id}: {result.said}" + (f" ({result.text})" if result.text else "")]
    lines += [f"    {', '.join(finding.clauses)}: {finding.text}" for finding in result.findings]
    return "\n".join(lines)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m spec_tests",
        description="Judge any exporter by its files. The command is run as COMMAND CASE RESULT, once a case; "
        "`python -m spec_tests case NAME DIR` writes a case to look at, and spec_tests/exporters/__init__.py says what "
        "is in it.",
        allow_abbrev=False,
    )
    parser.add_argument("--exporter", required=True, metavar="COMMAND", help="the interpreter and the binding's file")
    parser.add_argument("--case", action="append", default=[], choices=sorted(BY_ID), help="this one (repeatable)")
    parser.add_argument("--name", default="", help="what the report calls it")
    parser.add_argument("--version", default="", help="its release")
    parser.add_argument("--jobs", type=int, default=JOBS, help=f"cases at a time (default {JOBS})")
    parser.add_argument("--keep-trees", type=Path, metavar="DIR", help="keep cases, results and outputs in DIR")
    parser.add_argument("--report-json", type=Path, metavar="PATH", help="write the report as JSON")
    return parser.parse_args(arguments)
