# SPDX-License-Identifier: Apache-2.0
"""Where the suite's own data lies, in a checkout and in an installed wheel."""

from __future__ import annotations

from collections.abc import Collection
from importlib import resources
from pathlib import Path


def package_dir() -> Path:
    """The directory of the package ``spec_tests``."""
    # The suite is never run from a zip file: pytest collects its modules from directories.
    return Path(str(resources.files("spec_tests")))


def area_tests() -> list[Path]:
    """The files with the tests of the specification, in the order of their names."""
    return sorted((package_dir() / "areas").glob("test_*.py"))


def spec_dir() -> Path:
    """The directory with the text of the specification, one Markdown file an area."""
    return package_dir() / "spec"


def is_of(stems: Collection[str], name: str) -> bool:
    """Whether a file's name is that of one of the specification's files, alone or with a subject behind it."""
    return any(name == stem or name.startswith(f"{stem}_") for stem in stems)


def fixtures_dir() -> Path:
    """The directory with source snapshots, goldens and results.

    A wheel carries it inside the package; in a checkout it stands beside the package.

    Raises:
        FileNotFoundError: neither place has it.
    """
    package = package_dir()
    for candidate in (package / "fixtures", package.parent / "fixtures"):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"no fixtures/ in {package} or beside it: the installation is incomplete")


def golden_dir() -> Path:
    """The recorded checkpoints of the reference."""
    return fixtures_dir() / "golden"
