# SPDX-License-Identifier: Apache-2.0
"""Recorded results: what a run found, clause by clause, as committed data that later runs are compared with.

One file a version of an implementation, ``fixtures/results/<implementation>/<version>.json``: outcomes and the
versions they were found with; no times, paths or counts, which differ from run to run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from packaging.version import Version

from spec_tests.harness.clauses import LEVELS

COMPARED_PACKAGES = ("peft", "torch", "transformers")
_PART = re.compile(r"[\w+-][\w.+-]*")
_COUNTED = {"PASS": True, "FAIL": False, "XFAIL": False, "STALE": False, "NOT-TESTABLE": False}


def condensed(report: Mapping[str, Any]) -> dict[str, Any]:
    """What of a JSON report is recorded."""
    return {
        "clauses": {clause: found["outcome"] for clause, found in sorted(report["clauses"].items())},
        "implementation": {name: report["implementation"][name] for name in ("name", "version")},
        "packages": {name: release(report["packages"][name]) for name in COMPARED_PACKAGES},
        "spec_version": report["spec_version"],
    }


def release(version: str | None) -> str | None:
    """A version without the build it comes from (``2.13.0+cpu``)."""
    return version and version.partition("+")[0]


def file_of(directory: Path, implementation: Mapping[str, str]) -> Path:
    """Where the results of that version are recorded.

    Raises:
        ValueError: name or version cannot be part of a path.
    """
    for key in ("name", "version"):
        if not _PART.fullmatch(implementation[key]):
            raise ValueError(f"the {key} {implementation[key]!r} cannot name a file: letters, digits and ._+- can")
    return directory / implementation["name"] / f"{implementation['version']}.json"


def record(directory: Path, report: Mapping[str, Any]) -> Path:
    """Write the results of a whole run; returns the file.

    Raises:
        ValueError: the run left clauses out, or failures are unexplained, or `file_of` has no file for it.
    """
    found = condensed(report)
    left = [clause for clause, outcome in found["clauses"].items() if outcome in {"NOT-RUN", "FAIL", "STALE"}]
    if left:
        outcome = found["clauses"][left[0]]
        raise ValueError(f"{left[0]} is {outcome}: only a whole run with explained failures is recorded")
    path = file_of(directory, found["implementation"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return path


def compared(directory: Path, report: Mapping[str, Any]) -> tuple[list[str], str]:
    """How a run differs from what is recorded, and a line that says what was compared.

    Outcomes depend on the readers: what differs under other versions of them is said, and fails nothing.
    """
    found = condensed(report)
    path = file_of(directory, found["implementation"])
    where = f"{path.parent.name}/{path.name}"
    if "NOT-RUN" in found["clauses"].values():
        return [], f"recorded results: not compared with a part of a run ({where})"
    if not path.exists():
        return [f"no results are recorded in {where}: record them (python -m spec_tests results REPORT)"], ""
    recorded = json.loads(path.read_text(encoding="utf-8"))
    differing = [
        f"{clause} is recorded as {recorded['clauses'].get(clause)} and is {found['clauses'].get(clause)} ({where})"
        for clause in sorted({*recorded["clauses"], *found["clauses"]})
        if recorded["clauses"].get(clause) != found["clauses"].get(clause)
    ]
    if recorded["packages"] == found["packages"]:
        return differing, f"recorded results: compared with {where}"
    said = f"recorded results: {where} was recorded with {_spelled(recorded['packages'])}"
    return [], "\n".join([f"{said}; {len(differing)} clauses differ under the installed ones", *differing])


def read_all(directory: Path) -> list[dict[str, Any]]:
    """Every recorded result, by implementation and version."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in directory.glob("*/*.json")]
    return sorted(found, key=lambda one: (one["implementation"]["name"], Version(one["implementation"]["version"])))


def overview(results: Iterable[Mapping[str, Any]], levels: Mapping[str, str]) -> str:
    """A Markdown table, area by implementation: clauses passed of those claimed and applicable.

    ``levels`` are those of the clauses, by id; a row for each comes last.
    """
    columns = list(results)
    ids = sorted({clause for one in columns for clause in one["clauses"]})
    rows: dict[str, list[str]] = {}
    for clause in ids:
        rows.setdefault(clause.partition("-")[0], []).append(clause)
    for level in LEVELS:
        rows[f"**{level}**"] = [clause for clause in ids if levels.get(clause) == level]
    heads = ["area", *(f"{one['implementation']['name']} {one['implementation']['version']}" for one in columns)]
    cells = [[name, *(_cell(one, clauses) for one in columns)] for name, clauses in rows.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(heads), *cells])


def _cell(result: Mapping[str, Any], clauses: Iterable[str]) -> str:
    outcomes = [result["clauses"].get(clause) for clause in clauses]
    counted = [_COUNTED[outcome] for outcome in outcomes if outcome in _COUNTED]
    return f"{sum(counted)} of {len(counted)}" if counted else "-"


def _spelled(packages: Mapping[str, str | None]) -> str:
    return ", ".join(f"{name} {version}" for name, version in packages.items())
