# SPDX-License-Identifier: Apache-2.0
"""``python -m spec_tests results``: record the reports of whole runs, and print the table of all that is recorded.

``python -m spec_tests releases`` runs the suite against releases of NeMo AutoModel, each installed into a directory
of its own, and records them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from spec_tests.bench.peer import install
from spec_tests.harness.clauses import load_clauses
from spec_tests.harness.paths import fixtures_dir
from spec_tests.harness.results import overview, read_all, record

RELEASES = ("0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0")
"""Those that import with the default row of the version matrix; 0.2.0 needs transformers 4."""


def main(arguments: Sequence[str]) -> int:
    """Record reports; print the table."""
    parser = argparse.ArgumentParser(prog="python -m spec_tests results", description=__doc__, allow_abbrev=False)
    parser.add_argument("reports", nargs="*", type=Path, metavar="REPORT", help="files written by --report-json")
    parser.add_argument("--results-dir", type=Path, metavar="DIR", help="where to (by default this project's own)")
    options = parser.parse_args(arguments)
    directory = options.results_dir or fixtures_dir() / "results"
    recorded = [_record(directory, report) for report in options.reports]
    print(table(directory))
    return int(not all(recorded))


def table(directory: Path) -> str:
    """All that is recorded in the directory, as Markdown."""
    return overview(read_all(directory), {clause.id: clause.level for clause in load_clauses().values()})


def _record(directory: Path, report: Path) -> bool:
    try:
        print(f"recorded {record(directory, json.loads(report.read_text(encoding='utf-8')))}")
    except (OSError, ValueError) as error:
        print(f"{report}: not recorded: {error}", file=sys.stderr)
        return False
    return True


def releases(arguments: Sequence[str]) -> int:
    """Install each release, run the suite against it, and record what it found; 1 when a run was not explained."""
    parser = argparse.ArgumentParser(prog="python -m spec_tests releases", description=__doc__, allow_abbrev=False)
    parser.add_argument("versions", nargs="*", metavar="VERSION", help=f"by default {', '.join(RELEASES)}")
    parser.add_argument("--target", type=Path, required=True, metavar="DIR", help="where the releases are installed")
    options = parser.parse_args(arguments)
    failed = [version for version in options.versions or RELEASES if not _run(version, options.target)]
    print(table(fixtures_dir() / "results"))
    print(f"not conformant with its known failures: {', '.join(failed)}" if failed else "all releases are recorded")
    return int(bool(failed))


def _run(version: str, directory: Path) -> bool:
    target, report = directory / version, directory / f"{version}.json"
    if not install(version, target):
        return False
    report.unlink(missing_ok=True)
    run = [sys.executable, "-m", "spec_tests", "--impl", "nemo_automodel", "--report-json", str(report)]
    paths = [str(target), *filter(None, [os.environ.get("PYTHONPATH")])]
    code = subprocess.run(run, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, check=False).returncode
    return code == 0 and _record(fixtures_dir() / "results", report)
