# SPDX-License-Identifier: Apache-2.0
"""A run as a table for people and as JSON for programs. Pure functions from data to text."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from spec_tests.harness.outcomes import Case, ClauseResult, Outcome, Verdict

REPORT_FORMAT = 1
TEXT_WIDTH = 60
_COLUMNS = ("area", "clause", "keyword", "level", "outcome", "cases", "text")


@dataclass(frozen=True)
class Run:
    """What a run was about; everything that a reader needs to repeat it.

    Attributes:
        implementation: the value of ``--impl``, which may be a path of this machine.
        name: what the implementation calls itself.
    """

    implementation: str
    name: str
    version: str
    origin: str
    spec_version: str
    seed: int | None
    packages: Mapping[str, str | None]


def command(run: Run, nodeid: str, clause_ids: Iterable[str]) -> str:
    """The command that runs one test again, alone."""
    words = ["python", "-m", "spec_tests", "--impl", run.implementation]
    words += [word for clause_id in clause_ids for word in ("--clause", clause_id)]
    words += ["--seed", str(run.seed)] if run.seed is not None else []
    _, areas, case = nodeid.rpartition("areas/")
    return shlex.join([*words, f"{areas}{case}"] if areas else words)


def shortened(text: str, width: int = TEXT_WIDTH) -> str:
    """The text on one line of at most that width, cut at a word."""
    if len(text) <= width:
        return text
    return (text[: width - 2].rpartition(" ")[0] or text[: width - 3]) + "..."


def table(results: Iterable[ClauseResult]) -> str:
    """One line a clause, in columns."""
    rows = [_COLUMNS, *(_row(result) for result in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def summary(results: Collection[ClauseResult], verdict: Verdict) -> str:
    """The closing lines: what was counted, what stands against the implementation, and the verdict."""
    counts = Counter(result.outcome for result in results)
    counted = ", ".join(f"{counts[outcome]} {outcome.value}" for outcome in Outcome if counts[outcome])
    levels = f" (levels reached: {', '.join(verdict.levels)})" if verdict.levels else ""
    return "\n".join(
        [
            f"clauses: {counted or 'none'}; {verdict.executed} cases executed",
            *(f"warning: {warning}" for warning in verdict.warnings),
            *(f"against: {reason}" for reason in verdict.reasons),
            f"verdict: {verdict.text}{levels}",
        ]
    )


def as_dict(
    run: Run, results: Iterable[ClauseResult], verdict: Verdict, cases: Iterable[Case] = (), complete: bool = True
) -> dict[str, Any]:
    """The report as plain data, the same for the same outcomes whatever the machine or the order.

    ``complete`` is false in what is written while the run goes on.
    """
    return {
        "format": REPORT_FORMAT,
        "implementation": {"name": run.name, "version": run.version, "origin": run.origin},
        "spec_version": run.spec_version,
        "packages": dict(sorted(run.packages.items())),
        "seed": run.seed,
        "clauses": {
            result.clause.id: {
                "keyword": result.clause.keyword,
                "level": result.clause.level,
                "outcome": result.outcome.value,
                "executed": result.executed,
                "failed": result.failed,
                "unclaimed": result.unclaimed,
            }
            for result in sorted(results, key=lambda result: result.clause.id)
        },
        "cases": {case.nodeid: case.status.value for case in cases},
        "complete": complete,
        "executed": verdict.executed,
        "verdict": {
            "conformant": verdict.conformant,
            "text": verdict.text,
            "levels": list(verdict.levels),
            "reasons": list(verdict.reasons),
            "warnings": list(verdict.warnings),
        },
    }


def as_json(report: Mapping[str, Any]) -> str:
    """The text of the JSON report."""
    return json.dumps(report, indent=2, ensure_ascii=False) + "\n"


def _row(result: ClauseResult) -> tuple[str, ...]:
    clause = result.clause
    counted = {"failed": result.failed, "not claimed": result.unclaimed if result.executed else 0}
    more = ", ".join(f"{count} {what}" for what, count in counted.items() if count)
    cases = f"{result.executed} ({more})" if more else f"{result.executed}"
    return (clause.area, clause.id, clause.keyword, clause.level, result.outcome.value, cases, shortened(clause.text))
