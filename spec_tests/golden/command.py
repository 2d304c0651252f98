# SPDX-License-Identifier: Apache-2.0
"""``python -m spec_tests goldens``, ``dump`` and ``regress``: compare with recorded files, and record."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import peft
import torch
import transformers
from packaging.version import Version

from spec_tests.builders.catalogue import TRAINED
from spec_tests.golden.cases import adapters, wholes
from spec_tests.golden.compare import UPDATE, UPDATED, compared, differences, unused
from spec_tests.golden.digests import changed_files, write_digests
from spec_tests.golden.eras import Era, era_of, eras_dir, is_recorded, read_era, read_eras, record, write_eras
from spec_tests.golden.reading import write_answer
from spec_tests.golden.recorded import recorded
from spec_tests.harness.paths import golden_dir
from spec_tests.harness.quiet import quiet
from spec_tests.loading import load

KINDS = ("adapters", "wholes")
ABOUT = "about.json"


def case_names() -> list[tuple[str, str]]:
    """(kind, name) of every case that the installed versions have."""
    return [*(("adapters", name) for name in adapters()), *(("wholes", name) for name in wholes())]


def produced(kind: str, name: str) -> dict[str, bytes]:
    """What the reference writes for a case, in the recorded form."""
    with tempfile.TemporaryDirectory() as place:
        save(kind, name, Path(place))
        return recorded(Path(place))


def save(kind: str, name: str, directory: Path) -> None:
    """Save a case with the reference into an empty directory."""
    {"adapters": adapters, "wholes": wholes}[kind]()[name](load("reference"), directory)


def problems_of(kind: str, name: str, *, update: bool = False, era: Era | None = None) -> list[str]:
    """What the reference writes for a case that is not as recorded, one text a file.

    Args:
        kind: of `KINDS`. Files of adapters are the add-on's own, and the same under every version.
        name: of the case.
        update: record what is written.
        era: of the files of whole models; that of the installed transformers if None.
    """
    files = produced(kind, name)
    if kind == "adapters":
        return compared(golden_dir() / "addon" / name, files, update=update)
    version, advice = transformers.__version__, UPDATE
    era = era or era_of(version, read_eras(eras_dir()))
    if not is_recorded(version, era):
        advice = (
            f"transformers {version} is newer than the last release that was recorded ({era.last}). If the change is "
            'right: python -m spec_tests goldens --new-era NAME --why "..."'
        )
    problems = differences(name, read_era(eras_dir(), era, name).get(name, {}), files, advice)
    if update and problems:
        record(eras_dir(), era, name, files)
        problems = [f"{UPDATED}{problem}" for problem in problems]
    return problems


def leftovers() -> list[str]:
    """Goldens that belong to no case, and those of any version that were changed by hand."""
    eras = read_eras(eras_dir())
    era = era_of(transformers.__version__, eras)
    found = unused(golden_dir() / "addon", set(TRAINED))
    found += unused(eras_dir(), {"eras.json", *(one.name for one in eras)})
    if is_recorded(transformers.__version__, era):
        gone = read_era(eras_dir(), era).keys() - wholes().keys()
        found += [f"{name}: golden of no case: remove it" for name in sorted(gone)]
    return found + changed_files(golden_dir())


def goldens(arguments: Sequence[str]) -> int:
    """Compare what the reference writes under the installed versions with what is recorded."""
    parser = argparse.ArgumentParser(
        prog="python -m spec_tests goldens",
        description="Compare what the reference writes under the installed versions with what is recorded.",
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help="these only (default: all)")
    parser.add_argument(
        "--update-golden", action="store_true", help="record what is written; such a run is never green"
    )
    parser.add_argument("--new-era", metavar="NAME", help="record an era that begins with the installed transformers")
    parser.add_argument("--why", help="what is other in the new era, for whoever reviews it")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.cases) - {name for _, name in case_names()}):
        parser.error(f"CASE must be one that there is, got {', '.join(unknown)}")
    if (options.new_era is None) != (options.why is None):
        parser.error("--new-era and --why go together")
    if options.new_era and options.cases:
        parser.error("--new-era records all cases, got CASE: leave it out")
    update = options.update_golden or options.new_era is not None
    if update and os.environ.get("CI"):
        parser.error("goldens are not recorded on CI")
    era = _new_era(parser, options.new_era, options.why) if options.new_era else None
    quiet()
    try:
        era = era or era_of(transformers.__version__, read_eras(eras_dir()))
    except LookupError as error:
        parser.error(str(error.args[0]))
    problems = [
        problem
        for kind, name in case_names()
        if not options.cases or name in options.cases
        for problem in problems_of(kind, name, update=update, era=era)
    ]
    if update:
        write_digests(golden_dir())
    problems += leftovers()
    print("\n".join(problems))
    count = len(options.cases or case_names())
    print(f"{count} checkpoints under transformers {transformers.__version__}: {len(problems) or 'no'} differences")
    return int(bool(problems) or update)


def _new_era(parser: argparse.ArgumentParser, name: str, why: str) -> Era:
    eras, version = read_eras(eras_dir()), transformers.__version__
    era = Era(name, version, version, why)
    if any(one.name == name for one in eras):
        parser.error(f"--new-era must be a new name, got {name}: an era is recorded again with --update-golden")
    later = [one for one in eras if Version(one.first) > Version(version)]
    write_eras(eras_dir(), [*(one for one in eras if one not in later), era, *later])
    return era


def dump(arguments: Sequence[str]) -> int:
    """Write every case as the installed versions do, for `drift`."""
    parser = argparse.ArgumentParser(
        prog="python -m spec_tests dump",
        description="Save every recorded kind of checkpoint under the installed versions: a tree for `drift`.",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="a directory that is not there yet, or is empty")
    place = parser.parse_args(arguments).directory
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        parser.error(f"DIR must be new or empty, got {place}")
    quiet()
    for kind, name in case_names():
        (place / kind / name).mkdir(parents=True)
        save(kind, name, place / kind / name)
        if kind == "wholes":
            write_answer(place, name)
    versions = {one.__name__: one.__version__.partition("+")[0] for one in (peft, torch, transformers)}
    (place / ABOUT).write_text(json.dumps(versions, indent=2) + "\n", encoding="utf-8")
    print(f"{len(case_names())} checkpoints written to {place}")
    return 0


def regress(arguments: Sequence[str]) -> int:
    """Compare a checkpoint of anybody's with what was recorded of it."""
    parser = argparse.ArgumentParser(
        prog="python -m spec_tests regress",
        description="Compare a checkpoint with what was recorded of it: every text file, and of the weights files all "
        "but the numbers. Nothing is written without --update-golden.",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="the checkpoint")
    parser.add_argument("--against", type=Path, required=True, metavar="GOLDEN_DIR", help="what was recorded")
    parser.add_argument("--update-golden", action="store_true", help="record it; such a run is never green")
    options = parser.parse_args(arguments)
    if not options.directory.is_dir():
        parser.error(f"DIR must be a directory with a checkpoint, got {options.directory}")
    if options.update_golden and os.environ.get("CI"):
        parser.error("goldens are not recorded on CI")
    problems = compared(options.against, recorded(options.directory), update=options.update_golden)
    print("\n".join(problems) or f"{options.directory} is as recorded", file=sys.stderr if problems else sys.stdout)
    return int(bool(problems))


def cases_below(place: Path) -> Iterator[tuple[str, str]]:
    """(kind, name) of the cases of a dumped tree."""
    for kind in KINDS:
        for path in sorted((place / kind).glob("*")):
            yield kind, path.name
