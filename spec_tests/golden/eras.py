# SPDX-License-Identifier: Apache-2.0
"""Eras: runs of releases of transformers that write the same files.

An era's directory holds the files that are other than in the era before, a directory a case, and nothing else: what a
new era changes is what there is to review. ``removed.json`` in it lists the files that are not written any more.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from packaging.version import Version

from spec_tests.golden.compare import files_below, write_files
from spec_tests.harness.paths import golden_dir

ERAS = "eras.json"
REMOVED = "removed.json"


@dataclass(frozen=True)
class Era:
    """One era.

    Attributes:
        name: also that of its directory.
        first: the first release that was seen to write these files.
        last: the last one.
        why: what is other than in the era before.
    """

    name: str
    first: str
    last: str
    why: str


def eras_dir() -> Path:
    """Where the files of transformers are recorded, a directory an era."""
    return golden_dir() / "transformers"


def read_eras(folder: Path) -> list[Era]:
    """The eras, oldest first."""
    if not (folder / ERAS).exists():
        return []
    return [Era(**one) for one in json.loads((folder / ERAS).read_text(encoding="utf-8"))]


def write_eras(folder: Path, eras: list[Era]) -> None:
    """Write the list of eras."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps([asdict(era) for era in eras], indent=2, ensure_ascii=False)
    (folder / ERAS).write_text(text + "\n", encoding="utf-8")


def era_of(version: str, eras: list[Era]) -> Era:
    """The era with which a version of transformers is compared: the last one that had begun.

    Raises:
        LookupError: the version is older than the first era.
    """
    begun = [era for era in eras if Version(era.first) <= Version(version)]
    if not begun:
        oldest = eras[0].first if eras else "of no release yet"
        raise LookupError(f"transformers must be {oldest} or newer to have goldens, got {version}: install another")
    return begun[-1]


def is_recorded(version: str, era: Era) -> bool:
    """Whether the version is one of those that the era was seen on, or lies between them."""
    return Version(version) <= Version(era.last)


def read_era(folder: Path, era: Era, cases: str = "*") -> dict[str, dict[str, bytes]]:
    """Case -> relative path -> content, of an era and those before it together; of one case, if it is named."""
    found: dict[str, dict[str, bytes]] = {}
    for one in read_eras(folder):
        for case, names in _removed(folder / one.name).items():
            for name in names:
                found.get(case, {}).pop(name, None)
        for path in sorted((folder / one.name).glob(f"{cases}/")):
            found.setdefault(path.name, {}).update(files_below(path))
        if one == era:
            break
    return {case: files for case, files in found.items() if files}


def record(folder: Path, era: Era, case: str, files: dict[str, bytes]) -> None:
    """Make these the files of a case in an era."""
    eras = read_eras(folder)
    at = eras.index(era)
    before = read_era(folder, eras[at - 1], case).get(case, {}) if at else {}
    write_files(folder / era.name / case, {name: text for name, text in files.items() if before.get(name) != text})
    removed = {**_removed(folder / era.name), case: sorted(before.keys() - files.keys())}
    removed = {one: names for one, names in sorted(removed.items()) if names}
    path = folder / era.name / REMOVED
    path.parent.mkdir(exist_ok=True)
    if removed:
        path.write_text(json.dumps(removed, indent=2) + "\n", encoding="utf-8")
    else:
        path.unlink(missing_ok=True)


def _removed(place: Path) -> dict[str, list[str]]:
    path = place / REMOVED
    found: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found
