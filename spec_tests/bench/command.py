# SPDX-License-Identifier: Apache-2.0
"""``python -m spec_tests bench``: measure the reference beside something that does the same work.

Every row runs its contenders in turn and prints the medians and the ratio pair by pair. A row passes by its ratio;
nothing is said about absolute times. The exit code is 1 when a row is over its limit, and 2 when one failed.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import gc
import importlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from spec_tests.bench import readme, report
from spec_tests.bench.rows import NotHereError, Places, Row

# In the order in which they are run and printed.
_OF_ROWS = ("hooks", "adapters", "whole", "sharded", "usage", "traffic")


def main(arguments: Sequence[str]) -> int:
    """Run the rows that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m spec_tests bench", description=__doc__, allow_abbrev=False)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="a row's name, its beginning, or a pattern; default all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result to FILE")
    parser.add_argument("--list", action="store_true", help="print the rows and run none")
    parser.add_argument("--nemo", type=Path, metavar="DIR", help="where NeMo AutoModel is, or is to be installed")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="where to write, on the disk to be measured")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="print the README's section for the result in FILE")
    options = parser.parse_args(arguments)
    if options.readme is not None:
        print(readme.section(readme.read(options.readme)))
        return 0
    # Before transformers is imported. A bar a file and a look at the hub are no work of saving.
    os.environ.update(HF_HUB_DISABLE_PROGRESS_BARS="1", HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
    rows = all_rows()
    chosen = selected(rows, options.rows)
    for unknown in (word for word in options.rows if not selected(rows, [word])):
        parser.error(f"ROW must name rows that --list prints, got {unknown!r}")
    if options.list:
        for row in chosen:
            print(f"{row.name}: {row.work}, beside {row.beside}; limit {row.limit:g}")
        return 0
    with warnings.catch_warnings(), places(options.scratch, options.nemo) as where:
        warnings.simplefilter("ignore")
        found = run(chosen, where)
        if options.json is not None:
            options.json.write_text(json.dumps(result(found, where), indent=2) + "\n", encoding="utf-8")
    print(report.summary(found))
    return report.exit_code(found)


def all_rows() -> list[Row]:
    """Every row, in order."""
    modules = (importlib.import_module(f"spec_tests.bench.{name}") for name in _OF_ROWS)
    return [row for module in modules for row in module.ROWS]


def selected(rows: Sequence[Row], words: Sequence[str]) -> list[Row]:
    """The rows that a word names, begins or matches; all where there are no words."""
    return [
        row
        for row in rows
        if not words or any(row.name.startswith(word) or fnmatch.fnmatchcase(row.name, word) for word in words)
    ]


@contextlib.contextmanager
def places(scratch: Path | None, nemo: Path | None) -> Iterator[Places]:
    """Directories to write in, which are gone afterwards."""
    from spec_tests.bench import machine, peer

    # A bench that is terminated leaves nothing either: what it wrote to tmpfs would go on taking memory.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with contextlib.ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGTERM, before)

        def directory(inside: Path | None) -> Path:
            return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="addons-bench-", dir=inside)))

        memory = machine.tmpfs()
        where = nemo if nemo is not None else directory(None)
        yield Places(directory(scratch), memory and directory(memory), lambda: peer.bound(where))


def run(rows: Sequence[Row], where: Places) -> list[dict[str, Any]]:
    """Measure each row, and print a line about it."""
    found = []
    for number, row in enumerate(rows, start=1):
        started = time.monotonic()
        found.append(_outcome(row, where))
        gc.collect()
        print(f"[{number}/{len(rows)}, {time.monotonic() - started:.0f} s] {report.line(found[-1])}", flush=True)
    return found


def result(rows: list[dict[str, Any]], where: Places) -> dict[str, Any]:
    """The whole result as plain data; no path of this machine is in it."""
    from spec_tests.bench.machine import machine

    return {"machine": machine({"disk": where.disk, "tmpfs": where.memory}), "rows": rows}


def _outcome(row: Row, where: Places) -> dict[str, Any]:
    try:
        return report.measured(row, row.measure(where))
    except NotHereError as error:
        return report.unmeasured(row, report.NOT_HERE, str(error))
    except Exception as error:  # noqa: BLE001 - one row that fails leaves the others worth measuring
        traceback.print_exc(file=sys.stderr)
        return report.unmeasured(row, report.FAILED, f"{type(error).__name__}: {error}")
